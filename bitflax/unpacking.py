"""Packed leaves to dense arrays on the host: what loading a model pays once.

``bitflax.leaves.dense`` gives the same numbers inside jit. Outside, jax would compile a
program for every shape before the first prediction: seconds, against a tenth of one.
"""

from typing import Any

import numpy as np

from bitflax.leaves import Packed, Split


def on_host(leaf: Any) -> Any:
    """Return the float32 array that a leaf stands for; an array is itself.

    >>> codes, scale = np.array([[0b101]], np.uint8), np.array([[0.5]], np.float32)
    >>> on_host(Packed(codes, scale, 1, (1, 3)))
    array([[ 0.5, -0.5,  0.5]], dtype=float32)
    """
    if isinstance(leaf, Split):
        return on_host(leaf.a) + on_host(leaf.b)
    if not isinstance(leaf, Packed):
        return leaf
    (_, cols), scale = leaf.rows_cols, np.asarray(leaf.scale, np.float32)
    values = _integers(np.asarray(leaf.codes), leaf.bits, cols)
    if scale.shape[1] != 1:
        scale = np.repeat(scale, cols // scale.shape[1], axis=1)
    return np.multiply(values, scale, out=values).reshape(leaf.shape)


def _integers(codes: np.ndarray, bits: int, cols: int) -> np.ndarray:
    """Return what codes [rows, bytes] stand for before the scales, as float32."""
    if bits == 8:
        return codes.view(np.int8).astype(np.float32)
    fields = np.arange(256)[:, None] >> np.arange(0, 8, bits) & (2**bits - 1)
    table = (2 * fields - 1 if bits == 1 else fields - 1).astype(np.float32)
    found = np.take(table, codes, axis=0).reshape(len(codes), -1)
    return found if found.shape[1] == cols else np.ascontiguousarray(found[:, :cols])
