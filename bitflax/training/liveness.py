"""Which inputs of a function its result is made of."""

from collections.abc import Callable
from typing import Any

import jax


def read(fn: Callable[[Any], Any], tree: Any) -> Any:
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
    >>> read(fn, {"a": jnp.ones(2), "b": jnp.ones(3)})
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


def reader(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``(tree, *args) -> bools`` that says what ``fn(tree, *args)`` reads.

    Traced once for each structure of the trees: shapes do not matter.
    """
    found: dict[Any, Any] = {}

    def call(tree: Any, *args: Any) -> Any:
        key = jax.tree.structure((tree, args))
        if key not in found:
            found[key] = read(lambda tree: fn(tree, *args), tree)
        return found[key]

    return call
