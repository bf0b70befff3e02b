"""The native engine computes what jax does, on every target of this processor."""

import numpy as np
import pytest

from tests.helpers import natives

CLOSE = 2e-6
# Where an activation lies halfway between two levels of 8 bits, the last bit of a float
# decides, and its text's logits move by a part in a thousand.
FLIPPED = 2e-2
# Of these, sums are rounded too, each engine's in an order of its own.
FLOATS = ("int8", "dense")


@pytest.fixture(scope="module")
def targets():
    natives.engine_or_skip()
    return natives.library.usable_targets()


def answers(weights: str, act: str, asked: dict, targets, config):
    """How far each target's logits are from jax's."""
    expected = natives.by_jax(weights, act, asked, config)
    assert np.ptp(expected, axis=0).max() > 1e-2
    for target in targets:
        made = natives.engine(weights, act, target, config=config)
        assert made.target == target
        yield target, natives.apart(made(asked), expected)


def check(weights: str, act: str, targets, config) -> None:
    asked = natives.batch(12, 24, ragged=act not in natives.WHOLE_TEXTS)
    for target, apart in answers(weights, act, asked, targets, config):
        if weights in FLOATS and act != "none":
            # A level of 4 bits is 17 of 8, one of 2 bits 127.
            assert apart.max() < FLIPPED * (1 if act.startswith("8") else 17), target
        elif act.startswith("8"):
            assert (apart < CLOSE).sum() >= len(apart) - 3, (target, apart)
            assert apart.max() < FLIPPED, target
        else:
            assert apart.max() < CLOSE, target


def check_exact(weights: str, act: str, targets) -> None:
    """Where no activation lies halfway between two levels, all is exact."""
    asked = natives.batch(64, 2, ragged=act not in natives.WHOLE_TEXTS)
    decided = natives.decided(weights, act, asked, natives.TINY)
    assert decided.sum() >= 10
    for target, apart in answers(weights, act, asked, targets, natives.TINY):
        assert apart[decided].max() < CLOSE, target


@pytest.mark.parametrize("weights", natives.WEIGHTS)
def test_every_kind_of_weights(weights, targets):
    check(weights, "8 bits", targets, natives.CONFIG)
    check_exact(weights, "8 bits", targets)


@pytest.mark.parametrize("act", [act for act in natives.ACTS if act != "8 bits"])
def test_every_quantizer_of_activations(act, targets):
    check("binary", act, targets, natives.SHORT)
    check_exact("binary", act, targets)


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("act", [*natives.ACTS])
@pytest.mark.parametrize("weights", natives.WEIGHTS)
def test_every_quantizer_with_every_kind_of_weights(weights, act, targets):
    check(weights, act, targets, natives.CONFIG)
    check_exact(weights, act, targets)
