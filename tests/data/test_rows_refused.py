"""Rows that nobody prepared: refused with their number, never taken for something."""

import json

import numpy as np
import pytest

from bitflax.data import examples, metrics, tasks
from bitflax.errors import DataError, Diverged

GOOD = [{"text": f"a b {i}", "label": "ab"[i % 2]} for i in range(6)]


def lines(*rows):
    return "\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows) + "\n"


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"text": "c", "label": ["cat", "red"]}, "several labels.*not supported"),
        ({"text": "c", "label": {"cat": 1}}, "several labels.*not supported"),
        ({"text": "c", "label": "['cat', 'red']"}, "several labels.*not supported"),
        ({"text": "c", "label": "{'cat'}"}, "a list of one label"),
        ({"text": "c", "label": "[1, 0, 0]"}, "several labels.*not supported"),
        ({"text": "c", "label": "a|b"}, "several labels.*not supported"),
        ({"text": "c", "label": "b, a"}, "several labels.*not supported"),
        ({"text": "c", "label": "a\u001b[2J"}, "control characters"),
        ({"text": "c\0d", "label": "a"}, "a NUL"),
        ({"text": "\u200b", "label": "a"}, "an empty text"),
        ({"text": " \u200b\u2060 ", "label": "a"}, "an empty text"),
        ({"text": "c" * (1 << 21), "label": "a"}, "2097152 characters"),
        ('{"text": "c", "label": "a", "label": "b"}', "the key 'label' is there twice"),
    ],
)
def test_a_row_is_refused_by_its_number(write, row, problem):
    path = write("own.jsonl", lines(*GOOD, row))
    with pytest.raises(DataError, match=problem) as caught:
        tasks.load_task(path)
    assert caught.value.place == f"{path}:7"


@pytest.mark.parametrize(
    ("start", "kind"),
    [
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"PK\x03\x04", "zip"),
        (b"PAR1", "Parquet"),
        (b"FEA1", "Arrow"),
        (b"Rar!\x1a", "compressed"),
        (b"SQLite format 3\x00", "SQLite"),
        (b"Obj\x01", "Avro"),
        (b"\x89PNG\r\n", "picture"),
        (b"<?xml version='1.0'?>", "XML"),
        (b"GGUF", "GGUF"),
        (b"\xc8\x03\x00\x00\x00\x00\x00\x00{}", "safetensors"),
        (b"\x80\x04\x95", "pickle"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!DOCTYPE html>\n<html>", "HTML"),
    ],
)
@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "xlsx", "tsv.gz"])
def test_a_file_of_another_kind_is_named(write, start, kind, suffix):
    path = write(f"own.{suffix}", start + b"\x00rest")
    with pytest.raises(DataError, match=kind) as caught:
        tasks.load_task(path)
    assert caught.value.place == str(path)


def test_labels_are_checked_where_they_enter():
    texts = (np.array(["a", "b"], object),)
    rows = np.array([2, 3])
    for wrong in (np.array([0, -1], np.int32), np.array([0, np.nan], np.float32)):
        with pytest.raises(DataError, match=r"found (-1|nan)") as caught:
            examples.Examples(texts, wrong, rows)
        assert caught.value.place == "3"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_no_numbers_predict_nothing(value):
    logits = np.array([[0.0, 1.0], [value, 1.0]])
    with pytest.raises(Diverged, match="row 2"):
        metrics.predictions(logits)


def test_rows_that_end_as_on_an_old_mac_are_rows(write):
    path = write("own.tsv", "text\tlabel\ra cat\tx\ra dog\ty\r")
    assert len(tasks.load_task(path).train) == 1


def test_a_file_without_names_is_told_to_have_some(write):
    path = write("own.tsv", "a cat\tx\na dog\ty\n")
    with pytest.raises(DataError) as caught:
        tasks.load_task(path)
    assert caught.value.fix.startswith("put a row of names first (text, label), ")


@pytest.mark.parametrize("apart", [";", "|", ", "])
def test_known_labels_in_one_field_are_several(write, apart):
    rows = "".join(f"{row['text']}\t{row['label']}\n" for row in GOOD)
    path = write("own.tsv", f"text\tlabel\n{rows}c\ta{apart}b\n")
    with pytest.raises(DataError, match="several labels an example") as caught:
        tasks.load_task(path, classes=("a", "b"))
    assert caught.value.place == f"{path}:8"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("caf\u00e9", "cafe\u0301"),
        ("cat", "cat\u200b"),
        ("\u202ecat", "cat"),
        ("a cat", "a\xa0cat"),
        ("a cat", "a  cat"),
    ],
)
def test_labels_that_look_the_same_are_one_spelling(write, one, other):
    rows = [{"text": f"t {i}", "label": (one, other, "x")[i % 3]} for i in range(12)]
    path = write("own.jsonl", lines(*rows))
    with pytest.raises(DataError, match="expected one spelling in column 'label'") as e:
        tasks.load_task(path)
    # The one that says nothing unseen is the one to write.
    assert not e.value.fix.startswith(("write 'cat\u200b'", "write '\u202ecat'"))


