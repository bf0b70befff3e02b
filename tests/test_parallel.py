"""One device and many, shard_map and pmap, one batch and many: the same step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from tests import small

# Uneven padding everywhere; filler rows land on one device alone.
BATCHES = [small.batch(16, seed, filler=3) for seed in range(20)]


def run(mapped, accumulate, rules):
    step, state = small.kd_step(rules, accumulate=accumulate)
    step = mapped(step)
    losses = []
    for batch in BATCHES:
        state, metrics = step(state, small.teacher_params(), batch)
        losses.append(float(metrics["loss"]))
        jax.block_until_ready(state)
    return state.params, np.array(losses)


@pytest.fixture(scope="module")
def one_device():
    return {
        "fp32": run(jax.jit, 1, ()),
        "1-bit": run(jax.jit, 1, bf.xtc_1bit()),
    }


def shard_map(devices):
    mesh = bf.mesh(jax.devices()[:devices])
    return lambda step: bf.data_parallel(step, mesh)


def pmap(devices):
    return lambda step: bf.pmapped(step, jax.devices()[:devices])


@pytest.mark.parametrize("bits", ["fp32", "1-bit"])
@pytest.mark.parametrize(
    ("how", "devices", "accumulate"),
    [
        (shard_map, 1, 1),
        (shard_map, 4, 1),
        (shard_map, 8, 1),
        (shard_map, 4, 2),
        (pmap, 1, 1),
        (pmap, 4, 1),
        (pmap, 8, 1),
        (pmap, 4, 2),
    ],
)
def test_twenty_steps_agree_with_one_device(how, devices, accumulate, bits, one_device):
    rules = bf.xtc_1bit() if bits == "1-bit" else ()
    params, losses = run(how(devices), accumulate, rules)
    expected_params, expected_losses = one_device[bits]
    assert small.largest_difference(params, expected_params) < 1e-5
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)


def test_accumulation_alone_agrees_with_one_batch(one_device):
    params, losses = run(jax.jit, 4, ())
    assert small.largest_difference(params, one_device["fp32"][0]) < 1e-5
    np.testing.assert_allclose(losses, one_device["fp32"][1], rtol=1e-5)


def test_training_changes_the_parameters_and_lowers_the_loss(one_device):
    params, losses = one_device["1-bit"]
    start = bf.take_layers(small.teacher_params(), small.LAYERS)
    assert small.largest_difference(params, start) > 1e-2
    assert losses[-5:].mean() < losses[:5].mean()


@pytest.mark.parametrize("mapped", [shard_map(4), pmap(4)])
def test_rows_that_do_not_divide_are_refused(mapped):
    step, state = small.kd_step()
    with pytest.raises(ValueError, match="6 rows over 4 devices"):
        mapped(step)(state, small.teacher_params(), small.batch(6, 0))


@pytest.mark.parametrize("mapped", [jax.jit, shard_map(4), pmap(4)])
def test_the_callers_arrays_survive_donation(mapped):
    step, state = small.kd_step()
    teacher = small.teacher_params()
    before = jax.tree.map(np.array, teacher)
    state, _ = mapped(step)(state, teacher, small.batch(8, 0))
    state, _ = mapped(step)(state, teacher, small.batch(8, 1))
    assert small.largest_difference(before, teacher) == 0
    out = bf.bert(small.config(4))(teacher, small.batch(8, 2))
    assert bool(jnp.isfinite(out.logits).all())


def test_shard_batch_lays_rows_on_their_devices():
    mesh = bf.mesh(jax.devices()[:4])
    batch = small.batch(8, 0)
    sharded = bf.shard_batch(batch, mesh)
    assert len(sharded["input_ids"].addressable_shards) == 4
    np.testing.assert_array_equal(sharded["input_ids"], batch["input_ids"])
