"""What a training step costs, what distillation and one bit add, and the peer's step.

Sides, which alternate within this process: plain fine-tuning of the student; FP32
distillation; 1-bit distillation with 8-bit activations; both again with the teacher's
outputs kept from an earlier pass; 1-bit distillation with the integers' products in
bfloat16, and with all products in it; and the PyTorch peer's 1-bit distillation, in
float32 and under bfloat16 autocast. Each step is what a run does: it takes its batch
from the host and updates the parameters.

    taskset -c 0 python -m tests.benchmarks.train_step > train_step.json
"""

import argparse
from collections.abc import Callable
from typing import Any

from bitflax.data.batches import Batches
from tests.benchmarks import common, steps

RATIOS = (
    ("1-bit / fp32", "1-bit", "fp32"),
    ("fp32 / fine-tuning", "fp32", "fine-tuning"),
    ("fp32 kept / fp32", "fp32 kept", "fp32"),
    ("fp32 kept / fine-tuning", "fp32 kept", "fine-tuning"),
    ("1-bit kept / 1-bit", "1-bit kept", "1-bit"),
    ("1-bit / peer 1-bit", "1-bit", "peer 1-bit"),
    ("peer 1-bit bf16 / peer 1-bit", "peer 1-bit bf16", "peer 1-bit"),
    ("1-bit bf16 / 1-bit", "1-bit bf16", "1-bit"),
    ("1-bit exact / 1-bit", "1-bit exact", "1-bit"),
    ("1-bit bf16 / peer 1-bit", "1-bit bf16", "peer 1-bit"),
    ("1-bit bf16 / peer 1-bit bf16", "1-bit bf16", "peer 1-bit bf16"),
    ("1-bit bf16 kept / peer 1-bit bf16", "1-bit bf16 kept", "peer 1-bit bf16"),
)
PEERS = ("peer fine-tuning", "peer fp32", "peer 1-bit", "peer 1-bit bf16")
DEFAULT = (*steps.KINDS[:-1], *PEERS[2:])


def shape(text: str) -> tuple[int, int]:
    """Return ``16x128`` as (16, 128)."""
    try:
        rows, length = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected ROWSxLENGTH") from None
    return rows, length


def side(kind: str, name: str, batches: Batches) -> Callable[..., Any]:
    """Return a side's step; PyTorch is imported for the peer's alone."""
    if not kind.startswith("peer "):
        return steps.Stepper(kind, name, batches)
    from tests.benchmarks import peer

    kind, half = kind.removeprefix("peer "), kind.endswith(" bf16")
    kind = kind.removesuffix(" bf16")
    return peer.Stepper(kind, name, batches, bfloat16=half)


def measure(args: Any, rows: int, length: int) -> dict[str, Any]:
    """Time all sides on batches [rows, length], alternating."""
    batches = steps.full_batches(args.model, rows, length)
    sides = {kind: side(kind, args.model, batches) for kind in args.sides}
    times = common.alternate(sides, args.rounds)
    return {
        "shape": [rows, length],
        "steps": {kind: found.summary() for kind, found in times.items()},
        "ratios": {
            title: common.ratio(times[above], times[below])
            for title, above, below in RATIOS
            if {above, below} <= set(times)
        },
    }


def main() -> None:
    """Measure every shape; the table goes to stderr, the JSON to stdout."""
    options = common.parser(__doc__)
    options.add_argument(
        "--shapes", type=shape, nargs="+", default=[(16, 64), (32, 128)]
    )
    options.add_argument(
        "--sides", nargs="+", choices=(*steps.KINDS, *PEERS), default=DEFAULT
    )
    args = common.parse(options)
    results = []
    for rows, length in args.shapes:
        found = measure(args, rows, length)
        results.append(found)
        common.say(f"\n{args.model}, {rows} x {length} tokens, {args.rounds} rounds")
        lines = [[kind, *common.spread(s)] for kind, s in found["steps"].items()]
        common.say(
            common.table(["step (s)", "wall", "quartiles", "CPU (all threads)"], lines)
        )
        lines = [[title, *common.spread(r)] for title, r in found["ratios"].items()]
        common.say("\n" + common.table(["ratio", "wall", "quartiles", "CPU"], lines))
    common.write("train_step", args, {"results": results})


if __name__ == "__main__":
    main()
