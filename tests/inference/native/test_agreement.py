"""The native engine computes what jax does, on every target of this processor."""

import numpy as np
import pytest

from tests.helpers import natives

CLOSE = 2e-6
# Where one of thousands of activations lies halfway between two levels of 8 bits, the
# last bit of a float decides, and its text's logits move by a part in a thousand.
FLIPPED = 2e-2
# Sums of their products are rounded, each engine's in an order of its own, where those of
# binary and ternary integers are exact: more activations come out halfway.
FLOATS = ("int8", "dense")


@pytest.fixture(scope="module")
def targets():
    natives.engine_or_skip()
    return natives.library.usable_targets()


def check(weights: str, act: str, targets, config) -> None:
    asked = natives.batch(12, 24, ragged=act not in natives.WHOLE_TEXTS)
    expected = natives.by_jax(weights, act, asked, config)
    assert np.ptp(expected, axis=0).max() > 1e-2
    for target in targets:
        made = natives.engine(weights, act, target, config=config)
        assert made.target == target
        apart = natives.apart(made(asked), expected)
        flips = 3 if act.startswith("8") else 0
        if weights in FLOATS and act != "none":
            flips = 6
        assert (apart < CLOSE).sum() >= len(apart) - flips, (target, apart)
        assert apart.max() < (FLIPPED if flips else CLOSE), target


@pytest.mark.parametrize("weights", natives.WEIGHTS)
def test_every_kind_of_weights(weights, targets):
    check(weights, "8 bits", targets, natives.CONFIG)


@pytest.mark.parametrize("act", [act for act in natives.ACTS if act != "8 bits"])
def test_every_quantizer_of_activations(act, targets):
    check("binary", act, targets, natives.SHORT)


@pytest.mark.slow
@pytest.mark.parametrize("act", [*natives.ACTS])
@pytest.mark.parametrize("weights", natives.WEIGHTS)
def test_every_quantizer_with_every_kind_of_weights(weights, act, targets):
    check(weights, act, targets, natives.CONFIG)
