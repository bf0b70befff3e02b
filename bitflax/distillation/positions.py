"""Leave out the position embeddings that no text needs.

A student that never saw a text of more than 128 tokens has learned nothing of the
positions behind; BERT's other 384 rows are 147 kB of a packed 384-wide student.
"""

import dataclasses
from typing import Any

from bitflax import trees
from bitflax.model.leaves import Packed, Split
from bitflax.packed.packing import POSITIONS
from bitflax.types import BertConfig, Params


def take_positions(
    config: BertConfig, params: Params, count: int
) -> tuple[BertConfig, Params]:
    """Return a model that has the first ``count`` positions, and their very numbers.

    Longer texts than that are then refused, or cut, where a model with all positions
    would run on rows that its training did not reach.

    Args:
      config: the model's shape.
      params: its parameters, dense or packed; the others are shared, not copied.
      count: positions to keep; all of them where there are fewer.

    Raises:
      ValueError: ``count`` is not positive.

    >>> import jax.numpy as jnp
    >>> params = {"embeddings": {"position": {"embedding": jnp.ones((512, 8))}}}
    >>> config, params = take_positions(BertConfig(), params, 128)
    >>> config.max_position_embeddings
    128
    >>> params["embeddings"]["position"]["embedding"].shape
    (128, 8)
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    count = min(count, config.max_position_embeddings)
    flat = trees.flatten(params)
    flat[POSITIONS] = _first(flat[POSITIONS], count)
    config = dataclasses.replace(config, max_position_embeddings=count)
    return config, trees.unflatten(flat)


def _first(table: Any, count: int) -> Any:
    if isinstance(table, Split):
        return Split(_first(table.a, count), _first(table.b, count))
    if isinstance(table, Packed):
        shared = table.scale.shape[0] == 1
        scale = table.scale if shared else table.scale[:count]
        shape = (count, table.shape[1])
        return Packed(table.codes[:count], scale, table.bits, shape)
    return table[:count]
