"""Map a train step over devices: each takes an equal share of the batch's rows."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bitflax.types import Batch

AXIS = "data"


def mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh of one axis, ``"data"``, over all devices, or over these.

    The devices of a process stand side by side, in the order of the processes.

    >>> dict(mesh(jax.devices()[:1]).shape)
    {'data': 1}
    """
    devices = by_process(jax.devices()) if devices is None else devices
    # Auto, whatever this jax's default: Explicit breaks gathers by ids.
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def by_process(devices: Sequence[Any]) -> list[Any]:
    """Return devices in the order of their processes; TPU slices may mix them."""
    return sorted(devices, key=lambda device: (device.process_index, device.id))


def _check_rows(batch: Batch, devices: int) -> None:
    rows = batch["input_ids"].shape[0]
    if rows % devices:
        raise ValueError(
            f"a batch of {rows} rows over {devices} devices: make it a multiple, with "
            "filler rows of weight 0"
        )


class Mapped:
    """A step over the devices of a mesh; ``data_parallel`` makes it."""

    def __init__(self, step: Callable, compiled: Any, mesh: Mesh):
        functools.update_wrapper(self, step)
        self._compiled, self._mesh = compiled, mesh

    def __call__(self, state: Any, teacher_params: Any, batch: Batch) -> Any:
        """Take the step."""
        _check_rows(batch, self._mesh.size)
        # Where they already are, this does nothing; else the step compiles twice.
        state, teacher_params = replicate((state, teacher_params), self._mesh)
        return self._compiled(state, teacher_params, batch)

    def lower(self, state: Any, teacher_params: Any, batch: Batch) -> Any:
        """Return the program, as ``jax.jit(...).lower``, for what lies in place."""
        _check_rows(batch, self._mesh.size)
        return self._compiled.lower(state, teacher_params, batch)


def data_parallel(
    step: Callable, mesh: Mesh, compiler_options: dict[str, Any] | None = None
) -> Mapped:
    """Return ``step(state, teacher_params, batch)``, compiled, over a mesh's devices.

    The batch is global and its rows are shared out; state and teacher are on every
    device. The state is donated: use the one that comes back. A teacher that is not
    yet on all devices is sent there in every step: once, before the first, by
    ``bitflax.training.replicate(params, mesh)``, is quicker.

    Args:
      step: from ``make_train_step``, un-jitted.
      mesh: from ``bitflax.mesh()``.
      compiler_options: as ``jax.jit`` takes them.

    Raises:
      ValueError: the batch's rows are no multiple of the number of devices.
    """
    # check_vma would sum the gradients a second time, silently.
    mapped = jax.shard_map(
        functools.partial(step, axis_name=AXIS),
        mesh=mesh,
        in_specs=(P(), P(), P(AXIS)),
        out_specs=(P(), P()),
        check_vma=False,
    )
    compiled = jax.jit(mapped, donate_argnums=0, compiler_options=compiler_options)
    return Mapped(step, compiled, mesh)


def pmapped(step: Callable, devices: Sequence[Any] | None = None) -> Callable:
    """Return ``step(state, teacher_params, batch)`` mapped by ``jax.pmap``.

    Called as ``data_parallel``'s is: the batch is global, the state is not stacked.

    Args:
      step: from ``make_train_step``, un-jitted.
      devices: of this process; where None, all of every process.

    Raises:
      ValueError: the batch's rows are no multiple of the number of devices.
    """
    places = mesh(jax.local_devices() if devices is None else devices)
    n, holders = places.size, set(places.devices.flat)
    share = n * jax.process_count() if devices is None else n
    compiled = jax.pmap(
        functools.partial(step, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=devices,
        donate_argnums=0,
    )

    def put(tree):
        if jax.process_count() == 1:
            return replicate(tree, places)
        # jax 0.7 cannot put what a pmap of many processes returned.
        return jax.tree.map(
            lambda x: x if held(x) else replicate(to_local(x), places), tree
        )

    def held(x):
        return isinstance(x, jax.Array) and x.sharding.device_set == holders

    def shared(x):
        # With many processes each hands in the rows of its own devices.
        x = x if getattr(x, "is_fully_addressable", True) else own_rows(x)
        return x.reshape(n, -1, *x.shape[1:])

    @functools.wraps(step)
    def call(state, teacher_params, batch):
        _check_rows(batch, share)
        # Where they already are, this does nothing; else the step compiles twice.
        state, teacher_params = put((state, teacher_params))
        return compiled(state, teacher_params, jax.tree.map(shared, dict(batch)))

    return call


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Return a tree of arrays that every device of a mesh holds whole.

    With many processes all of them come here with a tree of one structure, and the
    numbers are those of process 0.
    """
    places = NamedSharding(mesh, P())
    # Asked before every step: to look costs a thirtieth of putting what lies there.
    if all(getattr(leaf, "sharding", None) == places for leaf in jax.tree.leaves(tree)):
        return tree
    if places.is_fully_addressable:
        return jax.device_put(tree, places)
    leaves, structure = jax.tree.flatten(tree)
    here = [i for i, leaf in enumerate(leaves) if _is_local(leaf)]
    if here:
        own = [np.asarray(numbers(leaves[i])) for i in here]
        found = multihost_utils.broadcast_one_to_all(own)
        for i, value in zip(here, found, strict=True):
            make = jax.make_array_from_process_local_data
            leaves[i] = as_leaf(make(places, value, value.shape), leaves[i])
    return jax.tree.unflatten(structure, leaves)


def _is_local(leaf: Any) -> bool:
    return not isinstance(leaf, jax.Array) or leaf.is_fully_addressable


def numbers(leaf: Any) -> Any:
    """Return a leaf that is a random key as the array of its data, others as they are.

    >>> numbers(jax.random.key(0)).shape, numbers(jnp.ones(3)).shape
    ((2,), (3,))
    """
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def as_leaf(value: Any, like: Any) -> Any:
    """Return ``numbers(like)`` as ``like`` is, which may be its shape and dtype alone.

    >>> key = jax.random.key(0)
    >>> as_leaf(numbers(key), key) == key
    Array(True, dtype=bool)
    """
    if not _is_key(like):
        return value
    impl = []  # traced, because ``key_impl`` itself takes no ``ShapeDtypeStruct``
    jax.eval_shape(lambda key: impl.append(jax.random.key_impl(key)), like)
    return jax.random.wrap_key_data(value, impl=impl[0])


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def to_local(tree: Any) -> Any:
    """Return a replicated tree as arrays of this process alone."""

    def own(leaf):
        if _is_local(leaf):
            return leaf
        return as_leaf(jnp.asarray(np.asarray(numbers(leaf))), leaf)

    return tree if jax.process_count() == 1 else jax.tree.map(own, tree)


def shard_batch(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Return a global batch with its rows shared out over a mesh's devices.

    With many processes each gives the rows of its own devices: the ``i``-th of ``n``
    equal parts.
    """
    sharding = NamedSharding(mesh, P(AXIS))
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for name, value in batch.items()
    }


def own_rows(array: jax.Array) -> np.ndarray:
    """Return the rows of a sharded array that this process's devices hold, in order."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = {s.index[0].start or 0: s.data for s in array.addressable_shards}
    return np.concatenate([np.asarray(shards[start]) for start in sorted(shards)])


def summed(array: np.ndarray) -> np.ndarray:
    """Return the sum of an array over all processes, on each of them."""
    if jax.process_count() == 1:
        return array
    return np.asarray(multihost_utils.process_allgather(array)).sum(axis=0)
