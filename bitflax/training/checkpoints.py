"""Checkpoints that are either whole or not used.

orbax writes a step in the background while training goes on. It does not notice a
bit that flips later: most flips restore silently wrong. So each step gets::

    <folder>/120/state/...       parameters, optimizer, random key, step
    <folder>/120/extra/...       the position in the data, as JSON
    <folder>/120/MANIFEST.json   SHA-256 of each file; written last

A step is restored only after all of its files are checked. One that is damaged, or
has no manifest, is set aside, which is said.
"""

import logging
import math
import operator
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from bitflax import files, manifests
from bitflax.errors import ConfigError, DamagedFile, StorageError
from bitflax.training import hosts, parallel
from bitflax.types import TrainState

_LOG = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of one stage; only the run that holds the folder opens them.

    Opening removes what an interrupted save left behind. With many processes all of
    them open it, save and restore together; the folder is on a disk that they share.
    Any other number of them can go on from it.

    Args:
      folder: where the steps go; it is made by the first save.
      keep_last: how many of the newest steps stay, at least 2: while the newest is
        not yet verified, the one before it must exist.
      keep_best: how many of the steps with the highest metric stay besides.

    >>> import tempfile, jax.numpy as jnp
    >>> state = TrainState(jnp.int32(7), {"w": jnp.ones(2)}, (), jax.random.key(0))
    >>> with tempfile.TemporaryDirectory() as folder, Checkpoints(folder) as saved:
    ...     saved.save(7, state, {"epoch": 1})
    ...     restored, extra = saved.restore(state)
    >>> int(restored.step), extra
    (7, {'epoch': 1})
    """

    def __init__(self, folder: str | Path, *, keep_last: int = 2, keep_best: int = 1):
        if keep_last < 2:
            raise ValueError(f"keep_last must be at least 2, not {keep_last}")
        self.folder = Path(folder).absolute()
        self._keep = (keep_last, keep_best)
        self._made: Any = None
        self._known: set[int] = set()  # written or restored here: surely this history
        self._finisher: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._lost: list[Path] = []
        if hosts.is_main_process():
            self._lost = manifests.remove_unfinished(self.folder)
        hosts.barrier()

    def __enter__(self) -> "Checkpoints":
        """Return the checkpoints themselves."""
        return self

    def __exit__(self, *exc: object) -> None:
        """Wait for the last save."""
        # A process that fails must not wait for others that do not come.
        if exc[0] is None or jax.process_count() == 1:
            self.close()

    @property
    def steps(self) -> tuple[int, ...]:
        """The finished steps, oldest first; finished does not mean undamaged."""
        return tuple(sorted(manifests.finished(self.folder)))

    def save(
        self,
        step: int,
        state: TrainState,
        extra: Mapping[str, Any],
        metric: float | int | None = None,
    ) -> None:
        """Begin to save a step; return when the arrays may be donated.

        A step that was saved or restored here already is left as it is. Other steps
        from this number on are of another history, and are removed: the run fell back
        behind a damaged step.

        Args:
          step: the number of training steps done.
          state: what the train step changes; may be replicated over a mesh.
          extra: JSON: whatever else the run needs to go on.
          metric: higher is better; None or nan: never the best.

        Raises:
          StorageError: this save or the one before it could not be written.
        """
        self.wait()
        if step in self._known:
            return
        import orbax.checkpoint as ocp

        flat = _flat_state(state)
        if not self.folder.parent.is_dir():  # or it would be made anew, with holes
            fix = "put the run's folder back, or begin another"
            raise StorageError(self.folder.parent, "the folder is gone", fix=fix)
        files.need_space(self.folder, sum(x.nbytes for x in flat.values()))
        with files.disk(self.folder, also=(ValueError,)):
            # All delete the same: a network folder may show them different steps.
            for old in hosts.broadcast(lambda: self.steps):
                if old >= step:
                    self._manager().delete(old)
            self._manager().save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(flat),
                    extra=ocp.args.JsonSave(dict(extra)),
                ),
                metrics={"metric": _score(metric)},
                force=True,
            )
        head = {
            "step": step,
            "metric": _score(metric) if math.isfinite(_score(metric)) else None,
            "leaves": _described(flat),
        }
        self._finisher = threading.Thread(target=self._finish, args=(head,))
        self._finisher.start()

    def restore(
        self, template: TrainState, best: bool = False
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Return the newest undamaged state and its ``extra``; None: nothing saved.

        Args:
          template: a state of the wanted structure, shapes and shardings; arrays or
            ``jax.ShapeDtypeStruct``.
          best: the step of the highest metric instead of the newest.

        Raises:
          DamagedFile: every step is damaged.
          ConfigError: the checkpoint is of another model or optimizer.
        """
        self.wait()
        # Whole files are read to be checked: once, not by every process.
        step = hosts.broadcast(lambda: self._choose(best))
        if step is None:
            return None
        import orbax.checkpoint as ocp

        wanted = _targets(template)
        _check_leaves(self.folder / str(step), wanted)
        with files.disk(self.folder):
            found = self._manager().restore(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardRestore(wanted),
                    extra=ocp.args.JsonRestore(),
                ),
            )
        self._known.add(step)
        return _unflat_state(found["state"], template), found["extra"]

    def _choose(self, best: bool) -> int | None:
        """Return the step to restore, checked; None: nothing is saved."""
        order = sorted(self.steps, key=self._rank if best else None, reverse=True)
        whole, damaged = None, dict[int, DamagedFile]()
        for step in order:
            try:
                manifests.check_manifest(self.folder / str(step))
                whole = step if whole is None else whole
                if best:
                    break  # who goes on checks all: orbax ranks what it keeps
            except DamagedFile as error:
                damaged[step] = error
        for step, error in damaged.items():
            said = f"{error.place}: {error.problem}"
            if whole is not None:
                said += f"; set aside as {manifests.set_aside(self.folder / str(step))}"
            _LOG.warning("%s; the step is skipped", said)
        if whole is not None:
            return whole
        if self._lost and not order:
            _LOG.warning(
                "%s: no step is left that can be read: the stage begins at step 0\n"
                "fix: nothing, or stop it and put back what %s lacks",
                self.folder,
                self._lost[-1],
            )
        if order:
            raise DamagedFile(
                self.folder,
                f"all {len(order)} checkpoints are damaged",
                fix="remove this folder to train the stage again, and check the disk",
            )
        return None

    def wait(self) -> None:
        """Wait until the save that has begun is on the disk, its manifest too.

        Raises:
          StorageError: it could not be written.
        """
        begun, self._finisher = self._finisher, None
        if begun is not None:
            begun.join()
        failure, self._failure = self._failure, None
        # tensorstore raises ValueError where the disk is full.
        with files.disk(self.folder, also=(ValueError,)):
            if failure is not None:
                raise failure
        if begun is not None:
            hosts.barrier()  # process 0 has written the manifest

    def close(self) -> None:
        """Wait, and let go of orbax's threads."""
        try:
            self.wait()
        finally:
            manager, self._made = self._made, None
            if manager is not None:
                with files.disk(self.folder, also=(ValueError,)):
                    manager.close()

    def _manager(self) -> Any:
        if self._made is None:
            self._made = _make_manager(self.folder, *self._keep)
        return self._made

    def _finish(self, head: dict[str, Any]) -> None:
        # In a thread of its own; every other use of the manager waits for it first.
        try:
            self._made.wait_until_finished()
            if hosts.is_main_process():
                manifests.write_manifest(self.folder / str(head["step"]), head)
            self._known.add(head["step"])
        except BaseException as error:
            self._failure = error

    def _rank(self, step: int) -> tuple[float, int]:
        try:
            metric = manifests.read_manifest(self.folder / str(step))["metric"]
        except DamagedFile:  # it may have been the best: to be said
            return (math.inf, step)
        return (_score(metric), step)


