"""When a training stops and when it saves: at the same step on all processes.

One process asks its own signals and clock after every step. Of many, process 0 decides
for all, about once a second: no step waits for a message, and all save together.
"""

import contextlib
import dataclasses
import signal
import time
from typing import Any

import jax

from bitflax.training import hosts

AGREE_SECONDS = 1.0


class Clock:
    """Seconds of training over all runs, and when the next checkpoint is due.

    Args:
      before: seconds of earlier runs.
      every: seconds between two checkpoints.
    """

    def __init__(self, before: float, every: float):
        self._before, self._every = before, every
        self._began = self._saved = time.monotonic()

    @property
    def seconds(self) -> float:
        """All seconds so far."""
        return self._before + time.monotonic() - self._began

    def due(self) -> bool:
        """Whether it is time to save; then the time begins anew."""
        if time.monotonic() - self._saved < self._every:
            return False
        self._saved = time.monotonic()
        return True


class Signals:
    """Holds SIGINT and SIGTERM back until the step is done and saved."""

    def __init__(self):
        self.caught: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        """Set the handlers."""
        for number in (signal.SIGINT, signal.SIGTERM):
            # Handlers can be set in the main thread only.
            with contextlib.suppress(ValueError):
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *exc: object) -> None:
        """Set the handlers that were there before; one who asked too late is heard."""
        self._restore()
        if self.caught is not None and exc[0] is None:
            signal.raise_signal(self.caught)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number, frame):
        if self.caught is not None:  # asked twice: stop at once
            self.deliver(number)
        self.caught = number

    def deliver(self, number: int) -> None:
        """Hand a signal on to who would have had it.

        Raises:
          KeyboardInterrupt: if nobody minds it.
        """
        self.caught = None
        self._restore()
        signal.raise_signal(number)
        raise KeyboardInterrupt


@dataclasses.dataclass
class Pauses:
    """Tells after each step whether to save and whether to stop.

    Attributes:
      signals: this process's.
      clock: this process's.
      most: steps between two agreements of many processes, at most.
    """

    signals: Signals
    clock: Clock
    most: int
    _next: int = 0
    _told: bool = False
    _last: tuple[int, float] = (0, 0.0)

    def at(self, step: int, last: bool) -> tuple[bool, int | None]:
        """Return whether to save after a step, and the signal to stop for, or None.

        Args:
          step: its number; all processes ask after every step.
          last: whether it is the last one.
        """
        if jax.process_count() == 1:
            return self.clock.due(), self.signals.caught
        if step < self._next and not last:
            return False, None
        if self.signals.caught is not None and not self._told:
            hosts.raise_flag(self.signals.caught)
            self._told = True
        said = hosts.share(lambda: self._decide(step))
        self._next = step + said["steps"]
        return said["save"], said["stop"]

    def _decide(self, step: int) -> dict[str, Any]:
        now, (before, then) = time.monotonic(), self._last
        self._last = (step, now)
        pace = (now - then) / max(step - before, 1)
        steps = int(AGREE_SECONDS / max(pace, 1e-9))
        return {
            "save": self.clock.due(),
            "stop": hosts.taken_flag(),
            "steps": max(1, min(self.most, steps)),
        }
