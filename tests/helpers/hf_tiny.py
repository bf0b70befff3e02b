"""The tiny model that transformers saved, for the tests of what is loaded and saved."""

import pathlib

import numpy as np
import safetensors.numpy

from bitflax import trees
from bitflax.types import BertConfig

CONFIG = BertConfig(
    vocab_size=24,
    hidden_size=8,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=12,
    max_position_embeddings=8,
    num_labels=3,
    id2label={0: "no", 1: "maybe", 2: "yes"},
)


def state():
    """Return the names and arrays that transformers wrote."""
    folder = pathlib.Path(__file__).parents[1] / "golden" / "hf_tiny"
    return safetensors.numpy.load_file(folder / "model.safetensors")


def assert_same(found, expected):
    found, expected = trees.flatten(found), trees.flatten(expected)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
