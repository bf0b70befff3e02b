"""Engines compute the same logits; what is missing is said."""

import importlib.util
import sys

import jax
import numpy as np
import pytest

import bitflax as bf
from bitflax.errors import ConfigError, InputMissing
from bitflax.inference import engines, predictor
from bitflax.packed import packing
from tests.inference import test_predictor
from tests.inference.test_predictor import CONFIG, TEXTS, params, tokenizer

ACT = bf.symmetric(bits=8)


@pytest.fixture(scope="module")
def packed():
    return packing.pack(params(), bf.xtc_1bit())


def logits(tree, act, engine):
    made = predictor.Predictor(CONFIG, tree, tokenizer(), act, engine=engine)
    return made.logits(TEXTS, batch_size=4)


@pytest.mark.parametrize("act", [None, ACT])
def test_onnx_gives_the_logits_of_jax(packed, act):
    pytest.importorskip("onnxruntime")
    found = logits(packed, act, "onnx")
    assert found.dtype == np.float32
    # Another machine's float32 may flip one 8-bit rounding; a step is worth so much.
    atol = 2e-5 if act is None else 2e-3
    np.testing.assert_allclose(found, logits(packed, act, "jax"), atol=atol)
    assert np.ptp(found, axis=0).max() > 20 * atol


def test_onnx_runs_dense_weights_with_8_bit_activations():
    pytest.importorskip("onnxruntime")
    found = logits(params(), ACT, "onnx")
    np.testing.assert_allclose(found, logits(params(), ACT, "jax"), atol=2e-3)


@pytest.mark.parametrize("module", ["onnx", "onnxruntime"])
def test_a_missing_package_is_said_before_the_work(monkeypatch, tmp_path, module):
    found = importlib.util.find_spec

    def find_spec(name, *rest):
        return None if name == module else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.delitem(sys.modules, module, raising=False)
    with pytest.raises(InputMissing, match="not installed") as raised:
        predictor.load(tmp_path / "nowhere", engine="onnx")
    assert raised.value.fix == "pip install 'bitflax[onnx]'"
    assert module in raised.value.place


def test_an_unknown_engine_is_said():
    with pytest.raises(ConfigError, match="no engine 'tensorrt'"):
        engines.make_engine("tensorrt", CONFIG, params())


def test_onnx_also_says_labels_and_probabilities(packed):
    pytest.importorskip("onnxruntime")
    made = predictor.Predictor(CONFIG, packed, tokenizer(), engine="onnx")
    for said, expected in zip(
        made.predict(TEXTS),
        predictor.Predictor(CONFIG, packed, tokenizer()).predict(TEXTS),
        strict=True,
    ):
        assert said.label == expected.label
        assert said.probability == pytest.approx(expected.probability, abs=1e-4)


def test_pairs_run_in_onnx_too(packed):
    pytest.importorskip("onnxruntime")
    pairs = [("a b", "c"), ("d", "e f g")]
    made = predictor.Predictor(CONFIG, packed, tokenizer(), engine="onnx")
    for row, pair in zip(made.logits(pairs), pairs, strict=True):
        expected = test_predictor.alone(pair, tree=packed)
        np.testing.assert_allclose(row, expected, atol=2e-5)


def test_jax_measures_nothing_on_a_gpu(packed, monkeypatch):
    expected, asked = logits(packed, None, "jax"), []

    def jit(fn, **options):
        asked.append(options.get("compiler_options"))
        return compiled(fn, **options)

    compiled = jax.jit
    monkeypatch.setattr(jax, "jit", jit)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    np.testing.assert_array_equal(logits(packed, None, "jax"), expected)
    assert {"xla_gpu_autotune_level": 0}.items() <= asked[-1].items()
