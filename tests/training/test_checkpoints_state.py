"""States as flat dicts: names, keys and the way back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bitflax.model import leaves
from bitflax.training import checkpoints
from bitflax.types import TrainState


def make_state():
    params = {"a": {"kernel": jnp.ones((2, 3))}, "b": jnp.zeros(3)}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))
    return TrainState(jnp.int32(5), params, optimizer.init(params), jax.random.key(1))


def test_names_and_back():
    state = make_state()
    flat = checkpoints._flat_state(state)
    assert {"step", "params/a/kernel", "params/b", "key"} <= set(flat)
    assert "opt_state/1/0/mu/a/kernel" in flat
    assert len(flat) == len(jax.tree.leaves(state))
    again = checkpoints._unflat_state(flat, state)
    assert jax.tree.structure(again) == jax.tree.structure(state)
    assert type(again.opt_state[1][0]) is type(state.opt_state[1][0])
    np.testing.assert_array_equal(again.params["a"]["kernel"], np.ones((2, 3)))
    assert again.key == state.key


def test_targets_are_what_flatten_gives():
    state = make_state()
    shapes = jax.eval_shape(lambda: state)
    for template in (state, shapes):
        wanted = checkpoints._targets(template)
        assert checkpoints._described(wanted) == checkpoints._described(
            checkpoints._flat_state(state)
        )
    assert {x.sharding for x in wanted.values()} == {
        jax.sharding.SingleDeviceSharding(jax.devices()[0])
    }


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg", "unsafe_rbg"])
def test_keys_of_any_kind_from_shapes_alone(impl):
    state = make_state()._replace(key=jax.random.split(jax.random.key(3, impl=impl)))
    shapes = jax.eval_shape(lambda: state)
    again = checkpoints._unflat_state(checkpoints._flat_state(state), shapes)
    assert again.key.dtype == state.key.dtype
    assert bool(jnp.all(again.key == state.key))


def test_leaves_of_several_arrays():
    packed = leaves.Packed(jnp.zeros((2, 1), jnp.uint8), jnp.ones((1, 1)), 1, (2, 3))
    state = make_state()._replace(params={"w": packed})
    flat = checkpoints._flat_state(state)
    assert {"params/w/codes", "params/w/scale"} <= set(flat)
    again = checkpoints._unflat_state(flat, state).params["w"]
    assert isinstance(again, leaves.Packed)
    assert again.shape == (2, 3)
