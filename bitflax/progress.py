"""How far a run is: a bar on a terminal, a line every ten seconds elsewhere."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

_FORMAT = (
    "{desc} {percentage:3.0f}%|{bar:20}| {n_fmt}/{total_fmt} "
    "[{elapsed}, {remaining} left{postfix}]"
)

FEW = 1000
"""So many texts are done before anybody asks how far they are."""


class Progress:
    """Shows step, losses, metric and the time left; a context manager.

    Args:
      total: the number of steps.
      desc: what runs, e.g. the stage's name.
      initial: the step that a resumed run begins at.
      stream: where it goes; None: stderr.
      every: seconds between two lines where the stream is no terminal.

    >>> with Progress(4, "1-fp32", stream=sys.stdout) as bar:
    ...     for step in range(1, 5):
    ...         bar.update(step, {"logits": 1 / step, "accuracy": 0.8})
    1-fp32 4/4 100% logits 0.2500 accuracy 0.8000 (0:00, 0:00 left)
    """

    def __init__(
        self,
        total: int,
        desc: str,
        *,
        initial: int = 0,
        stream: Any = None,
        every: float | int = 10,
    ):
        self.total, self.desc, self.step = total, desc, initial
        self._stream = sys.stderr if stream is None else stream
        self._every = every
        self._began = self._shown_at = time.monotonic()
        self._shown_step = initial
        self._first: tuple[int, float] | None = None
        self._values: dict[str, Any] = {}
        self._bar = _bar(self) if self._stream.isatty() else None

    def __enter__(self) -> "Progress":
        """Return the bar itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the last state on the screen."""
        self.close()

    def update(self, step: int, values: Mapping[str, Any] | None = None) -> None:
        """Say that ``step`` steps are done.

        Args:
          step: counted from the stage's beginning.
          values: name to number: loss parts, metric. They stay shown until they are
            given again. A jax array is read only when it is drawn.
        """
        ahead, self.step = step - self.step, step
        self._values.update(values or {})
        now = time.monotonic()
        # The first step compiles: the rate is counted from its end.
        self._first = self._first or (step, now)
        if self._bar is not None:
            if self._bar.update(ahead):
                self._bar.set_postfix_str(self._numbers(), refresh=False)
        elif now - self._shown_at >= self._every:
            self._line(now)

    def write(self, text: str) -> None:
        """Print a line without tearing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            print(text, file=self._stream, flush=True)

    def close(self) -> None:
        """Draw the last state; more calls do nothing."""
        if self._bar is not None:
            self._bar.set_postfix_str(self._numbers(), refresh=True)
            self._bar.close()
        elif self._shown_step != self.step:
            self._line(time.monotonic())

    def _line(self, now: float) -> None:
        self._shown_at, self._shown_step = now, self.step
        share = self.step / self.total if self.total else 1.0
        words = [self.desc, f"{self.step}/{self.total}", f"{share:.0%}"]
        words.append(self._numbers())
        times = f"({clock(now - self._began)}, {clock(self._left(now))} left)"
        print(*filter(None, words), times, file=self._stream, flush=True)

    def _left(self, now: float) -> float | None:
        step, since = self._first or (self.step, now)
        if self.step == self.total:
            return 0.0
        if self.step <= step:
            return None
        return (self.total - self.step) * (now - since) / (self.step - step)

    def _numbers(self) -> str:
        values = ((name, float(value)) for name, value in self._values.items())
        return " ".join(f"{name} {_number(value)}" for name, value in values)


@contextlib.contextmanager
def throughput(
    total: int | None, name: str, *, shown: bool = True
) -> Iterator[Callable[[int], None]]:
    """Show on stderr how far many texts are, and how many a second there were.

    Up to ``FEW`` of them nothing is shown.

    Args:
      total: the number of texts; None: unknown, so that only the end is said.
      name: what is done with them.
      shown: whether the way there is shown too.

    Yields:
      A function to call with the number of texts that were done since the last call.
    """
    count, began = 0, time.monotonic()
    bar = Progress(total, name) if shown and total and total > FEW else None

    def done(more: int) -> None:
        nonlocal count
        count += more
        if bar is not None:
            bar.update(count)

    with bar or contextlib.nullcontext():
        yield done
    if count > FEW:
        seconds = time.monotonic() - began
        rate = f"{count:,} texts in {seconds:.1f} s, {count / seconds:,.0f} a second"
        print(f"{name}: {rate}", file=sys.stderr, flush=True)


def clock(seconds: float | int | None) -> str:
    """Return seconds as a person reads them; None is unknown.

    >>> clock(75), clock(3675), clock(None)
    ('1:15', '1:01:15', '?')
    """
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _number(value: float) -> str:
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1e3 or value == 0 else f"{value:.2e}"


def _bar(progress: Progress) -> Any:
    try:
        from tqdm import tqdm
    except ImportError:  # the plain lines need nothing
        return None
    return tqdm(
        total=progress.total,
        desc=progress.desc,
        initial=progress.step,
        file=progress._stream,
        bar_format=_FORMAT,
        **_size(progress._stream),
    )


def _size(stream: Any) -> dict[str, Any]:
    with contextlib.suppress(OSError):
        if os.get_terminal_size(stream.fileno()).columns:
            return {"dynamic_ncols": True}
    # A terminal that does not know its size says 0 by 0: tqdm would draw nothing.
    return {"ncols": 79, "nrows": 24}
