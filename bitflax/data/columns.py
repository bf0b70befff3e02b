"""What a table's columns say: texts, classes, real numbers, each row checked."""

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from bitflax.data.examples import Examples, object_column, text_fault
from bitflax.data.tables import Faults, Table
from bitflax.errors import CONTROL, DataError

LARGEST = float(np.finfo(np.float32).max)
MISSING = ("", "nan")
"""What stands for no label at all; any case, and JSON's null as well."""


def text_columns(
    table: Table, names: Sequence[str], faults: Faults, allow_empty: bool = False
) -> tuple[np.ndarray, ...]:
    """Return one or two columns of texts; a value that is no text is a fault."""
    found = []
    for name in names:
        for row, value in zip(table.rows, table.columns[name], strict=True):
            problem = text_fault(value, allow_empty)
            if problem:
                where = f"in column {name!r}" if len(names) > 1 else "as the text"
                faults.add(
                    table.path,
                    row,
                    f"expected words {where}, found {problem}",
                    "give the row a text, or delete the row",
                )
        # '' holds the place of a bad value, which is never used.
        texts = [v if isinstance(v, str) else "" for v in table.columns[name]]
        found.append(object_column(texts))
    return tuple(found)


def class_names(labels: Sequence[Any]) -> tuple[str, ...]:
    """Return the classes that occur, in order: of numbers if all are whole numbers.

    >>> class_names(["10", "9", "9"]), class_names(["b", "a", " b", ""])
    (('9', '10'), ('a', 'b'))
    """
    plain = (_label(x) for x in labels if not isinstance(x, list | dict))
    names = {name for name in plain if name.lower() not in MISSING}
    names = {name for name in names if not _several(name, names)}
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def check_spelling(table: Table, name: str, faults: Faults) -> list[str]:
    """Note a number in two spellings, as 1 and 1.0; return warnings of A and a."""
    labels = [_label(value) for value in table.columns[name]]
    counts, first, warnings = Counter(labels), dict[str, str](), []
    plain_first = sorted(counts, key=lambda x: (bool(_UNSEEN.search(x)), -counts[x]))
    for label in plain_first:
        other = first.setdefault(_alike(label), label)
        if other == label or label.lower() in MISSING:
            continue
        rows = [table.rows[labels.index(x)] for x in (label, other)]
        said = f"{label!r} ({counts[label]} rows), and {other!r} in row {rows[1]} "
        said += f"({counts[other]} rows)"
        fix = f"write {other!r} for {label!r}"
        if label.casefold() == other.casefold():
            place = f"{table.path}:{rows[0]}"
            said += f" are two classes, and differ in case alone\nfix: {fix}, unless "
            warnings.append(f"{place}: the labels {said}they are two")
        else:
            problem = f"expected one spelling in column {name!r}, found {said}"
            faults.add(table.path, rows[0], problem, fix)
    return warnings


def _alike(label: str) -> str:
    """Return what the spellings of one label share; 01 and 1 are two codes.

    >>> [_alike(x) for x in (" FOOD", "fo\\u200bod", "1", "1.0", "01", "a\\xa0 b")]
    ['food', 'food', '1', '1', '01', 'a b']
    """
    number, label = _number(label), unicodedata.normalize("NFC", label).casefold()
    label = " ".join(_UNSEEN.sub("", label).split())  # one that breaks no line too
    if number is None or not number.is_integer() or label.lstrip("+-").isdecimal():
        return label
    return str(int(number))


_UNSEEN = re.compile("[\u00ad\u061c\u200b\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]")
"""Soft hyphen, space and mark of no width, directions: joiners and tags do show."""
_LIST = re.compile(
    r"\[{quoted}\]|\({quoted}\)|\{{{quoted}\}}|\[{numbers}\]|\{{{numbers}\}}".format(
        quoted=r"\s*['\"].*['\"]\s*,?\s*",
        numbers=r"\s*(?:\d+(?:\s*,\s*\d+){2,}|[01]\s*,\s*[01])\s*,?\s*",
    )
)
"""What a list of labels looks like as a text: ``['cat', 'red']``, ``[1, 0, 0]``.

Unlike an interval, as ``(0, 10]`` or ``[0, 10)`` or ``[0, 10]``.
"""


def _listed(value: Any, label: str) -> list[str] | None:
    """Return the labels where a field holds a list of them, else None.

    >>> [_listed(text, text) for text in ("['cat']", "[1, 0]", "(1, 2]")]
    [['cat'], ['1', '0'], None]
    """
    if isinstance(value, dict):
        return ["", ""]  # which of its parts is meant, nobody knows
    if isinstance(value, list):
        return [_label(each) for each in value]
    if not _LIST.fullmatch(label):
        return None
    quoted = re.findall(r"'([^']*)'|\"([^\"]*)\"", label)
    return [a or b for a, b in quoted] or re.findall(r"\d+", label)


