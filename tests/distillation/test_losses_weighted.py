"""Losses added by name."""

import inspect

import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from tests.distillation.test_losses import outputs


def test_weighted_adds_by_name():
    loss = bf.weighted(a=(0.5, bf.logits_mse), b=(2.0, bf.soft_cross_entropy))
    student, teacher = outputs(0), outputs(1)
    parts = loss(student, teacher, {})
    assert list(parts) == ["a", "b"]
    for name, weight, fn in (
        ("a", 0.5, bf.logits_mse),
        ("b", 2.0, bf.soft_cross_entropy),
    ):
        alone = fn(student, teacher, {})
        np.testing.assert_allclose(parts[name].total, weight * alone.total, rtol=1e-6)
        assert float(parts[name].count) == float(alone.count)
    expected = float(parts["a"]) + float(parts["b"])
    np.testing.assert_allclose(float(bf.total(parts)), expected, rtol=1e-6)


def test_a_function_of_ones_own_is_a_loss():
    def norm(student, teacher, batch):
        return bf.Mean(jnp.sum(jnp.square(student.logits)), 1.0)

    loss = bf.weighted(norm=(0.1, norm))
    student = outputs(0)
    expected = 0.1 * np.sum(np.square(student.logits))
    np.testing.assert_allclose(float(loss(student, None, {})["norm"]), expected, 1e-6)


@pytest.mark.parametrize(
    "wrong", [bf.logits_mse, (bf.logits_mse,), (1.0, 2.0), [1.0, bf.logits_mse]]
)
def test_a_part_that_is_no_pair_is_refused(wrong):
    # Without the tests' type checker, which would refuse it first.
    weighted = inspect.unwrap(bf.weighted)
    with pytest.raises(ValueError, match=r"logits must be \(weight, function\)"):
        weighted(logits=wrong)


def test_the_total_of_nothing_is_zero():
    assert float(bf.total({})) == 0


@pytest.mark.parametrize("weight", [0, 0.0, "1", None])
def test_a_loss_weighs_something(weight):
    weighted = inspect.unwrap(bf.weighted)
    with pytest.raises(ValueError, match=r"more than 0|must weigh 0 or more"):
        weighted(logits=(weight, bf.logits_mse))
    with pytest.raises(ValueError, match="a part that weighs more than 0"):
        weighted()
