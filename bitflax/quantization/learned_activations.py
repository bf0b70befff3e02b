"""Activation quantizers that learn a clip or a step, beside the model's weights.

Each is a frozen dataclass with ``bits``, ``init(x) -> p``, the parameter made from a
first activation, and ``__call__(x, p)``. The parameter is an ordinary leaf of the
parameter tree at the path of its site (``encoder/layer_0/ffn/in/input``). ``shape``
is its shape; ``looks`` says whether ``init`` looks at the activation. Gradients are
``jax.custom_vjp``.
"""

import dataclasses
import functools
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Real

from bitflax.quantization.quantizers import Axis, Grid, asymmetric, floating, symmetric

LEAST_STEP = 1e-5
"""Steps below this count as this, so that nothing is divided by zero."""


@dataclasses.dataclass(frozen=True)
class clipped:  # noqa: N801
    """Clip to a learned range, then round by another quantizer.

    ``c = clip(x, p[0], p[1])``, then ``quantizer(c)``. The gradient by ``x`` is that of
    the output inside the range and 0 at and beyond its ends; the gradient by ``p`` is
    ``[sum g where x <= p[0], sum g where x >= p[1]]``.

    Args:
      quantizer: rounds what is clipped; its own range is that of ``c``.
      at: the range starts at ``[-at, at]``.
      fixed: whether it stays there: the gradient by ``p`` is 0.

    Raises:
      ValueError: ``at`` is not positive.

    Source: PACT, Choi et al. 2018 (arXiv:1805.06085), with two ends, as BinaryBERT
    trains its activations (arXiv:2012.15701); fixed ones are TernaryBERT's
    (arXiv:2009.12812).

    >>> clipped(symmetric(8), at=1.0)(jnp.array([[0.5, 3.0]]), jnp.array([-1.0, 1.0]))
    Array([[0.503937, 1.      ]], dtype=float32)
    """

    quantizer: symmetric | asymmetric
    at: float = 2.5
    fixed: bool = False
    looks: ClassVar[bool] = False
    shape: ClassVar[tuple[int, ...]] = (2,)

    def __post_init__(self):
        """Refuse what is no range."""
        if not 0 < self.at < math.inf:
            raise ValueError(f"at must be positive, not {self.at}")

    @property
    def bits(self) -> int:
        """The bits of the inner quantizer."""
        return self.quantizer.bits

    @property
    def grid(self) -> Grid:
        """The levels of the inner quantizer, of what is clipped."""
        return self.quantizer.grid

    def shares(self) -> tuple[Axis, int | None]:
        """Return what shares a range in the inner quantizer."""
        return self.quantizer.shares()

    def init(self, x: Real[Array, "..."] | None = None) -> Float[Array, "2"]:
        """Return ``[-at, at]``, in the dtype of ``x`` if there is one."""
        dtype = None if x is None else floating(x).dtype
        return jnp.array([-self.at, self.at], dtype)

    def __call__(
        self, x: Real[Array, "..."], p: Float[Array, "2"]
    ) -> Float[Array, "..."]:
        """Return the quantised values of the clipped ``x``."""
        p, x = jax.lax.stop_gradient(p) if self.fixed else p, floating(x)
        return _clipped(self.quantizer, x, p.astype(x.dtype))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _clipped(quantizer, x, p):
    return quantizer(jnp.clip(x, p[0], p[1]))


def _clipped_forward(quantizer, x, p):
    return _clipped(quantizer, x, p), (x <= p[0], x >= p[1])


def _clipped_backward(quantizer, outside, g):
    below, above = outside
    by_p = jnp.stack([jnp.sum(jnp.where(side, g, 0)) for side in outside])
    return jnp.where(below | above, 0, g), by_p


_clipped.defvjp(_clipped_forward, _clipped_backward)


class _Stepped:
    """What ``lsq`` and ``elastic`` share: whole multiples of one learned step."""

    bits: int
    signed: bool
    looks: ClassVar[bool] = True
    shape: ClassVar[tuple[int, ...]] = ()

    @property
    def grid(self) -> Grid:
        """The multiples of the step."""
        half = 2 ** (self.bits - 1)
        levels = (-half, half - 1) if self.signed else (0, 2 * half - 1)
        return Grid(*levels, centred=True)

    def shares(self) -> tuple[Axis, int | None]:
        """Return no axis and no groups: no range is taken from the values."""
        return (), None

    def init(self, x: Real[Array, "..."]) -> Float[Array, ""]:
        """Return the first step: ``2 mean|x| / sqrt(top)``, twice that if unsigned."""
        if not x.size:
            raise ValueError("an activation without values has no first step")
        top = self.grid.top
        factor = (2 if self.signed else 4) / math.sqrt(top)
        return jnp.maximum(factor * jnp.mean(jnp.abs(x)), LEAST_STEP)

    def __call__(
        self, x: Real[Array, "..."], p: Float[Array, ""]
    ) -> Float[Array, "..."]:
        """Return the multiples of the step ``p`` next to ``x``."""
        x = floating(x)
        return _stepped(self.grid[:2], x, p.astype(x.dtype))


