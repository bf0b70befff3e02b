"""Labelled texts as columns, and a task: what to learn, and what to measure it by."""

import dataclasses
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bitflax.data import metrics
from bitflax.errors import DataError


@dataclasses.dataclass(frozen=True)
class Examples:
    """Rows of one or two texts, with or without labels.

    Attributes:
      texts: one or two object arrays [rows] of strings.
      labels: int32 class numbers [rows], float32 real numbers [rows], or None.
      rows: int64 [rows]: the line of the source file (or the position in the source)
        that each example comes from, from 1.

    >>> both = Examples((np.array(["a", "b"], object),), None, np.array([2, 3]))
    >>> len(both), both.take([1]).texts[0].tolist()
    (2, ['b'])
    """

    texts: tuple[np.ndarray, ...]
    labels: np.ndarray | None
    rows: np.ndarray

    def __post_init__(self):
        """Refuse labels that are no class and no number."""
        labels = np.zeros(0) if self.labels is None else self.labels
        integers = np.issubdtype(labels.dtype, np.integer)
        for i in np.flatnonzero(labels < 0 if integers else ~np.isfinite(labels))[:1]:
            problem = f"expected a label, found {labels[i]}"
            raise DataError(self.rows[i], problem, fix="correct it")

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.rows)

    def take(self, index) -> "Examples":
        """Return the examples at these positions, in this order."""
        index = np.asarray(index, dtype=np.int64)
        return Examples(
            texts=tuple(column[index] for column in self.texts),
            labels=None if self.labels is None else self.labels[index],
            rows=self.rows[index],
        )


@dataclasses.dataclass(frozen=True)
class Task:
    """A data set ready to learn from: every row of it has been checked.

    Attributes:
      name: the task's name, or the path of its training file.
      train: the examples to learn from.
      dev: the examples to measure on; a source without any leaves it empty, and
        ``load_task`` splits some off.
      labels: the classes' names in the order of their numbers; empty for a regression
        and where no file has labels (the teacher knows the classes then).
      metric: the name of the task's score among all ``scores``.
      regression: whether the labels are real numbers.
      notes: sentences that a report should repeat ("dev was split off ...").
      sha256: of the texts, labels and class names, whatever format they came in.
      own_metric: the function that ``metric`` is the name of, where it is one's own.
      dev_from: where dev comes from, in words ("examples of dev.csv"); empty: it is the
        named task's own.
      split_off: whether dev was split off the training file.
    """

    name: str
    train: Examples
    dev: Examples
    labels: tuple[str, ...]
    metric: str
    regression: bool = False
    notes: tuple[str, ...] = ()
    sha256: str = ""
    own_metric: Callable[..., Any] | None = None
    dev_from: str = ""
    split_off: bool = False

    @property
    def measured_on(self) -> str:
        """What scores are measured on, in words."""
        said = self.dev_from or f"dev examples of {self.name}"
        return f"the {len(self.dev):,} {said}"

    def scores(self, predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return how good predictions are: ``metric``, and what stands beside it."""
        return metrics.score(self.own_metric or self.metric, predictions, labels)

    @property
    def pairs(self) -> bool:
        """Whether an example has two texts."""
        return len(self.train.texts) == 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class NamedTask:
    """All that is known of a task by its name alone, before any of it is read.

    Attributes:
      about: what it asks, in one line.
      load: ``(name, data_dir) -> Task``, all of it read and checked.
      classes: how many it has; 0 where labels are real numbers.
      metric: what ``bitflax.data.score`` is called with.
      takes_data_dir: whether ``data_dir`` may say where its files lie.
      copies: variants an example that augmentation makes (TinyBERT's N).
      language: of its texts, as a model card names it.
      dataset: its data set's name on a hub of data; None: it is on none.
      passages: returns its texts as a corpus; None: it is none.
    """

    about: str
    load: Callable[[str, str | Path | None], Task]
    classes: int
    metric: str
    takes_data_dir: bool = False
    copies: int = 30
    language: str = "en"
    dataset: str | None = None
    passages: Callable[[], list[str]] | None = None


LONGEST = 1 << 20
"""Characters of a text: a tokenizer takes seconds and much memory for more."""


def text_fault(value: Any, allow_empty: bool = True) -> str | None:
    """Return what is wrong with a text, or None."""
    if value is None:
        return "nothing"
    if not isinstance(value, str):
        return f"{type(value).__name__} {value!r:.60}"
    if len(value) > LONGEST:
        return f"{len(value)} characters, over {LONGEST}"
    if "\0" in value:
        return "a text with a NUL"
    if not allow_empty and not any(c.isprintable() and not c.isspace() for c in value):
        return "an empty text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "half a surrogate pair"
    return None


def object_column(values) -> np.ndarray:
    """Return strings as an object array [rows]; numpy's own strings are of one width.

    >>> object_column(["a", "bc"])
    array(['a', 'bc'], dtype=object)
    """
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def digest(train: Examples, dev: Examples, labels: tuple[str, ...]) -> str:
    """Return the SHA-256 of what a task teaches and measures, as hex.

    Lengths go in beside the bytes, so that moving a letter from one text to the next
    changes the sum too.
    """
    sha = hashlib.sha256(repr(labels).encode())
    for part in (train, dev):
        for texts in part.texts:
            sha.update(np.array([len(text) for text in texts], np.int64).tobytes())
            sha.update("".join(texts).encode())
        sha.update(b"-" if part.labels is None else part.labels.tobytes())
    return sha.hexdigest()


def shuffled(examples: Examples, count: int, seed: int) -> Examples:
    """Return the first ``count`` examples of a shuffle by ``seed``."""
    order = np.random.default_rng(seed).permutation(len(examples))
    return examples.take(order[:count])


def split_off(
    examples: Examples, seed: int, share: float = 0.1
) -> tuple[Examples, Examples]:
    """Split ``share`` of the examples off by seed: ``(train, dev)``, each in old order.

    Equal texts go to the same side, so that dev holds nothing that train has shown.
    Of each class the same share goes, and never its last text, if that can be.

    Args:
      examples: all examples; at least two distinct ones.
      seed: which ones go.
      share: of the distinct texts; at least one goes and at least one stays.
    """
    keys = object_column(list(zip(*examples.texts, strict=True)))
    distinct = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    numbers = np.array([distinct[key] for key in keys])
    order = np.random.default_rng(seed).permutation(len(distinct))
    kinds = np.zeros(len(distinct), np.int64)
    if examples.labels is not None and examples.labels.dtype.kind == "i":
        kinds[numbers] = examples.labels
    # A class's texts stand at equal distances from 0 to 1, its last one behind all.
    turn = np.argsort(kinds[order], kind="stable")
    by_kind = kinds[order[turn]]
    sizes = np.bincount(kinds)[by_kind]
    rank = np.arange(len(turn)) - np.searchsorted(by_kind, by_kind)
    place = np.zeros(len(turn))
    place[turn] = (rank + 0.5) / sizes + (rank == sizes - 1)
    goes = max(1, min(round(share * len(distinct)), int(np.sum(place < 1))))
    chosen = np.zeros(len(distinct), bool)
    chosen[order[np.argsort(place, kind="stable")[:goes]]] = True
    dev = chosen[numbers]
    return examples.take(np.flatnonzero(~dev)), examples.take(np.flatnonzero(dev))
