"""The native engine behind the predictor: ragged batches, and where it is chosen."""

import numpy as np
import pytest

import bitflax as bf
from bitflax import cli
from bitflax.errors import ConfigError
from bitflax.inference import engines, predictor
from bitflax.inference.native import NativeModel
from bitflax.packed import packing
from tests.helpers import natives
from tests.inference.test_exporting import write_packed
from tests.inference.test_predictor import CONFIG, TEXTS, params, tokenizer

# No rounding of 8 bits lies near half a level here; a step is worth 2e-3.
CLOSE = 2e-5


@pytest.fixture(scope="module", autouse=True)
def _engine():
    natives.engine_or_skip()


@pytest.fixture(scope="module", params=[None, bf.symmetric(bits=8)])
def pair(request):
    """Predictors of one model, in JAX and native."""
    tree = packing.pack(params(), bf.xtc_1bit())
    return [
        predictor.Predictor(CONFIG, tree, tokenizer(), request.param, engine=name)
        for name in ("jax", "native")
    ]


def test_logits_are_those_of_jax_in_batches_of_any_size(pair):
    expected = pair[0].logits(TEXTS)
    assert np.ptp(expected, axis=0).max() > 20 * CLOSE
    for size in (1, 2, 3, 32):
        found = pair[1].logits(TEXTS, batch_size=size)
        np.testing.assert_allclose(found, expected, atol=CLOSE)


def test_pairs_too(pair):
    pairs = [("a b", "c"), ("d", "e f g"), ("s", "t")]
    found, expected = pair[1].logits(pairs), pair[0].logits(pairs)
    np.testing.assert_allclose(found, expected, atol=CLOSE)


def test_rows_that_fill_up_and_longer_padding_are_never_asked(pair):
    made, asked = pair[1], []
    engine = made._engine

    def seen(batch):
        asked.append(batch)
        return engine(batch)

    made._engine = seen
    try:
        made.logits(TEXTS, batch_size=4)
    finally:
        made._engine = engine
    assert sum(len(batch["input_ids"]) for batch in asked) == len(TEXTS)
    lengths = [batch["attention_mask"].sum(axis=1) for batch in asked]
    assert all(batch["attention_mask"].all(axis=0)[0] for batch in asked)
    for batch, real in zip(asked, lengths, strict=True):
        assert batch["input_ids"].shape[1] == real.max()
    flat = np.concatenate(lengths)
    assert (np.diff(flat) >= 0).all()


def test_a_stored_model_runs_native_where_nobody_says(tmp_path):
    path = write_packed(tmp_path / "m")
    made = bf.load(path, threads=1)
    assert isinstance(made._engine, NativeModel)
    assert made._engine.threads == 1
    assert not isinstance(bf.load(path, engine="jax")._engine, NativeModel)


def test_no_texts_are_no_logits(pair):
    assert pair[1].logits([]).shape == (0, 3)
    assert pair[1].predict([]) == []


def test_jax_takes_no_number_of_threads():
    with pytest.raises(ConfigError, match="the engine jax takes all cores"):
        engines.make_engine("jax", CONFIG, params(), threads=2)


@pytest.mark.parametrize("name", ["auto", "native", "onnx"])
def test_a_number_of_threads_that_is_none_is_refused_before_the_work(name, tmp_path):
    with pytest.raises(ConfigError, match="threads: expected 1 to 256, found 0"):
        bf.load(tmp_path / "nowhere", engine=name, threads=0)


def test_the_command_answers_the_same_by_every_engine(tmp_path, capsys):
    path, said = write_packed(tmp_path / "m"), {}
    for engine in ("auto", "native", "jax"):
        argv = ["predict", str(path), "--engine", engine, *TEXTS[:3]]
        argv += [] if engine == "jax" else ["--threads", "2"]
        assert cli.main(argv) == 0
        said[engine], errors = capsys.readouterr()
        assert errors == ""
    assert said["auto"] == said["native"]
    labels = [
        [line.split("\t")[0] for line in text.splitlines()] for text in said.values()
    ]
    assert labels[0] == labels[2]


def test_auto_is_jax_for_floats(caplog):
    caplog.set_level("INFO")
    made = engines.make_engine("auto", CONFIG, params())
    assert not isinstance(made, NativeModel)
    assert caplog.messages == []
    engines.make_engine("auto", CONFIG, params(), threads=2)
    assert "takes all cores; it multiplies floats faster" in caplog.text


def test_auto_is_jax_beside_an_accelerator(caplog, monkeypatch):
    caplog.set_level("INFO")
    tree, act = bf.pack(params(), bf.xtc_1bit()), bf.symmetric(8)
    assert isinstance(engines.make_engine("auto", CONFIG, tree, act), NativeModel)
    monkeypatch.setattr(engines, "_has_accelerator", lambda: True)
    made = engines.make_engine("auto", CONFIG, tree, act)
    assert not isinstance(made, NativeModel)
    assert "the engine jax answers; it computes on" in caplog.text
