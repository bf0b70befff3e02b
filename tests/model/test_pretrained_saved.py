"""Hugging Face folders out: names, layout, a round trip, and transformers itself."""

import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors
import tokenizers

from bitflax.errors import ConfigError, OutputError
from bitflax.model import apply, hf_weights, pretrained
from tests.helpers import hf_tiny
from tests.helpers.hf_tiny import CONFIG, assert_same


@pytest.fixture
def said(caplog):
    """A function that returns what the logger said so far."""
    caplog.set_level(logging.INFO, "bitflax")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


@pytest.fixture(scope="module")
def params():
    return hf_weights.params_from_hf(hf_tiny.state(), CONFIG)


# What BertForSequenceClassification of transformers 5.23 asks for, and nothing else.
LAYER = [
    "attention.self.query",
    "attention.self.key",
    "attention.self.value",
    "attention.output.dense",
    "attention.output.LayerNorm",
    "intermediate.dense",
    "output.dense",
    "output.LayerNorm",
]
NAMES = {
    "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.position_embeddings.weight",
    "bert.embeddings.token_type_embeddings.weight",
    *(
        f"{module}.{kind}"
        for module in (
            "bert.embeddings.LayerNorm",
            *(f"bert.encoder.layer.{i}.{module}" for i in range(2) for module in LAYER),
            "bert.pooler.dense",
            "classifier",
        )
        for kind in ("weight", "bias")
    ),
}


def test_names_and_layout_out_are_those_of_transformers(params):
    state = hf_tiny.state()
    written = hf_weights.params_to_hf(params, CONFIG)
    assert written.keys() == state.keys() == NAMES
    for name, value in state.items():
        np.testing.assert_array_equal(written[name], value)
        assert written[name].flags.c_contiguous


def test_parameters_of_integers_are_refused(params):
    whole = jax.tree.map(lambda leaf: leaf.astype(np.int8), params)
    with pytest.raises(ConfigError, match=r"expected real numbers, .* int8"):
        hf_weights.params_to_hf(whole, CONFIG)


class Tokenizer:
    """What has a ``to_json``, as ``bitflax.data.text.Tokenizer`` has."""

    def __init__(self, words=("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "no")):
        self.whole = tokenizers.Tokenizer(
            tokenizers.models.WordPiece({word: i for i, word in enumerate(words)})
        )
        self.whole.normalizer = tokenizers.normalizers.BertNormalizer()
        self.whole.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()

    def to_json(self):
        return self.whole.to_str()


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        dataclasses.replace(CONFIG, id2label=None),
        dataclasses.replace(
            CONFIG, num_labels=1, id2label=None, problem_type="regression"
        ),
        dataclasses.replace(CONFIG, hidden_act="relu", classifier_dropout=0.25),
    ],
)
def test_a_round_trip_loses_nothing(tmp_path, config, said):
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(
        lambda key: apply.init_params(config, key), jax.random.key(0)
    )
    params = jax.tree.map(lambda w: rng.normal(size=w.shape).astype(w.dtype), shapes)
    pretrained.save_pretrained(tmp_path / "out", config, params, Tokenizer())
    found_config, found = pretrained.load_pretrained(tmp_path / "out")
    assert found_config == config
    assert_same(found, params)
    assert said() == ""
    with safetensors.safe_open(tmp_path / "out/model.safetensors", "numpy") as file:
        assert file.metadata() == {"format": "pt"}


def test_saving_again_replaces_the_model(tmp_path, params):
    pretrained.save_pretrained(tmp_path / "out", CONFIG, params, Tokenizer())
    twice = jax.tree.map(lambda w: 2 * w, params)
    pretrained.save_pretrained(tmp_path / "out", CONFIG, twice)
    assert_same(pretrained.load_pretrained(tmp_path / "out")[1], twice)
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files == {"config.json", "model.safetensors"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_with_other_things_is_left_alone(tmp_path, params):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(OutputError, match=r"no part of a model: thesis.tex"):
        pretrained.save_pretrained(tmp_path, CONFIG, params)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("config", "change", "problem"),
    [
        (CONFIG, lambda p: p.pop("pooler"), "missing or unknown.*: pooler/bias"),
        (CONFIG, lambda p: p.update(more=jnp.ones(1)), "missing or unknown.*: more"),
        (
            dataclasses.replace(CONFIG, num_labels=2, id2label=None),
            lambda p: None,
            r"classifier/kernel: expected an array \(2, 8\).*found .*\(3, 8\)",
        ),
        (
            CONFIG,
            lambda p: p["pooler"].update(kernel=object()),
            "pooler/kernel: expected an array",
        ),
        (
            dataclasses.replace(CONFIG, head_size=3),
            lambda p: None,
            "2 heads of width 3 are not the hidden_size 8",
        ),
    ],
)
def test_what_transformers_cannot_load_is_not_written(
    tmp_path, params, config, change, problem
):
    params = jax.tree.map(lambda w: w, params)
    change(params)
    with pytest.raises(ConfigError, match=problem):
        pretrained.save_pretrained(tmp_path / "out", config, params)
    assert not list(tmp_path.iterdir())


def test_a_larger_vocabulary_than_the_table_is_refused(tmp_path, params):
    words = Tokenizer([f"w{i}" for i in range(25)])
    with pytest.raises(ConfigError, match="at most vocab_size 24 words, found 25"):
        pretrained.save_pretrained(tmp_path / "out", CONFIG, params, words)


def test_transformers_reads_the_tokenizer_that_was_given(tmp_path, params):
    transformers = pytest.importorskip("transformers")
    given = Tokenizer()
    # What BertTokenizer, made anew of a vocabulary, would not do.
    given.whole.normalizer = tokenizers.normalizers.Lowercase()
    given.whole.model.max_input_chars_per_word = 5
    given.whole.post_processor = tokenizers.processors.BertProcessing(
        ("[SEP]", 3), ("[CLS]", 2)
    )
    pretrained.save_pretrained(tmp_path, CONFIG, params, given)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for texts in ("No nonono", "nó"), ("no\u200d", "no"):
        found, expected = theirs(*texts), given.whole.encode(*texts)
        assert found["input_ids"] == expected.ids
        assert found["token_type_ids"] == expected.type_ids
    assert (theirs.pad_token_id, theirs.model_max_length) == (0, 8)


def test_transformers_itself_loads_what_is_written(tmp_path, golden, params):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    pretrained.save_pretrained(tmp_path / "out", CONFIG, params, Tokenizer())
    auto = transformers.AutoModelForSequenceClassification
    loaded, info = auto.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    assert loaded.config.id2label == CONFIG.id2label
    batch = dict(np.load(golden / "hf_tiny" / "expected.npz"))
    expected = batch.pop("logits")
    with torch.no_grad():
        tensors = {k: torch.from_numpy(v).long() for k, v in batch.items()}
        logits = loaded.eval()(**tensors).logits.numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-6)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("No")["input_ids"] == [2, 5, 3]
