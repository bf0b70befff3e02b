"""Checks of a recipe's fields beyond their types: what numbers may be."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Any

from bitflax import trees
from bitflax.errors import ConfigError
from bitflax.types import Optim


def need(holds: bool, place: str, expected: str, found: object) -> None:
    """Raise a ``ConfigError`` of a field, unless what it needs holds."""
    if not holds:
        problem = f"expected {expected}, found {found!r:.200}"
        raise ConfigError(place, problem, fix=f"give {expected}")


def check_optim(optim: Optim, place: str, *, rated: bool = True) -> None:
    """Check the ranges of an optimizer's settings; ``rated``: it needs an ``lr``."""
    for field, expected in optim.out_of_range():
        need(
            field == "lr" and not rated,
            f"{place}.{field}",
            expected,
            getattr(optim, field),
        )
    check_rules([(regex, None) for regex in optim.frozen], f"{place}.frozen")


def check_rules(rules: Sequence[tuple[str, Any]], place: str) -> None:
    """Check that every rule has a regular expression, and what jax can compile."""
    for regex, quantizer in rules:
        try:
            trees.compiled(regex)
        except ValueError as error:
            raise ConfigError(place, str(error), fix="correct the rule") from None
        try:
            hash(quantizer)
        except TypeError as error:
            fix = "if it is a dataclass of yours, have it be frozen=True"
            raise ConfigError(place, f"rule {regex!r}: {error}", fix=fix) from None


def check_counts(part: Any, place: str, fields: Sequence[str]) -> None:
    """Check that these fields are at least 1, or None."""
    for field in fields:
        value = getattr(part, field)
        need(value is None or value > 0, f"{place}.{field}", "at least 1", value)


def check_unread(part: Any, place: str, read: Collection[str]) -> None:
    """Check that a ready teacher has no settings but those in ``read``."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if field.name not in read and value not in (field.default, 0):
            problem = "expected none, as a ready folder is not fine-tuned, found "
            fix = f"--set teacher.{field.name}={field.default} --set teacher.folder=..."
            fix += ", in this order; or give the folder as pretrained"
            raise ConfigError(f"{place}.{field.name}", f"{problem}{value!r}", fix=fix)


def check_patience(part: Any, place: str) -> None:
    """Check that a training has so many evaluations that ``patience`` may end it early.

    The first one is the best so far, and after the last one there is nothing to spare.
    """
    if part.patience is None:
        return
    evals = part.evals
    if part.steps:
        every = -(-part.steps // part.evals)
        evals = -(-part.steps // every)
    least = part.patience + 2
    if evals < least:
        problem = (
            f"{part.patience} can never end it early: expected {least} evaluations "
        )
        problem += f"or more, found {evals}, the first of which is the best so far"
        fix = f"give evals={least} or more, and as many steps; or no patience"
        raise ConfigError(f"{place}.patience", problem, fix=fix)
