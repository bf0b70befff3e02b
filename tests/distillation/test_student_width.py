"""Narrower students: what is kept, and by what it is chosen."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.distillation import student
from bitflax.errors import ConfigError
from bitflax.model import hf_config, leaves, names
from tests.helpers import small

CONFIG = small.config(2, num_attention_heads=4, head_size=5)
NARROW = dataclasses.replace(CONFIG, num_attention_heads=2, intermediate_size=7)
HEADS = ((0, 2), (1, 3))
NEURONS = (tuple(range(3, 10)), tuple(range(0, 14, 2)))


@functools.cache
def arrays():
    rng = np.random.default_rng(0)
    shapes = names.parameter_shapes(CONFIG)
    return {path: rng.normal(0, 0.2, shape) for path, shape in shapes.items()}


def params(dtype=np.float32):
    return trees.unflatten({p: jnp.asarray(w, dtype) for p, w in arrays().items()})


def masked(params, heads, neurons):
    """The full model, where the rows of all other parts are zero."""
    flat = trees.flatten(params)
    for i, (own_heads, own_neurons) in enumerate(zip(heads, neurons, strict=True)):
        for block, own, size in (("attention", own_heads, 5), ("ffn", own_neurons, 1)):
            path = f"encoder/layer_{i}/{block}/out/kernel"
            keep = np.repeat(np.isin(np.arange(len(flat[path]) // size), own), size)
            flat[path] = np.asarray(flat[path]) * keep[:, None].astype(np.float32)
    return trees.unflatten(flat)


def test_the_narrow_model_is_the_full_one_with_the_others_zeroed():
    batch = small.batch(4, 0)
    narrow = student.take_width(params(), HEADS, NEURONS, head_size=5)
    shapes = {path: leaf.shape for path, leaf in trees.flatten(narrow).items()}
    assert shapes == names.parameter_shapes(NARROW)
    found = jax.jit(bf.bert(NARROW))(narrow, batch)
    expected = jax.jit(bf.bert(CONFIG))(masked(params(), HEADS, NEURONS), batch)
    np.testing.assert_allclose(found.logits, expected.logits, atol=1e-5)
    for mine, its in zip(found.hidden, expected.hidden, strict=True):
        np.testing.assert_allclose(mine, its, atol=1e-5)
    for own, mine, its in zip(HEADS, found.scores, expected.scores, strict=True):
        np.testing.assert_allclose(mine, its[:, own], atol=1e-5)


def test_counts_take_the_first_or_the_most_important_in_their_old_order():
    rng = np.random.default_rng(1)
    said = student.Importance(rng.normal(size=(2, 4)), rng.normal(size=(2, 32)))
    for scores, heads, neurons in (
        (None, ((0, 1),) * 2, (tuple(range(7)),) * 2),
        (
            said,
            *(
                np.argsort(-part)[:, :n].tolist()
                for part, n in zip(said, (2, 7), strict=True)
            ),
        ),
    ):
        size = {"head_size": 5} if scores is None else {}
        found = student.take_width(params(), 2, 7, scores, **size)
        expected = student.take_width(params(), heads, neurons, head_size=5)
        assert small.largest_difference(found, expected) == 0
    flat, path = trees.flatten(params()), "encoder/layer_1/ffn/in/bias"
    order = np.sort(np.argsort(-said.ffn[1])[:7])
    np.testing.assert_array_equal(trees.flatten(found)[path], flat[path][order])


def loss(params, batch):
    return bf.label_cross_entropy(bf.bert(CONFIG)(params, batch), None, batch)


def test_importance_is_the_gradient_of_a_switch_before_each_part(x64):
    tree = params(np.float64)
    batches = [small.batch(4, seed) for seed in (1, 2)]
    found = student.importance(loss, tree, batches, heads=4)
    assert found.heads.shape == (2, 4)
    assert found.ffn.shape == (2, 32)
    for block, part, size, index in (
        ("attention", found.heads, 5, (0, 2)),
        ("ffn", found.ffn, 1, (1, 30)),
    ):
        path = f"encoder/layer_{index[0]}/{block}/out/kernel"
        rows = slice(index[1] * size, (index[1] + 1) * size)

        def switched(x, batch, path=path, rows=rows):
            flat = trees.flatten(tree)
            flat[path] = flat[path].at[rows].multiply(x)
            return loss(trees.unflatten(flat), batch).value

        switched = jax.jit(switched)
        slopes = [
            (switched(1 + 1e-5, batch) - switched(1 - 1e-5, batch)) / 2e-5
            for batch in batches
        ]
        expected = np.mean(np.abs(slopes))
        assert expected > 1e-7
        np.testing.assert_allclose(part[index], expected, rtol=1e-5)


def test_split_matrices_and_learned_ranges_come_along():
    flat = trees.flatten(params())
    kernel, site = "encoder/layer_0/ffn/in/kernel", "encoder/layer_0/ffn/in/input"
    flat[kernel] = leaves.Split(flat[kernel], 2 * flat[kernel])
    flat[site] = jnp.array([-2.5, 2.5])
    found = student.take_width(trees.unflatten(flat), 2, 7, head_size=5)
    ffn = found["encoder"]["layer_0"]["ffn"]["in"]
    assert ffn["kernel"].a.shape == ffn["kernel"].b.shape == (16, 7)
    np.testing.assert_array_equal(2 * ffn["kernel"].a, ffn["kernel"].b)
    np.testing.assert_array_equal(ffn["input"], [-2.5, 2.5])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"head_size": None}, "give importance, or head_size"),
        ({"head_size": 3}, "head_size 3 does not divide"),
        ({"heads": 5}, "heads: expected as many .* at most 4"),
        ({"heads": 0}, "heads: expected 1 to 4 of 0 to 3"),
        ({"ffn": ((0, 1), (0, 32))}, "ffn: expected 1 to 32 of 0 to 31"),
        ({"ffn": ((0, 1), (0,))}, "as many different indices for each of 2"),
        ({"ffn": ((0, 1), (5, 5))}, "as many different indices"),
        ({"heads": ((0, 1),)}, "each of 2 layers"),
        ({"importance": student.Importance(np.ones((2, 3)), None)}, "3 heads do not"),
        (
            {"importance": student.Importance(np.ones((1, 4)), np.ones((2, 32)))},
            r"importance.heads: expected \(2, 4\), found \(1, 4\)",
        ),
    ],
)
def test_what_a_model_has_not_is_refused(changes, said):
    arguments = {"heads": 2, "ffn": 7, "head_size": 5} | changes
    with pytest.raises(ValueError, match=said):
        student.take_width(params(), **arguments)


def test_importance_needs_a_batch():
    with pytest.raises(ValueError, match="no batch"):
        student.importance(loss, params(), [], heads=4)


def test_a_narrow_model_is_not_exported():
    with pytest.raises(ConfigError, match="Hugging Face's BERT has no field"):
        hf_config.config_to_hf(NARROW)
