"""The names of a BERT's parameters here and at Hugging Face: one table, read both ways.

A linear weight is [out, in] there and a kernel [in, out] here.
"""

import re
from typing import NamedTuple

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


def entries(config: BertConfig) -> list[Entry]:
    """Return the table of names for a configuration, in the order of the layers.

    >>> entries(BertConfig(num_hidden_layers=1))[-2]
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


def canonical(name: str) -> str:
    """Return a tensor's name as transformers writes it for a classifier today.

    >>> canonical("module.encoder.layer.0.output.LayerNorm.gamma")
    'bert.encoder.layer.0.output.LayerNorm.weight'
    """
    while name.startswith(_WRAPPERS):
        name = name.split(".", 1)[1]
    if name.startswith(_BODY):
        name = f"bert.{name}"
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)
