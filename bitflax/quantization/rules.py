"""Rules: which parameter gets which quantizer.

A profile is a tuple of (path regex, quantizer); the first regex that matches a whole
path decides, and what no rule matches stays as it is.
"""

import functools
from collections.abc import Sequence
from typing import Any

from bitflax import trees
from bitflax.model import leaves
from bitflax.quantization import quantizers
from bitflax.types import Params, Quantizer

Rules = Sequence[tuple[str, Quantizer]]


MATRICES = r"encoder/layer_\d+/(attention/(query|key|value|out)|ffn/(in|out))/kernel"


WORD_TABLE = r"embeddings/word/embedding"


ACT_PARAMS = r".*/(input|output|probs)"
"""What activation quantizers learn: the path of a parameter is its site."""


def quantize(params: Params, rules: Rules, *, lazy: bool = False) -> Params:
    """Return the parameters with every leaf that a rule matches quantised.

    The halves of a ``Split`` are quantised each by itself.

    Args:
      params: a parameter tree of latent float weights.
      rules: pairs (regex of a whole path, quantizer); first match wins.
      lazy: hand a matrix over as a leaf that is quantised when it is used: a kernel,
        whose integers a model may then multiply exactly; and a table, row by row after
        the look-up, where its quantizer scales each row by itself. The same numbers,
        a table's at the cost of the rows that a batch uses.

    Raises:
      ValueError: a rule matches no path; the message holds its text.

    >>> import jax.numpy as jnp
    >>> tree = {"ffn": {"kernel": jnp.array([1.0, -3.0]), "bias": jnp.array([0.5])}}
    >>> quantize(tree, [("ffn/kernel", quantizers.binarize)])["ffn"]["kernel"]
    Array([ 2., -2.], dtype=float32)
    """
    flat = trees.flatten(params)
    for path, quantizer in trees.match(rules, flat).items():
        flat[path] = _quantised(path, flat[path], quantizer, lazy)
    return trees.unflatten(flat)


def _quantised(path: str, leaf: Any, quantizer: Quantizer, lazy: bool) -> Any:
    if isinstance(leaf, leaves.Split):
        halves = (_quantised(path, half, quantizer, lazy) for half in (leaf.a, leaf.b))
        return leaves.Split(*halves)
    table = path.startswith("embeddings/")
    if lazy and (by_row(quantizer) if table else path.endswith("/kernel")):
        return leaves.Lazy(leaf, quantizer)
    return quantizer(leaf)


def by_row(quantizer: Quantizer) -> bool:
    """Whether a quantizer surely scales each row of a table by itself.

    >>> by_row(functools.partial(quantizers.binarize, axis=-1))
    True
    """
    if getattr(quantizer, "groups", None):  # a group runs through all rows
        return False
    axis = None
    if isinstance(quantizer, quantizers.symmetric | quantizers.asymmetric):
        axis = quantizer.axis
    elif isinstance(quantizer, functools.partial) and quantizer.func in (
        quantizers.binarize,
        quantizers.ternarize,
    ):
        axis = quantizer.keywords.get("axis")
    return axis in (-1, (-1,))


def bits_of(quantizer: Quantizer) -> int | None:
    """Return the bits of a quantizer's values; None where it does not say.

    >>> bits_of(functools.partial(quantizers.binarize, axis=0))
    1
    """
    while isinstance(quantizer, functools.partial):
        quantizer = quantizer.func
    return getattr(quantizer, "bits", None)


def _profile(quantizer: Any, per: str) -> Rules:
    axes = {"tensor": None, "channel": 0}
    if per not in axes:
        raise ValueError(f"per must be 'tensor' or 'channel', not {per!r}")
    return (
        (MATRICES, functools.partial(quantizer, axis=axes[per])),
        (WORD_TABLE, functools.partial(quantizer, axis=-1)),
    )


def xtc_1bit(per: str = "tensor") -> Rules:
    """Return XTC's 1-bit rules: the encoder's matrices and the word embedding.

    Position and token-type embeddings, pooler, classifier, biases and LayerNorm stay
    whole. The word embedding has one scale a row.

    Args:
      per: one scale a ``"tensor"``, as the paper, or an output ``"channel"``.

    Source: XTC's configuration ds_config_W1A8 (arXiv:2206.01859).

    >>> [regex for regex, quantizer in xtc_1bit()][1]
    'embeddings/word/embedding'
    """
    return _profile(quantizers.binarize, per)


def xtc_2bit(per: str = "tensor") -> Rules:
    """Return XTC's 2-bit (ternary) rules; what is quantised is as in ``xtc_1bit``.

    Source: XTC's configuration ds_config_W2A8 (arXiv:2206.01859).

    >>> bits_of(xtc_2bit()[0][1])
    2
    """
    return _profile(quantizers.ternarize, per)
