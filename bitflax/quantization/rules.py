"""Rules: which parameter gets which quantizer.

A profile is a tuple of (path regex, quantizer); the first regex that matches a whole
path decides, and what no rule matches stays as it is.
"""

import functools
from collections.abc import Sequence
from typing import Any

from bitflax import model, trees
from bitflax.quantization import learned_activations, quantizers
from bitflax.types import Params, Quantizer

Rules = Sequence[tuple[str, Quantizer]]

MATRICES = r"encoder/layer_\d+/(attention/(query|key|value|out)|ffn/(in|out))/kernel"
WORD_TABLE = r"embeddings/word/embedding"


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
    if isinstance(leaf, model.Split):
        halves = (_quantised(path, half, quantizer, lazy) for half in (leaf.a, leaf.b))
        return model.Split(*halves)
    table = path.startswith("embeddings/")
    if lazy and (quantizers.by_row(quantizer) if table else path.endswith("/kernel")):
        return model.Lazy(leaf, quantizer)
    return quantizer(leaf)


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

    >>> quantizers.bits_of(xtc_2bit()[0][1])
    2
    """
    return _profile(quantizers.ternarize, per)


POOLER = r"pooler/kernel"


def _with_pooler(quantizer: Any) -> Rules:
    return (
        (MATRICES, quantizer),
        (POOLER, quantizer),
        (WORD_TABLE, functools.partial(quantizer, axis=-1)),
    )


def binarybert_1bit() -> Rules:
    """Return BinaryBERT's 1-bit rules: XTC's, and the pooler.

    One scale a matrix; the word embedding has one a row. Position and token-type
    embeddings, classifier, biases and LayerNorm stay whole.

    Source: Bai et al. 2021 (arXiv:2012.15701).

    >>> [regex for regex, quantizer in binarybert_1bit()][1]
    'pooler/kernel'
    """
    return _with_pooler(quantizers.binarize)


def binarybert_2bit() -> Rules:
    """Return the rules of the ternary student that BinaryBERT splits.

    What is quantised is as in ``binarybert_1bit``.

    Source: Bai et al. 2021 (arXiv:2012.15701).
    """
    return _with_pooler(quantizers.ternarize)


def ternarybert_2bit() -> Rules:
    """Return TernaryBERT's rules: those of ``binarybert_2bit``, weights clipped at 2.5.

    The paper's TWN way: one scale a matrix, one a row of the word embedding.

    Source: Zhang et al. 2020 (arXiv:2009.12812).

    >>> ternarybert_2bit()[0][1].keywords
    {'clip': 2.5}
    """
    return _with_pooler(functools.partial(quantizers.ternarize, clip=2.5))


def _sites(signed: Any, unsigned: Any) -> Rules:
    """Attention's probabilities and what leaves the feed-forward's activation function
    are one-sided; all other sites are around zero."""
    return (
        (r".*/attention/probs", unsigned),
        (r".*/ffn/out/input", unsigned),
        (r".*", signed),
    )


def binarybert_act(bits: int = 8) -> Rules:
    """Return BinaryBERT's activations, which clip at an end that learns.

    All sites, each with one range for the whole batch, padding too, so that a value
    depends on what it is batched with: inputs of all matrices, the pooler's too, and Q,
    K and V symmetric; probabilities and the feed-forward's second input asymmetric.
    Clips start at -2.5 and 2.5.

    Source: Bai et al. 2021 (arXiv:2012.15701); the clip is PACT's (arXiv:1805.06085).

    >>> binarybert_act()[0][1].quantizer.bits
    8
    """
    return _clipped_sites(bits)


def ternarybert_act(bits: int = 8) -> Rules:
    """Return TernaryBERT's activations: those of ``binarybert_act``, whose clips stay.

    Source: Zhang et al. 2020 (arXiv:2009.12812).

    >>> ternarybert_act()[0][1].fixed
    True
    """
    return _clipped_sites(bits, fixed=True)


def _clipped_sites(bits: int, fixed: bool = False) -> Rules:
    wide = quantizers.asymmetric(bits, axis=None, levels="widened")
    narrow = quantizers.symmetric(bits, axis=None)
    clipped = functools.partial(learned_activations.clipped, fixed=fixed)
    return _sites(clipped(narrow), clipped(wide))


def lsq_act(bits: int = 4) -> Rules:
    """Return activations of learned steps, at the sites of ``binarybert_act``.

    Source: BinaryBERT's 4-bit students (arXiv:2012.15701); LSQ is arXiv:1902.08153.
    """
    return _sites(
        learned_activations.lsq(bits), learned_activations.lsq(bits, signed=False)
    )


def elastic_act(bits: int = 1) -> Rules:
    """Return activations of elastic binarisation, at the sites of ``binarybert_act``.

    Where the unsigned kind stands, negative values become 0: with ReLU
    (``BertConfig.hidden_act``) there are none.

    Source: BiT, Liu et al. 2022 (arXiv:2205.13016).
    """
    return _sites(
        learned_activations.elastic(bits),
        learned_activations.elastic(bits, signed=False),
    )
