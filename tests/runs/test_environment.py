"""What a run keeps of the devices that it began on."""

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
    new = environment.with_choices(recipe, {})
    assert [new.teacher.dtype, *(s.dtype for s in new.stages)] == ["bfloat16"] * 3
    assert new.stages[0].teacher_dtype is None
    began = {"teacher": {}, "stages": [{"name": "a", "dtype": None}]}
    on = environment.with_choices(recipe, began)
    # What was begun stays float32; the appended stage is of these devices.
    assert [on.teacher.dtype, *(s.dtype for s in on.stages)] == [None, None, "bfloat16"]


def test_a_teacher_without_a_rate_keeps_that_of_an_earlier_default():
    recipe = bf.Recipe(teacher=bf.Teacher(optim=bf.Optim(lr=None, clip=None)))
    earlier = {"optim": {"lr": 2e-4, "clip": 1.0}}
    for began, rate in (
        ({}, None),
        ({"teacher": earlier}, 2e-4),
        ({"teacher": {}}, None),
    ):
        optim = environment.with_choices(recipe, began).teacher.optim
        assert optim == bf.Optim(lr=rate, clip=None)
    given = bf.Recipe(teacher=bf.Teacher(optim=bf.Optim(lr=1e-4)))
    found = environment.with_choices(given, {"teacher": earlier})
    assert found.teacher.optim.lr == 1e-4
