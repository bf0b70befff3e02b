"""Train with the part of the word table that a task uses.

A task of short texts uses a sixth of BERT's 30,522 words. The rows of the others get
no gradient; left out of a stage they stay as they are, without weight decay, and cost
no optimizer state, no gradient and no checkpoint. The rows that are used (those of dev
too, so that it can be scored) get the same updates as in the whole table. Within a
stage, ``input_ids`` number the used words from 0.
"""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jaxtyping import Array

from bitflax import quantization, trees
from bitflax.data import Tokens
from bitflax.quantization import WORD_TABLE as TABLE
from bitflax.types import BertConfig, Params


def used_ids(tokens: Sequence[Tokens], *pads: int) -> np.ndarray:
    """Return the ids that occur, and ``pads``, ascending.

    >>> some = Tokens(np.array([5, 9, 5]), np.zeros(3, np.uint8), np.array([0, 3]))
    >>> used_ids([some], 0)
    array([0, 5, 9])
    """
    return np.unique(np.concatenate([pads, *(t.ids for t in tokens)]).astype(int))


def can_shrink_vocabulary(stage_rules: quantization.Rules) -> bool:
    """Whether the rows that a task does not use leave the others as they are.

    A quantizer that scales the word table as a whole reads all of its rows.
    """
    quantizer = trees.match_one(stage_rules, TABLE)
    return quantizer is None or quantization.by_row(quantizer)


def renumber_tokens(tokens: Tokens, used: np.ndarray) -> Tokens:
    """Return the tokens with each id's place in ``used``."""
    ids = np.searchsorted(used, tokens.ids).astype(tokens.ids.dtype)
    return dataclasses.replace(tokens, ids=ids)


def shrink_vocabulary(
    config: BertConfig, params: Params, used: np.ndarray
) -> tuple[BertConfig, Params]:
    """Return a model whose word table, whole or split, has only the rows ``used``."""
    flat = trees.flatten(params)
    flat[TABLE] = jax.tree.map(
        lambda table: jax.device_put(np.asarray(table)[used]), flat[TABLE]
    )
    small = dataclasses.replace(
        config,
        vocab_size=len(used),
        pad_token_id=int(np.searchsorted(used, config.pad_token_id)),
    )
    return small, trees.unflatten(flat)


def grow_vocabulary(params: Params, whole: Params, used: np.ndarray) -> Params:
    """Return the parameters with the rows of ``whole`` where they have none.

    >>> whole = {"embeddings": {"word": {"embedding": jax.numpy.zeros((4, 1))}}}
    >>> small = {"embeddings": {"word": {"embedding": jax.numpy.ones((2, 1))}}}
    >>> grown = grow_vocabulary(small, whole, np.array([0, 3]))
    >>> grown["embeddings"]["word"]["embedding"][:, 0]
    Array([1., 0., 0., 1.], dtype=float32)
    """

    def grown(table: Array, rows: Array) -> Array:
        out = np.array(table)
        out[used] = np.asarray(rows)
        return jax.device_put(out)

    flat = trees.flatten(params)
    flat[TABLE] = jax.tree.map(grown, trees.flatten(whole)[TABLE], flat[TABLE])
    return trees.unflatten(flat)
