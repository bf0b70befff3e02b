"""Width: the heads and the feed-forward neurons that a narrower student keeps.

The width of the hidden states stays, and so does the size of a head, so that all heads
together are narrower than a hidden state. A student of half the heads and neurons, once
split, has as many 1-bit weights as one of the whole width (Bai et al. 2021, BinaryBERT,
section 4.1, arXiv:2012.15701).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bitflax import trees
from bitflax.types import Batch, Params

Kept = int | Sequence[Sequence[int]]


class Importance(NamedTuple):
    """How much each head and each feed-forward neuron matters to a loss."""

    heads: Float[Any, "layers heads"]
    ffn: Float[Any, "layers neurons"]


def importance(
    loss: Callable[[Params, Batch], Any],
    params: Params,
    batches: Iterable[Batch],
    heads: int,
) -> Importance:
    """Return how much the loss would change, to first order, without each part.

    A part (a head, or a neuron of the feed-forward layer) enters the rest of the model
    through its rows ``W`` of the output matrix alone, ``y = ... + part @ W``. With a
    switch ``x = 1`` before it, ``dL/dx = sum(W * dL/dW)``: gradient times weight. The
    importance is the mean of its magnitude over the batches.

    Args:
      loss: ``(params, batch)`` to a number or a ``Mean``.
      params: the parameters of the model whose parts are judged, not quantised.
      batches: what it is judged on; a few hundred examples of the task will do.
      heads: its number of heads.

    Raises:
      ValueError: there is no batch, or the heads do not divide the matrices.

    Source: heads as Michel et al. 2019, section 2.4 (arXiv:1905.10650); neurons as Hou
    et al. 2020, DynaBERT, section 2.1 (arXiv:2004.04037), whose code adds the same sum
    over the neuron's incoming weights: for a ReLU these are the same number.
    """
    layers = _layers(params)
    head_size = _divided(params, heads)

    def value(params: Params, batch: Batch) -> Any:
        found = loss(params, batch)
        return getattr(found, "value", found)

    @jax.jit
    def judged(params: Params, batch: Batch) -> Importance:
        flat, grads = map(trees.flatten, (params, jax.grad(value)(params, batch)))

        def parts(block: str, size: int) -> jax.Array:
            found = []
            for layer in layers:
                place = f"encoder/{layer}/{block}/out/kernel"
                by_row = jnp.sum(flat[place] * grads[place], axis=1)
                found.append(jnp.sum(by_row.reshape(-1, size), axis=1))
            return jnp.abs(jnp.stack(found))

        return Importance(parts("attention", head_size), parts("ffn", 1))

    found = [jax.tree.map(np.asarray, judged(params, batch)) for batch in batches]
    if not found:
        raise ValueError("importance: there is no batch to judge by")
    return Importance(*(np.mean(part, axis=0) for part in zip(*found, strict=True)))


def take_width(
    params: Params,
    heads: Kept,
    ffn: Kept,
    importance: Importance | None = None,
    *,
    head_size: int | None = None,
) -> Params:
    """Return the parameters of a student that keeps some heads and neurons.

    Its configuration is the old one with ``num_attention_heads``,
    ``intermediate_size`` and ``head_size=old.head_width`` (``bitflax.BertConfig``);
    Hugging Face's BERT has no such shape, so that it cannot be exported.

    Args:
      params: the parameters of the wider model. Learned ranges of activations, which
        are one for all heads, come along.
      heads: how many heads each layer keeps: the most important ones, or the first
        where no importance is given; or which, for each layer.
      ffn: the same of the neurons.
      importance: what ``importance`` returned; it says the number of heads too.
      head_size: the width of a head, where no importance is given.

    Returns:
      The tree; what is kept stands in its old order, whatever the order of the
      arguments.

    Raises:
      ValueError: a layer has no such head or neuron or no more than are kept, keeps
        another number than the others, or nothing says how wide a head is.

    >>> layer = {"attention": {n: {"kernel": jnp.ones((2, 4)), "bias": jnp.ones(4)}
    ...                        for n in ("query", "key", "value")},
    ...          "ffn": {"in": {"kernel": jnp.ones((2, 6)), "bias": jnp.ones(6)}}}
    >>> layer["attention"]["out"] = {"kernel": jnp.ones((4, 2))}
    >>> layer["ffn"]["out"] = {"kernel": jnp.ones((6, 2))}
    >>> half = take_width({"encoder": {"layer_0": layer}}, 1, 3, head_size=2)
    >>> half["encoder"]["layer_0"]["attention"]["out"]["kernel"].shape
    (2, 2)
    """
    flat, layers = trees.flatten(params), _layers(params)
    if importance is not None:
        head_size = _divided(params, np.shape(importance.heads)[1])
    if head_size is None:
        raise ValueError("take_width: give importance, or head_size")
    whole, neurons = (_rows(params, block) for block in ("attention", "ffn"))
    if whole % head_size:
        raise ValueError(f"head_size {head_size} does not divide all heads' {whole}")
    said = importance or Importance(None, None)
    by_head = _chosen("heads", heads, len(layers), whole // head_size, said.heads)
    by_neuron = _chosen("ffn", ffn, len(layers), neurons, said.ffn)
    for layer, own_heads, own_neurons in zip(layers, by_head, by_neuron, strict=True):
        columns = (own_heads[:, None] * head_size + np.arange(head_size)).reshape(-1)
        for path, leaf in flat.items():
            for block, kept in (("attention", columns), ("ffn", own_neurons)):
                place = f"encoder/{layer}/{block}/"
                if path.startswith(place):
                    flat[path] = _taken(path.removeprefix(place), leaf, kept)
    return trees.unflatten(flat)


def _layers(params: Params) -> list[str]:
    return [f"layer_{i}" for i in range(len(params["encoder"]))]


def _rows(params: Params, block: str) -> int:
    """Return the width inside attention or feed-forward, as the first layer has it."""
    return params["encoder"]["layer_0"][block]["out"]["kernel"].shape[0]


def _divided(params: Params, heads: int) -> int:
    whole = _rows(params, "attention")
    if whole % heads:
        raise ValueError(f"{heads} heads do not divide the attention's width {whole}")
    return whole // heads


def _chosen(
    name: str, kept: Kept, layers: int, whole: int, scores: Any
) -> list[np.ndarray]:
    """Return the indices that each layer keeps, ascending."""
    if scores is not None and np.shape(scores) != (layers, whole):
        raise ValueError(
            f"importance.{name}: expected {(layers, whole)}, found {np.shape(scores)}"
        )
    if isinstance(kept, int):
        order = np.zeros((layers, whole)) if scores is None else -np.asarray(scores)
        count, best = kept, np.argsort(order, axis=1, kind="stable")
        found = [np.sort(own[: max(count, 0)]) for own in best]
    else:
        count = len(kept[0]) if kept else 0
        found = [np.unique(np.asarray(own, int)) for own in kept]
    if len(found) != layers or any(len(own) != count for own in found):
        raise ValueError(
            f"{name}: expected as many different indices for each of {layers} layers, "
            f"at most {whole}"
        )
    if not count or any(own[0] < 0 or own[-1] >= whole for own in found):
        raise ValueError(f"{name}: expected 1 to {whole} of 0 to {whole - 1}")
    return found


def _taken(name: str, leaf: Any, kept: np.ndarray) -> Any:
    """Return the kept part of a leaf of attention or feed-forward."""
    inner, _, kind = name.partition("/")
    if inner == "norm" or kind not in ("kernel", "bias") or name == "out/bias":
        return leaf
    axis = 0 if inner == "out" else -1
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x).take(kept, axis)), leaf)
