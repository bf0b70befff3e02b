"""Matrix products of rounded operands, and exact ones of integers and their scales.

A quantised number is an integer times a scale. Where an activation's scales ``s`` lie
along its rows and a matrix's ``r`` along its columns, they leave the sum:

    sum_k (s_t i_tk) (r_m j_km) = s_t r_m sum_k i_tk j_km

Integers up to 256 are exact in bfloat16, and so are their products and, up to 2^24 in
float32 and 2^31 in int32, sums of them: such a product costs what bfloat16's or int8's
does and gives float32's numbers, save for the rounding of the scales' product. Of 8-bit
activations and weights of 1 or 2 bits no sum comes near 2^24.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Num


class Coded(NamedTuple):
    """Numbers as ``integers * scale + zero``, and the numbers themselves.

    ``value`` [..., n] has the gradient; what the integers are made of does not.
    ``integers`` [..., n] are of the dtype that they are multiplied in; ``scale`` and
    ``zero`` broadcast against them; a ``zero`` of None is 0.
    """

    value: Any
    integers: Any
    scale: Any
    zero: Any = None

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the numbers."""
        return self.integers.shape


def unwrapped(quantizer: Any) -> tuple[Any, dict[str, Any]]:
    """Return what a ``functools.partial`` wraps, and the options that it binds.

    One that binds arguments by their place is itself: what they mean only it knows.

    >>> unwrapped(functools.partial(max, default=0))
    (<built-in function max>, {'default': 0})
    """
    options: dict[str, Any] = {}
    while isinstance(quantizer, functools.partial) and not quantizer.args:
        options = quantizer.keywords | options
        quantizer = quantizer.func
    return quantizer, options


def coded(quantizer: Any, x: Float[Array, "..."], dtype: DTypeLike) -> Coded | Array:
    """Return the values of a quantizer as integers of a dtype, where it has integers.

    Args:
      quantizer: any; with ``codes(x) -> (integers, scale, zero)``, ``bits`` of at most
        8, and ``centred`` its integers are given. Centred is one whose zero is always
        0; the integers of others are 0 to ``2^bits - 1``.
      x: what is quantised.
      dtype: bfloat16, float32 or int8; int8 holds 0..255 as -128..127.

    Returns:
      ``Coded``, whose ``value`` has the gradient of the quantizer; its values alone
      where there are no integers, or more than bfloat16 holds.
    """
    value = quantizer(x)
    kind, options = unwrapped(quantizer)
    known = all(hasattr(kind, name) for name in ("codes", "bits", "centred"))
    if not known or kind.bits > 8:
        return value
    integers, scale, zero = kind.codes(jax.lax.stop_gradient(x), **options)
    if kind.centred:
        zero = None
    elif jnp.dtype(dtype) == jnp.int8:
        integers, zero = integers - 128, zero + 128 * scale
    return Coded(value, integers.astype(dtype), scale, zero)


def product(
    a: Float[Array, "*batch n k"],
    b: Float[Array, "*batch k m"],
    dtype: DTypeLike | None = None,
) -> Float[Array, "*batch n m"]:
    """Return ``a @ b``, its operands rounded to a dtype and summed in their own.

    So are the operands of both gradients' products.

    Args:
      a: the left operand.
      b: the right one; its batch is that of ``a``.
      dtype: ``jnp.bfloat16``; None, or the operands' own: nothing is rounded.

    >>> x = jnp.array([[1.001]])
    >>> product(x, x, jnp.bfloat16)
    Array([[1.]], dtype=float32)
    """
    if dtype is None or (a.dtype == dtype and b.dtype == dtype):
        return a @ b
    return _rounded(dtype, a, b)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _rounded(dtype: DTypeLike, a: jax.Array, b: jax.Array) -> jax.Array:
    return _summed(a.astype(dtype), b.astype(dtype), a.dtype)


