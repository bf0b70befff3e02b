import functools
import re

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.model.leaves import Packed

TREE = {"a": {"kernel": 1, "bias": 2}, "b": {"c": {"kernel": 3}}, "d": 4}
FLAT = {"a/kernel": 1, "a/bias": 2, "b/c/kernel": 3, "d": 4}


def test_flatten_keeps_the_order():
    assert list(trees.flatten(TREE).items()) == list(FLAT.items())
    assert trees.flatten({}) == {}


names = st.text("abc_0", min_size=1, max_size=3)
nested = st.recursive(
    st.dictionaries(names, st.integers(), min_size=1),
    lambda children: st.dictionaries(names, children | st.integers(), min_size=1),
)


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(nested)
def test_unflatten_undoes_flatten(tree):
    assert trees.unflatten(trees.flatten(tree)) == tree


def test_a_leaf_of_several_arrays_is_one_leaf():
    packed = Packed(jnp.zeros((1, 1), jnp.uint8), jnp.ones((1, 1)), 1, (1, 8))
    assert trees.flatten({"a": {"kernel": packed}}) == {"a/kernel": packed}


def test_map_paths_sees_paths_and_leaves_the_tree_alone():
    found = trees.map_paths(lambda path, leaf: (path, leaf), TREE)
    assert found["b"]["c"]["kernel"] == ("b/c/kernel", 3)
    assert found["d"] == ("d", 4)
    assert trees.flatten(TREE) == FLAT


def test_the_first_full_match_wins():
    rules = [("a/.*", "first"), (".*/kernel", "second"), (".*", "rest")]
    assert trees.match(rules, FLAT) == {
        "a/kernel": "first",
        "a/bias": "first",
        "b/c/kernel": "second",
        "d": "rest",
    }


def test_part_of_a_path_is_no_match():
    with pytest.raises(ValueError, match=r"rule 'kernel' matches no parameter path"):
        trees.match([("kernel", 1)], FLAT)
    with pytest.raises(ValueError, match=r"rule 'a/kern' matches"):
        trees.match([("a/kern", 1)], FLAT)


@pytest.mark.parametrize("regex", ["a/(", "*", "(" * 9999, None, 3])
@pytest.mark.usefixtures("types_unchecked")
def test_what_is_no_regex_is_named(regex):
    quantize = functools.partial(bf.quantize, {"a": jnp.ones(2)})
    pack = functools.partial(bf.pack, {"a": jnp.ones((2, 2))})
    frozen = bf.make_optimizer(bf.Optim(frozen=(regex,)), 1).init
    problem = re.escape(f"rule {regex!r:.200} is no regular expression: ")
    for call in (quantize, pack, functools.partial(trees.match_one, path="a")):
        with pytest.raises(ValueError, match=problem):
            call(rules=[(regex, bf.binarize)])
    with pytest.raises(ValueError, match=problem):
        frozen({"a": jnp.ones(2)})
    with pytest.raises(ValueError, match=problem):
        bf.bert(bf.BertConfig(), act=((regex, bf.symmetric()),))


@pytest.mark.parametrize("rules", [{".*": bf.binarize}, [".*"], [(".*",)], ".*"])
@pytest.mark.usefixtures("types_unchecked")
def test_rules_that_are_no_pairs_are_refused(rules):
    for call in (
        lambda: bf.quantize({"a": jnp.ones(2)}, rules),
        lambda: bf.bert(bf.BertConfig(), act=rules),
    ):
        with pytest.raises(ValueError, match=r"expected rules as pairs \(regex, value"):
            call()


def test_a_rule_behind_another_may_win_nothing_but_must_match():
    assert trees.match([(".*", 1), ("d", 2)], FLAT) == dict.fromkeys(FLAT, 1)
    with pytest.raises(ValueError, match=r"'e' matches no .* look like: a/kernel, a/"):
        trees.match([(".*", 1), ("e", 2)], FLAT)


def test_no_rules_match_nothing():
    assert trees.match([], FLAT) == {}


def test_paths_may_be_read_once_only():
    assert trees.match([("d", 1), ("a/.*", 2)], iter(FLAT)) == {
        "a/kernel": 2,
        "a/bias": 2,
        "d": 1,
    }


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
    assert trees.leaves_read(fn, tree) == {
        "a": False,
        "b": False,
        "c": True,
        "d": {"direct": True, "none": False},
    }


def test_shapes_alone_are_enough():
    shape = jax.ShapeDtypeStruct((2,), "float32")
    assert trees.leaves_read(lambda p: p[0], [shape, shape]) == [True, False]
