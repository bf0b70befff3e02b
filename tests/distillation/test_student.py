"""Which layers teach which: against TinyBERT's and XTC's own lists."""

import json

import pytest

from bitflax.distillation import student as distillation_student
from tests.helpers import oracles

MAPS = json.loads((oracles.GOLDEN / "layer_maps.json").read_text("utf-8"))
XTC = MAPS.pop("xtc_layer_reduction")
PAIRS = {name: tuple(map(int, name.split("->"))) for name in MAPS}
# XTC's hidden map starts at [first layer - 1]: for these it takes the *last* state.
LAST = [name for name, found in XTC.items() if found["rep_list_indexes_reps[-1]"]]


def taught_by(pairs):
    """Check that the student's side counts from 0; return the teacher's."""
    assert [s for s, _ in pairs] == list(range(len(pairs)))
    return [t for _, t in pairs]


def test_the_lists_are_whole():
    assert len(PAIRS) == 14
    assert len(XTC) == 8
    assert sorted(LAST) == ["first2", "first6"]


@pytest.mark.parametrize("peer", ["tinybert", "xtc_no_layer_reduction"])
@pytest.mark.parametrize("name", PAIRS)
def test_uniform_layers_are_the_peers(name, peer):
    expected = MAPS[name][peer]
    layers = distillation_student.uniform_layers(*PAIRS[name])
    if isinstance(expected, str):  # TinyBERT refuses depths that do not divide
        assert PAIRS[name][0] % PAIRS[name][1]
        return
    assert (
        taught_by(distillation_student.layer_pairs(layers))
        == expected["teacher_att_layer"]
    )
    hidden = distillation_student.layer_pairs(layers, hidden=True)
    assert taught_by(hidden) == expected["teacher_hidden_state"]


@pytest.mark.parametrize("name", XTC)
def test_a_list_of_layers_is_xtcs(name):
    layers = XTC[name]["teacher_layer"]
    assert taught_by(distillation_student.layer_pairs(layers)) == XTC[name]["att_list"]
    theirs = XTC[name]["rep_list"]
    if name in LAST:
        assert theirs[0] == -1
        with pytest.raises(ValueError, match="hidden state -1; use embeddings='first'"):
            distillation_student.layer_pairs(layers, hidden=True, embeddings="first-1")
    else:
        pairs = distillation_student.layer_pairs(
            layers, hidden=True, embeddings="first-1"
        )
        assert taught_by(pairs) == theirs
    # By default the embeddings' output learns from the embeddings' output.
    ours = taught_by(distillation_student.layer_pairs(layers, hidden=True))
    assert ours == [0, *theirs[1:]]


@pytest.mark.parametrize("name", XTC)
def test_take_layers_takes_xtcs(name):
    total = XTC[name]["teacher_layers_total"]
    params = {"encoder": {f"layer_{i}": i for i in range(total)}, "pooler": "p"}
    student = distillation_student.take_layers(params, XTC[name]["teacher_layer"])
    expected = XTC[name]["init_student_layer_from_teacher_layer"]
    assert list(student["encoder"]) == [f"layer_{i}" for i in range(len(expected))]
    assert list(student["encoder"].values()) == expected
    assert student["pooler"] == "p"


def test_take_layers_copies_nothing_and_leaves_the_teacher_alone():
    leaf = object()
    params = {"encoder": {"layer_0": {"w": leaf}, "layer_1": {}}, "classifier": {}}
    student = distillation_student.take_layers(params, (0,))
    assert student["encoder"]["layer_0"]["w"] is leaf
    assert list(params["encoder"]) == ["layer_0", "layer_1"]


def test_layers_may_come_twice_and_in_any_order():
    params = {"encoder": {"layer_0": "a", "layer_1": "b"}}
    taken = distillation_student.take_layers(params, (1, 0, 1))["encoder"]
    assert taken == {"layer_0": "b", "layer_1": "a", "layer_2": "b"}
    assert distillation_student.layer_pairs((1, 0, 1)) == ((0, 1), (1, 0), (2, 1))


def test_no_layers_are_no_student():
    with pytest.raises(ValueError, match="at least one index from 0"):
        distillation_student.take_layers({"encoder": {}}, ())


@pytest.mark.parametrize("layer", [2, -1, True])
def test_a_layer_that_the_teacher_lacks_is_refused(layer):
    params = {"encoder": {"layer_0": "a", "layer_1": "b"}}
    with pytest.raises(ValueError, match=r"teacher has 2 layers|one index from 0"):
        distillation_student.take_layers(params, (0, layer))


@pytest.mark.parametrize("student", [0, 7])
def test_a_student_is_neither_empty_nor_deeper(student):
    with pytest.raises(ValueError, match=f"student of {student} layers"):
        distillation_student.uniform_layers(6, student)


@pytest.mark.parametrize("layers", [(), (1, -1)])
@pytest.mark.parametrize("hidden", [True, False])
def test_pairs_of_no_or_negative_layers_are_refused(layers, hidden):
    with pytest.raises(ValueError, match="at least one index from 0"):
        distillation_student.layer_pairs(layers, hidden=hidden)


def test_an_unknown_kind_of_embeddings_is_refused():
    with pytest.raises(ValueError, match="not 'last'"):
        distillation_student.layer_pairs((1, 3), hidden=True, embeddings="last")
