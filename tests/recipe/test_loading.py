"""Recipe files: found by name, run, turned by dials, and their mistakes located."""

import json
import os
import pathlib
import subprocess
import sys

import pytest

import bitflax as bf
from bitflax.errors import ConfigError, InputMissing
from bitflax.recipe import loading

RECIPES = pathlib.Path(__file__).parents[2] / "recipes"
GOOD = '''"""Mine: a recipe.

More of it.
"""
import bitflax as bf

def recipe(*, lr: float = 1e-3, layers: tuple[int, ...] = (1,), epochs=2, plain=None):
    stage = bf.Stage(
        name="onebit",
        init=bf.Init(layers=layers),
        loss=bf.soft_cross_entropy,
        optim=bf.Optim(lr=lr),
        epochs=epochs,
    )
    return bf.Recipe(stages=(stage,), teacher=bf.Teacher(folder=plain))
'''


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a recipe file into an otherwise empty working folder."""
    monkeypatch.chdir(tmp_path)

    def write(text: str, name: str = "mine.py") -> pathlib.Path:
        path = pathlib.Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
        return path

    return write


def test_load_recipe_without_settings(write):
    made = bf.load_recipe(write(GOOD))
    assert made.name == "mine"
    assert made.stages[0].epochs == 2
    assert made.stages[0].init.layers == (1,)


def test_load_recipe_with_dials_and_fields(write):
    settings = ["layers=0,2", "stages.onebit.keep=best", "lr=1", "seed=5", "plain=x/y"]
    made = bf.load_recipe(write(GOOD), [*settings, "stages.0.optim.lr=2e-3"])
    (stage,) = made.stages
    assert stage.init.layers == (0, 2)
    assert stage.keep == "best"
    assert stage.optim.lr == 2e-3  # a field goes over the dial
    assert (made.seed, made.teacher.folder) == (5, "x/y")


def test_a_recipe_file_is_read_with_text_and_docstring(write):
    file = loading.read_recipe(write(GOOD))
    assert file.source == GOOD
    assert file.doc == "Mine: a recipe.\n\nMore of it."
    assert file.dials["lr"] == (float, 1e-3)
    assert file.dials["epochs"] == (int, 2)
    assert not list(pathlib.Path().glob("__pycache__"))


@pytest.mark.parametrize(
    ("setting", "fix"),
    [
        ("epoch=3", "did you mean 'epochs'?"),
        ("epochs=x", "give a whole number"),
        ("stage.0.keep=best", "did you mean 'stages'?"),
        ("epochs", "as in --set"),
        ("teacher.epoch=3", "did you mean 'epochs'?"),
    ],
)
def test_a_mistyped_setting_names_the_nearest(write, setting, fix):
    with pytest.raises(ConfigError) as caught:
        bf.load_recipe(write(GOOD), [setting])
    assert caught.value.place == f"--set {setting}"
    assert fix in caught.value.fix


# What is changed in GOOD; the line, a part of the problem, a part of the mend.
MISTAKES = [
    ("import bitflax as bf", "import bitflx as bf", 5, "bitflx", "correct"),
    ("import bitflax as bf", "import bitflax as", 5, "not Python", "correct"),
    ("epochs=epochs", "epoch=epochs", 8, "Stage has no field 'epoch'", "'epochs'"),
    ("bf.Optim(lr=lr)", "bf.Optim(lrr=lr)", 12, "Optim has no field 'lrr'", "'lr'"),
    ("bf.Optim", "bf.Optimm", 12, "bitflax has no 'Optimm'", "'Optim'"),
    ("epochs=epochs", "epochs=0", 8, "expected at least 1", "at least 1"),
    ("epochs=epochs", "epochs='2'", 8, "expected a whole number", "without quotes"),
    ("name=", "nme=", 8, "Stage has no field 'nme'", "'name'"),
    ("loss=bf.soft", "loss=bf.sof", 11, "no 'sof_cross", "'soft_cross_entropy'"),
    ("    stage =", "    1 / 0\n    stage =", 8, "ZeroDivisionError", "--debug"),
    ("    stage =", "    raise ValueError('no')\n    stage =", 8, "no", "correct"),
    ("    stage =", "    exit(0)\n    stage =", 8, "SystemExit: 0", "correct"),
    ("stages=(stage,)", "stages=stage", 15, "expected a tuple", "give a tuple"),
]
LOCATE = """
import json, sys
import bitflax as bf
from bitflax.errors import ConfigError
for path in sys.argv[1:]:
    try:
        bf.load_recipe(path)
    except ConfigError as error:
        print(json.dumps([error.place, error.problem, error.fix]))
