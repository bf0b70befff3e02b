"""Profiles: what they quantise, and BinaryBERT's model in float64."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.model import apply, names, sites
from bitflax.quantization import quantizers, rules, splitting
from bitflax.types import BertConfig
from tests.helpers import oracles, small

FILE = "binarybert_model_f64"
RELU = BertConfig(num_hidden_layers=2, hidden_act="relu", **oracles.SHAPE)
TERNARY = rules.binarybert_2bit()
# Theirs give 0 the sign 0; a half may hold one.
BINARY = tuple(
    (regex, functools.partial(q, zero=0)) for regex, q in rules.binarybert_1bit()
)
SCORES = functools.partial(bf.score_mse, count_padding=True)
HIDDEN = functools.partial(bf.hidden_mse, count_padding=True)
STAGES = {
    "stage1": bf.weighted(att_loss=(1.0, SCORES), rep_loss=(1.0, HIDDEN)),
    "stage2": bf.weighted(cls_loss=(1.0, bf.soft_cross_entropy)),
}
PLACES = {
    "attention.self.clip_attn": "attention/probs",
    "attention.output.dense.input_clip_val": "attention/out/input",
    "intermediate.dense.input_clip_val": "ffn/in/input",
    "output.dense.input_clip_val": "ffn/out/input",
}


def close(a, b, atol, message=""):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=message)


# ------------------------------------------------------------------ BinaryBERT's numbers


def site(name):
    """Return the site of a clip or step by its name there."""
    if name == "bert.pooler.dense.input_clip_val":
        return "pooler/input"
    layer, rest = re.fullmatch(r"bert\.encoder\.layer\.(\d+)\.(.*)", name).groups()
    if output := re.fullmatch(r"attention\.self\.clip_(query|key|value)", rest):
        place = f"attention/{output[1]}/output"
    elif own := re.fullmatch(r"attention\.self\.(\w+)\.input_clip_val", rest):
        place = f"attention/{own[1]}/input"
    else:
        place = PLACES[rest]
    return f"encoder/layer_{layer}/{place}"


@functools.cache
def told():
    params = bf.take_layers(oracles.teacher(np.float64), (0, 1))
    return jax.jit(bf.bert(oracles.STUDENT))(params, oracles.batch())


def stages(config, act, profile, params):
    """Return the outputs, and by stage the parts of the loss and the gradients."""
    apply, batch, teacher = bf.bert(config, act), oracles.batch(), told()

    @jax.jit
    def run(params):
        def forward(params):
            out = apply(bf.quantize(params, profile), batch)
            parts = {stage: loss(out, teacher, batch) for stage, loss in STAGES.items()}
            return {stage: bf.total(p) for stage, p in parts.items()}, (out, parts)

        totals, back, (out, parts) = jax.vjp(forward, params, has_aux=True)
        gradients = {
            stage: back({s: jnp.where(s == stage, 1.0, 0.0) for s in totals})[0]
            for stage in totals
        }
        return out, parts, gradients

    return run(params)


def assert_outputs(out, name, atol=1e-12):
    z = oracles.load(FILE)
    close(out.logits, z[f"{name}/logits"], atol)
    close(out.hidden[2], z[f"{name}/hid2"], atol)
    real = np.asarray(oracles.batch()["attention_mask"])[:, None, None] == 1
    theirs = z[f"{name}/att1"]
    real = np.broadcast_to(real, theirs.shape)
    close(np.asarray(out.scores[1])[real], theirs[real], atol)


def assert_losses(parts, gradients, name, atol=1e-12):
    z = oracles.load(FILE)
    for stage in STAGES:
        if f"{name}/{stage}/loss" not in z:
            continue
        close(bf.total(parts[stage]), z[f"{name}/{stage}/loss"], atol)
        for part, mean in parts[stage].items():
            close(mean.value, z[f"{name}/{stage}/{part}"], atol, part)
        flat = trees.flatten(gradients[stage])
        prefix = f"{name}/{stage}/grad/"
        for key in (k for k in z if k.startswith(prefix)):
            found = gradient(flat, key.removeprefix(prefix))
            if found is not None:
                close(found, z[key], atol, key)


def gradient(flat, name):
    """Return what we have of a gradient, by its name there; None: another thing."""
    half = re.search(r"_([12])\.", name)
    whole = re.sub(r"_[12]\.", ".", name)
    if "clip" in name:
        # A half has a clip of its own there, whose gradient is a share of ours.
        return None if half else flat[site(name)]
    entries = {e.name: e for e in names.parameter_entries(oracles.STUDENT)}
    entry = entries[whole]
    leaf = flat[entry.path]
    if hasattr(leaf, "a"):
        leaf = leaf.a if half[1] == "1" else leaf.b
    return leaf.T if entry.transposed else leaf


@pytest.mark.parametrize("bits", [8, 32])
def test_binaryberts_ternary_model_and_stages(bits, x64):
    act = rules.binarybert_act(bits) if bits < 32 else None
    params = apply.init_act(oracles.student(np.float64), act, {})
    out, parts, gradients = stages(oracles.STUDENT, act, TERNARY, params)
    assert_outputs(out, f"ternary_a{bits}")
    assert_losses(parts, gradients, f"ternary_a{bits}")


@pytest.mark.parametrize("bits", [8, 32])
def test_binaryberts_split_model_and_stages(bits, x64):
    act = rules.binarybert_act(bits) if bits < 32 else None
    params = splitting.split(oracles.student(np.float64), TERNARY)
    params = apply.init_act(params, act, {})
    out, parts, gradients = stages(oracles.STUDENT, act, BINARY, params)
    # Split exactly, it is the ternary model; their halves are exact to 4e-8 alone.
    assert_outputs(out, f"ternary_a{bits}")
    assert_outputs(out, f"split_a{bits}", 1e-7)
    assert_losses(parts, gradients, f"split_a{bits}", 1e-7)


def test_binaryberts_teacher(x64):
    assert_outputs(told(), "teacher")


def test_binaryberts_model_with_learned_steps(x64):
    params, act = oracles.student(np.float64), rules.lsq_act(4)
    quantize = functools.partial(bf.quantize, rules=TERNARY)
    params = apply.init_act(params, act, oracles.batch(), RELU, quantize)
    found, z = trees.flatten(params), oracles.load(FILE)
    steps = {k: v for k, v in z.items() if k.startswith("lsq_alpha/")}
    assert len(steps) == len(sites.site_names(RELU))
    for key, step in steps.items():
        close(found[site(key.removeprefix("lsq_alpha/"))], step, 1e-12, key)
    out, parts, gradients = stages(RELU, act, TERNARY, params)
    assert_outputs(out, "ternary_a4_lsq_relu")
    assert_losses(parts, gradients, "ternary_a4_lsq_relu")


# --------------------------------------------------------------------- what is quantised

PROFILES = {
    rules.binarybert_1bit: 1,
    rules.binarybert_2bit: 2,
    rules.ternarybert_2bit: 2,
}
ACTS = {
    "binarybert": rules.binarybert_act(),
    "ternarybert": rules.ternarybert_act(),
    "lsq": rules.lsq_act(),
    **{f"elastic{bits}": rules.elastic_act(bits) for bits in (1, 2, 4)},
}


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_has_the_pooler_beside_xtcs_weights(profile):
    flat = trees.flatten(small.teacher_params())
    found = trees.match(profile(), flat)
    assert set(found) == {*trees.match(bf.xtc_1bit(), flat), "pooler/kernel"}
    for path, quantizer in found.items():
        assert quantizers.bits_of(quantizer) == PROFILES[profile]
        assert quantizers.by_row(quantizer) == (path == "embeddings/word/embedding")


def test_ternaryberts_weights_are_clipped_and_get_no_gradient_beyond():
    w = jnp.array([[3.0, -1.0, 0.1, -2.5, 2.4]])
    (_, fn), *_ = rules.ternarybert_2bit()
    values, vjp = jax.vjp(fn, w)
    close(values, bf.ternarize(jnp.clip(w, -2.5, 2.5)), 1e-7)
    np.testing.assert_array_equal(vjp(jnp.ones_like(w))[0], [[0, 1, 1, 0, 1]])
    (_, plain), *_ = rules.binarybert_2bit()
    np.testing.assert_array_equal(jax.vjp(plain, w)[1](w)[0], w)


@pytest.mark.parametrize("name", ACTS)
def test_every_site_learns_and_one_sided_ones_are_known(name):
    config = small.config(2)
    found = sites.at_sites(ACTS[name], config)
    assert set(found) == set(sites.site_names(config))
    for place, quantizer in found.items():
        inner = getattr(quantizer, "quantizer", quantizer)
        around = isinstance(inner, bf.symmetric) or getattr(inner, "signed", False)
        assert around != place.endswith(("probs", "ffn/out/input")), place
        assert re.fullmatch(sites.ACT_PARAMS, place)
        assert quantizers.bits_of(quantizer) == quantizer.bits
        alone = name.startswith("elastic") or getattr(quantizer, "signed", False)
        assert quantizers.by_row(quantizer) == alone
    shapes = sites.learned_shapes(ACTS[name], config)
    assert set(shapes) == set(found)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_students_of_few_bits_run_and_every_step_has_a_gradient(bits):
    config, act = small.config(2, hidden_act="relu"), rules.elastic_act(bits)
    batch, params = small.batch(4, 0), bf.take_layers(small.teacher_params(), (0, 1))
    quantize = functools.partial(bf.quantize, rules=rules.binarybert_1bit())
    params = apply.init_act(params, act, batch, config, quantize)

    @jax.jit
    @jax.grad
    def gradient(params):
        out = bf.bert(config, act)(quantize(params), batch)
        loss = bf.label_cross_entropy(out, None, batch).value
        return loss + sum(jnp.sum(jnp.square(s)) for s in out.scores)

    flat = trees.flatten(gradient(params))
    for place in sites.site_names(config):
        assert np.isfinite(flat[place]), place
        assert flat[place] != 0, place


def test_learned_paths_are_no_weights():
    flat = trees.flatten(small.teacher_params())
    assert not [path for path in flat if re.fullmatch(sites.ACT_PARAMS, path)]
