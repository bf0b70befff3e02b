"""A recipe in words: bits and bytes from shapes, without a device."""

import dataclasses
import os
import subprocess
import sys

import numpy as np
import pytest

import bitflax as bf
from bitflax.data import examples
from bitflax.errors import ConfigError
from bitflax.packed import sizes as packed_sizes
from bitflax.recipe import describe
from bitflax.runs import stages
from tests.helpers import small

CONFIG = bf.BertConfig(
    vocab_size=50,
    hidden_size=20,
    num_hidden_layers=4,
    num_attention_heads=2,
    intermediate_size=36,
    max_position_embeddings=16,
    num_labels=3,
)


def made(rules=(), layers=(1, 3), **fields) -> bf.Recipe:
    stages = (
        bf.Stage(name="fp32", init=bf.Init(layers=layers), loss=bf.hidden_mse),
        bf.Stage(name="low", loss=bf.soft_cross_entropy, rules=rules),
    )
    return bf.Recipe(stages=stages, **fields)


def test_an_own_quantizer_has_bits_that_only_the_values_say():
    of = made(((r"pooler/kernel", lambda w: w),))
    lines = packed_sizes.parameter_bits(of.stages[1].rules, CONFIG)
    assert next(line.bits for line in lines if line.path == "pooler/kernel") is None
    assert "?" in describe.describe_recipe(of, CONFIG)


def test_student_config_follows_the_stages():
    assert (
        describe.student_config(made(layers=(0, 2, 3)), CONFIG).num_hidden_layers == 3
    )
    again = bf.Stage(name="all", init=bf.Init(source="teacher"), loss=bf.hidden_mse)
    of = bf.Recipe(stages=(*made().stages, again))
    assert describe.student_config(of, CONFIG).num_hidden_layers == 4


def test_a_layer_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match="no layer 4: there are 4"):
        describe.describe_recipe(made(layers=(1, 4)), CONFIG)


def test_a_rule_that_matches_nothing_is_named():
    with pytest.raises(ConfigError, match=r"rule 'encoder/\.\*/kernels' matches no"):
        describe.describe_recipe(made((("encoder/.*/kernels", bf.binarize),)), CONFIG)


def test_a_rest_of_nothing_is_named():
    with pytest.raises(ConfigError, match=r"Recipe.rest: rule 'poler/\.\*' matches no"):
        describe.describe_recipe(
            made(bf.xtc_1bit(), rest=(("poler/.*", "int8"),)), CONFIG
        )


def test_describe_says_how_the_rest_is_packed():
    rest = (("pooler/.*", "float32"), ("classifier/.*", "float16"))
    text = describe.describe_recipe(made(bf.xtc_1bit(), rest=rest))
    assert "the rest as float32 pooler/.*, float16 classifier/.*, int8" in text


def test_describe_counts_the_positions_that_are_kept():
    data = bf.Data(max_length=8)
    sizes = [
        describe.describe_recipe(
            made(bf.xtc_1bit(), data=data, positions=positions), CONFIG
        )
        for positions in (None, 10, 99)
    ]
    table = "embeddings/position/embedding"
    assert f"{table} [10, 20]" in sizes[1]
    assert f"{table} [16, 20]" in sizes[0]
    assert sizes[2] == sizes[0]


def test_describe_draws_every_stage():
    text = describe.describe_recipe(
        made(bf.xtc_1bit(), teacher=bf.Teacher(epochs=1)), CONFIG
    )
    order = ["data ", "teacher ", "fp32 ", "low ", "model.safetensors", "expected:"]
    places = [text.index(word) for word in order]
    assert places == sorted(places)
    assert "its layers 1, 3" in text
    assert "1 epoch," in text
    assert "encoder/layer_*/ffn/in/kernel [20, 36] x 2" in text


def test_describe_says_what_a_stage_computes_with():
    def rows(**fields):
        stage = bf.Stage(name="low", loss=bf.logits_mse, **fields)
        return describe.describe_recipe(bf.Recipe(stages=(stage,)))

    plain, other = (
        rows(),
        rows(dtype="bfloat16", teacher_dtype=None, recompute=True, accumulate=4),
    )
    for words in ("products", "computed again", "added up"):
        assert words not in plain
    assert "products    bfloat16, the teacher's float32" in other
    assert "computed again in the backward pass" in other
    assert "added up over 4 parts" in other


def test_describe_without_a_shape_has_no_bytes():
    text = describe.describe_recipe(made(bf.xtc_1bit()))
    assert "1 bit" in text
    assert "expected" not in text


def test_a_teacher_alone_is_described():
    text = describe.describe_recipe(bf.Recipe(teacher=bf.Teacher(folder="x")), CONFIG)
    assert "x, as it is" in text
    assert "model.safetensors" not in text


