"""What training computes with is what the packed file holds, to the last bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import model, trees
from bitflax.packed import packing, rounding
from tests.helpers import small

CONFIG = small.config(2)
ONE, TWO = bf.xtc_1bit(per="channel"), bf.xtc_2bit()


def latent(rules=(), spread=1.0):
    """Trained weights have no zeros, and columns that are larger than others."""
    rng = np.random.default_rng(1)
    drawn = trees.map_paths(
        lambda path, x: jnp.asarray(
            rng.normal(0, spread, x.shape) * rng.uniform(0.1, 9, x.shape[-1:]), x.dtype
        ),
        small.params(CONFIG),
    )
    return bf.split(drawn, TWO) if rules == "halves" else drawn


@functools.partial(jax.jit, static_argnums=(1, 2))
def at_once(params, rules, rest):
    given = rounding.round_rest(params, rules, rest)
    return given, rounding.stored(params, rules, rest)


def both(params, rules, rest="int8"):
    """Return what is rounded before packing, and the values, dense.

    Leaf by leaf they are those of one program, to the last bit.
    """
    found = (
        rounding.round_rest_by_leaf(params, rules, rest),
        rounding.stored_by_leaf(params, rules, rest),
    )
    jax.tree.map(np.testing.assert_array_equal, found, at_once(params, rules, rest))
    return found[0], trees.map_paths(lambda _, leaf: model.dense(leaf), found[1])


def assert_same(packed, values, rtol=0.0):
    """Compare on the host: no shape is compiled for."""
    packed, values = trees.flatten(packed), trees.flatten(values)
    assert packed.keys() == values.keys()
    for path, leaf in values.items():
        held = packing.on_host(packed[path])
        np.testing.assert_allclose(held, leaf, rtol=rtol, atol=0, err_msg=path)


@pytest.mark.parametrize(
    "rest", ["int8", "int4", "float16", "float32", (("pooler/.*", "float16"),)], ids=str
)
def test_the_packed_file_holds_what_was_trained_with(rest):
    rounded, stored = both(latent(), ONE, rest)
    assert_same(packing.pack(rounded, ONE, rest), stored)


@pytest.mark.parametrize("spread", [1e-6, 1e5])
def test_what_float16_does_not_hold_stays_as_it_is(spread):
    rounded, stored = both(latent(spread=spread), ONE)
    # Of a whole float32 scale, 127 times it over 127 is not always itself.
    assert_same(packing.pack(rounded, ONE), stored, rtol=2e-7)


def test_halves_are_rounded_each_by_itself():
    rules = bf.binary_rules(TWO)
    rounded, stored = both(latent("halves"), rules)
    assert_same(packing.pack(rounded, rules), stored)


def test_a_table_that_is_rounded_as_it_is_used_gives_the_same_rows():
    params = latent()
    batch = small.batch(2, 0)
    del batch["weight"]
    apply = bf.bert(CONFIG, bf.symmetric(bits=8))
    whole, lazy = (rounding.stored(params, ONE, lazy=way) for way in (False, True))
    a, b = (apply(values, batch).hidden[0] for values in (whole, lazy))
    np.testing.assert_array_equal(a, b)


def test_gradients_pass_as_if_nothing_had_been_rounded():
    params = latent()

    def total(params):
        values = trees.flatten(rounding.stored(params, ONE))
        return sum(jnp.sum(jnp.asarray(leaf)) for leaf in values.values())

    for path, gradient in trees.flatten(jax.grad(total)(params)).items():
        np.testing.assert_array_equal(gradient, np.ones_like(gradient), err_msg=path)


def test_projection_and_an_unquantised_word_table_are_left():
    tree = {
        "projection": {"bias": jnp.array([0.1])},
        "embeddings": {"word": {"embedding": jnp.array([[0.1], [0.2], [0.3]])}},
        "pooler": {"bias": jnp.array([0.1])},
    }
    found = trees.flatten(rounding.round_rest(tree, ()))
    assert found["projection/bias"][0] == np.float32(0.1)
    assert found["pooler/bias"][0] == np.float16(0.1)
    word = found["embeddings/word/embedding"]
    np.testing.assert_array_equal(word, tree["embeddings"]["word"]["embedding"])
