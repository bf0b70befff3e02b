"""BertAdam against BinaryBERT's, alone and as a stage's optimizer."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bitflax as bf
from bitflax.training import optimizer
from tests.helpers import oracles

NAMES = {"kernel": "w", "bias": "b", "input": "clip"}
LINEAR = bf.Optim(kind="bertadam", lr=5e-3, act_lr=1e-2, warmup=0.25)
CONSTANT = bf.Optim(
    kind="bertadam", lr=5e-3, act_lr=1e-2, warmup=0.0, schedule="constant"
)


def tree(prefix, dtype):
    """A pooler whose activation has a clip; without decay, and with its own rate."""
    z = oracles.load("optimizers")
    leaves = {n: jnp.asarray(z[f"{prefix}/{t}"], dtype) for n, t in NAMES.items()}
    return {"pooler": leaves}


def assert_steps(tx, name, dtype, atol):
    params = tree("p0", dtype)
    state = tx.init(params)
    update = jax.jit(tx.update)
    for i in range(12):
        updates, state = update(tree(f"g{i}", dtype), state, params)
        params = optax.apply_updates(params, updates)
        expected = tree(f"{name}/step{i}", dtype)
        for leaf in NAMES:
            found = params["pooler"][leaf]
            np.testing.assert_allclose(
                found,
                expected["pooler"][leaf],
                rtol=0,
                atol=atol,
                err_msg=f"{i} {leaf}",
            )


SCHEDULES = pytest.mark.parametrize(
    ("name", "optim"), [("bertadam_linear", LINEAR), ("bertadam_none", CONSTANT)]
)


@SCHEDULES
def test_a_stages_bertadam_is_binaryberts(name, optim):
    assert_steps(bf.make_optimizer(optim, 12), name, np.float32, 1e-6)


@SCHEDULES
def test_a_stages_bertadam_is_binaryberts_in_float64(name, optim, x64):
    # Theirs are float32: half a unit of the last place of 2.5, twelve times.
    assert_steps(bf.make_optimizer(optim, 12), name, np.float64, 5e-7)


def test_bert_adam_is_the_same_with_one_rate():
    def mask(params):
        return jax.tree_util.tree_map_with_path(
            lambda path, _: path[-1].key == "kernel", params
        )

    alone = optimizer.bert_adam(5e-3, mask=mask)
    optim = bf.Optim(
        kind="bertadam", lr=5e-3, act_lr=5e-3, warmup=0.0, schedule="constant"
    )
    whole = bf.make_optimizer(optim, 12)
    params = tree("p0", np.float32)
    updates = [
        tx.update(tree("g1", np.float32), tx.init(params), params)[0]
        for tx in (alone, whole)
    ]
    for a, b in zip(*map(jax.tree.leaves, updates), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_each_tensors_gradient_is_clipped_by_itself():
    grads = {"a": jnp.full(4, 3.0), "b": jnp.full(4, 0.1)}
    for clip, factor in ((1.0, 1 / 6), (12.0, 1.0), (None, 1.0)):
        tx = optimizer.scale_by_bert_adam(0.9, 0.999, 1e-6, clip)
        _, state = tx.update(grads, tx.init(grads))
        assert isinstance(state, optimizer.BertAdamState)
        np.testing.assert_allclose(state.mu["a"], 0.1 * 3 * factor, rtol=1e-6)
        np.testing.assert_allclose(state.mu["b"], 0.1 * 0.1, rtol=1e-6)


def test_a_schedule_may_be_the_rate():
    tx = optimizer.bert_adam(lambda step: 0.1 * step, weight_decay=0.0)
    w = jnp.ones(2)
    state = tx.init(w)
    first, state = tx.update(w, state, w)
    second, _ = tx.update(w, state, w)
    np.testing.assert_array_equal(first, 0)
    assert float(jnp.max(second)) < -0.1