"""


def test_a_mistake_in_a_recipe_is_located(write):
    names = []
    for i, (old, new, *_) in enumerate(MISTAKES):
        names.append(str(write(GOOD.replace(old, new, 1), f"mine{i}.py")))
    # A process of its own: here jaxtyping's checks would come first.
    found = subprocess.run(
        [sys.executable, "-c", LOCATE, *names],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(RECIPES.parent)},
    )
    said = [json.loads(line) for line in found.stdout.splitlines()]
    assert len(said) == len(MISTAKES)
    for (*_, line, problem, fix), (place, its, mend), name in zip(
        MISTAKES, said, names, strict=True
    ):
        assert place == f"{name}:{line}", its
        assert problem in its
        assert fix in mend


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("x = 1", "expected a function `recipe`, found none"),
        ("recipe = 1", "expected a function `recipe`, found none"),
        ("def recipe():\n    pass", "returned NoneType, not a bitflax.Recipe"),
        ("def recipe(teacher):\n    pass", "dial 'teacher' has no default"),
    ],
)
def test_a_file_that_is_no_recipe(write, text, problem):
    with pytest.raises(ConfigError) as caught:
        bf.load_recipe(write(text))
    assert caught.value.place == "mine.py"
    assert problem in caught.value.problem


def test_a_binary_file_is_no_recipe(write):
    path = write("")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not a text file"):
        bf.load_recipe(path)


def test_a_bare_name_is_looked_for_here_first(write):
    assert loading.find_recipe("quickstart").resolve() == RECIPES / "quickstart.py"
    mine = write(GOOD, "recipes/quickstart.py")
    assert loading.find_recipe("quickstart") == mine
    assert loading.find_recipe("quickstart.py") == mine
    assert loading.recipe_files()["quickstart"] == mine


def test_a_wheel_carries_the_recipes(write, monkeypatch, tmp_path):
    package = tmp_path / "site-packages" / "bitflax"
    (package / "_recipes").mkdir(parents=True)
    (package / "_recipes" / "mine.py").write_text(GOOD)
    # Another package's folder of that name is not ours.
    (package.parent / "recipes").mkdir()
    (package.parent / "recipes" / "cake.py").write_text(GOOD)
    monkeypatch.setattr(loading, "_PACKAGE", package)
    assert list(loading.recipe_files()) == ["mine"]
    assert bf.load_recipe("mine").name == "mine"


@pytest.mark.parametrize(
    ("name", "problem", "fix"),
    [
        ("quickstar", "no such recipe", "did you mean 'quickstart'?"),
        ("recipes/quickstar.py", "no such recipe", "did you mean 'quickstart'?"),
        ("zzz", "no such recipe", "the recipes are: "),
        (".", "a folder", "quickstart"),
    ],
)
def test_no_such_recipe(write, name, problem, fix):
    with pytest.raises(InputMissing) as caught:
        loading.find_recipe(name)
    assert problem in caught.value.problem
    assert fix in caught.value.fix


def test_summary_does_not_run_the_file(write):
    assert loading.recipe_summary(write(GOOD + "1 / 0\n")) == "Mine: a recipe."
    assert loading.recipe_summary(write("x = 1")) == "(no docstring)"
    assert "cannot be read" in loading.recipe_summary(write("x ="))


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.py")), ids=lambda p: p.stem)
def test_every_recipe_says_what_it_is_and_builds(path):
    file = loading.read_recipe(path)
    assert len(loading.recipe_summary(path)) <= 88
    for word in ("Paper", "Command"):
        assert f"\n{word} " in file.doc
    made = file.build()
    assert made.stages or made.teacher.folder is None
    assert all(hint is not None for hint, _ in file.dials.values())
