"""Quantizers against DeepSpeed's numbers, a second implementation, and invariants."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitflax.model import leaves
from bitflax.quantization import quantizers
from bitflax.quantization.quantizers import asymmetric, binarize, symmetric, ternarize
from tests.helpers import oracles

part = functools.partial
full8 = symmetric(8, levels="full")


class Kind(NamedTuple):
    """A quantizer of a table, and which laws it obeys."""

    fn: object
    bits: int
    scales: str
    """What shares a scale, of a matrix: "tensor", "column", "row" or "run" (a quarter
    of the last axis)."""
    idempotent: bool = True
    odd: bool = True
    shifts: bool = False


KINDS = {
    "binary": Kind(binarize, 1, "tensor"),
    "binary-channel": Kind(part(binarize, axis=0), 1, "column"),
    "binary-row": Kind(part(binarize, axis=-1), 1, "row"),
    "binary-groups": Kind(part(binarize, groups=4), 1, "run"),
    "binary-zero": Kind(part(binarize, zero=0), 1, "tensor"),
    "ternary": Kind(ternarize, 2, "tensor"),
    "ternary-channel": Kind(part(ternarize, axis=0), 2, "column"),
    "ternary-row": Kind(part(ternarize, axis=-1), 2, "row"),
    "ternary-groups": Kind(part(ternarize, groups=4), 2, "run"),
    "sym8": Kind(symmetric(8), 8, "row"),
    "sym4": Kind(symmetric(4), 4, "row"),
    "sym2": Kind(symmetric(2), 2, "row"),
    "sym8-tensor": Kind(symmetric(8, axis=None), 8, "tensor"),
    "sym4-groups": Kind(symmetric(4, groups=4), 4, "run"),
    # The full levels clip the largest positive value, so neither law holds.
    "sym4-full": Kind(symmetric(4, levels="full"), 4, "row", False, False),
    "asym8": Kind(asymmetric(8), 8, "row", shifts=True),
    "asym4": Kind(asymmetric(4), 4, "row", shifts=True),
    "asym1": Kind(asymmetric(1), 1, "row", shifts=True),
    "asym4-tensor": Kind(asymmetric(4, axis=None), 4, "tensor", shifts=True),
    "asym4-groups": Kind(asymmetric(4, groups=4), 4, "run", shifts=True),
    "asym4-full": Kind(asymmetric(4, levels="full"), 4, "row", False, False),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


@pytest.fixture
def fn(kind):
    """Compiled, once for all tests: op by op takes ten times as long."""
    return jax.jit(kind.fn)


def matrix(seed=0, shape=(16, 40), dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def close(a, b, atol=2e-6):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


def assert_oracle(fn, x, cot, out, gradient):
    close(jax.jit(fn)(x), out)
    close(jax.jit(lambda x, cot: jax.vjp(fn, x)[1](cot)[0])(x, cot), gradient)


# ---------------------------------------------------------------- DeepSpeed's numbers


@pytest.mark.parametrize("groups", [1, 4, 24])
@pytest.mark.parametrize(
    ("name", "fn"),
    [
        ("binary", part(binarize, zero=0)),
        ("ternary", part(ternarize)),
        ("sym8", part(symmetric, 8, levels="full")),
        ("sym4", part(symmetric, 4, levels="full")),
        ("asym8", part(asymmetric, 8, levels="full")),
        ("asym4", part(asymmetric, 4, levels="full")),
    ],
)
def test_weights_in_groups_are_deepspeeds(name, fn, groups):
    z = oracles.load("xtc_quantizers")
    made = part(fn, groups=groups)
    quantizer = made if fn.func in (binarize, ternarize) else made()
    key = f"{name}_g{groups}"
    # A linear weight is [out, in] there, [in, out] here.
    arrays = z["W"], z["W_cot"], z[f"{key}_out"], z[f"{key}_gx"]
    assert_oracle(quantizer, *(a.T for a in arrays))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("name", "fn"), [("sym", symmetric), ("asym", asymmetric)])
def test_activations_by_token_are_deepspeeds(name, fn, bits):
    z = oracles.load("xtc_quantizers")
    out, gradient = z[f"{name}{bits}_tok_out"], z[f"{name}{bits}_tok_gx"]
    assert_oracle(fn(bits, levels="full"), z["X"], z["X_cot"], out, gradient)


@pytest.mark.parametrize(("name", "fn"), [("sym8", symmetric), ("asym8", asymmetric)])
def test_a_token_of_zeros_stays_zero_where_deepspeed_has_nan(name, fn):
    z = oracles.load("xtc_quantizers")
    theirs = z[f"{name}_tok_zero_out"]
    nan = np.isnan(theirs)
    assert nan.any()
    assert not nan.all()
    ours = np.asarray(fn(8, levels="full")(jnp.asarray(z["Xz"])))
    close(ours[~nan], theirs[~nan])
    np.testing.assert_array_equal(ours[nan], 0)


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("w1a8", part(binarize, zero=0)),
        ("w2a8", ternarize),
        ("w8a8", symmetric(8, axis=None, levels="full")),
    ],
)
def test_a_quantised_linear_is_deepspeeds(name, weight):
    z = oracles.load("xtc_quantizers")
    z = {k.removeprefix(f"lin_{name}_"): v for k, v in z.items()}

    def linear(x, kernel, bias):
        return leaves.matmul(full8(x), weight(kernel)) + bias[None, None]

    @jax.jit
    def both(cot, *args):
        out, vjp = jax.vjp(linear, *args)
        return out, *vjp(cot)

    found = both(z["cot"], z["X"], z["weight"].T, z["bias"])
    expected = z["out"], z["gx"], z["gw"].T, z["gb"]
    for x, y in zip(found, expected, strict=True):
        close(x, y)


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("w1", part(binarize, axis=-1, zero=0)),
        ("w2", part(ternarize, axis=-1)),
        ("w8", full8),
    ],
)
def test_a_quantised_table_is_deepspeeds(name, row, lazy):
    z = oracles.load("xtc_quantizers")
    ids = jnp.asarray(z["emb_ids"].astype(np.int32))

    def table(w):
        return leaves.lookup(leaves.Lazy(w, row) if lazy else row(w), ids)

    expected = z[f"emb_{name}_out"], z[f"emb_{name}_gw"]
    assert_oracle(table, z["W"], z["emb_cot"], *expected)


# ------------------------------------------------------------------------- invariants


@pytest.mark.parametrize("name", KINDS)
def test_a_quantizer_says_what_it_is(name):
    kind, scales = KINDS[name], {"tensor": (1, 1), "column": (1, 40), "row": (6, 1)}
    for fn in (kind.fn, part(part(kind.fn))):
        assert quantizers.bits_of(fn) == kind.bits
        assert quantizers.by_row(fn) == (kind.scales == "row")
        assert quantizers.scales_of(fn, (6, 40)) == scales.get(kind.scales, (1, 4))


@pytest.mark.parametrize("own", [jnp.sign, part(lambda w, axis: w, axis=-1)])
def test_an_own_quantizer_says_nothing(own):
    assert quantizers.bits_of(own) is None
    assert not quantizers.by_row(own)
    assert quantizers.scales_of(own, (6, 40)) == (1, 1)


@pytest.mark.parametrize("shape", [(40,), (6, 40), (2, 3, 40)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_shape_and_dtype_are_kept(dtype, shape):
    like = jax.ShapeDtypeStruct(shape, dtype)
    for name, kind in KINDS.items():
        out = jax.eval_shape(kind.fn, like)
        assert (out.shape, out.dtype) == (shape, dtype), name


def test_float64_stays_float64(x64):
    like = jax.ShapeDtypeStruct((6, 40), jnp.float64)
    for name, kind in KINDS.items():
        assert jax.eval_shape(kind.fn, like).dtype == jnp.float64, name


def test_the_gradient_is_the_cotangent(kind):
    def gradient(fn):
        return jax.jit(lambda w, cot: jax.vjp(fn, w)[1](cot)[0])(matrix(), matrix(1))

    np.testing.assert_array_equal(gradient(kind.fn), matrix(1))
    np.testing.assert_array_equal(gradient(jax.vmap(kind.fn)), matrix(1))


def test_quantising_twice_is_quantising_once(kind, fn, x64):
    once = fn(matrix(dtype=jnp.float64))
    same = np.allclose(fn(once), once, rtol=0, atol=1e-12)
    assert same == kind.idempotent


def test_odd_symmetry(kind, fn):
    w = matrix()
    same = np.allclose(fn(-w), -fn(w), rtol=0, atol=2e-6)
    assert same == kind.odd


@pytest.mark.parametrize("name", [n for n, k in KINDS.items() if k.shifts])
def test_asymmetric_moves_with_its_input(name):
    w, fn = matrix(), jax.jit(KINDS[name].fn)
    close(fn(w + 2), fn(w) + 2, atol=4e-6)


def test_scale_equivariance(fn):
    w = matrix()
    np.testing.assert_array_equal(fn(4 * w), 4 * fn(w))
    close(fn(0.37 * w), 0.37 * fn(w))


def test_zeros_stay_zeros(kind, fn):
    np.testing.assert_array_equal(fn(jnp.zeros((16, 40))), 0)
    some = fn(matrix().at[2].set(0).at[:, 10:20].set(0))
    assert bool(jnp.isfinite(some).all())
    if kind.scales == "row":
        np.testing.assert_array_equal(some[2], 0)
    if kind.scales == "run":
        np.testing.assert_array_equal(some[:, 10:20], 0)


def groups_of(scales, out):
    """Return the values that share a scale, a row for each scale."""
    if scales == "tensor":
        return out.reshape(1, -1)
    if scales == "run":
        return out.reshape(len(out), 4, -1).transpose(1, 0, 2).reshape(4, -1)
    return out.T if scales == "column" else out


def test_one_scale_has_at_most_two_to_the_bits_levels(kind, fn):
    out = groups_of(kind.scales, np.asarray(fn(matrix(shape=(64, 400)))))
    counts = [len(np.unique(group)) for group in out]
    assert 1 < min(counts) <= max(counts) <= 2**kind.bits
    # Each has a scale of its own.
    assert len(np.unique(np.abs(out).max(axis=1))) == len(out)


def test_jit_is_eager(kind, fn):
    close(fn(matrix()), kind.fn(matrix()))


def test_vmap_is_one_after_another(kind, fn):
    stack = matrix(shape=(3, 16, 40))
    close(jax.jit(jax.vmap(kind.fn))(stack), jnp.stack([fn(w) for w in stack]))


@pytest.mark.parametrize("name", ["sym8", "sym4", "sym2", "asym8", "asym4", "asym1"])
def test_the_error_is_at_most_half_a_step(name):
    x, quantizer = matrix(), KINDS[name].fn
    step = quantizer.codes(x).scale
    assert bool((jnp.abs(quantizer(x) - x) <= 0.5 * step + 1e-6).all())


# -------------------------------------------------------- a second implementation, f64


def numpy_symmetric(x, bits, levels):
    half = 2 ** (bits - 1)
    step = np.abs(x).max(-1, keepdims=True) / (half - (levels == "restricted"))
    return np.clip(np.round(x / step), -half, half - 1) * step


def numpy_asymmetric(x, bits, levels):
    low, high = x.min(-1, keepdims=True), x.max(-1, keepdims=True)
    step = (high - low) / (2**bits - (levels == "restricted"))
    zero = low if levels == "restricted" else np.round(low / step) * step
    return np.clip(np.round((x - zero) / step), 0, 2**bits - 1) * step + zero


@pytest.mark.parametrize("levels", ["restricted", "full"])
@pytest.mark.parametrize("bits", [2, 8, 16])
@pytest.mark.parametrize(
    ("fn", "reference"),
    [(symmetric, numpy_symmetric), (asymmetric, numpy_asymmetric)],
)
def test_rounding_is_numpys_in_float64(fn, reference, bits, levels, x64):
    x = np.random.default_rng(bits).normal(size=(50, 33))
    found = jax.jit(fn(bits, levels=levels))(x)
    close(found, reference(x, bits, levels), atol=1e-12)


def test_signs_and_thresholds_are_numpys_in_float64(x64):
    w = np.random.default_rng(0).normal(size=(50, 33))
    size = np.abs(w)
    for axis in (None, 0, 1):
        mean = size.mean(axis, keepdims=True)
        close(
            jax.jit(binarize, static_argnums=1)(w, axis), np.sign(w) * mean, atol=1e-12
        )
        kept = size > 0.7 * mean
        scale = (size * kept).sum(axis, keepdims=True) / kept.sum(axis, keepdims=True)
        expected = np.sign(w) * kept * scale
        close(jax.jit(ternarize, static_argnums=1)(w, axis), expected, atol=1e-12)


# ---------------------------------------------------------------------- what is special


def test_the_sign_of_zero_is_plus_one_or_zero():
    w = jnp.array([0.0, -0.0, 2.0, -4.0])
    np.testing.assert_array_equal(binarize(w), [1.5, 1.5, 1.5, -1.5])
    np.testing.assert_array_equal(binarize(w, zero=0), [0, 0, 1.5, -1.5])


def test_restricted_levels_keep_both_ends():
    x = jnp.array([[-3.0, 0.2, 1.0, 2.5]])
    np.testing.assert_array_equal(symmetric(8)(x)[0, 0], -3.0)
    close(asymmetric(4)(x)[0, [0, 3]], [-3.0, 2.5])
    # DeepSpeed's levels lose the largest positive value's last step.
    top = symmetric(8, levels="full")(jnp.array([[2.0, 1.0]]))[0, 0]
    close(top, 2 * 127 / 128)


@pytest.mark.parametrize("x", [[[0.7, 0.7, 0.7]], [[-0.3, -0.3, -0.3]]])
@pytest.mark.parametrize("levels", ["restricted", "full"])
def test_a_constant_token_is_itself(x, levels):
    close(asymmetric(8, levels=levels)(jnp.array(x)), x)


@pytest.mark.parametrize("levels", ["restricted", "full"])
@pytest.mark.parametrize("fn", [symmetric, asymmetric])
def test_codes_are_integers_that_stand_for_the_values(fn, levels):
    quantizer = fn(8, levels=levels)
    x = matrix()
    integers, scale, zero = quantizer.codes(x)
    np.testing.assert_array_equal(integers, jnp.round(integers))
    low = -128 if fn is symmetric else 0
    assert float(integers.min()) >= low
    assert float(integers.max()) <= low + 255
    np.testing.assert_array_equal(integers * scale + zero, quantizer(x))
    assert scale.shape == zero.shape == (16, 1)


def test_settings_are_equal_by_value_and_can_be_keys():
    assert symmetric(8) == symmetric(bits=8, axis=-1)
    assert hash(symmetric(8)) == hash(symmetric(8))
    assert symmetric(8) != symmetric(4)
    assert symmetric(8) != asymmetric(8)


@pytest.mark.parametrize("bits", [0, 1, 17, -8])
def test_bits_that_cannot_be_are_refused(bits):
    with pytest.raises(ValueError, match=f"2 to 16, not {bits}"):
        symmetric(bits)


def test_one_bit_has_no_symmetric_levels_but_asymmetric_ones():
    assert asymmetric(1).bits == 1
    with pytest.raises(ValueError, match="1 to 16, not 0"):
        asymmetric(0)


@pytest.mark.parametrize("fn", [symmetric, asymmetric])
def test_unknown_levels_are_refused(fn):
    with pytest.raises(ValueError, match="not 'half'"):
        fn(8, levels="half")


@pytest.mark.parametrize("fn", [binarize, ternarize])
def test_axis_and_groups_exclude_each_other(fn):
    with pytest.raises(ValueError, match="axis or groups, not both"):
        fn(matrix(), 0, groups=4)


@pytest.mark.parametrize(
    "fn", [part(binarize, groups=3), part(ternarize, groups=3), symmetric(groups=3)]
)
def test_groups_must_divide(fn):
    with pytest.raises(ValueError, match="3 groups do not divide"):
        fn(matrix())


def test_a_quantizer_of_ones_own_gets_the_straight_gradient():
    def half(w):
        return quantizers.straight_through(lambda w: jnp.round(2 * w) / 2, w)

    w, cot = matrix(), matrix(1)
    out, vjp = jax.vjp(jax.jit(half), w)
    np.testing.assert_array_equal(out, np.round(2 * np.asarray(w)) / 2)
    np.testing.assert_array_equal(vjp(cot)[0], cot)
