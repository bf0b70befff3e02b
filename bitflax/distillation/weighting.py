"""Losses added up by name, each times its weight: a loss again."""

import dataclasses
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitflax.errors import nearest
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
      ValueError: a part is no pair of a number and a function, the number is no
        weight, all of them are 0, or the function has no such option.

    >>> from bitflax.distillation import logits_mse
    >>> loss = weighted(logits=(0.5, logits_mse))
    >>> one, two = (Outputs(jnp.full((2, 1), v), (), ()) for v in (1.0, 3.0))
    >>> float(total(loss(one, two, {})))
    2.0
    """
    arrays = jax.Array | np.ndarray
    for name, part in parts.items():
        if not (isinstance(part, tuple) and len(part) == 2 and callable(part[1])):
            raise ValueError(f"{name} must be (weight, function), not {part!r}")
        weight, fn = part
        number = isinstance(weight, int | float | np.number)
        if not isinstance(weight, arrays) and not (number and 0 <= weight < math.inf):
            raise ValueError(f"{name} must weigh 0 or more, not {weight!r}")
        _check_keywords(name, fn)
    if not any(isinstance(weight, arrays) or weight for weight, _ in parts.values()):
        raise ValueError("a loss needs a part that weighs more than 0")
    return Weighted(parts)


def _check_keywords(name: str, fn: Callable[..., Any]) -> None:
    """Refuse an option that a loss has not, with the nearest that it has."""
    kind, given = getattr(fn, "func", fn), getattr(fn, "keywords", {})
    known = inspect.signature(kind).parameters
    for odd in given.keys() - known:
        if all(each.kind is not each.VAR_KEYWORD for each in known.values()):
            fix = nearest(odd, known, "options")
            raise ValueError(f"{name} has no option {odd!r}: {fix}")


def named(parts: Mean | Mapping[str, Mean]) -> dict[str, Mean]:
    """Return what a loss gave as ``{name: Mean}``; one without a name is the loss.

    >>> named(Mean(4.0, 2.0))
    {'loss': Mean(total=4.0, count=2.0)}
    """
    return {"loss": parts} if isinstance(parts, Mean) else dict(parts)


def total(parts: Mapping[str, Mean]) -> jax.Array:
    """Return what is minimised: the sum of the means.

    >>> float(total({"a": Mean(4.0, 2.0), "b": Mean(3.0, 1.0)}))
    5.0
    """
    return sum((part.value for part in parts.values()), start=jnp.zeros(()))
