"""Quantizers: an array to its quantised values, with a straight-through gradient.

Weight quantizers are functions, ``functools.partial`` sets their options; activation
quantizers carry settings that a file must name, so they are frozen dataclasses. Each
is a ``jax.custom_vjp`` inside: the gradient passes as if nothing had been rounded
(Bengio et al. 2013, arXiv:1308.3432).

Any function from array to array is a quantizer. What is asked of one is answered by
what it says of itself, by attributes that the options go to:

===================  ==================================================================
``bits``             of its values
``shares(...)``      (axis, groups): which values share a range, as ``binarize`` has it
``codes(x, ...)``    ``Codes``: its values as integers
``centred``          whether the zero of its codes is always 0
``grid``             ``Grid``: its levels, from which an export builds it
===================  ==================================================================

Who says nothing has unknown bits, one range for all values, and no integers.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from bitflax import model
from bitflax.types import Quantizer

Axis = int | tuple[int, ...] | None


def bits_of(quantizer: Quantizer) -> int | None:
    """Return the bits of a quantizer's values; None where it does not say.

    >>> bits_of(functools.partial(binarize, axis=0))
    1
    """
    while isinstance(quantizer, functools.partial):
        quantizer = quantizer.func
    return getattr(quantizer, "bits", None)


def shared_by(quantizer: Quantizer) -> tuple[Axis, int | None]:
    """Return the axes, or the groups of the last, whose values share one range.

    >>> shared_by(functools.partial(binarize, axis=0)), shared_by(jnp.sign)
    ((0, None), (None, None))
    """
    kind, options = model.unwrapped(quantizer)
    return kind.shares(**options) if hasattr(kind, "shares") else (None, None)


def by_row(quantizer: Quantizer) -> bool:
    """Whether what becomes of a row surely depends on no other row.

    >>> by_row(functools.partial(binarize, axis=-1))
    True
    """
    axis, groups = shared_by(quantizer)  # a group runs through all rows
    return not groups and axis in ((), -1, (-1,))


def scales_of(quantizer: Quantizer, shape: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of a matrix's scales: [1 or rows, groups of columns].

    >>> scales_of(functools.partial(binarize, axis=0), (768, 3072))
    (1, 3072)
    """
    axis, groups = shared_by(quantizer)
    if groups or axis is None:
        return 1, groups or 1
    shared = {i % 2 for i in ((axis,) if isinstance(axis, int) else axis)}
    return 1 if 0 in shared else shape[0], 1 if 1 in shared else shape[1]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def straight_through(fn: Callable[[jax.Array], jax.Array], x: jax.Array) -> jax.Array:
    """Return ``fn(x)`` with the gradient of ``x``.

    The way to a quantizer of your own:

    >>> half = lambda w: straight_through(lambda w: jnp.round(2 * w) / 2, w)
    >>> float(half(jnp.array(1.3))), float(jax.grad(half)(jnp.array(1.3)))
    (1.5, 1.0)
    """
    return fn(x)


straight_through.defvjp(
    lambda fn, x: (fn(x), None),
    lambda fn, _, cotangent: (cotangent,),
)


class Codes(NamedTuple):
    """Integers and what they stand for: ``integers * scale + zero``."""

    integers: jax.Array
    scale: jax.Array
    zero: jax.Array


class Grid(NamedTuple):
    """Levels: the multiples ``low`` to ``top`` of a step, counted from a zero point.

    From -1 to 1 there are two, without 0. The step is a range over ``steps``: of
    ``max|x|`` where ``centred``, else of ``max - min + spare``; or it is learned, where
    ``steps`` is 0. The zero point is 0 where ``centred``, else the minimum, rounded
    to a multiple of the step where ``whole``.
    """

    low: int
    top: int
    centred: bool
    steps: int = 0
    spare: float = 0.0
    whole: bool = False


