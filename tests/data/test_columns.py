"""Texts and labels out of raw values."""

import numpy as np
import pytest

from bitflax.data import columns
from bitflax.data.tables import Faults, Table
from bitflax.errors import DataError


def table(**values):
    count = len(next(iter(values.values())))
    return Table("a.tsv", values, list(range(2, count + 2)))


def message(faults):
    with pytest.raises(DataError) as caught:
        faults.check()
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("", "an empty text"),
        (" \t\u00a0", "an empty text"),
        (None, "nothing"),
        (3, "int 3"),
        (["a"], "list"),
        ("half \ud83d", "half a surrogate pair"),
    ],
)
def test_what_is_no_text_is_a_fault(value, found):
    faults = Faults()
    columns.text_columns(table(text=["a", value]), ("text",), faults)
    assert message(faults).startswith("a.tsv:3: expected words as the text, found")
    assert found in message(faults)


def test_a_pair_names_the_column():
    faults = Faults()
    columns.text_columns(table(one=["a", "b"], two=["", "c"]), ("one", "two"), faults)
    assert "a.tsv:2: expected words in column 'two'" in message(faults)


def test_empty_texts_pass_where_allowed():
    faults = Faults()
    (found,) = columns.text_columns(
        table(text=[""]), ("text",), faults, allow_empty=True
    )
    faults.check()
    assert found.tolist() == [""]


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["b", "a", "b"], ("a", "b")),
        (["10", "2", "-1"], ("-1", "2", "10")),
        ([1, 0, True], ("0", "1", "true")),
        (["none", " a "], ("a", "none")),
        (["a", "NaN", "", None], ("a",)),
        (["01", "1"], ("01", "1")),
    ],
)
def test_class_names(labels, names):
    assert columns.class_names(labels) == names


def test_class_labels_are_numbers_of_names():
    faults = Faults()
    found = columns.class_labels(table(y=["b", " a", "b"]), "y", ("a", "b"), faults)
    faults.check()
    assert found.dtype == np.int32
    assert found.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("value", "found"), [("c", "'c'"), ("", "none"), ("nan", "none"), (None, "none")]
)
def test_an_unknown_or_missing_label_is_a_fault(value, found):
    faults = Faults()
    columns.class_labels(table(y=["a", value]), "y", ("a", "b"), faults)
    expected = f"a.tsv:3: expected a label in column 'y' (a, b), found {found}\n"
    assert message(faults).startswith(expected)


@pytest.mark.parametrize("value", ["nan", "inf", "", "two", None, True, "1e39", "1,5"])
def test_what_is_no_number_is_a_fault(value):
    faults = Faults()
    found = columns.real_labels(table(y=["1.5", value]), "y", faults)
    assert found[0] == np.float32(1.5)
    assert "a.tsv:3: expected a real number in column 'y'" in message(faults)


@pytest.mark.parametrize(
    ("labels", "real"),
    [
        ([0.5, 1, 2], True),
        (["0.5", "1.0", "bad"], True),
        (["0.5", "bad", "worse"], False),
        (["1", "2", "3"], False),
        (["1.0", "2.0"], False),
        (["nan", "inf"], False),
        ([], False),
    ],
)
def test_looks_real(labels, real):
    assert columns.looks_real(labels) is real


def test_columns_that_teach_nothing_are_refused():
    with pytest.raises(DataError, match="found 'a' only"):
        columns.check_classes("y", "a.tsv", ("a",), 9)
    with pytest.raises(DataError, match="another label in each row"):
        columns.check_classes("y", "a.tsv", tuple(map(str, range(30))), 30)
    columns.check_classes("y", "a.tsv", ("a", "b"), 2)
