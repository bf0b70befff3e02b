"""Texts from a command line, a stream or a table, and the lines that answer them."""

import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitflax import data, files
from bitflax.errors import DataError, UsageError
from bitflax.inference.evaluation import shares
from bitflax.inference.predictor import Text
from bitflax.progress import escaped, tell

PIECE = 1024
"""Texts that are answered at once; a pipe of any length is answered as it comes."""


class Asked(NamedTuple):
    """Texts, each one checked as it comes, and how many; None: nobody knows yet."""

    texts: Iterator[Text]
    total: int | None


def from_arguments(texts: Sequence[str], seconds: Sequence[str] = ()) -> Asked:
    """Return texts that a command line gives; a pair has a tab between.

    Args:
      texts: as Python decodes a command line.
      seconds: the second text of each, where they are given by themselves.

    Raises:
      UsageError: a text is the name of a file, or there are more or fewer seconds.
      DataError: when it comes, a text is none; names its number.
    """
    if file := next(filter(os.path.isfile, texts), None):
        problem = f"{file!r} is a file: texts are expected, or none and them on stdin"
        fix = "give the file's lines by `< FILE`, a table's column by `--csv FILE`; "
        fix += "its name as a text by `echo NAME |`"
        raise UsageError("bitflax predict", problem, fix=fix)
    if seconds and len(seconds) != len(texts):
        problem = f"expected a --pair for each text, found {len(texts)} texts and "
        problem += f"{len(seconds)} of them"
        fix = "give each text its own: TEXT --pair SECOND"
        raise UsageError("bitflax predict", problem, fix=fix)
    if seconds:
        texts = [f"{a}\t{b}" for a, b in zip(texts, seconds, strict=True)]
    return Asked(_lines("TEXT", map(os.fsencode, texts)), len(texts))


def from_stdin() -> Asked:
    """Return the lines of stdin as texts; a pair has a tab between.

    Raises:
      UsageError: stdin is closed.
      DataError: when it comes, a line is no text, or no pair as the first is.
    """
    if sys.stdin is None:
        fix = "give texts, or a text a line on stdin"
        raise UsageError("bitflax predict", "no texts, and stdin is closed", fix=fix)
    if sys.stdin.isatty():
        tell("one text a line; Ctrl-D ends")
    lines = (raw.rstrip(b"\r\n") for raw in sys.stdin.buffer)
    total = lines_left()
    return Asked(_lines("stdin", lines), total)


def from_table(path: str | Path, text: str | Sequence[str] | None = None) -> Asked:
    """Return the texts of a table's column, or pairs of two columns, all checked.

    Args:
      path: a ``.csv``, ``.tsv`` or ``.jsonl`` file.
      text: the column, or two; None: the usual names are looked for.

    Raises:
      InputMissing: there is no such file.
      DataError: it has no such column, or rows that are no texts; names them.
    """
    chosen: list[tuple[str, ...]] = []

    def choose(place: str, header: Sequence[str]) -> tuple[str, ...]:
        chosen.append(_column(place, header, text))
        return chosen[0]

    faults = data.Faults()
    table = data.read_table(files.given(path), choose, faults)
    found = data.to_examples(table, chosen[0], None, None, faults).texts
    faults.check()
    rows = [*found[0]] if len(found) == 1 else [*zip(*found, strict=True)]
    return Asked(iter(rows), len(rows))


def _column(place: str, header: Sequence[str], text: Any) -> tuple[str, ...]:
    try:
        return data.choose_texts(place, header, text)
    except DataError as error:
        if text is not None or "first row of names" not in error.problem:
            raise
        fix = error.fix.rpartition(" ")[2]
        fix = f"name the texts' column: --column {fix}"
        raise DataError(error.place, error.problem, fix=fix) from None


def lines_left() -> int | None:
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


def _lines(place: str, lines: Iterable[bytes]) -> Iterator[Text]:
    width = 0
    for number, line in enumerate(lines, 1):
        width = width or line.count(b"\t") + 1
        yield _text(f"{place}:{number}", line, width)


def _text(place: str, raw: bytes, width: int) -> Text:
    try:
        line = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        problem, fix = f"not UTF-8 ({error.reason})", "convert it to UTF-8"
        raise DataError(place, problem, fix=fix) from error
    parts = line.split("\t")
    faults = (data.text_fault(part, allow_empty=False) for part in parts)
    if found := next(filter(None, faults), None):
        fix = "clean the text, or shorten it"
        if found == "an empty text":
            found = found if line.strip() else "a blank line"
            fix = "delete it, or give it a text"
        raise DataError(place, f"expected a text, found {found}", fix=fix)
    if len(parts) == width <= 2:
        return line if width == 1 else (parts[0], parts[1])
    found = len(parts)
    if width > 2:
        problem = f"expected a text or a pair, found {found} fields"
    else:
        problem = f"expected {'a text' if width == 1 else 'a pair'} as in the first"
        problem += f" line, found {found} field{'' if found == 1 else 's'}"
    raise DataError(place, problem, fix="a tab parts the two texts of a pair")


def answers(
    predictor: Any, asked: Asked, *, top: int | None = None, as_json: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """Yield how many texts were answered, and the lines that say so, piece by piece.

    Args:
      predictor: the model, a ``Predictor``.
      asked: the texts.
      top: so many labels a text, the likeliest first, a line each; None: one.
      as_json: a line of JSON a text: text, label and the probabilities of all labels,
        or of the ``top`` ones.

    Raises:
      UsageError: ``top`` of a model that gives a real number, or below 1.
      DataError: a text is none, or one text is given to a model of pairs.
    """
    if top is not None and (top < 1 or predictor.config.regression):
        problem = f"expected 1 or more, found {top}"
        if predictor.config.regression:
            problem = "the model gives a real number, and no classes to choose from"
        raise UsageError("--top", problem, fix="leave it out")
    while piece := list(itertools.islice(asked.texts, PIECE)):
        if as_json:
            lines = _json(predictor, piece, top)
        elif top is not None:
            lines = _ranked(predictor, piece, top)
        else:
            lines = [_line(*said) for said in predictor.predict(piece)]
        yield len(piece), lines


def _line(label: str | float, probability: float, text: Text) -> str:
    shown = "\t".join(map(escaped, [text] if isinstance(text, str) else text))
    if isinstance(label, float):
        return f"{label:.4f}\t-\t{shown}"
    return f"{escaped(str(label))}\t{probability:.4f}\t{shown}"


def _ranked(predictor: Any, texts: list[Text], top: int) -> list[str]:
    names, rows = predictor.config.labels, predictor.probabilities(texts)
    return [
        _line(names[i], float(row[i]), text)
        for text, row in zip(texts, rows, strict=True)
        for i in _best(row, top)
    ]


def _best(row: np.ndarray, top: int | None) -> np.ndarray:
    """Return the places of the largest values, the largest first.

    >>> _best(np.array([0.1, 0.7, 0.2]), 2).tolist()
    [1, 2]
    """
    return np.argsort(-row, kind="stable")[:top]


def _json(predictor: Any, texts: list[Text], top: int | None) -> list[str]:
    """Return a line of ASCII JSON a text, which any terminal and any file takes."""
    if predictor.config.regression:
        said = predictor.predict(texts)
        return [json.dumps({"text": s.text, "label": s.label}) for s in said]
    names, lines = predictor.config.labels, []
    for text, row in zip(texts, predictor.probabilities(texts), strict=True):
        order = _best(row, top)
        known = [names[i] for i in order]
        line = {"text": text, "label": known[0]}
        lines.append(json.dumps(line | {"probabilities": shares(known, row[order])}))
    return lines
