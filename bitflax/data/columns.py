"""What a table's columns say: texts, classes, real numbers, each row checked."""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from bitflax.data.examples import CONTROL, Examples, object_column, text_fault
from bitflax.data.tables import Faults, Table
from bitflax.errors import DataError

LARGEST = float(np.finfo(np.float32).max)
MISSING = ("", "nan")
"""What stands for no label at all; any case, and JSON's null as well."""


def text_columns(
    table: Table, names: Sequence[str], faults: Faults, allow_empty: bool = False
) -> tuple[np.ndarray, ...]:
    """Return one or two columns of texts; a value that is no text is a fault."""
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
    return tuple(
        object_column([_plain(v) for v in table.columns[name]]) for name in names
    )


def class_names(labels: Sequence[Any]) -> tuple[str, ...]:
    """Return the classes that occur, in order: of numbers if all are whole numbers.

    >>> class_names(["10", "9", "9"]), class_names(["b", "a", " b", ""])
    (('9', '10'), ('a', 'b'))
    """
    plain = (_label(x) for x in labels if _is_one(x))
    names = {name for name in plain if name.lower() not in MISSING}
    try:
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    except ValueError:
        return tuple(sorted(names))


def check_spelling(table: Table, name: str, faults: Faults) -> list[str]:
    """Note a class that is spelt as two numbers, as 1 and 1.0, as a fault.

    Returns:
      Warnings of classes that differ in case alone: they may be two.
    """
    labels = [_label(x) if _is_one(x) else "" for x in table.columns[name]]
    counts, alike, warnings = Counter(labels), dict[str, list[str]](), []
    for label, _ in counts.most_common():
        alike.setdefault(_alike(label), []).append(label)
    for first, other in ((first, x) for first, *more in alike.values() for x in more):
        row, where = (table.rows[labels.index(x)] for x in (other, first))
        if first.lower() in MISSING:
            continue
        if _alike(first) != first.casefold() or _alike(other) != other.casefold():
            problem = f"expected one spelling of a label in column {name!r}, found "
            problem += f"{other!r}, and {first!r} in row {where}"
            faults.add(table.path, row, problem, f"write {first!r} for {other!r}")
            continue
        warnings.append(
            f"{table.path}:{row}: the labels {first!r} ({counts[first]} rows) and "
            f"{other!r} ({counts[other]}) differ in case alone, and are two classes\n"
            f"fix: write {first!r} for {other!r}; nothing where they are two"
        )
    return warnings


def _alike(label: str) -> str:
    """Return what the spellings of one label share; 01 and 1 are two codes.

    >>> [_alike(label) for label in (" FOOD", "1", "1.0", "01")]
    ['food', '1', '1', '01']
    """
    number, label = _number(label), label.strip().casefold()
    whole = number is not None and number.is_integer()
    return str(int(number)) if whole and not label.lstrip("+-").isdecimal() else label


def class_labels(
    table: Table, name: str, values: Sequence[str], faults: Faults
) -> np.ndarray:
    """Return class numbers int32 [rows]; a label not among ``values`` is a fault."""
    exact = {value: number for number, value in enumerate(values)}
    numbers = {value.strip(): number for value, number in exact.items()} | exact
    spelt = {_alike(value): value.strip() for value in values}
    named = not any(map(str.isdecimal, spelt))
    counted = {str(number) for number in exact.values()} if named else set()
    known = ", ".join(values[:6]) + (", ..." if len(values) > 6 else "")
    labels = np.zeros(len(table.rows), np.int32)
    for i, value in enumerate(table.columns[name]):
        label = _label(value)
        found = repr(label)
        if not _is_one(value):
            found = f"{value!r:.40}: several labels an example are not supported"
            fix = "give the row one label: multi-label is not supported"
        elif CONTROL.search(label):
            found += " with control characters"
            fix = "take the control characters out of the label"
        elif label.lower() in MISSING:
            found, fix = "none", "give the row a label, or leave the row out"
        elif label in numbers:
            labels[i] = numbers[label]
            continue
        elif _alike(label) in spelt:
            fix = f"write {spelt[_alike(label)]!r} for {label!r}"
        elif _alike(label) in counted:
            fix = _named(values)
        else:
            fix = f"write one of the labels for {label!r}"
        problem = f"expected a label in column {name!r} ({known}), found {found}"
        faults.add(table.path, table.rows[i], problem, fix)
    return labels


def _named(values: Sequence[str]) -> str:
    """Return the mend of numbers where the labels have names.

    >>> _named(["no", "yes"])
    "write names for the numbers; as the model counts, 0 is 'no', 1 is 'yes'"
    """
    told = [f"{i} is {value!r}" for i, value in enumerate(values[:20])]
    told += ["..."] if len(values) > 20 else []
    return f"write names for the numbers; as the model counts, {', '.join(told)}"


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


def _plain(value: Any) -> str:
    """Return a text; the place of a bad value, which is never used, is held by ''."""
    return value if isinstance(value, str) else ""


def _is_one(value: Any) -> bool:
    """Whether a value is one label, and not several."""
    return not isinstance(value, list | dict)


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
