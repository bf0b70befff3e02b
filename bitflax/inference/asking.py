"""``bitflax predict``: texts from arguments, stdin or a table, and lines of answers."""

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
"""Texts that are answered together: a pipe of any length is answered piece by piece."""


class Asked(NamedTuple):
    """Texts, each checked as it is read, and their number; None: not known yet."""

    texts: Iterator[Text]
    total: int | None


def from_arguments(texts: Sequence[str], seconds: Sequence[str] = ()) -> Asked:
    """Return the texts of a command line; a tab separates the texts of a pair.

    Args:
      texts: the arguments, as Python decodes them.
      seconds: the second text of each pair, where ``--pair`` gives it.

    Raises:
      UsageError: a text is the name of a file, or ``seconds`` are not as many.
      DataError: while they are read: a text is not valid; names its number.
    """
    if file := next(filter(os.path.isfile, texts), None):
        problem = f"expected texts, found the name of a file: {file!r}"
        fix = "for the file's lines give `< FILE`, for a table's column `--csv FILE`, "
        fix += "for the name itself `echo NAME |`"
        raise UsageError("bitflax predict", problem, fix=fix)
    if seconds and len(seconds) != len(texts):
        problem = f"expected a --pair for each text, found {len(texts)} texts and "
        problem += f"{len(seconds)} --pair"
        fix = "give each text its second one: TEXT --pair SECOND"
        raise UsageError("bitflax predict", problem, fix=fix)
    if seconds:
        texts = [f"{a}\t{b}" for a, b in zip(texts, seconds, strict=True)]
    return Asked(_lines("TEXT", map(os.fsencode, texts)), len(texts))


def from_stdin() -> Asked:
    """Return the lines of stdin as texts; a tab separates the texts of a pair.

    Raises:
      UsageError: stdin is closed.
      DataError: while they are read: a line is not a text, or not a pair as the first
        line is.
    """
    if sys.stdin is None:
        fix = "give texts, or a text a line on stdin"
        raise UsageError("bitflax predict", "no texts, and stdin is closed", fix=fix)
    if sys.stdin.isatty():
        tell("type one text a line; Ctrl-D ends")
    lines = (raw.rstrip(b"\r\n") for raw in sys.stdin.buffer)
    total = lines_left()
    return Asked(_lines("stdin", lines), total)


def from_table(path: str | Path, text: str | Sequence[str] | None = None) -> Asked:
    """Return the texts of a table's column, or the pairs of two columns.

    All of them are checked first.

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
    """Return the number of lines of stdin; None where stdin is not a file."""
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
    """Yield the number of texts and the lines of output of each ``PIECE`` of texts.

    Args:
      predictor: the model, a ``Predictor``.
      asked: the texts.
      top: how many of the likeliest labels are printed, a line each; None: one.
      as_json: print a line of JSON for each text: its label, and the probabilities of
        all labels, or of the ``top`` ones.

    Raises:
      UsageError: ``top`` is below 1, or the model is a regression.
      DataError: a text is not valid, or a model of pairs is given single texts.
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
    """Return the indices of the largest values, the largest first.

    >>> _best(np.array([0.1, 0.7, 0.2]), 2).tolist()
    [1, 2]
    """
    return np.argsort(-row, kind="stable")[:top]


def _json(predictor: Any, texts: list[Text], top: int | None) -> list[str]:
    """Return a line of JSON for each text, in ASCII, which every terminal can show."""
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