def _score(metric: float | int | None) -> float:
    return float(metric) if metric is not None and math.isfinite(metric) else -math.inf


def _make_manager(folder: Path, last: int, best: int) -> Any:
    import orbax.checkpoint as ocp
    from orbax.checkpoint.checkpoint_managers import preservation_policy as policies

    # What orbax logs as an error is raised here, once and without its traceback.
    logging.getLogger("absl").addFilter(_not_from_orbax)
    # ``max_to_keep`` together with ``best_fn`` would delete the newest step.
    keep = [
        policies.LatestN(n=last),
        policies.BestN(get_metric_fn=operator.itemgetter("metric"), n=best),
    ]
    options = ocp.CheckpointManagerOptions(
        preservation_policy=policies.AnyPreservationPolicy(keep),
        best_fn=operator.itemgetter("metric"),
    )
    return ocp.CheckpointManager(folder, options=options)


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


def _check_leaves(folder: Path, wanted: Mapping[str, Any]) -> None:
    saved = manifests.read_manifest(folder)["leaves"]
    ours = _described(wanted)
    for name in sorted(saved.keys() | ours.keys()):
        there, here = saved.get(name, "absent"), ours.get(name, "absent")
        if there != here:
            raise ConfigError(
                folder,
                f"another model's checkpoint: {name} is {there} there, {here} here",
                fix="choose another --out, or the recipe that this folder began with",
            )


def _flat_state(state: TrainState) -> dict[str, jax.Array]:
    """Return ``{name: array}``; a key is the array of its data.

    >>> import jax.numpy as jnp
    >>> state = TrainState(jnp.int32(7), {"w": jnp.ones(2)}, (), jax.random.key(0))
    >>> {name: array.shape for name, array in _flat_state(state).items()}
    {'step': (), 'params/w': (2,), 'key': (2,)}
    """
    return {name: parallel.numbers(leaf) for name, leaf in _named(state)}


def _targets(template: TrainState) -> dict[str, jax.ShapeDtypeStruct]:
    """Return ``{name: shape, dtype and sharding}`` of what ``_flat_state`` gives.

    Args:
      template: a state of arrays or of ``jax.ShapeDtypeStruct``; a leaf without a
        sharding is wanted on this process's first device.
    """
    first = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    shapes = jax.eval_shape(_flat_state, template)
    return {
        name: jax.ShapeDtypeStruct(
            shapes[name].shape,
            shapes[name].dtype,
            sharding=getattr(leaf, "sharding", None) or first,
        )
        for name, leaf in _named(template)
    }


def _unflat_state(flat: Mapping[str, jax.Array], template: TrainState) -> TrainState:
    """Return the state of ``{name: array}``; the inverse of ``_flat_state``."""
    leaves = [parallel.as_leaf(flat[name], leaf) for name, leaf in _named(template)]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def _described(arrays: Mapping[str, Any]) -> dict[str, list]:
    """Return ``{name: [dtype, shape]}`` as JSON has it.

    >>> _described({"w": jax.numpy.ones((2, 3))})
    {'w': ['float32', [2, 3]]}
    """
    return {name: [str(x.dtype), list(x.shape)] for name, x in arrays.items()}


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        yield jax.tree_util.keystr(path, simple=True, separator="/"), leaf
