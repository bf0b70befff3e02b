"""The model against the peers' numbers, against numpy, and what it promises."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import model, trees
from bitflax.model import names
from bitflax.model import sites as model_sites
from bitflax.packed import packing
from tests.helpers import oracles, small

LOSS = bf.weighted(
    cls_loss=(1.0, bf.soft_cross_entropy),
    rep_loss=(
        1.0,
        functools.partial(
            bf.hidden_mse,
            pairs=bf.layer_pairs(oracles.LAYERS, hidden=True),
            count_padding=True,
        ),
    ),
    att_loss=(
        1.0,
        functools.partial(
            bf.score_mse, pairs=bf.layer_pairs(oracles.LAYERS), mask_value=-1e4
        ),
    ),
)


def close(a, b, atol, message=""):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol, err_msg=message)


# -------------------------------------------------------------------- the peers' numbers


def assert_outputs(out, name):
    z = oracles.load("xtc_model_fp32")
    close(out.logits, z[f"{name}/logits"], 2e-5)
    for i, hidden in enumerate(out.hidden):
        close(hidden, z[f"{name}/hid{i}"], 2e-5, f"hidden {i}")
    assert f"{name}/hid{len(out.hidden)}" not in z
    real = np.asarray(oracles.batch()["attention_mask"])[:, None, None] == 1
    for i, scores in enumerate(out.scores):
        theirs = z[f"{name}/att{i}"]
        real = np.broadcast_to(real, theirs.shape)
        close(np.asarray(scores)[real], theirs[real], 2e-5, f"scores {i}")
        # A mask of -1e4 is in theirs, which leaves float32 three digits.
        masked = np.asarray(scores)[~real] - 1e4
        np.testing.assert_allclose(masked, theirs[~real], rtol=2e-7)
    assert f"{name}/att{len(out.scores)}" not in z


def test_the_fp32_teacher_is_the_peers():
    assert_outputs(told(np.float32), "t4")


@functools.cache
def told(dtype):
    """Return the teacher's outputs, computed once."""
    apply = jax.jit(bf.bert(oracles.TEACHER))
    return apply(oracles.teacher(dtype), oracles.batch())


def one_stage(quantise, act):
    """Return ``(student, teacher's outputs) -> (loss, (outputs, parts)), gradients``."""
    student, batch = bf.bert(oracles.STUDENT, act), oracles.batch()

    def value(params, taught):
        out = student(quantise(params), batch)
        parts = LOSS(out, taught, batch)
        return bf.total(parts), (out, parts)

    return jax.jit(jax.value_and_grad(value, has_aux=True))


def assert_loss(value, parts, z, name, atol):
    close(value, z[f"{name}/one_stage/loss"], atol)
    for part, mean in parts.items():
        close(mean.value, z[f"{name}/one_stage/{part}"], atol, part)


def test_the_fp32_student_and_its_one_stage_loss_are_xtcs():
    student = bf.take_layers(oracles.teacher(), oracles.LAYERS)
    run = one_stage(lambda params: params, None)
    (value, (out, parts)), gradient = run(student, told(np.float32))
    assert_outputs(out, "fp_lr")
    assert_loss(value, parts, oracles.load("xtc_model_fp32"), "fp_lr", 2e-5)
    prefix = "fp_lr/one_stage/grad/"
    oracles.assert_gradients(gradient, "xtc_model_fp32", prefix, 2e-5)


ZERO = tuple((regex, functools.partial(q, zero=0)) for regex, q in bf.xtc_1bit())
FULL = bf.symmetric(8, levels="full")


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize(
    ("name", "rules", "act"),
    [("w1a8", ZERO, FULL), ("w2a8", bf.xtc_2bit(), FULL), ("w1a32", ZERO, None)],
)
def test_quantised_students_are_xtcs_in_float64(name, rules, act, lazy, x64):
    z = oracles.load("xtc_model_f64")
    run = one_stage(functools.partial(bf.quantize, rules=rules, lazy=lazy), act)
    student = oracles.student(np.float64)
    (value, (out, parts)), gradient = run(student, told(np.float64))
    close(out.logits, z[f"{name}/logits"], 1e-12)
    close(out.hidden[-1], z[f"{name}/hid2"], 1e-12)
    assert_loss(value, parts, z, name, 1e-12)
    prefix = f"{name}/one_stage/grad/"
    oracles.assert_gradients(gradient, "xtc_model_f64", prefix, 1e-12)


