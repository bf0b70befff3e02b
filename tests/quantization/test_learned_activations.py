"""Learned activation quantizers against BinaryBERT's numbers, and what they promise."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitflax.model import leaves
from bitflax.quantization.learned_activations import clipped, elastic, lsq
from bitflax.quantization.quantizers import asymmetric, binarize, symmetric, ternarize
from tests.helpers import oracles

FILE = "binarybert_quantizers"
# A head's probabilities share a range where rows have ranges of their own.
AXES = {
    ("layer", "X"): None,
    ("layer", "P"): None,
    ("row", "X"): -1,
    ("row", "P"): (-2, -1),
}
KINDS = {
    "clipped-sym": clipped(symmetric(8, axis=None)),
    "clipped-asym": clipped(asymmetric(4, axis=-1)),
    "lsq": lsq(4),
    "lsq-unsigned": lsq(4, signed=False),
    "elastic": elastic(),
    "elastic-unsigned": elastic(signed=False),
    "elastic4": elastic(4),
    "elastic2-unsigned": elastic(2, signed=False),
}


@pytest.fixture(params=KINDS)
def quantizer(request):
    return KINDS[request.param]


def close(a, b, atol=2e-6):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


@functools.partial(jax.jit, static_argnums=0)
def run(quantizer, x, p, cot):
    """Return the values, and the gradients by x and p."""
    out, vjp = jax.vjp(quantizer, x, p)
    return out, *vjp(cot)


def matrix(seed=0, shape=(6, 40), dtype=jnp.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


# --------------------------------------------------------------- BinaryBERT's numbers


def assert_oracle(quantizer, key, x, p):
    z = oracles.load(FILE)
    arrays = (
        jnp.asarray(a, jnp.result_type(float)) for a in (x, p, z[f"{x_of(key)}_cot"])
    )
    found = run(quantizer, *arrays)
    # 0 in the middle of -2.5 and 2.5 is half a step off in float32, less in float64.
    tie = np.asarray(x == 0) & (jnp.result_type(float) == jnp.float64)
    for value, name in zip(found, ("out", "gx", "gclip"), strict=True):
        expected = z[f"{key}_{name}"]
        if name == "out":
            value, expected = np.where(tie, 0, value), np.where(tie, 0, expected)
        # Sums of some hundred gradients: relative to their size.
        close(value, expected, 2e-6 * max(1, np.abs(expected).max()))


def x_of(key):
    return "P" if "_P" in key else "X"


def assert_clipped(kind, bits, share, what):
    levels = {"sym": "restricted", "asym": "widened"}[kind]
    inner = {"sym": symmetric, "asym": asymmetric}[kind]
    quantizer = clipped(inner(bits, axis=AXES[share, what], levels=levels))
    x = oracles.load(FILE)[what]
    key = f"{kind}{bits}_{share}_{what}"
    assert_oracle(quantizer, key, x, quantizer.init(jnp.asarray(x)))


CLIPPED = pytest.mark.parametrize(
    ("kind", "bits", "share", "what"),
    [
        (kind, bits, *place)
        for kind in ("sym", "asym")
        for bits in (8, 4)
        for place in AXES
    ],
)


@CLIPPED
def test_a_fixed_clip_is_ternaryberts(kind, bits, share, what):
    # The same values and gradients as a learned one's, which its ends do not get.
    levels = {"sym": "restricted", "asym": "widened"}[kind]
    inner = {"sym": symmetric, "asym": asymmetric}[kind]
    inner = inner(bits, axis=AXES[share, what], levels=levels)
    z, key = oracles.load(FILE), f"{kind}{bits}_{share}_{what}"
    fn = clipped(inner, fixed=True)
    x, g = jnp.asarray(z[what]), jnp.asarray(z[f"{what}_cot"])
    out, gx, by_p = run(fn, x, fn.init(x), g)
    tie = np.asarray(x == 0) & (jnp.result_type(float) == jnp.float64)
    close(np.where(tie, 0, out), np.where(tie, 0, z[f"{key}_out"]))
    close(gx, z[f"{key}_gx"])
    np.testing.assert_array_equal(by_p, [0, 0])


@CLIPPED
def test_clipped_is_binaryberts(kind, bits, share, what):
    assert_clipped(kind, bits, share, what)


@CLIPPED
def test_clipped_is_binaryberts_in_float64(kind, bits, share, what, x64):
    assert_clipped(kind, bits, share, what)


def assert_lsq(kind, bits, what, first):
    quantizer = lsq(bits, signed=kind == "sym")
    x = oracles.load(FILE)[what]
    key = f"lsq{kind}{bits}_{what}"
    p = jnp.asarray(0.11 if kind == "sym" else 0.07)
    if first:
        key, p = f"{key}_init", quantizer.init(jnp.asarray(x))
        close(p, oracles.load(FILE)[f"{key}_alpha"])
    assert_oracle(quantizer, key, x, p)


LSQ = pytest.mark.parametrize(
    ("kind", "bits", "what", "first"),
    [
        (kind, bits, what, first)
        for kind in ("sym", "asym")
        for bits in (8, 4, 2)
        for what in ("X", "P", "Xrelu")
        for first in (False, True)
    ],
)


@LSQ
def test_lsq_is_binaryberts(kind, bits, what, first):
    assert_lsq(kind, bits, what, first)


@LSQ
def test_lsq_is_binaryberts_in_float64(kind, bits, what, first, x64):
    assert_lsq(kind, bits, what, first)


@pytest.mark.parametrize(
    ("name", "weight", "act"),
    [
        ("t_u8", ternarize, clipped(symmetric(8, axis=None))),
        (
            "b_u8",
            functools.partial(binarize, zero=0),
            clipped(symmetric(8, axis=None)),
        ),
        ("b_l4", functools.partial(binarize, zero=0), lsq(4)),
        ("b_l4a", functools.partial(binarize, zero=0), lsq(4, signed=False)),
    ],
)
def test_a_quantised_linear_is_binaryberts(name, weight, act):
    z = oracles.load(FILE)
    mine = {k.removeprefix(f"lin_{name}_"): v for k, v in z.items()}

    def linear(x, p, kernel, bias):
        return leaves.matmul(act(x, p), weight(kernel)) + bias[None, None]

    @jax.jit
    def both(cot, *args):
        out, vjp = jax.vjp(linear, *args)
        return out, *vjp(cot)

    arrays = (z["X"], mine["clip"], mine["weight"].T, mine["bias"])
    out, gx, gclip, gw, gb = both(mine["cot"], *map(jnp.asarray, arrays))
    close(out, mine["out"], 1e-5)
    for found, expected in ((gx, "gx"), (gclip, "gclip"), (gw.T, "gw"), (gb, "gb")):
        close(found, mine[expected], 1e-5)


@pytest.mark.parametrize(("name", "fn"), [("twn", ternarize), ("bwn", binarize)])
@pytest.mark.parametrize(("share", "axis"), [("layer", None), ("row", -1)])
def test_weights_are_binaryberts(name, fn, share, axis):
    z = oracles.load(FILE)
    zero = {"zero": 0} if fn is binarize else {}
    made = jax.jit(functools.partial(fn, axis=axis, **zero))
    close(made(z["W"]), z[f"{name}_{share}_out"])
    if share == "row":
        theirs = z[f"{name}_row_zero_out"]
        # A row of zeros is NaN in theirs, and zeros here.
        close(made(z["Wzero"]), np.nan_to_num(theirs))


# ------------------------------------------------------------------------ by definition


def numpy_lsq(x, p, g, low, top):
    """Return values and gradients, element by element."""
    out, by_x, by_p = np.zeros_like(x), np.zeros_like(x), 0.0
    for i, value in np.ndenumerate(x):
        ratio = value / p
        whole = min(max(np.round(ratio), low), top)
        out[i] = whole * p
        if ratio < low:
            by_p += g[i] * low
        elif ratio > top:
            by_p += g[i] * top
        else:
            by_x[i] = g[i]
            by_p += g[i] * (np.round(ratio) - ratio)
    return out, by_x, by_p / math.sqrt(x.size * top)


@pytest.mark.parametrize(
    ("quantizer", "low", "top"),
    [
        (elastic(signed=False), 0, 1),
        (elastic(2, signed=False), 0, 3),
        (elastic(4, signed=False), 0, 15),
        (elastic(2), -2, 1),
        (elastic(4), -8, 7),
        (lsq(3), -4, 3),
    ],
)
def test_multiples_of_a_step_are_numpys(quantizer, low, top, x64):
    x, g = (matrix(seed, (7, 9), jnp.float64) for seed in (0, 1))
    found = run(quantizer, x, jnp.array(0.4), g)
    expected = numpy_lsq(np.asarray(x), 0.4, np.asarray(g), low, top)
    for a, b in zip(found, expected, strict=True):
        close(a, b, 1e-12)


def test_a_signed_bit_is_a_sign_times_its_scale(x64):
    x, g = (matrix(seed, (7, 9), jnp.float64) for seed in (0, 1))
    out, by_x, by_p = run(elastic(), x, jnp.array(0.4), g)
    np.testing.assert_array_equal(out, np.sign(x) * 0.4)
    np.testing.assert_array_equal(by_x, np.where(np.abs(x) <= 0.4, g, 0))
    close(by_p, np.sum(np.sign(x) * np.asarray(g)) / math.sqrt(63), 1e-12)
    assert float(elastic()(jnp.zeros(()), jnp.array(0.4))) == 0.4


def test_first_parameters():
    x = matrix() - 1
    mean = np.abs(np.asarray(x)).mean()
    np.testing.assert_array_equal(clipped(symmetric(8), at=1.5).init(), [-1.5, 1.5])
    assert clipped(symmetric(8)).init(x.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    close(elastic().init(x), 2 * mean)
    close(elastic(signed=False).init(x), 4 * mean)
    close(elastic(4).init(x), 2 * mean / math.sqrt(7))
    close(elastic(2, signed=False).init(x), 4 * mean / math.sqrt(3))
    assert float(elastic().init(jnp.zeros(3))) == pytest.approx(1e-5)


# ---------------------------------------------------------------------------- promises


def test_shape_and_dtype_are_those_of_x_and_the_parameters_gradient_its_own(quantizer):
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        x = jax.ShapeDtypeStruct((3, 6, 40), dtype)
        p = jax.eval_shape(quantizer.init, x)
        assert p.shape == quantizer.shape
        p = jax.ShapeDtypeStruct(p.shape, jnp.float32)
        out, by_x, by_p = jax.eval_shape(functools.partial(run, quantizer), x, p, x)
        assert (out.shape, out.dtype, by_x.dtype) == (x.shape, dtype, dtype)
        assert (by_p.shape, by_p.dtype) == (p.shape, jnp.float32)


def test_no_more_levels_than_bits_allow(quantizer):
    x = jnp.abs(matrix(shape=(1, 4000)))
    p = quantizer.init(x)
    values = np.unique(np.asarray(jax.jit(quantizer)(x - 0.5, p)))
    assert 1 < len(values) <= 2**quantizer.bits


def test_a_step_that_is_nothing_divides_nothing_by_zero(quantizer):
    found = run(quantizer, matrix(), jnp.zeros(quantizer.shape), matrix(1))
    assert all(bool(jnp.isfinite(x).all()) for x in found)
    found = run(quantizer, 0 * matrix(), jnp.zeros(quantizer.shape), matrix(1))
    assert all(bool(jnp.isfinite(x).all()) for x in found)


def test_equal_by_value_and_can_be_keys():
    assert clipped(symmetric(8)) == clipped(symmetric(8), at=2.5)
    assert len({lsq(4), lsq(), elastic(4), elastic(4, signed=False)}) == 3
    assert [q.bits for q in (clipped(asymmetric(3)), lsq(4), elastic())] == [3, 4, 1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: lsq(1), "2 to 16, not 1"),
        (lambda: lsq(17, signed=False), "1 to 16, not 17"),
        (lambda: elastic(0), "1 to 16, not 0"),
        (lambda: clipped(symmetric(8), at=0.0), "at must be positive"),
        (lambda: clipped(symmetric(8), at=math.inf), "at must be positive"),
        (lambda: symmetric(8, levels="widened"), "restricted, full, not 'widened'"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
