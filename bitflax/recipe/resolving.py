"""A recipe as JSON, and a function as text: the same in every process."""

import dataclasses
import functools
import inspect
from typing import Any

from bitflax.recipe import recipe, schema
from bitflax.types import Optim

# Written without their kind: a run folder says by their fields which they are.
_OWN = (
    *(recipe.Recipe, recipe.Stage, recipe.Init, recipe.Shape, Optim),
    *(schema.Data, schema.Teacher, schema.Corpus),
)


def resolved(node: Any) -> Any:
    """Return a recipe, or a part of one, as JSON-able data; functions by name.

    The same recipe gives the same data in every process, so that a run can tell
    whether it goes on with the recipe that it began with.

    >>> resolved(schema.Corpus(length=64, source="a.txt"))["length"]
    64
    """
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        kind = type(node)
        parts = {
            f.name: resolved(getattr(node, f.name)) for f in dataclasses.fields(node)
        }
        own = kind in _OWN
        return parts if own else {"kind": kind.__name__, **parts}
    if isinstance(node, dict):
        return {str(key): resolved(value) for key, value in node.items()}
    if isinstance(node, tuple | list):
        return [resolved(item) for item in node]
    if node is None or isinstance(node, bool | int | float | str):
        return node
    return function_name(node)


def function_name(fn: Any) -> str:
    """Return a function with its bound arguments as text, the same in every process.

    >>> function_name(functools.partial(round, ndigits=2))
    'round(ndigits=2)'
    """
    if isinstance(fn, functools.partial):
        bound = [_shown(arg) for arg in fn.args]
        bound += [
            f"{key}={_shown(value)}" for key, value in sorted(fn.keywords.items())
        ]
        return f"{function_name(fn.func)}({', '.join(bound)})"
    fn = inspect.unwrap(fn)
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    if not inspect.isfunction(fn) or not fn.__closure__:
        return name
    held = inspect.getclosurevars(fn).nonlocals
    bound = [f"{key}={_shown(value)}" for key, value in sorted(held.items())]
    return f"{name}({', '.join(bound)})"


def _shown(value: Any) -> str:
    # A function inside a closure may be that closure's own: its name has to do.
    if inspect.isfunction(value):
        return value.__qualname__
    shown = resolved(value)
    return shown if callable(value) and isinstance(shown, str) else repr(shown)
