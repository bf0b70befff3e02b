"""Signals that end a command, held back while a training cannot be left."""

import contextlib
import signal
from typing import Any

import jax

from bitflax import signals


class Signals:
    """Holds the signals that end a command back until the step is done and saved."""

    def __init__(self):
        self.caught: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        """Set the handlers."""
        for number in signals.ending():
            # Handlers can be set in the main thread only.
            with contextlib.suppress(ValueError):
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *exc: object) -> None:
        """Set the handlers that were there before; one who asked too late is heard.

        So is one who asked a whole process group to stop, XLA's compiler too, in which
        the step then failed.
        """
        self._restore()
        failed = isinstance(exc[1], jax.errors.JaxRuntimeError)
        if self.caught is not None and (exc[0] is None or failed):
            signal.raise_signal(self.caught)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number, frame):
        if self.caught is not None:  # asked twice: stop at once
            self.caught = None
            self._restore()
            signal.raise_signal(number)
            raise KeyboardInterrupt
        self.caught = number

    def deliver(self, number: int) -> None:
        """Hand a signal on to who would have had it.

        Raises:
          KeyboardInterrupt: if nobody minds it.
        """
        self.caught = None
        self._restore()
        signals.deliver(number)
