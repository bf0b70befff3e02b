"""Candidates and draws, against TinyBERT's own."""

import random

import numpy as np
import pytest

from bitflax.data.augmentation import words
from bitflax.data.augmentation.word_vectors import WordVectors
from tests.helpers import augmenting

CASES = augmenting.golden()[0]["cases"]


def by_table(inputs, count):
    """Stand in for the masked LM: what the token left of the mask is followed by."""
    table = augmenting.golden()[1]["mlm_table"]
    rows = [table[each.ids[each.place - 1]] for each in inputs]
    return [np.argsort(-row)[:count].tolist() for row in rows]


def vectors():
    data, arrays = augmenting.golden()
    return WordVectors(data["glove_words"], arrays["glove"])


@pytest.fixture
def finder():
    splitter = words.Splitter(augmenting.tokenizer())
    count = augmenting.golden()[0]["M"]
    return words.Finder(splitter, by_table, vectors(), count=count)


def test_candidates_are_tinyberts(finder):
    found = finder([case["sentence"] for case in CASES])
    for sentence, case in zip(found, CASES, strict=True):
        assert sentence.text == case["sentence"]
        assert sentence.words == case["basic_tokens"]
        expected = {int(place): near for place, near in case["candidates"].items()}
        assert sentence.options == expected


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["sentence"])
def test_variants_are_tinyberts(finder, case):
    data, rng = augmenting.golden()[0], random.Random(case["seed"])
    found = words.variants(finder([case["sentence"]]), data["N"], data["p"], rng)
    assert [text for (text,) in found] == case["augmented"]


def test_pairs_vary_together(finder):
    """The peers' code sets all variants of the second beside the first's last one."""
    firsts, seconds = "the movie was great", "a dog was bad"
    both = finder([firsts, seconds])
    found = words.variants(both, 30, 0.5, random.Random(3))
    assert found[0] == (firsts, seconds)
    assert len(set(found)) == len(found) > 10
    assert len({first for first, _ in found}) > 3
    assert len({second for _, second in found}) > 3
    rng = random.Random(3)
    drawn = [tuple(words.draw(each, 0.5, rng) for each in both) for _ in range(30)]
    assert found == list(dict.fromkeys([found[0], *drawn]))


def test_a_repeated_variant_is_dropped_and_not_drawn_again():
    sentence = words.Sentence("a", ["a"], {0: ["a", "b"]})
    found = words.variants([sentence], 50, 1.0, random.Random(0))
    assert found == [("a",), ("b",)]


@pytest.mark.parametrize(
    ("probability", "least", "most"), [(0.4, 0.38, 0.42), (1.0, 1, 1)]
)
def test_words_are_replaced_at_their_probability(probability, least, most):
    sentence = words.Sentence("", ["a"] * 10_000, {i: ["b"] for i in range(10_000)})
    made = words.draw(sentence, probability, random.Random(0)).split()
    assert least <= made.count("b") / 10_000 <= most


def test_without_a_masked_lm_vectors_serve_for_every_word():
    finder = words.Finder(words.Splitter(), None, vectors(), count=3)
    (found,) = finder(["The Movie was nice"])
    near = vectors().nearest(["movie"], 3)["movie"]
    assert found.options[1] == near  # the splitter makes small letters
    assert found.options[3] == ["nice"]  # it has no vector


def test_a_capital_is_kept(finder, monkeypatch):
    monkeypatch.setattr(finder, "predict", None)
    monkeypatch.setattr(finder.splitter, "split", str.split)
    (found,) = finder(["Movie"])
    assert all(word.istitle() for word in found.options[0])


def test_without_vectors_words_of_several_pieces_stay(finder):
    bare = words.Finder(finder.splitter, by_table, count=5)
    (found,) = bare(["the movie was unbelievable"])
    assert found.options[3] == ["unbelievable"]
    assert len(found.options[1]) == 5


def test_only_pieces_of_words_leave_the_word(finder):
    finder.predict = lambda inputs, count: [[17, 18]] * len(inputs)  # ##ning, ##s
    (found,) = finder(["the movie"])
    assert found.options == {1: ["movie"]}


def test_a_mask_beyond_the_positions_leaves_the_word(finder):
    finder.longest = 4
    asked = []
    finder.predict = lambda inputs, count: (
        asked.extend(inputs) or by_table(inputs, count)
    )
    (found,) = finder(["movie the film the great"])
    assert found.options[4] == ["great"]
    assert [each.place for each in asked] == [1, 3]


def test_neighbours_are_looked_up_once(finder, monkeypatch):
    asked, nearest = [], finder.vectors.nearest
    monkeypatch.setattr(
        finder.vectors, "nearest", lambda w, n: asked.append(w) or nearest(w, n)
    )
    for _ in range(2):
        finder(["running running playing"])
    assert asked == [["playing", "running"], []]


@pytest.mark.parametrize("text", ["", " ", "!"])
def test_a_text_without_words_is_itself(finder, text):
    found = words.variants(finder([text]), 5, 0.4, random.Random(0))
    assert found[0] == (text,)
    assert len(found) <= 2
