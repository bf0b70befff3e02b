"""Words, their pieces and masked inputs, against TinyBERT's own."""

import hashlib
from typing import Any

import numpy as np
import pytest
import tokenizers

from bitflax.data.augmentation import words
from bitflax.data.text import Tokenizer
from bitflax.errors import ConfigError
from tests.helpers import augmenting

CASES = augmenting.golden()[0]["cases"]


@pytest.fixture(scope="module")
def splitter():
    return words.Splitter(augmenting.tokenizer())


def test_the_stop_words_are_tinyberts():
    listed = words._STOP.split()
    golden = augmenting.golden()[0]
    # Its order: the apostrophes after the words that they belong to.
    assert len(set(listed)) == len(listed) == golden["stopwords_count"]
    found = hashlib.sha1("\n".join(listed).encode()).hexdigest()
    assert found == golden["stopwords_sha1"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["sentence"])
def test_words_and_pieces_are_tinyberts(splitter, case):
    found = splitter.split(case["sentence"])
    assert found == case["basic_tokens"]
    assert words.Splitter().split(case["sentence"]) == found
    (pieces,) = splitter.pieces([found])
    flat = [splitter.piece(number) for word in pieces for number in word]
    assert flat == case["wordpieces"]
    assert words.replaceable(found) == [int(n) for n in case["candidates"]]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case["sentence"])
def test_masked_inputs_are_tinyberts(splitter, case):
    (pieces,) = splitter.pieces([case["basic_tokens"]])
    made: list[Any] = [
        words.masked(pieces, word, splitter.special)
        for word in words.replaceable(case["basic_tokens"])
        if len(pieces[word]) == 1
    ]
    expected = [(call["ids"], call["segments"]) for call in case["mlm_calls"]]
    assert [(each.ids, each.types) for each in made] == expected
    mask = splitter.special.mask
    assert all(each.ids[each.place] == mask for each in made)


def test_what_is_too_long_is_cut_and_a_mask_beyond_is_none():
    special = words.Special(1, 2, 3)
    pieces = [[7], [8], [9]]
    found = words.masked(pieces, 2, special, longest=4)
    assert found == words.Masked([1, 7, 8, 3], [0, 0, 0, 0], 3)
    assert words.masked(pieces, 2, special, longest=3) is None


def test_capitals_are_content_and_stop_words_in_any_case_are_not():
    assert words.replaceable(["The", "Movie", "É", "I", "ab1", "Why"]) == [1, 5]


def test_a_special_token_in_a_text_is_letters_and_brackets(splitter):
    found = splitter.split("the [MASK] movie")
    assert found == ["the", "[", "mask", "]", "movie"]
    (pieces,) = splitter.pieces([found])
    assert splitter.special.mask not in np.concatenate(pieces)


def test_a_tokenizer_without_mask_is_refused():
    vocab = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}
    made = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    with pytest.raises(ConfigError, match=r"expected the token \[MASK\]"):
        _ = words.Splitter(Tokenizer(made)).special
