"""A stage's optimizer: AdamW or BertAdam, its rates, and what is frozen."""

import dataclasses
import functools
import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bitflax import model, trees
from bitflax.types import Optim, Params, check_count


def learning_rate(optim: Optim, steps: int) -> optax.Schedule:
    """Return the rate at each step: from 0 up to ``lr``, then down as it says.

    Raises:
      ValueError: a setting is out of range, or there are no steps.

    >>> rate = learning_rate(Optim(lr=1.0, warmup=0.1), 100)
    >>> [float(rate(i)) for i in (0, 10, 55, 100)]
    [0.0, 1.0, 0.5, 0.0]
    """
    _check_ranges(optim)
    assert optim.lr is not None  # by then
    check_count("steps", steps)
    warm = round(optim.warmup * steps)
    rest = max(steps - warm, 1)
    after = {
        "linear": optax.linear_schedule(optim.lr, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(optim.lr, rest),
        "constant": optax.constant_schedule(optim.lr),
    }
    rise = optax.linear_schedule(0.0, optim.lr, max(warm, 1))
    return optax.join_schedules([rise, after[optim.schedule]], [warm])


def _check_ranges(optim: Optim) -> None:
    for field, expected in optim.out_of_range():
        found = getattr(optim, field)
        raise ValueError(f"Optim.{field}: expected {expected}, found {found!r}")


def _by_path(choose: Callable[[str], Any]) -> Callable[[Params], Any]:
    """Return a function of parameters: the tree of ``choose(path)``, leaf by leaf.

    What lies inside a leaf, as the halves of a matrix do, has the path of the leaf.
    """

    def choose_at(entries, _):
        keys = (e.key for e in entries if isinstance(e, jax.tree_util.DictKey))
        return choose("/".join(map(str, keys)))

    return functools.partial(jax.tree_util.tree_map_with_path, choose_at)


def _decays(path: str) -> bool:
    """Whether weight decay applies: not to biases, LayerNorm, activations' clips."""
    names = path.split("/")
    return names[-1] != "bias" and "norm" not in names and _group(path) != "act"


def _group(path: str) -> str:
    return "act" if re.fullmatch(model.ACT_PARAMS, path) else "weights"


def _rates(optim: Optim, steps: int) -> optax.GradientTransformation:
    """Return the rates of weights and of activations' clips and steps."""

    def scale(lr: float | None) -> optax.GradientTransformation:
        rate = learning_rate(dataclasses.replace(optim, lr=lr), steps)
        return optax.scale_by_learning_rate(rate)

    both: Any = {"weights": scale(optim.lr), "act": scale(optim.act_lr)}
    return optax.multi_transform(both, _by_path(_group))


def make_optimizer(optim: Optim, steps: int) -> optax.GradientTransformation:
    """Return AdamW or BertAdam with warm-up and decay.

    AdamW's gradients are clipped by their global norm, BertAdam's tensor by tensor.
    What activation quantizers learn has the rate ``act_lr`` and no weight decay.
    Frozen parameters get no update and no optimizer state, nor count in the norm.

    Args:
      optim: the settings.
      steps: the number of steps in the whole stage.

    Raises:
      ValueError: a setting is out of range, or there are no steps; at ``init``, a
        ``frozen`` regex matches no parameter, or all of them together match every one.

    Source: Loshchilov & Hutter 2019 (arXiv:1711.05101), as XTC trains (no decay of
    biases and LayerNorm, bias correction); ``bitflax.training.optimizer``.
    """
    _check_ranges(optim)
    b1, b2, eps, clip = optim.b1, optim.b2, optim.eps, optim.clip
    norm = optax.clip_by_global_norm(clip) if clip else optax.identity()
    kinds = {
        "adamw": optax.chain(norm, optax.scale_by_adam(b1, b2, eps)),
        "bertadam": scale_by_bert_adam(b1, b2, eps, clip),
    }
    trained = optax.chain(
        kinds[optim.kind],
        optax.add_decayed_weights(optim.weight_decay, _by_path(_decays)),
        _rates(optim, steps),
    )
    if not optim.frozen:
        return trained

    def label(params: Params) -> Params:
        held = _frozen(optim, flat := trees.flatten(params))
        return trees.unflatten({p: "frozen" if p in held else "trained" for p in flat})

    both: Any = {"trained": trained, "frozen": optax.set_to_zero()}
    return optax.multi_transform(both, label)


def stop_frozen(params: Params, optim: Optim) -> Params:
    """Return the parameters, with no gradient through those that are frozen.

    Their gradients are then neither computed nor part of what is logged as the norm.

    >>> tree = {"norm": {"bias": jnp.ones(2)}, "out": {"bias": jnp.ones(2)}}
    >>> def total(tree):
    ...     return sum(jnp.sum(x) for x in jax.tree.leaves(tree))
    >>> optim = Optim(frozen=("norm/.*",))
    >>> grads = jax.grad(lambda tree: total(stop_frozen(tree, optim)))(tree)
    >>> grads["norm"]["bias"], grads["out"]["bias"]
    (Array([0., 0.], dtype=float32), Array([1., 1.], dtype=float32))
    """
    flat = trees.flatten(params)
    stopped = {path: jax.lax.stop_gradient(flat[path]) for path in _frozen(optim, flat)}
    return trees.unflatten(flat | stopped)


def _frozen(optim: Optim, flat: Collection[str]) -> Collection[str]:
    frozen = trees.match([(regex, True) for regex in optim.frozen], flat)
    if len(frozen) == len(flat):
        raise ValueError("frozen: it matches every parameter, so nothing is trained")
    return frozen


class BertAdamState(NamedTuple):
    """The moments of every parameter; no count, since nothing is corrected by it."""

    mu: Any
    nu: Any


def scale_by_bert_adam(
    b1: float, b2: float, eps: float, clip: float | None
) -> optax.GradientTransformation:
    """Return ``m / (sqrt(v) + eps)`` of gradients whose norm is clipped one by one.

    ``g <- g min(1, clip / (|g| + 1e-6))`` for each tensor by itself, then
    ``m <- b1 m + (1 - b1) g`` and ``v <- b2 v + (1 - b2) g^2``.
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

    Adam without bias correction, as BERT was pretrained with (Devlin et al. 2018,
    arXiv:1810.04805; its ``optimization.py``) and as TinyBERT, TernaryBERT and
    BinaryBERT train; the clip is per tensor.

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
