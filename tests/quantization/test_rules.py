import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.model import leaves
from bitflax.quantization import quantizers, rules
from tests.helpers import oracles, small

part = functools.partial


def attention(layer):
    names = ("query", "key", "value", "out")
    return {f"encoder/layer_{layer}/attention/{n}/kernel" for n in names}


def expected_paths(layers):
    """What XTC quantises, from a list of its modules."""
    paths = {"embeddings/word/embedding"}
    for i in range(layers):
        paths |= attention(i)
        paths |= {f"encoder/layer_{i}/ffn/{n}/kernel" for n in ("in", "out")}
    return paths


@pytest.mark.parametrize("profile", [bf.xtc_1bit, bf.xtc_2bit])
def test_a_profile_matches_what_xtc_quantises_and_no_more(profile):
    flat = trees.flatten(small.teacher_params())
    assert set(trees.match(profile(), flat)) == expected_paths(4)


@pytest.mark.parametrize(
    ("profile", "quantizer", "bits"),
    [(bf.xtc_1bit, bf.binarize, 1), (bf.xtc_2bit, bf.ternarize, 2)],
)
@pytest.mark.parametrize(("per", "axis"), [("tensor", None), ("channel", 0)])
def test_profiles_quantise_by_tensor_or_channel_and_the_table_by_row(
    profile, quantizer, bits, per, axis
):
    params = small.teacher_params()
    found = trees.flatten(bf.quantize(params, profile(per)))
    for path, leaf in trees.flatten(params).items():
        if path == "embeddings/word/embedding":
            expected = quantizer(leaf, -1)
        elif path in expected_paths(4):
            expected = quantizer(leaf, axis)
        else:
            assert found[path] is leaf, path
            continue
        np.testing.assert_array_equal(found[path], expected, err_msg=path)
    assert [quantizers.bits_of(q) for _, q in profile(per)] == [bits, bits]


def test_an_unknown_per_is_refused():
    with pytest.raises(ValueError, match="not 'row'"):
        bf.xtc_1bit("row")


def test_the_first_rule_wins():
    tree = {"a": {"kernel": jnp.array([1.0, -3.0])}}
    found = bf.quantize(tree, [("a/kernel", lambda w: 2 * w), (".*", bf.binarize)])
    np.testing.assert_array_equal(found["a"]["kernel"], [2, -6])


def test_a_rule_that_matches_nothing_names_itself():
    params = {"ffn": {"kernel": jnp.ones(2)}}
    with pytest.raises(ValueError, match=r"rule 'fnn/\.\*' matches no parameter path"):
        bf.quantize(params, [("ffn/kernel", bf.binarize), ("fnn/.*", bf.binarize)])


def test_quantising_leaves_the_callers_tree_alone():
    tree = {"ffn": {"kernel": jnp.array([1.0, -3.0]), "bias": jnp.ones(1)}}
    bf.quantize(tree, [("ffn/kernel", bf.binarize)])
    np.testing.assert_array_equal(tree["ffn"]["kernel"], [1, -3])


@pytest.mark.parametrize(
    ("quantizer", "lazy"),
    [
        (part(bf.binarize, axis=-1), True),
        (part(bf.ternarize, axis=-1), True),
        (part(bf.binarize, axis=(-1,)), True),
        (bf.symmetric(8), True),
        (part(bf.binarize, axis=None), False),
        (part(bf.binarize, axis=0), False),
        (part(bf.binarize, groups=2), False),
        (bf.symmetric(8, axis=None), False),
        (bf.symmetric(8, groups=2), False),
        # Of an own function nobody knows that it scales each row by itself.
        (part(lambda w, axis: w, axis=-1), False),
        (lambda w: w, False),
    ],
)
def test_only_tables_that_are_scaled_by_row_are_lazy(quantizer, lazy):
    table = jax.random.normal(jax.random.key(0), (6, 8))
    params = {"embeddings": {"word": {"embedding": table}}, "kernel": table}
    rule = [("embeddings/word/embedding", quantizer), ("kernel", quantizer)]
    found = bf.quantize(params, rule, lazy=True)
    leaf = found["embeddings"]["word"]["embedding"]
    assert isinstance(leaf, leaves.Lazy) == lazy
    assert not isinstance(found["kernel"], leaves.Lazy)
    ids = jnp.array([[5, 0, 5]])
    whole = bf.quantize(params, rule)["embeddings"]["word"]["embedding"]
    np.testing.assert_allclose(leaves.lookup(leaf, ids), whole[ids], atol=1e-6)


def test_quantising_the_students_tree_keeps_its_structure():
    params = oracles.student()
    quantised = bf.quantize(params, bf.xtc_2bit())
    assert jax.tree.structure(quantised) == jax.tree.structure(params)
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(quantised), strict=True):
        assert (a.shape, a.dtype) == (b.shape, b.dtype)


@pytest.mark.parametrize("lazy", [False, True])
def test_each_half_of_a_split_is_quantised_by_itself(lazy):
    params = small.teacher_params()
    path, rest = "embeddings/word/embedding", "classifier/kernel"
    flat = trees.flatten(params)
    table, head = flat[path], flat[rest]
    flat[path] = leaves.Split(table, 3 * table + 1)
    flat[rest] = leaves.Split(head, 2 * head)
    quantised = bf.quantize(
        trees.unflatten(flat), [(path, rules.xtc_1bit()[1][1])], lazy=lazy
    )
    found = trees.flatten(quantised)
    for half, latent in ((found[path].a, table), (found[path].b, 3 * table + 1)):
        assert isinstance(half, leaves.Lazy) == lazy
        np.testing.assert_array_equal(leaves.dense(half), bf.binarize(latent, -1))
    assert found[rest] is flat[rest]
