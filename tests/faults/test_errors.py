"""A disk that is full, broken, read-only or gone: one block, 74, and an exact resume."""

import errno
import functools
import os
import random
import shutil
import subprocess
import time

import pytest

from tests.faults import checks, points, runs
from tests.faults.conftest import LONG

pytestmark = pytest.mark.faults


@pytest.mark.skipif(not LONG, reason="the long form alone")
@pytest.mark.parametrize(
    "number", [errno.ENOSPC, errno.EIO, errno.EROFS], ids=errno.errorcode.get
)
def test_an_error_at_every_kind_of_file_operation(number, begin, whole, tmp_path):
    hook = functools.partial(points.fail, number=number)
    for run, status, out in runs.every_kind(begin, tmp_path, hook):
        if status:
            checks.one_block(run.said, status)
            assert status in (73, 74), run.said
        else:
            checks.same_end(run, status, out, whole)


MOMENTS = ["os.rename stage/checkpoints/N", "fsync log.jsonl", "os.rename .finished"]
MOMENTS += ["os.mkdir stage", "open stage/.result.json.H.part"] if LONG else []


@pytest.mark.parametrize("first", MOMENTS)
def test_a_disk_that_turns_read_only(first, begin, whole, tmp_path):
    run = begin(functools.partial(points.read_only, str(tmp_path / "run"), first))
    status = run.wait()
    checks.one_block(run.said, status)
    assert status == 74
    assert "Read-only file system" in run.said
    run = begin()
    checks.same_end(run, run.wait(), tmp_path / "run", whole)


@pytest.fixture
def mounted(tmp_path):
    """Return a function that mounts a disk of so many KiB, or makes it larger."""
    place = tmp_path / "disk"
    place.mkdir()
    made = []

    def mount(size: int):
        how = f"size={size}k" if not made else f"remount,size={size}k"
        argv = ["mount", "-t", "tmpfs", "-o", how, "tmpfs", str(place)]
        if subprocess.run(argv, capture_output=True).returncode:
            pytest.skip("a disk of one's own can be mounted by root alone")
        made.append(place)
        return place

    yield mount
    if made:
        subprocess.run(["umount", "-l", str(place)], check=True)


SIZES = range(40, 1600, 26) if LONG else range(60, 1600, 130)


@pytest.mark.parametrize("size", SIZES)
def test_a_full_disk(size, mounted, begin, whole):
    out = mounted(size) / "run"
    run = begin(out=out)
    if status := run.wait():
        checks.one_block(run.said, status)
        assert status == 74
        assert " free" in run.said
        mounted(100_000)
        run = begin(out=out)
        status = run.wait()
    checks.same_end(run, status, out, whole)


def _gone(out: str) -> None:
    from bitflax.training import loop

    # What orbax saves meanwhile it would make anew, a draft that nobody takes for a step.
    loop.SAVE_SECONDS = 1e9
    points.at_step(9, 0)  # signal 0 asks only whether the process is there
    kill = os.kill

    def vanish(pid, number):
        if number == 0:
            os.rename(out, f"{out}-away")  # at once, whatever is being saved
        else:
            kill(pid, number)

    os.kill = vanish


def test_a_folder_that_vanishes_is_not_half_made_anew(begin, tmp_path):
    out = tmp_path / "run"
    run = begin(functools.partial(_gone, str(out)))
    status = run.wait()
    checks.one_block(run.said, status)
    assert status == 74
    assert not (out / "2-onebit").exists()


def test_a_folder_whose_name_is_not_utf_8(place, begin, whole, tmp_path):
    bad = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\xfe")
    os.mkdir(bad)
    shutil.copy(place / "kinds.tsv", f"{bad}/kinds.tsv")
    more = ("--set", f"data.task={bad}/kinds.tsv")
    run = begin(more=more, env={"LC_ALL": "C"})
    assert run.wait() == 0, run.said
    assert runs.end(tmp_path / "run")["scores"] == whole["scores"]
    # What writes checkpoints takes no such name: said before anything is done.
    run = begin(out=type(tmp_path)(bad) / "run", env={"LC_ALL": "C"})
    status = run.wait()
    checks.one_block(run.said, status)
    assert status == 73
    assert "not UTF-8" in run.said


def test_a_pipe_in_place_of_a_task(begin, tmp_path):
    os.mkfifo(tmp_path / "task.tsv")
    run = begin(more=("--set", f"data.task={tmp_path / 'task.tsv'}"))
    status = run.wait(20)
    checks.one_block(run.said, status)
    assert status == 66


@pytest.mark.parametrize("number", range(200 if LONG else 10))
def test_of_two_writers_one_wins(number, begin, tmp_path):
    chance = random.Random(number)
    both = [begin(more=("--until", "teacher"))]
    if chance.random() < 0.5:
        time.sleep(chance.uniform(0, 0.3))
    both.append(begin(more=("--until", "teacher")))
    found = [run.wait() for run in both]
    assert set(found) <= {0, 75}
    assert 0 in found, [run.said for run in both]
    for status, run in zip(found, both, strict=True):
        if status:
            checks.one_block(run.said, status)
