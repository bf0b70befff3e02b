"""Losses added by name, each times its weight."""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp

from bitflax.types import Batch, Mean, Outputs


@dataclasses.dataclass(frozen=True)
class Weighted:
    """A named sum of losses; call it as a loss. ``bitflax.weighted`` makes it."""

    parts: Mapping[str, tuple[float, Callable[..., Mean]]]

    def __call__(
        self, student: Outputs, teacher: Outputs | None, batch: Batch
    ) -> dict[str, Mean]:
        """Return ``{name: Mean}``, each total times its weight."""
        means = {}
        for name, (weight, fn) in self.parts.items():
            total, count = fn(student, teacher, batch)
            means[name] = Mean(weight * total, count)
        return means


def weighted(**parts: tuple[float, Callable[..., Mean]]) -> Weighted:
    """Return the loss that adds losses by name, each times its weight.

    Args:
      **parts: ``name=(weight, loss)``.

    Raises:
      ValueError: a part is no pair of a number and a function.

    >>> from bitflax.distillation.losses import logits_mse
    >>> loss = weighted(logits=(0.5, logits_mse))
    >>> one, two = (Outputs(jnp.full((2, 1), v), (), ()) for v in (1.0, 3.0))
    >>> float(total(loss(one, two, {})))
    2.0
    """
    for name, part in parts.items():
        if not (isinstance(part, tuple) and len(part) == 2 and callable(part[1])):
            raise ValueError(f"{name} must be (weight, function), not {part!r}")
    return Weighted(parts)


def total(parts: Mapping[str, Mean]) -> jax.Array:
    """Return what is minimised: the sum of the means.

    >>> float(total({"a": Mean(4.0, 2.0), "b": Mean(3.0, 1.0)}))
    5.0
    """
    return sum((part.value for part in parts.values()), start=jnp.zeros(()))
