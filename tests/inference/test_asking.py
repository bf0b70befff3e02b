"""What is asked on a command line, and the lines that answer it."""

import json

import numpy as np
import pytest

import bitflax as bf
from bitflax.errors import DataError, InputMissing, UsageError
from bitflax.inference import asking
from bitflax.inference.predictor import Prediction

NAMES = {0: "no", 1: "yes", 2: "per\u202ehaps"}
ROW = [0.25, 0.125, 0.625]


class Fixed:
    """A predictor that says the same of every text."""

    config = bf.BertConfig(num_labels=3, id2label=NAMES)

    def probabilities(self, texts):
        return np.array([ROW] * len(texts), np.float32)


class Real:
    config = bf.BertConfig(num_labels=1, problem_type="regression")

    def predict(self, texts):
        return [Prediction(4.25, float("nan"), text) for text in texts]


def lines(asked, predictor=None, **how):
    found = asking.answers(predictor or Fixed(), asked, **how)
    return [line for _, part in found for line in part]


def table(tmp_path, text, name="a.csv"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def test_top_is_a_line_a_label():
    asked = asking.from_arguments(["a", "b"])
    assert lines(asked, top=2) == [
        "per\\u202ehaps\t0.6250\ta",
        "no\t0.2500\ta",
        "per\\u202ehaps\t0.6250\tb",
        "no\t0.2500\tb",
    ]
    assert len(lines(asking.from_arguments(["a"]), top=9)) == 3


@pytest.mark.parametrize(("top", "count"), [(None, 3), (1, 1), (9, 3)])
def test_json_is_an_object_a_line(top, count):
    asked = asking.from_arguments(["caf\u00e9"], ["b"])
    (line,) = lines(asked, top=top, as_json=True)
    assert line.isascii()
    found = json.loads(line)
    assert found["text"] == ["caf\u00e9", "b"]
    assert found["label"] == NAMES[2]
    shares = [(NAMES[2], 0.625), ("no", 0.25), ("yes", 0.125)]
    assert list(found["probabilities"].items()) == shares[:count]


def test_json_of_a_real_number():
    (line,) = lines(asking.from_arguments(["a"]), Real(), as_json=True)
    assert json.loads(line) == {"text": "a", "label": 4.25}


@pytest.mark.parametrize(
    ("predictor", "top", "problem"),
    [(Real(), 2, "real number"), (Fixed(), 0, "1 or more"), (Fixed(), -1, "1 or more")],
)
def test_a_top_that_cannot_be_is_refused(predictor, top, problem):
    with pytest.raises(UsageError, match=problem):
        lines(asking.from_arguments(["a"]), predictor, top=top)


def test_a_pair_for_each_text():
    asked = asking.from_arguments(["a", "c"], ["b", "d"])
    assert (list(asked.texts), asked.total) == ([("a", "b"), ("c", "d")], 2)
    with pytest.raises(UsageError, match="2 texts and 1 --pair"):
        asking.from_arguments(["a", "c"], ["b"])


@pytest.mark.parametrize("blank", ["", "  ", "\t"])
def test_a_blank_line_is_refused_by_its_number(blank):
    asked = asking.from_arguments(["a", "b", blank, "c"])
    with pytest.raises(DataError, match="found a blank line") as caught:
        list(asked.texts)
    assert caught.value.place == "TEXT:3"


def test_a_tables_column(tmp_path):
    path = table(tmp_path, 'id,message,text\n1,"a, b",c\n2,d,e\n')
    assert list(asking.from_table(path).texts) == ["c", "e"]
    assert list(asking.from_table(path, "message").texts) == ["a, b", "d"]
    asked = asking.from_table(path, ("message", "text"))
    assert (list(asked.texts), asked.total) == ([("a, b", "c"), ("d", "e")], 2)


@pytest.mark.parametrize(
    ("content", "column", "problem", "fix"),
    [
        ("id,message\n1,a\n", None, "found 'id', 'message'", "--column message"),
        ("id,message\n1,a\n", "mesage", "named 'mesage'", "'message'"),
        ("id,text\n1,a\n2, \n", None, "expected words as the text", "give the row"),
    ],
)
def test_a_table_that_cannot_be_asked_is_refused(
    tmp_path, content, column, problem, fix
):
    with pytest.raises(DataError, match=problem) as caught:
        asking.from_table(table(tmp_path, content), column)
    assert fix in caught.value.fix
    with pytest.raises(InputMissing):
        asking.from_table(tmp_path / "none.csv")
