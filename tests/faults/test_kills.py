"""Processes killed at random and at every kind of file operation end bit-identical."""

import functools
import random
import time

import pytest

from tests.faults import checks, points, runs
from tests.faults.conftest import LONG

pytestmark = pytest.mark.faults


@pytest.mark.parametrize("chain", range(20 if LONG else 4))
def test_killed_at_random_ten_times(chain, begin, whole, tmp_path):
    chance, killed, number = random.Random(chain), 0, 0
    while killed < 10:
        out = tmp_path / f"run-{number}"
        run = begin(out=out)
        time.sleep(chance.uniform(0.1, 3))
        if run.alive:
            run.send(9)
            killed += 1
        if (status := run.wait()) != 137:
            checks.same_end(run, status, out, whole)
            number += 1
    run = begin(out=out)
    checks.same_end(run, run.wait(), out, whole)


def _crash(root: str, seen: frozenset, report: str, when: str) -> None:
    turn = ("before", "after")[len(seen) % 2] if when == "by turns" else when
    points.crash(root, seen, report, after=turn == "after")


@pytest.mark.parametrize("when", ["before", "after"] if LONG else ["by turns"])
def test_killed_at_every_kind_of_file_operation(when, begin, whole, tmp_path):
    hook = functools.partial(_crash, when=when)
    for run, status, out in runs.every_kind(begin, tmp_path, hook):
        if status != 137:
            checks.same_end(run, status, out, whole)
