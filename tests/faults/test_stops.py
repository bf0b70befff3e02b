"""Signals: from the first instruction on, in every phase; the status, and saved."""

import functools
import os
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


@pytest.mark.parametrize("number", BOTH, ids=["int", "term"])
def test_a_signal_in_the_first_five_seconds(number, place, tmp_path):
    def stopped(turn: int) -> tuple[float, int, str]:
        out = tmp_path / f"run-{turn}"
        argv = [sys.executable, "-m", "bitflax.cli", *runs.command(place, out)]
        env = os.environ | runs.ENV
        pipes = dict(stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        with subprocess.Popen(argv, env=env, **pipes) as process:
            time.sleep(turn * STEP)
            process.send_signal(number)
            said = process.communicate(timeout=150)[1].decode()
        return turn * STEP, process.returncode, said

    turns = range(int(5 / STEP))
    if not LONG:  # the two signals by turns
        turns = turns[BOTH.index(number) :: 2]
    began = time.monotonic()
    subprocess.run([sys.executable, "-c", ""], check=True)
    bare = 2 * (time.monotonic() - began)  # two start at once
    before = signal.signal(number, signal.SIG_DFL)  # where a shell has it ignored
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(stopped, turns))
    signal.signal(number, before)
    for seconds, status, said in found:
        # Before Python runs our first line, the signal does what it does to all.
        if seconds < max(0.2, bare) and "init_import_site" in said:
            continue
        early = {-number} if seconds < max(0.2, bare) else {0}
        wanted = {128 + number} | early
        assert status in wanted, (seconds, status, said)
        assert "Traceback" not in said, (seconds, said)
        assert said.endswith(f"{WORDS}\n") == (status > 0), (seconds, said)
    assert sum(status != 0 for _, status, _ in found) > 5
