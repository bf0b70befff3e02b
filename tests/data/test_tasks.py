"""Tasks by name and by file: what load_task says and what it refuses."""

import importlib.util

import pytest

from bitflax.data import icd10, metrics, tasks
from bitflax.data.tasks import load_task
from bitflax.errors import ConfigError, DataError, InputMissing


@pytest.fixture
def own(write):
    rows = "".join(f"text {i}\t{'ab'[i % 2]}\n" for i in range(50))
    return write("own.tsv", "text\tlabel\n" + rows)


def test_names_are_described():
    names = [*tasks.TASKS]
    assert names[0] == "icd10cm"
    assert {
        f"glue/{n}"
        for n in ["cola", "sst2", "mrpc", "stsb", "rte", "qnli", "qqp", "mnli", "wnli"]
    } < {*names}
    assert all(task.about for task in tasks.TASKS.values())
    assert {task.metric for task in tasks.TASKS.values()} <= {*metrics.METRICS}


def test_icd10cm():
    if importlib.util.find_spec(icd10.PACKAGE) is None:
        pytest.skip("simple-icd-10-cm (the extra demo) is not installed")
    task = load_task("icd10cm")
    assert (len(task.train), len(task.dev), len(task.labels)) == (8222, 1952, 21)
    assert tasks.TASKS["icd10cm"].classes == 21
    assert (task.metric, task.regression, task.notes) == ("accuracy", False, ())
    assert task.sha256 == icd10.SHA256


def test_a_missing_dev_file_is_split_off_and_said(own):
    task = load_task(own, seed=3)
    assert (len(task.train), len(task.dev)) == (45, 5)
    assert task.notes[-1] == "no dev file: 5 of 50 examples were split off by seed 3"
    assert task.split_off
    assert task.sha256 == load_task(own, seed=3).sha256 != load_task(own).sha256


def always(said, labels):
    return 1.0


def test_another_metric_takes_the_place_of_the_tasks(own):
    task = load_task(own, metric="macro_f1")
    assert task.metric == "macro_f1"
    assert task.scores(task.dev.labels, task.dev.labels)["macro_f1"] == 1.0
    task = load_task(own, metric=always)
    assert (task.metric, task.own_metric) == ("always", always)
    assert task.scores(1 - task.dev.labels, task.dev.labels) == {"always": 1.0}


@pytest.mark.parametrize(
    ("content", "metric", "problem"),
    [
        ("text\tlabel\na\tx\nb\ty\nc\tx\n", "pearson_spearman", "2 classes"),
        ("text\tlabel\na\tx\nb\ty\nc\tz\n", "f1_accuracy", "3 classes"),
        ("text\tscore\na\t0.5\nb\t1\nc\t2\n", "macro_f1", "real numbers"),
        ("text\na\nb\nc\n", "macro_f1", "needs labels"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(write, content, metric, problem):
    with pytest.raises(ConfigError, match=problem):
        load_task(write("own.tsv", content), metric=metric)


def test_limit_takes_examples_by_seed_and_says_so(own):
    task = load_task(own, limit=7)
    assert len(task.train) == 7
    assert task.notes[-1] == "7 of 45 training examples, by seed 0"
    assert (
        load_task(own, limit=7, seed=1).train.rows.tolist() != task.train.rows.tolist()
    )
    assert len(load_task(own, limit=999).train) == 45


@pytest.mark.parametrize(
    ("content", "metric"),
    [
        ("text\tlabel\na\tx\nb\ty\nc\tx\n", "accuracy"),
        ("text\tscore\na\t0.5\nb\t1\nc\t2\n", "pearson_spearman"),
        ("text\na\nb\nc\n", "agreement"),
    ],
)
def test_own_metrics(write, content, metric):
    task = load_task(write("a.tsv", content))
    assert task.metric == metric
    assert task.regression == (metric == "pearson_spearman")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("glue/col", "did you mean 'glue/cola'"),
        ("icd10", "did you mean 'icd10cm'"),
        ("zzzzzz", "fix: the tasks are: icd10cm, glue/cola"),
    ],
)
def test_an_unknown_name_names_the_nearest(name, problem):
    with pytest.raises(ConfigError, match=problem):
        load_task(name)


def test_a_missing_file_is_not_an_unknown_name(tmp_path):
    with pytest.raises(InputMissing, match="there is no such file"):
        load_task(tmp_path / "mine.csv")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("glue/cola", {"text": "sentence"}),
        ("glue/cola", {"dev": "dev.tsv"}),
        ("icd10cm", {"data_dir": "somewhere"}),
        ("icd10cm", {"label": "label"}),
        ("icd10cm", {"classes": ("a",)}),
        ("icd10cm", {"limit": 0}),
    ],
)
def test_settings_that_would_do_nothing_are_refused(name, settings):
    with pytest.raises(ConfigError) as caught:
        load_task(name, **settings)
    assert caught.value.place == next(iter(settings))


def test_data_dir_is_for_glue(own):
    with pytest.raises(ConfigError, match="does not apply"):
        load_task(own, data_dir="somewhere")


def test_equal_texts_cannot_be_split(write):
    with pytest.raises(DataError, match="two different texts"):
        load_task(write("a.tsv", "text\na\na\n"))


@pytest.mark.parametrize(
    ("name", "train", "dev", "metric"),
    [
        ("glue/cola", 8551, 1043, "matthews"),
        ("glue/sst2", 67349, 872, "accuracy"),
        ("glue/mrpc", 3668, 408, "f1_accuracy"),
        ("glue/stsb", 5749, 1500, "pearson_spearman"),
    ],
)
def test_real_glue(bitflax_data, name, train, dev, metric):
    task = load_task(name, data_dir=bitflax_data / "glue")
    assert (len(task.train), len(task.dev)) == (train, dev)
    assert (task.metric, task.notes) == (metric, ())
