"""Small integers in whole bytes: the fields of a packed matrix, a row after the other.

A leaf has 1, 2 or 8 bits a field (``bitflax.model.FIELDS``). A file holds the same
fields in less where they allow it: five ternary ones, or two of 4 bits, share a byte.
"""

from collections.abc import Iterator

import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Integer, UInt8

from bitflax.model import FIELDS
from bitflax.packed import safetensors_file

FIFTHS = 1.6
"""The bits of a ternary field where five of them share a byte, as in a file."""
SHORT = (FIFTHS, 4)
"""The bits that a file alone has, from version 3 on."""
_TRITS = (np.arange(3**5)[:, None] // 3 ** np.arange(5) % 3).astype(np.uint8)
_BLOCK = 1 << 20


def fields_to_bytes(fields: Integer[np.ndarray, "rows cols"], bits: int) -> np.ndarray:
    """Pack fields row by row, the lowest bits of a byte first.

    Args:
      fields: 0 or 1 (1 bit), 0 to 2 (2 bits), -128 to 127 (8 bits).
      bits: 1, 2 or 8.

    Returns:
      uint8 [rows, ceil(cols bits / 8)], the rest of each row's last byte 0.

    >>> fields_to_bytes(np.array([[1, 0, 1]]), 1)
    array([[5]], dtype=uint8)
    >>> fields_to_bytes(np.array([[2, 0, 1]]), 2)
    array([[18]], dtype=uint8)
    """
    if bits == 8:
        return fields.astype(np.int8).view(np.uint8)
    if bits == 1:
        return np.packbits(fields.astype(np.uint8), axis=-1, bitorder="little")
    return np.bitwise_or.reduce(_cut(fields, FIELDS[bits].per_byte) << _shifts(bits), 2)


def _shifts(bits: int) -> np.ndarray:
    return np.arange(0, 8, bits, dtype=np.uint8)


def _cut(fields: np.ndarray, per_byte: int) -> np.ndarray:
    """Return the fields of each byte [rows, bytes, per_byte], filled up with 0."""
    whole = np.pad(fields.astype(np.uint8), ((0, 0), (0, -fields.shape[1] % per_byte)))
    return whole.reshape(len(fields), -1, per_byte)


def fields_to_values(
    codes: UInt8[np.ndarray, "rows bytes"], bits: int, cols: int, dtype: DTypeLike
) -> np.ndarray:
    """Return what a leaf's codes stand for before the scales: [rows, cols].

    ``bitflax.model.leaves.codes_to_values`` gives the same inside jit.

    Args:
      codes: a leaf's.
      bits: of a field.
      cols: fields in a row.
      dtype: of the result.

    >>> fields_to_values(np.array([[0b101]], np.uint8), 1, 3, np.int8)
    array([[ 1, -1,  1]], dtype=int8)
    """
    if bits == 8:
        return codes.view(np.int8).astype(dtype)
    _, step, offset = FIELDS[bits]
    fields = np.arange(256)[:, None] >> _shifts(bits) & (2**bits - 1)
    table = (step * fields + offset).astype(dtype)
    found = np.take(table, codes, axis=0).reshape(len(codes), -1)
    return found if found.shape[1] == cols else np.ascontiguousarray(found[:, :cols])


def stored_bits(
    bits: int, cols: int, codes: UInt8[np.ndarray, "rows bytes"] | None = None
) -> int | float:
    """Return the bits a field takes in a file.

    Args:
      bits: a field's in the leaf.
      cols: fields in a row.
      codes: the leaf's; 8 bits shrink to 4 where every field lies in -8..7.

    >>> [stored_bits(bits, cols) for bits, cols in ((1, 384), (2, 384), (2, 4))]
    [1, 1.6, 2]
    >>> stored_bits(8, 2, np.array([[7, 248]], np.uint8))
    4
    """
    if bits == 2 and row_bytes(FIFTHS, cols) < row_bytes(2, cols):
        return FIFTHS
    if bits == 8 and cols > 1 and codes is not None:
        # As unsigned bytes, those fields plus 8 are below 16, and no others are.
        small = all((codes[rows] + np.uint8(8)).max() < 16 for rows in _blocks(codes))
        return 4 if small else 8
    return bits


def row_bytes(bits: int | float, cols: int) -> int:
    """Return the bytes of a row of fields: the last byte is filled up.

    >>> [row_bytes(bits, 9) for bits in (1, 2, FIFTHS, 12)]
    [2, 3, 2, 14]
    """
    # Of other bits no file has any, but a recipe may ask what they would take.
    return -(-cols // 5) if bits == FIFTHS else -(-cols * int(bits) // 8)


def stored(codes: UInt8[np.ndarray, "rows bytes"], bits: int, cols: int) -> np.ndarray:
    """Return a leaf's codes as a file holds them, of ``stored_bits``."""
    width = stored_bits(bits, cols, codes)
    if width == 4:
        pairs = np.pad(codes & 15, ((0, 0), (0, cols % 2)))
        return pairs[:, ::2] | pairs[:, 1::2] << 4
    return to_trits(codes, cols) if width == FIFTHS else codes


def loaded(
    codes: UInt8[np.ndarray, "rows bytes"], bits: int | float, cols: int
) -> tuple[np.ndarray, int]:
    """Return the codes of a file, checked, and their bits, as a leaf holds them.

    Raises:
      ValueError: a byte is one that no packing writes.
    """
    if bits == FIFTHS:
        return from_trits(codes, cols), 2
    check(codes, int(bits), cols)
    return (_from_halves(codes, cols), 8) if bits == 4 else (codes, int(bits))


def _from_halves(codes: np.ndarray, cols: int) -> np.ndarray:
    """Return the signed bytes of fields of 4 bits, the lower half of a byte first."""
    out = _empty(len(codes), cols)
    for rows in _blocks(codes):
        fields = np.stack([codes[rows] & 15, codes[rows] >> 4], axis=-1)
        # The fourth bit is the sign.
        out[rows] = (fields.reshape(len(fields), -1)[:, :cols] ^ 8) - np.uint8(8)
    return out


def _empty(rows: int, width: int) -> np.ndarray:
    return safetensors_file.aligned(rows * width, np.dtype("u1")).reshape(rows, width)


def to_trits(codes: UInt8[np.ndarray, "rows quarters"], cols: int) -> np.ndarray:
    """Pack 2-bit codes anew, five fields a byte: ``c0 + 3 c1 + 9 c2 + 27 c3 + 81 c4``.

    Returns:
      uint8 [rows, ceil(cols / 5)], each at most 242; fields beyond ``cols`` are 0.

    >>> to_trits(np.array([[0b010010]], np.uint8), 3)
    array([[11]], dtype=uint8)
    """
    out = np.empty((len(codes), row_bytes(FIFTHS, cols)), np.uint8)
    for rows in _blocks(codes):
        fields = (codes[rows, :, None] >> _shifts(2)) & 3
        fields = fields.reshape(len(fields), -1)[:, :cols]
        out[rows] = _cut(fields, 5) @ (3 ** np.arange(5)).astype(np.uint8)
    return out


def from_trits(trits: UInt8[np.ndarray, "rows fifths"], cols: int) -> np.ndarray:
    """Return the 2-bit codes of ``to_trits``'s bytes: uint8 [rows, ceil(cols / 4)].

    Raises:
      ValueError: a byte is over 242, or a field beyond ``cols`` is not 0.

    >>> from_trits(np.array([[11]], np.uint8), 3)
    array([[18]], dtype=uint8)
    """
    if trits.max(initial=0) >= len(_TRITS):
        raise ValueError("a byte of five ternary fields is over 242")
    out = _empty(len(trits), row_bytes(2, cols))
    for rows in _blocks(trits):
        fields = _TRITS[trits[rows]].reshape(len(trits[rows]), -1)
        if fields[:, cols:].any():
            raise ValueError("padding fields are not zero")
        out[rows] = fields_to_bytes(fields[:, :cols], 2)
    return out


def _blocks(codes: np.ndarray) -> Iterator[slice]:
    """Cut rows into runs of about a megabyte, so that what is in between is small."""
    step = max(1, _BLOCK // max(1, codes.shape[1]))
    return (slice(i, i + step) for i in range(0, len(codes), step))


def check(codes: UInt8[np.ndarray, "rows bytes"], bits: int, cols: int) -> None:
    """Refuse bytes that no packing writes.

    Raises:
      ValueError: a padding bit is set, or a 2-bit field holds 3.
    """
    used = cols * bits - 8 * (codes.shape[1] - 1)
    if used < 8 and (codes[:, -1] >> used).any():
        raise ValueError("padding bits are not zero")
    for block in safetensors_file.blocks(codes) if bits == 2 else ():
        if (block & (block >> 1) & 0x55).any():
            raise ValueError("a 2-bit field holds 3")
