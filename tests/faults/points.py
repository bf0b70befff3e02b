"""Fail points: what a process does to files is heard by Python itself, and broken into.

Python's audit events are the points; the package has none of its own, and so they cost
nothing where no test listens. Threads of C++ (tensorstore's) are not heard: full disks
and kills at random reach them.
"""

import errno
import functools
import os
import re
import signal
import sys
import threading

_EVENTS = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "fsync"}
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def crash(root: str, seen: frozenset, report: str, after: bool) -> None:
    """Have the process killed at an operation of a kind that ``seen`` has not."""
    waiting = []

    def hook(event, args):
        if waiting == [threading.get_ident()]:
            waiting.append(0)  # the kill is an event too
            os.kill(os.getpid(), signal.SIGKILL)
        kind = kind_of(root, event, args)
        if kind is None or kind in seen or waiting:
            return
        waiting.append(0)  # the report's own operations are not meant
        _write(report, kind)
        if after:
            waiting[:] = [threading.get_ident()]
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    _listen(hook)


def fail(root: str, seen: frozenset, report: str, number: int, path: str = "") -> None:
    """Have one operation of a new kind, and all after it there, raise an OSError."""
    found = []

    def hook(event, args):
        kind = kind_of(root, event, args)
        if kind is None or kind in seen or (found and kind not in found):
            return
        if not found:
            found.append(kind)
            _write(report, kind)
        raise OSError(number, os.strerror(number), _path(event, args))

    _listen(hook)


def full(root: str, size: int) -> None:
    """Have every write raise once files of so many bytes lie in the folder."""

    def hook(event, args):
        kind = kind_of(root, event, args)
        if kind is not None and kind.split()[0] in ("open", "os.mkdir", "fsync"):
            held = sum(
                os.lstat(os.path.join(top, name)).st_size
                for top, _, names in os.walk(root)
                for name in names
            )
            if held > size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    _listen(hook)


def read_only(root: str, first: str) -> None:
    """Have every operation from the first of a kind on fail: the system has given up."""
    found = []

    def hook(event, args):
        kind = kind_of(root, event, args)
        if kind and (found or kind == first):
            found.append(kind)
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), _path(event, args))

    _listen(hook)


def at_step(number: int, what: int, stage: str = "2-onebit") -> None:
    """Have the process get a signal as a stage's batch of a step is made."""
    from bitflax.training import loop

    def train(work, state, run, before=loop.train):
        batch = work.batch

        def hit(step):
            if step == number and work.name == stage:
                os.kill(os.getpid(), what)
            return batch(step)

        import dataclasses

        return before(dataclasses.replace(work, batch=hit), state, run)

    import bitflax.training

    bitflax.training.train = train


def in_function(module: str, name: str, what: int) -> None:
    """Have the process get a signal as a function of the package is called."""
    import importlib

    owner = importlib.import_module(module)
    before = getattr(owner, name)

    @functools.wraps(before)
    def hit(*args, **options):
        os.kill(os.getpid(), what)
        return before(*args, **options)

    setattr(owner, name, hit)


def kind_of(root: str, event: str, args: tuple) -> str | None:
    """Return what an operation on the folder is, numbers left out; None: none there."""
    if event == "open":
        path, mode, flags = args
        writes = set(mode or "") & set("wax+") or (not mode and flags & _WRITES)
        if not writes or isinstance(path, int):
            return None
    elif event not in _EVENTS:
        return None
    path = _path(event, args)
    if not path.startswith(f"{root}/"):
        return None
    # Both stages alike; of what orbax has in a step, two levels.
    short = re.sub(r"^\d-(fp32|onebit)", "stage", path[len(root) + 1 :])
    short = re.sub(r"[0-9]+", "N", re.sub(r"[0-9a-f]{8,}|\d-\w+", "H", short))
    return f"{event} {'/'.join(short.split('/')[:4])}"


def _path(event: str, args: tuple) -> str:
    path = os.fsdecode(args[1 if event == "os.rename" else 0])
    folder = args[-1] if event in ("os.remove", "os.rmdir") else -1
    if isinstance(folder, int) and folder >= 0:
        path = os.path.join(os.readlink(f"/proc/self/fd/{folder}"), path)
    return os.path.abspath(path)


def _listen(hook) -> None:
    real = os.fsync

    def fsync(file):
        number = file if isinstance(file, int) else file.fileno()
        sys.audit("fsync", os.readlink(f"/proc/self/fd/{number}"))
        real(file)

    os.fsync = fsync
    sys.addaudithook(hook)


def _write(report: str, kind: str) -> None:
    file = os.open(report, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.write(file, kind.encode())
    os.close(file)
