"""Training steps as a run takes them: what the benchmarks time.

A step gets its batch from the host, adds kept teacher outputs to it where there are
any, runs compiled on all devices, and gives back metrics that are waited for.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

import bitflax as bf
from bitflax.data.batches import Batches
from bitflax.data.text import Tokens
from bitflax.distillation import teacher_outputs
from bitflax.model import apply
from bitflax.training import parallel
from tests.benchmarks import common

KINDS = (
    "fine-tuning", "fp32", "fp32 kept", "1-bit", "1-bit kept", "1-bit exact",
    "1-bit bf16", "1-bit bf16 kept", "1-bit recompute",
)  # fmt: skip
"""Kinds of steps. "kept" reads teacher outputs that were computed before; "exact" has
integers of student and activations multiplied in bfloat16; "bf16" has bfloat16 operands
in all products, the teacher's too; "recompute" keeps the inputs of a layer's halves."""
STEPS = 10_000
"""Steps in the stage: what the warm-up is a share of."""
ACT = bf.symmetric(bits=8, levels="full")
"""XTC's activations: the peer's have the same levels."""


def configs(
    name: str, vocab_size: int | None = None
) -> tuple[bf.BertConfig, bf.BertConfig, tuple[int, ...]]:
    """Return the teacher's and the student's shape, and the layers that it takes.

    Every second layer, the last one among them. Dropout is 0, so that the sides differ
    by what they are named after alone.
    """
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    shape: Any = common.MODELS[name] | off
    if vocab_size is not None:
        shape["vocab_size"] = vocab_size
    teacher = bf.BertConfig(**shape)
    layers = tuple(range(1, teacher.num_hidden_layers, 2))
    return teacher, dataclasses.replace(teacher, num_hidden_layers=len(layers)), layers


@functools.cache
def teacher_params(name: str, vocab_size: int | None = None):
    """Return a teacher's fresh parameters; what they hold does not change the time."""
    return bf.init_params(configs(name, vocab_size)[0], jax.random.key(0))


def single_stage_loss(layers: Sequence[int], **padding: Any) -> Any:
    """Return the single-stage loss: logits, hidden states, attention scores.

    Args:
      layers: of the teacher, one for each of the student's.
      **padding: ``count_padding=True`` counts padded positions, as the peer does.
    """
    hidden = bf.layer_pairs(layers, hidden=True)
    scores = bf.layer_pairs(layers)
    return bf.weighted(
        logits=(1.0, bf.soft_cross_entropy),
        hidden=(1.0, functools.partial(bf.hidden_mse, pairs=hidden, **padding)),
        scores=(1.0, functools.partial(bf.score_mse, pairs=scores, **padding)),
    )


def train_step(
    kind: str,
    teacher: bf.BertConfig,
    student: bf.BertConfig,
    layers: Sequence[int],
    *,
    reader: Any = None,
    optim: bf.Optim | None = None,
    **padding: Any,
) -> tuple[Any, Any]:
    """Return a kind of step, un-jitted, and its optimizer.

    Args:
      kind: one of ``KINDS``.
      teacher: its shape.
      student: the student's.
      layers: of the teacher, one for each of the student's.
      reader: what reads kept outputs of the teacher, in its place.
      optim: of the optimizer.
      **padding: of ``single_stage_loss``.
    """
    quantised, words = kind.startswith("1-bit"), kind.split()
    dtype = "bfloat16" if "bf16" in words else None
    apply = bf.bert(
        student,
        ACT if quantised else None,
        dtype=dtype,
        integers="bfloat16" if "exact" in words else None,
        recompute="recompute" in words,
    )
    optimizer = bf.make_optimizer(optim or bf.Optim(), STEPS)
    loss = single_stage_loss(layers, **padding)
    teach = reader or bf.bert(teacher, dtype=dtype)
    if kind == "fine-tuning":
        loss, teach = bf.weighted(labels=(1.0, bf.label_cross_entropy)), None
    quantize = functools.partial(bf.quantize, rules=bf.xtc_1bit(), lazy=True)
    step = bf.make_train_step(
        apply,
        teach,
        loss,
        optimizer,
        quantize=quantize if quantised else None,
    )
    return step, optimizer


class Stepper:
    """A student in training, as a run trains it: batch from the host, all devices.

    Args:
      kind: one of ``KINDS``.
      name: of ``common.MODELS``.
      batches: what it learns from.
      devices: which share a batch; None: all.
      vocab_size: rows of the word table; None: the model's.
      optim: of the optimizer.
      padding: of ``single_stage_loss``.
    """

    def __init__(
        self,
        kind: str,
        name: str,
        batches: Batches,
        *,
        devices: Sequence[Any] | None = None,
        vocab_size: int | None = None,
        optim: bf.Optim | None = None,
        **padding: Any,
    ):
        self.batches, self.count = batches, 0
        teacher, student, layers = configs(name, vocab_size)
        params = teacher_params(name, vocab_size)
        mesh = bf.mesh(devices)
        loss = single_stage_loss(layers, **padding)
        self._teacher, self._kept, reader = params, None, None
        if kind == "fine-tuning":
            self._teacher = None
        elif kind.endswith("kept"):
            self._kept = keep(name, batches, loss)
            self._teacher, reader = (
                None,
                teacher_outputs.outputs_reader(self._kept.outputs),
            )
        step, optimizer = train_step(
            kind, teacher, student, layers, reader=reader, optim=optim, **padding
        )
        self._step = bf.data_parallel(step, mesh)
        self._teacher = parallel.replicate(self._teacher, mesh)
        start = bf.take_layers(params, layers)
        self._state = bf.init_state(start, optimizer, key=jax.random.key(1))

    def __call__(self, batch: dict[str, np.ndarray] | None = None) -> Any:
        """Take a step, on the next batch or on this one; return its metrics."""
        if batch is None:
            batch = self.batches.batch(self.count)
            self.count += 1
        batch = batch if self._kept is None else self._kept.add_to(batch)
        self._state, metrics = self._step(self._state, self._teacher, batch)
        return metrics


def keep(name: str, batches: Batches, loss: Any) -> teacher_outputs.TeacherOutputs:
    """Return the teacher's outputs of all examples that the loss reads."""
    teacher, student, layers = configs(name)
    params = teacher_params(name)
    batch = batches.batch(0)
    told = jax.eval_shape(apply.bert(teacher), params, batch)
    start = bf.take_layers(params, layers)
    said = jax.eval_shape(apply.bert(student), start, batch)
    used = teacher_outputs.used_outputs(loss, said, told, batch)
    *_, kept = teacher_outputs.fill(apply.bert(teacher), params, batches, told, used)
    return kept


def full_batches(name: str, rows: int, length: int, count: int = 2) -> Batches:
    """Return batches [rows, length] without padding, of random words."""
    lengths = np.full(rows * count, length)
    return random_batches(name, lengths, batch_size=rows, buckets=(length,))


def random_batches(name: str, lengths: np.ndarray, **options: Any) -> Batches:
    """Return batches of examples of these lengths, of random words and labels."""
    rng = np.random.default_rng(0)
    config, _, _ = configs(name)
    ids = rng.integers(1, config.vocab_size, lengths.sum()).astype(np.int32)
    labels = rng.integers(0, config.num_labels, len(lengths)).astype(np.int32)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    tokens = Tokens(ids, np.zeros(len(ids), np.uint8), offsets)
    return Batches(tokens, labels, seed=0, **options)
