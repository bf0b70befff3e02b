"""Stages that teach each other, split and learn activations: a narrow student's way."""

import dataclasses

import jax.numpy as jnp
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.errors import ConfigError
from bitflax.model import leaves
from bitflax.runs import experiment, initialization, stages
from tests.helpers import tinyrun

LOGITS = bf.weighted(logits=(1.0, bf.soft_labels))
STATES = bf.weighted(hidden=(1.0, bf.hidden_mse), scores=(1.0, bf.score_mse))
TERNARY = bf.xtc_2bit("channel")
SHAPE = bf.Shape(
    num_hidden_layers=1, hidden_size=24, num_attention_heads=2, intermediate_size=40
)


@dataclasses.dataclass(frozen=True)
class Own:
    """A learned quantizer by the protocol alone: rounds to a step."""

    def init(self, x):
        return jnp.max(jnp.abs(x)) / 7

    def __call__(self, x, p):
        return x + jnp.round(x / p) * p - x


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("multi")
    named = {"num_labels": 3, "id2label": dict(enumerate(tinyrun.KINDS))}
    tinyrun.write_teacher(folder / "ready", **named)
    tinyrun.write_task(folder)
    return folder


def made(place, *stages):
    return bf.Recipe(
        data=bf.Data(task=str(place / "kinds.tsv"), max_length=16, batch_size=16),
        teacher=bf.Teacher(folder=str(place / "ready")),
        stages=stages,
    )


def stage(name, loss=LOGITS, epochs=1, **fields):
    fields |= {"epochs": epochs, "evals": 1, "optim": bf.Optim(lr=1e-2)}
    return bf.Stage(name=name, loss=loss, **fields)


def run(recipe, out, **options):
    with tinyrun.devices(1):
        return stages.run(recipe, out, **options)


@pytest.mark.slow
def test_a_narrow_student_teaches_its_own_few_bits(place, tmp_path):
    act = ((r".*/ffn/in/input", Own()), (r".*/input", bf.lsq(4)))
    low = dict(teacher="narrow", rules=TERNARY, act=act)
    recipe = made(
        place,
        stage("narrow", init=bf.Init(shape=SHAPE), epochs=2),
        stage("2bit", STATES, **low),
        stage(
            "1bit",
            STATES,
            init=bf.Init(split=TERNARY),
            teacher="narrow",
            rules=bf.binary_rules(TERNARY),
        ),
    )
    rows = run(recipe, tmp_path / "run", until="2bit")
    assert [row.name for row in rows] == ["teacher", "narrow", "2bit"]
    _, params = bf.load_pretrained(tmp_path / "run" / "2-2bit" / "params")
    flat = trees.flatten(params)
    assert "projection/kernel" not in flat
    assert flat["encoder/layer_0/ffn/in/input"].shape == ()
    rows = run(recipe, tmp_path / "run")
    assert [row.bits for row in rows] == [32, 32, 2, 2, 2]
    config, params = bf.load_pretrained(tmp_path / "run" / "3-1bit" / "params")
    flat = trees.flatten(params)
    assert isinstance(flat["encoder/layer_0/ffn/in/kernel"], leaves.Split)
    assert "encoder/layer_0/ffn/in/input" not in flat
    assert bf.load(tmp_path / "run").config == config


def test_a_finished_stage_is_not_started_again(place, tmp_path, monkeypatch):
    recipe = made(place, stage("half", init=bf.Init(width=(1, 32))), stage("more"))
    run(recipe, tmp_path / "run", until="half")

    def measure(*_):
        raise AssertionError("measured again")

    monkeypatch.setattr(initialization, "measured_importance", measure)
    rows = run(recipe, tmp_path / "run")
    assert [row.name for row in rows] == ["teacher", "half", "more"]
    config, params = bf.load_pretrained(tmp_path / "run" / "2-more" / "params")
    assert (config.num_attention_heads, config.head_width) == (1, 16)
    assert params["encoder"]["layer_0"]["ffn"]["in"]["kernel"].shape == (32, 32)


@pytest.mark.parametrize(
    ("later", "words"),
    [
        (dict(init=bf.Init(split=bf.xtc_2bit())), "but two trained it by ternarize"),
        (
            dict(init=bf.Init(split=((r"pooler/kernel", bf.symmetric(8)),))),
            "pooler|ternar|kernel",
        ),
        (dict(init=bf.Init(width=(1, 99))), "at most"),
        (dict(teacher="two"), "an earlier FP32 stage"),
        (dict(init=bf.Init(layers=(5,))), "layer 5"),
    ],
)
def test_a_later_stage_that_cannot_run_is_refused_at_once(
    place, tmp_path, monkeypatch, later, words
):
    def scorer(*_):
        raise AssertionError("a step before the check")

    monkeypatch.setattr(experiment.TaskData, "scorer", scorer)
    with pytest.raises(ConfigError, match=words):
        run(made(place, stage("two", rules=TERNARY), stage("next", **later)), tmp_path)


def test_what_needs_a_task_is_refused_without_one():
    corpus = bf.Corpus(source="none.txt")
    with pytest.raises(ConfigError, match="which heads matter"):
        bf.Recipe(
            data=None,
            stages=(
                bf.Stage(
                    name="g",
                    loss=STATES,
                    corpus=corpus,
                    steps=1,
                    init=bf.Init(width=(1, 2)),
                ),
            ),
        )
