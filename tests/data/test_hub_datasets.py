"""Data sets of ``datasets``: in memory as they are, and by name through a double."""

import json
import shlex
import typing

import pytest

import bitflax as bf
from bitflax import cli, inference
from bitflax.data import hub_datasets, load_task, tasks
from bitflax.errors import ConfigError, DataError, InputMissing
from bitflax.recipe import describe, overrides
from bitflax.runs import summary
from tests.helpers import hub, tinyrun

datasets = pytest.importorskip("datasets")
NAMES = [*tinyrun.KINDS]


def rows(count=60, seed=0, numbers=True, **more):
    texts, kinds = zip(*tinyrun.texts(count, seed), strict=True)
    columns = {"text": texts, "label": kinds, "idx": range(count)}
    features = {"text": datasets.Value("string"), "label": datasets.Value("string")}
    if numbers:
        columns["label"] = [NAMES.index(kind) for kind in kinds]
        features["label"] = datasets.ClassLabel(names=NAMES)
    features["idx"] = datasets.Value("int32")
    return datasets.Dataset.from_dict(columns | more, datasets.Features(features))


@pytest.fixture
def splits():
    return datasets.DatasetDict(train=rows(), validation=rows(9, 1), test=rows(9, 2))


def test_a_data_set_is_the_task_that_its_rows_are_as_a_file(tmp_path):
    file = load_task(tinyrun.write_task(tmp_path))
    found = load_task(rows(numbers=False))
    assert (found.sha256, found.labels) == (file.sha256, file.labels)
    assert found.measured_on == "the 6 examples that seed 0 split off Dataset"
    assert found.notes[0] == (
        "Dataset[train]: texts from 'text', labels from 'label', left out: 'idx'"
    )


def test_a_class_label_says_the_classes_in_its_order(splits):
    found = load_task(splits)
    assert found.labels == ("animal", "food", "sky")
    assert found.labels == tuple(splits["train"].features["label"].names)
    assert found.train.labels.tolist() == splits["train"]["label"][:]
    assert (len(found.train), len(found.dev)) == (60, 9)
    assert found.measured_on == "the 9 examples of DatasetDict[validation]"


def test_another_split_is_measured_on(splits):
    assert load_task(splits, dev="test").dev.texts[0][0] == splits["test"][0]["text"]
    with pytest.raises(ConfigError, match=r"no split 'tset'(.|\n)*'test'"):
        load_task(splits, dev="tset")
    splits.pop("validation")
    notes = load_task(splits).notes
    assert any("left out: test\nfix:" in note and "dev=test" in note for note in notes)


def test_columns_are_named_as_those_of_files():
    renamed = rows().rename_columns({"text": "diagnosis", "label": "chapter"})
    with pytest.raises(DataError, match=r"--set data\.text=diagnosis"):
        load_task(renamed)
    found = load_task(renamed, text="diagnosis", label="chapter")
    assert found.labels == tuple(NAMES)
    with pytest.raises(DataError, match="several labels an example"):
        load_task(
            datasets.Dataset.from_dict({"text": ["a"] * 2, "label": [["b", "c"]] * 2})
        )


def test_bad_rows_are_told_by_their_number():
    texts = [*rows(57)["text"], None, "", "a\0b"]
    with pytest.raises(DataError, match=r"Dataset\[train\]:58: .*found nothing"):
        load_task(rows(text=texts))
    with pytest.raises(DataError, match=r"Dataset\[train\]:1: .*found none"):
        load_task(rows(label=[-1] * 60))


def test_rows_without_a_label_are_left_out_with_a_note():
    labels = [-1, *[0, 1] * 29, -1]
    found = load_task(datasets.DatasetDict(train=rows(label=labels), dev=rows(9)))
    assert found.train.rows.tolist() == [*range(2, 60)]
    assert found.train.labels.tolist() == labels[1:-1]
    assert found.train.texts[0][0] == rows()[1]["text"]
    left_out = "DatasetDict[train]: 2 rows without a label were left out"
    assert [note for note in found.notes if "without a label" in note] == [left_out]
    assert len(found.dev) == 9


def test_real_numbers_are_a_regression():
    data = {"sentence1": ["a", "b c", "d"], "sentence2": ["x", "y", "z"]}
    made = datasets.Dataset.from_dict(data | {"score": [0.5, 1.25, 4.0]})
    found = load_task(made)
    assert found.regression
    assert found.pairs


def test_a_recipe_says_what_it_is_and_the_run_pins_what_is_in_it(tmp_path):
    teacher = tinyrun.write_teacher(tmp_path / "teacher")
    recipe = tinyrun.write_recipe(tmp_path)
    settings = (f"task={tinyrun.write_task(tmp_path)}", f"teacher={teacher}")
    made = bf.load_recipe(recipe, (*settings, "stages=0"))

    def of(data):
        task = {"task": data, "label": "label"}
        changed = {**vars(made.data), **task}
        return bf.Recipe(**{**vars(made), "data": bf.Data(**changed)})

    quick = bf.override(of(rows()), "teacher.epochs=1")
    assert "Dataset(60 rows: text, label, idx): at most" in describe.describe_recipe(
        quick
    )
    with tinyrun.devices(1):
        bf.run(quick, tmp_path / "run")
        bf.run(bf.override(of(rows()), "teacher.epochs=1"), tmp_path / "run")
        (tmp_path / "run" / ".finished").unlink()
        other = rows(text=[*reversed([*rows()["text"]])])
        with pytest.raises(ConfigError, match="began with other data"):
            bf.run(bf.override(of(other), "teacher.epochs=1"), tmp_path / "run")
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert record["recipe"]["data"]["task"] == "Dataset(60 rows: text, label, idx)"


