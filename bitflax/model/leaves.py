"""The kinds of leaf a parameter tree may hold besides arrays, and how they multiply.

The model calls ``matmul`` and ``lookup``; the kind of the leaf decides what happens,
so that training, evaluation and the packed file run through one model function.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int

from bitflax.model.matmul import Coded, coded, integer_product, product
from bitflax.types import Quantizer


class Field(NamedTuple):
    """How many fields share a byte, and that ``c`` stands for ``step c + offset``."""

    per_byte: int
    step: int
    offset: int


FIELDS: dict[int | float, Field] = {
    1: Field(8, 2, -1),  # -1 or +1
    2: Field(4, 1, -1),  # -1, 0 or +1
    8: Field(1, 1, 0),  # a signed integer
    1.6: Field(5, 1, -1),  # -1, 0 or +1
    4: Field(2, 1, 0),  # a signed integer
}
"""What a field of so many bits is; 1.6 and 4 bits are a file's alone."""


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=("codes", "scale"),
    meta_fields=("bits", "shape"),
)
@dataclasses.dataclass(frozen=True)
class Packed:
    """A matrix as whole bytes of codes and its scales.

    The last axis is packed row by row, the lowest bits of a byte first, each row
    padded with zero bits to whole bytes. ``FIELDS`` says what a code of 1, 2 or 8 bits
    stands for, times ``scale``.

    ``codes`` is uint8 [rows, bytes]; ``scale`` is float [1 or rows, groups], where
    the groups cut the last axis into equal runs. ``shape`` is that of the matrix.
    """

    codes: Any
    scale: Any
    bits: int
    shape: tuple[int, ...]


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("table",), meta_fields=("quantizer",)
)
@dataclasses.dataclass(frozen=True)
class Lazy:
    """A table or a kernel that is quantised when it is used.

    A table's rows are quantised after they are looked up: for a quantizer that scales
    each row by itself this gives the same numbers as quantising the whole table, at
    the cost of the rows that a batch uses. A kernel's integers and scales stay apart.
    """

    table: Any
    quantizer: Quantizer

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the table."""
        return self.table.shape


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("a", "b"), meta_fields=()
)
@dataclasses.dataclass(frozen=True)
class Split:
    """A matrix or table as the sum of two halves of its shape, each a leaf of its own.

    The halves are of one kind: two latent arrays, which ``bitflax.quantize`` quantises
    each by itself, or two ``bitflax.model.Lazy`` or ``bitflax.model.Packed`` leaves.
    ``bitflax.split`` makes it of a ternary matrix, so that the sum of two 1-bit
    matrices is the ternary one (Bai et al. 2021, BinaryBERT, section 3,
    arXiv:2012.15701).

    >>> float(matmul(jnp.ones((1, 1)), Split(jnp.eye(1), 2 * jnp.eye(1)))[0, 0])
    3.0
    """

    a: Any
    b: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of each half, and of the sum."""
        return self.a.shape


def codes_to_values(codes: Array, bits: int, cols: int) -> Array:
    """Unpack bytes [..., bytes] into integers [..., cols], as int8.

    >>> codes_to_values(jnp.array([[0b101]], jnp.uint8), 1, 3)
    Array([[ 1, -1,  1]], dtype=int8)
    """
    per_byte, step, offset = FIELDS[bits]
    shifts = jnp.arange(per_byte, dtype=jnp.uint8) * jnp.uint8(bits)
    shifts = jnp.expand_dims(shifts, range(codes.ndim))
    fields = (codes[..., None] >> shifts) & jnp.uint8(2**bits - 1)
    fields = fields.reshape(*codes.shape[:-1], -1)[..., :cols].astype(jnp.int8)
    return step * fields + offset


