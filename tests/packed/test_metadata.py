import json

import jax
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.errors import ConfigError
from bitflax.model import names, sites
from bitflax.packed import metadata
from bitflax.quantization import rules
from tests.helpers import small

CONFIGS = {
    "default": bf.BertConfig(),
    "small": small.config(2, id2label={0: "no", 1: "ja, öl", 2: "\u2603"}),
    "heads": small.config(1, head_size=5, hidden_act="relu"),
    "regression": small.config(1, num_labels=1, problem_type="regression"),
    "dropout": small.config(3, classifier_dropout=0.5, pad_token_id=7),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_configuration_comes_back(name):
    text = metadata.config_to_json(CONFIGS[name])
    found = metadata.config_from_json(text)
    assert found == CONFIGS[name]
    assert found.labels == CONFIGS[name].labels


@pytest.mark.parametrize("name", [*CONFIGS][1:])
def test_parameter_shapes_are_the_models(name):
    config = CONFIGS[name]
    made = jax.eval_shape(lambda: bf.init_params(config, jax.random.key(0)))
    expected = {path: leaf.shape for path, leaf in trees.flatten(made).items()}
    assert names.parameter_shapes(config) == expected


def test_shapes_know_what_activations_learn():
    config, act = CONFIGS["heads"], rules.binarybert_act()
    more = names.parameter_shapes(config, act)
    plain = names.parameter_shapes(config, bf.symmetric(8))
    assert plain == names.parameter_shapes(config)
    learned = {path: shape for path, shape in more.items() if path not in plain}
    assert learned == dict.fromkeys(sites.site_names(config), (2,))


def edited(**fields):
    """The JSON of a configuration with other fields."""
    return json.dumps(json.loads(metadata.config_to_json(bf.BertConfig())) | fields)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"num_labels": 10**18, "id2label": {"0": "a"}}, "does not number"),
        ({"layer_norm_eps": 10**400}, "layer_norm_eps cannot be 1000"),
        ({"layer_norm_eps": 0}, "layer_norm_eps must lie"),
        ({"layer_norm_eps": -1e-12}, "layer_norm_eps must lie"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob must lie"),
        ({"classifier_dropout": -0.5}, "classifier_dropout must lie"),
        ({"id2label": {"0": "a", "1": "\x1b[2J"}}, "control characters"),
        ({"id2label": {"0": "a", "1": "b\nc"}}, "control characters"),
        ({"id2label": {"0": "a", "1": "\ud800"}}, "surrogates"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields, problem):
    with pytest.raises(ValueError, match=f"config: .*{problem}"):
        metadata.config_from_json(edited(**fields))


def test_what_a_reader_would_refuse_is_not_written():
    labels = {0: "one", 1: "two\ttwo"}
    with pytest.raises(ConfigError, match=r"config: id2label .* control characters"):
        metadata.config_to_json(bf.BertConfig(id2label=labels))
