"""A narrower student against TinyBERT's own numbers, and what the projection promises."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.distillation import projection
from bitflax.model import hf_weights, names
from tests.helpers import oracles

SMALL = bf.BertConfig(
    **{**oracles.SHAPE, "hidden_size": 32, "intermediate_size": 64},
    num_hidden_layers=2,
)
CONFIGS = {"small": SMALL, "same": oracles.STUDENT}
WEIGHTS = {"small": "bert_small_student", "same": "bert_student"}
HIDDEN = functools.partial(
    bf.hidden_mse,
    pairs=bf.layer_pairs(oracles.LAYERS, hidden=True),
    count_padding=True,
)
SCORES = functools.partial(
    bf.score_mse, pairs=bf.layer_pairs(oracles.LAYERS), count_padding=True
)
STAGE_1 = bf.weighted(rep_loss=(1.0, HIDDEN), att_loss=(1.0, SCORES))


def close(a, b, message=""):
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5, err_msg=message)


def student(name):
    """Return TinyBERT's student with its ``fit_dense``."""
    state = oracles.load(WEIGHTS[name])
    params = hf_weights.params_from_hf(state, CONFIGS[name])
    z = oracles.load("tinybert")
    fit = {
        "kernel": jnp.asarray(z[f"fit_{name}.weight"].T),
        "bias": jnp.asarray(z[f"fit_{name}.bias"]),
    }
    return {**jax.tree.map(jnp.asarray, params), "projection": fit}


def relu_head(apply):
    """TinyBERT's own head: a ReLU between pooler and classifier."""

    def call(params, batch, rng=None):
        out = apply(params, batch, rng)
        pooler, classifier = params["pooler"], params["classifier"]
        # Of the hidden states before they are projected.
        bare = {name: part for name, part in params.items() if name != "projection"}
        first = apply(bare, batch).hidden[-1][:, 0]
        pooled = jnp.tanh(first @ pooler["kernel"] + pooler["bias"][None])
        logits = jax.nn.relu(pooled) @ classifier["kernel"] + classifier["bias"][None]
        return out._replace(logits=logits)

    return call


@functools.cache
def taught():
    apply = jax.jit(relu_head(bf.bert(oracles.TEACHER)))
    return apply(oracles.teacher(), oracles.batch())


def apply(name):
    return relu_head(projection.projected(bf.bert(CONFIGS[name]), always=True))


def assert_gradients(gradient, config, prefix):
    entries = {names.canonical_name(e.name): e for e in names.parameter_entries(config)}
    flat, checked = trees.flatten(gradient), 0
    for key, theirs in oracles.load("tinybert").items():
        if not key.startswith(prefix):
            continue
        name = key.removeprefix(prefix)
        if name.startswith("fit_dense"):
            leaf = {"weight": "kernel", "bias": "bias"}[name.rpartition(".")[2]]
            path, turned = f"projection/{leaf}", leaf == "kernel"
        else:
            entry = entries[names.canonical_name(name)]
            path, turned = entry.path, entry.transposed
        close(flat[path], theirs.T if turned else theirs, path)
        checked += 1
    assert checked


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_tinyberts(name):
    z, batch = oracles.load("tinybert"), oracles.batch()
    out = jax.jit(apply(name))(student(name), batch)
    close(out.logits, z[f"{name}/logits"])
    for i, hidden in enumerate(out.hidden):
        close(hidden, z[f"{name}/hid{i}"], f"hidden {i}")
    assert f"{name}/hid{len(out.hidden)}" not in z
    real = np.asarray(batch["attention_mask"])[:, None, None] == 1
    for i, scores in enumerate(out.scores):
        theirs = z[f"{name}/att{i}"]
        real = np.broadcast_to(real, theirs.shape)
        close(np.asarray(scores)[real], theirs[real], f"scores {i}")
    if name == "small":
        bare = jax.jit(bf.bert(SMALL))(student(name), batch)
        close(bare.hidden[-1], z["small_nofit/hid2"])


@pytest.mark.parametrize("name", CONFIGS)
def test_stage_1_and_general_distillation_are_tinyberts(name):
    z = oracles.load("tinybert")

    def value(params, teacher):
        parts = STAGE_1(apply(name)(params, oracles.batch()), teacher, oracles.batch())
        return bf.total(parts), parts

    run = jax.jit(jax.value_and_grad(value, has_aux=True))
    (loss, parts), gradient = run(student(name), taught())
    for stage in (f"{name}_stage1", "small_general")[: 2 if name == "small" else 1]:
        close(loss, z[f"{stage}/loss"])
        for part, mean in parts.items():
            close(mean.value, z[f"{stage}/{part}"], part)
        assert_gradients(gradient, CONFIGS[name], f"{stage}/grad/")


@pytest.mark.parametrize("name", CONFIGS)
def test_stage_2_is_tinyberts(name):
    z = oracles.load("tinybert")

    def value(params, teacher, temperature):
        out = apply(name)(params, oracles.batch())
        return bf.soft_cross_entropy(out, teacher, {}, temperature=temperature).value

    run = jax.jit(jax.value_and_grad(value), static_argnums=2)
    for stage, temperature in ((f"{name}_stage2", 1.0), (f"{name}_stage2_T3", 3.0)):
        loss, gradient = run(student(name), taught(), temperature)
        close(loss, z[f"{stage}/loss"])
        assert_gradients(gradient, CONFIGS[name], f"{stage}/grad/")


# ------------------------------------------------------------------------------ promises


def toy(params, batch, rng=None):
    """A model of two hidden states that says what it was given."""
    x = batch["x"]
    return bf.Outputs((sorted(params), rng), (x, x + 1), (2 * x,))


X = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
BATCH = {"x": jnp.asarray(X)}


def test_every_hidden_state_is_projected_by_one_matrix():
    params = projection.add_projection({"own": {}}, jax.random.key(2), 8, 16)
    params["projection"]["bias"] += 0.5
    key = jax.random.key(3)
    out = projection.projected(toy)(params, BATCH, key)
    kernel = np.asarray(params["projection"]["kernel"])
    for x, y in zip((X, X + 1), out.hidden, strict=True):
        assert y.shape == (2, 3, 16)
        np.testing.assert_allclose(y, x @ kernel + 0.5, atol=1e-6)
    np.testing.assert_array_equal(out.scores[0], 2 * X)
    # The model within gets its own parameters, and the key of dropout.
    assert out.logits == (["own"], key)


@pytest.mark.parametrize("always", [False, True])
def test_without_a_projection_the_model_is_itself(always):
    out = projection.projected(toy, always)({"own": {}}, BATCH)
    np.testing.assert_array_equal(out.hidden[1], X + 1)
    assert out.logits == (["own"], None)


def test_equal_widths_are_projected_only_on_demand():
    params = projection.add_projection({}, jax.random.key(2), 8, 8)
    same = projection.projected(toy)(params, BATCH)
    np.testing.assert_array_equal(same.hidden[0], X)
    other = projection.projected(toy, always=True)(params, BATCH)
    np.testing.assert_allclose(
        other.hidden[0], X @ np.asarray(params["projection"]["kernel"]), atol=1e-6
    )


def test_a_fresh_projection_is_small_and_has_no_bias():
    bare = {"own": {}}
    made = projection.add_projection(bare, jax.random.key(0), 100, 200)["projection"]
    assert abs(float(made["kernel"].std()) - 0.02) < 0.001
    assert made["kernel"].dtype == made["bias"].dtype == jnp.float32
    assert not made["bias"].any()
    assert bare == {"own": {}}
