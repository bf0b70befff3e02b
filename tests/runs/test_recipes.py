"""Every recipe that comes with bitflax runs, shrunk by its dials, without network."""

import functools
import json
import re
import shlex

import pytest

import bitflax as bf
from bitflax import cli
from bitflax.recipe import loading
from bitflax.runs import log as runs_log
from tests.helpers import tinyrun


def both(name):
    return [f"{name}-1", f"{name}-2"]


NARROW = ["hidden_size=24", "heads=2", "ffn=40"]

# How each recipe is shrunk; a recipe that is not here fails the first test.
SHRUNK = {
    "quickstart": (
        ["teacher=TEACHER", "layers=1,", "teacher_epochs=1", "fp32_epochs=1"],
        ["onebit_epochs=1", "data.metric=macro_f1", "stages.onebit.keep=best"],
        ["teacher", "fp32", "onebit", "packed"],
    ),
    "xtc": (
        ["teacher=TEACHER", "layers=1,", "teacher_epochs=1", "epochs=1"],
        ["bits=1"],
        ["teacher", "w1a8", "packed"],
    ),
    "finetune": (["pretrained=TEACHER", "epochs=1"], [], ["teacher"]),
    "multistage_quickstart": (
        ["teacher=TEACHER", "layers=1,", "teacher_epochs=1", "stage1_epochs=1"],
        ["stage2_epochs=1", "source=CORPUS", "length=16", "general_steps=2"],
        ["teacher", "general", *both("fp32"), *both("2bit"), *both("1bit"), "packed"],
    ),
    "tinybert": (
        ["teacher=TEACHER", "layers=1,", "teacher_epochs=1", "stage1_epochs=1"],
        ["stage2_epochs=1", "source=CORPUS", "length=16", "general_steps=2", *NARROW],
        ["teacher", "general", "stage1", "stage2"],
    ),
    "binarybert": (
        ["teacher=TEACHER", "teacher_epochs=1", "half_epochs=1", "epochs=1"],
        ["heads=1", "ffn=24", "act_bits=4"],
        ["teacher", "half", *both("2bit"), *both("1bit"), "packed"],
    ),
}


def test_every_recipe_is_run():
    here = {p.stem for p in (loading._PACKAGE.parent / "recipes").glob("*.py")}
    assert here == {*SHRUNK, "general_kd"}


@pytest.mark.parametrize("name", ["quickstart", "multistage_quickstart"])
def test_the_teachers_rate_is_left_to_the_data(name):
    assert loading.load_recipe(name).teacher.optim.lr is None
    assert loading.load_recipe(name, ["teacher_lr=5e-5"]).teacher.optim.lr == 5e-5


SLOW = {"binarybert", "multistage_quickstart", "tinybert", "xtc"}
CASES = [
    pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW))
    for name in sorted(SHRUNK)
]


@pytest.mark.parametrize("name", CASES)
def test_recipe_runs(name, tmp_path, capsys):
    dials, more, rows = SHRUNK[name]
    teacher = tinyrun.write_teacher(tmp_path / "teacher")
    task = tinyrun.write_task(tmp_path)
    common = [f"task={task}", "max_length=16", "batch_size=16"]
    places = {"TEACHER": str(teacher), "CORPUS": str(write_corpus(tmp_path))}
    settings = [
        functools.reduce(lambda d, kv: d.replace(*kv), places.items(), dial)
        for dial in (*dials, *more)
    ]
    made = bf.load_recipe(name, [*common, *settings])
    with tinyrun.devices(1):
        found = bf.run(made, tmp_path / "run")
    assert [row.name for row in found] == rows
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == rows
    assert report["metric"] == ("macro_f1" if name == "quickstart" else "accuracy")
    said = capsys.readouterr().out
    assert rows[-1] in said
    check_next(tmp_path / "run", said)
    bf.run(made, tmp_path / "run")  # is done, and needs nothing of what is gone
    assert bf.load(tmp_path / "run").predict(["the old cat"])[0].label in tinyrun.KINDS


def check_next(run, said):
    """The files and commands that a run ends with are there, and clean leaves them."""
    assert re.search(f"report +{run}/report.html\n", said)
    (predict,) = re.findall("bitflax (predict .*)", said)
    (spare,) = re.findall("bitflax (clean .*)", said)
    assert cli.main(shlex.split(spare)) == 0
    assert cli.main(shlex.split(predict)) == 0
    assert f"eval {run} --task TEST.tsv\n" in said
    assert not list(run.glob("*/checkpoints"))


def write_corpus(folder):
    path = folder / "corpus.txt"
    path.write_text("".join(f"{text}\n" for text, _ in tinyrun.texts(200, seed=1)))
    return path


@pytest.mark.slow
def test_general_distillation_makes_a_student_for_another_recipe(tmp_path):
    teacher = tinyrun.write_teacher(tmp_path / "teacher")
    task, corpus = tinyrun.write_task(tmp_path), write_corpus(tmp_path)
    general = ["layers=1,", "length=16", "batch_size=16", "steps=30", "lr=0.01"]
    dials = [*general, f"source={corpus}", f"teacher={teacher}", "hidden_size=24"]
    made = bf.load_recipe("general_kd", [*dials, "heads=2", "ffn=40"])
    with tinyrun.devices(1):
        rows = bf.run(made, tmp_path / "general")
    log = runs_log.read_log(tmp_path / "general" / "log.jsonl")
    losses = [line["dev/loss"] for line in log if "dev/loss" in line]
    assert losses[-1] < losses[0]
    assert [(row.name, row.score) for row in rows] == [
        ("teacher", None),
        ("general", losses[-1]),
    ]
    student = tmp_path / "general" / "1-general" / "params"
    config, params = bf.load_pretrained(student)
    assert (config.hidden_size, config.num_hidden_layers) == (24, 1)
    assert params["projection"]["kernel"].shape == (24, 32)
    common = [f"task={task}", "max_length=16", "batch_size=16", f"teacher={teacher}"]
    few = ["teacher_epochs=1", "stage1_epochs=1", "stage2_epochs=1", "layers=1,"]
    made = bf.load_recipe("tinybert", [*common, *few, f"general={student}"])
    with tinyrun.devices(1):
        rows = bf.run(made, tmp_path / "run")
    assert [row.name for row in rows] == ["teacher", "stage1", "stage2"]
    config, _ = bf.load_pretrained(tmp_path / "run" / "2-stage2" / "params")
    assert (config.hidden_size, config.num_labels) == (24, 3)


@pytest.mark.slow
def test_a_teacher_made_by_one_recipe_teaches_another(tmp_path):
    teacher = tinyrun.write_teacher(tmp_path / "teacher")
    task = tinyrun.write_task(tmp_path)
    common = [f"task={task}", "max_length=16", "batch_size=16", "epochs=1"]
    alone = bf.load_recipe("finetune", [*common, f"pretrained={teacher}"])
    ready = tmp_path / "alone" / "0-teacher" / "params"
    settings = [*common, "layers=1,", f"teacher={ready}", "teacher_epochs=0", "bits=2"]
    with tinyrun.devices(1):
        (before,) = bf.run(alone, tmp_path / "alone")
        rows = bf.run(bf.load_recipe("xtc", settings), tmp_path / "run")
    assert rows[0].score == before.score
    assert [row.bits for row in rows] == [32, 2, 2]
