"""Processes killed at random and at every kind of file operation end bit-identical."""

import functools
import random
import time

import pytest

from tests.faults import checks, points
from tests.faults.conftest import LONG

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("chain", range(20 if LONG else 4))
def test_killed_at_random_ten_times(chain, begin, whole, tmp_path):
    chance, killed, number = random.Random(chain), 0, 0
    while killed < 10:
        out = tmp_path / f"run-{number}"
        run = begin(out=out)
        time.sleep(chance.uniform(0.1, 4))
        if run.alive:
            run.send(9)
            killed += 1
        if (status := run.wait()) != 137:
            checks.same_end(run, status, out, whole)
            number += 1
    run = begin(out=out)
    checks.same_end(run, run.wait(), out, whole)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_killed_at_every_kind_of_file_operation(after, begin, whole, tmp_path):
    seen, number = set(), 0
    while True:
        out, report = tmp_path / f"run-{number}", tmp_path / "report"
        report.unlink(missing_ok=True)
        hook = functools.partial(
            points.crash, str(out), frozenset(seen), str(report), after
        )
        run = begin(hook, out=out)
        status = run.wait()
        if report.exists():
            seen.add(report.read_text())
        if status == 137:
            continue
        checks.same_end(run, status, out, whole)
        if not report.exists() and number:
            break
        number += 1
    assert len(seen) >= 20, seen
