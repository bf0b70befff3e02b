"""What a majority class and a linear model score on a task."""

import numpy as np
import pytest

from bitflax.data import baselines, tasks
from bitflax.data.baselines import measure_baselines
from bitflax.data.examples import Examples, Task
from tests.helpers import tinyrun


def examples(columns, labels):
    texts = tuple(np.array(column, object) for column in columns)
    return Examples(texts, labels, np.arange(1, len(labels) + 1))


def task_of(columns, labels, metric="accuracy", cut=0.5, **more):
    rows = examples(columns, labels)
    half = int(len(rows) * cut)
    train, dev = rows.take(range(half)), rows.take(range(half, len(rows)))
    names = () if more.get("regression") else ("no", "yes")
    return Task("t", train, dev, names, metric, **more)


@pytest.fixture
def kinds(tmp_path):
    return tasks.load_task(tinyrun.write_task(tmp_path))


def test_a_linear_model_learns_which_word_tells_the_class(kinds):
    constant, linear = measure_baselines(kinds)
    assert constant.name == "majority class"
    assert constant.score == pytest.approx(np.mean(kinds.dev.labels == 0))
    assert linear.name == "TF-IDF + linear SVM"
    assert linear.score > 0.8


def test_of_many_rows_and_classes_it_takes_passes_and_of_much_text_a_part(
    kinds, monkeypatch
):
    monkeypatch.setattr(baselines, "MOST_FITS", 10)
    assert measure_baselines(kinds)[1].score > 0.6
    size = sum(map(len, kinds.train.texts[0]))
    monkeypatch.setattr(baselines, "MOST_CHARACTERS", size * 3 // 4)
    name, score = measure_baselines(kinds)[1]
    rows = int(name.removeprefix("TF-IDF + linear SVM of ").removesuffix(" rows"))
    assert 0.6 * len(kinds.train) < rows < 0.9 * len(kinds.train)
    assert score > 0.5


def pairs(rows=200):
    rng = np.random.default_rng(0)
    words = np.array(["cat", "dog", "rain", "snow", "bread", "soup", "wind", "cow"])
    a = [rng.choice(words, 4, replace=False) for _ in range(rows)]
    same = rng.integers(0, 5, rows)
    others = [rng.permutation([w for w in words if w not in row]) for row in a]
    b = [[*x[:n], *o[: 4 - n]] for x, n, o in zip(a, same, others, strict=True)]
    return [[" ".join(row) for row in side] for side in (a, b)], same


def test_pairs_are_compared():
    columns, same = pairs()
    said = measure_baselines(task_of(columns, (same > 2).astype(np.int32)))
    assert said[1].score > said[0].score + 0.2


def test_real_numbers_have_a_mean_without_a_score_and_ridge():
    columns, same = pairs()
    task = task_of(
        columns, same.astype(np.float32), "pearson_spearman", regression=True
    )
    mean, ridge = measure_baselines(task)
    assert mean == ("mean", None)
    assert ridge.name == "TF-IDF + ridge"
    assert ridge.score > 0.9


def test_matthews_of_one_class_is_0(kinds):
    labels = np.array([1, 1, 0, 1, 0, 1], np.int32)
    texts = ["good", "good good", "bad", "good", "bad", "good"]
    constant, linear = measure_baselines(task_of([texts], labels, "matthews"))
    assert constant.score == 0.0
    assert linear.score == 1.0


@pytest.mark.parametrize(
    ("texts", "labels", "score"),
    [(["a", "b", "c", "d"], [0, 1, 1, 0], None), (["aa", "bb"] * 2, [1] * 4, 1.0)],
    ids=["no words", "one class"],
)
def test_what_a_linear_model_cannot_learn(texts, labels, score):
    found = measure_baselines(task_of([texts], np.array(labels, np.int32)))
    assert found[1].score == score


def test_an_own_metric_scores_the_baselines_too():
    texts = np.array(["a cat", "a dog", "cats", "a dog"], object)
    rows = Examples((texts,), np.array([1, 0, 1, 0], np.int32), np.arange(4))

    def half(said, true):
        return 0.5

    task = Task("t", rows, rows, ("no", "yes"), "half", own_metric=half)
    assert [each.score for each in baselines.measure_baselines(task)] == [0.5, 0.5]
