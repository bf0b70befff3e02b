"""The part of the word table that a task uses, whole or in two halves."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bitflax import trees
from bitflax.distillation import vocabulary
from bitflax.model.leaves import Split
from tests.helpers import small

USED = np.array([3, 7, 20])


def tree(split):
    table = jax.random.normal(jax.random.key(0), (50, 16))
    leaf = Split(table, 2 * table) if split else table
    return {"embeddings": {"word": {"embedding": leaf}}, "classifier": jnp.ones(3)}


@pytest.mark.parametrize("split", [False, True])
def test_grow_undoes_shrink_where_training_changed_the_used_rows(split):
    config, whole = small.config(1, pad_token_id=7), tree(split)
    shrunk, params = vocabulary.shrink_vocabulary(config, whole, USED)
    assert (shrunk.vocab_size, shrunk.pad_token_id) == (3, 1)
    trained = jax.tree.map(lambda w: w + 1, params)
    grown = vocabulary.grow_vocabulary(trained, whole, USED)
    tables = (trees.flatten(t)[vocabulary.TABLE] for t in (params, whole, grown))
    for small_half, before, after in zip(*map(jax.tree.leaves, tables), strict=True):
        np.testing.assert_array_equal(small_half, before[USED])
        np.testing.assert_array_equal(after, before.at[USED].add(1))
    assert jax.tree.structure(grown) == jax.tree.structure(whole)