def test_what_is_no_data_set_is_no_task():
    hint = typing.get_type_hints(bf.Data)["task"]
    assert overrides.words(hint) == "a text or a Dataset"
    kinds = ("hf:a", rows(2), datasets.DatasetDict(train=rows(2)), 7, ["a"], {})
    assert [overrides.conforms(x, hint) for x in kinds] == [True] * 3 + [False] * 3


# -- By name.


@pytest.fixture
def asked(monkeypatch, splits):
    """A hub that has ``nyu/glue`` with ``mrpc`` and ``old`` with a configuration."""
    import huggingface_hub
    from huggingface_hub import errors

    calls = []

    class Gone(errors.RepositoryNotFoundError):
        def __init__(self):
            Exception.__init__(self)

    class Api:
        def dataset_info(self, repo, timeout):
            assert timeout <= 5
            if repo not in ("nyu/glue", "old"):
                raise Gone

    def load_dataset(*args):
        calls.append(args)
        if args == ("nyu/glue",):
            raise ValueError("Config name is missing.\nPick one among: ['mrpc']")
        return splits

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("hf:nyu/glue/mrpc", ("nyu/glue", "mrpc")),
        ("hf:old/mrpc", ("old", "mrpc")),
        ("hf:old", ("old",)),
    ],
)
def test_a_name_is_an_owner_s_or_an_old_one(name, call, asked):
    found = load_task(name)
    assert asked == [call]
    assert found.name == name
    assert found.measured_on == f"the 9 examples of {name}[validation]"


def test_a_configuration_that_is_missing_is_told(asked):
    with pytest.raises(
        ConfigError, match=r"among: \['mrpc'\](.|\n)*hf:nyu/glue/CONFIG"
    ):
        load_task("hf:nyu/glue")


@pytest.mark.parametrize("name", ["hf:no/such", "hf:", "hf:a/b/c/d", "hf:a b"])
def test_a_name_that_no_hub_has_is_refused(name, asked):
    with pytest.raises(InputMissing, match="the hub has no such data set"):
        load_task(name)


def test_show_and_run_take_a_name(asked, capsys):
    assert cli.main(shlex.split("show quickstart --set task=hf:old/mrpc")) == 0
    assert "hf:old/mrpc: at most" in capsys.readouterr().out
    assert asked == []  # what is described is not downloaded
    data = bf.Data(task="hf:old/mrpc", dev="test", label="label")
    task = load_task("hf:old/mrpc", label="label")
    assert summary._task(data, task) == "--task hf:old/mrpc --label label --dev test"
    assert summary._task(bf.Data(task=rows()), load_task(rows())) == "--task TEST.csv"
    data = bf.Data(task="hf:old")
    assert summary._task(data, task) == "--task hf:old"
    assert summary._task(data, load_task(rows())) == "--task hf:old --dev SPLIT"


@pytest.mark.parametrize(("split", "status"), [(None, 2), ("test", 0)])
def test_eval_measures_no_part_of_train(split, status, asked, splits, monkeypatch):
    class Scores:
        def evaluate(self, task, done):
            assert len(task.dev) == 9
            return self

        def table(self):
            return ""

        config = bf.BertConfig()

    splits.pop("validation")
    monkeypatch.setattr(inference, "load", lambda *args: Scores())
    argv = ["eval", "mine", "--task", "hf:old", *(["--dev", split] if split else [])]
    assert cli.main(argv) == status


@pytest.mark.parametrize(
    ("name", "folder"), [("old", "old"), ("old/mrpc", "old"), ("nyu/glue", "nyu/glue")]
)
def test_a_folder_of_that_name_is_not_read(name, folder, asked, tmp_path, monkeypatch):
    (tmp_path / folder).mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputMissing, match=f"named {folder} lies here\nfix: rename"):
        load_task(f"hf:{name}")
    assert asked == []


def test_what_streams_is_one_error():
    stream = rows().to_iterable_dataset()
    table = rows().data.table
    for found in (stream, datasets.IterableDatasetDict(train=stream), table, 7):
        assert not overrides.conforms(found, typing.get_type_hints(bf.Data)["task"])
        with pytest.raises(ConfigError, match=f"found {type(found).__name__}\nfix: "):
            tasks._load_own(found, dev=None)  # the tests check types before
    with pytest.raises(ConfigError, match="expected splits, found none"):
        load_task(datasets.DatasetDict())


OFFLINE = """
import sys, time
import datasets, huggingface_hub
from bitflax.data import load_task
from bitflax.errors import InputMissing
huggingface_hub.HfApi
start = time.perf_counter()
try:
    load_task("hf:glue/mrpc")
except InputMissing as error:
    print(error, time.perf_counter() - start, sep="\\n")
"""


@pytest.mark.parametrize("offline", ["0", "1"])
def test_a_hub_out_of_reach_is_one_error_at_once(tmp_path, offline):
    there = {"endpoint": "http://127.0.0.1:9", "home": tmp_path}
    done = hub.asking(OFFLINE, **there, HF_HUB_OFFLINE=offline)
    said, fix, seconds = done.stdout.splitlines()
    assert said.startswith("hf:glue/mrpc: ")
    assert ("HF_HUB_OFFLINE is set" if offline == "1" else "no hub gives it") in said
    assert fix.startswith("fix: ")
    assert float(seconds) < 5


def test_without_the_package_it_is_named(monkeypatch, asked):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    monkeypatch.setattr("huggingface_hub.HfApi", None)  # not even asked
    with pytest.raises(InputMissing, match=r"pip install 'bitflax\[hf\]'"):
        load_task("hf:old")


def test_a_list_is_no_data_set():
    assert not hub_datasets.is_hub_data(["a"])
    assert hub_datasets.is_hub_data("hf:a/b")
