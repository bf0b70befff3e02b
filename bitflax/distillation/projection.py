"""A narrower student's hidden states in the teacher's width: TinyBERT's ``fit_dense``.

One matrix for all layers, learnt with the student and dropped when it is packed.
Jiao et al. 2019 (arXiv:1909.10351), eq. 8: ``MSE(H_student W, H_teacher)``.
"""

import jax
import jax.numpy as jnp

from bitflax import model
from bitflax.types import ApplyFn, Batch, Outputs, Params

PROJECTION = "projection"


def projected(apply: ApplyFn, always: bool = False) -> ApplyFn:
    """Return the model whose ``hidden`` [batch, seq, width] are ``hidden @ W + b``.

    ``W`` and ``b`` are ``projection/kernel`` [width, teacher's width] and
    ``projection/bias`` of the parameters. Logits and scores stay as they are.

    Args:
      apply: the student.
      always: project even where the widths agree, as TinyBERT's code does; by default
        the hidden states stay as they are there.

    Returns:
      A model that takes parameters with or without a projection: without one it is
      ``apply``.

    >>> def apply(params, batch, rng=None):
    ...     return Outputs(None, (batch["x"],), ())
    >>> batch = {"x": jnp.ones((1, 2, 3))}
    >>> params = add_projection({}, jax.random.key(0), 3, 5)
    >>> projected(apply)(params, batch).hidden[0].shape
    (1, 2, 5)
    """

    def call(params: Params, batch: Batch, rng: jax.Array | None = None) -> Outputs:
        own = {name: part for name, part in params.items() if name != PROJECTION}
        out = apply(own, batch, rng)
        if PROJECTION not in params:
            return out
        kernel, bias = (model.dense(params[PROJECTION][n]) for n in ("kernel", "bias"))
        if kernel.shape[0] == kernel.shape[1] and not always:
            return out
        return out._replace(hidden=tuple(_linear(x, kernel, bias) for x in out.hidden))

    return call


def _linear(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    # One product over all tokens, as the model's own.
    y = x.reshape(-1, x.shape[-1]) @ kernel + bias[None]
    return y.reshape(*x.shape[:-1], kernel.shape[1])


def add_projection(
    params: Params, key: jax.Array, student_width: int, teacher_width: int
) -> Params:
    """Return the parameters with a fresh projection: normal(0, 0.02), bias 0, float32.

    >>> params = add_projection({}, jax.random.key(0), 3, 5)
    >>> params["projection"]["kernel"].shape, params["projection"]["bias"].shape
    ((3, 5), (5,))
    """
    kernel = 0.02 * jax.random.normal(key, (student_width, teacher_width), jnp.float32)
    bias = jnp.zeros(teacher_width, jnp.float32)
    return {**params, PROJECTION: {"kernel": kernel, "bias": bias}}
