"""Signals: from the first instruction on, in every phase; the status, and saved."""

import functools
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from bitflax.signals import WORDS
from tests.faults import checks, points, runs
from tests.faults.conftest import LONG

pytestmark = pytest.mark.faults

BOTH = [signal.SIGINT, signal.SIGTERM]
PHASES = {
    "recipe": ("bitflax.recipe", "read_recipe"),
    "data": ("bitflax.runs.prepare", "load_task"),
    "checks": ("bitflax.runs.checks", "check_stages"),
    "teacher's outputs": ("bitflax.distillation", "fill"),
    "training": None,
    "saving a stage": ("bitflax.model", "save_pretrained"),
    "packing": ("bitflax.runs.results", "pack"),
    "report": ("bitflax.runs.report", "write_report"),
}


@pytest.mark.parametrize("phase", PHASES)
def test_both_signals_in_every_phase(phase, begin, whole, tmp_path):
    for number, step in zip(BOTH, (5, 9), strict=True):
        hook = functools.partial(points.at_step, step, number)
        if at := PHASES[phase]:
            hook = functools.partial(points.in_function, *at, number)
        run = begin(hook)
        assert run.wait() == 128 + number, run.said
        assert run.said.endswith(f"{WORDS}\n")
        assert "Traceback" not in run.said
        assert ("saved at step" in run.said) == (phase == "training")
    run = begin()
    checks.same_end(run, run.wait(), tmp_path / "run", whole)


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGQUIT])
def test_what_else_ends_a_command_saves_too(number, begin):
    run = begin(functools.partial(points.at_step, 5, number))
    assert run.wait() == 128 + number, run.said
    assert "saved at step 6" in run.said


STEP = 0.025 if LONG else 0.1


def handles(pid: int) -> bool:
    """Whether a process is through our first import, which sets the handlers.

    SIGTERM's tells: of SIGINT Python has a handler of its own before.
    """
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    caught = re.search(r"SigCgt:\s*(\w+)", status)
    assert caught, status
    return bool(int(caught[1], 16) >> (signal.SIGTERM - 1) & 1)


def has_numpy(pid: int) -> bool:
    """Whether a process imports already what takes seconds."""
    return "numpy" in pathlib.Path(f"/proc/{pid}/maps").read_text()


@pytest.mark.parametrize("number", BOTH, ids=["int", "term"])
def test_a_signal_in_the_first_five_seconds(number, place, tmp_path):
    def stopped(turn: int) -> tuple[float, bool, int, str]:
        out = tmp_path / f"run-{turn}"
        argv = [sys.executable, "-m", "bitflax.cli", *runs.command(place, out)]
        env = os.environ | runs.ENV
        pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        with subprocess.Popen(argv, env=env, **pipes) as process:
            time.sleep(turn * STEP)
            late, begun = has_numpy(process.pid), handles(process.pid)
            process.send_signal(number)
            said = process.communicate(timeout=150)[1].decode()
        assert begun or not late, turn
        return turn * STEP, begun, process.returncode, said

    turns = range(int(5 / STEP))
    if not LONG:  # the two signals by turns
        turns = turns[BOTH.index(number) :: 2]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(stopped, turns))
    for seconds, begun, status, said in found:
        told = (seconds, begun, status, said)
        if begun:
            assert status in (0, 128 + number), told
        elif status not in (0, 128 + number):  # what the signal does to every Python
            assert status in (-number, 1), told
            assert (
                "/bitflax/__init__.py" not in said or "import bitflax.signals" in said
            ), told
            continue
        assert "Traceback" not in said, told
        assert said.endswith(f"{WORDS}\n") == (status > 0), told
    assert sum(begun and status > 0 for _, begun, status, _ in found) > 5
