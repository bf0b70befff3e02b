"""The names of a BERT's parameters here and at Hugging Face: one table, read both ways.

A linear weight is [out, in] there and a kernel [in, out] here.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bitflax.errors import ConfigError
from bitflax.model import leaves, sites
from bitflax.types import BertConfig

# (module here, module there, shape of its weight there); V vocabulary, P positions,
# T token types, D width, A all heads together, F feed-forward, C classes.
_TABLES = (
    ("embeddings/word", "bert.embeddings.word_embeddings", "VD"),
    ("embeddings/position", "bert.embeddings.position_embeddings", "PD"),
    ("embeddings/token_type", "bert.embeddings.token_type_embeddings", "TD"),
)
_LAYER = (
    ("attention/query", "attention.self.query", "AD"),
    ("attention/key", "attention.self.key", "AD"),
    ("attention/value", "attention.self.value", "AD"),
    ("attention/out", "attention.output.dense", "DA"),
    ("attention/norm", "attention.output.LayerNorm", "D"),
    ("ffn/in", "intermediate.dense", "FD"),
    ("ffn/out", "output.dense", "DF"),
    ("ffn/norm", "output.LayerNorm", "D"),
)
HEADS = (("pooler", "bert.pooler.dense", "DD"), ("classifier", "classifier", "CD"))

# Buffers, and the heads of other tasks.
IGNORED = re.compile(
    r"bert\.embeddings\.(position_ids|token_type_ids)|cls\..*|qa_outputs\..*"
)
_WRAPPERS = ("_orig_mod.", "module.", "model.")
_BODY = ("embeddings.", "encoder.", "pooler.")


class Entry(NamedTuple):
    """One parameter: its path here, its name there, its shape there."""

    path: str
    name: str
    shape: tuple[int, ...]

    @property
    def transposed(self) -> bool:
        """Whether it is [out, in] there and [in, out] here."""
        return self.path.endswith("/kernel")


def parameter_entries(config: BertConfig) -> list[Entry]:
    """Return the table of names for a configuration, in the order of the layers.

    >>> parameter_entries(BertConfig(num_hidden_layers=1))[-2]
    Entry(path='classifier/kernel', name='classifier.weight', shape=(2, 768))
    """
    sizes = {
        "V": config.vocab_size,
        "P": config.max_position_embeddings,
        "T": config.type_vocab_size,
        "D": config.hidden_size,
        "A": config.num_attention_heads * config.head_width,
        "F": config.intermediate_size,
        "C": config.num_labels,
    }
    modules = [*_TABLES, ("embeddings/norm", "bert.embeddings.LayerNorm", "D")]
    for i in range(config.num_hidden_layers):
        modules += [
            (f"encoder/layer_{i}/{here}", f"bert.encoder.layer.{i}.{there}", dims)
            for here, there, dims in _LAYER
        ]
    table = []
    for here, there, dims in (*modules, *HEADS):
        shape = tuple(sizes[dim] for dim in dims)
        if here.startswith("embeddings/") and len(dims) == 2:
            table.append(Entry(f"{here}/embedding", f"{there}.weight", shape))
            continue
        leaf = "scale" if len(dims) == 1 else "kernel"
        table.append(Entry(f"{here}/{leaf}", f"{there}.weight", shape))
        table.append(Entry(f"{here}/bias", f"{there}.bias", shape[:1]))
    return table


def canonical_name(name: str) -> str:
    """Return a tensor's name as transformers writes it for a classifier today.

    >>> canonical_name("module.encoder.layer.0.output.LayerNorm.gamma")
    'bert.encoder.layer.0.output.LayerNorm.weight'
    """
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    if name.startswith(_BODY):
        name = f"bert.{name}"
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


POSITIONS = "embeddings/position/embedding"
PROJECTION = ("projection/kernel", "projection/bias")


def extra_paths(config: BertConfig) -> frozenset[str]:
    """Return the paths of parameters that Hugging Face's BERT does not have.

    >>> "pooler/input" in extra_paths(BertConfig(num_hidden_layers=1))
    True
    """
    return frozenset((*sites.site_names(config), *PROJECTION))


def without_extras(flat: Mapping[str, Any]) -> dict[str, Any]:
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


def named_halves(entry: Entry, leaf: Any) -> list[tuple[Entry, Any]]:
    """Return the leaf by its entry in the table of names, or its halves by theirs."""
    if not isinstance(leaf, leaves.Split):
        return [(entry, leaf)]
    return list(zip(half_entries(entry), (leaf.a, leaf.b), strict=True))


def half_entries(entry: Entry) -> tuple[Entry, Entry]:
    """Return the entries of the two halves of a matrix.

    >>> half_entries(Entry("pooler/kernel", "bert.pooler.dense.weight", (2, 2)))[1]
    Entry(path='pooler/kernel', name='bert.pooler.dense_2.weight', shape=(2, 2))
    """
    module, _, kind = entry.name.rpartition(".")
    return (
        entry._replace(name=f"{module}_1.{kind}"),
        entry._replace(name=f"{module}_2.{kind}"),
    )


def entries_in(entry: Entry, state: Mapping[str, np.ndarray]) -> tuple[Entry, ...]:
    """Return the entries by which a parameter is there: one, two halves, or none."""
    for way in ((entry,), half_entries(entry)):
        if all(part.name in state for part in way):
            return way
    return ()


def parameter_shapes(config: BertConfig, act: Any = None) -> dict[str, tuple[int, ...]]:
    """Return ``{path: shape}`` of every parameter, what activations learn last.

    Args:
      config: the model's shape.
      act: its activation quantizers; those that learn have a parameter at each site.

    Raises:
      ValueError: a rule of ``act`` matches no site.

    >>> parameter_shapes(BertConfig())["encoder/layer_0/ffn/in/kernel"]
    (768, 3072)
    """
    shapes = {
        entry.path: entry.shape[::-1] if entry.transposed else entry.shape
        for entry in parameter_entries(config)
    }
    return shapes | sites.learned_shapes(act, config)
