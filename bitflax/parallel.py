"""Map a train step over devices: each takes an equal share of the batch's rows."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bitflax.types import Batch

AXIS = "data"


def mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """Return a mesh of one axis, ``"data"``, over all devices, or over these.

    >>> dict(mesh(jax.devices()[:1]).shape)
    {'data': 1}
    """
    devices = jax.devices() if devices is None else devices
    # Auto, whatever this jax's default: Explicit breaks gathers by ids.
    return Mesh(np.asarray(devices), (AXIS,), axis_types=(AxisType.Auto,))


def _check_rows(batch: Batch, devices: int) -> None:
    rows = batch["input_ids"].shape[0]
    if rows % devices:
        raise ValueError(
            f"a batch of {rows} rows over {devices} devices: make it a multiple, with "
            "filler rows of weight 0"
        )


def data_parallel(step: Callable, mesh: Mesh) -> Callable:
    """Return ``step(state, teacher_params, batch)``, compiled, over a mesh's devices.

    The batch is global and its rows are shared out; state and teacher are on every
    device. The state is donated: use the one that comes back. A teacher that is not
    yet on all devices is sent there in every step: ``replicate`` it once.

    Args:
      step: from ``make_train_step``, un-jitted.
      mesh: from ``bitflax.mesh()``.

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
    compiled = jax.jit(mapped, donate_argnums=0)

    @functools.wraps(step)
    def call(state, teacher_params, batch):
        _check_rows(batch, mesh.size)
        # Where they already are, this does nothing; else the step compiles twice.
        state, teacher_params = replicate((state, teacher_params), mesh)
        return compiled(state, teacher_params, batch)

    return call


def pmapped(step: Callable, devices: Sequence[Any] | None = None) -> Callable:
    """Return ``step(state, teacher_params, batch)`` mapped by ``jax.pmap``.

    Called as ``data_parallel``'s is: the batch is global, the state is not stacked.

    Args:
      step: from ``make_train_step``, un-jitted.
      devices: all local ones where None.

    Raises:
      ValueError: the batch's rows are no multiple of the number of devices.
    """
    devices = jax.local_devices() if devices is None else devices
    n = len(devices)
    compiled = jax.pmap(
        functools.partial(step, axis_name=AXIS),
        axis_name=AXIS,
        in_axes=(None, None, 0),
        out_axes=None,
        devices=devices,
        donate_argnums=0,
    )
    places = mesh(devices)

    @functools.wraps(step)
    def call(state, teacher_params, batch):
        _check_rows(batch, n)
        # Where they already are, this does nothing; else the step compiles twice.
        state, teacher_params = replicate((state, teacher_params), places)
        shares = jax.tree.map(lambda x: x.reshape(n, -1, *x.shape[1:]), dict(batch))
        return compiled(state, teacher_params, shares)

    return call


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Return a tree of arrays that every device of a mesh holds whole."""
    return jax.device_put(tree, NamedSharding(mesh, P()))


def shard_batch(batch: Batch, mesh: Mesh) -> dict[str, jax.Array]:
    """Return a global batch with its rows shared out over a mesh's devices.

    With many hosts each gives the rows of its own devices.
    """
    sharding = NamedSharding(mesh, P(AXIS))
    return {
        name: jax.make_array_from_process_local_data(sharding, np.asarray(value))
        for name, value in batch.items()
    }
