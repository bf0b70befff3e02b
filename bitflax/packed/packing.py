"""Values to codes: 1 and 2 bits read off quantised weights, 8 bits by rounding.

All of it is NumPy on the host; ``bitflax.model.leaves`` does the way back, inside jit.
"""

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Float32

from bitflax import model, trees
from bitflax.errors import ConfigError, Diverged
from bitflax.model import ACT_PARAMS, POSITIONS, Coded, Packed, Split
from bitflax.packed import bitfields
from bitflax.quantization import Rules, quantize
from bitflax.types import Params

RESTS = ("int4", "int8", "float16", "float32")
Rest = str | Sequence[tuple[str, str]]
"""One of ``RESTS``, or pairs (path regex, one of them)."""
LEVELS = 127
HALF_NORMAL = 6.2e-5
"""Above the smallest float16 of full precision."""
HALF_MAX = 65504.0


def half(x: Float32[np.ndarray, "..."], *, normal: bool = False) -> np.ndarray:
    """Round to float16, still stored as float32; unchanged where that overflows.

    Args:
      x: any shape.
      normal: leave ``x`` unchanged, too, where a value is so small that float16 has
        less than its 11 bits for it: for scales, whose relative error counts.

    >>> half(np.array([0.1], np.float32)), half(np.array([1e5], np.float32))
    (array([0.09997559], dtype=float32), array([100000.], dtype=float32))
    """
    size = np.abs(x)
    if (size > HALF_MAX).any() or (
        normal and ((size > 0) & (size < HALF_NORMAL)).any()
    ):
        return x
    return x.astype(np.float16).astype(np.float32)


def _packed(fields: np.ndarray, scale: np.ndarray, bits: int, shape: tuple) -> Packed:
    # ``jnp.asarray`` would compile a program for each shape.
    codes = jax.device_put(bitfields.fields_to_bytes(fields.astype(np.int8), bits))
    return Packed(codes, jax.device_put(scale), bits, shape)


def eight_bits(
    matrix: Float32[np.ndarray, "rows cols"],
    use: np.ndarray | None = None,
    levels: int = LEVELS,
) -> Packed:
    """Round a matrix to 8 bits: ``s = max|w| / 127``, codes ``round(w / s)``.

    There is a scale ``s`` a row, or a scale a column where the sum of squared errors
    is smaller so: tables may have a few columns far larger than the others, which
    under scales of rows cost all the others their bits.

    The scale is rounded to float16 before the codes are, so that the codes make up
    for it.

    Args:
      matrix: what is rounded.
      use: how often each row is used [rows], where some count more than others.
      levels: in place of 127; with 7, a file holds the fields in 4 bits.

    >>> matrix = np.array([[1.27, -0.64], [0.64, 1.27]], np.float32)
    >>> eight_bits(matrix).codes.view(jnp.int8)
    Array([[127, -64],
           [ 64, 127]], dtype=int8)
    """
    ways = [_rounded(matrix, axis, use, levels) for axis in (1, 0)]
    _, fields, scale = min(ways, key=lambda way: way[0])
    return _packed(fields, scale, 8, matrix.shape)


