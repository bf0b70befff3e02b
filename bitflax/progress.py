"""What a person is shown meanwhile: how far a run is, lines on stderr, text tables."""

import contextlib
import functools
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

FEW = 1000
"""So many texts are done before anybody asks how far they are."""

# What a terminal is too narrow for is cut at the right: what matters comes first.
_BAR = "{desc} {n_fmt}/{total_fmt}|{bar:4}| {remaining} left{postfix}, "
_BAR += "{rate_noinv_fmt}, {elapsed}"
_LINE = "{desc} {n_fmt}/{total_fmt} {percentage:.0f}%{postfix} "
_LINE += "({elapsed}, {remaining} left, {rate_noinv_fmt})"
_LOG = logging.getLogger(__name__)


class Progress:
    """Shows step, time left, loss, metric and steps a second; a context manager.

    On a terminal it is tqdm's bar; elsewhere every state is a line of its own.

    Args:
      total: the number of steps.
      desc: what runs, e.g. the stage's name.
      initial: the step that a resumed run begins at.
      stream: where it goes; None: stderr.
      every: seconds between two lines where the stream is no terminal.

    >>> with Progress(4, "1-fp32", stream=sys.stdout) as bar:
    ...     for step in range(1, 5):
    ...         bar.update(step, {"logits": 1 / step, "accuracy": 0.8})
    1-fp32 0/4 0% (00:00, ? left, ?/s)
    1-fp32 4/4 100%, logits 0.25, accuracy 0.8 (00:00, 00:00 left, .../s)
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
        self._stream = stream = sys.stderr if stream is None else stream
        terminal = _is_terminal(stream)
        self._values: dict[str, float] = {}
        self._more: dict[str, float] = {}
        self._doing, self._since, self._once = "", 0.0, False
        self._form = _BAR if terminal else _LINE
        self._bar = _bar_class()(
            total=total,
            desc=desc,
            initial=initial,
            unit="",
            file=stream if terminal else _Lines(stream),
            mininterval=0.1 if terminal else every,
            miniters=1,
            dynamic_ncols=terminal,
            bar_format=self._form,
        )

    def __enter__(self) -> "Progress":
        """Return the bar itself."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Leave the last state on the screen."""
        self._bar.close()

    def update(
        self,
        step: int,
        values: Mapping[str, Any] | None = None,
        more: Mapping[str, Any] | None = None,
    ) -> None:
        """Say that ``step`` steps are done.

        Args:
          step: counted from the stage's beginning.
          values: name to number: loss, metric. They stay shown until they are given
            again.
          more: what is shown behind all of these, where there is room: loss parts.
        """
        self._values |= _floats(values)
        self._more |= _floats(more)
        if self._once:
            waited = time.time() - self._since  # the clock of tqdm
            self._bar.start_t += waited
            self._bar.last_print_t += waited
        if values or more or self._doing:
            self._doing, self._once = "", False
            self._show()
        self._bar.update(step - self._bar.n)

    def doing(self, what: str, *, once: bool = False) -> None:
        """Say at once what the next step waits for; the next update takes it away.

        Args:
          what: in a word or two.
          once: the steps after it will not wait so: it counts in no time and rate,
            however often it is said until the next update.
        """
        if not (once and self._once):
            self._since = time.time()
        self._doing, self._once = what, once
        self._show()
        self._bar.refresh()

    def _show(self) -> None:
        parts = [f", {n} {x:.4g}" for n, x in self._more.items()]
        more = re.sub(r"([{}])", r"\1\1", "".join(parts))  # it goes into a format
        self._bar.bar_format = self._form + more
        values = sorted(self._values.items(), key=lambda value: value[0] != "loss")
        shown = [f"{n} {x:.4g}" for n, x in values]
        shown = [self._doing, *shown] if self._doing else shown
        self._bar.set_postfix_str(", ".join(shown), refresh=False)

    def write(self, text: str) -> None:
        """Print a line without tearing the bar."""
        self._bar.write(text, file=self._stream)


