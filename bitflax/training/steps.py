"""Train and evaluation steps, composed from functions and left un-jitted.

``bitflax.data_parallel`` or ``bitflax.pmapped`` compile a step for all devices; plain
``jax.jit`` compiles it for one.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from bitflax import distillation, trees, types
from bitflax.training import device_choices
from bitflax.types import ApplyFn, Batch, LossFn, Mean, Outputs, Params, TrainState

Metrics = dict[str, Mean]
Step = Callable[..., tuple[TrainState, Metrics]]


def init_state(
    params: Params, optimizer: optax.GradientTransformation, *, key: jax.Array
) -> TrainState:
    """Return the state before the first step; every leaf is a copy of the caller's.

    A step donates its state, so a leaf that a teacher shares must not be in it.

    >>> w = jnp.ones(2)
    >>> state = init_state({"w": w}, optax.sgd(1.0), key=jax.random.key(0))
    >>> state.params["w"] is w, int(state.step)
    (False, 0)
    """

    # One program: leaf by leaf it would be one for each shape.
    @jax.jit
    def first(params: Params, key: jax.Array) -> TrainState:
        own = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), params)
        step = jnp.zeros((), jnp.int32)
        return TrainState(step, own, optimizer.init(own), jnp.array(key, copy=True))

    return first(params, key)


def _split(batch: Batch, n: int) -> Batch:
    """Cut [n b, ...] into [n, b, ...]."""

    def cut(x):
        if x.shape[0] % n:
            raise ValueError(
                f"a batch of {x.shape[0]} rows is no {n} equal microbatches"
            )
        return jnp.asarray(x).reshape(n, x.shape[0] // n, *x.shape[1:])

    return jax.tree.map(cut, dict(batch))


def _objective(parts: Metrics, counts: dict[str, jax.Array]) -> jax.Array:
    means = {name: Mean(parts[name].total, counts[name]) for name in parts}
    return distillation.total(means)


def make_train_step(
    student: ApplyFn,
    teacher: ApplyFn | None,
    loss: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    quantize: Callable[[Params], Params] | None = None,
    accumulate: int = 1,
) -> Step:
    """Return ``step(state, teacher_params, batch, axis_name=None)``, un-jitted.

    The step returns the next state and the metrics: each part of the loss as a
    ``Mean`` over the whole batch of all devices, their sum as ``loss``, and
    ``grad_norm``. With ``axis_name`` each device holds a share of the batch: what is
    differentiated is ``sum(local total / global count)``, and gradients are summed
    over devices once, so that uneven padding and filler rows change nothing.
    Parameters that the loss does not read (pooler and classifier, where no logits are
    asked for) stay as they are: no weight decay either.

    Args:
      student: the student's ``apply``.
      teacher: the teacher's, which gets ``teacher_params``, without dropout; or
        None: plain fine-tuning, with dropout in the student, whose ``rng`` on a TPU
        is a key of jax's ``rbg``.
      loss: ``(student, teacher, batch) -> Mean`` or a dict of them.
      optimizer: an optax transformation.
      quantize: maps the latent parameters to what the student computes with.
      accumulate: cut the batch into this many microbatches and add their gradients.

    Raises:
      ValueError: ``accumulate`` is no count; when traced, the batch does not split
        into so many parts.

    >>> import bitflax as bf
    >>> config = bf.BertConfig(8, 4, 1, 2, 8, 16)
    >>> apply, tx = bf.bert(config), bf.make_optimizer(bf.Optim(lr=1e-3), 10)
    >>> loss = bf.weighted(logits=(1.0, bf.label_cross_entropy))
    >>> step = jax.jit(make_train_step(apply, None, loss, tx))
    >>> params = bf.init_params(config, jax.random.key(0))
    >>> state = init_state(params, tx, key=jax.random.key(1))
    >>> ids = jnp.ones((2, 3), jnp.int32)
    >>> batch = dict(input_ids=ids, attention_mask=ids, token_type_ids=0 * ids,
    ...              labels=jnp.array([0, 1]))
    >>> state, metrics = step(state, None, batch)
    >>> int(state.step), round(float(metrics["loss"]), 1)
    (1, 0.7)
    """
    types.check_count("accumulate", accumulate)
    dropout = teacher is None

    def parts_of(params, teacher_params, batch, rng) -> Metrics:
        taught = None if teacher is None else teacher(teacher_params, batch)
        values = params if quantize is None else quantize(params)
        out: Outputs = student(values, batch, rng if dropout else None)
        return distillation.named(loss(out, taught, batch))

    read = leaves_reader(lambda *args: _totals(parts_of(*args)))

    def step(state: TrainState, teacher_params, batch: Batch, axis_name=None):
        def summed(tree):
            return tree if axis_name is None else jax.lax.psum(tree, axis_name)

        rng = jax.random.fold_in(state.key, state.step)
        if axis_name is not None:
            rng = jax.random.fold_in(rng, jax.lax.axis_index(axis_name))
        if dropout:
            rng = device_choices.dropout_key(rng)

        def objective(params, batch, rng, counts=None):
            parts = parts_of(params, teacher_params, batch, rng)
            own = {name: jax.lax.stop_gradient(p.count) for name, p in parts.items()}
            counts = summed(own) if counts is None else counts
            return _objective(parts, counts), (_totals(parts), counts)

        gradient = jax.grad(objective, has_aux=True)
        if accumulate == 1:
            grads, (totals, counts) = gradient(state.params, batch, rng)
        else:
            batches = _split(batch, accumulate)
            keys = jax.random.split(rng, accumulate)
            counts = _all_counts(parts_of, state.params, teacher_params, batches, keys)
            counts = summed(counts)
            grads, totals = _accumulated(gradient, state.params, batches, keys, counts)
        grads, totals = summed((grads, totals))
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        moved = optax.apply_updates(state.params, updates)
        used = read(state.params, teacher_params, dict(batch), rng)
        params = jax.tree.map(
            lambda on, a, b: a if on else b, used, moved, state.params
        )
        metrics = {name: Mean(totals[name], counts[name]) for name in totals}
        metrics["loss"] = Mean(distillation.total(metrics), jnp.ones(()))
        metrics["grad_norm"] = Mean(optax.tree.norm(grads), jnp.ones(()))
        return TrainState(state.step + 1, params, opt_state, state.key), metrics

    return step


def _totals(parts: Metrics) -> dict[str, jax.Array]:
    return {name: part.total for name, part in parts.items()}


def _all_counts(parts_of, params, teacher_params, batches, keys):
    """Sum the counts of all microbatches; what only the totals need is not computed."""

    def count(carry, xs):
        parts = parts_of(params, teacher_params, *xs)
        return carry, {name: part.count for name, part in parts.items()}

    _, counts = jax.lax.scan(count, None, (batches, keys))
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), counts)


def _accumulated(gradient, params, batches, keys, counts):
    """Add the gradients and the totals of all microbatches."""

    def add(carry, xs):
        grads, (totals, _) = gradient(params, *xs, counts)
        return jax.tree.map(jnp.add, carry, grads), totals

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, totals = jax.lax.scan(add, zeros, (batches, keys))
    return grads, jax.tree.map(lambda x: jnp.sum(x, axis=0), totals)


def make_eval_step(
    apply: ApplyFn, compiler_options: dict[str, Any] | None = None
) -> Callable[[Params, Batch], jax.Array]:
    """Return ``(params, batch) -> logits`` [batch, labels], compiled.

    What only hidden states and scores need is not computed. Quantise the parameters
    once before the first batch, not in every step.
    """

    def logits(params: Params, batch: Batch) -> jax.Array:
        return apply(params, batch).logits

    return jax.jit(logits, compiler_options=compiler_options)


def leaves_reader(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Return ``(tree, *args) -> bools`` that says what ``fn(tree, *args)`` reads.

    Traced once for each structure of the trees: shapes do not matter.
    """
    found: dict[Any, Any] = {}

    def call(tree: Any, *args: Any) -> Any:
        key = jax.tree.structure((tree, args))
        if key not in found:
            found[key] = trees.leaves_read(lambda tree: fn(tree, *args), tree)
        return found[key]

    return call
