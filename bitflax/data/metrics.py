"""How good predictions are: each GLUE task's own metric, and agreement with a teacher.

The arithmetic is scikit-learn's and scipy's. Scores are fractions, not percents.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Num, Shaped

from bitflax.errors import Diverged


def accuracy(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the share of predictions that are right."""
    return {"accuracy": float(np.mean(predictions == labels))}


def matthews(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return Matthews' correlation (CoLA): 0 for any constant prediction."""
    from sklearn.metrics import matthews_corrcoef

    return {"matthews": float(matthews_corrcoef(labels, predictions))}


def f1_accuracy(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the mean of F1 (of class 1) and accuracy, and both (MRPC, QQP)."""
    from sklearn.metrics import f1_score

    none = 0.0  # where class 1 neither occurs nor is predicted
    f1 = float(f1_score(labels, predictions, zero_division=none))  # pyright: ignore
    right = float(np.mean(predictions == labels))
    return {"f1_accuracy": (f1 + right) / 2, "f1": f1, "accuracy": right}


def pearson_spearman(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the mean of both correlations, and both (STS-B).

    A constant has no correlation with anything: all three are nan then, which is
    reported as it is and not taken for 0.
    """
    from scipy.stats import pearsonr, spearmanr

    if _constant(predictions) or _constant(labels):
        pearson = spearman = float("nan")
    else:
        predictions, labels = predictions.astype(float), labels.astype(float)
        # Both return a result that scipy's own annotations do not know.
        results: Any = pearsonr(predictions, labels), spearmanr(predictions, labels)
        pearson, spearman = (float(result.statistic) for result in results)
    mean = (pearson + spearman) / 2
    return {"pearson_spearman": mean, "pearson": pearson, "spearman": spearman}


def agreement(
    student_predictions: Num[np.ndarray, "rows"],
    teacher_predictions: Num[np.ndarray, "rows"],
) -> float:
    """Return how far a student predicts what its teacher does, without any labels.

    For classes (integers) it is the share of equal predictions; for real numbers
    Pearson's correlation.

    >>> agreement(np.array([0, 1, 1, 2]), np.array([0, 1, 2, 2]))
    0.75
    """
    if np.issubdtype(student_predictions.dtype, np.integer):
        return float(np.mean(student_predictions == teacher_predictions))
    return pearson_spearman(student_predictions, teacher_predictions)["pearson"]


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], dict[str, float]]] = {
    "accuracy": accuracy,
    "matthews": matthews,
    "f1_accuracy": f1_accuracy,
    "pearson_spearman": pearson_spearman,
    "agreement": lambda student, teacher: {"agreement": agreement(student, teacher)},
}


def score(
    name: str,
    predictions: Num[np.ndarray, "rows"],
    labels: Num[np.ndarray, "labels"],
) -> dict[str, float]:
    """Return a metric by name: ``score(name, ...)[name]`` is the number of the task.

    Where GLUE measures a task twice, that number is the mean of both, as on GLUE's
    leaderboard, and both stand beside it. For ``"agreement"`` hand the teacher's
    predictions in as labels.

    Args:
      name: a task's ``metric``: a key of ``METRICS``.
      predictions: class numbers, or real numbers, one a row.
      labels: the right ones.

    Raises:
      ValueError: an unknown name, no rows, or arrays of different lengths.

    >>> score("accuracy", np.array([1, 0, 1, 1]), np.array([1, 0, 0, 1]))
    {'accuracy': 0.75}
    """
    if name not in METRICS:
        raise ValueError(f"unknown metric {name!r}: {', '.join(METRICS)}")
    if not len(labels) or len(predictions) != len(labels):
        raise ValueError(f"{len(predictions)} predictions of {len(labels)} labels")
    return METRICS[name](predictions, labels)


def predictions(
    logits: Num[np.ndarray, "rows labels"], *, regression: bool = False
) -> Shaped[np.ndarray, "rows"]:
    """Return what logits predict: the largest's class, or the first as a real number.

    >>> predictions(np.array([[0.1, 2.0], [3.0, 1.0]])).tolist()
    [1, 0]
    """
    for row in np.flatnonzero(~np.isfinite(logits).all(axis=-1))[:1]:
        problem = f"the logits of row {row + 1} are NaN or infinite"
        raise Diverged("logits", problem, fix="train at a lower rate")
    return logits[:, 0] if regression else np.argmax(logits, axis=-1)


def _constant(values: np.ndarray) -> bool:
    """Whether all values are the same number; one value alone is."""
    return bool(np.all(values == values[0]))
