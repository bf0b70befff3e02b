"""Activation quantizers in ONNX Runtime against JAX, on the same arrays."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest

from bitflax.errors import ConfigError
from bitflax.inference import onnx_activations
from bitflax.inference.onnx_graph import Graph
from bitflax.quantization.learned_activations import clipped, elastic, lsq
from bitflax.quantization.quantizers import Grid, asymmetric, by_row, symmetric
from tests.helpers import onnxrun

SYMMETRIC = {
    f"symmetric{bits}-{levels}-{axis}": symmetric(bits, axis, levels)
    for bits in (2, 4, 8)
    for levels in ("restricted", "full")
    for axis in (-1, None)
}
ASYMMETRIC = {
    f"asymmetric{bits}-{levels}-{axis}": asymmetric(bits, axis, levels)
    for bits in (1, 8)
    for levels in ("restricted", "full", "widened")
    for axis in (-1, None)
}
LEARNED = {
    "clipped-symmetric": clipped(symmetric(8, axis=None)),
    "clipped-asymmetric": clipped(asymmetric(4, axis=-1, levels="widened")),
    "lsq4": lsq(4),
    "lsq8": lsq(8),
    "lsq4-unsigned": lsq(4, signed=False),
    "lsq8-unsigned": lsq(8, signed=False),
    "elastic1": elastic(),
    "elastic1-unsigned": elastic(signed=False),
    "elastic4": elastic(4),
    "elastic8-unsigned": elastic(8, signed=False),
}
CODED = SYMMETRIC | ASYMMETRIC | LEARNED
FLOATS = {
    "symmetric12": symmetric(12),
    "asymmetric12": asymmetric(12),
    "groups": symmetric(8, axis=None, groups=4),
    "asymmetric-groups": asymmetric(8, axis=None, groups=2),
    "clipped-groups": clipped(symmetric(8, axis=None, groups=4)),
    "batch": symmetric(8, axis=0),
    "rows and columns": symmetric(8, axis=(-2, -1)),
    "middle": asymmetric(8, axis=1),
    "lsq12": lsq(12),
}
ALL = CODED | FLOATS


@functools.cache
def activation(rank=3):
    """Normal values; a row of zeros, one of equal values and one of tiny ones."""
    x = np.random.default_rng(0).normal(0, 2, (2, 3, 7, 16)).astype(np.float32)
    x = x.reshape(*(2, 3, 7, 16)[4 - rank :]) if rank == 4 else x.reshape(6, 7, 16)
    x = x if rank > 2 else x.reshape(42, 16)
    x[..., 0, :] = 0
    x.reshape(-1, 16)[1] = 1.5
    x.reshape(-1, 16)[2] *= 1e-7
    return x


def parameter(quantizer):
    if isinstance(quantizer, clipped):
        return np.array([-1.9, 2.1], np.float32)
    return np.float32(0.31) if hasattr(quantizer, "init") else None


def expected(quantizer, x):
    p = parameter(quantizer)
    x = jnp.asarray(x)
    return np.asarray(quantizer(x) if p is None else quantizer(x, jnp.asarray(p)))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("rank", [3, 4])
def test_values_are_those_of_jax(name, rank):
    quantizer, x = ALL[name], activation(rank)
    graph = Graph()
    y = onnx_activations.values(
        graph,
        "site",
        quantizer,
        graph.input("x", np.float32, list("abcd")[:rank]),
        parameter(quantizer),
        rank=rank,
    )
    found = onnxrun.run(graph, y, list("abcd")[:rank], x=x)
    # One rounding of a product and one of a sum, in float32.
    np.testing.assert_allclose(found, expected(quantizer, x), rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("name", CODED)
def test_integers_stand_for_the_values_of_jax(name):
    quantizer, x = CODED[name], activation(2)
    assert onnx_activations.has_codes(quantizer)
    graph = Graph()
    made = onnx_activations.codes(
        graph,
        "site",
        quantizer,
        graph.input("x", np.float32, ["r", "n"]),
        parameter(quantizer),
    )
    y = graph.op("Sub", graph.op("Cast", made.integers, to=1), np.float32(made.origin))
    scale = made.scale
    if made.by_row:
        scale = graph.op("Unsqueeze", scale, np.array([1]))
    y = graph.op("Mul", y, scale)
    if made.zero is not None:
        y = graph.op("Add", y, made.zero)
    found = onnxrun.run(graph, y, ["r", "n"], x=x)
    np.testing.assert_allclose(found, expected(quantizer, x), rtol=3e-7, atol=1e-6)


@pytest.mark.parametrize("name", FLOATS)
def test_what_has_no_integers_of_eight_bits(name):
    assert not onnx_activations.has_codes(FLOATS[name])


class Fifths:
    """An own quantizer that says its levels: -5 to 5 of the largest value's fifths."""

    bits, grid = 4, Grid(-5, 5, True, 5)

    def shares(self):
        return -1, None

    def __call__(self, x):
        scale = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 5
        return jnp.round(x / jnp.maximum(scale, 1e-30)) * scale


def test_an_own_quantizer_that_says_its_levels_is_built_from_them():
    graph, x = Graph(), activation(2)
    name = graph.input("x", np.float32, list("ab"))
    y = onnx_activations.values(graph, "site", Fifths(), name, rank=2)
    found = onnxrun.run(graph, y, list("ab"), x=x)
    np.testing.assert_allclose(found, Fifths()(x), rtol=3e-7, atol=1e-6)


def test_an_own_quantizer_is_refused():
    graph = Graph()
    x = graph.input("x", np.float32, ["r", "n"])
    with pytest.raises(ConfigError, match=r"ffn/in/input: .*cannot express"):
        onnx_activations.values(graph, "ffn/in/input", jnp.round, x, rank=2)
    assert not onnx_activations.has_codes(jnp.round)


def test_what_depends_on_its_own_token_alone():
    alone = {name for name in ALL if by_row(ALL[name])}
    wide = {name for name in ALL if name.endswith("None")} | {
        "clipped-symmetric",
        "lsq4-unsigned",
        "lsq8-unsigned",
        *FLOATS,
    } - {"symmetric12", "asymmetric12", "lsq12"}
    assert alone == set(ALL) - wide
    for name, quantizer in ALL.items():
        x = activation(3)
        changed = x.copy()
        changed[1:] *= 3
        same = np.array_equal(
            expected(quantizer, x)[0], expected(quantizer, changed)[0]
        )
        assert same or name not in alone, name
