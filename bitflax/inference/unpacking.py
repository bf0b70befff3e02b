"""Packed leaves to arrays on the host: what loading a model pays once.

``bitflax.model.leaves.dense`` gives the same numbers inside jit. Outside, jax would compile a
program for every shape before the first prediction: seconds, against a tenth of one.
"""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from bitflax.model.leaves import Packed, Split
from bitflax.model.matmul import Coded
from bitflax.packed import bitfields


def integers_here() -> DTypeLike | None:
    """Return the dtype in which this machine multiplies integers faster than float32.

    int8 on an accelerator; bfloat16 on a CPU that has instructions for it, where XLA's
    products of bfloat16 are faster than those of int8 (six layers of BERT-base, Zen 5,
    one thread: 0.58 of float32's time at 1 x 128 tokens, int8 0.70); else None.
    """
    if jax.default_backend() != "cpu":
        return jnp.int8
    try:
        about = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return None
    return jnp.bfloat16 if re.search(r"\b(avx512|amx)_bf16\b", about) else None


def on_host(leaf: Any, integers: DTypeLike | None = None) -> Any:
    """Return the float32 array that a leaf stands for; an array is itself.

    Args:
      leaf: any but ``Lazy``.
      integers: a dtype: of a ``Packed`` leaf whose scales lie along its columns, or
        that has one alone, return integers of this dtype and the scales, as ``Coded``.

    >>> codes, scale = np.array([[0b101]], np.uint8), np.array([[0.5]], np.float32)
    >>> on_host(Packed(codes, scale, 1, (1, 3)))
    array([[ 0.5, -0.5,  0.5]], dtype=float32)
    """
    if isinstance(leaf, Split):
        # Added even where integers are asked for: two products of theirs take 1.02 to
        # 1.22 of the time of one in float32.
        return on_host(leaf.a) + on_host(leaf.b)
    if not isinstance(leaf, Packed):
        return leaf
    (_, cols), scale = leaf.rows_cols, np.asarray(leaf.scale, np.float32)
    codes = np.asarray(leaf.codes)
    values = bitfields.to_values(codes, leaf.bits, cols, np.float32)
    if scale.shape[1] != 1:
        scale = np.repeat(scale, cols // scale.shape[1], axis=1)
    if integers is not None and len(scale) == 1:
        return Coded(None, values.astype(integers), scale)
    return np.multiply(values, scale, out=values).reshape(leaf.shape)
