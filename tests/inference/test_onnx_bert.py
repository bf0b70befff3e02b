"""Whole students in ONNX Runtime against ``bitflax.bert`` in float32."""

import functools
import json

import jax
import numpy as np
import pytest

import bitflax as bf
from bitflax.errors import ConfigError
from bitflax.inference import onnx_bert
from bitflax.packed import packing
from bitflax.quantization import learned_activations, splitting
from bitflax.quantization import rules as quantization_rules
from tests.helpers import onnxrun, small

CONFIG = small.config(2, id2label={0: "no", 1: "yes", 2: "perhaps"}, hidden_size=32)
BATCH = small.batch(24, seed=1)
ACTS = {
    "none": None,
    "token": bf.symmetric(8),
    "token, full": bf.symmetric(8, levels="full"),
    "token, 4 bits": bf.symmetric(4),
    "tensor": bf.symmetric(8, axis=None),
    "groups": bf.symmetric(8, axis=None, groups=4),
    "asymmetric": bf.asymmetric(8),
    "asymmetric, wide": bf.asymmetric(8, axis=None, levels="full"),
    "binarybert": quantization_rules.binarybert_act(8),
    "ternarybert": quantization_rules.ternarybert_act(8),
    "lsq": quantization_rules.lsq_act(4),
    # All sites of one bit make of equal terms sums of +-0, whose sign is chance.
    "elastic": (
        (".*/ffn/in/input", learned_activations.elastic()),
        (".*/ffn/out/input", learned_activations.elastic(4, signed=False)),
        (".*", learned_activations.elastic(4)),
    ),
    "uneven": (
        (".*/query/input", bf.symmetric(8)),
        (".*/key/input", bf.asymmetric(8)),
        (".*/probs", bf.symmetric(8, axis=(-2, -1))),
        (".*/ffn/in/input", bf.symmetric(12)),
    ),
}
RULES = {
    "tensor": bf.xtc_1bit(),
    "channel": bf.xtc_1bit("channel"),
    "2bit": bf.xtc_2bit(),
    "pooler": bf.binarybert_1bit(),
    "rows": ((r"encoder/.*/kernel", functools.partial(bf.binarize, axis=-1)),),
}
"""Of "rows", none can be multiplied as integers."""
CODED = {*ACTS} - {"none", "groups"}
CASES = [("tensor", act) for act in ACTS] + [(rules, "token") for rules in RULES][1:]


@functools.cache
def latent():
    made = small.params(CONFIG, 3)
    noise = np.random.default_rng(0)
    return jax.tree.map(
        lambda w: 5 * w + 0.1 * noise.normal(size=w.shape).astype(np.float32), made
    )


@functools.cache
def student(rules, act):
    """A packed student and the quantizers of its activations."""
    params, rules, act = latent(), RULES[rules], ACTS[act]
    if act is not None and not callable(act):
        params = bf.init_act(params, act, BATCH, CONFIG)
    return packing.pack(params, rules, rest="float32"), act


@functools.cache
def expected(rules, act):
    packed, act = student(rules, act)
    return np.asarray(jax.jit(bf.bert(CONFIG, act))(packed, BATCH).logits)


COARSE = {"elastic"}
"""Of two levels, a flip is the whole of a value."""


def assert_agrees(model, rules, act):
    """Logits are equal within float32, in most texts where a rounding may flip.

    Where the two sides' float32 differ across the middle of two levels, one value of an
    activation moves by a level, and with it the logits of its text.
    """
    apart = distance(onnxrun.logits(model, BATCH), expected(rules, act))
    exact = apart < 2e-5
    assert exact.all() if act == "none" else exact.mean() > 0.5, apart
    assert act in COARSE or apart.max() < 0.1, apart


def distance(found, wanted):
    """How far each text's logits are apart, in deviations of all logits."""
    assert found.shape == wanted.shape
    return np.abs(found - wanted).max(axis=1) / wanted.std()


@pytest.mark.parametrize(("rules", "act"), CASES)
def test_fp32_computes_what_jax_does(rules, act):
    packed, quantizers = student(rules, act)
    model = onnx_bert.build_onnx(CONFIG, packed, quantizers, "onnx-fp32")
    assert_agrees(model, rules, act)


@pytest.mark.parametrize(
    ("rules", "act"), [c for c in CASES if c[1] in CODED and c[0] != "rows"]
)
def test_int8_computes_what_jax_does(rules, act):
    packed, quantizers = student(rules, act)
    model = onnx_bert.build_onnx(CONFIG, packed, quantizers, "onnx-int8")
    assert "MatMulInteger" in {node.op_type for node in model.graph.node}
    assert_agrees(model, rules, act)


@pytest.mark.parametrize("shape", [(1, 1), (3, 16)])
def test_any_number_of_texts_and_tokens(shape):
    packed, _ = student("tensor", "none")
    batch = small.batch(shape[0], seed=4, length=max(2, shape[1]))
    batch = {name: batch[name][..., : shape[1]] for name in batch}
    model = onnx_bert.build_onnx(CONFIG, packed, None, "onnx-fp32")
    wanted = bf.bert(CONFIG)(packed, batch).logits
    assert (distance(onnxrun.logits(model, batch), np.asarray(wanted)) < 2e-5).all()


