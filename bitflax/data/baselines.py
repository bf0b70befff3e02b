"""What a task gives without a network: its majority class, and a linear model.

A teacher that is worse than these was trained too little, whatever its students keep.
"""

from typing import Any, NamedTuple

import numpy as np

from bitflax.data.examples import Examples, Task, shuffled

MOST_CHARACTERS = 10_000_000
"""Of training texts: seconds of TF-IDF; beyond, a part of the texts is learned."""
MOST_FITS = 1_000_000
"""Rows times classes: seconds of a solved SVM; beyond, three passes over the rows."""


class Baseline(NamedTuple):
    """A predictor's name and its score; None where the metric gives a constant none."""

    name: str
    score: float | None


def measure_baselines(task: Task) -> tuple[Baseline, Baseline]:
    """Return what the majority class (or the mean) scores on dev, and a linear model.

    The linear model is TF-IDF of words and pairs of words, ``1 + log`` counts, under a
    linear SVM (C = 1), or ridge regression for real numbers. A pair of texts is
    ``|a - b|`` and ``a . b`` of their vectors. It takes seconds at any size: of more
    than ``MOST_CHARACTERS`` of text the first of a shuffle are learned, and the name
    says how many; above ``MOST_FITS`` rows times classes the SVM is fitted by three
    passes of stochastic gradient descent.

    Args:
      task: its training and dev examples have labels.

    >>> texts = np.array(["a cat", "a dog", "cats", "rain", "a cat"], object)
    >>> labels = np.array([1, 0, 1, 0, 1], np.int32)
    >>> rows = Examples((texts,), labels, np.arange(1, 6))
    >>> measure_baselines(Task("t", rows, rows, ("no", "yes"), "accuracy"))[0]
    Baseline(name='majority class', score=0.6)
    """
    return _constant(task), _linear(task)


def _constant(task: Task) -> Baseline:
    rows = np.ones(len(task.dev), np.int64)
    if task.regression:
        return Baseline("mean", None)  # a constant correlates with nothing
    most = int(np.bincount(_labels(task.train)).argmax())
    return Baseline("majority class", _scored(task, most * rows))


def _linear(task: Task) -> Baseline:
    from sklearn.feature_extraction.text import TfidfVectorizer

    train = _part(task.train)
    name = "TF-IDF + ridge" if task.regression else "TF-IDF + linear SVM"
    if len(train) < len(task.train):
        name += f" of {len(train):,} rows"
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    try:
        words.fit(text for texts in train.texts for text in texts)
    except ValueError:  # no text has a word of two letters
        return Baseline(name, None)
    labels = _labels(train)
    if len(np.unique(labels)) < 2:
        return Baseline(name, _constant(task).score)
    fitted = _model(task, len(train)).fit(_vectors(words, train), labels)
    return Baseline(name, _scored(task, fitted.predict(_vectors(words, task.dev))))


def _labels(examples: Examples) -> np.ndarray:
    assert examples.labels is not None
    return examples.labels


def _scored(task: Task, said: np.ndarray) -> float | None:
    score = task.scores(said, _labels(task.dev))[task.metric]
    return score if np.isfinite(score) else None


def _part(examples: Examples) -> Examples:
    """Return the examples, or as many of a shuffle as the characters allow."""
    size = sum(sum(map(len, texts)) for texts in examples.texts)
    if size <= MOST_CHARACTERS:
        return examples
    mixed = shuffled(examples, len(examples), 0)
    sizes = np.sum([[*map(len, texts)] for texts in mixed.texts], axis=0)
    fits = int(np.searchsorted(np.cumsum(sizes), MOST_CHARACTERS))
    return mixed.take(range(max(fits, 2)))


def _vectors(words: Any, examples: Examples) -> Any:
    """Return a row an example: a text's TF-IDF, or what compares two texts'."""
    from scipy import sparse

    found = [words.transform(texts) for texts in examples.texts]
    if len(found) == 1:
        return found[0]
    a, b = found
    near = sparse.csr_matrix(a.multiply(b).sum(axis=1))
    return sparse.hstack([abs(a - b), near]).tocsr()


def _model(task: Task, rows: int) -> Any:
    from sklearn import linear_model, svm

    if task.regression:
        return linear_model.Ridge(solver="lsqr")
    if rows * len(task.labels) <= MOST_FITS:
        return svm.LinearSVC(tol=0.01, random_state=0)
    none: Any = None  # of scikit-learn's tolerance, which stops early
    return linear_model.SGDClassifier(alpha=1e-5, max_iter=3, tol=none, random_state=0)
