"""Examples, their hash, and the dev set that a seed splits off."""

import dataclasses

import numpy as np
import pytest

from bitflax import types
from bitflax.data import examples
from bitflax.data.examples import Examples


def made(texts, labels=None):
    labels = None if labels is None else np.array(labels, np.int32)
    return Examples((examples.object_column(texts),), labels, np.arange(len(texts)) + 1)


def test_take_keeps_labels_and_rows_together():
    taken = made(["a", "b", "c"], [0, 1, 2]).take([2, 0])
    assert taken.texts[0].tolist() == ["c", "a"]
    assert taken.labels.tolist() == [2, 0]
    assert taken.rows.tolist() == [3, 1]


@pytest.mark.parametrize(
    "other",
    [
        (made(["a", "bc"], [0, 1]), ("x", "y")),
        (made(["ab", "c"], [1, 0]), ("x", "y")),
        (made(["ab", "c"], [0, 1]), ("y", "x")),
        (made(["ab", "c"]), ("x", "y")),
    ],
    ids=["texts", "labels", "names", "unlabelled"],
)
def test_digest_sees_every_difference(other):
    same = examples.digest(made(["ab", "c"], [0, 1]), made(["d"], [0]), ("x", "y"))
    again = examples.digest(made(["ab", "c"], [0, 1]), made(["d"], [0]), ("x", "y"))
    assert same == again
    assert same != examples.digest(other[0], made(["d"], [0]), other[1])


def test_digest_ignores_row_numbers():
    one = made(["a"], [0])
    other = dataclasses.replace(one, rows=np.array([7]))
    assert examples.digest(one, one, ()) == examples.digest(other, one, ())


@pytest.mark.parametrize(
    ("names", "among", "places"),
    [
        (("b", "a"), ("a", "b"), [1, 0]),
        (("B", "a"), ("A", "b"), [1, 0]),
        (("a", "A", "b"), ("A", "b", "a"), [2, 0, 1]),
        (("a", "A"), ("a", "b"), None),
        (("a", "b"), ("a", "A"), None),
        (("a", "A"), ("a", "a"), None),
        (("a", "A", "b"), ("a", "A", "B"), None),
        (("a",), ("a", "b"), None),
        (("a", "a"), ("a", "a"), [1, 1]),
        ((), (), []),
    ],
)
def test_labels_are_matched_by_case_only_where_it_tells_no_two_apart(
    names, among, places
):
    assert types.label_places(names, among) == places


def test_split_off_depends_on_the_seed_alone():
    whole = made([f"text {i}" for i in range(100)], [0] * 100)
    train, dev = examples.split_off(whole, seed=3)
    again = examples.split_off(whole, seed=3)
    other = examples.split_off(whole, seed=4)
    assert (len(train), len(dev)) == (90, 10)
    assert sorted([*train.rows, *dev.rows]) == list(range(1, 101))
    assert dev.rows.tolist() == again[1].rows.tolist() != other[1].rows.tolist()


def test_split_off_keeps_equal_texts_together():
    whole = made([f"text {i % 20}" for i in range(200)])
    train, dev = examples.split_off(whole, seed=0)
    assert len(dev) == 20
    assert not set(train.texts[0]) & set(dev.texts[0])


@pytest.mark.parametrize("seed", range(5))
def test_split_off_takes_the_same_share_of_each_class(seed):
    counts = [100, 60, 20, 10, 1, 1]
    labels = np.repeat(range(6), counts)[np.random.default_rng(9).permutation(192)]
    train, dev = examples.split_off(
        made([f"text {i}" for i in range(192)], labels), seed
    )
    assert len(dev) == 19
    assert np.bincount(dev.labels, minlength=6).tolist() == [10, 6, 2, 1, 0, 0]
    assert np.bincount(train.labels).tolist() == [90, 54, 18, 9, 1, 1]


def test_split_off_leaves_each_class_one_text_where_that_can_be():
    labels = [0, 0, 1, 2, 3]
    for seed in range(9):
        train, dev = examples.split_off(made(list("abcde"), labels), seed, share=0.6)
        assert dev.labels.tolist() == [0]
        assert sorted(train.labels) == [0, 1, 2, 3]
        train, dev = examples.split_off(made(list("abcd"), labels[1:]), seed)
        assert (len(train), len(dev)) == (3, 1)


def test_split_off_takes_real_numbers_as_one_kind():
    texts = examples.object_column([f"text {i}" for i in range(30)])
    numbers = np.linspace(0, 1, 30, dtype=np.float32)
    rows = np.arange(30)
    found = examples.split_off(Examples((texts,), numbers, rows), seed=2)[1]
    bare = examples.split_off(Examples((texts,), None, rows), seed=2)[1]
    assert found.rows.tolist() == bare.rows.tolist()
    assert len(bare) == 3


def test_split_off_leaves_one_on_each_side():
    train, dev = examples.split_off(made(["a", "b"]), seed=0)
    assert (len(train), len(dev)) == (1, 1)


def test_shuffled_takes_the_first_of_one_shuffle():
    whole = made([str(i) for i in range(50)])
    few, more = examples.shuffled(whole, 5, 1), examples.shuffled(whole, 20, 1)
    assert few.rows.tolist() == more.rows[:5].tolist()
    assert few.rows.tolist() != examples.shuffled(whole, 5, 2).rows.tolist()
