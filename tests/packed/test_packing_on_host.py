from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitflax.inference import engines
from bitflax.model import leaves
from bitflax.model.leaves import Packed, Split
from bitflax.packed import packing


def made(bits, cols, scales):
    """A random packed matrix with padding."""
    rows, rng = 6, np.random.default_rng(bits * cols)
    top = {1: 2, 2: 3, 8: 256}[bits]
    fields = rng.integers(0, top, (rows, cols)).astype(np.uint8)
    short = -cols % (8 // bits)
    cut = np.pad(fields, ((0, 0), (0, short))).reshape(rows, -1, 8 // bits)
    codes = np.bitwise_or.reduce(cut << np.arange(0, 8, bits, dtype=np.uint8), axis=-1)
    scale = rng.random(scales).astype(np.float32)
    return Packed(jnp.asarray(codes), jnp.asarray(scale), bits, (rows, cols))


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("scales", [(1, 1), (6, 1), (1, 15), (6, 3)])
def test_the_host_gives_the_numbers_of_jit(bits, scales):
    leaf = made(bits, 15, scales)
    expected = jax.jit(leaves.dense)(leaf)
    found = packing.on_host(leaf)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("integers", [jnp.bfloat16, jnp.int8])
@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("scales", [(1, 1), (1, 15), (1, 3)])
def test_integers_stay_apart_from_scales_of_columns(bits, scales, integers):
    leaf = made(bits, 15, scales)
    found: Any = packing.on_host(leaf, integers)
    assert found.integers.dtype == integers
    np.testing.assert_array_equal(leaves.dense(found), leaves.dense(leaf))
    (expected,) = leaves.factored(leaf, integers) or (None,)
    assert expected is not None
    np.testing.assert_array_equal(found.integers, expected.integers)
    np.testing.assert_array_equal(found.scale, expected.scale)


def test_scales_of_rows_do_not_stay_apart():
    leaf = made(1, 8, (6, 1))
    np.testing.assert_array_equal(packing.on_host(leaf, jnp.int8), leaves.dense(leaf))


def test_integers_here_are_of_a_dtype_that_holds_them():
    assert engines.integers_here() in (None, jnp.bfloat16, jnp.int8)


@pytest.mark.parametrize("integers", [None, jnp.bfloat16])
@pytest.mark.parametrize("scales", [(1, 1), (6, 1)])
def test_halves_are_added(scales, integers):
    leaf = Split(made(1, 8, (1, 1)), made(1, 8, scales))
    found = packing.on_host(leaf, integers)
    np.testing.assert_array_equal(found, leaves.dense(leaf))


def test_an_array_is_itself():
    array = jnp.ones(3)
    assert packing.on_host(array) is array