def _rounded(
    matrix: np.ndarray, axis: int, use: np.ndarray | None, levels: int
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the squared error, the fields and the scales along an axis."""
    scale = half(np.abs(matrix).max(axis=axis, keepdims=True) / levels, normal=True)
    fields = np.rint(matrix / np.where(scale == 0, 1, scale))
    fields = np.clip(fields, -levels, levels)
    errors = np.square(fields * scale - matrix, dtype=np.float64).sum(axis=1)
    return float(np.sum(errors if use is None else errors * use)), fields, scale


def _groupings(rows: int, cols: int) -> list[tuple[bool, int]]:
    """Return pairs (rows share scales, groups a row), those of fewest scales first.

    Where a group would be one value, anything fits and nothing is saved: left out.
    """
    runs = [n for n in range(1, cols + 1) if cols % n == 0]
    ways = [(shared, n) for shared in (True, False) for n in runs]
    ways = [(s, n) for s, n in ways if (rows if s else 1) * (cols // n) > 1]
    return sorted(ways, key=lambda way: way[1] if way[0] else rows * way[1])


def _fit(size: np.ndarray, shared: bool, groups: int) -> tuple[np.ndarray, int] | None:
    """Return (scale, bits) where each group of magnitudes is s alone, or s and 0."""
    rows, cols = size.shape
    cut = size.reshape(rows, groups, cols // groups)
    scale = cut.max(axis=(0, 2) if shared else 2, keepdims=True)
    same = cut == scale
    if same.all():
        bits = 1
    elif (same | (cut == 0)).all():
        bits = 2
    else:
        return None
    return scale.reshape(1 if shared else rows, groups), bits


def read_off_codes(matrix: Float32[np.ndarray, "rows cols"]) -> Packed | None:
    """Pack a matrix whose values are -s and s, or -s, 0 and s, group by group.

    A group is an equal run of the last axis, in each row by itself or in all rows
    together: the tensor, an output channel (a column), a row, or less. One bit is
    taken where any grouping allows it, 2 bits otherwise; then the fewest scales.

    Returns:
      The packed matrix, exact to the last bit, or None where nothing fits.

    >>> packed = read_off_codes(np.array([[0.5, -0.5], [-0.5, 0.0]], np.float32))
    >>> packed.bits, packed.scale
    (2, Array([[0.5]], dtype=float32))
    """
    size = np.abs(matrix)
    found = None
    for shared, groups in _groupings(*matrix.shape):
        # Two rows tell most of what does not fit, before the whole is looked at.
        if _fit(size[:2], shared, groups) is None:
            continue
        fit = _fit(size, shared, groups)
        if fit and fit[1] == 1:
            return _packed(matrix >= 0, fit[0], 1, matrix.shape)
        found = found or fit
    if found is None:
        return None
    return _packed(np.sign(matrix) + 1, found[0], 2, matrix.shape)


def rest_bits(shape: tuple[int, ...], rest: str) -> int:
    """Return the bits a value of a parameter that no rule quantises.

    Under ``"int8"`` vectors stay float16: they are few, and their 8 bits would move
    logits more than those of all matrices. So does a matrix of one or two rows,
    whose scales would take as much as they save.

    >>> [rest_bits(shape, "int8") for shape in ((512, 384), (2, 384), (384,))]
    [8, 16, 16]
    """
    if rest in ("int4", "int8") and len(shape) == 2 and shape[0] > 2:
        return int(rest.removeprefix("int"))
    return 32 if rest == "float32" else 16


def rest_of(rest: Rest, paths: Iterable[str]) -> dict[str, str]:
    """Return how each parameter is packed where no rule quantises it.

    Raises:
      ValueError: a kind is none of ``RESTS``, or a rule matches no path.

    >>> rest_of([("pooler/.*", "float32")], ["pooler/bias", "classifier/bias"])
    {'pooler/bias': 'float32', 'classifier/bias': 'int8'}
    """
    pairs = () if isinstance(rest, str) else tuple(rest)
    last = rest if isinstance(rest, str) else "int8"
    for kind in (last, *(kind for _, kind in pairs)):
        if kind not in RESTS:
            raise ValueError(f"rest must be one of {', '.join(RESTS)}, not {kind!r}")
    paths = tuple(paths)
    return dict.fromkeys(paths, last) | trees.match(pairs, paths)


def pack_leaf(path: str, leaf: Any, chosen: bool, rest: str) -> Any:
    """Pack one leaf: a ``Packed`` matrix, or a float32 array that float16 may hold.

    Args:
      path: the leaf's name, for errors.
      leaf: an array, quantised already where a rule chose it.
      chosen: whether a rule did.
      rest: what becomes of the others, as ``bitflax.pack`` says.

    Raises:
      ConfigError: the leaf is no array, or a quantiser's values do not fit.
      Diverged: a value is not finite.
    """
    if not hasattr(leaf, "ndim"):
        kind = type(leaf).__name__
        raise ConfigError(path, f"is a {kind}, not an array", fix="pack dense arrays")
    values = np.asarray(leaf, np.float32)
    if not np.isfinite(values).all():
        raise Diverged(path, "holds NaN or infinity", fix="train at a lower rate")
    if values.ndim == 2 and chosen:
        return _pack_quantised(path, values, rest)
    bits = rest_bits(values.shape, rest)
    if bits <= 8:
        return eight_bits(values, row_use(path, len(values)), 2 ** (bits - 1) - 1)
    return jax.device_put(values if bits == 32 else half(values))


def row_use(path: str, rows: int) -> np.ndarray | None:
    """Return how often a table's rows are used; None where nothing is known.

    Every text has a first position, and few have a 500th: that of ``i`` counts
    1 / (1 + i). Row 0 of a trained table has columns far larger than all else, and
    under a scale of its own would lose its bits (in students of a MiniLM that moves
    logits by 1.6 % to 1.8 % of their spread; scales of columns, 0.9 % to 1.0 %).
    """
    return 1 / np.arange(1, rows + 1) if path == POSITIONS else None


def _pack_quantised(path: str, values: np.ndarray, rest: str) -> Packed:
    packed = read_off_codes(values)
    if packed is None:
        count = len(np.unique(np.abs(values[0])))
        raise ConfigError(
            path,
            "its quantised values are not -s and s, or -s, 0 and s, in each tensor, "
            f"channel, row or run ({count} magnitudes in the first row)",
            fix="leave it out of the rules, so that `rest` packs it, or quantise it to "
            "one magnitude a group",
        )
    if rest == "float32" or packed.scale.shape[0] == 1:
        return packed
    scale = half(np.asarray(packed.scale), normal=True)
    return Packed(packed.codes, jax.device_put(scale), packed.bits, packed.shape)


def pack(params: Params, rules: Rules, rest: Rest = "int8") -> Params:
    """Quantise by ``rules`` and pack the result; pack the rest by ``rest``.

    The bits are read off the quantised *values*, not off the quantizer: -s and s take
    1 bit, -s, 0 and s take 2, with one s a tensor, an output channel, a row, or a run
    of the last axis. A vector that a rule quantises is kept as its values. The halves
    of a ``Split`` matrix are packed each by itself; of one that no rule matches, their
    sum is. What is dropped: ``projection/...``, which only training uses.

    Args:
      params: a tree of latent weights, as training leaves it.
      rules: as ``bitflax.quantize`` takes them; () packs all of it as ``rest``.
      rest: what is kept of the other parameters. ``"int8"``: matrices 8 bits with a
        scale a row or a column, whichever errs less; vectors and matrices of one or
        two rows float16. ``"int4"``: the same, but 4 bits. ``"float16"``: all float16.
        ``"float32"``: exact. Or pairs (path regex, one of these), of which the first
        match decides; ``"int8"`` where none does.

    Returns:
      The tree with ``bitflax.model.Packed`` for matrices that are codes (a ``Split``
      of two where it was split), float32 arrays else; the model function takes it in
      place of ``params``. Of a quantised matrix whose rest is not float32, the scales
      of rows are rounded to float16 (one part in 2048).

    Raises:
      ValueError: ``rest`` is none of these, or a rule matches no path.
      ConfigError: a quantizer's values do not fit; names the parameter.
      Diverged: a parameter is not finite.

    >>> tree = {"kernel": jnp.array([[1.0, -3.0]]), "bias": jnp.array([0.5, 0.25])}
    >>> packed = pack(tree, [("kernel", lambda w: jnp.sign(w) * 2)])
    >>> packed["kernel"].bits, packed["kernel"].codes, packed["bias"]
    (1, Array([[1]], dtype=uint8), Array([0.5 , 0.25], dtype=float32))
    """
    flat = trees.flatten(params)
    chosen = trees.match(rules, flat)
    kept = [path for path in flat if not path.startswith("projection/")]
    rests = rest_of(rest, kept)
    quantised = trees.flatten(quantize(params, rules))
    packed = {p: _pack(p, quantised[p], p in chosen, rests[p]) for p in kept}
    return trees.unflatten(packed)


def _pack(path: str, leaf: Any, chosen: bool, rest: str) -> Any:
    if re.fullmatch(ACT_PARAMS, path):  # a range or step of an activation: exact
        rest = "float32"
    if isinstance(leaf, Split):
        if chosen and len(leaf.shape) == 2:
            halves = (pack_leaf(path, x, True, rest) for x in (leaf.a, leaf.b))
            return Split(*halves)
        leaf = model.dense(leaf)
    return pack_leaf(path, leaf, chosen, rest)


def unpack(packed: Params) -> Params:
    """Return the dense float32 parameters that a packed tree stands for."""
    return trees.map_paths(
        lambda path, leaf: jnp.asarray(model.dense(leaf), jnp.float32), packed
    )


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
    cols, scale = leaf.shape[1], np.asarray(leaf.scale, np.float32)
    codes = np.asarray(leaf.codes)
    values = bitfields.fields_to_values(codes, leaf.bits, cols, np.float32)
    if scale.shape[1] != 1:
        scale = np.repeat(scale, cols // scale.shape[1], axis=1)
    if integers is not None and len(scale) == 1:
        return Coded(None, values.astype(integers), scale)
    return np.multiply(values, scale, out=values)