def test_the_float64_teacher_is_the_peers(x64):
    z = oracles.load("xtc_model_f64")
    out = told(np.float64)
    close(out.logits, z["t4/logits"], 1e-12)
    close(out.hidden[-1], z["t4/hid4"], 1e-12)


# ---------------------------------------------------- a second implementation in numpy


def numpy_norm(x, p, eps):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def numpy_linear(x, p):
    return x @ p["kernel"] + p["bias"]


def numpy_layer(x, p, config, real):
    """One row [seq, width]; a masked key is left out, not made small."""
    attention, width = p["attention"], config.head_width
    query, key, value = (
        numpy_linear(x, attention[n]) for n in ("query", "key", "value")
    )
    heads = []
    for head in range(config.num_attention_heads):
        cut = slice(head * width, (head + 1) * width)
        scores = query[:, cut] @ key[real][:, cut].T / math.sqrt(width)
        e = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(e / e.sum(-1, keepdims=True) @ value[real][:, cut])
    y = numpy_linear(np.concatenate(heads, -1), attention["out"])
    x = numpy_norm(x + y, attention["norm"], config.layer_norm_eps)
    y = numpy_linear(x, p["ffn"]["in"])
    erf = np.vectorize(math.erf)
    gelu = y * 0.5 * (1 + erf(y / math.sqrt(2)))
    y = np.maximum(y, 0) if config.hidden_act == "relu" else gelu
    y = numpy_linear(y, p["ffn"]["out"])
    return numpy_norm(x + y, p["ffn"]["norm"], config.layer_norm_eps)


def numpy_bert(params, config, ids, types, real):
    tables = {k: v["embedding"] for k, v in params["embeddings"].items() if k != "norm"}
    x = tables["word"][ids] + tables["position"][: len(ids)]
    x = x + tables["token_type"][types]
    x = numpy_norm(x, params["embeddings"]["norm"], config.layer_norm_eps)
    for i in range(config.num_hidden_layers):
        x = numpy_layer(x, params["encoder"][f"layer_{i}"], config, real)
    return numpy_linear(
        np.tanh(numpy_linear(x[0], params["pooler"])), params["classifier"]
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"hidden_act": "relu", "num_labels": 1, "layer_norm_eps": 0.1},
        {"head_size": 5, "num_attention_heads": 3, "type_vocab_size": 4},
    ],
)
def test_shapes_of_all_kinds_are_numpys(changes, x64):
    config = small.config(2, **changes)
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda: bf.init_params(config, jax.random.key(0)))
    params = jax.tree.map(lambda x: rng.normal(size=x.shape) / 2, shapes)
    batch = small.batch(4, 0)
    logits = jax.jit(bf.bert(config))(params, batch).logits
    for row in range(4):
        ids, types, mask = (
            batch[k][row] for k in ("input_ids", "token_type_ids", "attention_mask")
        )
        expected = numpy_bert(params, config, ids, types, mask == 1)
        close(logits[row], expected, 1e-12, f"row {row}")


# ------------------------------------------------------------------- what is not computed


def flops(layers, select):
    """Count the work of what ``select`` takes of the outputs."""
    config = small.config(layers)
    shapes = jax.eval_shape(lambda: bf.init_params(config, jax.random.key(0)))
    apply = bf.bert(config)
    run = jax.jit(lambda params, batch: select(apply(params, batch)))
    cost = run.lower(shapes, small.batch(4, 0)).compile().cost_analysis()
    cost = cost[0] if isinstance(cost, list) else cost
    assert cost is not None
    return cost["flops"]


