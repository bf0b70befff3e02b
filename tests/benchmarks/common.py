"""What every benchmark shares: alternating sides, spread, the machine, the output.

Two programs that are timed one after the other are compared with the machine's mood in
between. Here the sides alternate within one process, round by round, in an order that
turns from round to round, and a ratio is the median of the rounds' own ratios.
"""

import argparse
import dataclasses
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

from bitflax.runs import folder

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
        "versions": folder.versions() | _torch(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _torch() -> dict[str, str]:
    """Return PyTorch's version where the peer took part."""
    torch = sys.modules.get("torch")
    return {} if torch is None else {"torch": torch.__version__}


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
