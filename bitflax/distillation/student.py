"""Depth: which layers of a teacher a student takes, and which teach which."""

from collections.abc import Sequence

from bitflax.types import Params

Pairs = tuple[tuple[int, int], ...]


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
) -> Pairs:
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
    if not layers or min(layers) < 0:
        raise ValueError(f"layers must be at least one index from 0, not {layers!r}")
    if not hidden:
        return tuple(enumerate(layers))
    first = 0 if embeddings == "first" else layers[0] - 1
    if first < 0:
        raise ValueError(
            f"embeddings='first-1' with first layer {layers[0]} asks for hidden state "
            "-1; use embeddings='first'"
        )
    return ((0, first), *((m + 1, layer + 1) for m, layer in enumerate(layers)))


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
    for layer in layers:
        if f"layer_{layer}" not in encoder:
            raise ValueError(f"layer {layer}: the teacher has {len(encoder)} layers")
    taken = {f"layer_{m}": encoder[f"layer_{layer}"] for m, layer in enumerate(layers)}
    return {k: taken if k == "encoder" else v for k, v in params.items()}
