"""Parameter trees as paths: ``encoder/layer_0/ffn/in/kernel``, and rules over them.

A tree is a plain nested dict; whatever is not a dict is a leaf, so that a leaf of
several arrays (a packed matrix) is one leaf here.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
from flax import traverse_util

from bitflax.types import Params

T = TypeVar("T")


def flatten(params: Params) -> dict[str, Any]:
    """Return ``{path: leaf}``, in the tree's order.

    >>> flatten({"ffn": {"in": {"kernel": 1, "bias": 2}}})
    {'ffn/in/kernel': 1, 'ffn/in/bias': 2}
    """
    return traverse_util.flatten_dict(params, sep="/")


def unflatten(flat: dict[str, Any]) -> Params:
    """Return the tree of ``{path: leaf}``; the inverse of ``flatten``.

    >>> unflatten({"ffn/in/kernel": 1, "ffn/in/bias": 2})
    {'ffn': {'in': {'kernel': 1, 'bias': 2}}}
    """
    return traverse_util.unflatten_dict(flat, sep="/")


def map_paths(fn: Callable[[str, Any], Any], params: Params) -> Params:
    """Return the tree of ``fn(path, leaf)``.

    >>> map_paths(lambda path, leaf: path, {"a": {"b": 1}})
    {'a': {'b': 'a/b'}}
    """
    return unflatten({path: fn(path, leaf) for path, leaf in flatten(params).items()})


def compiled(regex: str) -> re.Pattern[str]:
    """Return a rule's regex, compiled; compiling it again costs nothing.

    Raises:
      ValueError: it is no regular expression; holds its text.
    """
    try:
        return re.compile(regex)
    except (re.error, RecursionError, OverflowError, TypeError) as error:
        problem = f"rule {regex!r:.200} is no regular expression: {error}"
        raise ValueError(problem) from None


def match(rules: Sequence[tuple[str, T]], paths: Iterable[str]) -> dict[str, T]:
    """Return ``{path: value}`` of the first rule whose regex is the whole path's.

    Args:
      rules: pairs (regex, value).
      paths: parameter paths, or a flattened tree.

    Raises:
      ValueError: a rule matches no path, is no regex or no pair: a typo, which names
        itself.

    >>> match([("ffn/.*", 1), (".*/kernel", 2)], ["ffn/in/kernel", "out/kernel"])
    {'ffn/in/kernel': 1, 'out/kernel': 2}
    """
    paths = tuple(paths)
    for rule in rules:
        if not isinstance(rule, tuple | list) or len(rule) != 2:
            problem = "expected rules as pairs (regex, value), the first match first, "
            raise ValueError(f"{problem}found {rule!r:.200}")
        regex, _ = rule
        if not any(map(compiled(regex).fullmatch, paths)):
            near = ", ".join(paths[:3])
            raise ValueError(
                f"rule {regex!r} matches no parameter path (paths look like: {near})"
            )
    first = {path: match_one(rules, path) for path in paths}
    return {path: value for path, value in first.items() if value is not None}


def match_one(rules: Sequence[tuple[str, T]], path: str) -> T | None:
    """Return the value of the first rule whose regex is the whole path; None: none.

    >>> match_one([("ffn/.*", 1), (".*", 2)], "ffn/in/kernel")
    1
    """
    matching = (value for regex, value in rules if compiled(regex).fullmatch(path))
    return next(matching, None)


def leaves_read(fn: Callable[[Any], Any], tree: Any) -> Any:
    """Return, for each leaf of ``tree``, whether ``fn(tree)`` is computed from it.

    ``fn`` is traced, not run. An equation counts whole: of a compiled function inside,
    every input is read if any output is.

    Args:
      fn: a function of one tree of arrays.
      tree: the arrays, or ``jax.ShapeDtypeStruct`` of their shapes.

    Returns:
      A tree of bools.

    >>> import jax.numpy as jnp
    >>> def fn(p):
    ...     unused = 2 * p["a"]
    ...     return jnp.sin(p["b"])
    >>> leaves_read(fn, {"a": jnp.ones(2), "b": jnp.ones(3)})
    {'a': False, 'b': True}
    """
    jaxpr = jax.make_jaxpr(fn)(tree).jaxpr
    live = {id(v) for v in jaxpr.outvars}
    for equation in reversed(jaxpr.eqns):
        if not live.isdisjoint(map(id, equation.outvars)):
            live |= set(map(id, equation.invars))
    return jax.tree.unflatten(
        jax.tree.structure(tree), [id(v) in live for v in jaxpr.invars]
    )
