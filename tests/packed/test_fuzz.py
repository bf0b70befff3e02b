"""The benchmark's trial of damaged and hostile files, in small."""

import numpy as np
import pytest

from bitflax.errors import DamagedFile
from tests.benchmarks import fuzz
from tests.helpers import forgery, hostile, tinypacked


@pytest.fixture
def trial(tmp_path):
    if not fuzz.pathlib.Path("/proc/self/clear_refs").exists():
        pytest.skip("this system does not tell a process's peak memory")
    return fuzz.Trial(tmp_path)


def test_damaged_files_are_refused_or_the_same(trial):
    fuzz.damaged(trial, tinypacked.tiny(), 400, np.random.default_rng(0))
    assert trial.failures == []
    assert trial.counts["refused"] > 350


@pytest.mark.slow
def test_hostile_files_are_refused_or_sound(trial):
    fuzz.forged(trial, tinypacked.tiny(), 50, np.random.default_rng(0))
    assert trial.failures == []
    assert trial.counts["refused"] > 30
    assert trial.counts["accepted"] > 0


@pytest.mark.parametrize("change", hostile.CHANGES, ids=lambda change: change.__name__)
def test_every_kind_of_forgery_makes_files(change):
    for seed in range(2):
        forged = forgery.Forgery(tinypacked.tiny())
        change(np.random.default_rng(seed), forged)
        assert forged.bytes() != tinypacked.tiny()


def test_forging_nothing_is_a_good_file(trial):
    forged = forgery.Forgery(tinypacked.tiny())
    found = trial.read(forged.bytes(), "nothing")
    fuzz.check_sound(found, trial.path)


def test_the_trial_can_fail(trial, monkeypatch):
    raw = tinypacked.tiny()
    trial.path.write_bytes(raw)
    original = fuzz.said(fuzz.opened(trial.path))
    other = fuzz.opened(trial.path)._replace(extras={})
    with pytest.raises(fuzz.Wrong, match="silently different"):
        fuzz.check_same(other, original)
    flat = dict(other.params) | {"pooler": {}}
    with pytest.raises(fuzz.Wrong, match="other parameters"):
        fuzz.check_sound(other._replace(params=flat), trial.path)

    def crash(path):
        raise RuntimeError("not an error that a person can mend")

    monkeypatch.setattr(fuzz, "opened", crash)
    assert trial.read(raw, "crash") is None
    assert trial.counts["failed"] == 1
    assert "RuntimeError" in trial.failures[0]
    monkeypatch.setattr(fuzz, "SECONDS", -1)
    monkeypatch.setattr(
        fuzz,
        "opened",
        lambda path: (_ for _ in ()).throw(DamagedFile(path, "", fix="")),
    )
    trial.read(raw, "slow")
    assert "slow" in trial.failures[1]
    monkeypatch.setattr(fuzz, "MEMORY", -1e12)
    trial.peak.start()
    trial.remember("large", raw)
    assert "large" in trial.failures[2]
