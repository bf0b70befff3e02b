"""Signals that end the command, from its first instruction on, and its last one.

Where bitflax is the process's own command, a signal that finds nothing to save ends the
process there and then. Files appear whole or not at all, so that nothing has to be
tidied up; and an exception would pass through libraries that swallow it, or leave the
compiler's threads running while the interpreter is taken down, which crashes. What
this file imports comes before its handlers, so it imports what is quick.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Iterator

WORDS = "bitflax: stopped; a run's same command goes on where it stopped"

together = False
"""Whether others have to hear why this process ends."""
_own = False


class Stopped(KeyboardInterrupt):
    """A signal came, ``args``: whatever saves on Ctrl-C saves now too."""


def ending() -> list[signal.Signals]:
    """Return the signals that end a command; under ``nohup`` SIGHUP is none."""
    found = [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT, signal.SIGHUP]
    deaf = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return found[:3] if deaf else found


def stop(number: int, frame: object) -> None:
    """Handle a signal: end the process where it is ours alone, else raise, once."""
    if _own and not together:
        with contextlib.suppress(OSError):
            os.write(2, f"{WORDS}\n".encode())
        leave(128 + number)
    for each in ending()[1:]:  # later ones wait for the saving
        signal.signal(each, signal.SIG_IGN)
    raise Stopped(number)


def deliver(number: int) -> None:
    """Hand a signal on, after all is saved, to who would have had it; or raise it."""
    if signal.getsignal(number) == stop:
        raise Stopped(number)
    signal.raise_signal(number)
    raise KeyboardInterrupt


@contextlib.contextmanager
def heard() -> Iterator[None]:
    """Handle the signals that end a command while this lasts; SIGINT in our own."""
    before = {}
    for number in ending()[0 if _own else 1 :]:
        with contextlib.suppress(ValueError):  # not the main thread
            before[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, stop if _own else handler)


def take_over() -> None:
    """Say that the process is ours: signals end it from here on."""
    global _own
    _own = True
    with heard():
        pass


def leave(status: int) -> None:
    """End a process that is ours at once; return where others have to hear of it."""
    for stream in (sys.stdout, sys.stderr):
        # Closed, full, or in use by what the signal broke into.
        with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):
            stream.flush()
    if _own and not together:
        os._exit(status)


def _is_command() -> bool:
    """Whether this process was started as the command; jax is not imported yet."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""
    # While ``python -m`` looks for its module, that is "-m".
    return name == "bitflax" or (name == "-m" and "bitflax.cli" in sys.orig_argv)


if _is_command():
    take_over()
