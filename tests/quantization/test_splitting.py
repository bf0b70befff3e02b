"""Weight splitting: two 1-bit matrices that add up to the ternary one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.errors import ConfigError
from bitflax.model import apply as model_apply
from bitflax.model.leaves import Split
from bitflax.quantization import rules as quantization_rules
from bitflax.quantization import splitting
from tests.helpers import oracles, small

part = functools.partial
WAYS = {
    "tensor": {},
    "channel": {"axis": 0},
    "row": {"axis": -1},
    "both": {"axis": (0, 1)},
    "groups": {"groups": 3},
}


def weights(shape=(10, 12), seed=0, dtype=np.float32):
    return jnp.asarray(np.random.default_rng(seed).normal(0, 0.05, shape), dtype)


def halves_of(w, quantizer):
    return splitting.split({"w": w}, [("w", quantizer)])["w"]


def assert_splits(w, keywords, rtol):
    """Check both sums, of latent and of quantised weights."""
    halves = halves_of(w, part(bf.ternarize, **keywords))
    quantize = part(bf.binarize, **keywords)
    ternary = bf.ternarize(w, **keywords)
    assert halves.a.dtype == halves.b.dtype == w.dtype
    atol = rtol * float(jnp.max(jnp.abs(ternary)) + jnp.max(jnp.abs(w)))
    np.testing.assert_allclose(halves.a + halves.b, w, rtol=0, atol=atol)
    found = quantize(halves.a) + quantize(halves.b)
    np.testing.assert_allclose(found, ternary, rtol=0, atol=atol)
    return halves


@pytest.mark.parametrize("way", WAYS)
def test_halves_add_up_to_the_latent_and_to_the_ternary_weights(way):
    assert_splits(weights(), WAYS[way], 1e-6)


@pytest.mark.parametrize("way", WAYS)
def test_halves_add_up_in_float64(way, x64):
    assert_splits(weights(dtype=np.float64), WAYS[way], 1e-14)


def test_both_halves_have_half_the_scale():
    w = weights()
    halves = halves_of(w, part(bf.ternarize, axis=0))
    scale = jnp.max(jnp.abs(bf.ternarize(w, 0)), axis=0)
    for half in (halves.a, halves.b):
        mean = jnp.mean(jnp.abs(half), axis=0)
        np.testing.assert_allclose(mean, scale / 2, rtol=1e-6)


def tws():
    """``{name: (W, axis, half 1, half 2, ternary)}`` of BinaryBERT's own code."""
    z, found = oracles.load("tws"), {}
    for key in z:
        if key.startswith("tern64/"):
            name = key.removeprefix("tern64/").removesuffix(".weight")
            axis = -1 if "embeddings" in name else None
            outs = (z[f"out/{name}_{i}.weight"] for i in (1, 2))
            found[name] = (z[f"in/{name}.weight"], axis, *outs, z[key])
    return found


@pytest.mark.parametrize("name", tws())
def test_halves_are_binaryberts(name, x64):
    w, axis, first, second, ternary = tws()[name]
    quantizer = part(bf.ternarize, axis=axis)
    w = jnp.asarray(w, jnp.float64)
    np.testing.assert_allclose(quantizer(w), ternary, rtol=0, atol=1e-15)
    halves = halves_of(w, quantizer)
    # They are written in float32: half a unit in the last place.
    np.testing.assert_allclose(halves.a, first, rtol=2.0**-24, atol=0)
    np.testing.assert_allclose(halves.b, second, rtol=2.0**-24, atol=0)


def test_a_group_of_zeros_stays_zero():
    w = weights().at[3].set(0)
    halves = assert_splits(w, {"axis": -1}, 1e-6)
    assert not halves.a[3].any()
    assert not halves.b[3].any()
    assert_splits(jnp.zeros((2, 3)), {}, 0.0)


def test_a_group_without_zeros_is_halved():
    w = weights()
    signs = jnp.where(w[:, 2] > 0, 1.0, -1.1)
    halves = assert_splits(w.at[:, 2].set(signs), {"axis": 0}, 1e-6)
    np.testing.assert_array_equal(halves.a[:, 2], signs / 2)
    np.testing.assert_array_equal(halves.b[:, 2], signs / 2)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_skewed_group_is_split_too(sign, x64):
    # The zeros all lean to one side: 20 * 0.5 against 8, so that m would be negative.
    w = sign * jnp.concatenate([jnp.full(20, 0.5), jnp.array([8.0])])
    assert int(jnp.sum(bf.ternarize(w) == 0)) == 20
    assert_splits(w, {}, 1e-14)


def test_weights_beyond_a_clip_are_split_as_the_clip(x64):
    rules = [("w", part(bf.ternarize, axis=0, clip=0.05))]
    w = weights(dtype=np.float64)
    halves = splitting.split({"w": w}, rules)
    clipped = jnp.clip(w, -0.05, 0.05)
    np.testing.assert_allclose(splitting.merge(halves)["w"], clipped, atol=1e-15)
    found = splitting.merge(bf.quantize(halves, splitting.binary_rules(rules)))["w"]
    np.testing.assert_allclose(found, bf.ternarize(clipped, 0), atol=1e-15)