def _grouped(fn: Callable, w: jax.Array, axis: Axis, groups: int | None) -> Codes:
    """Return ``fn(w, axis)``, where the groups cut the last axis into equal runs."""
    if groups is None:
        return fn(w, axis)
    if axis is not None:
        raise ValueError("give axis or groups, not both")
    if groups < 1 or w.shape[-1] % groups:
        raise ValueError(f"{groups} groups do not divide the last axis of {w.shape}")
    run = w.shape[-1] // groups
    found = fn(w.reshape(*w.shape[:-1], groups, run), (*range(w.ndim - 1), w.ndim))

    def spread(x: jax.Array) -> jax.Array:
        return jnp.repeat(x[..., 0], run, axis=-1)

    integers = found.integers.reshape(w.shape)
    return Codes(integers, spread(found.scale), spread(found.zero))


def floating(x: Real[Array, "..."]) -> Float[Array, "..."]:
    """Return numbers as floating point: whole ones as float32, as ``jnp.mean`` does."""
    x = jnp.asarray(x)
    return x if jnp.issubdtype(x.dtype, jnp.inexact) else x.astype(jnp.float32)


def _limited(w: jax.Array, clip: float | None) -> jax.Array:
    """Clip with no gradient at the ends; ``jnp.clip`` has half of it there."""
    w = floating(w)
    if clip is None:
        return w
    if not clip > 0:
        raise ValueError(f"clip must be above 0, or None, not {clip}")
    kept = (jnp.abs(w) < clip) | jnp.isinf(w)  # an infinity must not pass for the clip
    return jnp.where(kept, w, clip * jax.lax.stop_gradient(jnp.sign(w)))


def _binary(w: jax.Array, axis: Axis, *, zero: int) -> Codes:
    if zero not in (0, 1):
        raise ValueError(f"zero must be 0 or 1, not {zero}")
    scale = jnp.mean(jnp.abs(w), axis=axis, keepdims=True)
    sign = jnp.sign(w) if zero == 0 else jnp.where(w >= 0, 1.0, -1.0).astype(w.dtype)
    return Codes(sign, scale, jnp.zeros_like(scale))


def _ternary(w: jax.Array, axis: Axis) -> Codes:
    # float16 holds no sum of a whole matrix.
    size = jnp.abs(w).astype(jnp.promote_types(w.dtype, jnp.float32))
    mean = jnp.mean(size, axis=axis, keepdims=True)
    kept = size > 0.7 * mean
    count = jnp.sum(kept, axis=axis, keepdims=True)
    total = jnp.sum(jnp.where(kept, size, 0), axis=axis, keepdims=True)
    scale = jnp.where(count == 0, 0.0, total / jnp.maximum(count, 1))
    # Nothing is above a mean that is no number: not zeros, but NaN as in binarize.
    scale = jnp.where(jnp.isfinite(mean), scale, jnp.nan).astype(w.dtype)
    return Codes(jnp.sign(w) * kept, scale, jnp.zeros_like(scale))


def binarize(
    w: Real[Array, "..."],
    axis: Axis = None,
    *,
    groups: int | None = None,
    zero: int = 1,
    clip: float | None = None,
) -> Float[Array, "..."]:
    """Return 1-bit weights: ``sign(w) * mean|w|``, with the gradient of ``w``.

    Args:
      w: weights of any shape; a Flax kernel is [in, out].
      axis: the axes that share one scale; None shares it over the whole array, 0
        gives a kernel one scale an output channel, -1 a table one scale a row.
      groups: cuts the last axis into this many runs of one scale each, in place of
        ``axis`` (DeepSpeed's groups, which cut the output channels).
      zero: the sign of 0: +1, since a 1-bit file has no zero, or 0 as in the papers'
        codes.
      clip: weights are first clipped at -clip and clip, and those at or beyond get no
        gradient, as TernaryBERT does at 2.5 (arXiv:2009.12812); None: no clip.

    Raises:
      ValueError: both ``axis`` and ``groups`` are given, or the groups do not divide
        the last axis.

    Source: Rastegari et al. 2016, XNOR-Net, section 3.1 (arXiv:1603.05279); the
    straight-through gradient as in XTC (arXiv:2206.01859).

    >>> binarize(jnp.array([1.0, -2.0, 3.0]))
    Array([ 2., -2.,  2.], dtype=float32)
    """
    codes = functools.partial(_binary_codes, axis=axis, groups=groups, zero=zero)
    return straight_through(lambda w: _scaled(codes(w)), _limited(w, clip))


