import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import types


def test_a_mean_is_total_by_count():
    assert float(bf.Mean(6.0, 4.0)) == 1.5
    assert isinstance(float(bf.Mean(jnp.array(6.0), jnp.array(4))), float)


def test_a_mean_of_nothing_is_zero_with_a_gradient_of_zero():
    def value(total, count):
        return bf.Mean(total, count).value

    assert float(value(0.0, 0.0)) == 0
    assert float(value(3.0, 0.0)) == 0
    assert float(jax.grad(value)(3.0, 0.0)) == 0
    assert float(jax.grad(value)(3.0, 4.0)) == 0.25
    assert float(jax.jit(value)(0.0, 0)) == 0


def test_a_mean_of_nan_is_not_hidden():
    assert math.isnan(float(bf.Mean(jnp.nan, 2.0)))


def test_shares_of_a_mean_add_up():
    x = np.arange(10.0)
    shares = [bf.Mean(part.sum(), part.size) for part in np.split(x, [1, 4])]
    whole = jax.tree.map(lambda *parts: sum(parts), *shares)
    assert isinstance(whole, bf.Mean)
    assert float(whole) == x.mean()


def test_the_head_width():
    assert bf.BertConfig(hidden_size=64, num_attention_heads=4).head_width == 16
    wide = bf.BertConfig(hidden_size=64, num_attention_heads=3, head_size=32)
    assert wide.head_width == 32


def test_labels_have_names():
    named = bf.BertConfig(num_labels=3, id2label={0: "no", 2: "yes"})
    assert named.labels == ("no", "LABEL_1", "yes")
    assert bf.BertConfig().labels == ("LABEL_0", "LABEL_1")


def test_only_the_problem_type_makes_a_regression():
    assert not bf.BertConfig(num_labels=1).regression
    assert bf.BertConfig(num_labels=1, problem_type="regression").regression


def test_a_configuration_is_a_value():
    names = {0: "a", 1: "b"}
    one, two = bf.BertConfig(id2label=names), bf.BertConfig(id2label=dict(names))
    assert one == two
    assert hash(one) == hash(two)
    assert one != bf.BertConfig(id2label={0: "b", 1: "a"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.num_labels = 3  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    "name",
    [
        "vocab_size",
        "hidden_size",
        "num_hidden_layers",
        "num_attention_heads",
        "intermediate_size",
        "max_position_embeddings",
        "num_labels",
        "type_vocab_size",
    ],
)
def test_sizes_are_positive(name):
    for value in (0, -1, True, 2.0, np.float64(3), None):
        with pytest.raises(ValueError, match=f"{name} must be at least 1"):
            types.check_count(name, value)
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        bf.BertConfig(**{name: 0})
    types.check_count(name, np.int64(1))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": 64, "num_attention_heads": 5}, "64 is not a multiple of"),
        ({"hidden_act": "silu"}, "gelu or relu, not 'silu'"),
        ({"pad_token_id": 30522}, "pad_token_id lies outside"),
        ({"pad_token_id": -1}, "pad_token_id must be at least 0 and whole, not -1"),
        ({"pad_token_id": 1.5}, "pad_token_id must be at least 0 and whole, not 1.5"),
        ({"pad_token_id": True}, "pad_token_id must be at least 0 and whole, not True"),
        ({"head_size": 1.5}, "head_size must be at least 1 and whole, not 1.5"),
        ({"layer_norm_eps": True}, "layer_norm_eps must be a number, not True"),
        ({"hidden_dropout_prob": "0.1"}, "dropout_prob must be a number, not '0.1'"),
        ({"classifier_dropout": np.nan}, "dropout must be a number, not nan"),
        ({"classifier_dropout": 1.0}, "dropout must lie between 0 and 1"),
        ({"layer_norm_eps": 10**400}, "layer_norm_eps must be a number, not 1000"),
        ({"id2label": {0: "a", 1: 5}}, "gives label 1 no name, but 5"),
        ({"id2label": {0: None}}, "gives label 0 no name, but None"),
        ({"problem_type": "multi_label_classification"}, "is not supported"),
    ],
)
@pytest.mark.usefixtures("types_unchecked")
def test_shapes_that_no_bert_has_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        bf.BertConfig(**changes)


@pytest.mark.usefixtures("types_unchecked")
def test_numbers_of_numpy_become_those_that_a_file_holds():
    sizes = {"vocab_size": 9, "pad_token_id": 3, "layer_norm_eps": 0.5}
    made = bf.BertConfig(**{name: np.asarray(x)[()] for name, x in sizes.items()})
    assert made == bf.BertConfig(**sizes)
    assert json.loads(json.dumps(dataclasses.asdict(made)))["pad_token_id"] == 3


def test_settings_of_the_optimizer_are_keywords_only():
    with pytest.raises(TypeError):
        bf.Optim(1e-4)  # pyright: ignore[reportCallIssue]
    assert bf.Optim(lr=1e-4) == bf.Optim(lr=1e-4, eps=1e-6)


def test_outputs_and_states_are_trees():
    out = bf.Outputs(jnp.ones(2), (jnp.ones(3),), ())
    assert len(jax.tree.leaves(out)) == 2
    state = bf.TrainState(jnp.zeros((), jnp.int32), {"w": jnp.ones(1)}, (), jnp.ones(2))
    assert isinstance(jax.tree.map(lambda x: x, state), bf.TrainState)
