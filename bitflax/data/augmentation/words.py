"""Words of a text, their pieces, and which of them augmentation may replace."""

import random
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from bitflax.data import Tokenizer
from bitflax.data.augmentation.word_vectors import WordVectors
from bitflax.errors import ConfigError

LONGEST = 512
"""Positions of a masked input; what lies beyond is cut off."""

# NLTK's English stop words as TinyBERT takes them: question words are content.
_STOP = """
    i me my myself we our ours ourselves you you're you've you'll you'd your yours
    yourself yourselves he him his himself she she's her hers herself it it's its
    itself they them their theirs themselves this that that'll these those am is are
    was were be been being have has had having do does did doing a an the and but if
    or because as until while of at by for with about against between into through
    during before after above below to from up down in out on off over under again
    further then once here there all any both each few more most other some such no
    nor not only own same so than too very s t can will just don don't should
    should've now d ll m o re ve y ain aren aren't couldn couldn't didn didn't doesn
    doesn't hadn hadn't hasn hasn't haven haven't isn isn't ma mightn mightn't mustn
    mustn't needn needn't shan shan't shouldn shouldn't wasn wasn't weren weren't won
    won't wouldn wouldn't 's 're
"""
STOP_WORDS = frozenset(_STOP.split())
_LETTERS = re.compile("[a-z]+")


def replaceable(words: Sequence[str]) -> list[int]:
    """Return the places of the words that have another in their place now and then.

    They are made of the letters a to z, in either case, and are no stop words.

    >>> replaceable(["the", "movie", "was", "great", ",", "2019"])
    [1, 3]
    """
    lower = [word.lower() for word in words]
    return [
        place
        for place, word in enumerate(lower)
        if _LETTERS.fullmatch(word) and word not in STOP_WORDS
    ]


class Masked(NamedTuple):
    """A sentence with one word masked, and the whole sentence: a masked LM's input."""

    ids: list[int]
    types: list[int]
    """0 up to the first [SEP], then 1."""
    place: int
    """Where [MASK] is."""


class Special(NamedTuple):
    """The ids of the tokens that stand around and in a masked sentence."""

    cls: int
    sep: int
    mask: int


class Splitter:
    """Splits texts into words, as BERT does before it looks for pieces.

    Args:
      tokenizer: whose words, and pieces, these are; None: lower-case words without
        accents, and no pieces.

    >>> Splitter().split("It's a café.")
    ['it', "'", 's', 'a', 'cafe', '.']
    """

    def __init__(self, tokenizer: Tokenizer | None = None):
        import tokenizers

        self._backend: Any = None
        normalizer: Any = tokenizers.normalizers.BertNormalizer(lowercase=True)
        pre_tokenizer: Any = tokenizers.pre_tokenizers.BertPreTokenizer()
        if tokenizer is not None:
            self._backend = tokenizers.Tokenizer.from_str(tokenizer.to_json())
            normalizer = self._backend.normalizer or normalizer
            pre_tokenizer = self._backend.pre_tokenizer or pre_tokenizer
        self._normalizer, self._pre_tokenizer = normalizer, pre_tokenizer

    def split(self, text: str) -> list[str]:
        """Return the words of a text; each punctuation mark is one."""
        normal = self._normalizer.normalize_str(text)
        return [word for word, _ in self._pre_tokenizer.pre_tokenize_str(normal)]

    def pieces(self, sentences: Sequence[Sequence[str]]) -> list[list[list[int]]]:
        """Return the ids of each word's pieces, for every sentence."""
        whole = [list(words) for words in sentences]
        encodings = self._backend.encode_batch(
            whole, is_pretokenized=True, add_special_tokens=False
        )
        found: list[list[list[int]]] = [[[] for _ in words] for words in whole]
        for words, encoding in zip(found, encodings, strict=True):
            for number, piece in zip(encoding.word_ids, encoding.ids, strict=True):
                words[number].append(piece)
        return found

    def piece(self, number: int) -> str:
        """Return the piece of an id."""
        return self._backend.id_to_token(number)

    def vocabulary(self) -> dict[str, int]:
        """Return every piece and its id."""
        return self._backend.get_vocab()

    @property
    def special(self) -> Special:
        """The special tokens' ids.

        Raises:
          ConfigError: the tokenizer lacks one.
        """
        names = ("[CLS]", "[SEP]", "[MASK]")
        ids = [self._backend.token_to_id(name) for name in names]
        lost = [name for name, found in zip(names, ids, strict=True) if found is None]
        if lost:
            raise ConfigError(
                "tokenizer",
                f"expected the token {lost[0]}, found none",
                fix="give the folder of a masked BERT with its own tokenizer",
            )
        return Special(*ids)


def masked(
    pieces: Sequence[Sequence[int]], word: int, special: Special, longest: int = LONGEST
) -> Masked | None:
    """Return ``[CLS] sentence with [MASK] [SEP] sentence [SEP]``.

    Args:
      pieces: of each word of the sentence.
      word: the number of the word to mask; it has one piece.
      special: the special tokens.
      longest: more than so many tokens are cut off at the end.

    Returns:
      The input; None where the masked word is cut off.

    >>> masked([[7], [8, 9]], 0, Special(1, 2, 3))
    Masked(ids=[1, 3, 8, 9, 2, 7, 8, 9, 2], types=[0, 0, 0, 0, 0, 1, 1, 1, 1], place=1)
    """
    place = 1 + sum(len(found) for found in pieces[:word])
    if place >= longest:
        return None
    flat = [piece for found in pieces for piece in found]
    first = [special.cls, *flat, special.sep]
    first[place] = special.mask
    ids = [*first, *flat, special.sep][:longest]
    types = ([0] * len(first) + [1] * (len(flat) + 1))[:longest]
    return Masked(ids, types, place)


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
