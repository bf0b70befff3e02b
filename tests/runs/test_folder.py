"""One run and one recipe a folder."""

import errno
import fcntl
import json
import logging
import os
import subprocess
import sys
import textwrap

import pytest

from bitflax.errors import (
    ConfigError,
    DamagedFile,
    FolderBusy,
    OutputError,
)
from bitflax.runs import folder as runs_folder
from bitflax.runs.environment import differences
from bitflax.runs.folder import RunFolder

RECIPE = {
    "data": {"task": "icd10cm", "limit": None},
    "stages": [
        {"name": "fp32", "optim": {"lr": 5e-5}, "epochs": 4},
        {"name": "1bit", "optim": {"lr": 5e-4}, "epochs": 8},
    ],
    "seed": 0,
}


def changed(**fields):
    return json.loads(json.dumps(RECIPE)) | fields


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    with RunFolder(tmp_path / "runs" / "a") as folder:
        folder.write_recipe("def recipe(): ...\n", RECIPE, ["seed=0"])
        assert folder.stage(1, "fp32") == tmp_path / "runs" / "a" / "1-fp32"
        assert folder.stage(1, "fp32").is_dir()
        assert folder.cache.is_dir()
        assert not folder.finished
    path = tmp_path / "runs" / "a"
    assert (path / "recipe.py").read_text() == "def recipe(): ...\n"
    record = json.loads((path / "recipe.json").read_text())
    assert record["recipe"] == RECIPE
    assert record["overrides"] == ["seed=0"]
    assert {
        "python",
        "jax",
        "flax",
        "optax",
        "orbax-checkpoint",
        "transformers",
    } <= set(record["versions"])


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "a").write_text("")
    for path in (tmp_path / "a", tmp_path / "a" / "b"):
        with pytest.raises(OutputError) as caught, RunFolder(path):
            pass
        assert caught.value.status == 73
        assert str(path) in str(caught.value)


def test_a_folder_that_cannot_be_made_or_written():
    # Not even root writes there.
    for path in ("/proc/bitflax", "/proc/self"):
        with pytest.raises(OutputError), RunFolder(path):
            pass


def test_a_folder_of_other_things_is_left_alone(tmp_path):
    (tmp_path / "recipe.py").write_text("mine")
    with pytest.raises(OutputError, match=r"no run folder: it holds recipe\.py"):
        RunFolder(tmp_path).__enter__()
    assert os.listdir(tmp_path) == ["recipe.py"]


def test_hidden_files_and_a_run_killed_early_are_fine(tmp_path):
    (tmp_path / ".DS_Store").write_text("")
    (tmp_path / "cache").mkdir()
    with RunFolder(tmp_path) as folder:
        folder.write_recipe("", RECIPE)


def test_a_second_run_is_told_who_is_there(tmp_path):
    with RunFolder(tmp_path):
        with pytest.raises(FolderBusy) as caught:
            RunFolder(tmp_path).__enter__()
        assert caught.value.status == 75
        assert f"process {os.getpid()} on " in caught.value.problem
        assert " since 20" in caught.value.problem
    with RunFolder(tmp_path):
        pass


HOLD = """
    import sys, time
    from bitflax.runs.folder import RunFolder
    with RunFolder(sys.argv[1]):
        print("here", flush=True)
        time.sleep(60)
"""


def test_another_process_holds_the_folder_until_it_dies(tmp_path):
    other = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(HOLD), tmp_path],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "here\n"
    with pytest.raises(FolderBusy, match=f"process {other.pid} on"):
        RunFolder(tmp_path).__enter__()
    other.kill()
    other.communicate()
    with RunFolder(tmp_path):  # a dead run holds nothing
        pass


def test_a_folder_without_locks_is_a_note(tmp_path, monkeypatch, caplog):
    def flock(fd, how):
        raise OSError(errno.ENOLCK, "No locks available")

    caplog.set_level(logging.INFO, "bitflax")
    monkeypatch.setattr(fcntl, "flock", flock)
    with RunFolder(tmp_path) as folder:
        folder.write_recipe("", RECIPE)
    assert caplog.messages == [f"bitflax: note: {tmp_path}: cannot be locked"]


