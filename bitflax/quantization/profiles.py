"""Named ways to quantise: which weights and which activations, as in the papers.

Weights: a tuple of (path regex, quantizer) for ``bitflax.quantize``. Activations: a
tuple of (site regex, quantizer) for ``bitflax.bert``, all of which learn: their first
parameters come from ``bitflax.init_act``. XTC's weights are in ``bitflax.quantization.rules``.
"""

import functools
from typing import Any

from bitflax.quantization import learned_activations, quantizers
from bitflax.quantization.rules import MATRICES, WORD_TABLE, Rules

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
    wide = quantizers.asymmetric(bits, axis=None, levels="widened")
    return _sites(
        learned_activations.clipped(quantizers.symmetric(bits, axis=None)),
        learned_activations.clipped(wide),
    )


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
