import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitflax.packed import bitfields

RNG = np.random.default_rng(0)


@settings(max_examples=100, deadline=None)
@given(
    hnp.arrays(
        np.int8,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=17),
        elements=st.integers(0, 2),
    )
)
def test_five_ternary_fields_share_a_byte(fields):
    cols = fields.shape[1]
    codes = bitfields.fields_to_bytes(fields, 2)
    trits = bitfields.to_trits(codes, cols)
    assert trits.shape == (len(fields), bitfields.row_bytes(1.6, cols))
    for (i, j), field in np.ndenumerate(fields):
        assert int(trits[i, j // 5]) // 3 ** (j % 5) % 3 == field
    np.testing.assert_array_equal(bitfields.from_trits(trits, cols), codes)


def test_many_rows_of_ternary_fields_are_packed_in_blocks(monkeypatch):
    codes = bitfields.fields_to_bytes(RNG.integers(0, 3, (50, 23)), 2)
    whole = bitfields.to_trits(codes, 23)
    monkeypatch.setattr(bitfields, "_BLOCK", 20)  # three rows at a time
    np.testing.assert_array_equal(bitfields.to_trits(codes, 23), whole)
    np.testing.assert_array_equal(bitfields.from_trits(whole, 23), codes)


@pytest.mark.parametrize(
    ("byte", "cols", "problem"),
    [
        (242, 5, None),
        (243, 5, "over 242"),
        (255, 5, "over 242"),
        (80, 4, None),
        (81, 4, "padding fields"),
        (3, 1, "padding fields"),
    ],
)
def test_bytes_that_no_ternary_fields_give(byte, cols, problem):
    trits = np.array([[byte]], np.uint8)
    if problem is None:
        again = bitfields.to_trits(bitfields.from_trits(trits, cols), cols)
        np.testing.assert_array_equal(again, trits)
    else:
        with pytest.raises(ValueError, match=problem):
            bitfields.from_trits(trits, cols)


@pytest.mark.parametrize("cols", range(1, 40))
def test_five_to_a_byte_only_where_that_is_less(cols):
    bits = bitfields.stored_bits(2, cols)
    assert bitfields.row_bytes(bits, cols) == min(-(-cols // 5), -(-cols // 4))
    assert bits == (2 if -(-cols // 5) == -(-cols // 4) else 1.6)
    assert bitfields.row_bytes(1, cols) == -(-cols // 8)
    assert bitfields.stored_bits(1, cols) == 1


@pytest.mark.parametrize(
    ("bits", "cols", "last", "problem"),
    [
        (1, 3, 0b0111, None),
        (1, 3, 0b1000, "padding"),
        (1, 8, 0xFF, None),
        (2, 3, 0b00_10_01_00, None),
        (2, 3, 0b01_00_00_00, "padding"),
        (2, 4, 0b11_00_00_00, "holds 3"),
        (2, 4, 0b01_10_10_01, None),
        (8, 1, 0x80, None),
    ],
)
def test_codes_of_a_leaf_are_checked(bits, cols, last, problem):
    codes = np.array([[last]], np.uint8)
    if problem is None:
        bitfields.check(codes, bits, cols)
    else:
        with pytest.raises(ValueError, match=problem):
            bitfields.check(codes, bits, cols)


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("cols", [1, 4, 5, 24])
def test_what_is_stored_is_loaded(bits, cols):
    low, high = {1: (0, 2), 2: (0, 3), 8: (-128, 128)}[bits]
    codes = bitfields.fields_to_bytes(RNG.integers(low, high, (6, cols)), bits)
    width = bitfields.stored_bits(bits, cols)
    kept = bitfields.stored(codes, bits, cols)
    assert kept.shape == (6, bitfields.row_bytes(width, cols))
    again, whole = bitfields.loaded(kept, width, cols)
    assert whole == bits
    np.testing.assert_array_equal(again, codes)


@pytest.mark.parametrize("cols", [2, 3, 8, 9])
def test_two_small_signed_fields_share_a_byte(cols):
    fields = RNG.integers(-8, 8, (16, cols))
    fields[:, 0] = np.arange(-8, 8)
    codes = bitfields.fields_to_bytes(fields, 8)
    assert bitfields.stored_bits(8, cols, codes) == 4
    kept = bitfields.stored(codes, 8, cols)
    assert kept.shape == (16, bitfields.row_bytes(4, cols))
    for (i, j), field in np.ndenumerate(fields):
        half = int(kept[i, j // 2]) >> 4 * (j % 2) & 15
        assert (half ^ 8) - 8 == field
    again, bits = bitfields.loaded(kept, 4, cols)
    assert bits == 8
    np.testing.assert_array_equal(again, codes)


@pytest.mark.parametrize("field", [-9, 8, 127, -128])
def test_one_large_field_keeps_all_8_bits(field):
    codes = bitfields.fields_to_bytes(np.array([[0, 1], [field, 2]]), 8)
    assert bitfields.stored_bits(8, 2, codes) == 8
    np.testing.assert_array_equal(bitfields.stored(codes, 8, 2), codes)


def test_a_padding_half_is_refused():
    with pytest.raises(ValueError, match="padding bits"):
        bitfields.loaded(np.array([[0, 0x10]], np.uint8), 4, 3)
