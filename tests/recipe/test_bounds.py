"""Settings that no run can use, refused where they are made."""

import functools
import inspect

import jax.numpy as jnp
import pytest

import bitflax as bf
from bitflax.errors import ConfigError
from bitflax.recipe import check_plan

LOSS = bf.weighted(logits=(1.0, bf.soft_cross_entropy))
STAGE = bf.Stage(name="a", loss=LOSS, batch_size=8, accumulate=9)


@pytest.mark.parametrize(
    ("make", "place"),
    [
        (lambda: bf.Data(seed=2**63), "Data.seed"),
        (lambda: bf.Recipe(seed=2**70), "Recipe.seed"),
        (lambda: bf.Data(batch_size=10**12), "Data.batch_size"),
        (lambda: bf.Stage(name="a", loss=LOSS, batch_size=10**12), "batch_size"),
        (lambda: bf.Teacher(optim=bf.Optim(lr=float("inf"))), "Teacher.optim.lr"),
        (lambda: bf.Teacher(optim=bf.Optim(lr=1e18)), "Teacher.optim.lr"),
        (lambda: bf.Teacher(optim=bf.Optim(eps=1e18)), "Teacher.optim.eps"),
        (lambda: bf.Teacher(optim=bf.Optim(lr=float("nan"))), "Teacher.optim.lr"),
        (lambda: bf.Teacher(optim=bf.Optim(clip=float("nan"))), "Teacher.optim.clip"),
        (lambda: bf.Teacher(optim=bf.Optim(lr=1e-300)), "Teacher.optim.lr"),
        (lambda: bf.Teacher(optim=bf.Optim(clip=1e-300)), "Teacher.optim.clip"),
        (lambda: bf.Teacher(steps=2**31), "Teacher.steps"),
        (lambda: bf.Teacher(epochs=10**15), "Teacher.epochs"),
        (lambda: bf.Recipe(stages=(STAGE,)), "Stage 'a'.accumulate"),
        (lambda: bf.Init(layers=(0, 0)), "Init.layers"),
        (lambda: bf.Stage(name="a" * 300, loss=LOSS), "name"),
        (lambda: bf.Stage(name="a", loss=LOSS, patience=0), "patience"),
        (lambda: bf.Teacher(patience=0), "Teacher.patience"),
        (lambda: bf.Teacher(steps=0), "Teacher.steps"),
        (lambda: bf.Teacher(epochs=-1), "Teacher.epochs"),
        (lambda: bf.Teacher(smoothing=1.0), "Teacher.smoothing"),
        (lambda: bf.Teacher(optim=bf.Optim(lr=None, b1=1.0)), "Teacher.optim.b1"),
        (
            lambda: bf.Stage(name="a", loss=LOSS, optim=bf.Optim(lr=None)),
            "Stage 'a'.optim.lr",
        ),
    ],
)
def test_a_setting_beyond_its_bounds_is_refused(make, place):
    with pytest.raises(ConfigError) as caught:
        make()
    assert place in caught.value.place
    assert caught.value.fix


def test_a_name_that_is_empty_is_not_the_packaged_teachers():
    assert (bf.Teacher(pretrained="").model, bf.Teacher(folder="").model) == ("", "")
    assert bf.Teacher().model == "minilm"


def test_a_recipes_name_is_no_recipe():
    with pytest.raises(TypeError, match=r"bitflax\.load_recipe, found"):
        inspect.unwrap(check_plan)("quickstart")


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_a_temperature_is_above_zero(temperature):
    out = bf.Outputs(jnp.zeros((1, 2)), (), ())
    with pytest.raises(ValueError, match="temperature must be above 0"):
        bf.soft_cross_entropy(out, out, {}, temperature=temperature)


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_a_weight_is_no_debt(weight):
    with pytest.raises(ValueError, match="logits must weigh 0 or more"):
        bf.weighted(logits=(weight, bf.logits_mse))


def test_a_misspelt_option_of_a_loss_names_the_nearest():
    odd = functools.partial(bf.soft_cross_entropy, temprature=2.0)
    with pytest.raises(ValueError, match="did you mean 'temperature'"):
        bf.weighted(logits=(1.0, odd))


@pytest.mark.parametrize(
    ("first", "again"),
    [
        ("seed=1", "seed=2"),
        ("fp32_epochs=1", " fp32_epochs=2"),
        ("stages.fp32.optim.lr=1e-3", "stages.0.optim.lr=1e-4"),
    ],
)
def test_a_setting_given_twice_is_refused(first, again):
    with pytest.raises(ConfigError, match="is set twice") as caught:
        bf.load_recipe("quickstart", [first, again])
    assert caught.value.place == f"--set {again}"


@pytest.mark.parametrize(
    ("settings", "place"),
    [
        (["teacher.patience=1"], "teacher.patience"),  # one evaluation
        (["teacher.patience=2", "teacher.evals=3"], "teacher.patience"),
        (["stages.onebit.patience=3", "stages.onebit.evals=3"], "stages.onebit"),
        # Every second of ten steps.
        ([f"stages.fp32.{x}" for x in ("patience=4", "evals=8", "steps=10")], "fp32"),
    ],
)
def test_patience_that_can_never_end_a_training_early_is_refused(
    settings, place, tmp_path
):
    made = bf.load_recipe("quickstart", settings)
    with pytest.raises(ConfigError, match="can never end it early") as caught:
        bf.run(made, tmp_path / "run")
    assert place in caught.value.place
    assert not (tmp_path / "run").exists()


def test_patience_with_evaluations_to_spare_is_taken():
    more = ["teacher.patience=2", "teacher.evals=4", "stages.onebit.patience=1"]
    check_plan(bf.load_recipe("quickstart", more))  # of three evaluations


@pytest.mark.parametrize(
    "setting",
    [
        *({"epochs": 3}, {"steps": 9}, {"evals": 2}, {"keep": "best"}),
        *({"patience": 1}, {"smoothing": 0.1}, {"balanced": True}),
    ],
)
def test_a_ready_teacher_takes_no_settings_of_its_fine_tuning(setting):
    (name,) = setting
    with pytest.raises(ConfigError, match="a ready folder is not fine-tuned") as caught:
        bf.Teacher(folder="ready", **setting)
    assert caught.value.place == f"Teacher.{name}"
    with pytest.raises(ConfigError, match="not fine-tuned, found 3"):
        bf.load_recipe("xtc", ["teacher.folder=ready"])


def test_a_ready_teacher_has_no_epochs_and_may_name_where_it_comes_from():
    made = bf.Teacher(folder="ready", epochs=0, pretrained="x", optim=bf.Optim(lr=1.0))
    assert (made.epochs, made.model) == (0, "ready")
    assert bf.Teacher(folder="ready", epochs=None).epochs == 0
    sets = ["teacher.epochs=None", "teacher.folder=ready"]
    assert bf.load_recipe("xtc", sets).teacher.epochs == 0
