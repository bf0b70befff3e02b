"""The table of names: whole, without doubles, and with the shapes of the model."""

import jax
import pytest

from bitflax import trees
from bitflax.model import apply, names
from bitflax.types import BertConfig

SMALL = {
    "vocab_size": 20,
    "hidden_size": 12,
    "num_attention_heads": 3,
    "intermediate_size": 14,
    "max_position_embeddings": 6,
    "type_vocab_size": 3,
    "num_labels": 4,
}


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 1}, {"head_size": 5}])
def test_the_table_holds_the_models_parameters_and_shapes(changes):
    config = BertConfig(**SMALL | {"num_hidden_layers": 3} | changes)
    table = names.parameter_entries(config)
    here = {e.path: e.shape[::-1] if e.transposed else e.shape for e in table}
    shapes = jax.eval_shape(
        lambda key: apply.init_params(config, key), jax.random.key(0)
    )
    assert here == {path: leaf.shape for path, leaf in trees.flatten(shapes).items()}
    assert len({entry.name for entry in table}) == len(table)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("classifier.weight", "classifier.weight"),
        ("pooler.dense.bias", "bert.pooler.dense.bias"),
        ("model.bert.embeddings.LayerNorm.beta", "bert.embeddings.LayerNorm.bias"),
        ("module.model.encoder.layer.0.x", "bert.encoder.layer.0.x"),
        ("gamma", "gamma"),
    ],
)
def test_names_of_other_times_and_wrappers(name, expected):
    assert names.canonical_name(name) == expected


def test_known_names_are_left_as_they_are():
    for entry in names.parameter_entries(BertConfig()):
        assert names.canonical_name(entry.name) == entry.name
        assert not names.IGNORED.fullmatch(entry.name)