def test_the_same_recipe_goes_on(tmp_path):
    for text in ("first", "a comment was added"):
        with RunFolder(tmp_path) as folder:
            folder.write_recipe(text, RECIPE)
            folder.pin("data", "53aa", "a.tsv", {"rows": 3})
    assert (tmp_path / "recipe.py").read_text() == "a comment was added"
    assert json.loads((tmp_path / "recipe.json").read_text())["hashes"] == {
        "data": "53aa"
    }


def test_a_tuple_is_the_list_that_json_makes_of_it(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.write_recipe("", {"layers": (1, 3)})
        folder.write_recipe("", {"layers": (1, 3)})


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (changed(seed=1), "seed was 0, is 1 now"),
        (changed(name="x"), "name was None, is 'x' now"),
        (
            changed(data={"task": "glue/cola", "limit": None}),
            "data.task was 'icd10cm', is 'glue/cola' now",
        ),
        (
            changed(stages=[RECIPE["stages"][0]]),
            "stages.1 was {'name': '1bit'",
        ),
        (
            changed(
                stages=[
                    RECIPE["stages"][0],
                    {"name": "1bit", "optim": {"lr": 1e-4}, "epochs": 8},
                ]
            ),
            "stages.1.optim.lr was 0.0005, is 0.0001 now",
        ),
    ],
)
def test_another_recipe_is_refused_and_the_field_named(tmp_path, other, words):
    with RunFolder(tmp_path) as folder:
        folder.write_recipe("old", RECIPE)
        folder.stage(0, "teacher")
    with RunFolder(tmp_path) as folder, pytest.raises(ConfigError) as caught:
        folder.write_recipe("new", other)
    assert words in caught.value.problem
    assert "another --out" in caught.value.fix
    assert (tmp_path / "recipe.py").read_text() == "old"
    assert json.loads((tmp_path / "recipe.json").read_text())["recipe"] == RECIPE


