"""What a run keeps of the devices that it began on."""

import pytest

import bitflax as bf
from bitflax.runs import environment
from bitflax.training import device_choices

LOSS = bf.weighted(logits=(1.0, bf.soft_cross_entropy))


def test_a_run_goes_on_in_the_precision_that_it_began_with(monkeypatch):
    monkeypatch.setattr(device_choices, "multiplies_bfloat16", lambda device: True)
    recipe = bf.Recipe(
        teacher=bf.Teacher(dtype="auto"),
        stages=(
            bf.Stage(name="a", loss=LOSS, dtype="auto", teacher_dtype="float32"),
            bf.Stage(name="b", loss=LOSS, dtype="auto"),
        ),
    )
    new = environment.with_dtypes(recipe, {})
    assert [new.teacher.dtype, *(s.dtype for s in new.stages)] == ["bfloat16"] * 3
    assert new.stages[0].teacher_dtype is None
    began = {"teacher": {}, "stages": [{"name": "a", "dtype": None}]}
    on = environment.with_dtypes(recipe, began)
    # What was begun stays float32; the appended stage is of these devices.
    assert [on.teacher.dtype, *(s.dtype for s in on.stages)] == [None, None, "bfloat16"]


@pytest.mark.parametrize(
    ("given", "earlier", "rate"),
    [
        (None, 2e-4, 2e-4),
        (None, 5e-5, None),  # somebody's own: a resume without it is refused
        (None, None, None),
        (1e-4, 2e-4, 1e-4),
    ],
)
def test_a_teacher_without_a_rate_keeps_that_of_an_earlier_default(
    given, earlier, rate
):
    recipe = bf.Recipe(teacher=bf.Teacher(optim=bf.Optim(lr=given, clip=None)))
    began = {"teacher": {"optim": {"lr": earlier, "clip": 1.0}}}
    optim = environment.with_rate(recipe, began).teacher.optim
    assert optim == bf.Optim(lr=rate, clip=None)
    assert environment.with_rate(recipe, {}) == recipe