@functools.cache
def _bar_class() -> Any:
    """Return tqdm, which takes long to import, without a rate in the first second."""
    from tqdm import tqdm

    class Bar(tqdm):
        @property
        def format_dict(self) -> Any:
            shown = dict(super().format_dict)
            if shown["elapsed"] < 1 and shown["n"] != shown["total"]:
                # A first step sent in a millisecond would promise a thousand a second;
                # of a time that is not 0 tqdm makes a rate by itself.
                shown |= {"elapsed": 0.0, "rate": None}
            return shown

    return Bar


def _floats(values: Mapping[str, Any] | None) -> dict[str, float]:
    return {name: float(value) for name, value in (values or {}).items()}


def _is_terminal(stream: Any) -> bool:
    with contextlib.suppress(OSError):
        # One that does not know its size says 0, and tqdm would draw nothing.
        return stream.isatty() and min(os.get_terminal_size(stream.fileno())) > 0
    return False


class _Lines:
    """Takes what tqdm draws over and over, and gives a line a state to a stream."""

    def __init__(self, stream: Any):
        self._stream, self._last = stream, ""

    def write(self, text: str) -> None:
        line = text.strip()
        state = line.rpartition(" (")[0] or line  # the time is another at each look
        if state not in ("", self._last):
            self._last = state
            self._stream.write(f"{line}\n")

    def flush(self) -> None:
        self._stream.flush()


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
        _LOG.info("%s: %s", name, rate)


@contextlib.contextmanager
def lines_shown() -> Iterator[None]:
    """Have the lines of the logger ``bitflax`` on stderr while this lasts.

    Whoever has given that logger a handler or a level of their own, or has switched its
    propagation off, is left alone; the root logger's handlers do not get the lines.

    >>> with contextlib.redirect_stderr(sys.stdout), lines_shown():
    ...     logging.getLogger("bitflax.runs").info("teacher: accuracy 0.8000")
    teacher: accuracy 0.8000
    """
    logger = logging.getLogger("bitflax")
    if logger.handlers or logger.level or not logger.propagate:
        yield
        return
    handler = logging.StreamHandler()
    handler.setFormatter(_Told())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # another library's handler would say it once more
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
        logger.propagate = True


def tell(note: str) -> None:
    """Log a note; one with a mend (``fix:``) is a warning, a block of its own."""
    if "\nfix: " in note:
        _LOG.warning("%s", note)
    else:
        _LOG.info("note: %s", note)


class _Told(logging.Formatter):
    """Writes a line as it is, and what is worse as ``bitflax: warning: ...``."""

    def format(self, record: logging.LogRecord) -> str:
        said, mend, fix = super().format(record).rpartition("\nfix: ")
        text, level = escaped(said) + mend + escaped(fix), record.levelname.lower()
        return text if level == "info" else f"bitflax: {level}: {text}"


def escaped(text: str) -> str:
    r"""Escape what moves a cursor, ends a line, or turns the direction of letters.

    >>> print(escaped("red \x1b[2J"))
    red \x1b[2J
    """
    unseen = r"[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]"
    return re.sub(unseen, lambda found: ascii(found[0])[1:-1], text)


def columns(rows: Iterable[Sequence[Any]], sides: str) -> str:
    """Return rows of cells as lines, their columns aligned, two spaces between.

    Args:
      rows: each with a cell a column.
      sides: ``<`` (left) or ``>`` (right), one a column.

    >>> print(columns([("name", "bytes"), ("pooler/bias", 768)], "<>"))
    name         bytes
    pooler/bias    768
    """
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    if widths and sides[-1] == "<":
        widths[-1] = 0  # nothing stands to its right
    forms = [f"{{:{side}{width}}}" for side, width in zip(sides, widths, strict=False)]
    return "\n".join("  ".join(forms).format(*row) for row in cells)
