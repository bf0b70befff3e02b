"""Weights in ONNX Runtime against ``bitflax.model.leaves``, exactly."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax.inference import onnx_matrices
from bitflax.inference.onnx_graph import Graph
from bitflax.model import leaves
from bitflax.model.leaves import Packed, Split
from bitflax.packed import packing
from tests.helpers import onnxrun


def matrix(seed=0, shape=(20, 24)):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def packed(quantizer, seed=0, **options):
    values = np.asarray(quantizer(matrix(seed), **options))
    found = packing.read_off_codes(values)
    assert found is not None
    return found


LEAVES = {
    "dense": matrix(),
    "1 bit": packed(bf.binarize),
    "1 bit, columns": packed(bf.binarize, axis=0),
    "1 bit, rows": packed(bf.binarize, axis=-1),
    "1 bit, groups": packed(bf.binarize, groups=4),
    "2 bits": packed(bf.ternarize),
    "2 bits, rows": packed(bf.ternarize, axis=-1),
    "8 bits": packing.eight_bits(np.asarray(matrix())),
    "split": Split(packed(bf.binarize), packed(bf.binarize, 1, axis=0)),
    "odd width": packing.read_off_codes(np.asarray(bf.binarize(matrix(shape=(9, 13))))),
    "odd width, 2 bits": packing.read_off_codes(
        np.asarray(bf.ternarize(matrix(shape=(9, 13))))
    ),
}
CODED = {
    "1 bit": 1,
    "1 bit, columns": 1,
    "1 bit, groups": 1,
    "2 bits": 1,
    "split": 2,
    "odd width": 1,
    "odd width, 2 bits": 1,
}


@pytest.mark.parametrize("name", LEAVES)
def test_the_array_is_that_of_leaves(name):
    graph, expected = Graph(), np.asarray(leaves.dense(LEAVES[name]))
    y = graph.op("Identity", onnx_matrices.dense(graph, LEAVES[name]))
    np.testing.assert_array_equal(onnxrun.run(graph, y, list("nm")), expected)


@pytest.mark.parametrize("name", LEAVES)
def test_looked_up_rows_are_those_of_leaves(name):
    graph, ids = Graph(), np.array([3, 0, 8, 3])
    y = onnx_matrices.rows(graph, LEAVES[name], graph.input("ids", np.int64, ["n"]))
    found = onnxrun.run(graph, y, list("nm"), ids=ids)
    expected = leaves.lookup(LEAVES[name], jnp.asarray(ids))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", LEAVES)
def test_parts_of_few_bits_add_up_to_the_matrix(name):
    parts = onnx_matrices.integers(LEAVES[name])
    assert len(parts) == CODED.get(name, 0)
    if parts:
        total = sum(leaves.dense(part) for part in parts)
        np.testing.assert_array_equal(total, leaves.dense(LEAVES[name]))


def test_dense_values_of_few_bits_are_read():
    table = functools.partial(bf.binarize, axis=-1)(matrix())
    read = onnx_matrices.read(table)
    assert isinstance(read, Packed)
    assert read.bits == 1
    assert onnx_matrices.read(matrix()).dtype == jnp.float32
    assert onnx_matrices.read(np.zeros(3)).shape == (3,)
    halves = Split(bf.binarize(matrix()), bf.binarize(matrix(1)))
    assert len(onnx_matrices.integers(halves)) == 2
