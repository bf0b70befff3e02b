"""Task-data augmentation, the algorithm: candidates for each word, and draws of them.

TinyBERT: Jiao et al. 2019 (arXiv:1909.10351), algorithm 1. A word of one piece is
masked, and the masked LM's best words may stand in its place; a word of several pieces
has the nearest word vectors instead.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from bitflax.data.augmentation.word_vectors import WordVectors
from bitflax.data.augmentation.words import (
    LONGEST,
    Masked,
    Splitter,
    masked,
    replaceable,
)

Predict = Callable[[Sequence[Masked], int], Sequence[Sequence[int]]]
"""``(inputs, count)`` -> for each input the ids of the ``count`` likeliest pieces at
the mask, the likeliest first."""


class Sentence(NamedTuple):
    """A text, its words, and what may stand in the place of some of them."""

    text: str
    words: list[str]
    options: Mapping[int, Sequence[str]]


class Finder:
    """Finds the candidates of every replaceable word.

    Args:
      splitter: of texts into words; with pieces where there is a masked LM.
      predict: the masked LM; None: word vectors serve for all words.
      vectors: the word vectors; None: words of several pieces keep their place.
      count: M, candidates a word.
      longest: positions of the masked LM.
    """

    def __init__(
        self,
        splitter: Splitter,
        predict: Predict | None = None,
        vectors: WordVectors | None = None,
        *,
        count: int = 15,
        longest: int = LONGEST,
    ):
        self.splitter, self.predict, self.vectors = splitter, predict, vectors
        self.count, self.longest = count, longest
        self._near: dict[str, list[str]] = {}

    def __call__(self, texts: Sequence[str]) -> list[Sentence]:
        """Return the sentences with their candidates.

        A word without any candidate has itself. Of the masked LM's best pieces those
        that go on with a word (``##ing``) are dropped, so that fewer may be left.
        """
        sentences = [
            Sentence(text, words, dict.fromkeys(replaceable(words), ()))
            for text, words in ((text, self.splitter.split(text)) for text in texts)
        ]
        by_model = self._predicted(sentences)
        wanted = {
            sentence.words[place].lower()
            for number, sentence in enumerate(sentences)
            for place in sentence.options
            if (number, place) not in by_model
        }
        self._look_up(wanted)
        return [
            sentence._replace(
                options={
                    place: by_model.get((number, place))
                    or self._neighbours(sentence.words[place])
                    for place in sentence.options
                }
            )
            for number, sentence in enumerate(sentences)
        ]

    def _predicted(self, sentences: Sequence[Sentence]) -> dict:
        """Return ``{(sentence, word): candidates}`` of the words of one piece."""
        if self.predict is None:
            return {}
        special, inputs = self.splitter.special, {}
        pieces = self.splitter.pieces([sentence.words for sentence in sentences])
        for number, sentence in enumerate(sentences):
            for place in sentence.options:
                if len(pieces[number][place]) == 1:
                    inputs[number, place] = masked(
                        pieces[number], place, special, self.longest
                    )
        fitting = {key: found for key, found in inputs.items() if found is not None}
        best = self.predict(list(fitting.values()), self.count)
        found = {key: [sentences[key[0]].words[key[1]]] for key in inputs}
        for key, ids in zip(fitting, best, strict=True):
            named = map(self.splitter.piece, ids)
            found[key] = [p for p in named if not p.startswith("##")] or found[key]
        return found

    def _look_up(self, wanted: set[str]) -> None:
        """Find the neighbours of words that have not been asked for before."""
        new = sorted(wanted - self._near.keys())
        if self.vectors is not None:
            self._near |= self.vectors.nearest(new, self.count)

    def _neighbours(self, word: str) -> list[str]:
        """Return the nearest words, with a capital where the word has one."""
        near = self._near.get(word.lower()) or [word]
        return [found.title() for found in near] if word.istitle() else near


def draw(sentence: Sentence, probability: float, rng: random.Random) -> str:
    """Return the words of a sentence, each replaced with a probability.

    For each word that has candidates one of them is drawn, and then whether it is
    taken: the order in which TinyBERT asks its generator.

    >>> draw(Sentence("A b!", ["a", "b", "!"], {1: ["c"]}), 1.0, random.Random(0))
    'a c !'
    """
    words = list(sentence.words)
    for place, options in sentence.options.items():
        option = rng.choice(options)
        if rng.random() < probability:
            words[place] = option
    return " ".join(words)


def variants(
    sentences: Sequence[Sentence],
    copies: int,
    probability: float,
    rng: random.Random,
) -> list[tuple[str, ...]]:
    """Return an example's texts and up to ``copies`` variants of them.

    Variant i of a pair is variant i of both of its texts. (TinyBERT's own code sets
    the second text's variants beside the first text's last one.) A variant that is
    there already is dropped and not drawn again.

    Args:
      sentences: one, or the two of a pair, with their candidates.
      copies: N, draws.
      probability: p, of a word to be replaced.
      rng: the example's own generator.
    """
    found = {tuple(sentence.text for sentence in sentences): None}
    for _ in range(copies):
        found[tuple(draw(each, probability, rng) for each in sentences)] = None
    return list(found)
