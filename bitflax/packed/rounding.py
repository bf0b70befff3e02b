"""What a packed file will hold of a student, as its training computes with it.

Activations of 8 bits round the other way after any change before them, however small:
the float16 of a LayerNorm moves as many of them as the 8 bits of the positions do. So a
student that was trained without it keeps its labels under no precision of the rest but
the exact one, and a student that is trained with it keeps them at no cost.
"""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp

from bitflax import model, trees
from bitflax.model import ACT_PARAMS
from bitflax.packed import packing
from bitflax.quantization import WORD_TABLE, Rules, quantize, straight_through
from bitflax.types import Params


def stored(
    params: Params, rules: Rules, rest: packing.Rest = "int8", *, lazy: bool = False
) -> Params:
    """Return the values that a packed file will hold, with the latent gradients.

    Quantised by ``rules``, the scales of rows rounded to float16; the others rounded by
    ``rest``, as ``bitflax.pack`` does both. A word table that no rule matches is left.

    Args:
      params: latent weights.
      rules: as ``bitflax.quantize`` takes them.
      rest: as ``bitflax.pack`` takes it.
      lazy: as ``bitflax.quantize`` takes it.

    >>> tree = {"kernel": jnp.array([[1.0, -3.0]]), "bias": jnp.array([0.1])}
    >>> stored(tree, [("kernel", lambda w: jnp.sign(w) * 2)])["bias"]
    Array([0.09997559], dtype=float32)
    """
    flat = trees.flatten(quantize(round_rest(params, rules, rest), rules, lazy=lazy))
    rests = packing.rest_of(rest, flat)
    for path in trees.match(rules, flat):
        if rests[path] != "float32" and path.startswith("embeddings/"):
            flat[path] = _with_half_scales(flat[path])
    return trees.unflatten(flat)


def round_rest(params: Params, rules: Rules, rest: packing.Rest = "int8") -> Params:
    """Return the parameters, those that no rule matches rounded as ``rest`` says."""
    flat = trees.flatten(params)
    chosen, rests = trees.match(rules, flat), packing.rest_of(rest, flat)
    for path, leaf in flat.items():
        kept = re.fullmatch(rf"projection/.*|{ACT_PARAMS}|{WORD_TABLE}", path)
        if path not in chosen and not kept and hasattr(leaf, "ndim"):
            fn = functools.partial(_rounded, path, rests[path])
            flat[path] = straight_through(fn, leaf)
    return trees.unflatten(flat)


def _with_half_scales(leaf: Any) -> Any:
    """Return a table of -s, 0 and s with ``s`` rounded, as its values are."""
    if isinstance(leaf, model.Split):
        return model.Split(_with_half_scales(leaf.a), _with_half_scales(leaf.b))
    if isinstance(leaf, model.Lazy):
        quantizer = leaf.quantizer
        return model.Lazy(leaf.table, lambda w: _half_values(quantizer(w)))
    return _half_values(leaf)


def _half_values(x: jax.Array) -> jax.Array:
    def rounded(x: jax.Array) -> jax.Array:
        size = jnp.abs(x)
        fits = (size >= packing.HALF_NORMAL) & (size <= packing.HALF_MAX)
        return jnp.where(fits, _to_half(x), x)

    return straight_through(rounded, x)


def _to_half(x: jax.Array) -> jax.Array:
    # Two conversions in a row XLA may leave out.
    return jax.lax.reduce_precision(x, exponent_bits=5, mantissa_bits=10)


def _half(x: jax.Array, normal: bool = False) -> jax.Array:
    """Return what ``packing.half`` does."""
    size = jnp.abs(x)
    small = (size > 0) & (size < packing.HALF_NORMAL)
    bad = jnp.any(size > packing.HALF_MAX) | (normal & jnp.any(small))
    return jnp.where(bad, x, _to_half(x))


def _rounded(path: str, rest: str, x: jax.Array) -> jax.Array:
    """Return what ``packing.pack_leaf`` keeps of a leaf that no rule matches."""
    bits = packing.rest_bits(x.shape, rest)
    if bits > 8:
        return x if bits == 32 else _half(x)
    use, levels = packing.row_use(path, len(x)), 2 ** (bits - 1) - 1
    (rows, by_row), (cols, by_col) = (_by_axis(x, n, use, levels) for n in (1, 0))
    return jnp.where(by_row <= by_col, rows, cols)


def _by_axis(
    x: jax.Array, axis: int, use: Any, levels: int
) -> tuple[jax.Array, jax.Array]:
    """Return the matrix in codes of scales along an axis, and its squared error."""
    scale = _half(jnp.max(jnp.abs(x), axis=axis, keepdims=True) / levels, normal=True)
    codes = jnp.round(x / jnp.where(scale == 0, 1, scale))
    values = jnp.clip(codes, -levels, levels) * scale
    errors = jnp.sum(jnp.square(values - x), axis=1)
    return values, jnp.sum(errors if use is None else errors * use)