def test_no_sign_is_lost_in_float32():
    # The small half of a share near 0 would round to 0, whose sign is +1.
    w = jnp.array([[1.0, -1.0, 0.1, 0.0]]) * 3e-38
    halves = halves_of(w, bf.ternarize)
    signs = jnp.sign(halves.a), jnp.sign(halves.b)
    np.testing.assert_array_equal(signs[0], [[1, -1, 1, 1]])
    np.testing.assert_array_equal(signs[1], [[1, -1, -1, -1]])


@pytest.mark.parametrize("axis", [None, 0, -1])
def test_an_own_ternary_quantizer_is_read_off_its_values(axis):
    w = weights()
    found = halves_of(w, lambda w: bf.ternarize(w, axis))
    known = halves_of(w, part(bf.ternarize, axis=axis))
    np.testing.assert_array_equal(found.a, known.a)
    np.testing.assert_array_equal(found.b, known.b)


def too_small(w):
    """A scale below mean|w|: no push is left for the zeros."""
    return bf.ternarize(w) / 10


@pytest.mark.parametrize(
    ("quantizer", "said"),
    [
        (lambda w: -bf.ternarize(w), "their signs"),
        (too_small, "scale is too small"),
        (lambda w: bf.ternarize(w) * 0, "scale is too small"),
        (bf.symmetric(bits=4), "by tensor, column or row"),
        (lambda w: w * jnp.nan, "NaN"),
    ],
)
def test_what_cannot_be_split_is_refused_by_name(quantizer, said):
    with pytest.raises(ConfigError, match=f"^ffn/w: .*{said}"):
        splitting.split({"ffn": {"w": weights()}}, [("ffn/w", quantizer)])


def test_what_is_split_already_is_refused():
    once = splitting.split({"w": weights()}, [("w", bf.ternarize)])
    with pytest.raises(ConfigError, match="is a Split"):
        splitting.split(once, [("w", bf.ternarize)])


def test_a_rule_without_a_parameter_is_refused():
    with pytest.raises(ValueError, match="nowhere"):
        splitting.split({"w": weights()}, [("nowhere", bf.ternarize)])


def test_binary_rules_keep_paths_and_groups():
    for per in ("tensor", "channel"):
        found, expected = splitting.binary_rules(bf.xtc_2bit(per)), bf.xtc_1bit(per)
        for (path, own), (other, known) in zip(found, expected, strict=True):
            assert path == other
            w = weights()
            np.testing.assert_array_equal(own(w), known(w))
    with pytest.raises(ConfigError, match="no 1-bit counterpart"):
        splitting.binary_rules([("w", lambda w: w)])


PROFILES = {
    "tensor": bf.xtc_2bit(),
    "channel": bf.xtc_2bit("channel"),
    "binarybert": quantization_rules.binarybert_2bit(),
    "ternarybert": quantization_rules.ternarybert_2bit(),
}
ACTS = {
    "binarybert": quantization_rules.binarybert_act(),
    "ternarybert": bf.symmetric(axis=None),
}


STUDENTS = [*((per, 0) for per in PROFILES), ("channel", 3), ("ternarybert", 3)]


@functools.cache
def latent(per, steps):
    """A student of ternary weights after some steps, as NumPy's arrays."""

    @jax.jit
    def stepped(params, batch):
        def loss(params):
            out = bf.bert(small.config(1))(bf.quantize(params, PROFILES[per]), batch)
            return bf.label_cross_entropy(out, None, batch).value

        return jax.tree.map(lambda w, g: w - 0.1 * g, params, jax.grad(loss)(params))

    params = bf.take_layers(small.teacher_params(), (1,))
    for seed in range(steps):
        params = stepped(params, small.batch(8, seed))
    return jax.tree.map(np.asarray, params)


def moved(params, rules, act=None):
    """By how much the split moves the logits."""
    apply, batch = jax.jit(bf.bert(small.config(1), act)), small.batch(8, seed=9)
    params = model_apply.init_act(params, act, batch, small.config(1))
    before = apply(bf.quantize(params, rules), batch).logits
    halves = splitting.split(params, rules)
    after = apply(bf.quantize(halves, splitting.binary_rules(rules)), batch).logits
    assert float(jnp.std(before)) > 1e-3
    return float(jnp.max(jnp.abs(before - after)))


@pytest.mark.parametrize(("per", "steps"), STUDENTS)
def test_the_function_is_preserved_in_float32(per, steps):
    params = jax.tree.map(jnp.asarray, latent(per, steps))
    assert moved(params, PROFILES[per]) <= 1e-5


@pytest.mark.parametrize(("per", "steps"), STUDENTS)
def test_the_function_is_preserved_with_8_bit_activations_in_float64(
    per, steps, request
):
    weights = latent(per, steps)  # of float32, before 64 bits are on
    request.getfixturevalue("x64")
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float64), weights)
    assert moved(params, PROFILES[per], ACTS.get(per, bf.symmetric())) <= 1e-12


def test_biases_and_all_that_no_rule_matches_stay_whole():
    params = small.teacher_params()
    found = trees.flatten(splitting.split(params, bf.xtc_2bit()))
    for path, leaf in trees.flatten(params).items():
        chosen = path in trees.match(bf.xtc_2bit(), [*found])
        assert isinstance(found[path], Split) == chosen
        assert chosen or found[path] is leaf


def test_merge_undoes_split():
    params = small.teacher_params()
    merged = splitting.merge(splitting.split(params, bf.xtc_2bit()))
    assert jax.tree.structure(merged) == jax.tree.structure(params)
    assert small.largest_difference(merged, params) <= 1e-7