def test_what_nobody_asks_for_is_not_computed():
    # What lies above the first layer costs nothing if only the first is asked for.
    below = [
        flops(2, lambda out: out.hidden[0]),
        flops(2, lambda out: out.scores[0]),
        flops(2, lambda out: out.hidden[1]),
    ]
    assert below[1] == flops(1, lambda out: out.scores[0])
    assert below[2] == flops(1, lambda out: out.hidden[1])
    steps = [
        *below,
        flops(2, lambda out: out.scores[1]),
        flops(2, lambda out: out.hidden[2]),
        flops(2, lambda out: out),
    ]
    assert steps == sorted(set(steps))
    # The embeddings are but gathers and a norm: no matrix is multiplied.
    assert below[0] < 2 * 4 * 8 * 16 * 16


# ---------------------------------------------------------------------------- promises


@functools.cache
def compiled(layers=2):
    return jax.jit(bf.bert(small.config(layers)))


def params_of(layers=2):
    return bf.take_layers(small.teacher_params(), range(layers))


def test_what_padding_holds_and_how_long_it_is_changes_nothing():
    batch = small.batch(6, 0)
    mask = batch["attention_mask"]
    out = compiled()(params_of(), batch)
    other = batch | {
        "input_ids": np.where(mask == 1, batch["input_ids"], 7).astype(np.int32),
        "token_type_ids": np.where(mask == 1, batch["token_type_ids"], 1),
    }
    long = {
        k: np.pad(v, ((0, 0), (0, 3))) if v.ndim == 2 else v for k, v in other.items()
    }
    for changed in (other, long):
        found = compiled()(params_of(), changed)
        close(found.logits, out.logits, 2e-6)
        for a, b in zip(out.hidden, found.hidden, strict=True):
            close(np.asarray(b)[:, :8][mask == 1], np.asarray(a)[mask == 1], 1e-5)


def test_a_row_without_a_real_token_is_no_nan():
    batch = small.batch(4, 0)
    batch["attention_mask"][2] = 0

    def value(params):
        out = bf.bert(small.config(2))(params, batch)
        return jnp.sum(jnp.square(out.logits)), out

    (_, out), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(params_of())
    for x in jax.tree.leaves((out, gradient)):
        assert bool(jnp.isfinite(x).all())


def test_a_sequence_longer_than_the_positions_is_refused():
    with pytest.raises(ValueError, match="17 tokens, but the model has only 16"):
        bf.bert(small.config(2))(params_of(), small.batch(1, 0, length=17))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("input_ids", x) for x in (50, -1, 2**31 - 1)),
        *(("token_type_ids", x) for x in (2, -1)),
    ],
)
def test_an_index_beyond_its_table_is_nan_and_no_other_row(name, value, packed):
    config, batch = small.config(1), small.batch(3, 0)
    params = small.params(config)
    params = bf.pack(params, bf.xtc_1bit()) if packed else params
    apply = jax.jit(bf.bert(config))
    good = apply(params, batch).logits

    def wrong(column):
        ids = batch[name].copy()
        ids[1, column] = value
        return apply(params, batch | {name: ids}).logits

    real = int(batch["attention_mask"][1].sum())
    assert np.isnan(wrong(real - 1)[1]).all()
    np.testing.assert_array_equal(wrong(real - 1)[::2], good[::2])
    assert real < 8  # what padding holds changes nothing
    np.testing.assert_array_equal(wrong(real), good)


def test_dropout_needs_a_key_and_the_same_key_drops_the_same():
    config = small.config(2, hidden_dropout_prob=0.5, attention_probs_dropout_prob=0.0)
    apply, batch = jax.jit(bf.bert(config)), small.batch(4, 0)
    plain = apply(params_of(), batch).logits
    np.testing.assert_array_equal(plain, compiled()(params_of(), batch).logits)
    keys = jax.random.split(jax.random.key(0))
    one, two = (apply(params_of(), batch, key).logits for key in keys)
    np.testing.assert_array_equal(one, apply(params_of(), batch, keys[0]).logits)
    assert np.abs(one - two).max() > 1e-3
    assert np.abs(one - plain).max() > 1e-3


