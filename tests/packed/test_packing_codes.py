import functools

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitflax.errors import ConfigError, Diverged
from bitflax.model import leaves
from bitflax.packed import packing
from bitflax.quantization import quantizers

RNG = np.random.default_rng(0)
W = RNG.normal(size=(10, 24)).astype(np.float32)


def decode(packed):
    """What a packed matrix stands for, in plain NumPy: no shape is compiled for."""
    rows, cols = packed.shape
    bits = np.unpackbits(np.asarray(packed.codes), axis=1, bitorder="little")
    if packed.bits == 8:
        values = np.asarray(packed.codes).view(np.int8).astype(np.float32)
    else:
        fields = bits[:, : cols * packed.bits].reshape(rows, cols, packed.bits)
        fields = fields @ (1 << np.arange(packed.bits))
        values = 2.0 * fields - 1 if packed.bits == 1 else fields - 1.0
    scale = np.asarray(packed.scale)
    return (values * np.repeat(scale, cols // scale.shape[1], axis=1)).astype(
        np.float32
    )


QUANTIZERS = {
    "tensor": ({}, (1, 1)),
    "channel": ({"axis": 0}, (1, 24)),
    "row": ({"axis": -1}, (10, 1)),
    "runs": ({"groups": 4}, (1, 4)),
}


@pytest.mark.parametrize("how", QUANTIZERS)
@pytest.mark.parametrize(
    ("quantizer", "bits"), [(quantizers.binarize, 1), (quantizers.ternarize, 2)]
)
def test_read_off_finds_bits_and_groups(how, quantizer, bits):
    options, groups = QUANTIZERS[how]
    values = np.asarray(quantizer(jnp.asarray(W), **options))
    packed = packing.read_off_codes(values)
    assert packed.bits == bits
    assert packed.scale.shape == groups
    assert packed.shape == W.shape
    np.testing.assert_array_equal(leaves.dense(packed), values)


def test_read_off_runs_of_each_row():
    cut = RNG.uniform(1, 2, (10, 6, 1)) * np.sign(W).reshape(10, 6, 4)
    values = cut.reshape(10, 24).astype(np.float32)
    packed = packing.read_off_codes(values)
    assert (packed.bits, packed.scale.shape) == (1, (10, 6))
    np.testing.assert_array_equal(leaves.dense(packed), values)


def test_a_row_of_zeros_costs_no_second_bit():
    values = np.asarray(quantizers.binarize(jnp.asarray(W), axis=-1)).copy()
    values[3] = 0
    packed = packing.read_off_codes(values)
    assert packed.bits == 1
    np.testing.assert_array_equal(leaves.dense(packed), values)


def test_a_matrix_of_zeros_packs():
    packed = packing.read_off_codes(np.zeros((3, 4), np.float32))
    np.testing.assert_array_equal(leaves.dense(packed), np.zeros((3, 4)))


@pytest.mark.parametrize("shape", [(1, 4), (3, 5), (10, 24)])
def test_values_of_many_magnitudes_do_not_fit(shape):
    assert packing.read_off_codes(RNG.normal(size=shape).astype(np.float32)) is None


@settings(max_examples=60, deadline=None)
@given(
    fields=hnp.arrays(
        np.int8,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.integers(-1, 1),
    ),
    scale=st.floats(2.0**-60, 2.0**60, width=32),
)
def test_whatever_is_read_off_is_exact(fields, scale):
    values = fields.astype(np.float32) * np.float32(scale)
    packed = packing.read_off_codes(values)
    if packed is None:
        assert fields.size == 1  # one value alone: nothing to save
    else:
        np.testing.assert_array_equal(decode(packed), values)


@settings(max_examples=60, deadline=None)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.floats(-1e6, 1e6, width=32),
    )
)
def test_eight_bits_are_within_half_a_step(matrix):
    packed = packing.eight_bits(matrix)
    axis = 1 if packed.scale.shape[1] == 1 else 0
    largest = np.abs(matrix).max(axis=axis, keepdims=True)
    # Half a step, and what rounding the scale to float16 may cut off the largest.
    bound = largest / 127 * 0.5 * 1.001 + largest * 2.0**-11 + 1e-30
    assert (np.abs(decode(packed) - matrix) <= bound).all()
    assert np.asarray(packed.codes).view(np.int8).min() >= -127


@pytest.mark.parametrize("way", ["rows", "columns"])
def test_eight_bits_scale_what_is_large(way):
    matrix = W.copy()
    matrix[
        3 if way == "rows" else slice(None), 3 if way == "columns" else slice(None)
    ] *= 100
    packed = packing.eight_bits(matrix)
    assert packed.scale.shape == ((10, 1) if way == "rows" else (1, 24))
    step = np.abs(matrix).max(axis=1 if way == "rows" else 0, keepdims=True) / 127
    assert (np.abs(decode(packed) - matrix) <= 0.6 * step).all()


def test_positions_count_by_the_texts_that_use_them():
    # As in a MiniLM: row 0, which every text uses, has columns far larger than all else.
    table = RNG.normal(scale=0.025, size=(512, 384)).astype(np.float32)
    table[0, [7, 100]] = -1.85, 0.58
    other = packing.pack_leaf("pooler/kernel", table, False, "int8")
    packed = packing.pack_leaf("embeddings/position/embedding", table, False, "int8")
    assert (other.scale.shape, packed.scale.shape) == ((512, 1), (1, 384))
    errors = [np.square(decode(p) - table).mean(axis=1) for p in (other, packed)]
    assert errors[0].mean() < errors[1].mean()
    assert errors[0][0] > 50 * errors[1][0]


def test_half_keeps_what_float16_cannot_hold():
    big = np.array([1.1, 7e4], np.float32)
    np.testing.assert_array_equal(packing.half(big), big)
    small = np.array([1.1, 1e-6], np.float32)
    np.testing.assert_array_equal(packing.half(small, normal=True), small)
    np.testing.assert_array_equal(
        packing.half(small), small.astype(np.float16).astype(np.float32)
    )


def test_an_own_quantizer_that_does_not_fit_is_named():
    with pytest.raises(ConfigError, match=r"ffn/in/kernel: .*24 magnitudes"):
        packing.pack_leaf("encoder/layer_0/ffn/in/kernel", W, True, "int8")


def test_nan_is_refused_with_its_name():
    with pytest.raises(Diverged, match="pooler/bias"):
        packing.pack_leaf(
            "pooler/bias", np.array([1, np.nan], np.float32), False, "int8"
        )


def test_a_packed_leaf_is_not_packed_again():
    with pytest.raises(ConfigError, match=r"pooler/kernel.*Packed"):
        packing.pack_leaf("pooler/kernel", packing.eight_bits(W), False, "int8")


@pytest.mark.parametrize("rest", packing.RESTS)
def test_vectors_are_never_codes(rest):
    vector = W[0]
    leaf = packing.pack_leaf("pooler/bias", vector, False, rest)
    expected = vector if rest == "float32" else vector.astype(np.float16)
    np.testing.assert_array_equal(leaf, expected.astype(np.float32))


def test_row_scales_are_float16_but_where_all_is_exact():
    values = np.asarray(functools.partial(quantizers.binarize, axis=-1)(jnp.asarray(W)))
    exact = packing.pack_leaf("t", values, True, "float32").scale
    short = packing.pack_leaf("t", values, True, "int8").scale
    np.testing.assert_array_equal(exact[:, 0], np.abs(values[:, 0]))
    np.testing.assert_array_equal(
        short, np.asarray(exact).astype(np.float16).astype(np.float32)
    )