BRACKETS = ["[other]", "(none)", "{x}", "a, b", "[1]"]
INTERVALS = ["(0, 10]", "[0, 10)", "(1, 2)", "(1, 0)", "[0, 10]", "(0, 1]", "(1, 2, 3)"]


@pytest.mark.parametrize("label", BRACKETS + INTERVALS)
def test_a_class_may_have_brackets(write, label):
    rows = [{"text": f"t {i}", "label": (label, "x")[i % 2]} for i in range(12)]
    assert label in tasks.load_task(write("own.jsonl", lines(*rows))).labels


@pytest.mark.parametrize("text", ["SQLite formats differ", "FEA1 is a code"])
def test_a_text_may_begin_as_another_kind_does(write, text):
    rows = "".join(f"{text} {i}\t{'ab'[i % 2]}\n" for i in range(12))
    path = write("own.tsv", rows)
    with pytest.raises(DataError, match="a first row of names"):
        tasks.load_task(path)


@pytest.mark.parametrize("label", ["[1, 0]", "[3, 5, 7]", "{1,0,0}", "('a', 'b')"])
def test_a_list_written_as_a_text_is_several_labels(write, label):
    rows = [{"text": f"t {i}", "label": (label, "x")[i % 2]} for i in range(12)]
    with pytest.raises(DataError, match="several labels an example"):
        tasks.load_task(write("own.jsonl", lines(*rows)))


@pytest.mark.parametrize("label", ["['cat']", ["cat"]])
def test_a_list_of_one_label_is_told_to_be_that_label(write, label):
    rows = [{"text": f"t {i}", "label": (label, "x", "y")[i % 3]} for i in range(12)]
    with pytest.raises(DataError, match="a list of one label") as caught:
        tasks.load_task(write("own.jsonl", lines(*rows)))
    assert "write the label alone: 'cat'" in str(caught.value)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("\U0001f468\u200d\U0001f469", "\U0001f468\U0001f469"),
        ("\u0646\u0647\u200c\u0627", "\u0646\u0647\u0627"),
        ("\U0001f3f4\U000e0067\U000e007f", "\U0001f3f4\U000e0073\U000e007f"),
    ],
)
def test_labels_that_joiners_and_tags_tell_apart_are_two(write, one, other):
    rows = [{"text": f"t {i}", "label": (one, other)[i % 2]} for i in range(12)]
    task = tasks.load_task(write("own.jsonl", lines(*rows)))
    assert set(task.labels) == {one, other}


@pytest.mark.parametrize("name", ["a.tsv", "a.csv"])
def test_the_names_of_the_columns_are_no_row(write, name):
    mark = {"a.tsv": "\t", "a.csv": ","}[name]
    rows = [mark.join(row) for row in (("text", "label"), ("a", "x"), ("b", "y"))]
    with pytest.raises(DataError, match="the columns' names again") as caught:
        tasks.load_task(write(name, "\n".join([*rows, rows[0], "c" + mark + "x"])))
    assert caught.value.place.endswith(f"{name}:4")


def test_labels_in_quotes_are_no_labels(write):
    rows = "".join(f'"a {i}"\t"{"xy"[i % 2]}"\n' for i in range(6))
    with pytest.raises(DataError, match="found them in quotes: '\"x\"'"):
        tasks.load_task(write("a.tsv", f"text\tlabel\n{rows}"))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_another_encoding_is_called_by_its_name(write, tmp_path, encoding):
    (tmp_path / "a.tsv").write_bytes("text\tlabel\na\tx\nb\ty\n".encode(encoding))
    with pytest.raises(DataError, match=r"found UTF-16 or UTF-32\nfix: save it as UTF"):
        tasks.load_task(tmp_path / "a.tsv")


def test_a_column_is_not_two(write):
    path = write("a.tsv", "text\tlabel\na\tx\nb\ty\n")
    with pytest.raises(
        DataError, match="one or two text columns, found 'text', 'text'"
    ):
        tasks.load_task(path, text=("text", "text"))
    with pytest.raises(DataError, match="labels in another column than texts"):
        tasks.load_task(path, label="text")
