"""What a student takes of its teacher: layers, heads and neurons, positions."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from bitflax import trees
from bitflax.model import POSITIONS, Packed, Split
from bitflax.types import Batch, BertConfig, Params

LayerPairs = tuple[tuple[int, int], ...]


def uniform_layers(teacher: int, student: int) -> tuple[int, ...]:
    """Return the last layer of each of ``student`` equal runs of the teacher's.

    Layer ``m`` (from 0) of the student learns from ``(m + 1) teacher / student - 1``.

    Args:
      teacher: the teacher's number of layers.
      student: the student's; where it does not divide, each run has
        ``teacher // student`` layers, counted from the first, as XTC's code.

    Raises:
      ValueError: the student is deeper than the teacher, or has no layer.

    Source: TinyBERT's uniform mapping, section 3.1 (arXiv:1909.10351).

    >>> uniform_layers(12, 4), uniform_layers(6, 3)
    ((2, 5, 8, 11), (1, 3, 5))
    """
    if not 1 <= student <= teacher:
        raise ValueError(f"a student of {student} layers from a teacher of {teacher}")
    run = teacher // student
    return tuple((m + 1) * run - 1 for m in range(student))


def layer_pairs(
    layers: Sequence[int], *, hidden: bool = False, embeddings: str = "first"
) -> LayerPairs:
    """Return (student, teacher) index pairs for a student that took ``layers``.

    Args:
      layers: the teacher's layer, from 0, of each layer of the student.
      hidden: pairs of hidden states, where 0 is the embeddings' output and layer ``m``
        puts out ``m + 1``; else pairs of layers, for the attention scores.
      embeddings: the student's embeddings learn from the teacher's embeddings
        (``"first"``), or from hidden state ``layers[0] - 1`` (``"first-1"``, as XTC's
        code, where Skip-BERT5 pairs 0 with 1).

    Raises:
      ValueError: there is no layer, a layer is negative, or ``"first-1"`` gives a
        negative index, which in XTC's code silently takes the *last* hidden state.

    >>> layer_pairs((1, 3, 5))
    ((0, 1), (1, 3), (2, 5))
    >>> layer_pairs((1, 3, 5), hidden=True)
    ((0, 0), (1, 2), (2, 4), (3, 6))
    """
    if embeddings not in ("first", "first-1"):
        raise ValueError(f"embeddings must be 'first' or 'first-1', not {embeddings!r}")
    _check_layers(layers)
    if not hidden:
        return tuple(enumerate(layers))
    first = 0 if embeddings == "first" else layers[0] - 1
    if first < 0:
        raise ValueError(
            f"embeddings='first-1' with first layer {layers[0]} asks for hidden state "
            "-1; use embeddings='first'"
        )
    return ((0, first), *((m + 1, layer + 1) for m, layer in enumerate(layers)))


def _check_layers(layers: Any) -> None:
    found = [] if layers is None else [*layers]
    whole = [isinstance(i, int | np.integer) and type(i) is not bool for i in found]
    if not found or not all(whole) or min(found) < 0:
        raise ValueError(f"layers must be at least one index from 0, not {layers!r}")


def take_layers(params: Params, layers: Sequence[int]) -> Params:
    """Return the parameters of a student made of these encoder layers of a teacher.

    Embeddings, pooler and classifier come along. Nothing is copied: the leaves are
    the teacher's own (``bitflax.init_state`` copies).

    Args:
      params: the teacher's parameters.
      layers: its layers, from 0, in the student's order.

    Raises:
      ValueError: the teacher has no such layer.

    Source: XTC, section 4 (arXiv:2206.01859); Sun et al. 2019 (arXiv:1908.09355).

    >>> tree = {"encoder": {"layer_0": "a", "layer_1": "b"}, "pooler": "p"}
    >>> take_layers(tree, (1,))
    {'encoder': {'layer_0': 'b'}, 'pooler': 'p'}
    """
    encoder = params["encoder"]
    _check_layers(layers)
    for layer in layers:
        if f"layer_{layer}" not in encoder:
            raise ValueError(f"layer {layer}: the teacher has {len(encoder)} layers")
    taken = {f"layer_{m}": encoder[f"layer_{layer}"] for m, layer in enumerate(layers)}
    return {k: taken if k == "encoder" else v for k, v in params.items()}


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
    Hugging Face's BERT has no such shape, so that it cannot be exported. A student of
    half the heads and neurons, once split, has as many 1-bit weights as one of the
    whole width (Bai et al. 2021, BinaryBERT, section 4.1, arXiv:2012.15701).

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
    return jax.tree.map(lambda x: jnp.take(x, kept, axis), leaf)


def take_positions(
    config: BertConfig, params: Params, count: int
) -> tuple[BertConfig, Params]:
    """Return a model that has the first ``count`` positions, and their very numbers.

    Longer texts than that are then refused, or cut, where a model with all positions
    would run on rows that its training did not reach.

    Args:
      config: the model's shape.
      params: its parameters, dense or packed; the others are shared, not copied.
      count: positions to keep; all of them where there are fewer.

    Raises:
      ValueError: ``count`` is not positive.

    >>> import jax.numpy as jnp
    >>> params = {"embeddings": {"position": {"embedding": jnp.ones((512, 8))}}}
    >>> config, params = take_positions(BertConfig(), params, 128)
    >>> config.max_position_embeddings
    128
    >>> params["embeddings"]["position"]["embedding"].shape
    (128, 8)
    """
    if count < 1:
        raise ValueError(f"count must be at least 1, not {count}")
    count = min(count, config.max_position_embeddings)
    flat = trees.flatten(params)
    flat[POSITIONS] = _first(flat[POSITIONS], count)
    config = dataclasses.replace(config, max_position_embeddings=count)
    return config, trees.unflatten(flat)


def _first(table: Any, count: int) -> Any:
    if isinstance(table, Split):
        return Split(_first(table.a, count), _first(table.b, count))
    if isinstance(table, Packed):
        shared = table.scale.shape[0] == 1
        scale = table.scale if shared else table.scale[:count]
        shape = (count, table.shape[1])
        return Packed(table.codes[:count], scale, table.bits, shape)
    return table[:count]
