"""Products of integers and scales against those of the values; gradients too."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax.model import leaves, matmul
from bitflax.model.leaves import Lazy, Packed, Split
from bitflax.packed import packing

part = functools.partial

ACTIVATIONS = {
    "token": bf.symmetric(8),
    "token-full": bf.symmetric(8, levels="full"),
    "tensor": bf.symmetric(8, axis=None),
    "4 bits": bf.symmetric(4),
    "asymmetric": bf.asymmetric(8),
    "asymmetric-full": bf.asymmetric(8, levels="full"),
    "asymmetric-tensor": bf.asymmetric(8, axis=None, levels="widened"),
}
WEIGHTS = {
    "tensor": bf.binarize,
    "channel": part(bf.binarize, axis=0),
    "groups": part(bf.binarize, groups=4),
    "zero": part(bf.binarize, zero=0),
    "clip": part(bf.binarize, clip=1.0),
    "ternary": bf.ternarize,
    "ternary-channel": part(bf.ternarize, axis=0, clip=1.5),
    "8 bits": bf.symmetric(8, axis=None),
    "8 bits-channel": bf.symmetric(8, axis=0),
}
INTEGERS = (jnp.float32, jnp.bfloat16, jnp.int8)


def some(shape, seed=0, dtype=jnp.float32):
    return jax.random.normal(jax.random.key(seed), shape, dtype)


def x_and_w():
    x = some((2, 5, 24)).at[0, 0].set(0)  # a row of zeros too
    return x, some((24, 8), 1)


def close(a, b, tol=1e-6):
    scale = np.abs(np.asarray(b, np.float64)).max()
    error = np.abs(np.asarray(a, np.float64) - np.asarray(b, np.float64)).max()
    assert error <= tol * scale


def coded(quantizer, x, dtype) -> matmul.Coded:
    found = matmul.coded(quantizer, x, dtype)
    assert isinstance(found, matmul.Coded)
    return found


# ----------------------------------------------------------------- products of integers


@pytest.mark.parametrize("dtype", INTEGERS)
@pytest.mark.parametrize("weights", WEIGHTS)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_integers_give_the_values_product(act, weights, dtype):
    x, w = x_and_w()
    quantizer, kernel = ACTIVATIONS[act], Lazy(w, WEIGHTS[weights])
    expected = np.asarray(quantizer(x), np.float64) @ np.asarray(
        leaves.dense(kernel), np.float64
    )
    x_coded = coded(quantizer, x, dtype)
    assert x_coded.integers.dtype == dtype
    assert leaves.factored(kernel, dtype) is not None
    close(leaves.matmul(x_coded, kernel), expected)


@pytest.mark.parametrize("act", ["token", "asymmetric"])
@pytest.mark.parametrize("weights", ["tensor", "groups", "ternary-channel"])
def test_the_gradients_are_those_of_the_values(x64, act, weights):
    x, w = (some(a.shape, 3 + i, jnp.float64) for i, a in enumerate(x_and_w()))
    quantizer, weight = ACTIVATIONS[act], WEIGHTS[weights]
    cot = some((2, 5, 8), 9, jnp.float64)

    def integers(x, w):
        return leaves.matmul(matmul.coded(quantizer, x, jnp.float64), Lazy(w, weight))

    def values(x, w):
        return quantizer(x) @ weight(w)

    found, vjp = jax.vjp(integers, x, w)
    expected, vjp_ = jax.vjp(values, x, w)
    close(found, expected, 1e-13)
    for ours, theirs in zip(vjp(cot), vjp_(cot), strict=True):
        close(ours, theirs, 1e-13)


@pytest.mark.parametrize(("dtype", "tol"), [(jnp.float32, 2e-6), (jnp.bfloat16, 8e-3)])
def test_only_the_incoming_gradient_is_rounded(dtype, tol):
    x, w = x_and_w()
    weight = part(bf.binarize, axis=0)

    def loss(x, w, dtype):
        coded = matmul.coded(bf.symmetric(8), x, dtype)
        return jnp.sum(jnp.sin(leaves.matmul(coded, Lazy(w, weight))))

    found = jax.grad(loss, (0, 1))(x, w, dtype)
    expected = jax.grad(
        lambda x, w: jnp.sum(jnp.sin(bf.symmetric(8)(x) @ weight(w))), (0, 1)
    )(x, w)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, tol)


def test_int8_has_the_gradients_of_bfloat16():
    x, w = x_and_w()

    def loss(x, w, dtype):
        coded = matmul.coded(bf.symmetric(8), x, dtype)
        return jnp.sum(leaves.matmul(coded, Lazy(w, bf.ternarize)))

    for ours, theirs in zip(
        jax.grad(loss, (0, 1))(x, w, jnp.int8),
        jax.grad(loss, (0, 1))(x, w, jnp.bfloat16),
        strict=True,
    ):
        np.testing.assert_array_equal(ours, theirs)


def packed_leaves():
    rules = {"matrix": bf.ternarize}
    w = some((24, 8), 1)
    tree = {"matrix": w}
    by_tensor = packing.pack(tree, [("matrix", rules["matrix"])])["matrix"]
    by_column = packing.pack(tree, [("matrix", part(bf.binarize, axis=0))])["matrix"]
    by_row = packing.pack(tree, [("matrix", part(bf.binarize, axis=-1))])["matrix"]
    return by_tensor, by_column, by_row


@pytest.mark.parametrize("dtype", INTEGERS)
def test_packed_kernels_multiply_as_integers_where_their_scales_factor(dtype):
    x_coded = coded(bf.symmetric(8), x_and_w()[0], dtype)
    by_tensor, by_column, by_row = packed_leaves()
    assert {leaf.bits for leaf in (by_tensor, by_column, by_row)} == {1, 2}
    assert leaves.factored(by_row, dtype) is None
    for leaf in (by_tensor, by_column, Split(by_column, by_column), by_row):
        expected = x_coded.value @ leaves.dense(leaf)
        close(jax.jit(leaves.matmul)(x_coded, leaf), expected)


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_all_bits_of_packed_kernels_factor(bits):
    width = {1: 1, 2: 2, 8: 8}[bits]
    rng = np.random.default_rng(bits)
    codes = rng.integers(0, 256, (24, width)).astype(np.uint8)
    if bits == 2:  # there is no fourth field
        codes &= 0b01010101
    leaf = Packed(jnp.asarray(codes), some((1, 4)) ** 2, bits, (24, 8))
    x_coded = coded(bf.symmetric(8), x_and_w()[0], jnp.int8)
    assert leaves.factored(leaf, jnp.int8) is not None
    close(leaves.matmul(x_coded, leaf), x_coded.value @ leaves.dense(leaf))


def test_a_split_gets_the_gradient_of_its_sum_in_both_halves():
    x, w = x_and_w()
    split, cot = Split(w, some((24, 8), 2)), some((2, 5, 8), 3)

    def product(x, split):
        coded = matmul.coded(bf.symmetric(8), x, jnp.float32)
        halves = Split(Lazy(split.a, bf.binarize), Lazy(split.b, bf.binarize))
        return leaves.matmul(coded, halves)

    found, vjp = jax.vjp(product, x, split)
    whole = bf.binarize(split.a) + bf.binarize(split.b)
    close(found, bf.symmetric(8)(x) @ whole)
    by_x, by_split = vjp(cot)
    close(by_x, cot @ whole.T)
    np.testing.assert_array_equal(by_split.a, by_split.b)


class Own:
    """A quantizer whose integers may be any: it does not say that it is centred."""

    bits = 8
    codes = bf.symmetric(8).codes
    __call__ = staticmethod(bf.symmetric(8))


@pytest.mark.parametrize(
    "quantizer",
    [
        lambda x: bf.symmetric(8)(x),  # nobody knows its integers
        Own(),
        bf.symmetric(12),
        bf.symmetric(8, axis=1),
        bf.symmetric(8, groups=2),
    ],
)
def test_activations_that_do_not_factor_multiply_as_values(quantizer):
    x, w = x_and_w()
    coded = matmul.coded(quantizer, x, jnp.bfloat16)
    found = leaves.matmul(coded, Lazy(w, bf.binarize))
    np.testing.assert_array_equal(found, quantizer(x) @ bf.binarize(w))


@pytest.mark.parametrize(
    "kernel", [lambda w: w, lambda w: Lazy(w, part(bf.binarize, axis=-1))]
)
def test_kernels_that_do_not_factor_multiply_as_values(kernel):
    x, w = x_and_w()
    x_coded = coded(bf.symmetric(8), x, jnp.int8)
    found = leaves.matmul(x_coded, kernel(w))
    np.testing.assert_array_equal(found, x_coded.value @ leaves.dense(kernel(w)))


def test_asymmetric_weights_do_not_factor():
    _, w = x_and_w()
    assert leaves.factored(Lazy(w, bf.asymmetric(8, axis=0)), jnp.int8) is None


# ------------------------------------------------------------ products of rounded values


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
def test_rounded_products_round_every_operand(monkeypatch, backend):
    # A CPU copies the transposed operand first; an accelerator multiplies it as it is.
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    a, b, cot = some((3, 2, 4, 6)), some((3, 2, 6, 5), 1), some((3, 2, 4, 5), 2)

    def half(x):
        return np.asarray(x.astype(jnp.bfloat16), np.float64)

    found, vjp = jax.vjp(part(matmul.product, dtype=jnp.bfloat16), a, b)
    assert found.dtype == jnp.float32
    close(found, half(a) @ half(b))
    by_a, by_b = vjp(cot)
    close(by_a, half(cot) @ half(b.mT))
    close(by_b, half(a.mT) @ half(cot))
    assert by_a.dtype == by_b.dtype == jnp.float32


def test_without_a_dtype_nothing_is_rounded():
    a, b = some((4, 6)), some((6, 5), 1)
    for dtype in (None, jnp.float32):
        np.testing.assert_array_equal(matmul.product(a, b, dtype), a @ b)
