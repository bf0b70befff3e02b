"""What every benchmark shares: alternating sides, spread, the machine, the output.

Two programs that are timed one after the other are compared with the machine's mood in
between. Here the sides alternate within one process, round by round, in an order that
turns from round to round, and a ratio is the median of the rounds' own ratios.
"""

import argparse
import dataclasses
import functools
import gc
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import bitflax as bf
from bitflax import model, runfolder, teaching
from bitflax.data.batches import Batches
from bitflax.data.text import Tokens

MODELS = {
    "minilm": dict(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=12,
        intermediate_size=1536, vocab_size=30522, num_labels=21,
    ),
    "bert-base": dict(num_hidden_layers=12, num_labels=21),
    "tiny": dict(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=64, vocab_size=500, num_labels=3,
    ),
}  # fmt: skip
STEPS = ("fine-tuning", "fp32", "1-bit", "fp32 kept", "1-bit kept")
"""Kinds of steps; "kept" reads teacher outputs that were computed before."""


@dataclasses.dataclass(frozen=True)
class Times:
    """Seconds of one side, a round each: on the wall, and of all threads together."""

    wall: np.ndarray
    cpu: np.ndarray

    def summary(self) -> dict[str, Any]:
        """Return medians and quartiles, in seconds."""
        low, middle, high = np.percentile(self.wall, (25, 50, 75)).tolist()
        cpu = float(np.median(self.cpu))
        return {"wall": middle, "wall_quartiles": [low, high], "cpu": cpu}