def class_labels(
    table: Table, name: str, values: Sequence[str], faults: Faults
) -> np.ndarray:
    """Return class numbers int32 [rows]; a label not among ``values`` is a fault."""
    exact = {value: number for number, value in enumerate(values)}
    numbers = {value.strip(): number for value, number in exact.items()} | exact
    offers = {_alike(value): f"write {value.strip()!r}" for value in values}
    if not any(map(str.isdecimal, offers)):
        named = ", ".join(f"{i} is {value!r}" for i, value in enumerate(values[:20]))
        fix = f"write names for the numbers; as the model counts, {named}"
        offers |= {str(i): fix for i in range(len(values))}
    known = ", ".join(repr(value)[1:-1] for value in values[:6]) + (
        ", ..." if len(values) > 6 else ""
    )
    labels = np.zeros(len(table.rows), np.int32)
    for i, value in enumerate(table.columns[name]):
        label = _label(value)
        found = repr(label)
        several = _listed(value, label)
        if several is not None and len(several) == 1:
            found = f"{value!r:.40}: a list of one label"
            fix = f"write the label alone: {several[0]!r:.40}"
        elif several is not None or (label not in numbers and _several(label, numbers)):
            found = f"{value!r:.40}: several labels an example are not supported"
            fix = "give the row one label; if it is a class of its own, rename it (a+b)"
        elif CONTROL.search(label):
            found += " with control characters"
            fix = "take the control characters out of the label"
        elif label.lower() in MISSING:
            found, fix = "none", "give the row a label, or leave the row out"
        elif label in numbers:
            labels[i] = numbers[label]
            continue
        else:
            fix = offers.get(_alike(label), "write one of the known labels")
        among = f" ({known})" if known else ""
        problem = f"expected a label in column {name!r}{among}, found {found}"
        faults.add(table.path, table.rows[i], problem, fix)
    return labels


def real_labels(table: Table, name: str, faults: Faults) -> np.ndarray:
    """Return labels float32 [rows]; what is no finite number is a fault."""
    labels = np.zeros(len(table.rows), np.float32)
    for i, value in enumerate(table.columns[name]):
        number = _number(value)
        if number is not None and abs(number) <= LARGEST:
            labels[i] = number
            continue
        faults.add(
            table.path,
            table.rows[i],
            f"expected a real number in column {name!r}, found {_label(value)!r}",
            "correct the number, or delete the row",
        )
    return labels


def looks_real(labels: Sequence[Any]) -> bool:
    """Whether most labels are numbers and some of these are not whole.

    >>> looks_real(["0.5", "1", "?"]), looks_real(["1", "2"]), looks_real(["1.0"])
    (True, False, False)
    """
    numbers = [n for label in labels if (n := _number(label)) is not None]
    finite = [n for n in numbers if math.isfinite(n)]
    return 2 * len(finite) > len(labels) and any(n % 1 for n in finite)


def check_classes(name: str, place: str, values: Sequence[str], rows: int) -> None:
    """Refuse a label column that nothing can be learnt from.

    Raises:
      DataError: all rows carry the same label, or every row one of its own.
    """
    if values and all(re.fullmatch(r"(['\"]).*\1", value) for value in values):
        problem = f"expected labels, found them in quotes: {values[0]!r:.40}"
        fix = "take the quotes away; a .csv may have double ones, a .tsv none"
        raise DataError(place, problem, fix=fix)
    if len(values) == 1:
        raise DataError(
            place,
            f"expected several classes in column {name!r}, found {values[0]!r} only",
            fix="add rows of another class, or choose another label column",
        )
    if len(values) == rows and rows > 20:
        raise DataError(
            place,
            f"expected classes in column {name!r}, found another label in each row",
            fix="choose another label column, or set regression for real numbers",
        )


def to_examples(
    table: Table,
    texts: Sequence[str],
    label: str | None,
    classes: Sequence[str] | None,
    faults: Faults,
    *,
    allow_empty: bool = False,
) -> Examples:
    """Return a file's rows as examples; a value that cannot be used is a fault.

    Args:
      table: the file.
      texts: the one or two columns of texts.
      label: the column of labels; None: there is none.
      classes: what may stand there, in the order of their numbers; None: real numbers.
      faults: takes the bad rows.
      allow_empty: whether a text may be empty (published data that no one can mend).
    """
    columns, labels = text_columns(table, texts, faults, allow_empty), None
    if label is not None and classes is None:
        labels = real_labels(table, label, faults)
    elif label is not None and classes is not None:
        labels = class_labels(table, label, classes, faults)
    return Examples(columns, labels, np.array(table.rows, np.int64))


def _several(label: str, known: Container[str]) -> bool:
    """Whether a text is a list of labels that are known by themselves.

    >>> _several("cat|red", {"cat", "red"}), _several("red, white", {"red"})
    (True, False)
    """
    parts = [part.strip() for part in re.split("[;|,]", label)]
    return len(parts) > 1 and all(part in known for part in parts)


def _label(value: Any) -> str:
    """Return a label as a name: JSON's 1 and true are '1' and 'true'."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value).strip()


def _number(value: Any) -> float | None:
    """Return a label as a number, or None where it is none."""
    try:
        return None if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return None
