"""Texts and labels out of raw columns, each value checked."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from bitflax.data.examples import Examples, column
from bitflax.data.tables import Faults, Table
from bitflax.errors import DataError

LARGEST = float(np.finfo(np.float32).max)


MISSING = ("", "nan")
"""What stands for no label at all; any case, and JSON's null as well."""


def texts(
    table: Table, names: Sequence[str], faults: Faults, *, allow_empty: bool = False
) -> tuple[np.ndarray, ...]:
    """Return one or two columns of texts; a value that is no text is a fault.

    Args:
      table: the file.
      names: the columns that hold texts.
      faults: takes the bad rows.
      allow_empty: whether a text may be empty (published data that no one can mend).
    """
    for name in names:
        for row, value in zip(table.rows, table.columns[name], strict=True):
            problem = _text_problem(value, allow_empty)
            if problem:
                where = f"in column {name!r}" if len(names) > 1 else "as the text"
                faults.add(
                    table.path,
                    row,
                    f"expected words {where}, found {problem}",
                    "give the row a text, or delete the row",
                )
    return tuple(column([_plain(v) for v in table.columns[name]]) for name in names)


def class_names(labels: Sequence[Any]) -> tuple[str, ...]:
    """Return the classes that occur, in order: of numbers if all are whole numbers.

    >>> class_names(["10", "9", "9"]), class_names(["b", "a", " b", ""])
    (('9', '10'), ('a', 'b'))
    """
    names = {name for label in labels if (name := _label(label)).lower() not in MISSING}
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def class_labels(
    table: Table, name: str, values: Sequence[str], faults: Faults
) -> np.ndarray:
    """Return class numbers int32 [rows]; a label not among ``values`` is a fault."""
    numbers = {value: number for number, value in enumerate(values)}
    known = ", ".join(values[:6]) + (", ..." if len(values) > 6 else "")
    labels = np.zeros(len(table.rows), np.int32)
    for i, value in enumerate(table.columns[name]):
        label = _label(value)
        if label in numbers:
            labels[i] = numbers[label]
            continue
        faults.add(
            table.path,
            table.rows[i],
            f"expected a label in column {name!r} ({known}), found "
            + (repr(label) if label.lower() not in MISSING else "none"),
            "correct the label, or delete the row",
        )
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


def examples(
    table: Table, columns: tuple[np.ndarray, ...], labels: np.ndarray | None
) -> Examples:
    """Return checked columns as examples with the rows they come from."""
    return Examples(columns, labels, np.array(table.rows, np.int64))


def _text_problem(value: Any, allow_empty: bool) -> str | None:
    """Return what is wrong with a text, or None."""
    if value is None:
        return "nothing"
    if not isinstance(value, str):
        return f"{type(value).__name__} {value!r:.40}"
    if not allow_empty and not value.strip():
        return "an empty text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return None


def _plain(value: Any) -> str:
    """Return a text; the place of a bad value, which is never used, is held by ''."""
    return value if isinstance(value, str) else ""


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
