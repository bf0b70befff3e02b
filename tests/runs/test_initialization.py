"""What a stage begins with: layers, shapes, widths, halves, learned activations."""

import dataclasses

import jax
import numpy as np
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.distillation import student
from bitflax.errors import ConfigError
from bitflax.model import leaves
from bitflax.runs import experiment, initialization
from bitflax.types import Model
from tests.helpers import tinyrun

KEY = jax.random.key(0)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    folder = tinyrun.write_teacher(tmp_path_factory.mktemp("start") / "teacher")
    return Model(*bf.load_pretrained(folder))


def last_ones(whole):
    """Say that the last head and the last neurons matter most."""
    config = whole.config
    shape = (config.num_hidden_layers, config.num_attention_heads)
    heads = np.tile(np.arange(shape[1], dtype=np.float32), (shape[0], 1))
    neurons = np.tile(
        np.arange(config.intermediate_size, dtype=np.float32), (shape[0], 1)
    )
    return student.Importance(heads, neurons)


def start(init, source):
    """Return the student; of shapes alone it is the same."""
    made = initialization.initial_student(init, source, KEY, last_ones)
    shapes = source._replace(params=shapes_of(source.params))
    config, found = initialization.initial_student(init, shapes, KEY)
    assert (config, found) == (made.config, shapes_of(made.params))
    return made


def shapes_of(params):
    return jax.eval_shape(lambda tree: tree, params)


def test_layers_of_the_model_before(teacher):
    shallow = start(bf.Init(layers=(1,)), teacher)
    assert shallow.config.num_hidden_layers == 1
    kernel = shallow.params["encoder"]["layer_0"]["ffn"]["in"]["kernel"]
    assert kernel is teacher.params["encoder"]["layer_1"]["ffn"]["in"]["kernel"]
    with pytest.raises(ConfigError, match=r"here.layers: no layer 1: there are 1"):
        bf.Init(layers=(0, 1)).config(shallow.config, "here")


def test_another_shape_is_drawn(teacher):
    shape = bf.Shape(
        num_hidden_layers=1,
        hidden_size=24,
        num_attention_heads=3,
        intermediate_size=40,
    )
    found = start(bf.Init(shape=shape), teacher)
    assert found.config.vocab_size == teacher.config.vocab_size
    assert found.params["encoder"]["layer_0"]["ffn"]["in"]["kernel"].shape == (24, 40)


def test_a_projection_is_there_just_where_who_teaches_is_wider(teacher):
    narrow = dataclasses.replace(teacher.config, hidden_size=24, num_attention_heads=2)
    wider = dataclasses.replace(teacher.config, hidden_size=48)
    bare = {"pooler": teacher.params["pooler"]}
    assert initialization.with_projection(bare, narrow, narrow, KEY) == bare
    added = initialization.with_projection(bare, narrow, teacher.config, KEY)
    assert added["projection"]["kernel"].shape == (24, 32)
    assert initialization.with_projection(added, narrow, teacher.config, KEY) is added
    again = initialization.with_projection(added, narrow, wider, KEY)
    assert again["projection"]["kernel"].shape == (24, 48)
    assert initialization.with_projection(added, narrow, narrow, KEY) == bare


def test_half_the_width_keeps_what_matters(teacher):
    half = start(bf.Init(width=(1, 32)), teacher)
    assert (half.config.num_attention_heads, half.config.head_width) == (1, 16)
    query = ("encoder", "layer_0", "attention", "query", "kernel")
    mine, its = half.params, teacher.params
    for name in query:
        mine, its = mine[name], its[name]
    np.testing.assert_array_equal(mine, its[:, 16:])


def test_a_split_computes_what_the_ternary_did(teacher):
    rules = bf.xtc_2bit()
    halves = start(bf.Init(split=rules), teacher)
    flat = trees.flatten(halves.params)
    whole = trees.flatten(bf.quantize(teacher.params, rules))
    binary = trees.flatten(bf.quantize(halves.params, bf.xtc_1bit()))
    for path in trees.match(rules, whole):
        assert isinstance(flat[path], leaves.Split)
        np.testing.assert_allclose(leaves.dense(binary[path]), whole[path], atol=1e-6)
    with pytest.raises(ValueError, match="the student is split already"):
        start(bf.Init(split=rules), halves)
    with pytest.raises(ValueError, match="before matrices are split"):
        start(bf.Init(width=(1, 32)), halves)


def test_a_folder_gets_the_teachers_head(teacher, tmp_path):
    folder = tinyrun.write_teacher(tmp_path / "other", layers=1)
    labelled = teacher.config
    found = experiment.loaded_model(str(folder), teacher.config, KEY)
    assert found.config.num_hidden_layers == 1
    assert found.config.num_labels == labelled.num_labels


def test_learned_activations_are_made_kept_and_dropped(teacher):
    batch = {
        "input_ids": np.array([[2, 6, 14, 3]], np.int32),
        "attention_mask": np.ones((1, 4), np.int32),
        "token_type_ids": np.zeros((1, 4), np.int32),
    }
    loss = bf.weighted(logits=(1.0, bf.soft_labels))
    lsq = bf.Stage(name="a4", loss=loss, act=bf.lsq_act(4), rules=bf.binarybert_1bit())
    pact = bf.Stage(name="a8", loss=loss, act=bf.binarybert_act(8))
    plain = bf.Stage(name="fp32", loss=loss)
    site = "encoder/layer_0/ffn/in/input"

    def fit(params, stage, before):
        return initialization.fit_act(
            Model(teacher.config, params), stage, before, batch
        )

    first = fit(teacher.params, lsq, None)
    assert trees.flatten(first)[site].shape == ()
    assert fit(first, lsq, lsq.act) is first
    other = trees.flatten(fit(first, pact, lsq.act))
    np.testing.assert_array_equal(other[site], [-2.5, 2.5])
    bare = trees.flatten(fit(first, plain, lsq.act))
    assert bare.keys() == trees.flatten(teacher.params).keys()
    quantised = bf.quantize(teacher.params, lsq.rules)
    by_hand = bf.init_act(quantised, lsq.act, batch, teacher.config)
    np.testing.assert_allclose(
        trees.flatten(first)[site], trees.flatten(by_hand)[site], rtol=1e-6
    )
