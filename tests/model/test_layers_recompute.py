"""Layers that are computed again on the way back: the same numbers in less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax.model.layers import recomputed
from tests.helpers import small

ACT = bf.lsq_act(bits=4)
"""Learned steps are read by the layers besides their arguments."""


def assert_close(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


def test_all_arguments_and_what_is_read_besides_get_their_gradients():
    def value(inner, x, y, other):
        def fn(x, y, count):
            return jnp.sin(x) * y["a"] * count, other * x

        a, b = inner(fn, x, {"a": y}, jnp.array(3))
        return jnp.sum(a * b)

    args = (jnp.arange(3.0), 2.0, jnp.ones(3) / 3)
    again = jax.jit(jax.value_and_grad(functools.partial(value, recomputed), (0, 1, 2)))
    once = jax.value_and_grad(
        functools.partial(value, lambda fn, *a: fn(*a)), (0, 1, 2)
    )
    assert_close(again(*args), once(*args), 1e-6)


@pytest.fixture(scope="module", autouse=True)
def _made_in_float32():
    """Make what is made once before a test switches 64-bit numbers on."""
    small.teacher_params()


@functools.cache
def tree():
    params = bf.take_layers(small.teacher_params(), (0, 1))
    return bf.init_act(params, ACT, small.batch(4, 0), small.config(2))


def gradients(dropout, **options):
    rate = 0.3 if dropout else 0.0
    config = small.config(2, hidden_dropout_prob=rate, attention_probs_dropout_prob=0.0)
    student = bf.bert(config, ACT, **options)
    batch, rng = small.batch(4, 0), jax.random.key(3) if dropout else None

    def value(params):
        out = student(bf.quantize(params, bf.xtc_1bit(), lazy=True), batch, rng)
        parts = [jnp.sum(jnp.sin(x)) for x in jax.tree.leaves(out)]
        return sum(parts), out

    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), tree())
    return jax.jit(jax.value_and_grad(value, has_aux=True))(params)


def test_recomputed_layers_are_the_same_layers(x64):
    found, expected = (
        gradients(False, recompute=True),
        gradients(False),
    )
    assert_close(found, expected, 1e-10)


def test_dropout_is_the_same_both_times():
    """The gradient of what was computed: by finite differences along it."""

    def value(x):
        def fn(x, key):
            return jnp.sum(jax.random.bernoulli(key, 0.5, x.shape) * jnp.sin(x))

        return recomputed(fn, x, jax.random.key(0))

    x = jnp.linspace(-1, 1, 64)
    gradient = jax.grad(value)(x)
    step = 1e-3 * gradient
    moved = float(value(x + step) - value(x - step)) / 2
    np.testing.assert_allclose(moved, float(jnp.vdot(gradient, step)), rtol=1e-3)


@pytest.mark.slow
def test_dropout_is_on_in_recomputed_layers(x64):
    (value, _), _ = gradients(True, recompute=True)
    (still, _), _ = gradients(False, recompute=True)
    assert abs(float(value - still)) > 1e-3


@pytest.mark.slow
def test_less_is_kept():
    config = small.config(4, max_position_embeddings=64)
    params = small.params(config)
    batch = small.batch(8, 0, length=64)

    def size(**options):
        student = bf.bert(config, **options)
        loss = jax.grad(lambda p: jnp.sum(student(p, batch).logits))
        memory = jax.jit(loss).lower(params).compile().memory_analysis()
        assert memory is not None
        return memory.temp_size_in_bytes

    assert size(recompute=True) < 0.6 * size()