def test_each_dropout_has_its_own_rate():
    batch, key = small.batch(4, 0), jax.random.key(0)
    plain = compiled()(params_of(), batch)
    rates = {
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "classifier_dropout": 0.0,
    }

    def run(rates):
        return jax.jit(bf.bert(small.config(2, **rates)))(params_of(), batch, key)

    close(run(rates).logits, plain.logits, 1e-6)
    for rate in rates:
        dropped = run(rates | {rate: 0.5})
        assert np.abs(dropped.logits - plain.logits).max() > 1e-3, rate
        same = np.allclose(dropped.hidden[-1], plain.hidden[-1], atol=1e-6)
        assert same == (rate == "classifier_dropout")


def test_the_pad_row_gets_no_gradient():
    batch = small.batch(4, 0)
    batch["attention_mask"][:] = 1
    batch["input_ids"][:, 3] = 0

    def value(params):
        return jnp.sum(bf.bert(small.config(2))(params, batch).logits)

    gradient = jax.jit(jax.grad(value))(params_of())
    table = np.asarray(gradient["embeddings"]["word"]["embedding"])
    np.testing.assert_array_equal(table[0], 0)
    seen = np.unique(batch["input_ids"])
    assert (np.abs(table[seen[seen > 0]]).max(axis=1) > 0).all()


# -------------------------------------------------------------------------- activations


class Recorder:
    """A quantizer that counts its calls and changes nothing."""

    def __init__(self, change=0.0):
        self.shapes, self.change = [], change

    def __call__(self, x):
        self.shapes.append(x.shape)
        return x + self.change


def shapes_at(act):
    jax.eval_shape(bf.bert(small.config(2), act), params_of(), small.batch(3, 0))


def test_one_quantizer_is_at_the_inputs_of_the_encoders_matrices():
    act = Recorder()
    shapes_at(act)
    layer = [(3, 8, 16)] * 5 + [(3, 8, 32)]
    assert act.shapes == layer * 2


def test_rules_choose_sites_and_the_first_wins():
    value, probs, rest, pooler = (Recorder() for _ in range(4))
    shapes_at(
        (
            ("encoder/layer_1/attention/value/output", value),
            (".*/attention/probs", probs),
            ("pooler/input", pooler),
            ("encoder/layer_1/.*", rest),
        )
    )
    assert value.shapes == [(3, 8, 16)]
    assert probs.shapes == [(3, 2, 8, 8)] * 2
    assert pooler.shapes == [(3, 16)]
    # Inputs and outputs of query, key and value; inputs of three more matrices.
    assert len(rest.shapes) == 10 - 2


def test_every_site_has_an_effect():
    sites = model_sites.site_names(small.config(1))
    batch, params = small.batch(3, 0), params_of(1)

    @jax.jit
    @jax.jacfwd
    def by_factor(factors):
        act = [
            (site, lambda x, f=f: f * x) for site, f in zip(sites, factors, strict=True)
        ]
        return bf.bert(small.config(1), act)(params, batch).logits

    effect = jnp.abs(by_factor(jnp.ones(len(sites)))).max(axis=(0, 1))
    for site, size in zip(sites, effect, strict=True):
        assert size > 1e-4, site


def test_a_rule_of_no_site_is_refused():
    with pytest.raises(ValueError, match=r"rule 'encoder/layer_2/\.\*' matches no"):
        bf.bert(small.config(2), (("encoder/layer_2/.*", bf.symmetric(8)),))


# --------------------------------------------------------------------------- parameters


@pytest.mark.parametrize("dtype", ["int8", jnp.int32, "bool", "complex64"])
def test_products_are_not_rounded_to_whole_numbers(dtype):
    with pytest.raises(ValueError, match="dtype must be one of real numbers"):
        bf.bert(small.config(1), dtype=dtype)


