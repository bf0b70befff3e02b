"""A train state as a flat dict of plain arrays, and back.

What is saved is then independent of optax's classes, and each array has a name that
a person can read: ``opt_state/1/0/mu/encoder/layer_0/ffn/in/kernel``. Typed random
keys, which no file format knows, become their data.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from bitflax.types import TrainState


def flatten(state: TrainState) -> dict[str, jax.Array]:
    """Return ``{name: array}``; a key is the array of its data.

    >>> state = TrainState(jnp.int32(7), {"w": jnp.ones(2)}, (), jax.random.key(0))
    >>> {name: array.shape for name, array in flatten(state).items()}
    {'step': (), 'params/w': (2,), 'key': (2,)}
    """
    return {
        name: jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for name, leaf in _named(state)
    }


def targets(template: TrainState) -> dict[str, jax.ShapeDtypeStruct]:
    """Return ``{name: shape, dtype and sharding}`` of what ``flatten`` would give.

    Args:
      template: a state of arrays or of ``jax.ShapeDtypeStruct``; a leaf without a
        sharding is wanted on this process's first device.
    """
    found = {}
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    for name, leaf in _named(template):
        raw = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
        sharding = getattr(leaf, "sharding", None) or first
        found[name] = jax.ShapeDtypeStruct(raw.shape, raw.dtype, sharding=sharding)
    return found


def unflatten(flat: Mapping[str, jax.Array], template: TrainState) -> TrainState:
    """Return the state of ``{name: array}``; the inverse of ``flatten``.

    >>> state = TrainState(jnp.int32(7), {"w": jnp.ones(2)}, (), jax.random.key(0))
    >>> unflatten(flatten(state), state).key == state.key
    Array(True, dtype=bool)
    """
    leaves = []
    for name, leaf in _named(template):
        value = flat[name]
        if _is_key(leaf):
            value = jax.random.wrap_key_data(value, impl=_impl(leaf))
        leaves.append(value)
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def describe(arrays: Mapping[str, Any]) -> dict[str, list]:
    """Return ``{name: [dtype, shape]}`` as JSON has it.

    >>> describe({"w": jnp.ones((2, 3))})
    {'w': ['float32', [2, 3]]}
    """
    return {name: [str(x.dtype), list(x.shape)] for name, x in arrays.items()}


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _impl(key: Any) -> Any:
    found = []  # traced, because ``key_impl`` itself takes no ``ShapeDtypeStruct``
    jax.eval_shape(lambda key: found.append(jax.random.key_impl(key)), key)
    return found[0]
