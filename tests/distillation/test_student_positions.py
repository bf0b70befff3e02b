import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.distillation import student
from bitflax.model import leaves, names
from bitflax.packed import file, packing
from bitflax.quantization import splitting
from tests.helpers import small

CONFIG = small.config(1)
TABLE = names.POSITIONS
RULES = {
    "dense": None,
    "8 bits": (),
    "rows": ((TABLE, functools.partial(bf.binarize, axis=-1)),),
    "tensor": ((TABLE, bf.ternarize),),
    "split": ((TABLE, functools.partial(bf.binarize, axis=-1)),),
}


def made(kind):
    params = small.params(CONFIG)
    if kind == "split":
        params = splitting.split(params, ((TABLE, bf.ternarize),))
    return params if RULES[kind] is None else packing.pack(params, RULES[kind])


@pytest.mark.parametrize("kind", RULES)
def test_short_texts_get_the_same_logits_and_longer_ones_an_error(kind, tmp_path):
    params = made(kind)
    config, fewer = student.take_positions(CONFIG, params, 8)
    assert (CONFIG.max_position_embeddings, config.max_position_embeddings) == (16, 8)
    whole = leaves.dense(trees.flatten(params)[TABLE])
    np.testing.assert_array_equal(leaves.dense(trees.flatten(fewer)[TABLE]), whole[:8])
    batch = small.batch(3, seed=0)
    expected = bf.bert(CONFIG)(params, batch).logits
    np.testing.assert_array_equal(bf.bert(config)(fewer, batch).logits, expected)
    with pytest.raises(ValueError, match="has only 8 positions"):
        bf.bert(config)(fewer, small.batch(3, seed=0, length=9))
    if kind != "dense":
        file.save_packed(tmp_path / "m", config, fewer)
        again, loaded = file.load_packed(tmp_path / "m")
        assert again == config
        jax.tree.map(np.testing.assert_array_equal, loaded, fewer)


def test_no_more_are_taken_than_there_are():
    params = made("dense")
    config, same = student.take_positions(CONFIG, params, 99)
    assert config == CONFIG
    jax.tree.map(np.testing.assert_array_equal, same, params)


def test_a_table_of_no_rows_is_refused():
    with pytest.raises(ValueError, match="at least 1, not 0"):
        student.take_positions(CONFIG, {"embeddings": jnp.ones(1)}, 0)