def test_fresh_parameters_have_the_tables_paths_and_shapes():
    config = small.config(2, head_size=5)
    params = trees.flatten(bf.init_params(config, jax.random.key(0)))
    expected = {
        entry.path: entry.shape[::-1] if entry.transposed else entry.shape
        for entry in names.parameter_entries(config)
    }
    assert {path: leaf.shape for path, leaf in params.items()} == expected
    assert {leaf.dtype for leaf in params.values()} == {jnp.dtype("float32")}
    for path, leaf in params.items():
        if path.endswith("bias"):
            np.testing.assert_array_equal(leaf, 0)
        elif path.endswith("scale"):
            np.testing.assert_array_equal(leaf, 1)
        else:
            assert 0.015 < float(jnp.std(leaf)) < 0.025, path


def test_fresh_parameters_depend_on_the_key_alone():
    one, again, other = (
        bf.init_params(small.config(1), jax.random.key(seed)) for seed in (0, 0, 1)
    )
    assert small.largest_difference(one, again) == 0
    assert small.largest_difference(one, other) > 0.01


@pytest.mark.parametrize(
    ("rules", "rest"),
    [(bf.xtc_1bit(), "int8"), (bf.xtc_2bit("channel"), "float32")],
)
def test_packed_leaves_give_the_outputs_of_the_unpacked(rules, rest):
    params, batch = params_of(), small.batch(4, 0)
    packed = packing.pack(params, rules, rest)
    apply = jax.jit(bf.bert(small.config(2), bf.symmetric(8)))
    found, expected = apply(packed, batch), apply(packing.unpack(packed), batch)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        close(a, b, 1e-5)
    if rest == "float32":
        quantised = apply(bf.quantize(params, rules), batch)
        close(found.logits, quantised.logits, 1e-5)


@pytest.mark.parametrize("layers", [1, 3])
def test_parameters_of_another_depth_are_refused(layers):
    params = small.params(small.config(layers), 0)
    with pytest.raises(
        ValueError, match=f"have {layers} layers, .*num_hidden_layers 2"
    ):
        bf.bert(small.config(2))(params, small.batch(2, 0))


SHAPED = {
    "vocab_size": "embeddings/word/embedding",
    "max_position_embeddings": "embeddings/position/embedding",
    "type_vocab_size": "embeddings/token_type/embedding",
    "hidden_size": "embeddings/word/embedding",
    "intermediate_size": "encoder/layer_0/ffn/in/kernel",
    "num_labels": "classifier/kernel",
}


@pytest.mark.parametrize("form", ["latent", "lazy", "packed", "coded", "split"])
def test_parameters_of_another_shape_are_refused(form):
    params, rules = small.params(small.config(2), 0), bf.xtc_1bit()
    made = {
        "latent": lambda: params,
        "lazy": lambda: bf.quantize(params, rules, lazy=True),
        "packed": lambda: bf.pack(params, rules),
        "coded": lambda: jax.tree.map(
            functools.partial(packing.on_host, integers=np.float32),
            bf.pack(params, rules),
            is_leaf=lambda leaf: isinstance(leaf, model.Packed),
        ),
        "split": lambda: bf.split(params, bf.xtc_2bit()),
    }[form]()
    for field, at in SHAPED.items():
        other = small.config(2, **{field: 8})
        with pytest.raises(ValueError, match=rf"{at}: its shape is .*, by the config"):
            bf.bert(other)(made, small.batch(2, 0))


def test_a_missing_parameter_is_named():
    params = trees.flatten(small.params(small.config(2), 0))
    del params["pooler/kernel"]
    with pytest.raises(ValueError, match="pooler/kernel: the parameters have none"):
        bf.bert(small.config(2))(trees.unflatten(params), small.batch(2, 0))
    with pytest.raises(ValueError, match=r"have 0 layers, .*num_hidden_layers 2"):
        bf.bert(small.config(2))({"params": {}}, small.batch(2, 0))
