"""One warm process, one compile cache and one undisturbed run for all faults."""

import os
import pathlib
import signal

import filelock
import pytest

from tests.faults import runs

LONG = os.environ.get("BITFLAX_FAULTS") == "long"


@pytest.fixture(scope="session", autouse=True)
def unignored():
    """``nohup`` and a shell's background ignore some signals, and so would all runs."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT)
    deaf = [n for n in numbers if signal.getsignal(n) is signal.SIG_IGN]
    for number in deaf:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number in deaf:
        signal.signal(number, signal.SIG_IGN)


@pytest.fixture(scope="session")
def shared(tmp_path_factory, worker_id="master"):
    """A folder that the workers of a session share."""
    base = tmp_path_factory.getbasetemp()
    base = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    folder = base / "faults"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def place(shared):
    """The recipe, teacher and task, and a whole run of them."""
    with filelock.FileLock(shared / "lock"):
        folder = shared / "place"
        if not (folder / "done").exists():
            runs.write_place(folder)
            argv = runs.command(folder, folder / "whole")
            whole = runs.Run(argv, folder / "log", shared / "xla")
            assert whole.wait(200) == 0, whole.said
            (folder / "done").touch()
    return folder


@pytest.fixture(scope="session")
def whole(place):
    """What every run must end with."""
    return runs.end(place / "whole")


@pytest.fixture
def begin(place, tmp_path):
    """Return a function that begins the command in a folder of the test's."""

    def begin(*hooks, out: pathlib.Path = tmp_path / "run", more=(), env=()):
        log = tmp_path / f"log-{len(list(tmp_path.glob('log-*')))}"
        log.touch()  # a second run may begin before this one says anything
        argv = runs.command(place, out, *more)
        return runs.Run(argv, log, place.parent / "xla", *hooks, env=env)

    return begin