def _rows(codes: Array, scale: Array, bits: int, cols: int) -> Array:
    values = codes_to_values(codes, bits, cols).astype(scale.dtype)
    wide = jnp.repeat(scale, cols // scale.shape[-1], axis=-1)
    return values * jnp.broadcast_to(wide, values.shape)


def dense(leaf: Any) -> Any:
    """Return the array that a leaf stands for; an array is itself."""
    if isinstance(leaf, Packed):
        return _rows(leaf.codes, leaf.scale, leaf.bits, leaf.shape[1])
    if isinstance(leaf, Lazy):
        return leaf.quantizer(leaf.table)
    if isinstance(leaf, Split):
        return dense(leaf.a) + dense(leaf.b)
    if isinstance(leaf, Coded):
        return leaf.integers * leaf.scale if leaf.value is None else leaf.value
    return leaf


def factored(kernel: Any, dtype: DTypeLike) -> tuple[Coded, ...] | None:
    """Return the coded numbers whose sum a kernel is; None where it is none.

    A kernel is coded where its scales lie along its columns, or there is one alone: it
    is ``Coded``, or ``Packed`` so, or ``Lazy`` with a quantizer that has codes, or
    ``Split`` into these.

    Args:
      kernel: a leaf that stands for [n, m].
      dtype: of the integers.
    """
    if isinstance(kernel, Coded):
        return (kernel,)
    if isinstance(kernel, Split):
        a, b = factored(kernel.a, dtype), factored(kernel.b, dtype)
        return a + b if a and b else None
    if isinstance(kernel, Packed) and kernel.scale.shape[0] == 1:
        cols = kernel.shape[1]
        integers = codes_to_values(kernel.codes, kernel.bits, cols).astype(dtype)
        scale, groups = kernel.scale, kernel.scale.shape[-1]
        scale = scale if groups == 1 else jnp.repeat(scale, cols // groups, axis=-1)
        return (Coded(dense(kernel), integers, scale),)
    if isinstance(kernel, Lazy):
        found = coded(kernel.quantizer, kernel.table, dtype)
        if isinstance(found, Coded) and found.zero is None:
            return (found,) if found.scale.shape[0] == 1 else None
    return None


def matmul(
    x: Float[Array, "... n"] | Coded, kernel: Any, dtype: DTypeLike | None = None
) -> Float[Array, "... m"]:
    """Return ``x @ kernel`` for any kind of kernel [n, m].

    Where both are coded, and the scales of ``x`` lie along its rows, their integers are
    multiplied: one product for each half of a ``Split``, each exact. Otherwise the
    halves are added first, since one product is cheaper than two.

    Args:
      x: an activation, or what ``coded`` made of it.
      kernel: an array or a leaf.
      dtype: what the operands are rounded to where values are multiplied.
    """
    value = x.value if isinstance(x, Coded) else x
    # One matrix product over all tokens: a batched one is 7 % slower on a CPU.
    flat = value.reshape(-1, value.shape[-1])
    parts = None
    if isinstance(x, Coded) and x.scale.shape[-1] == 1:
        parts = factored(kernel, x.integers.dtype)
    if parts:
        rows = _by_rows(x, flat)
        each = [integer_product(rows, part) for part in parts]
        y = functools.reduce(jnp.add, each)
    else:
        y = product(flat, dense(kernel), dtype)
    return y.reshape(*value.shape[:-1], y.shape[-1])


def _by_rows(x: Any, flat: Array) -> Coded:
    """Return coded numbers [..., n] as a matrix of rows, each with its scale."""

    def row(scale: Array | None) -> Array | None:
        if scale is None or scale.size == 1:
            return scale if scale is None else scale.reshape(1, 1)
        return jnp.broadcast_to(scale, (*x.value.shape[:-1], 1)).reshape(-1, 1)

    return Coded(flat, x.integers.reshape(flat.shape), row(x.scale), row(x.zero))


def lookup(
    table: Any, ids: Int[Array, "*batch"], pad: int | None = None
) -> Float[Array, "*batch width"]:
    """Return the rows ``ids`` of any kind of table [rows, width].

    The row ``pad`` gets no gradient, as ``padding_idx`` of ``torch.nn.Embedding``.
    """
    if isinstance(table, Packed):
        scale = table.scale if table.scale.shape[0] == 1 else table.scale[ids]
        return _rows(table.codes[ids], scale, table.bits, table.shape[1])
    if isinstance(table, Lazy):
        return table.quantizer(lookup(table.table, ids, pad))
    if isinstance(table, Split):
        return lookup(table.a, ids, pad) + lookup(table.b, ids, pad)
    rows = table[ids]
    if pad is None:
        return rows
    return jnp.where((ids == pad)[..., None], jax.lax.stop_gradient(rows), rows)
