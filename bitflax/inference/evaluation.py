"""What a model says of a task's dev examples: scores, classes, confusion, each row."""

import dataclasses
import functools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from bitflax import data
from bitflax.data import Task
from bitflax.progress import columns, escaped

MOST_CLASSES = 30
"""A confusion matrix of more does not fit a screen: its largest entries are told."""
_MOST_CONFUSED = 20


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """A model's answers to a task's dev examples.

    Attributes:
      task: what was asked; its dev examples have labels.
      said: [rows] class numbers as the task counts them, or real numbers.
      probabilities: [rows, classes] in the task's order; None for a regression.
    """

    task: Task
    said: np.ndarray
    probabilities: np.ndarray | None

    @functools.cached_property
    def labels(self) -> np.ndarray:
        """What is right, [rows]."""
        assert self.task.dev.labels is not None
        return self.task.dev.labels

    @functools.cached_property
    def scores(self) -> dict[str, float]:
        """The task's metrics, by name."""
        return self.task.scores(self.said, self.labels)

    def table(self) -> str:
        """Return the scores, and of classes what each scores and is taken for."""
        scores = self.scores
        if self.probabilities is not None:
            scores = scores | data.score("macro_f1", self.said, self.labels)
        rows = [f"{name}\t{value:.4f}" for name, value in scores.items()]
        rows.append(f"examples\t{len(self.said)}")
        if self.probabilities is None:
            return "\n".join(rows)
        classes = [escaped(name) for name in self.task.labels]
        found = data.by_class(self.said, self.labels, len(classes))
        parts = ["\n".join(rows), _by_class(found, classes)]
        return "\n\n".join([*parts, _confusion(found.confusion, classes)])

    def lines(self) -> Iterator[str]:
        """Yield each example as a line of JSON: its row, text, label, what is right."""
        names, dev = self.task.labels, self.task.dev
        texts = [*zip(*dev.texts, strict=True)]
        for i, (row, text) in enumerate(zip(dev.rows.tolist(), texts, strict=True)):
            said, right = self.said[i].item(), self.labels[i].item()
            line: dict[str, Any] = {"row": row}
            line["text"] = text[0] if len(text) == 1 else list(text)
            line |= {"label": said, "expected": right}
            if self.probabilities is not None:
                line |= {"label": names[said], "expected": names[right]}
                line["probabilities"] = shares(names, self.probabilities[i])
            yield json.dumps(line, ensure_ascii=False)


def shares(names: Sequence[str], row: np.ndarray) -> dict[str, float]:
    """Return the probabilities of a row by the names of their classes.

    >>> shares(("no", "yes"), np.array([0.25, 0.75]))
    {'no': 0.25, 'yes': 0.75}
    """
    return {name: round(float(p), 6) for name, p in zip(names, row, strict=True)}


def _by_class(found: data.ByClass, classes: Sequence[str]) -> str:
    head = ("", "precision", "recall", "F1", "examples", "class")
    rows: list[Sequence[Any]] = [head]
    for i, name in enumerate(classes):
        values = (found.precision[i], found.recall[i], found.f1[i])
        shown = [f"{value:.4f}" for value in values]
        rows.append((i, *shown, int(found.confusion[i].sum()), name))
    return columns(rows, ">>>>><")


def _confusion(confusion: np.ndarray, classes: Sequence[str]) -> str:
    if len(classes) <= MOST_CLASSES:
        title = "confusion: a row is what is right, a column what the model said"
        rows = [("", *range(len(classes)), "class")]
        rows += [(i, *confusion[i].tolist(), name) for i, name in enumerate(classes)]
        return f"{title}\n{columns(rows, '>' * (len(classes) + 1) + '<')}"
    wrong = confusion * (1 - np.eye(len(classes), dtype=confusion.dtype))
    order = np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSED]
    places = [divmod(int(place), len(classes)) for place in order]
    rows = [("times", "right", "said")]
    rows += [(wrong[i, j], classes[i], classes[j]) for i, j in places if wrong[i, j]]
    title = f"confusion: the {len(rows) - 1} largest of {len(classes)} classes"
    return f"{title}\n{columns(rows, '><<')}"
