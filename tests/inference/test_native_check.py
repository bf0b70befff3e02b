"""The native engine's self-test passes, and can fail; ``bitflax native`` shows it."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import cli, inference
from bitflax.errors import DamagedFile
from bitflax.inference import native_check
from bitflax.inference.native import building, library
from tests.helpers import natives
from tests.inference.test_exporting import write_packed


@pytest.fixture(scope="module", autouse=True)
def _engine():
    natives.engine_or_skip()


def test_numpy_has_the_logits_of_jax():
    rng = np.random.default_rng(3)
    params = native_check._model(rng, (2,))
    batch = natives.batch(5, 20, ragged=True)
    batch["input_ids"] = batch["input_ids"] % native_check.CONFIG.vocab_size
    held = jax.tree.map(jnp.asarray, params)
    expected = jax.jit(bf.bert(native_check.CONFIG, native_check.ACT))(
        held, batch
    ).logits
    apart = natives.apart(native_check._logits(params, batch), np.asarray(expected))
    assert (apart < native_check._CLOSE).sum() >= 4
    assert apart.max() < native_check._FLIPPED


def test_every_target_and_kind_is_tested():
    found = inference.self_test()
    pairs = {(test.target, test.kind) for test in found}
    kinds = ("binary", "ternary", "split")
    assert pairs == {(t, k) for t in library.usable_targets() for k in kinds}


def test_an_engine_that_computes_something_else_fails(monkeypatch):
    right = library.NativeModel.__call__

    def wrong(self, batch):
        return right(self, batch) * 1.1

    monkeypatch.setattr(library.NativeModel, "__call__", wrong)
    with pytest.raises(DamagedFile, match=r"its self-test fails: .*binary"):
        inference.self_test()


def test_native_shows_library_targets_self_test_and_speeds(capsys):
    assert cli.main(["native"]) == 0
    said = capsys.readouterr().out
    facts = dict(line.split("  ", 1) for line in said.splitlines()[:3])
    assert str(building.find_built().path) in facts["library"]
    assert facts["chosen"].strip() in library.usable_targets()
    rows = [line.split() for line in said.splitlines()[5:]]
    assert [row[0] for row in rows] == [*library.usable_targets()]
    assert all(float(row[1]) > 0 and float(row[2]) > 0 for row in rows)


def test_verify_runs_the_self_test_where_the_engine_is_built(capsys, tmp_path):
    path = write_packed(tmp_path / "m")
    assert cli.main(["verify", str(path)]) == 0
    tests = 3 * len(library.usable_targets())
    assert f"native engine: {tests} self-tests passed" in capsys.readouterr().out


def test_verify_does_without_an_engine(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = write_packed(tmp_path / "m")
    assert cli.main(["verify", str(path)]) == 0
    assert "native engine" not in capsys.readouterr().out
    assert not any(pathlib.Path(tmp_path).rglob("*.so"))