@pytest.mark.slow
def test_heads_of_another_width_relu_and_a_real_number():
    changes = {"head_size": 12, "hidden_act": "relu", "hidden_size": 32}
    config = small.config(1, num_labels=1, problem_type="regression", **changes)
    tree = small.params(config, 1)
    tree = jax.tree.map(lambda w: 5 * w if w.ndim == 2 else w, tree)
    packed = packing.pack(tree, bf.xtc_1bit(), rest="float32")
    model = onnx_bert.build_onnx(config, packed, None, "onnx-fp32")
    wanted = np.asarray(jax.jit(bf.bert(config))(packed, BATCH).logits)
    assert (distance(onnxrun.logits(model, BATCH), wanted) < 2e-5).all()


def test_a_sequence_longer_than_the_positions_is_refused():
    packed, _ = student("tensor", "none")
    model = onnx_bert.build_onnx(CONFIG, packed, None, "onnx-fp32")
    with pytest.raises(Exception, match=r"broadcast|BroadcastIterator"):
        onnxrun.logits(model, small.batch(2, seed=4, length=17))


def test_a_split_student_has_two_products_a_matrix():
    tree = splitting.split(latent(), bf.xtc_2bit())
    packed = packing.pack(tree, bf.xtc_1bit(), rest="float32")
    model = onnx_bert.build_onnx(CONFIG, packed, ACTS["token"], "onnx-int8")
    products = [n for n in model.graph.node if n.op_type == "MatMulInteger"]
    assert len(products) == 2 * 6 * CONFIG.num_hidden_layers
    wanted = jax.jit(bf.bert(CONFIG, ACTS["token"]))(packed, BATCH).logits
    apart = distance(onnxrun.logits(model, BATCH), np.asarray(wanted))
    assert np.mean(apart < 2e-5) > 0.5
    assert apart.max() < 0.1


def test_dense_quantised_weights_are_taken_as_integers():
    packed, act = student("channel", "token")
    dense = packing.unpack(packed)
    models = [
        onnx_bert.build_onnx(CONFIG, p, act, "onnx-int8") for p in (packed, dense)
    ]
    assert models[0].SerializeToString() == models[1].SerializeToString()


@pytest.mark.parametrize("kind", onnx_bert.KINDS)
def test_a_row_without_tokens_is_no_nan(kind):
    packed, act = student("tensor", "token")
    batch = {**BATCH, "attention_mask": np.zeros((24, 8), np.int32)}
    found = onnxrun.logits(onnx_bert.build_onnx(CONFIG, packed, act, kind), batch)
    wanted = jax.jit(bf.bert(CONFIG, act))(packed, batch).logits
    assert np.isfinite(found).all()
    assert np.median(np.abs(found - wanted)) < 2e-5


def test_without_a_runtimes_optimisations_the_numbers_are_the_same():
    packed, act = student("channel", "token")
    model = onnx_bert.build_onnx(CONFIG, packed, act, "onnx-int8")
    plain, optimised = (
        onnxrun.logits(model, BATCH, level) for level in ("none", "all")
    )
    assert np.mean(np.abs(plain - optimised).max(axis=1) < 2e-5) > 0.5


@pytest.mark.parametrize("kind", onnx_bert.KINDS)
def test_what_a_reader_finds(kind):
    packed, act = student("tensor", "token")
    model = onnx_bert.build_onnx(CONFIG, packed, act, kind)
    found = {p.key: p.value for p in model.metadata_props}
    assert found["kind"] == kind
    assert json.loads(found["id2label"]) == {"0": "no", "1": "yes", "2": "perhaps"}
    session = onnxrun.session(model)
    inputs = {i.name: (i.type, i.shape) for i in session.get_inputs()}
    assert inputs == {
        name: ("tensor(int64)", ["batch", "sequence"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    (output,) = session.get_outputs()
    assert (output.name, output.shape) == ("logits", ["batch", 3])


def test_codes_are_stored_in_their_bits():
    packed, act = student("tensor", "token")
    model = onnx_bert.build_onnx(CONFIG, packed, act, "onnx-int8")
    sizes = {tuple(c.dims): c.data_type for c in model.graph.initializer}
    uint8 = 2
    # The word table, a kernel of the attention and one of the feed-forward: 8 a byte.
    assert sizes[50, 4] == sizes[32, 4] == uint8


def test_an_unknown_kind_is_refused():
    with pytest.raises(ConfigError, match="onnx-fp32, onnx-int8"):
        onnx_bert.build_onnx(CONFIG, latent(), None, "onnx-int4")


@pytest.mark.parametrize(
    ("rules", "act"), [("tensor", "none"), ("rows", "token"), ("tensor", "groups")]
)
def test_a_student_without_integers_is_refused(rules, act):
    packed, quantizers = student(rules, act)
    with pytest.raises(ConfigError, match=r"onnx-int8: no matrix .* 8 bits"):
        onnx_bert.build_onnx(CONFIG, packed, quantizers, "onnx-int8")


def test_an_own_activation_quantizer_is_refused():
    own = ((".*/ffn/in/input", np.round),)
    with pytest.raises(ConfigError, match="encoder/layer_0/ffn/in/input: ONNX cannot"):
        onnx_bert.build_onnx(CONFIG, latent(), own, "onnx-fp32")
