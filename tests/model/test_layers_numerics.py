"""A model that multiplies integers or rounded operands, against one that does not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.model import leaves
from bitflax.packed import packing
from tests.helpers import small

ACTS = {
    "symmetric": bf.symmetric(8),
    "asymmetric": bf.asymmetric(8),
    "sites": (
        (".*/ffn/.*", bf.symmetric(4)),
        ("pooler/input", bf.symmetric(8, axis=None)),
        (".*/probs", bf.asymmetric(8)),
    ),
}


@pytest.fixture(scope="module", autouse=True)
def _made_in_float32():
    """Make what is made once before a test switches 64-bit numbers on."""
    params()
    told()


@functools.cache
def params():
    return bf.take_layers(small.teacher_params(), (0,))


@functools.cache
def told():
    """Return what a teacher of two layers says."""
    teacher = bf.take_layers(small.teacher_params(), (0, 1))
    return jax.jit(bf.bert(small.config(2)))(teacher, small.batch(4, 0))


def double(tree):
    return jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), tree)


def outputs(tree, act, **options):
    return jax.jit(bf.bert(small.config(1), act, **options))(tree, small.batch(4, 0))


def assert_close(a, b, atol):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=atol)


@pytest.mark.parametrize(
    ("act", "integers"),
    [("symmetric", "bfloat16"), ("asymmetric", "int8"), ("sites", "float32")],
)
def test_integers_are_exact(x64, act, integers):
    tree, rules = double(params()), bf.xtc_1bit("channel")
    expected = outputs(bf.quantize(tree, rules), ACTS[act])
    lazy = bf.quantize(tree, rules, lazy=True)
    assert_close(outputs(lazy, ACTS[act], integers=integers), expected, 1e-11)


@pytest.mark.slow
def test_packed_leaves_run_as_integers(x64):
    rules = (
        (r".*/ffn/.*kernel", bf.ternarize),
        (r".*/attention/.*kernel", bf.binarize),
    )
    packed = packing.pack(params(), rules, rest="float32")
    packed = jax.tree.map(lambda x: double(x) if x.dtype == jnp.float32 else x, packed)
    dense = trees.map_paths(lambda _, leaf: leaves.dense(leaf), packed)
    act = bf.symmetric(8)
    assert_close(outputs(packed, act, integers="int8"), outputs(dense, act), 1e-11)


@pytest.mark.slow
def test_split_halves_run_as_integers(x64):
    rules = bf.xtc_2bit()
    halves = bf.split(double(params()), rules)
    binary = bf.xtc_1bit()
    act = bf.symmetric(8)
    found = outputs(bf.quantize(halves, binary, lazy=True), act, integers="bfloat16")
    assert_close(found, outputs(bf.quantize(halves, binary), act), 1e-11)


def gradients(act, tree, **options):
    rules = bf.xtc_1bit()
    student = bf.bert(small.config(1), act, **options)
    batch, loss = small.batch(4, 0), small.one_stage((1,))

    def value(tree):
        out = student(bf.quantize(tree, rules, lazy=bool(options)), batch)
        return bf.total(loss(out, told(), batch))

    return jax.jit(jax.value_and_grad(value))(tree)


def test_gradients_of_integers_are_those_of_values(x64):
    tree, act = double(params()), bf.symmetric(8)
    found = gradients(act, tree, integers="float64")
    assert_close(found, gradients(act, tree), 1e-10)


@pytest.mark.slow
def test_bfloat16_rounds_gradients_a_little():
    tree, act = params(), bf.symmetric(8)
    with_x64 = functools.partial(jax.tree.map, lambda w: np.asarray(w, np.float64))
    found, expected = gradients(act, tree, dtype="bfloat16"), gradients(act, tree)
    assert abs(float(found[0] - expected[0])) < 2e-2 * float(expected[0])
    a, b = with_x64(found[1]), with_x64(expected[1])
    error = sum(
        np.sum((x - y) ** 2) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)
    )
    size = sum(np.sum(y**2) for y in jax.tree.leaves(b))
    assert 0 < error < 0.1**2 * size
    dtypes = {x.dtype for x in jax.tree.leaves(found)}
    assert dtypes == {jnp.dtype("float32")}


def test_bfloat16_rounds_what_is_not_quantised():
    rounded, whole = outputs(params(), None, dtype="bfloat16"), outputs(params(), None)
    error = np.abs(np.asarray(rounded.logits - whole.logits)).max()
    assert 0 < error < 2e-2 * np.abs(np.asarray(whole.logits)).max()
    assert rounded.logits.dtype == jnp.float32


def test_values_are_computed_as_ever_without_options():
    lazy = bf.quantize(params(), bf.xtc_1bit(), lazy=True)
    kernel = lazy["encoder"]["layer_0"]["ffn"]["in"]["kernel"]
    assert isinstance(kernel, leaves.Lazy)
    act = bf.symmetric(8)
    found = outputs(lazy, act)
    assert_close(found, outputs(bf.quantize(params(), bf.xtc_1bit()), act), 2e-6)
