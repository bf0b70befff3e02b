import json

import pytest

from bitflax.inference import provenance
from bitflax.inference.provenance import Provenance, Scored
from bitflax.runs import report

ROWS = [
    report.Row("teacher", 0.8, 1.0, 32, 90_000_000, 158.2),
    report.Row("onebit", float("nan"), None, 1, None, 3.0),
]


def said(task="icd10cm"):
    about = {"name": "quickstart", "task": task, "metric": "accuracy"}
    return report.fields(ROWS, about)


def test_what_a_run_knows_goes_out_and_comes_back():
    made = provenance.make_provenance(said(), "minilm")
    assert made == Provenance(
        "quickstart",
        "icd10cm",
        "accuracy",
        "minilm",
        (Scored("teacher", 0.8, 32, 90_000_000), Scored("onebit", None, 1, None)),
    )
    again = json.loads(json.dumps(made.to_extras(), allow_nan=False))
    assert provenance.from_extras({"max_length": 128, **again}) == made


def test_no_path_of_this_machine_gets_out(tmp_path):
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    made = provenance.make_provenance(said(str(tmp_path / "a.tsv")), str(teacher))
    assert (made.task, made.teacher) == ("a.tsv", None)
    assert str(tmp_path.parent) not in json.dumps(made.to_extras())


def test_a_folder_that_looks_like_a_hubs_name_is_no_teacher(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = "runs/teacher"
    assert provenance.make_provenance(said(), named).teacher == named
    (tmp_path / "runs").mkdir()
    assert provenance.make_provenance(said(), named).teacher is None


@pytest.mark.parametrize(
    "stages",
    [
        7,
        "teacher",
        [7],
        [["teacher", 0.8, 32]],
        [[None, 0.8, 32, 9]],
        [["", 0.8, 32, 9]],
        [["a\nb", 0.8, 32, 9]],
        [["x" * 101, 0.8, 32, 9]],
    ],
)
def test_stages_that_are_none_are_left_out(stages):
    assert provenance.from_extras({"stages": stages}).stages == ()


@pytest.mark.parametrize("teacher", ["/etc", "~/a", "//host/share", "../a/b", "a/../b"])
def test_no_path_out_of_a_file_is_looked_for(teacher, monkeypatch):
    def looked(path):
        raise AssertionError(path)

    monkeypatch.setattr("pathlib.Path.exists", looked)
    assert provenance.from_extras({"teacher": teacher}).teacher is None


def test_numbers_that_are_none_are_left_out():
    rows = [["a", "0.8", 1.5, True], ["b", float("inf"), 0, -1], ["c", True, 1, 9]]
    found = provenance.from_extras({"stages": rows}).stages
    assert found == (
        Scored("a", None, None, None),
        Scored("b", None, None, None),
        Scored("c", None, 1, 9),
    )


@pytest.mark.parametrize("name", ["recipe", "task", "metric", "teacher"])
@pytest.mark.parametrize("value", [7, "", "a\tb", "x" * 101, ["a"], {}])
def test_texts_that_are_none_are_left_out(name, value):
    assert provenance.from_extras({name: value}) == Provenance()


def write_run(run, **changes):
    taught = {"folder": None, "pretrained": "minilm"}
    recipe = {"recipe": {"name": "quickstart", "teacher": taught | changes}}
    (run / "recipe.json").write_text(json.dumps(recipe))
    row = {"name": "teacher", "score": 0.8, "kept": 1.0, "bits": 32, "bytes": 9}
    found = {"task": "icd10cm", "metric": "accuracy", "stages": [row]}
    (run / "report.json").write_text(json.dumps(found))


def test_a_run_says_it_too(tmp_path):
    write_run(tmp_path)
    assert provenance.from_run(tmp_path) == Provenance(
        "quickstart", "icd10cm", "accuracy", "minilm", (Scored("teacher", 0.8, 32, 9),)
    )


def test_a_ready_teacher_is_not_what_else_the_recipe_names(tmp_path):
    write_run(tmp_path, folder=str(tmp_path))
    assert provenance.from_run(tmp_path).teacher is None


@pytest.mark.parametrize("name", ["recipe.json", "report.json"])
@pytest.mark.parametrize("text", [None, "{", "[]", "{}", '{"recipe": {}}'])
def test_a_run_that_says_nothing_is_none(tmp_path, name, text):
    write_run(tmp_path)
    (tmp_path / name).unlink()
    if text is not None:
        (tmp_path / name).write_text(text)
    assert provenance.from_run(tmp_path) is None
