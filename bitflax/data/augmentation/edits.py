"""Variants of nothing but a task's own words, for a teacher to say what they mean.

A student of 1 bit knows its training texts by heart long before it answers new ones as
its teacher does. Any text tells more of the teacher, one that nobody would write too.
"""

import itertools
import random
import re
from collections.abc import Sequence
from contextlib import nullcontext

import numpy as np

from bitflax.data import Examples
from bitflax.progress import Progress

EDITS = "edits"
"""What ``Data.augment`` is for these, in place of a file."""
COPIES, SHARE = 3, 0.15
"""Variants an example; edits a word."""
MANY = 1 << 17
"""So many examples take seconds, which are shown."""
_DROP, _SWAP, _REPLACE = 0.25, 0.5, 0.9
_NO_SPACES = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u2e80-\ua4cf\uf900-\ufaff]"
)
"""Letters of scripts that put no spaces between words: Thai, Chinese, Japanese, ..."""


def edited(train: Examples, seed: int) -> Examples:
    """Return the examples without labels, each before three variants of it.

    A variant may mean something else than its example, so that what a teacher says is
    what can be learned; a loss that reads labels finds none. Rows are the example's.
    Both texts of a pair are edited. What becomes of an example depends on all texts,
    on its row and on the seed.

    Source: after EDA, Wei & Zou 2019 (arXiv:1901.11196), which draws synonyms where any
    word of the task is drawn here, and keeps the label; shares as measured in
    ``bitflax/docs/results.md``.

    >>> texts = (np.array(["one two three.", "four"], object),)
    >>> made = edited(Examples(texts, None, np.array([1, 2])), seed=0)
    >>> made.texts[0].tolist()[:3]
    ['one two three.', 'one two four three.', 'one four three.']
    >>> made.rows.tolist()
    [1, 1, 1, 1, 2, 2, 2, 2]
    """
    columns = train.texts
    own = [word for text in itertools.chain(*columns) for word in _words(text)]
    rows = np.repeat(np.arange(len(train)), 1 + COPIES)
    texts = tuple(column[rows] for column in columns)
    shown = len(train) >= MANY
    with Progress(len(train), EDITS) if shown else nullcontext() as bar:
        for row, number in enumerate(train.rows.tolist()):
            for copy in range(1, 1 + COPIES):
                rng = random.Random(f"{seed} {number} {copy}")
                at = row * (1 + COPIES) + copy
                for column in texts:
                    column[at] = edit(column[at], own, rng)
            if bar is not None:
                bar.update(row + 1)
    return Examples(texts, None, train.rows[rows])


def edit(text: str, own: Sequence[str], rng: random.Random) -> str:
    """Return a text with one word in seven edited, and one at the least.

    A quarter of the edits drop a word (of three or more), a quarter swap it with the
    next one, four in ten replace it, and one in ten puts one before it.

    Args:
      text: its words are what stands between spaces, or each character in a script
        without spaces; without any it stays.
      own: the words to draw from; where they are all of a task's texts, as often as
        they occur there.
      rng: draws.
    """
    words = _words(text)
    if not words:
        return text
    for _ in range(max(1, round(SHARE * len(words)))):
        place, kind = rng.randrange(len(words)), rng.random()
        if kind < _DROP and len(words) > 2:
            del words[place]
        elif kind < _SWAP and place + 1 < len(words):
            words[place : place + 2] = words[place + 1], words[place]
        elif kind < _REPLACE:
            words[place] = rng.choice(own)
        else:
            words.insert(place, rng.choice(own))
    return ("" if _NO_SPACES.search(text) else " ").join(words)


def _words(text: str) -> list[str]:
    return [*text] if _NO_SPACES.search(text) else text.split()
