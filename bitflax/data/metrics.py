"""How good predictions are: GLUE's metrics, one's own, and agreement with a teacher.

The arithmetic is scikit-learn's and scipy's. Scores are fractions, not percents.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, Num, Shaped

from bitflax.errors import ConfigError, Diverged

Metric = str | Callable[..., Any]
"""A name of ``METRICS``, or ``(predictions, labels) -> number``: higher is better. Its
own name is the metric's; one that returns several numbers by name has its own among
them."""


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


def macro_f1(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the mean of all classes' F1 that occur, rare and frequent alike."""
    from sklearn.metrics import f1_score

    mean = f1_score(labels, predictions, average="macro", zero_division=0.0)  # pyright: ignore
    return {"macro_f1": float(mean), **accuracy(predictions, labels)}


def pearson_spearman(predictions: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Return the mean of both correlations, and both (STS-B).

    A constant has no correlation with anything: all three are nan then, which is
    reported as it is and not taken for 0.
    """
    from scipy.stats import pearsonr, spearmanr

    if not (np.ptp(predictions) and np.ptp(labels)):
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
    "macro_f1": macro_f1,
    "pearson_spearman": pearson_spearman,
    "agreement": lambda student, teacher: {"agreement": agreement(student, teacher)},
}


def metric_name(metric: Metric) -> str:
    """Return what a metric is called.

    >>> metric_name("accuracy"), metric_name(macro_f1)
    ('accuracy', 'macro_f1')
    """
    if isinstance(metric, str):
        return metric
    name = getattr(getattr(metric, "func", metric), "__name__", "")
    return name if name.isidentifier() else "metric"


def _own(metric: Callable[..., Any], predictions: np.ndarray, labels: np.ndarray):
    """Return what a function of one's own says, by name."""
    name, found = metric_name(metric), metric(predictions, labels)
    values = dict(found) if isinstance(found, Mapping) else {name: found}
    try:
        return {name: values[name]} and {n: float(x) for n, x in values.items()}
    except (KeyError, TypeError, ValueError):
        problem = f"expected a number, or numbers with {name!r} among them, found "
        fix = "return a number from the metric's function"
        raise ConfigError(
            f"metric {name}", f"{problem}{found!r:.60}", fix=fix
        ) from None


class ByClass(NamedTuple):
    """How good predictions are of each class, and what is taken for what."""

    precision: Float[np.ndarray, " classes"]
    recall: Float[np.ndarray, " classes"]
    f1: Float[np.ndarray, " classes"]
    confusion: Int[np.ndarray, "classes classes"]
    """Rows are the right classes, columns the predicted ones."""


def by_class(
    predictions: Int[np.ndarray, " rows"], labels: Int[np.ndarray, " rows"], count: int
) -> ByClass:
    """Return precision, recall and F1 of each of ``count`` classes; 0 for 0 / 0.

    >>> by_class(np.array([0, 1, 1]), np.array([0, 0, 1]), 2).confusion.tolist()
    [[1, 1], [0, 1]]
    """
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    classes, scored = np.arange(count), precision_recall_fscore_support
    options: Any = {"labels": classes, "zero_division": 0.0}
    precision, recall, f1, _ = (
        np.asarray(x) for x in scored(labels, predictions, **options)
    )
    confusion = confusion_matrix(labels, predictions, labels=classes)
    return ByClass(precision, recall, f1, confusion)


def score(
    metric: Metric,
    predictions: Num[np.ndarray, "rows"],
    labels: Num[np.ndarray, "labels"],
) -> dict[str, float]:
    """Return a metric's numbers; the entry of its name is the number of the task.

    Where GLUE measures a task twice, that number is the mean of both, as on GLUE's
    leaderboard, and both stand beside it. For ``"agreement"`` hand the teacher's
    predictions in as labels.

    Args:
      metric: a key of ``METRICS``, or a function of one's own.
      predictions: class numbers, or real numbers, one a row.
      labels: the right ones.

    Raises:
      ValueError: an unknown name, no rows, or arrays of different lengths.
      ConfigError: a function of one's own returns no number.

    >>> score("accuracy", np.array([1, 0, 1, 1]), np.array([1, 0, 0, 1]))
    {'accuracy': 0.75}
    """
    if isinstance(metric, str) and metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}: {', '.join(METRICS)}")
    if not len(labels) or len(predictions) != len(labels):
        raise ValueError(f"{len(predictions)} predictions of {len(labels)} labels")
    if not isinstance(metric, str):
        return _own(metric, predictions, labels)
    return METRICS[metric](predictions, labels)


def predictions(
    logits: Num[np.ndarray, "rows labels"], *, regression: bool = False
) -> Shaped[np.ndarray, "rows"]:
    """Return what logits predict: the largest's class, or the first as a real number.

    >>> predictions(np.array([[0.1, 2.0], [3.0, 1.0]])).tolist()
    [1, 0]
    """
    for row in np.flatnonzero(~np.isfinite(logits).all(axis=-1))[:1]:
        problem = f"the logits of row {row + 1} are NaN or infinite"
        raise Diverged(
            "logits", problem, fix="train at a lower rate, or give another model"
        )
    return logits[:, 0] if regression else np.argmax(logits, axis=-1)
