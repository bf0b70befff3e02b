"""Variants of a task's own words."""

import collections
import random

import numpy as np
import pytest

from bitflax.data import Examples
from bitflax.data.augmentation import edits
from tests.data.augmentation.test_augment import TEXTS, make_task

WORDS = [f"w{i}" for i in range(100)]


def drawn(words, seeds):
    for seed in range(seeds):
        yield edits.edit(" ".join(words), ["own"], random.Random(seed)).split()


def test_each_kind_of_edit_has_its_share():
    kinds, words = collections.Counter(), WORDS[:6]  # one edit each
    for made in drawn(words, 6000):
        kind = {(5, 0): "drop", (6, 0): "swap", (6, 1): "replace", (7, 1): "insert"}
        kinds[kind[len(made), made.count("own")]] += 1
        assert {*made} - {"own"} <= {*words}
    # The last word has none to be swapped with, and is replaced then. Four standard
    # errors.
    shares = {"drop": 1 / 4, "swap": 5 / 24, "replace": 0.4 + 1 / 24, "insert": 0.1}
    for name, share in shares.items():
        error = (share * (1 - share) / 6000) ** 0.5
        assert kinds[name] / 6000 == pytest.approx(share, abs=4 * error)


def test_how_far_it_is_is_shown_of_many(monkeypatch, capsys):
    plain = edits.edited(make_task().train, 0)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(edits, "MANY", 1)
    shown = edits.edited(make_task().train, 0)
    assert shown.texts[0].tolist() == plain.texts[0].tolist()
    count = len(make_task().train)
    assert f"edits {count}/{count} 100%" in capsys.readouterr().err


def test_one_word_in_seven_is_edited():
    brought = [made.count("own") for made in drawn(WORDS, 400)]
    # Of 15 edits half bring a word, and some words are edited twice.
    assert max(brought) <= 15
    assert np.mean(brought) == pytest.approx(7.5, abs=0.6)


@pytest.mark.parametrize("words", [["one"], ["one", "two"]])
def test_a_short_text_is_never_empty(words):
    assert {len(made) for made in drawn(words, 300)} == {len(words), len(words) + 1}


def test_where_no_spaces_are_written_a_character_is_a_word():
    texts = np.array(["今天天气很好", "我 don't know"], object)
    made = edits.edited(Examples((texts,), None, np.array([1, 2])), 0).texts[0]
    assert all(len({*made[at : at + 4]}) > 1 for at in (0, 4))
    assert all(abs(len(text) - 6) <= 1 for text in made[:4])
    assert {*"".join(made)} == {*"".join(texts)}


def test_a_text_without_words_stays_as_it_is():
    assert edits.edit(" \t", ["own"], random.Random(0)) == " \t"


@pytest.mark.parametrize("pair", [False, True])
def test_every_example_comes_before_its_variants(pair):
    train = make_task(pair=pair).train
    made = edits.edited(train, seed=0)
    assert made.rows.tolist() == np.repeat(train.rows, 4).tolist()
    assert made.labels is None  # a variant's own nobody knows
    own = {word for text in TEXTS for word in text.split()}
    for column, plain in zip(made.texts, train.texts, strict=True):
        assert column[::4].tolist() == plain.tolist()
        assert {word for text in column for word in text.split()} == own
        changed = [text != column[i - i % 4] for i, text in enumerate(column)]
        assert sum(changed) >= 12  # of 15; a word may be replaced by itself
    assert train.texts[0].tolist() == TEXTS


def test_edits_depend_on_the_seed_alone():
    train = make_task().train
    one, same, other = (
        edits.edited(train, seed).texts[0].tolist() for seed in (0, 0, 1)
    )
    assert one == same != other
