"""BertAdam, the optimizer of TinyBERT, TernaryBERT and BinaryBERT, for optax.

Adam without bias correction, as BERT was pretrained with (Devlin et al. 2018,
arXiv:1810.04805; its ``optimization.py``); the clip is per tensor.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class BertAdamState(NamedTuple):
    """The moments of every parameter; no count, since nothing is corrected by it."""

    mu: Any
    nu: Any


def scale_by_bert_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-6, clip: float | None = 1.0
) -> optax.GradientTransformation:
    """Return ``m / (sqrt(v) + eps)`` of gradients whose norm is clipped one by one.

    ``g <- g min(1, clip / (|g| + 1e-6))`` for each tensor by itself, then
    ``m <- b1 m + (1 - b1) g`` and ``v <- b2 v + (1 - b2) g^2``.

    Args:
      b1: decay of the first moment.
      b2: decay of the second.
      eps: added to the root.
      clip: the largest norm of a tensor's gradient; None: any.
    """

    def init(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        return BertAdamState(zeros, jax.tree.map(jnp.zeros_like, params))

    def clipped(g):
        if clip is None:
            return g
        norm = jnp.sqrt(jnp.sum(jnp.square(g)))
        return g * jnp.minimum(1.0, clip / (norm + 1e-6))

    def update(updates, state, params=None):
        del params
        g = jax.tree.map(clipped, updates)
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, g)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, g)
        scaled = jax.tree.map(lambda m, v: m / (jnp.sqrt(v) + eps), mu, nu)
        return scaled, BertAdamState(mu, nu)

    return optax.GradientTransformation(init, update)


def bert_adam(
    learning_rate: float | Callable[[Any], Any],
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-6,
    weight_decay: float = 0.01,
    mask: Any = None,
    clip: float | None = 1.0,
) -> optax.GradientTransformation:
    """Return BertAdam: ``p <- p - rate (m / (sqrt(v) + eps) + weight_decay p)``.

    Args:
      learning_rate: the rate, or a schedule of it.
      b1: decay of the first moment.
      b2: decay of the second.
      eps: added to the root.
      weight_decay: added before the rate.
      mask: a tree of bools, or a function that makes it of the parameters: where
        weight decay applies; None: everywhere.
      clip: the largest norm of a tensor's gradient; None: any.

    >>> tx = bert_adam(0.1, weight_decay=0.0, clip=None)
    >>> w = jnp.ones(2)
    >>> updates, _ = tx.update(jnp.array([1.0, -1.0]), tx.init(w), w)
    >>> updates.round(3)  # 0.1 / sqrt(0.001) = 3.162, not 1: no bias correction
    Array([-0.316,  0.316], dtype=float32)
    """
    return optax.chain(
        scale_by_bert_adam(b1, b2, eps, clip),
        optax.add_decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
