"""Batches of one shape each: rows of like length, in an order that can be resumed."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
from jaxtyping import Integer

from bitflax.data.text import Tokens
from bitflax.types import check_count

Part = tuple[int, int]
"""``(i, n)``: the ``i``-th of ``n`` equal parts of a batch's rows, a process's own."""
LENGTHS = (8, 12, 16, 24, 32, 48, 64, 80, 96, 128, 192, 256, 384, 512)
MOST_BUCKETS = 8
COMPILE_TOKENS = 4096
"""What one shape more costs, in token positions an epoch: compiling it takes 3 to 4
seconds, in which a small model computes some 10,000, and a stage has three epochs."""


def buckets_for(
    lengths: Integer[np.ndarray, "examples"],
    max_length: int,
    shape_tokens: int | None = None,
) -> tuple[int, ...]:
    """Choose the lengths that batches are padded to.

    The largest is the smallest length on offer that holds the longest example. Of the
    others those are kept, at most seven, that make ``positions + shape_tokens x
    buckets`` least, where positions are the padded tokens of one pass: a rare length
    joins the next longer one where that costs less than compiling one shape more.

    Args:
      lengths: of all examples that will be run, dev included, int [examples].
      max_length: the longest that was let through.
      shape_tokens: what one shape more costs; None: ``COMPILE_TOKENS``.

    >>> buckets_for(np.repeat([5, 30, 100], [5000, 3000, 2]), 128)
    (8, 32, 128)
    """
    offered = sorted({*(n for n in LENGTHS if n < max_length), max_length})
    longest = int(lengths.max(initial=1))
    top = next(n for n in offered if n >= min(longest, max_length))
    ends = np.searchsorted(np.sort(lengths), offered, side="right")
    up_to = dict(zip(offered, ends.tolist(), strict=True)) | {top: len(lengths)}
    each = COMPILE_TOKENS if shape_tokens is None else shape_tokens
    shorter = offered[: offered.index(top)]
    counts = np.diff([0, *(up_to[n] for n in shorter)])
    filled = [n for n, count in zip(shorter, counts, strict=True) if count]

    def cost(chosen: Sequence[int]) -> int:
        counts = np.diff([0, *(up_to[n] for n in chosen)])
        return int(counts @ np.array(chosen)) + each * len(chosen)

    return min(
        (
            (*chosen, top)
            for size in range(min(len(filled), MOST_BUCKETS - 1) + 1)
            for chosen in itertools.combinations(filled, size)
        ),
        key=cost,
    )


def rows_of(part: Part, rows: int) -> slice:
    """Return which rows the ``i``-th of ``n`` equal parts of a batch has.

    Raises:
      ValueError: the rows are no multiple of the parts.

    >>> rows_of((1, 4), 8)
    slice(2, 4, None)
    """
    number, count = part
    if rows % count or not 0 <= number < count:
        raise ValueError(f"{rows} rows, part {number} of {count}")
    share = rows // count
    return slice(number * share, (number + 1) * share)


class Batches:
    """Training batches by step, and evaluation batches in a fixed order.

    Every batch is ``[rows, bucket]``, so that no step after the first of its bucket
    compiles. An epoch has ``ceil(examples / batch_size)`` steps; rows that do not fill
    a batch of their bucket go up into the next one, and the few filler rows that an
    epoch needs lie in its shortest batch.

    A batch is a dict of arrays: ``input_ids``, ``attention_mask``, ``token_type_ids``
    int32 [rows, bucket]; ``weight`` float32 [rows], 0 in a filler row, 1 elsewhere;
    ``index`` int32 [rows], the example's number in ``tokens``, -1 in a filler row;
    ``labels`` [rows] where there are any (0 in a filler row).

    Args:
      tokens: the examples.
      labels: int32 or float32 [examples], or None.
      batch_size: examples a batch.
      seed: of the order.
      buckets: the lengths to pad to, ascending; the last one holds every example.
      multiple_of: the number of devices that share a batch: where ``batch_size`` is no
        multiple of it, filler rows stand at the end of every batch, so that the
        examples of a step do not depend on the number of devices.
      pad_id: the token that fills up.

    Raises:
      ValueError: there are no examples, an example is longer than the last bucket,
        there are not as many labels as examples, or a batch has none.
    """

    def __init__(
        self,
        tokens: Tokens,
        labels: np.ndarray | None = None,
        *,
        batch_size: int,
        seed: int,
        buckets: Sequence[int],
        multiple_of: int = 1,
        pad_id: int = 0,
    ):
        if not len(tokens):
            raise ValueError("there are no examples")
        check_count("batch_size", batch_size)
        check_count("multiple_of", multiple_of)
        if tokens.lengths.max() > buckets[-1]:
            raise ValueError(
                f"an example has {tokens.lengths.max()} tokens, the last bucket "
                f"{buckets[-1]}"
            )
        if labels is not None and len(labels) != len(tokens):
            raise ValueError(f"{len(tokens)} examples but {len(labels)} labels")
        self.tokens, self.labels, self.seed, self.pad_id = tokens, labels, seed, pad_id
        self.batch_size = batch_size
        self.rows = -(-batch_size // multiple_of) * multiple_of
        self.buckets = tuple(buckets)
        self.bucket = np.searchsorted(self.buckets, tokens.lengths)
        self._epoch: tuple[int, list[tuple[int, np.ndarray]]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """How many batches show every example once."""
        return -(-len(self.tokens) // self.batch_size)

    @property
    def padded_tokens(self) -> int:
        """Token positions that an epoch computes, padding and filler rows included.

        The same in every epoch: it depends on how many examples each bucket has.
        """
        return sum(bucket * self.rows for bucket, _ in self._plan(None))

    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Return the shapes that occur, ascending: what will be compiled."""
        used = {bucket for bucket, _ in self._plan(None)}
        return tuple((self.rows, bucket) for bucket in sorted(used))

    def first_steps(self) -> list[int]:
        """Return the first step of each shape, counted as ``batch`` does."""
        steps: dict[int, int] = {}
        for step, (bucket, _) in enumerate(self._plan(0)):
            steps.setdefault(bucket, step)
        return list(steps.values())

    def batch(self, step: int, part: Part = (0, 1)) -> dict[str, np.ndarray]:
        """Return the batch of a global step, counted from 0 over all epochs.

        It depends on the seed and the step alone, so that training goes on exactly
        where it stopped.

        Args:
          step: counted from 0.
          part: ``(i, n)``: only the ``i``-th of ``n`` equal parts of its rows.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = epoch, self._plan(epoch)
        return self._padded(*self._epoch[1][place], part)

    def evaluation(self, part: Part = (0, 1)) -> Iterator[dict[str, np.ndarray]]:
        """Yield every example once, shortest first; ``index`` says which is where."""
        for bucket, rows in self._plan(None):
            yield self._padded(bucket, rows, part)

    def _plan(self, epoch: int | None) -> list[tuple[int, np.ndarray]]:
        """Return ``(bucket, example numbers)`` of each batch of an epoch.

        Filler rows (-1) count as the shortest examples. Going from the shortest bucket
        to the longest, each cuts as many whole batches as it can and hands what is
        left to the next: no other way of filling whole batches computes less.
        """
        rng = None if epoch is None else np.random.default_rng((self.seed, epoch))
        filler = self.steps_per_epoch * self.batch_size - len(self.tokens)
        left = np.full(filler, -1, np.int64)
        plan = []
        for number, bucket in enumerate(self.buckets):
            rows = np.flatnonzero(self.bucket == number)
            if rng is not None:
                rows = rng.permutation(rows)
            rows = np.concatenate([left, rows])
            whole = len(rows) - len(rows) % self.batch_size
            for start in range(0, whole, self.batch_size):
                plan.append((bucket, rows[start : start + self.batch_size]))
            left = rows[whole:]
        if rng is None:
            return plan
        return [plan[place] for place in rng.permutation(len(plan))]

    def _padded(
        self, bucket: int, rows: np.ndarray, part: Part
    ) -> dict[str, np.ndarray]:
        """Return the arrays of one batch, or of a part of it."""
        rows = np.pad(rows, (0, self.rows - len(rows)), constant_values=-1)
        rows = rows[rows_of(part, self.rows)]
        real = rows >= 0
        lengths = np.where(real, self.tokens.lengths[rows], 0)
        mask = np.arange(bucket) < lengths[:, None]
        # Positions beyond an example's end point anywhere valid and are masked out.
        where = self.tokens.offsets[rows][:, None] + np.arange(bucket)
        where = np.where(mask, where, 0)
        batch = {
            "input_ids": np.where(mask, self.tokens.ids[where], self.pad_id),
            "attention_mask": mask,
            "token_type_ids": np.where(mask, self.tokens.types[where], 0),
        }
        batch = {name: array.astype(np.int32) for name, array in batch.items()}
        batch["weight"] = real.astype(np.float32)
        batch["index"] = rows.astype(np.int32)
        if self.labels is not None:
            batch["labels"] = np.where(real, self.labels[rows], 0).astype(
                self.labels.dtype
            )
        return batch
