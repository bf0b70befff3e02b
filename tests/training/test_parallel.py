"""One device and many, shard_map and pmap, one batch and many: the same step."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax.training import parallel
from tests.helpers import small

# Uneven padding everywhere; filler rows land on one device alone.
BATCHES = [small.batch(16, seed, filler=3) for seed in range(20)]
RULES = {"fp32": (), "1-bit": bf.xtc_1bit()}


@functools.cache
def teacher():
    """Return two layers: compiling for eight devices is what takes the time here."""
    return bf.take_layers(small.teacher_params(), (0, 1))


def kd_step(bits="1-bit", accumulate=1):
    rules = RULES[bits]
    return small.kd_step(rules, accumulate=accumulate, depth=2, layers=(1,))


def run(mapped, bits, accumulate=1):
    step, state = kd_step(bits, accumulate)
    step = mapped(step)
    losses = []
    for batch in BATCHES:
        state, metrics = step(state, teacher(), batch)
        losses.append(float(metrics["loss"]))
        # Virtual devices that run ahead of each other can wait for good.
        jax.block_until_ready(state)
    return state.params, np.array(losses)


@pytest.fixture(scope="module")
def one_device():
    return {bits: run(jax.jit, bits) for bits in RULES}


def shard_map(devices):
    mesh = bf.mesh(jax.devices()[:devices])
    return lambda step: bf.data_parallel(step, mesh)


def pmap(devices):
    return lambda step: bf.pmapped(step, jax.devices()[:devices])


def assert_agree(found, expected):
    assert small.largest_difference(found[0], expected[0]) < 1e-5
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


@pytest.mark.parametrize("how", [shard_map, pmap])
@pytest.mark.parametrize(
    ("devices", "accumulate", "bits"),
    [
        pytest.param(4, 2, "1-bit", marks=pytest.mark.slow),
        (8, 1, "1-bit"),
        pytest.param(8, 1, "fp32", marks=pytest.mark.slow),
        *(
            pytest.param(devices, 1, bits, marks=pytest.mark.slow)
            for devices in (1, 2, 4)
            for bits in RULES
        ),
    ],
)
def test_twenty_steps_agree_with_one_device(how, devices, accumulate, bits, one_device):
    before = jax.tree.map(np.array, teacher())
    found = run(how(devices), bits, accumulate)
    assert_agree(found, one_device[bits])
    # The student began with arrays of the teacher's, and its states were donated.
    assert small.largest_difference(before, teacher()) == 0


def test_accumulation_alone_agrees_with_one_batch(one_device):
    assert_agree(run(jax.jit, "fp32", accumulate=4), one_device["fp32"])


def test_training_changes_the_parameters_and_lowers_the_loss(one_device):
    params, losses = one_device["1-bit"]
    start = bf.take_layers(teacher(), (1,))
    assert small.largest_difference(params, start) > 1e-2
    assert losses[-5:].mean() < losses[:5].mean()


@pytest.mark.parametrize("mapped", [shard_map(4), pmap(4)])
def test_rows_that_do_not_divide_are_refused(mapped):
    step, state = kd_step()
    with pytest.raises(ValueError, match="6 rows over 4 devices"):
        mapped(step)(state, teacher(), small.batch(6, 0))


@pytest.mark.parametrize("mapped", [shard_map(2), pmap(2)])
def test_a_state_is_donated(mapped):
    def step(state, teacher_params, batch, axis_name):
        total = jax.lax.psum(jnp.sum(batch["input_ids"]), axis_name)
        return jax.tree.map(lambda x: x + total, state), {}

    step = mapped(step)
    state, _ = step({"w": jnp.zeros(8, jnp.int32)}, None, small.batch(4, 0))
    after, _ = step(state, None, small.batch(4, 1))
    assert state["w"].is_deleted()
    expected = sum(small.batch(4, seed)["input_ids"].sum() for seed in (0, 1))
    np.testing.assert_array_equal(after["w"], expected)


def test_the_devices_of_a_process_stand_side_by_side():
    mixed = [types.SimpleNamespace(process_index=i // 2 % 2, id=i) for i in range(8)]
    found = parallel.by_process(mixed)
    assert [device.id for device in found] == [0, 1, 4, 5, 2, 3, 6, 7]


def test_what_lies_on_all_devices_stays_there(monkeypatch):
    mesh = bf.mesh(jax.devices()[:4])
    tree = {"w": np.ones(3), "key": jax.random.key(0), "there": jnp.ones(2)}
    placed = parallel.replicate(tree, mesh)
    assert all(len(x.sharding.device_set) == 4 for x in jax.tree.leaves(placed))
    monkeypatch.setattr(jax, "device_put", None)
    assert parallel.replicate(placed, mesh)["w"] is placed["w"]


def test_shard_batch_lays_rows_on_their_devices():
    mesh = bf.mesh(jax.devices()[:4])
    batch = small.batch(8, 0)
    sharded = bf.shard_batch(batch, mesh)
    assert len(sharded["input_ids"].addressable_shards) == 4
    np.testing.assert_array_equal(sharded["input_ids"], batch["input_ids"])
    own = parallel.own_rows(sharded["input_ids"])
    np.testing.assert_array_equal(own, batch["input_ids"])
