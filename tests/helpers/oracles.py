"""Numbers that the peers' own code made: tests/golden, whose README says how."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from bitflax import trees
from bitflax.model import hf_weights, names
from bitflax.types import BertConfig

GOLDEN = pathlib.Path(__file__).parents[1] / "golden"
SHAPE = {
    "vocab_size": 200,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 32,
    "num_labels": 3,
}
TEACHER = BertConfig(num_hidden_layers=4, **SHAPE)
STUDENT = BertConfig(num_hidden_layers=2, **SHAPE)
LAYERS = (1, 3)


@functools.cache
def load(name):
    """Return ``{key: array}`` of tests/golden/<name>.npz."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        return dict(file)


def teacher(dtype=np.float32):
    """Return the parameters of the teacher, four layers."""
    state = load("bert_teacher_1") | load("bert_teacher_2")
    return _params(state, TEACHER, dtype)


def student(dtype=np.float32):
    """Return the parameters of the student that is no part of the teacher."""
    return _params(load("bert_student"), STUDENT, dtype)


def _params(state, config, dtype):
    params = hf_weights.params_from_hf(state, config)
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), params)


def batch():
    """Return the batch: three rows of 12, 9 and 5 tokens, padded to 12."""
    return {k: jnp.asarray(v.astype(np.int32)) for k, v in load("bert_inputs").items()}


def gradients(file, prefix):
    """Return ``{path: gradient}`` of the keys that begin so, kernels [in, out]."""
    entries = {
        names.canonical_name(e.name): e for e in names.parameter_entries(STUDENT)
    }
    found = {}
    for key, value in load(file).items():
        if key.startswith(prefix):
            entry = entries[names.canonical_name(key.removeprefix(prefix))]
            found[entry.path] = value.T if entry.transposed else value
    assert found
    return found


def assert_gradients(tree, file, prefix, atol):
    """Check every gradient that the file has."""
    flat = trees.flatten(tree)
    for path, expected in gradients(file, prefix).items():
        np.testing.assert_allclose(
            flat[path], expected, rtol=0, atol=atol, err_msg=path
        )
