"""Knowledge-distillation losses: pure functions of two models' outputs and a batch.

A loss is ``(student, teacher, batch) -> Mean``; options come by ``functools.partial``.
Rows of ``batch["weight"]`` 0 count nowhere, whatever they hold: what is left out is
masked before any arithmetic, so that no NaN of it comes back. A weight below 0 gives
NaN. By default padding counts nowhere either, so that a value does not depend on how
far a batch was padded;
``count_padding=True`` gives the papers' codes' means over padding too.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bitflax.types import Batch, LossFn, Mean, Outputs

Pairs = Sequence[tuple[int, int]]
"""(student, teacher) indices into ``hidden`` or ``scores``."""


def _weight(batch: Batch, like: jax.Array) -> Float[Array, " batch"]:
    weights = {"weight": np.ones(like.shape[0]), **batch}
    found = _by_row(weights, "weight", like).astype(like.dtype)
    return jnp.where(found < 0, jnp.nan, found)


def _by_row(batch: Batch, name: str, like: jax.Array) -> jax.Array:
    """Return what a batch has one of a row; other shapes would be spread over rows."""
    values = jnp.asarray(batch[name])
    _check_shapes(name, values.shape, like.shape[:1])
    return values


def _check_shapes(name: str, found: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if found != expected:
        raise ValueError(f"{name} must have the shape {expected}, not {found}")


def _real(batch: Batch, like: jax.Array) -> Float[Array, "batch seq"]:
    """Return 1 where a token is no padding, times the weight of its row."""
    mask = jnp.asarray(batch["attention_mask"]).astype(like.dtype)
    return mask * _weight(batch, like)[:, None]


def _counted(x: jax.Array, counts: jax.Array) -> jax.Array:
    """Return ``x``, and 0 where it does not count; ``counts`` has the first axes."""
    counts = jnp.reshape(counts, (*counts.shape, *(1,) * (x.ndim - counts.ndim)))
    return jnp.where(counts > 0, x, jnp.zeros((), x.dtype))


def _rows(outputs: Outputs, batch: Batch) -> jax.Array:
    """Return the logits of the rows that count."""
    logits = jnp.asarray(outputs.logits)
    return _counted(logits, _weight(batch, logits))


def _row_mean(per_row: Float[Array, " batch"], batch: Batch, size: int) -> Mean:
    weight = _weight(batch, per_row)
    return Mean(jnp.sum(per_row * weight), jnp.sum(weight) * size)


def _checked(pairs: Pairs | None, student: tuple, teacher: tuple, what: str) -> Pairs:
    if pairs is None:
        if len(student) != len(teacher):
            raise ValueError(
                f"student has {len(student)} {what}, teacher {len(teacher)}: say "
                "which teach which by pairs=bitflax.layer_pairs(...)"
            )
        return [(i, i) for i in range(len(student))]
    if not pairs:
        raise ValueError("pairs is empty: nothing would be learned from it")
    for pair in pairs:
        for i, outputs in zip(pair, (student, teacher), strict=True):
            if not 0 <= i < len(outputs):
                raise ValueError(f"pair {pair}: there are only {len(outputs)} {what}")
    return pairs


def soft_cross_entropy(
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    *,
    temperature: float = 1.0,
    reduction: str = "classes",
) -> Mean:
    """Cross-entropy of the student's class probabilities to the teacher's.

    ``-sum(softmax(t / T) log_softmax(s / T))``, over batch x classes; without the
    factor ``T^2`` of Hinton et al.

    Args:
      student: its ``logits`` [batch, classes].
      teacher: the same; no gradient reaches it.
      batch: ``weight`` [batch], if there is one.
      temperature: divides both logits.
      reduction: ``"classes"``: the mean over batch and classes, as TinyBERT,
        BinaryBERT and XTC; ``"batch"``: the mean over the batch alone.

    Raises:
      ValueError: an unknown reduction, one logit alone, or other shapes.

    Source: TinyBERT's ``soft_cross_entropy`` (arXiv:1909.10351, eq. 10).

    >>> s = Outputs(jnp.array([[0.0, 0.0]]), (), ())
    >>> round(float(soft_cross_entropy(s, s, {})), 4)  # log(2) / 2
    0.3466
    """
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature must be above 0 and finite, not {temperature}")
    if reduction not in ("classes", "batch"):
        raise ValueError(f"reduction must be 'classes' or 'batch', not {reduction!r}")
    if student.logits.shape[-1] == 1:
        raise ValueError("one logit has no class probabilities: use logits_mse")
    _check_shapes("the teacher's logits", teacher.logits.shape, student.logits.shape)
    target = jax.nn.softmax(jax.lax.stop_gradient(_rows(teacher, batch)) / temperature)
    log_p = jax.nn.log_softmax(_rows(student, batch) / temperature)
    size = student.logits.shape[-1] if reduction == "classes" else 1
    return _row_mean(-jnp.sum(target * log_p, axis=-1), batch, size)


def logits_mse(student: Outputs, teacher: Outputs, batch: Batch) -> Mean:
    """Mean squared error of the logits [batch, labels]; the soft loss of regression.

    Source: Ba & Caruana 2014 (arXiv:1312.6184); TinyBERT's regression tasks.

    >>> one, two = (Outputs(jnp.full((2, 1), v), (), ()) for v in (1.0, 3.0))
    >>> float(logits_mse(one, two, {}))
    4.0
    """
    _check_shapes("the teacher's logits", teacher.logits.shape, student.logits.shape)
    taught = jax.lax.stop_gradient(_rows(teacher, batch))
    error = jnp.square(_rows(student, batch) - taught)
    return _row_mean(jnp.sum(error, axis=-1), batch, error.shape[-1])


def soft_labels(
    student: Outputs, teacher: Outputs, batch: Batch, *, reduction: str = "batch"
) -> Mean:
    """The loss of the logits for any task: what the teacher says of an example.

    ``soft_cross_entropy`` where there are classes, ``logits_mse`` where there is one
    real number.

    >>> one, two = (Outputs(jnp.full((2, 1), v), (), ()) for v in (1.0, 3.0))
    >>> float(soft_labels(one, two, {}))
    4.0
    """
    if student.logits.shape[-1] == 1:
        return logits_mse(student, teacher, batch)
    return soft_cross_entropy(student, teacher, batch, reduction=reduction)


def label_cross_entropy(
    student: Outputs,
    teacher: Outputs | None,
    batch: Batch,
    *,
    smoothing: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> Mean:
    """Cross-entropy of the logits [batch, classes] to ``batch["labels"]`` [batch].

    ``sum_i c_i ((1 - s) (-log p_i[y_i]) + s mean_k(-log p_i[k])) / sum_i c_i``, where
    ``c_i`` is the weight of the example's class. A label that is no class gives NaN.

    Args:
      student: whose logits they are.
      teacher: not read.
      batch: with ``labels``, and ``weight`` 0 in filler rows.
      smoothing: ``s``, the share of a label that all classes have alike.
      class_weights: of every class, float [classes]; None: 1.

    Raises:
      ValueError: ``smoothing`` is no share, or a class has no weight of 0 or more.

    Source: Szegedy et al. 2016 (arXiv:1512.00567), section 7, for the smoothing.

    >>> s = Outputs(jnp.array([[0.0, 0.0]]), (), ())
    >>> round(float(label_cross_entropy(s, None, {"labels": jnp.array([1])})), 4)
    0.6931
    """
    if not isinstance(smoothing, jax.Array) and not 0 <= smoothing < 1:
        raise ValueError(f"smoothing must be from 0 to below 1, not {smoothing}")
    log_p = jax.nn.log_softmax(_rows(student, batch))
    labels = _counted(_by_row(batch, "labels", log_p), _weight(batch, log_p))
    picked = jnp.take_along_axis(log_p, labels[:, None], axis=-1)[:, 0]
    if smoothing:
        picked = (1 - smoothing) * picked + smoothing * jnp.mean(log_p, axis=-1)
    valid = (labels >= 0) & (labels < log_p.shape[-1])  # -1 is the last
    losses = jnp.where(valid, -picked, jnp.nan)
    if class_weights is not None:
        _check_shapes("class_weights", np.shape(class_weights), log_p.shape[1:])
        known = not isinstance(class_weights, jax.Array)
        if known and not all(0 <= each < math.inf for each in class_weights):
            raise ValueError(f"class_weights must be 0 or more, not {class_weights}")
        weights = jnp.take(jnp.asarray(class_weights, losses.dtype), labels)
        batch = {**batch, "weight": _weight(batch, losses) * weights}
    return _row_mean(losses, batch, 1)


def label_mse(student: Outputs, teacher: Outputs | None, batch: Batch) -> Mean:
    """Mean squared error of the logit [batch, 1] to ``batch["labels"]`` [batch].

    >>> s = Outputs(jnp.array([[1.0]]), (), ())
    >>> float(label_mse(s, None, {"labels": jnp.array([3.0])}))
    4.0
    """
    logits = _rows(student, batch)[:, 0]
    labels = _counted(_by_row(batch, "labels", logits), _weight(batch, logits))
    labels = labels.astype(logits.dtype)
    return _row_mean(jnp.square(logits - labels), batch, 1)


def hidden_mse(
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    *,
    pairs: Pairs | None = None,
    count_padding: bool = False,
) -> Mean:
    """Mean squared error of hidden states, summed over the pairs of layers.

    ``sum_pairs sum_real_tokens |s - t|^2 / (real tokens x width)``

    Args:
      student: its ``hidden``, arrays [batch, seq, width]; 0 is the embeddings' output.
      teacher: the same; no gradient reaches it.
      batch: ``attention_mask`` [batch, seq].
      pairs: (student, teacher) indices, by ``layer_pairs(layers, hidden=True)``; None
        pairs equal depths one to one.
      count_padding: padded tokens count too, as in TinyBERT, BinaryBERT and XTC.

    Raises:
      ValueError: a pair is out of range, the widths differ, or no pairs are given and
        the depths differ.

    Source: TinyBERT, eq. 8 (arXiv:1909.10351).
    """
    pairs = _checked(pairs, student.hidden, teacher.hidden, "hidden states")
    like = student.hidden[0]
    token = _real(batch, like)
    if count_padding:
        token = jnp.broadcast_to(_weight(batch, like)[:, None], like.shape[:2])
    total = jnp.zeros((), like.dtype)
    for s, t in pairs:
        if student.hidden[s].shape != teacher.hidden[t].shape:
            raise ValueError(
                f"hidden states of pair {(s, t)} have shapes {student.hidden[s].shape} "
                f"and {teacher.hidden[t].shape}"
            )
        taught = jax.lax.stop_gradient(teacher.hidden[t])
        error = _counted(student.hidden[s], token) - _counted(taught, token)
        total += jnp.sum(jnp.sum(jnp.square(error), axis=-1) * token)
    return Mean(total, jnp.sum(token) * like.shape[-1])


def score_mse(
    student: Outputs,
    teacher: Outputs,
    batch: Batch,
    *,
    pairs: Pairs | None = None,
    count_padding: bool = False,
    mask_value: float | None = None,
) -> Mean:
    """Mean squared error of attention scores, summed over the pairs of layers.

    ``sum_pairs sum |s - t|^2 / (heads x real queries x real keys)``, on the scores
    before softmax.

    Args:
      student: its ``scores``, arrays [batch, heads, seq, seq].
      teacher: the same; no gradient reaches it.
      batch: ``attention_mask`` [batch, seq].
      pairs: (student, teacher) indices, by ``layer_pairs(layers)``; None pairs equal
        depths one to one.
      count_padding: every position counts, with 0 for masked keys in both, as in
        TinyBERT and BinaryBERT.
      mask_value: every position counts, and masked keys get this added in both
        before they are compared, as in XTC (-1e4).

    Raises:
      ValueError: a pair is out of range, head counts differ, or no pairs are given
        and the depths differ.

    Source: TinyBERT, eq. 7 (arXiv:1909.10351).
    """
    pairs = _checked(pairs, student.scores, teacher.scores, "attention scores")
    like = student.scores[0]
    everything = count_padding or mask_value is not None
    mask = jnp.asarray(batch["attention_mask"]).astype(like.dtype)
    weight = _weight(batch, like)
    query = jnp.broadcast_to(weight[:, None], mask.shape)
    query = query if everything else query * mask
    key = mask[:, None, None, :]
    masked = 0.0 if mask_value is None else (1 - key) * mask_value
    compared = jnp.ones_like(key) if mask_value is not None else key
    compared = query[:, None, :, None] * compared
    total = jnp.zeros((), like.dtype)
    for s, t in pairs:
        a, b = student.scores[s], jax.lax.stop_gradient(teacher.scores[t])
        if a.shape != b.shape:
            raise ValueError(
                f"scores of pair {(s, t)} have shapes {a.shape} and {b.shape}"
            )
        a, b = (jnp.where(compared > 0, x + masked, 0.0) for x in (a, b))
        error = jnp.square(a - b)
        total += jnp.sum(jnp.sum(error, axis=-1) * query[:, None, :])
    keys = jnp.full_like(weight, mask.shape[1]) if everything else jnp.sum(mask, -1)
    return Mean(total, jnp.sum(jnp.sum(query, -1) * keys) * like.shape[1])


def attention_kl(
    student: Outputs, teacher: Outputs, batch: Batch, *, pairs: Pairs | None = None
) -> Mean:
    """Kullback-Leibler divergence of attention probabilities, summed over the pairs.

    ``sum_pairs sum p_t log(p_t / p_s) / (heads x real queries)``, where ``p`` is the
    softmax of the scores [batch, heads, seq, seq] over the real keys.

    Raises:
      ValueError: as ``score_mse``.

    Source: MiniLM, eq. 2 (arXiv:2002.10957).
    """
    pairs = _checked(pairs, student.scores, teacher.scores, "attention scores")
    like = student.scores[0]
    query = _real(batch, like)
    mask = jnp.asarray(batch["attention_mask"]) > 0
    key = mask[:, None, None, :] & (query > 0)[:, None, :, None]
    total = jnp.zeros((), like.dtype)
    for s, t in pairs:
        a = jnp.where(key, student.scores[s], -1e9)
        b = jnp.where(key, jax.lax.stop_gradient(teacher.scores[t]), -1e9)
        log_s, log_t = jax.nn.log_softmax(a), jax.nn.log_softmax(b)
        divergence = jnp.sum(jnp.exp(log_t) * (log_t - log_s) * key, axis=-1)
        total += jnp.sum(divergence * query[:, None, :])
    return Mean(total, jnp.sum(query) * like.shape[1])


# The losses of token positions, and what leaves padding out where it is an option.
_WITHOUT_PADDING: tuple[tuple[LossFn, dict[str, Any]], ...] = (
    (hidden_mse, {"count_padding": False}),
    (score_mse, {"count_padding": False, "mask_value": None}),
    (attention_kl, {}),
)


def reads_padding(loss: LossFn) -> bool:
    """Whether one loss may read padded positions; of one that is not known it may.

    >>> reads_padding(score_mse), reads_padding(lambda student, teacher, batch: None)
    (False, True)
    >>> reads_padding(functools.partial(score_mse, mask_value=-1e4))
    True
    """
    given = {}
    if isinstance(loss, functools.partial):
        loss, given = loss.func, loss.keywords
    for known, without in _WITHOUT_PADDING:
        if loss is known:
            return any(given.get(name, off) is not off for name, off in without.items())
    return True
