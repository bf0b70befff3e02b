"""Rows out of .tsv, .csv and .jsonl files, and a list of the rows that are bad.

A reader goes through a whole file and notes every fault, so that a person mends all
of them at once and nothing starts on half-good data.
"""

import contextlib
import csv
import dataclasses
import io
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bitflax import files
from bitflax.errors import DataError, InputMissing, check_text, nearest
from bitflax.files import open_file

SUFFIXES = (".tsv", ".csv", ".jsonl")
SHOWN = 5
"""So many bad rows are spelt out in one error; the others are counted."""


@dataclasses.dataclass
class Faults:
    """What is wrong with some files: gathered first, raised as one error."""

    found: list[tuple[str, int, str, str]] = dataclasses.field(default_factory=list)
    files: list[str] = dataclasses.field(default_factory=list)

    def add(self, path: object, row: int, problem: str, fix: str) -> None:
        """Note a bad row."""
        self.opened(path)
        self.found.append((str(path), row, problem, fix))

    def opened(self, path: object) -> None:
        """Give a file its place among the others, whether it has faults or not."""
        if str(path) not in self.files:
            self.files.append(str(path))

    def check(self) -> None:
        """Raise a DataError that names the first bad rows, if there are any.

        >>> faults = Faults()
        >>> faults.add("a.tsv", 3, "expected a label, found nothing", "add one")
        >>> faults.check()
        Traceback (most recent call last):
        bitflax.errors.DataError: a.tsv:3: expected a label, found nothing
        fix: add one
        """
        if not self.found:
            return
        ordered = sorted(self.found, key=lambda bad: (self.files.index(bad[0]), bad[1]))
        (path, row, first, _), *others = ordered[:SHOWN]
        more = [f"{path}:{row}: {what}" for path, row, what, _ in others]
        if len(ordered) > SHOWN:
            more.append(f"and {len(ordered) - SHOWN} more")
        fixes = "; ".join(dict.fromkeys(fix for *_, fix in ordered[:SHOWN]))
        raise DataError(f"{path}:{row}", first, fix=fixes, more=more)


@dataclasses.dataclass(frozen=True)
class Table:
    """The columns of a file that were asked for: raw values, and their line numbers."""

    path: str
    columns: dict[str, list[Any]]
    rows: list[int]
    skipped: int = 0


Choose = Callable[[str, Sequence[str]], Sequence[str]]
"""``(path, all column names) -> the wanted ones``; raises where one is missing."""


def read_table(
    path: str | Path,
    choose: Choose,
    faults: Faults,
    *,
    header: Sequence[str] | None = None,
    skip_short: bool = False,
) -> Table:
    """Read the wanted columns of a file; blank lines at its end do not count.

    Quotes: in a .csv they are the standard's (RFC 4180: a quoted field may hold commas
    and line breaks); in a .tsv a quote is a letter like any other, as in GLUE.

    Args:
      path: a .tsv or .csv whose first row names the columns, or a .jsonl of objects.
      choose: picks columns by name, once the names are known.
      faults: takes the bad rows.
      header: the columns of a .tsv without a first row of names.
      skip_short: leave rows with too few columns out, rather than call them bad.

    Raises:
      InputMissing: there is no such file.
      DataError: it is not UTF-8, of another kind, has no good row, or a column that
        is wanted stands in it twice.
    """
    name, kind = str(path), Path(path).suffix.lower()
    if kind not in SUFFIXES and Path(path).is_file():
        with contextlib.suppress(OSError), open_file(Path(path)) as file:
            check_text(file.read(64), name)
        fix = "name the file after what it is"
        if kind == ".json":
            fix = "write one object a line, as .jsonl (jq -c '.[]' of an array of them)"
        problem = f"expected one of {', '.join(SUFFIXES)}, found {kind or 'none'!r}"
        raise DataError(name, problem, fix=fix)
    faults.opened(path)
    text = _decoded(Path(path))
    if kind == ".jsonl":
        records, again = itertools.tee(_objects(name, text, faults))
        header = list(dict.fromkeys(key for _, row in again for key in row))
    else:
        records = _tsv(text) if kind == ".tsv" else _csv(name, text, faults)
        header = header or [cell.strip() for cell in next(records, (1, []))[1]]
    wanted = choose(name, header) if header else ()
    for column in wanted:
        if header.count(column) > 1:
            problem = f"expected one column named {column!r}, found several"
            raise DataError(f"{name}:1", problem, fix="rename all but one of them")
    table = _collect(name, records, header, wanted, faults, skip_short)
    if not table.rows:
        faults.check()
        raise DataError(name, "expected rows, found none", fix="put rows into the file")
    return table


