"""Recipes as dataclasses: what they refuse, and how they are written down."""

import dataclasses
import json
import subprocess
import sys

import jax.numpy as jnp
import pytest

import bitflax as bf
from bitflax.errors import ConfigError, UsageError
from bitflax.recipe import schema


def made(**stage) -> bf.Recipe:
    stage = {"name": "onebit", "loss": bf.soft_cross_entropy, **stage}
    return bf.Recipe(stages=(bf.Stage(**stage),))


@pytest.mark.parametrize(
    ("build", "place"),
    [
        (lambda: bf.Data(max_length=3), "Data.max_length"),
        (lambda: bf.Data(batch_size=0), "Data.batch_size"),
        (lambda: bf.Data(limit=0), "Data.limit"),
        (lambda: bf.Data(seed=-1), "Data.seed"),
        (lambda: bf.Recipe(seed=-1), "Recipe.seed"),
        (lambda: bf.Teacher(epochs=-1), "Teacher.epochs"),
        (lambda: bf.Teacher(optim=bf.Optim(lr=0.0)), "Teacher.optim.lr"),
        (lambda: bf.Init(layers=()), "Init.layers"),
        (lambda: bf.Init(layers=(-1, 2)), "Init.layers"),
        (lambda: made(name="teacher"), "Stage 'teacher'.name"),
        (lambda: made(name="1"), "Stage '1'.name"),
        (lambda: made(name="a/b"), "Stage 'a/b'.name"),
        (lambda: made(epochs=0), "Stage 'onebit'.epochs"),
        (lambda: made(batch_size=0), "Stage 'onebit'.batch_size"),
        (lambda: made(evals=0), "Stage 'onebit'.evals"),
        (lambda: made(accumulate=0), "Stage 'onebit'.accumulate"),
        (lambda: made(cache_bytes=-1), "Stage 'onebit'.cache_bytes"),
        (lambda: made(rules=(("(", bf.binarize),)), "Stage 'onebit'.rules"),
        (lambda: made(optim=bf.Optim(warmup=1.5)), "Stage 'onebit'.optim.warmup"),
        (lambda: made(optim=bf.Optim(schedule="x")), "Stage 'onebit'.optim.schedule"),
        (lambda: made(optim=bf.Optim(clip=0.0)), "Stage 'onebit'.optim.clip"),
        (lambda: made(optim=bf.Optim(b1=1.5)), "Stage 'onebit'.optim.b1"),
        (lambda: made(optim=bf.Optim(b2=-1.0)), "Stage 'onebit'.optim.b2"),
        (lambda: made(optim=bf.Optim(frozen=("(",))), "Stage 'onebit'.optim.frozen"),
        (lambda: made(act=(("(", bf.symmetric()),)), "Stage 'onebit'.act"),
        (lambda: bf.Recipe(stages=made().stages * 2), "Recipe.stages"),
        (lambda: bf.Recipe(positions=127), "Recipe.positions"),
        (lambda: bf.Data(augment="edit"), "Data.augment"),
        (lambda: bf.Data(augment="edits.txt"), "Data.augment"),
        (lambda: bf.Recipe(data=None, positions=0), "Recipe.positions"),
    ],
)
def test_a_value_out_of_range_is_refused(build, place):
    with pytest.raises(ConfigError) as caught:
        build()
    assert caught.value.place == place
    assert caught.value.status == 78


WRONG_TYPES = {
    "bf.Data(task=3)": "Data.task",
    "bf.Data(max_length='64')": "Data.max_length",
    "bf.Init(layers=[1, 2])": "Init.layers",
    "bf.Teacher(optim=bf.Optim(lr='5e-5'))": "Teacher.optim.lr",
    "bf.Stage(name=3, loss=abs)": "Stage 3.name",
    "bf.Stage(name='a', loss='mse')": "Stage 'a'.loss",
    "bf.Stage(name='a', loss=abs, keep='first')": "Stage 'a'.keep",
    "bf.Stage(name='a', loss=abs, cache_teacher='disk')": "Stage 'a'.cache_teacher",
    "bf.Stage(name='a', loss=abs, dtype='float16')": "Stage 'a'.dtype",
    "bf.Stage(name='a', loss=abs, act=8)": "Stage 'a'.act",
    "bf.Stage(name='a', loss=abs, rules=(('.*', 1),))": "Stage 'a'.rules",
    "bf.Recipe(rest='int3')": "Recipe.rest",
    "bf.Recipe(rest=(('pooler/.*', 'int3'),))": "Recipe.rest",
    "bf.Recipe(rest=(('pooler/(', 'int8'),))": "Recipe.rest",
    "bf.Recipe(stages=(bf.Data(),))": "Recipe.stages",
}
BUILD = """
import json, sys
import bitflax as bf
from bitflax.errors import ConfigError
places = {}
for text in json.load(sys.stdin):
    try:
        places[text] = f"made {eval(text)}"
    except ConfigError as error:
        places[text] = error.place, error.fix
print(json.dumps(places))
"""


def test_a_wrong_type_is_refused_without_a_type_checker():
    # A process of its own: here jaxtyping's checks would come first.
    found = subprocess.run(
        [sys.executable, "-c", BUILD],
        input=json.dumps(list(WRONG_TYPES)),
        capture_output=True,
        text=True,
        check=True,
    )
    said = json.loads(found.stdout)
    assert {text: place for text, (place, _) in said.items()} == WRONG_TYPES
    fixes = {place: fix for place, fix in said.values()}
    assert "True keeps them in memory" in fixes["Stage 'a'.cache_teacher"]


def test_override_checks_ranges_too():
    with pytest.raises(ConfigError, match="expected at least 4, found 0"):
        bf.override(bf.Recipe(), "data.max_length=0")
    assert bf.override(made(), "stages.onebit.optim.lr=1").stages[0].optim.lr == 1.0


def test_override_reaches_into_a_quantizer_and_takes_it_away():
    of = made(act=bf.symmetric(bits=8))
    assert bf.override(of, "stages.onebit.act.bits=4").stages[0].act.bits == 4
    assert bf.override(of, "stages.onebit.act=none").stages[0].act is None
    with pytest.raises(ConfigError, match="a copy of the recipe"):
        bf.override(of, "stages.onebit.act=8")


@pytest.mark.parametrize("until", [None, "teacher", "onebit"])
def test_until_names_a_stage(until):
    schema.check_plan(made(), until)


def test_one_setting_is_no_list_of_letters():
    with pytest.raises(TypeError, match="expected a list of settings"):
        bf.load_recipe("quickstart", "seed=1")


def test_until_names_the_nearest():
    with pytest.raises(UsageError) as caught:
        schema.check_plan(made(), "onbit")
    assert caught.value.fix == "did you mean 'onebit'?"


@dataclasses.dataclass
class Sign:
    """A quantizer that cannot be hashed: with ``==``, and not frozen."""

    scale: float = 1.0

    def __call__(self, w):
        return bf.straight_through(lambda x: self.scale * jnp.sign(x), w)


def test_a_quantizer_that_cannot_be_hashed_is_refused():
    with pytest.raises(ConfigError, match="unhashable") as error:
        made(rules=((".*/kernel", Sign()),))
    assert "frozen=True" in str(error.value)
