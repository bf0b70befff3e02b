"""What our stages hold that Hugging Face's BERT does not: a file beside its weights.

A stage's folder is Hugging Face's, with latent float32 weights. What that BERT has no
place for lies in ``bitflax_extra.safetensors``, and ``load_pretrained`` reads it:

- the halves of a split matrix, [out, in] as the whole would be, by BinaryBERT's names:
  ``bert.encoder.layer.0.attention.self.query_1.weight`` and ``query_2.weight``;
- what activation quantizers learned, by the path of the site:
  ``encoder/layer_0/attention/query/input``;
- ``projection/kernel`` and ``projection/bias``, as they are here.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitflax.errors import ConfigError
from bitflax.model import hf_weights, leaves, names, sites
from bitflax.types import BertConfig

FILE = "bitflax_extra.safetensors"


PROJECTION = ("projection/kernel", "projection/bias")


def paths(config: BertConfig) -> frozenset[str]:
    """Return the paths of parameters that Hugging Face's BERT does not have.

    >>> "pooler/input" in paths(BertConfig(num_hidden_layers=1))
    True
    """
    return frozenset((*sites.sites(config), *PROJECTION))


def read(folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a folder's extra file; none where there is none."""
    path = folder / FILE
    return hf_weights.read_file(path) if path.is_file() else {}


def plain(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters that Hugging Face's BERT has; the projection is dropped.

    Raises:
      ConfigError: a matrix is split, which no BERT there computes.
    """
    for path, leaf in flat.items():
        if isinstance(leaf, leaves.Split):
            raise ConfigError(
                path,
                "is split into two halves, which Hugging Face's BERT does not have",
                fix="pack() the student; or give merge(params), the sums of its latent "
                "halves, which without their 1-bit rounding compute something else",
            )
    return {path: leaf for path, leaf in flat.items() if path not in PROJECTION}


def named(entry: names.Entry, leaf: Any) -> list[tuple[names.Entry, Any]]:
    """Return the leaf by its entry in the table of names, or its halves by theirs."""
    if not isinstance(leaf, leaves.Split):
        return [(entry, leaf)]
    return list(zip(halves(entry), (leaf.a, leaf.b), strict=True))


def halves(entry: names.Entry) -> tuple[names.Entry, names.Entry]:
    """Return the entries of the two halves of a matrix.

    >>> halves(names.Entry("pooler/kernel", "bert.pooler.dense.weight", (2, 2)))[1]
    Entry(path='pooler/kernel', name='bert.pooler.dense_2.weight', shape=(2, 2))
    """
    module, _, kind = entry.name.rpartition(".")
    return (
        entry._replace(name=f"{module}_1.{kind}"),
        entry._replace(name=f"{module}_2.{kind}"),
    )


def owned(
    entry: names.Entry, state: Mapping[str, np.ndarray]
) -> tuple[names.Entry, ...]:
    """Return the entries by which a parameter is there: one, two halves, or none."""
    for way in ((entry,), halves(entry)):
        if all(part.name in state for part in way):
            return way
    return ()