def test_a_recipe_may_change_until_a_stage_has_begun(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.write_recipe("old", RECIPE)
        folder.write_recipe("new", {"seed": 1})
    assert (tmp_path / "recipe.py").read_text() == "new"
    assert json.loads((tmp_path / "recipe.json").read_text())["recipe"] == {"seed": 1}


def test_what_a_stage_costs_may_change(tmp_path):
    began = {"stages": [{"name": "fp32", "accumulate": 1, "cache_teacher": True}]}
    now = {"stages": [{"name": "fp32", "accumulate": 1, "recompute": True}]}
    with RunFolder(tmp_path) as folder:
        folder.write_recipe("", began)
        folder.stage(1, "fp32")
        folder.write_recipe("", now)
        for field, value in (("name", "other"), ("accumulate", 4)):
            with pytest.raises(ConfigError, match=f"{field} was .*, is {value!r} now"):
                folder.write_recipe("", {"stages": [now["stages"][0] | {field: value}]})


def test_a_stage_goes_on_with_the_steps_that_it_began_with(tmp_path, caplog):
    caplog.set_level("INFO")
    with RunFolder(tmp_path / "a") as folder:
        folder.write_recipe("", RECIPE)
        folder.stage(1, "fp32")
        assert folder.planned("1-fp32", 640) == 640
        assert folder.planned("2-1bit", 2560) == 2560
    assert not caplog.records
    with RunFolder(tmp_path / "a") as folder:
        folder.write_recipe("", RECIPE)
        assert folder.planned("1-fp32", 640) == 640
        assert not caplog.records
        assert folder.planned("2-1bit", 5120) == 2560
        (change,) = folder.record["changes"]
    said = "2-1bit began with 2560 steps, and goes on with them, though the recipe now "
    assert change.startswith(f"{said}means 5120: ")
    assert change in caplog.text


def test_many_differences_are_counted(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.write_recipe("", {f"f{i}": i for i in range(9)})
        folder.stage(0, "teacher")
        with pytest.raises(ConfigError, match=r"f4 was 4, is 5 now \(and 4 more\)"):
            folder.write_recipe("", {f"f{i}": i + 1 for i in range(9)})


def test_other_data_is_refused_by_the_files_name_and_what_changed(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.write_recipe("", RECIPE)
        folder.pin("data", "53aa", "a.tsv", {"train": "3 rows", "dev": "2 rows"})
        folder.pin("teacher", "0bce", "hf", {})
        with pytest.raises(ConfigError) as caught:
            folder.pin("data", "1ee7", "a.tsv", {"train": "4 rows", "dev": "2 rows"})
        assert caught.value.place == "a.tsv"
        said = "other data: train was '3 rows', is '4 rows' now"
        assert caught.value.problem == f"{tmp_path} began with {said}"
        with pytest.raises(ConfigError, match="other teacher: its content differs"):
            folder.pin("teacher", "1ee7", "hf", {})
        folder.pin("data", "53aa", "a.tsv", {"train": "3 rows", "dev": "2 rows"})


def test_an_earlier_pin_without_facts_is_compared(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.write_recipe("", RECIPE)
        folder._write((folder._read() or {}) | {"hashes": {"data": "53aa"}})
        with pytest.raises(ConfigError, match="other data: its content differs"):
            folder.pin("data", "1ee7", "a.tsv", {"rows": 4})
        folder.pin("data", "53aa", "a.tsv", {"rows": 3})


def test_other_versions_are_a_note(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "bitflax")
    with RunFolder(tmp_path) as folder:
        folder.write_recipe("", RECIPE)
        folder.stage(0, "teacher")
        assert caplog.messages == []
        old = runs_folder.versions()
        monkeypatch.setattr(runs_folder, "versions", lambda: {**old, "jax": "9.9.9"})
        folder.write_recipe("", RECIPE)
    (note,) = caplog.messages
    assert f"version of jax was '{old['jax']}', is '9.9.9' now" in note


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"recipe": {}}', "null"])
def test_a_damaged_recipe_json(tmp_path, text):
    (tmp_path / "recipe.json").write_text(text)
    with RunFolder(tmp_path) as folder, pytest.raises(DamagedFile) as caught:
        folder.write_recipe("", RECIPE)
    assert caught.value.place.endswith("recipe.json")


def test_finished_as_long_as_the_results_are_there(tmp_path):
    with RunFolder(tmp_path) as folder:
        folder.write_recipe("", RECIPE)
        (tmp_path / "report.html").write_text("")
        folder.finish("report.html")
    with RunFolder(tmp_path) as folder:
        assert folder.finished
        (tmp_path / "report.html").unlink()
        assert not folder.finished


def test_the_log_goes_on_after_a_resume(tmp_path):
    with RunFolder(tmp_path) as folder:
        for step in (1, 2, 3):
            folder.log({"stage": "1-fp32", "step": step, "loss": {"logits": 0.5}})
    with RunFolder(tmp_path) as folder:
        folder.rewind("1-fp32", 2)
        folder.log({"stage": "1-fp32", "step": 3, "loss": {"logits": 0.25}})
        lines = [json.loads(text) for text in folder.log_path.read_text().splitlines()]
    assert [(line["step"], line["loss/logits"]) for line in lines] == [
        (1, 0.5),
        (2, 0.5),
        (3, 0.25),
    ]


def test_a_bar_for_the_stage(tmp_path, capsys):
    with RunFolder(tmp_path) as folder, folder.progress(3, "1-fp32", initial=1) as bar:
        bar.update(3, {"logits": 0.5})
    assert "1-fp32 3/3 100%, logits 0.5 (00:00, 00:00 left, " in capsys.readouterr().err


def test_nan_is_no_difference():
    nan, also = float("nan"), json.loads("NaN")
    assert not list(differences({"a": [nan]}, {"a": [also]}))
    assert list(differences({"a": nan}, {"a": 1.0})) == ["a was nan, is 1.0 now"]
    assert list(differences({"a": 1.0}, {"a": nan})) == ["a was 1.0, is nan now"]