def _decoded(path: Path) -> str:
    """Return a file's text, whatever line ends it has and with or without a BOM."""
    try:
        with open_file(path) as file:
            data = file.read()
    except InputMissing:
        raise
    except FileNotFoundError:
        beside = sorted(p.name for p in path.parent.glob("[!.]*.*"))
        fix = nearest(path.name, beside, "files there") if beside else "check the path"
        raise InputMissing(path, "there is no such file", fix=fix) from None
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        raise InputMissing(path, problem, fix="name a file that you may read") from None
    check_text(data, path)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data[: error.start].count(b"\n") + 1
        raise DataError(
            f"{path}:{row}",
            f"expected UTF-8, found the byte 0x{data[error.start]:02x}",
            fix=f"save the file as UTF-8 (iconv -f ENCODING -t UTF-8 {path.name})",
        ) from None
    text = text.replace("\r\n", "\n").rstrip("\r\n")
    return text if "\n" in text else text.replace("\r", "\n")


def _tsv(text: str) -> Iterator[tuple[int, list[str]]]:
    """Yield ``(line number, cells)``; lines end at a line feed and nowhere else."""
    for number, line in enumerate(text.split("\n") if text else (), start=1):
        yield number, line.split("\t")


def _csv(path: str, text: str, faults: Faults) -> Iterator[tuple[int, list[str]]]:
    """Yield ``(number of the first line, cells)`` of each row."""
    old = csv.field_size_limit(max(len(text), 1 << 17))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    start = 1
    try:
        for cells in reader:
            yield start, cells or [""]
            start = reader.line_num + 1
    except csv.Error as error:
        faults.add(
            path,
            start,
            f"expected a row of comma-separated values, found a stray quote ({error}); "
            "what follows could not be read",
            "quote the whole field and double each quote in it",
        )
    finally:
        csv.field_size_limit(old)


def _objects(
    path: str, text: str, faults: Faults
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield ``(line number, object)`` of each line of JSON."""
    fix = 'write one JSON object a line: {"text": "...", "label": "..."}'
    for number, line in enumerate(text.split("\n") if text else (), start=1):
        try:
            value = json.loads(line, object_pairs_hook=files.unique_pairs)
        except (ValueError, RecursionError) as error:
            faults.add(path, number, f"expected a JSON object, found {error}", fix)
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            kind = type(value).__name__
            faults.add(path, number, f"expected a JSON object, found {kind}", fix)


def _collect(path, records, header, wanted, faults, skip_short) -> Table:
    """Gather the wanted columns; a row of another length is a fault."""
    columns: dict[str, list[Any]] = {name: [] for name in wanted}
    places = {name: header.index(name) for name in wanted}
    rows, skipped = [], 0
    for number, record in records:
        if isinstance(record, dict):
            values = [record.get(name) for name in columns]
        elif len(record) == len(header):
            values = [record[place] for place in places.values()]
        elif skip_short and len(record) < len(header):
            skipped += 1
            continue
        else:
            problem = f"expected {len(header)} columns, found {len(record)}"
            kind = "tab" if path.lower().endswith(".tsv") else "comma"
            fix = f"put exactly one {kind} between two columns"
            faults.add(path, number, problem, fix)
            continue
        if len(wanted) > 1 and values == [*wanted]:
            problem = "expected a row of data, found the columns' names again"
            faults.add(path, number, problem, "delete the row")
            continue
        rows.append(number)
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)
    return Table(path, columns, rows, skipped)
