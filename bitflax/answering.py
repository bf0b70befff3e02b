"""``bitflax predict``: lines of text in, label and probability out, as they come."""

import itertools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from bitflax.errors import DataError
from bitflax.progressbar import throughput

PIECE = 1024
"""Texts that are answered at once; a pipe of any length is answered as it comes."""


def answer(predictor: Any, texts: Sequence[str]) -> None:
    """Print label, probability and text of every text, a line each.

    Of many texts, stderr says how far they are and how many a second there were.

    Args:
      predictor: a ``bitflax.Predictor``.
      texts: a text each, or a pair with a tab between; none: the lines of stdin.

    Raises:
      DataError: a line is no text, or no pair as the first is; names its number.
    """
    place, lines, total = "TEXT", enumerate(texts, 1), len(texts)
    if not texts:
        place, lines, total = "stdin", _stdin(), _lines_left()
    with throughput(total, "predict", shown=not sys.stdout.isatty()) as done:
        width = 0
        while piece := list(itertools.islice(lines, PIECE)):
            width = width or piece[0][1].count("\t") + 1
            asked = [_text(f"{place}:{n}", line, width) for n, line in piece]
            for label, probability, text in predictor.predict(asked):
                _print(label, probability, text)
            sys.stdout.flush()
            done(len(asked))


def _lines_left() -> int | None:
    """Return how many lines stdin has; None where it is no file."""
    stdin, count, last = sys.stdin.buffer, 0, b"\n"
    try:
        start = stdin.tell()
        while block := stdin.read(1 << 20):
            count, last = count + block.count(b"\n"), block[-1:]
        stdin.seek(start)
    except OSError:  # a pipe or a terminal
        return None
    return count + (last != b"\n")


def _text(place: str, line: str, width: int) -> str | tuple[str, ...]:
    parts = line.split("\t")
    if len(parts) == width <= 2:
        return line if width == 1 else tuple(parts)
    found = len(parts)
    if width > 2:
        problem = f"expected a text or a pair, found {found} fields"
    else:
        problem = f"expected {'a text' if width == 1 else 'a pair'} as in the first"
        problem += f" line, found {found} field{'' if found == 1 else 's'}"
    raise DataError(place, problem, fix="a tab parts the two texts of a pair")


def _print(label: str | float, probability: float, text: Any) -> None:
    shown = text if isinstance(text, str) else "\t".join(text)
    if isinstance(label, float):
        print(f"{label:.4f}\t-\t{shown}")
    else:
        print(f"{label}\t{probability:.4f}\t{shown}")


def _stdin() -> Iterator[tuple[int, str]]:
    if sys.stdin.isatty():
        print("one text a line; Ctrl-D ends", file=sys.stderr)
    for number, raw in enumerate(sys.stdin.buffer, 1):
        try:
            yield number, raw.decode("utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            problem, fix = f"not UTF-8 ({error.reason})", "convert it to UTF-8"
            raise DataError(f"stdin:{number}", problem, fix=fix) from error
