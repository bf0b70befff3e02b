"""Every recipe that comes with bitflax runs, shrunk by its dials, without network."""

import json

import jax
import pytest

import bitflax as bf
from bitflax import recipefiles
from tests import tinyrun

# How each recipe is shrunk; a recipe that is not here fails the first test.
SHRUNK = {
    "quickstart": (
        ["teacher=TEACHER", "layers=1,", "teacher_epochs=1", "fp32_epochs=1"],
        ["onebit_epochs=1"],
        ["teacher", "fp32", "onebit", "packed"],
    ),
    "xtc": (
        ["teacher=TEACHER", "layers=1,", "teacher_epochs=1", "epochs=1"],
        ["bits=1"],
        ["teacher", "w1a8", "packed"],
    ),
    "finetune": (["pretrained=TEACHER", "epochs=1"], [], ["teacher"]),
}


@pytest.fixture(autouse=True)
def quick():
    """Compile without optimisation: each step runs for milliseconds."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


def test_every_recipe_is_run():
    here = {p.stem for p in (recipefiles._PACKAGE.parent / "recipes").glob("*.py")}
    assert here == set(SHRUNK)


@pytest.mark.parametrize("name", sorted(SHRUNK))
def test_recipe_runs(name, tmp_path, capsys):
    dials, more, rows = SHRUNK[name]
    teacher = tinyrun.write_teacher(tmp_path / "teacher")
    task = tinyrun.write_task(tmp_path)
    common = [f"task={task}", "max_length=16", "batch_size=16"]
    settings = [d.replace("TEACHER", str(teacher)) for d in (*dials, *more)]
    made = bf.load_recipe(name, [*common, *settings])
    with tinyrun.devices(1):
        found = bf.run(made, tmp_path / "run")
    assert [row.name for row in found] == rows
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [stage["name"] for stage in report["stages"]] == rows
    assert rows[-1] in capsys.readouterr().out
    assert bf.load(tmp_path / "run").predict(["the old cat"])[0].label in tinyrun.KINDS


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
