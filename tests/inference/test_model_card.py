"""The card says what is known, and nothing else."""

import dataclasses
import functools

import jax
import numpy as np
import pytest

import bitflax as bf
from bitflax.inference import model_card
from bitflax.inference.provenance import Provenance, Scored
from bitflax.packed import file, packing
from bitflax.packed.file import StoredModel
from tests.inference.test_predictor import CONFIG, params, tokenizer

yaml = pytest.importorskip("yaml")

ORIGIN = Provenance(
    "quickstart",
    "icd10cm",
    "accuracy",
    "minilm",
    (Scored("teacher", 0.8, 32, 90_897_220), Scored("packed", 0.784, 1, None)),
)


def opened(act=None, config=CONFIG, rules=None, extras=None) -> StoredModel:
    tree = params()
    if rules is not None:
        tree = packing.pack(tree, rules)
    return StoredModel(config, tree, act, tokenizer(), extras or {})


@functools.cache
def student():
    extras = {"max_length": 12}
    return opened(bf.symmetric(bits=8), rules=bf.xtc_1bit(), extras=extras)


def front(text: str) -> dict:
    start, fields, _ = text.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(fields)


def test_the_front_matter_is_a_hubs():
    text = model_card.card(student(), ORIGIN, 2_727_306)
    assert front(text) == {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "language": ["en"],
        "base_model": "sentence-transformers/all-MiniLM-L6-v2",
        "metrics": ["accuracy"],
        "tags": ["bitflax", "bert", "knowledge-distillation", "1-bit"],
    }


def test_a_hubs_own_reader_takes_it():
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(model_card.card(student(), ORIGIN, 2_727_306))
    assert card.data.base_model == "sentence-transformers/all-MiniLM-L6-v2"
    assert card.data.pipeline_tag == "text-classification"


def test_scores_and_sizes_are_a_table():
    text = model_card.card(student(), ORIGIN, 2_727_306)
    assert "| | accuracy | of the teacher's | bits | MB |" in text
    assert "| teacher | 0.8000 | 100.0% | 32 | 90.90 |" in text
    assert "| packed | 0.7840 | 98.0% | 1 | 2.73 |" in text


def test_what_the_folder_is_without_is_said():
    text = model_card.card(student(), ORIGIN, 2_727_306)
    assert "activations rounded to 8 bits; transformers does not" in text
    assert "2,727,306 bytes" in text
    assert "at most 12 tokens" in text
    assert "truncation=True, max_length=12" in text
    assert "--format onnx-int8" in text
    assert 'bf.load(".")' in text


def test_on_a_hub_it_is_loaded_by_its_name():
    text = model_card.card(student(), ORIGIN, 2_727_306, "me/mine")
    assert 'bf.load("me/mine")' in text
    assert 'pipeline("text-classification", "me/mine", truncation=True' in text
    assert "bitflax export me/mine --format onnx-int8" in text


def test_learned_ranges_are_said():
    act = ((".*/ffn/in/input", bf.lsq(4)),)
    text = model_card.card(opened(act, rules=bf.xtc_1bit()), ORIGIN, 9)
    assert "rounded to 4 bits, in ranges that it learned" in text
    assert "The scores above" in text
    unscored = model_card.card(opened(act, rules=bf.xtc_1bit()), Provenance(), 9)
    assert "rounded to 4 bits" in unscored
    assert "scores" not in unscored


def test_every_value_is_counted_once():
    counts = model_card._counts(student())
    rows = file.size_report(student().params)
    assert sum(counts.values()) == sum(row.values for row in rows)
    assert model_card._bits(student().params, counts) == 1


def test_what_is_unknown_is_left_out():
    text = model_card.card(opened(), Provenance())
    assert front(text).keys() == {"library_name", "pipeline_tag", "tags"}
    assert front(text)["tags"] == ["bitflax", "bert", "knowledge-distillation"]
    for word in ("None", "Scores", "packed", "It was made", "rounded", "8 bits"):
        assert word not in text
    assert "# A BERT of 2 layers\n" in text
    assert "Classes: `no`, `yes`, `perhaps`." in text


def test_dense_weights_have_32_bits_however_short_they_are():
    half = jax.tree.map(lambda x: np.float32(np.float16(x)), params())
    text = model_card.card(opened()._replace(params=half), Provenance())
    assert "# A BERT of 2 layers\n" in text
    assert "-bit" not in text


def test_a_glue_task_names_its_data_and_metrics():
    origin = Provenance(task="glue/mrpc", metric="f1_accuracy")
    found = front(model_card.card(student(), origin, 9))
    assert found["datasets"] == ["nyu-mll/glue"]
    assert found["metrics"] == ["f1", "accuracy"]
    assert "base_model" not in found


def test_no_language_is_claimed_for_data_of_ones_own():
    found = front(model_card.card(student(), Provenance(task="mine.tsv"), 9))
    assert not {"language", "datasets", "metrics"} & found.keys()


def test_a_regression_has_no_classes():
    config = dataclasses.replace(
        CONFIG, num_labels=1, id2label=None, problem_type="regression"
    )
    text = model_card.card(opened(config=config), Provenance())
    assert "a real number" in text
    assert "Classes" not in text


def test_names_cannot_break_out_of_their_places():
    labels = {0: "a`b", 1: "# x\n\n# y", 2: "ok"}
    config = dataclasses.replace(CONFIG, id2label=labels)
    origin = Provenance(
        recipe="a|b", task="x`y", metric="<b>", stages=(Scored("s|t", 0.5, 1, None),)
    )
    text = model_card.card(opened(config=config), origin)
    assert "`a'b`, `# x # y`, `ok`" in text
    assert "| s\\|t | 0.5000 |" in text
    assert "\\<b\\>" in text
    assert "`x'y`" in text
    assert "# a\\|b: a BERT" in text


def test_a_card_is_known_by_its_mark():
    assert model_card.MARK in model_card.card(opened(), Provenance())