def _rounded_forward(dtype, a, b):
    out = a.dtype
    a, b = a.astype(dtype), b.astype(dtype)
    return _summed(a, b, out), (a, b)


def _rounded_backward(dtype, kept, g):
    (a, b), out = kept, g.dtype
    g = g.astype(dtype)
    return _summed(g, b, out, "nt"), _summed(a, g, out, "tn")


_rounded.defvjp(_rounded_forward, _rounded_backward)


def _summed(a: Any, b: Any, out: DTypeLike, form: str = "nn") -> jax.Array:
    """Return a product summed in ``out``; of int8 in int32 first, which is exact.

    Args:
      a: the left operand [..., n, k], transposed already where ``form`` is ``"tn"``.
      b: the right one [..., k, m], transposed already where it is ``"nt"``.
      out: the dtype of the sums.
      form: a transposed operand is named, not made: XLA's CPU back end has no fast
        bfloat16 product of one that it has to find out.
    """
    first = a.ndim - 2
    if form == "tn" and jax.default_backend() == "cpu":
        # Nor one of a left operand that lies transposed: copied first, it takes half
        # the time. Without the layout the transpose would copy nothing.
        rows = Layout(tuple(range(a.ndim)))
        a, form = with_layout_constraint(jnp.swapaxes(a, -1, -2), rows), "nn"
    left, right = {"nn": (1, 0), "nt": (1, 1), "tn": (0, 0)}[form]
    batch = tuple(range(first))
    dims = (((first + left,), (first + right,)), (batch, batch))
    whole = a.dtype == b.dtype == jnp.int8
    kind = jnp.int32 if whole else out
    return jax.lax.dot_general(a, b, dims, preferred_element_type=kind).astype(out)


def integer_product(x: Coded, kernel: Coded) -> Float[Array, "n m"]:
    """Return the product of coded numbers: of their integers, then of their scales.

    The gradients are those of ``x.value @ kernel.value``; their products are of the
    integers too, and of the incoming gradient rounded to the integers' dtype
    (bfloat16 where that is int8).

    Args:
      x: [n, k], its scale and zero [n, 1] or [1, 1].
      kernel: [k, m], its scale [1, m] or [1, 1], without a zero.

    >>> x = jnp.array([[0.5, -1.0]])
    >>> halves = Coded(x, jnp.array([[1, -2]], jnp.int8), jnp.array([[0.5]]))
    >>> signs = jnp.array([[1], [-1]], jnp.int8)
    >>> integer_product(halves, Coded(3.0 * signs, signs, jnp.array([[3.0]])))
    Array([[4.5]], dtype=float32)
    """
    integers = kernel.integers.astype(x.integers.dtype)
    return _integers((x.value, kernel.value), x[1:], (integers, kernel.scale))


@jax.custom_vjp
def _integers(values: Any, x: Any, kernel: Any) -> jax.Array:
    (integers, scale, zero), (j, r) = x, kernel
    y = _summed(integers, j, scale.dtype) * scale * r
    return y if zero is None else y + zero * (_column_sums(j, r.dtype) * r)


def _column_sums(integers: Num[Array, "k m"], dtype: DTypeLike) -> Num[Array, "1 m"]:
    return jnp.sum(integers, axis=0, keepdims=True, dtype=dtype)


def _integers_forward(values, x, kernel):
    return _integers(values, x, kernel), (x, kernel)


def _integers_backward(kept, g):
    ((integers, scale, zero), (j, r)), out = kept, g.dtype
    dtype = jnp.bfloat16 if integers.dtype == jnp.int8 else integers.dtype
    integers, j = integers.astype(dtype), j.astype(dtype)
    by_x = _summed((g * r).astype(dtype), j, out, "nt")
    by_kernel = _summed(integers, (g * scale).astype(dtype), out, "tn")
    if zero is not None:
        by_kernel += jnp.sum(g * zero, axis=0, keepdims=True)
    return (by_x, by_kernel), None, None


_integers.defvjp(_integers_forward, _integers_backward)