@pytest.mark.parametrize(
    ("teacher", "words"),
    [
        (bf.Teacher(pretrained="org/name"), "asks the hub"),
        (bf.Teacher(folder="nowhere"), "no such folder"),
    ],
)
def test_a_teacher_that_is_not_here_has_no_shape(teacher, words):
    config, why = describe.teacher_config(bf.Recipe(teacher=teacher))
    assert config is None
    assert words in why


@pytest.mark.parametrize(
    ("task", "labels"), [("icd10cm", 21), ("glue/mnli", 3), ("glue/stsb", 1)]
)
def test_the_classifier_has_the_tasks_labels(task, labels):
    config, _ = describe.teacher_config(bf.Recipe(data=bf.Data(task=task)))
    assert config is not None
    assert config.num_labels == labels


def test_show_touches_no_device():
    code = """
import jax
from jax._src import xla_bridge
def unavailable(*args, **kwargs):
    raise RuntimeError("a device was touched")
xla_bridge.backends = xla_bridge.get_backend = jax.devices = unavailable
from bitflax import cli
assert cli.main(["show", "quickstart"]) == 0
assert not xla_bridge._backends
try:
    jax.numpy.ones(1)
except RuntimeError:
    print("and the test can fail")
"""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "XLA_"))}
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=env
    )
    assert found.returncode == 0, found.stderr
    assert "expected: 2." in found.stdout
    assert "and the test can fail" in found.stdout


def test_a_student_of_rounded_activations_alone_is_packed_as_the_rest():
    stage = bf.Stage(name="a8", loss=bf.soft_cross_entropy, act=bf.symmetric(bits=8))
    of = bf.Recipe(stages=(stage,))
    packed = bf.pack(small.params(CONFIG), (), of.rest)
    size = sum(row.bytes for row in bf.size_report(packed))
    whole = describe.describe_recipe(of, CONFIG).splitlines()[-2].split()
    # A random scale is a float16 exactly only by chance.
    assert int(whole[1].replace(",", "")) == pytest.approx(size, rel=0.01)


def test_describe_says_steps_and_epochs_where_the_examples_are_counted():
    rows = examples.Examples(
        (np.array(["a"] * 2000, object),), np.zeros(2000, np.int32), np.arange(2000)
    )
    task = examples.Task("t", rows, rows, ("x", "y"), "accuracy")
    text = describe.describe_recipe(made(bf.xtc_1bit()), task=task)
    assert "fine-tuned: 750 steps (11.9 epochs)" in text
    assert "3,000 steps (47.6 epochs)" in text
    assert "as many steps as suit the data" in describe.describe_recipe(made())


@pytest.mark.parametrize(
    ("labels", "regression", "steps", "kinds"),
    [
        (tuple(map(str, range(77))), False, "1,540 steps (6.1 epochs)", "77 classes"),
        ((), False, "1,200 steps (4.8 epochs)", "60 classes"),  # the teacher's
        ((), True, "753 steps (3 epochs)", "real numbers"),
    ],
    ids=["labels", "no labels", "real numbers"],
)
def test_many_classes_train_longer(labels, regression, steps, kinds):
    rows = examples.Examples(
        (np.array(["a"] * 8008, object),), np.zeros(8008, np.int32), np.arange(8008)
    )
    task = examples.Task("t", rows, rows, labels, "accuracy", regression)
    config = dataclasses.replace(CONFIG, num_labels=60)
    text = describe.describe_recipe(made(bf.xtc_1bit()), config, task)
    assert text.count(steps) == 2
    assert "3,000 steps" in text
    assert kinds in text


@pytest.mark.parametrize(
    ("labels", "regression", "rate"),
    [
        (("a", "b"), False, "1e-04"),
        (("a", "b", "c"), False, "2e-04"),
        ((), True, "2e-04"),
    ],
    ids=["two", "three", "real numbers"],
)
def test_a_rate_that_is_left_open_depends_on_the_classes(labels, regression, rate):
    rows = examples.Examples(
        (np.array(["a"] * 8, object),), np.zeros(8, np.int32), np.arange(8)
    )
    task = examples.Task("t", rows, rows, labels, "accuracy", regression)
    teacher = bf.Teacher(optim=bf.Optim(lr=None))
    recipe = bf.Recipe(data=bf.Data(task="t"), teacher=teacher, stages=())
    assert f"lr {float(rate):g} linear" in describe.describe_recipe(recipe, task=task)
    assert "lr that suits the data, linear" in describe.describe_recipe(recipe)
    loss, classes = bf.label_cross_entropy, len(labels)
    assert stages.fine_tuning(teacher, loss, classes).optim.lr == float(rate)