@dataclasses.dataclass(frozen=True)
class lsq(_Stepped):  # noqa: N801
    """Learned step size: ``clip(round(x / p), low, top) p``.

    Levels are ``-2^(bits-1) .. 2^(bits-1) - 1``; unsigned ``0 .. 2^bits - 1`` of
    ``x - min(x)``, which is added again. The gradient by ``x`` is that of the output
    where ``low <= x / p <= top``, 0 beyond; that by ``p`` is ``sum g d``, where ``d``
    is ``low`` below, ``top`` above and ``round(x / p) - x / p`` between, times
    ``1 / sqrt(size of x times top)``. The size is that of the activation at hand: a
    device's share of the batch.

    Args:
      bits: 2 to 16; unsigned 1 to 16.
      signed: whether the levels lie around zero.

    Source: Esser et al. 2019 (arXiv:1902.08153), eq. 1-3 and section 2.2; the
    unsigned kind and first steps as BinaryBERT's (arXiv:2012.15701).

    >>> lsq(bits=4)(jnp.array([0.6, -9.0]), jnp.array(0.5))
    Array([ 0.5, -4. ], dtype=float32)
    """

    bits: int = 4
    signed: bool = True

    def __post_init__(self):
        """Refuse bits that leave no level above zero."""
        _check_bits(self.bits, 2 if self.signed else 1)

    @property
    def grid(self) -> Grid:
        """The multiples of the step, of ``x - min(x)`` where unsigned."""
        return super().grid._replace(centred=self.signed)

    def shares(self) -> tuple[Axis, int | None]:
        """Return no axis where signed, else all: the minimum is that of all values."""
        return () if self.signed else None, None

    def __call__(
        self, x: Real[Array, "..."], p: Float[Array, ""]
    ) -> Float[Array, "..."]:
        """Return the multiples of the step ``p`` next to ``x``, or ``x - min(x)``."""
        if self.signed:
            return super().__call__(x, p)
        low = jax.lax.stop_gradient(jnp.min(x))
        return super().__call__(x - low, p) + low


@dataclasses.dataclass(frozen=True)
class elastic(_Stepped):  # noqa: N801
    """Elastic binarisation: a learned scale, down to 1 bit.

    Signed, 1 bit: ``sign(x) p``, sign(0) = +1. The gradient by ``x`` is that of the
    output where ``|x| <= p``, 0 beyond; by ``p`` it is ``sum(g sign(x))`` times
    ``1 / sqrt(size of x)``.
    Unsigned: ``clip(round(x / p), 0, 2^bits - 1) p``, for activations that are not
    negative: nothing is subtracted, and what is negative becomes 0. That and more bits
    have the gradients of ``lsq``.

    Args:
      bits: 1 to 16.
      signed: whether the levels lie around zero.

    Source: BiT, Liu et al. 2022 (arXiv:2205.13016), its elastic binarisation
    function; more than 1 bit by the same idea.

    >>> elastic()(jnp.array([0.1, -3.0]), jnp.array(0.5))
    Array([ 0.5, -0.5], dtype=float32)
    >>> elastic(signed=False)(jnp.array([0.1, 0.4, 3.0]), jnp.array(0.5))
    Array([0. , 0.5, 0.5], dtype=float32)
    """

    bits: int = 1
    signed: bool = True

    def __post_init__(self):
        """Refuse bits that cannot be."""
        _check_bits(self.bits, 1)

    @property
    def grid(self) -> Grid:
        """The multiples of the step; one signed bit has no 0."""
        return Grid(-1, 1, True) if self.signed and self.bits == 1 else super().grid


def _check_bits(bits: int, least: int) -> None:
    if type(bits) is not int or not least <= bits <= 16:
        raise ValueError(f"bits must be {least} to 16, not {bits!r}")


def _multiples(levels: tuple[int, int], ratio: jax.Array) -> jax.Array:
    if levels == (-1, 1):
        signs = jnp.where(ratio >= 0, 1.0, -1.0).astype(ratio.dtype)
        return jnp.where(jnp.isnan(ratio), ratio, signs)
    return jnp.clip(jnp.round(ratio), *levels)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _stepped(levels, x, step):
    step = jnp.maximum(step, LEAST_STEP)
    return _multiples(levels, x / step) * step


def _stepped_forward(levels, x, step):
    step = jnp.maximum(step, LEAST_STEP)
    ratio = x / step
    return _multiples(levels, ratio) * step, ratio


def _stepped_backward(levels, ratio, g):
    low, top = levels
    inside = (ratio >= low) & (ratio <= top)
    slope = _multiples(levels, ratio)
    if levels != (-1, 1):  # else the output is a sign times the step, everywhere
        slope = slope - jnp.where(inside, ratio, 0)
    by_step = jnp.sum(g * slope) / math.sqrt(ratio.size * top)
    return jnp.where(inside, g, 0), by_step


_stepped.defvjp(_stepped_forward, _stepped_backward)