def ternarize(
    w: Real[Array, "..."],
    axis: Axis = None,
    *,
    groups: int | None = None,
    clip: float | None = None,
) -> Float[Array, "..."]:
    """Return 2-bit weights: -s, 0 or +s, with the gradient of ``w``.

    With ``t = 0.7 mean|w|``, a weight is 0 where ``|w| <= t``, and ``s`` is the mean
    of ``|w|`` over the others. An array of zeros stays zero.

    Args:
      w: weights of any shape.
      axis: the axes that share one scale and one threshold; None shares all.
      groups: as in ``binarize``.
      clip: as in ``binarize``.

    Raises:
      ValueError: as in ``binarize``.

    Source: Li et al. 2016, Ternary Weight Networks, eq. 3-6 (arXiv:1605.04711).

    >>> ternarize(jnp.array([1.0, -2.0, 0.1]))
    Array([ 1.5, -1.5,  0. ], dtype=float32)
    """
    codes = functools.partial(_ternary_codes, axis=axis, groups=groups)
    return straight_through(lambda w: _scaled(codes(w)), _limited(w, clip))


def _binary_codes(w, axis=None, *, groups=None, zero=1, clip=None) -> Codes:
    w = _limited(w, clip)
    return _grouped(functools.partial(_binary, zero=zero), w, axis, groups)


def _ternary_codes(w, axis=None, *, groups=None, clip=None) -> Codes:
    return _grouped(_ternary, _limited(w, clip), axis, groups)


def _scaled(codes: Codes) -> jax.Array:
    return codes.integers * codes.scale


def _shares(axis=None, groups=None, **options) -> tuple[Axis, int | None]:
    return axis, groups


for _fn, _bits, _codes in (binarize, 1, _binary_codes), (ternarize, 2, _ternary_codes):
    _fn.bits, _fn.codes, _fn.centred = _bits, _codes, True  # type: ignore[attr-defined]
    _fn.shares = _shares  # type: ignore[attr-defined]


def _safe_scale(scale: jax.Array) -> jax.Array:
    return jnp.where(scale == 0, 1.0, scale).astype(scale.dtype)


@dataclasses.dataclass(frozen=True)
class _Activation:
    """What both activation quantizers share: settings, values from codes, gradient."""

    bits: int = 8
    axis: Axis = -1
    levels: str = "restricted"
    groups: int | None = None
    centred: ClassVar[bool]
    """Whether the zero point is always 0."""
    _least: ClassVar[int] = 2
    _levels: ClassVar[tuple[str, ...]] = ("restricted", "full")

    def __post_init__(self):
        """Refuse unknown settings."""
        if type(self.bits) is not int or not self._least <= self.bits <= 16:
            raise ValueError(f"bits must be {self._least} to 16, not {self.bits!r}")
        if self.levels not in self._levels:
            known = ", ".join(self._levels)
            raise ValueError(f"levels must be one of {known}, not {self.levels!r}")
        if self.groups is not None and (self.groups < 1 or self.axis not in (-1, None)):
            found = f"groups {self.groups} and axis {self.axis}"
            raise ValueError(f"{found}: give at least one group, or an axis")

    def shares(self) -> tuple[Axis, int | None]:
        """Return the axes, or the groups of the last, that share one range."""
        return self.axis, self.groups

    def codes(self, x: Real[Array, "..."]) -> Codes:
        """Return the integers of ``x``, their scale and their zero point."""
        axis = self.axis if self.groups is None else None
        return _grouped(self._codes, floating(x), axis, self.groups)

    def _codes(self, x: jax.Array, axis: Axis) -> Codes:
        raise NotImplementedError

    def __call__(self, x: Real[Array, "..."]) -> Float[Array, "..."]:
        """Return the quantised values of ``x``, with the gradient of ``x``."""

        def values(x: jax.Array) -> jax.Array:
            integers, scale, zero = self.codes(x)
            return (integers * scale + zero).astype(x.dtype)

        return straight_through(values, floating(x))