def alternate(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Times]:
    """Time every side once a round, each until its result is there.

    Args:
      sides: what to time; each is called once before, so that nothing compiles later.
      rounds: how often.

    Returns:
      ``{name: Times}`` of arrays [rounds]; round i of all sides belongs together.
    """
    for side in sides.values():
        jax.block_until_ready(side())
    names = list(sides)
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    gc.disable()
    try:
        for number in range(rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                wall, cpu = time.perf_counter(), time.process_time()
                jax.block_until_ready(sides[name]())
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                found[name].append((wall, cpu))
    finally:
        gc.enable()
    return {name: Times(*np.array(pairs).T) for name, pairs in found.items()}


def ratio(above: Times, below: Times) -> dict[str, Any]:
    """Return the median and the quartiles of the rounds' ratios, of wall and CPU."""
    wall, cpu = above.wall / below.wall, above.cpu / below.cpu
    low, middle, high = np.percentile(wall, (25, 50, 75)).tolist()
    return {
        "wall": middle,
        "wall_quartiles": [low, high],
        "cpu": float(np.median(cpu)),
    }


def configs(name: str) -> tuple[bf.BertConfig, bf.BertConfig, tuple[int, ...]]:
    """Return the teacher's and the student's shape, and the layers that it takes.

    Every second layer, the last one among them. Dropout is 0, so that the sides differ
    by what they are named after alone.
    """
    off = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    shape: Any = MODELS[name]
    teacher = bf.BertConfig(**shape, **off)
    layers = tuple(range(1, teacher.num_hidden_layers, 2))
    return teacher, dataclasses.replace(teacher, num_hidden_layers=len(layers)), layers


@functools.cache
def teacher_params(name: str):
    """Return a teacher's fresh parameters; what they hold does not change the time."""
    return bf.init_params(configs(name)[0], jax.random.key(0))


def single_stage_loss(layers: Sequence[int]) -> Any:
    """Return the single-stage loss: logits, hidden states, attention scores."""
    hidden = bf.layer_pairs(layers, hidden=True)
    scores = bf.layer_pairs(layers)
    return bf.weighted(
        logits=(1.0, bf.soft_cross_entropy),
        hidden=(1.0, functools.partial(bf.hidden_mse, pairs=hidden)),
        scores=(1.0, functools.partial(bf.score_mse, pairs=scores)),
    )


class Stepper:
    """A student in training, as a run trains it: batch from the host, all devices.

    Args:
      kind: one of ``STEPS``.
      name: of ``MODELS``.
      batches: what it learns from.
    """

    def __init__(self, kind: str, name: str, batches: Batches):
        self.batches, self.count = batches, 0
        teacher, student, layers = configs(name)
        params = teacher_params(name)
        quantised = kind.startswith("1-bit")
        optimizer = bf.make_optimizer(bf.Optim(), 10_000)
        loss = single_stage_loss(layers)
        apply = bf.bert(student, bf.symmetric(bits=8) if quantised else None)
        teach, self._teacher, self._kept = bf.bert(teacher), params, None
        if kind == "fine-tuning":
            loss = bf.weighted(labels=(1.0, bf.label_cross_entropy))
            teach = self._teacher = None
        elif kind.endswith("kept"):
            self._kept = keep(name, batches, loss)
            teach, self._teacher = teaching.reader(self._kept.outputs), None
        rules = bf.xtc_1bit() if quantised else ()
        quantize = functools.partial(bf.quantize, rules=rules, lazy=True)
        step = bf.make_train_step(
            apply, teach, loss, optimizer, quantize=quantize if rules else None
        )
        self._step = bf.data_parallel(step, bf.mesh())
        start = bf.take_layers(params, layers)
        self._state = bf.init_state(start, optimizer, key=jax.random.key(1))

    def __call__(self, batch: dict[str, np.ndarray] | None = None) -> Any:
        """Take a step, on the next batch or on this one; return its metrics."""
        if batch is None:
            batch = self.batches.batch(self.count)
            self.count += 1
        batch = batch if self._kept is None else self._kept.add_to(batch)
        batch = {key: value for key, value in batch.items() if key != "index"}
        self._state, metrics = self._step(self._state, self._teacher, batch)
        return metrics


def keep(name: str, batches: Batches, loss: Any) -> teaching.Kept:
    """Return the teacher's outputs of all examples that the loss reads."""
    teacher, student, layers = configs(name)
    params = teacher_params(name)
    batch = {k: v for k, v in batches.batch(0).items() if k != "index"}
    told = jax.eval_shape(model.bert(teacher), params, batch)
    start = bf.take_layers(params, layers)
    said = jax.eval_shape(model.bert(student), start, batch)
    used = teaching.used_outputs(loss, said, told, batch)
    *_, kept = teaching.keep(model.bert(teacher), params, batches, told, used)
    return kept


def full_batches(name: str, rows: int, length: int, count: int = 2) -> Batches:
    """Return batches [rows, length] without padding, of random words."""
    rng = np.random.default_rng(0)
    config, _, _ = configs(name)
    size = rows * length * count
    ids = rng.integers(1, config.vocab_size, size).astype(np.int32)
    offsets = np.arange(0, size + 1, length, dtype=np.int64)
    labels = rng.integers(0, config.num_labels, rows * count).astype(np.int32)
    tokens = Tokens(ids, np.zeros(size, np.uint8), offsets)
    return Batches(tokens, labels, batch_size=rows, seed=0, buckets=(length,))


def machine() -> dict[str, Any]:
    """Return what the numbers depend on: processor, load, versions, commit."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            lines = [line for line in file if line.startswith("model name")]
        processor = lines[0].split(":", 1)[1].strip()
    except (OSError, IndexError):
        processor = platform.processor() or platform.machine()
    usable = getattr(os, "sched_getaffinity", None)
    return {
        "processor": processor,
        "cores": len(usable(0)) if usable else os.cpu_count(),
        "load": list(os.getloadavg()),
        "devices": [str(device) for device in jax.devices()],
        "versions": runfolder.versions(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        here = os.path.dirname(os.path.abspath(__file__))
        found = subprocess.run(command, cwd=here, capture_output=True, text=True)
    except OSError:
        return ""
    return found.stdout.strip()


def parser(doc: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", choices=MODELS, default="minilm")
    made.add_argument("--rounds", type=int, default=15)
    made.add_argument(
        "--vocab-size",
        type=int,
        help="rows of the word table; a run trains those that its task uses",
    )
    return made


def parse(made: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the options, and give the model the word table that they ask for."""
    args = made.parse_args()
    if args.rounds < 1:
        made.error("--rounds: at least 1")
    if args.vocab_size is not None:
        MODELS[args.model]["vocab_size"] = args.vocab_size
    return args


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return rows under a head, the first column to the left, the others right."""
    lines = [list(head), *([str(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def spread(found: Mapping[str, Any], form: str = ".3f") -> list[str]:
    """Return a summary's or a ratio's cells: median, quartiles, CPU."""
    low, high = found["wall_quartiles"]
    return [
        format(found["wall"], form),
        f"{low:{form}}-{high:{form}}",
        format(found["cpu"], form),
    ]


def say(text: str) -> None:
    """Print for a person, on stderr: stdout is the JSON's."""
    print(text, file=sys.stderr, flush=True)


def write(name: str, args: argparse.Namespace, results: Mapping[str, Any]) -> None:
    """Print the JSON of a benchmark on stdout."""
    record = {"benchmark": name, "arguments": vars(args), "machine": machine()}
    print(json.dumps({**record, **results}, indent=2))
