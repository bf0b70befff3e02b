import jax
import jax.numpy as jnp

from bitflax.training import steps


def test_what_the_result_is_not_made_of_is_not_read():
    def fn(p):
        aside = jnp.tanh(p["a"] @ p["b"])
        through = jax.jit(jnp.sin)(p["c"])
        return {"x": through * 2, "y": p["d"]["direct"]}, jnp.zeros(3) + aside.size

    tree = {
        "a": jnp.ones((2, 2)),
        "b": jnp.ones((2, 2)),
        "c": jnp.ones(2),
        "d": {"direct": jnp.ones(1), "none": jnp.ones(1)},
    }
    assert steps.leaves_read(fn, tree) == {
        "a": False,
        "b": False,
        "c": True,
        "d": {"direct": True, "none": False},
    }


def test_shapes_alone_are_enough():
    shape = jax.ShapeDtypeStruct((2,), "float32")
    assert steps.leaves_read(lambda p: p[0], [shape, shape]) == [True, False]


def test_a_reader_traces_once_for_each_structure():
    traced = []

    def fn(p, batch):
        traced.append(batch)
        return p["a"] * batch["x"] + (p["b"] if "y" in batch else 0)

    read, p = steps.leaves_reader(fn), {"a": jnp.ones(()), "b": jnp.ones(())}
    for _ in range(2):
        assert read(p, {"x": jnp.ones(3)}) == {"a": True, "b": False}
        assert read(p, {"x": jnp.ones(5), "y": 1}) == {"a": True, "b": True}
    assert len(traced) == 2
