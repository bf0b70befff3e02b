"""What is no number stays none, and settings that cannot be are refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf

WEIGHTS = [
    bf.binarize,
    bf.ternarize,
    functools.partial(bf.ternarize, axis=0),
    functools.partial(bf.ternarize, axis=-1),
    functools.partial(bf.ternarize, groups=2),
    functools.partial(bf.ternarize, clip=2.5),
    functools.partial(bf.binarize, clip=2.5),
]
ACTIVATIONS = [
    bf.symmetric(8),
    bf.symmetric(8, groups=2),
    bf.asymmetric(8),
    bf.asymmetric(1, levels="full"),
    bf.asymmetric(4, levels="widened", axis=None),
]
LEARNED = [bf.lsq(), bf.lsq(signed=False), bf.elastic(), bf.elastic(signed=False)]


@pytest.mark.parametrize("fn", [*WEIGHTS, *ACTIVATIONS])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_does_not_become_one(fn, value):
    x = jnp.ones((4, 8)).at[1, 3].set(value)
    assert not np.isfinite(jax.jit(fn)(x)[1, 3])


@pytest.mark.parametrize("fn", [*LEARNED, bf.clipped(bf.symmetric(8), at=1.0)])
def test_a_learned_quantizer_keeps_nan(fn):
    p = jnp.array([-1.0, 1.0]) if isinstance(fn, bf.clipped) else jnp.array(0.5)
    assert np.isnan(fn(jnp.array([jnp.nan]), p)).all()
    assert np.isnan(fn(jnp.array([0.3]), p * jnp.nan)).all()


def test_a_sum_that_overflows_is_no_zero():
    large = jnp.full((4, 4), 3e38)
    assert not np.isfinite(bf.ternarize(large)).any()
    half = np.random.default_rng(0).normal(size=(340, 340)).astype(np.float16)
    found = bf.ternarize(jnp.asarray(half))
    expected = bf.ternarize(jnp.asarray(half, jnp.float32))
    assert found.dtype == jnp.float16
    np.testing.assert_allclose(found, expected, rtol=1e-3)


WHOLE = np.array([[3, -1, 0, 7], [2, -5, 4, 1]])
CLIPPED = [bf.clipped(bf.symmetric(8), at=2.5), bf.clipped(bf.asymmetric(4))]


@pytest.mark.parametrize("dtype", [np.int32, np.int8])
@pytest.mark.parametrize("fn", [*WEIGHTS, *ACTIVATIONS, *LEARNED, *CLIPPED])
def test_whole_numbers_are_quantised_as_the_same_real_ones(fn, dtype):
    whole, real = jnp.asarray(WHOLE, dtype), jnp.asarray(WHOLE, jnp.float32)
    learns = hasattr(fn, "init")
    first, same = (fn.init(whole), fn.init(real)) if learns else (None, None)
    found, expected = (
        (fn(x, p) if learns else fn(x)) for x, p in ((whole, first), (real, same))
    )
    assert found.dtype == jnp.float32
    np.testing.assert_array_equal(found, expected)
    if learns:
        np.testing.assert_array_equal(first, same)


def test_a_scale_of_whole_numbers_is_not_rounded():
    found = bf.ternarize(jnp.array([3, -4, 0]))
    np.testing.assert_array_equal(found, [3.5, -3.5, 0.0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("fn", WEIGHTS)
def test_a_matrix_with_what_is_no_number_is_not_packed(fn, value):
    tree = {"kernel": jnp.ones((4, 8)).at[1, 3].set(value)}
    with pytest.raises(bf.errors.Diverged, match="NaN or infinity"):
        bf.pack(tree, [("kernel", fn)])


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: bf.binarize(jnp.ones(4), groups=0), "0 groups do not divide"),
        (lambda: bf.ternarize(jnp.ones(4), groups=-2), "-2 groups do not divide"),
        (lambda: bf.symmetric(groups=0), "groups 0 and axis -1"),
        (lambda: bf.symmetric(groups=2, axis=0), "groups 2 and axis 0"),
        (lambda: bf.asymmetric(groups=2, axis=(0, 1)), "give at least one group"),
        (lambda: bf.asymmetric(bits=True), "bits must be 1 to 16, not True"),
        (lambda: bf.lsq().init(jnp.zeros((0, 4))), "without values"),
        (lambda: bf.elastic().init(jnp.zeros(0)), "without values"),
        (lambda: bf.binarize(jnp.ones(4), zero=2), "zero must be 0 or 1"),
        (lambda: bf.ternarize(jnp.ones(4), clip=0.0), "clip must be above 0"),
        (lambda: bf.binarize(jnp.ones(4), clip=np.nan), "clip must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(make, problem):
    with pytest.raises(ValueError, match=problem):
        make()


def test_the_straight_gradient_is_at_hand():
    assert jax.grad(lambda x: bf.straight_through(jnp.round, x))(1.3) == 1.0