@dataclasses.dataclass(frozen=True)
class symmetric(_Activation):  # noqa: N801
    """Symmetric rounding to ``2^bits`` levels around zero.

    ``levels="restricted"``: ``s = max|x| / (2^(bits-1) - 1)``, ``round(x / s) s``, so
    that -127..127 are used and the largest value is itself.
    ``levels="full"``: ``s = 2 max|x| / 2^bits``, ``clip(round(x / s), -128, 127) s``,
    as XTC (DeepSpeed ``SymQuantizer``): the positive maximum becomes 127/128 of it.

    Args:
      bits: 2 to 16.
      axis: the axes that share one scale; -1 is one scale a token.
      levels: ``"restricted"`` or ``"full"``.
      groups: as in ``binarize``, in place of ``axis``.

    >>> symmetric(bits=8)(jnp.array([[31.2, 64.4, -127.0]]))
    Array([[  31.,   64., -127.]], dtype=float32)
    """

    centred: ClassVar[bool] = True

    @property
    def grid(self) -> Grid:
        """The levels, -2^(bits-1) to 2^(bits-1) - 1."""
        half = 2 ** (self.bits - 1)
        steps = half - 1 if self.levels == "restricted" else half
        return Grid(-half, half - 1, True, steps)

    def _codes(self, x: jax.Array, axis: Axis) -> Codes:
        low, top, _, steps, *_ = self.grid
        scale = jnp.max(jnp.abs(x), axis=axis, keepdims=True) / steps
        integers = jnp.clip(jnp.round(x / _safe_scale(scale)), low, top)
        return Codes(integers, scale, jnp.zeros_like(scale))


@dataclasses.dataclass(frozen=True)
class asymmetric(_Activation):  # noqa: N801
    """Rounding to ``2^bits`` levels between the smallest and the largest value.

    ``levels="restricted"``: ``s = (max - min) / (2^bits - 1)``, the zero point is
    ``min``, so that both ends are themselves.
    ``levels="full"``: ``s = (max - min) / 2^bits``, zero point ``round(min / s) s``,
    as XTC (DeepSpeed ``AsymQuantizer``).
    ``levels="widened"``: ``s = (max - min + 1e-8) / (2^bits - 1)``, zero point ``min``,
    as BinaryBERT.

    Args:
      bits: 1 to 16.
      axis: the axes that share one range; -1 is one range a token.
      levels: ``"restricted"``, ``"full"`` or ``"widened"``.
      groups: as in ``binarize``, in place of ``axis``.

    >>> asymmetric(bits=1)(jnp.array([[1.0, 9.0, 4.0, 2.0]]))
    Array([[1., 9., 1., 1.]], dtype=float32)
    """

    centred: ClassVar[bool] = False
    _least: ClassVar[int] = 1
    _levels: ClassVar[tuple[str, ...]] = ("restricted", "full", "widened")

    @property
    def grid(self) -> Grid:
        """The levels, 0 to 2^bits - 1."""
        top, full = 2**self.bits - 1, self.levels == "full"
        spare = 1e-8 if self.levels == "widened" else 0.0
        return Grid(0, top, False, top + full, spare, whole=full)

    def _codes(self, x: jax.Array, axis: Axis) -> Codes:
        first, top, _, steps, spare, whole = self.grid
        low = jnp.min(x, axis=axis, keepdims=True)
        width = jnp.max(x, axis=axis, keepdims=True) - low
        if spare:
            width = width + spare
        scale, zero = width / steps, low
        if whole:
            zero = jnp.round(low / _safe_scale(scale)) * scale
            zero = jnp.where(scale == 0, low, zero)
        integers = jnp.clip(jnp.round((x - zero) / _safe_scale(scale)), first, top)
        return Codes(integers, scale, zero)
