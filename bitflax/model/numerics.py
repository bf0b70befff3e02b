"""What a model computes with: quantisers of activations and the dtypes of products."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
from jax.typing import DTypeLike

from bitflax.model import leaves, matmul
from bitflax.model.matmul import Coded
from bitflax.types import Quantizer


@dataclasses.dataclass(frozen=True)
class Numerics:
    """What a model computes with: quantizers of activations, dtypes of products.

    Attributes:
      act: ``{site: array -> array}``, from ``bind``.
      dtype: what operands of products are rounded to; None: they are not.
      integers: the dtype in which integers of quantised activations are multiplied;
        None: their values are.
      recompute: whether both halves of a layer are computed again on the way back.
    """

    act: Mapping[str, Quantizer]
    dtype: DTypeLike | None = None
    integers: DTypeLike | None = None
    recompute: bool = False

    def at(self, site: str, x: jax.Array) -> jax.Array:
        """Quantise an activation, if its site has a quantizer."""
        quantizer = self.act.get(site)
        return x if quantizer is None else quantizer(x)

    def into(self, site: str, x: jax.Array) -> jax.Array | Coded:
        """Quantise what goes into a matrix: as integers, if they are multiplied."""
        if self.integers is None or site not in self.act:
            return self.at(site, x)
        return matmul.coded(self.act[site], x, self.integers)

    def matmul(self, x: jax.Array | Coded, kernel: Any) -> jax.Array:
        """Return ``x @ kernel`` for any kind of kernel [n, m]."""
        return leaves.matmul(x, kernel, self.dtype)

    def product(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Return ``a @ b`` of two activations."""
        return matmul.product(a, b, self.dtype)
