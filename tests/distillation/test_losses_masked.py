"""What does not count may hold anything: it is masked before any arithmetic."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax.types import Outputs
from tests.distillation.test_losses import LOSSES, PADDED, a_batch, outputs

WEIGHT = (1, 1, 0, 1)


def spoilt(out: Outputs, mask: np.ndarray, tokens: bool) -> Outputs:
    """Return outputs with NaN in the row of weight 0, and, if asked, in padding."""
    dead = np.array(WEIGHT) == 0
    gone = dead[:, None] | ((mask == 0) & tokens)
    queries, keys = gone[:, None, :, None], gone[:, None, None, :]
    return Outputs(
        jnp.where(dead[:, None], jnp.nan, out.logits),
        tuple(jnp.where(gone[..., None], jnp.nan, x) for x in out.hidden),
        tuple(jnp.where(queries | keys, jnp.nan, x) for x in out.scores),
    )


@pytest.mark.parametrize("name", LOSSES)
def test_what_does_not_count_may_be_nan(name):
    student, teacher, batch = outputs(0), outputs(1), a_batch(weight=WEIGHT)
    mask = np.asarray(batch["attention_mask"])
    bad = [spoilt(out, mask, name not in PADDED) for out in (student, teacher)]
    labels = batch["labels"].at[2].set(-100)
    if name == "real-labels":
        labels = labels.astype(jnp.float32).at[2].set(jnp.nan)

    def value(student, teacher, labels):
        return LOSSES[name](student, teacher, batch | {"labels": labels}).value

    both = jax.jit(jax.value_and_grad(value))
    good, gradient = both(student, teacher, batch["labels"])
    found, bad_gradient = both(*bad, labels)
    np.testing.assert_allclose(found, good, rtol=1e-6)
    pairs = zip(jax.tree.leaves(bad_gradient), jax.tree.leaves(gradient), strict=True)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_masked_label_leaves_the_mean_of_the_others():
    equal = Outputs(jnp.zeros((2, 3)), (), ())
    batch = {"labels": jnp.array([1, -100]), "weight": jnp.array([1.0, 0.0])}
    found = bf.label_cross_entropy(equal, None, batch)
    assert float(found) == pytest.approx(np.log(3))


@pytest.mark.parametrize("label", [-1, -100, 3])
def test_a_label_that_is_no_class_is_nan(label):
    equal = Outputs(jnp.zeros((2, 3)), (), ())
    batch = {"labels": jnp.array([1, label])}
    assert np.isnan(jax.jit(bf.label_cross_entropy)(equal, None, batch).value)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("weight", [-1.0, -1e-9])
def test_a_weight_below_0_is_nan_and_not_0(name, weight):
    batch = a_batch(weight=(1, 1, weight, 1))
    found = jax.jit(LOSSES[name])(outputs(0), outputs(1), batch)
    assert np.isnan(found.value)


def test_what_is_of_another_shape_is_not_spread_over_rows():
    three, one = (Outputs(jnp.ones((2, n)), (), ()) for n in (3, 1))
    for loss in (bf.soft_cross_entropy, bf.logits_mse):
        with pytest.raises(ValueError, match="logits must have the shape"):
            loss(three, one, {})
    column = jnp.ones((2, 1), jnp.int32)
    for name, loss in (("labels", bf.label_mse), ("weight", bf.logits_mse)):
        with pytest.raises(ValueError, match=rf"{name} must have the shape \(2,\)"):
            loss(one, one, {"labels": column[:, 0], name: column})


@pytest.mark.parametrize(
    "option",
    [
        *({"smoothing": 1.0}, {"smoothing": -0.1}, {"class_weights": (1.0,)}),
        *({"class_weights": (1.0, -1.0)}, {"class_weights": (1.0, np.nan)}),
    ],
)
def test_an_option_of_the_labels_loss_is_in_its_range(option):
    equal = Outputs(jnp.zeros((1, 2)), (), ())
    with pytest.raises(ValueError, match=r"smoothing must|class_weights must"):
        bf.label_cross_entropy(equal, None, {"labels": jnp.array([1])}, **option)
