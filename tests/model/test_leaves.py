import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitflax.model import leaves
from bitflax.model.leaves import Lazy, Packed, Split
from bitflax.packed import bitfields
from bitflax.quantization import quantizers

# What a field of a code stands for, written out.
MEANING = {1: [-1, 1], 2: [-1, 0, 1]}


def random_packed(bits, rows=5, cols=13, groups=(5, 1), seed=0):
    rng = np.random.default_rng(seed)
    if bits == 8:
        fields = rng.integers(-128, 128, (rows, cols))
    else:
        fields = rng.integers(0, len(MEANING[bits]), (rows, cols))
    scale = rng.uniform(0.5, 2, groups).astype(np.float32)
    codes = bitfields.fields_to_bytes(fields, bits)
    packed = Packed(jnp.asarray(codes), jnp.asarray(scale), bits, (rows, cols))
    meant = fields if bits == 8 else np.array(MEANING[bits])[fields]
    run = cols // groups[1]
    wide = np.repeat(np.broadcast_to(scale, (rows, groups[1])), run, axis=1)
    return packed, (meant * wide).astype(np.float32)


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("cols", [1, 3, 4, 7, 8, 9, 16, 17])
def test_codes_to_values_undoes_to_bytes(bits, cols):
    low, high = {1: (0, 2), 2: (0, 3), 8: (-128, 128)}[bits]
    fields = np.random.default_rng(cols).integers(low, high, (6, cols))
    codes = bitfields.fields_to_bytes(fields, bits)
    assert codes.dtype == np.uint8
    assert codes.shape == (6, -(-cols * bits // 8))
    expected = fields if bits == 8 else np.array(MEANING[bits])[fields]
    values = leaves.codes_to_values(jnp.asarray(codes), bits, cols)
    np.testing.assert_array_equal(values, expected)


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("groups", [(1, 1), (1, 12), (5, 1), (1, 3), (5, 4)])
def test_dense_spreads_the_scales(bits, groups):
    packed, expected = random_packed(bits, cols=12, groups=groups)
    np.testing.assert_array_equal(leaves.dense(packed), expected)


@pytest.mark.parametrize("bits", [1, 2, 8])
def test_matmul_is_the_dense_one(bits):
    packed, dense = random_packed(bits, rows=6, cols=9, groups=(1, 9))
    x = np.random.default_rng(1).normal(size=(2, 4, 6)).astype(np.float32)
    expected = np.einsum("bsn,nm->bsm", x, dense)
    np.testing.assert_allclose(
        leaves.matmul(x_ := jnp.asarray(x), packed), expected, atol=1e-4
    )
    np.testing.assert_array_equal(
        leaves.matmul(x_, packed), leaves.matmul(x_, jnp.asarray(dense))
    )


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize("groups", [(1, 1), (5, 1), (5, 4), (1, 4)])
def test_lookup_is_the_dense_one_under_jit(bits, groups):
    packed, dense = random_packed(bits, cols=12, groups=groups)
    ids = jnp.array([[0, 4, 4], [2, 1, 0]])
    found = jax.jit(leaves.lookup)(packed, ids)
    np.testing.assert_array_equal(found, dense[np.asarray(ids)])


def test_a_lazy_table_gives_the_numbers_of_the_quantised_one():
    table = jax.random.normal(jax.random.key(0), (7, 16))

    def quantizer(w):
        return quantizers.binarize(w, axis=-1)

    ids = jnp.array([3, 0, 3])
    lazy = leaves.lookup(Lazy(table, quantizer), ids)
    np.testing.assert_array_equal(lazy, quantizer(table)[ids])
    np.testing.assert_array_equal(
        leaves.dense(Lazy(table, quantizer)), quantizer(table)
    )


@pytest.mark.parametrize("lazy", [False, True])
def test_the_pad_row_gets_no_gradient(lazy):
    def loss(table):
        leaf = Lazy(table, lambda w: 2 * w) if lazy else table
        return jnp.sum(leaves.lookup(leaf, jnp.array([0, 1, 1]), pad=0))

    factor = 2 if lazy else 1
    gradient = jax.grad(loss)(jnp.ones((3, 2)))
    np.testing.assert_array_equal(gradient, factor * np.array([[0, 0], [2, 2], [0, 0]]))


def test_packed_leaves_pass_through_jit_as_arguments():
    packed, dense = random_packed(2)
    doubled = jax.jit(lambda leaf: 2 * leaves.dense(leaf))(packed)
    np.testing.assert_array_equal(doubled, 2 * dense)
    assert len(jax.tree.leaves(packed)) == 2


def random_split(shape=(4, 6), seed=0):
    a, b = jax.random.normal(jax.random.key(seed), (2, *shape))
    return Split(a, b)


def test_a_split_is_the_sum_of_its_halves():
    split, x = random_split(), jnp.arange(8.0).reshape(2, 4)
    total, ids = split.a + split.b, jnp.array([[0, 3], [3, 1]])
    np.testing.assert_array_equal(leaves.dense(split), total)
    np.testing.assert_array_equal(leaves.matmul(x, split), x @ total)
    np.testing.assert_array_equal(jax.jit(leaves.lookup)(split, ids), total[ids])
    assert split.shape == (4, 6)


def test_both_halves_of_a_split_get_the_gradient_of_the_sum():
    split, x = random_split(), jnp.arange(8.0).reshape(2, 4)

    def loss(kernel):
        return jnp.sum(jnp.sin(leaves.matmul(x, kernel)))

    whole = jax.grad(loss)(split.a + split.b)
    halves = jax.grad(loss)(split)
    np.testing.assert_allclose(halves.a, whole, rtol=1e-6)
    np.testing.assert_array_equal(halves.a, halves.b)


@pytest.mark.parametrize("lazy", [False, True])
def test_the_pad_row_gets_no_gradient_in_either_half(lazy):
    def loss(split):
        if lazy:
            split = Split(Lazy(split.a, jnp.sin), Lazy(split.b, jnp.sin))
        return jnp.sum(leaves.lookup(split, jnp.array([0, 1]), pad=0))

    gradient = jax.grad(loss)(random_split())
    for half in (gradient.a, gradient.b):
        np.testing.assert_array_equal(half[0], jnp.zeros(6))
        assert jnp.all(half[1] != 0)


def test_a_split_of_packed_halves_computes_with_their_sum():
    (a, dense_a), (b, dense_b) = random_packed(1, seed=1), random_packed(1, seed=2)
    split, ids = Split(a, b), jnp.array([4, 0])
    np.testing.assert_array_equal(leaves.dense(split), dense_a + dense_b)
    np.testing.assert_array_equal(leaves.lookup(split, ids), (dense_a + dense_b)[ids])
