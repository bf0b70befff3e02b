"""config.json in and out: labels, overrides, and what is refused."""

import dataclasses
import json

import pytest

from bitflax import files
from bitflax.errors import ConfigError
from bitflax.model import hf_config
from bitflax.types import BertConfig

BERT = {"model_type": "bert", "hidden_size": 64, "num_attention_heads": 4}


def config(**fields):
    overrides = fields.pop("overrides", {})
    return hf_config.config_from_hf(BERT | fields, **overrides)


def test_every_field_is_read(golden):
    fields = files.read_json(golden / "hf_tiny" / "config.json")
    assert hf_config.config_from_hf(fields) == BertConfig(
        vocab_size=24,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
        num_labels=3,
        id2label={0: "no", 1: "maybe", 2: "yes"},
    )


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (2, None, None)),
        ({"num_labels": 4}, (4, None, None)),
        ({"id2label": {"1": "b", "0": "a"}}, (2, {0: "a", 1: "b"}, None)),
        # transformers fills in names of its own where there are none.
        ({"id2label": {"0": "LABEL_0", "1": "LABEL_1"}}, (2, None, None)),
        ({"id2label": {"0": "score"}}, (1, {0: "score"}, "regression")),
        ({"id2label": {"0": 1, "1": 5}}, (2, {0: "1", 1: "5"}, None)),
        ({"num_labels": 1, "problem_type": None}, (1, None, "regression")),
        (
            {"problem_type": "single_label_classification"},
            (2, None, "single_label_classification"),
        ),
    ],
)
def test_labels_of_the_file(fields, expected):
    found = config(**fields)
    assert (found.num_labels, found.id2label, found.problem_type) == expected


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"num_labels": 5}, (5, None, None)),
        ({"num_labels": 1}, (1, None, "regression")),
        ({"id2label": ("x", "y")}, (2, {0: "x", 1: "y"}, None)),
        ({"id2label": {0: "x", 1: "y"}, "num_labels": 2}, (2, {0: "x", 1: "y"}, None)),
        ({"problem_type": "regression"}, (1, None, "regression")),
    ],
)
@pytest.mark.parametrize(
    "own", [{"id2label": {"0": "score"}}, {"id2label": {"0": "a", "1": "b", "2": "c"}}]
)
def test_a_new_task_has_its_own_labels(own, overrides, expected):
    found = config(**own, overrides=overrides)
    assert (found.num_labels, found.id2label, found.problem_type) == expected


@pytest.mark.parametrize(
    ("fields", "place", "problem"),
    [
        ({"model_type": "roberta"}, "model_type", "found 'roberta'"),
        ({"model_type": None}, "model_type", "found None"),
        (
            {"model_type": None, "architectures": ["RobertaModel"]},
            "model_type",
            "expected 'bert'",
        ),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type",
            "relative positions",
        ),
        ({"is_decoder": True}, "is_decoder", "decoders"),
        ({"add_cross_attention": True}, "add_cross_attention", "cross-attention"),
        (
            {"problem_type": "multi_label_classification"},
            "problem_type",
            "several labels an example",
        ),
        ({"hidden_size": "64"}, "hidden_size", "expected an integer, found '64'"),
        ({"hidden_size": 64.5}, "hidden_size", "expected an integer"),
        ({"num_hidden_layers": True}, "num_hidden_layers", "expected an integer"),
        ({"layer_norm_eps": "small"}, "layer_norm_eps", "expected a number"),
        ({"num_attention_heads": 5}, "", "not a multiple"),
        ({"num_hidden_layers": 0}, "", "at least 1"),
        ({"num_hidden_layers": 10**9}, "", "at most 1000"),
        ({"hidden_act": "gelu_new"}, "hidden_act", "gelu or relu, found 'gelu_new'"),
        ({"hidden_act": ["gelu"]}, "hidden_act", "gelu or relu"),
        ({"id2label": {"1": "a", "2": "b"}}, "id2label", "each of 0, 1"),
        ({"id2label": {"a": 0}}, "id2label", "each of 0, 1"),
        ({"id2label": {}}, "id2label", "each of 0, 1"),
        ({"id2label": ["a"]}, "id2label", "each of 0, 1"),
        ({"id2label": {"0": "a", "1": " "}}, "", "label 1 no name"),
        ({"id2label": {"0": "a", "1": None}}, "", "label 1 no name, but None"),
        (
            {"id2label": {"0": "no", "1": "yes"}, "label2id": {"yes": 0, "no": 1}},
            "label2id",
            "expected 0 for 'no', as id2label says, found 1",
        ),
        ({"num_labels": 3, "problem_type": "regression"}, "", "must be 1 in a regr"),
        ({"quantization_config": {"bits": 4}}, "quantization_config", "quantised"),
    ],
)
def test_what_is_refused_names_the_field(fields, place, problem):
    with pytest.raises(ConfigError, match=problem) as caught:
        config(**fields)
    assert caught.value.status == 78
    assert caught.value.place.startswith("config.json" + (place and f":{place}"))


def test_numbers_and_names_that_disagree_are_refused():
    with pytest.raises(ConfigError, match=r"expected 2.*found 3"):
        config(overrides={"id2label": ("a", "b"), "num_labels": 3})


def test_an_old_file_without_model_type_is_known_by_its_architecture():
    fields = {"architectures": ["BertForPreTraining"]}
    assert hf_config.config_from_hf(fields) == BertConfig()


def test_the_exact_gelu_has_two_names():
    assert config(hidden_act="gelu_python").hidden_act == "gelu"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_labels": 3, "id2label": {0: "a", 1: "b", 2: "c"}},
        {"num_labels": 1, "problem_type": "regression"},
        {"classifier_dropout": 0.5, "hidden_act": "relu", "pad_token_id": 3},
        {"problem_type": "single_label_classification"},
    ],
)
def test_a_round_trip_loses_nothing(changes):
    before = dataclasses.replace(BertConfig(), **changes)
    fields = json.loads(json.dumps(hf_config.config_to_hf(before)))
    assert fields["model_type"] == "bert"
    assert hf_config.config_from_hf(fields) == before


def test_heads_that_do_not_fill_the_width_are_not_written():
    with pytest.raises(ConfigError, match="12 heads of width 32 are not"):
        hf_config.config_to_hf(BertConfig(head_size=32))
    assert "head_size" not in hf_config.config_to_hf(BertConfig(head_size=64))
