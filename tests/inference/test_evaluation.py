"""Scores by class, confusion and each example, against numbers counted by hand."""

import json

import numpy as np

from bitflax.data import Examples, Task
from bitflax.inference import evaluation

NAMES = ("animal", "food", "s\tky")
RIGHT = [0, 0, 0, 1, 1, 2]
SAID = [0, 0, 1, 1, 1, 1]


def made(names=NAMES, right=RIGHT, said=SAID):
    column = np.array([f"text {i}" for i in range(len(right))], object)
    rows = np.arange(2, 2 + len(right))
    dev = Examples((column,), np.array(right, np.int32), rows)
    task = Task("t", dev.take([]), dev, names, "accuracy")
    shares = np.eye(len(names))[said]
    return evaluation.Evaluation(task, np.array(said, np.int32), shares)


def test_every_class_is_scored():
    scores, classes, confusion = made().table().split("\n\n")
    # F1: 2 * 2 / (2 * 2 + 1), 2 * 2 / (2 * 2 + 2), 0
    assert scores.splitlines() == [
        "accuracy\t0.6667",
        f"macro_f1\t{(0.8 + 4 / 6) / 3:.4f}",
        "examples\t6",
    ]
    assert [line.split() for line in classes.splitlines()] == [
        ["precision", "recall", "F1", "examples", "class"],
        ["0", "1.0000", "0.6667", "0.8000", "3", "animal"],
        ["1", "0.5000", "1.0000", "0.6667", "2", "food"],
        ["2", "0.0000", "0.0000", "0.0000", "1", "s\\tky"],
    ]
    assert [line.split() for line in confusion.splitlines()[1:]] == [
        ["0", "1", "2", "class"],
        ["0", "2", "1", "0", "animal"],
        ["1", "0", "2", "0", "food"],
        ["2", "0", "1", "0", "s\\tky"],
    ]


def test_of_many_classes_the_largest_confusions_are_told():
    names = tuple(f"c{i}" for i in range(40))
    *_, confusion = (
        made(names, [5, 5, 7, 7, 7, 9], [5, 6, 8, 8, 7, 9]).table().split("\n\n")
    )
    assert confusion.splitlines() == [
        "confusion: the 2 largest of 40 classes",
        "times  right  said",
        "    2  c7     c8",
        "    1  c5     c6",
    ]


def test_each_example_is_a_line():
    lines = [json.loads(line) for line in made().lines()]
    assert lines[2] == {
        "row": 4,
        "text": "text 2",
        "label": "food",
        "expected": "animal",
        "probabilities": {"animal": 0.0, "food": 1.0, "s\tky": 0.0},
    }
    assert len(lines) == 6


def test_a_regression_has_scores_alone():
    column = np.array(["a", "b", "c"], object)
    right = np.array([0.5, 1.0, 2.0], np.float32)
    dev = Examples((column, column), right, np.arange(3))
    task = Task("t", dev.take([]), dev, (), "pearson_spearman", regression=True)
    found = evaluation.Evaluation(task, np.array([0.5, 1.0, 2.5], np.float32), None)
    assert "class" not in found.table()
    assert found.table().splitlines()[-1] == "examples\t3"
    line = json.loads([*found.lines()][2])
    assert line == {"row": 2, "text": ["c", "c"], "label": 2.5, "expected": 2.0}
