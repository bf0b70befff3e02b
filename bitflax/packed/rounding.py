"""What a packed file will hold of a student, as its training computes with it.

Activations of 8 bits round the other way after any change before them, however small:
the float16 of a LayerNorm moves as many of them as the 8 bits of the positions do. So a
student that was trained without it keeps its labels under no precision of the rest but
the exact one, and a student that is trained with it keeps them at no cost.
"""

import functools
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bitflax import model, trees
from bitflax.model import ACT_PARAMS
from bitflax.packed import packing
from bitflax.quantization import WORD_TABLE, Rules, quantize, straight_through
from bitflax.types import Params, Quantizer


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
    for path, fn in _roundings(flat, rules, rest).items():
        flat[path] = straight_through(fn, flat[path])
    return trees.unflatten(flat)


def stored_by_leaf(params: Params, rules: Rules, rest: packing.Rest = "int8") -> Params:
    """Return the values of ``stored``, each leaf's by a program of its own.

    All leaves of a shape share one, also with ``round_rest_by_leaf`` and a
    ``jax.jit`` of a quantizer: one program of all leaves compiles for as long as ten
    small ones, and a packed file's table is of another size than the one trained.
    """
    flat = trees.flatten(round_rest_by_leaf(params, rules, rest))
    rests = packing.rest_of(rest, flat)
    for path, quantizer in trees.match(rules, flat).items():
        if rests[path] != "float32" and path.startswith("embeddings/"):
            quantizer = _halving(quantizer)
        flat[path] = jax.tree.map(jax.jit(quantizer), flat[path])
    return trees.unflatten(flat)


def round_rest_by_leaf(
    params: Params, rules: Rules, rest: packing.Rest = "int8"
) -> Params:
    """Return the values of ``round_rest``, each matrix by a program of its own."""
    flat = trees.flatten(params)
    found = _roundings(flat, rules, rest)
    short = {path: flat[path] for path, fn in found.items() if fn is _half}
    flat |= _halves(short)
    for path, fn in found.items():  # in one order, which many processes have to share
        if path not in short:
            flat[path] = jax.jit(fn)(flat[path])
    return trees.unflatten(flat)


def _roundings(
    flat: Mapping[str, Any], rules: Rules, rest: packing.Rest
) -> dict[str, Callable[[jax.Array], jax.Array]]:
    """Return what ``packing.pack_leaf`` makes of the leaves that no rule matches."""
    chosen, rests = trees.match(rules, flat), packing.rest_of(rest, flat)
    found = {}
    for path, leaf in flat.items():
        kept = re.fullmatch(rf"projection/.*|{ACT_PARAMS}|{WORD_TABLE}", path)
        if path in chosen or kept or not hasattr(leaf, "ndim"):
            continue
        bits = packing.rest_bits(leaf.shape, rests[path])
        # Of all paths `row_use` knows one alone: the others share what compiles.
        known = path if path == model.POSITIONS else ""
        if bits < 32:
            found[path] = _half if bits > 8 else _coding(known, bits)
    return found


def _with_half_scales(leaf: Any) -> Any:
    """Return a table of -s, 0 and s with ``s`` rounded, as its values are."""
    if isinstance(leaf, model.Split):
        return model.Split(_with_half_scales(leaf.a), _with_half_scales(leaf.b))
    if isinstance(leaf, model.Lazy):
        return model.Lazy(leaf.table, _halving(leaf.quantizer))
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


_halves = jax.jit(functools.partial(jax.tree.map, _half))


@functools.lru_cache(32)
def _halving(quantizer: Quantizer) -> Quantizer:
    """Return ``_half_values`` of a quantizer's, the same function each time."""
    return lambda table: _half_values(quantizer(table))


@functools.cache
def _coding(path: str, bits: int) -> Callable[[jax.Array], jax.Array]:
    """Return ``_coded`` of these settings, the same function each time."""
    return functools.partial(_coded, path, bits)


def _coded(path: str, bits: int, x: jax.Array) -> jax.Array:
    """Return the values of ``packing.eight_bits``, or of fewer bits."""
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
