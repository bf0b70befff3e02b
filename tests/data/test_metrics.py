"""The metrics against their formulas."""

import functools
import math

import numpy as np
import pytest

from bitflax.data import metrics
from bitflax.errors import ConfigError

LABELS = np.array([1, 1, 1, 0, 0, 1, 0, 0, 1, 1])
SAID = np.array([1, 0, 1, 0, 1, 1, 0, 0, 0, 1])
# Counted by hand: 4 true and 1 false positives, 3 true and 2 false negatives.
TP, FP, TN, FN = 4, 1, 3, 2
REAL = np.array([0.0, 1.0, 2.5, 4.0, 5.0], np.float32)


def test_accuracy():
    assert metrics.score("accuracy", SAID, LABELS) == {"accuracy": 0.7}


def test_matthews():
    bottom = math.sqrt((TP + FP) * (TP + FN) * (TN + FP) * (TN + FN))
    expected = (TP * TN - FP * FN) / bottom
    found = metrics.score("matthews", SAID, LABELS)
    assert found["matthews"] == pytest.approx(expected, abs=1e-12)


def test_f1_and_accuracy_and_their_mean():
    f1 = 2 * TP / (2 * TP + FP + FN)
    found = metrics.score("f1_accuracy", SAID, LABELS)
    assert found["f1"] == pytest.approx(f1, abs=1e-12)
    assert found["accuracy"] == 0.7
    assert found["f1_accuracy"] == pytest.approx((f1 + 0.7) / 2, abs=1e-12)


def test_macro_f1_is_the_mean_over_the_classes():
    ones, zeros = 2 * TP / (2 * TP + FP + FN), 2 * TN / (2 * TN + FN + FP)
    found = metrics.score("macro_f1", SAID, LABELS)
    assert found["macro_f1"] == pytest.approx((ones + zeros) / 2, abs=1e-12)
    assert found["accuracy"] == 0.7


def test_classes_are_scored_one_by_one():
    found = metrics.by_class(SAID, LABELS, 3)
    assert found.confusion.tolist() == [[TN, FP, 0], [FN, TP, 0], [0, 0, 0]]
    assert found.precision == pytest.approx([TN / (TN + FN), TP / (TP + FP), 0])
    assert found.recall == pytest.approx([TN / (TN + FP), TP / (TP + FN), 0])


def recall_of_ones(said, labels):
    return np.mean(said[labels == 1])


def several(said, labels):
    return {"several": 0.5, "more": np.float32(0.25)}


def nothing(said, labels):
    return None


def of_another_name(said, labels):
    return {"several": 0.5}


def test_a_metric_of_ones_own():
    found = metrics.score(recall_of_ones, SAID, LABELS)
    assert found == {"recall_of_ones": pytest.approx(TP / (TP + FN))}
    bound = functools.partial(recall_of_ones)
    assert [*metrics.score(bound, SAID, LABELS)] == ["recall_of_ones"]
    both = {"several": 0.5, "more": 0.25}
    assert metrics.score(several, SAID, LABELS) == both
    assert metrics.metric_name(lambda said, labels: 0) == "metric"


@pytest.mark.parametrize("metric", [nothing, of_another_name])
def test_a_metric_that_gives_no_number_is_refused(metric):
    with pytest.raises(ConfigError, match=metric.__name__):
        metrics.score(metric, SAID, LABELS)


def test_correlations_and_their_mean():
    said = np.array([0.1, 0.9, 2.0, 1.9, 6.0], np.float32)
    found = metrics.score("pearson_spearman", said, REAL)
    pearson = np.corrcoef(said.astype(float), REAL.astype(float))[0, 1]
    spearman = 1 - 6 * 2 / (5 * 24)  # two neighbours changed places
    assert found["pearson"] == pytest.approx(pearson, abs=1e-12)
    assert found["spearman"] == pytest.approx(spearman, abs=1e-12)
    mean = (found["pearson"] + found["spearman"]) / 2
    assert found["pearson_spearman"] == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_the_right_answers_score_one(name):
    labels = REAL if name == "pearson_spearman" else LABELS
    assert metrics.score(name, labels, labels)[name] == pytest.approx(1.0, abs=1e-12)


def test_a_constant_prediction():
    same = np.ones_like(LABELS)
    assert metrics.score("matthews", same, LABELS)["matthews"] == 0.0
    assert metrics.score("f1_accuracy", same * 0, LABELS)["f1"] == 0.0
    found = metrics.score("pearson_spearman", REAL * 0 + 2, REAL)
    assert all(math.isnan(value) for value in found.values())


def test_agreement():
    assert metrics.agreement(SAID, LABELS) == 0.7
    assert metrics.score("agreement", SAID, LABELS) == {"agreement": 0.7}
    assert metrics.agreement(2 * REAL + 1, REAL) == pytest.approx(1.0, abs=1e-12)
    assert metrics.agreement(-REAL, REAL) == pytest.approx(-1.0, abs=1e-12)


def test_predictions_of_logits():
    logits = np.array([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
    assert metrics.predictions(logits).tolist() == [1, 0]
    assert metrics.predictions(logits[:, :1], regression=True).tolist() == [0.0, 3.0]


def test_what_cannot_be_scored_is_refused():
    with pytest.raises(ValueError, match="unknown metric 'f1'"):
        metrics.score("f1", SAID, LABELS)
    with pytest.raises(ValueError, match="9 predictions of 10 labels"):
        metrics.score("accuracy", SAID[1:], LABELS)
    with pytest.raises(ValueError, match="0 predictions of 0 labels"):
        metrics.score("accuracy", SAID[:0], LABELS[:0])
