"""Whose a run's folder is: one process holds it, and all of a run see the same one."""

import errno
import os
import secrets
import socket
import sys
import time
from pathlib import Path
from typing import IO

from bitflax.errors import FolderBusy, OutputError
from bitflax.training import hosts

# What a run may have made before its recipe is written.
OURS = {"cache", "tensorboard", "log.jsonl"}


SEEN_SECONDS = 10.0


def make(path: Path) -> None:
    """Make a run's folder, or check that it is one.

    Raises:
      OutputError: it is a file, cannot be made, or holds other things.
    """
    fix = "choose another --out"
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


def lock(path: Path) -> IO[str]:
    """Return the open file whose lock says that this process runs in the folder.

    Raises:
      FolderBusy: another process does.
      OutputError: it cannot be written.
    """
    import fcntl

    try:
        file = open(path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise OutputError(
            path, f"cannot be written: {error.strerror}", fix="choose another --out"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            # Some network folders have no locks; that is no reason not to train.
            print(f"bitflax: note: {path}: cannot be locked", file=sys.stderr)
            return file
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise FolderBusy(
            path, f"in use by {holder}", fix="wait for it, or choose another --out"
        ) from None
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
    file.flush()
    return file


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

    mark = hosts.share(write)
    until = time.monotonic() + SEEN_SECONDS
    while not place.is_file() or place.read_text() != mark:
        if time.monotonic() > until:
            raise OutputError(
                path,
                "is not the folder that process 0 writes: all processes need one and "
                "the same",
                fix="choose an --out on a disk that all hosts mount, as NFS",
            )
        time.sleep(0.2)  # a network folder takes a while to show what is new
    hosts.barrier()
    if hosts.first():
        place.unlink()
