"""Who may use a run folder: making it, locking it, and sharing it among processes."""

import logging
import os
import secrets
import socket
import sys
import time
from pathlib import Path

import filelock  # jax has imported it

from bitflax import training
from bitflax.errors import FolderBusy, OutputError

_LOG = logging.getLogger(__name__)

OURS = {"cache", "tensorboard", "log.jsonl"}  # made before the recipe is written
SEEN_SECONDS = 10.0  # that a network folder may take to show what was written


def make_folder(path: Path) -> None:
    """Make a run's folder, or check that it is one.

    Raises:
      OutputError: it is a file, no UTF-8, holds other things, or cannot be made.
    """
    fix = "choose another --out"
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:  # tensorstore, which writes checkpoints, takes none
        problem = f"its name is not {sys.getfilesystemencoding().upper()}"
        mend = "rename it, or choose another; if its name is UTF-8, PYTHONUTF8=1 helps"
        raise OutputError(path, problem, fix=mend) from None
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = {p.name for p in path.iterdir() if not p.name.startswith(".")}
    except FileExistsError:
        raise OutputError(path, "is a file, not a folder", fix=fix) from None
    except OSError as error:
        raise OutputError(path, f"cannot be made: {error.strerror}", fix=fix) from error
    foreign = sorted(names - OURS)
    if foreign and not (path / "recipe.json").is_file():
        raise OutputError(path, f"is no run folder: it holds {foreign[0]}", fix=fix)


def lock(path: Path) -> filelock.BaseFileLock:
    """Return the lock that says that this process runs in the folder.

    Raises:
      FolderBusy: another process does.
      OutputError: it cannot be written.
    """
    place = path / ".lock"
    lock = filelock.FileLock(place, fallback_to_soft=False)
    try:
        place.touch()
        lock.acquire(blocking=False)
    except filelock.Timeout:
        holder = place.read_text("utf-8", "replace").strip() or "another process"
        raise FolderBusy(
            path, f"in use by {holder}", fix="wait for it, or choose another --out"
        ) from None
    except OSError as error:
        if not os.access(place, os.W_OK):
            problem = f"cannot be written: {error.strerror}"
            raise OutputError(path, problem, fix="choose another --out") from error
        # Some network folders have no locks; that is no reason not to train.
        _LOG.info("bitflax: note: %s: cannot be locked", path)
        return lock
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    here = f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
    place.write_text(here, "utf-8")
    return lock


def check_shared(path: Path) -> None:
    """Check that what process 0 writes into the folder is there for all processes.

    Raises:
      OutputError: this process has another folder of that name, or none.
    """
    place = path / ".shared"

    def write() -> str:
        mark = secrets.token_hex(8)
        place.write_text(mark)
        return mark

    mark = training.broadcast(write)
    until = time.monotonic() + SEEN_SECONDS
    while not place.is_file() or place.read_text() != mark:
        if time.monotonic() > until:
            problem = "is not the folder that process 0 writes: all need the same"
            fix = "choose an --out on a disk that all hosts mount, such as NFS"
            raise OutputError(path, problem, fix=fix)
        time.sleep(0.2)
    training.barrier()
    if training.is_main_process():
        place.unlink()
