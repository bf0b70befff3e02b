"""What a training step costs, and what distillation and one bit add to it.

Sides, which alternate within this process: plain fine-tuning of the student; FP32
distillation; 1-bit distillation with 8-bit activations; both again with the teacher's
outputs kept from an earlier pass. Each step is what a run does: it takes its batch from
the host, runs on all devices, and updates the parameters.

    python -m tests.benchmarks.train_step > train_step.json
"""

import argparse
from typing import Any

from tests.benchmarks import common

RATIOS = (
    ("1-bit / fp32", "1-bit", "fp32"),
    ("fp32 / fine-tuning", "fp32", "fine-tuning"),
    ("fp32 kept / fp32", "fp32 kept", "fp32"),
    ("fp32 kept / fine-tuning", "fp32 kept", "fine-tuning"),
    ("1-bit kept / 1-bit", "1-bit kept", "1-bit"),
)


def shape(text: str) -> tuple[int, int]:
    """Return ``16x128`` as (16, 128)."""
    try:
        rows, length = (int(part) for part in text.split("x"))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: expected ROWSxLENGTH") from None
    return rows, length


def measure(name: str, rows: int, length: int, rounds: int) -> dict[str, Any]:
    """Time all kinds of steps on batches [rows, length], alternating."""
    batches = common.full_batches(name, rows, length)
    sides = {kind: common.Stepper(kind, name, batches) for kind in common.STEPS}
    times = common.alternate(sides, rounds)
    return {
        "shape": [rows, length],
        "steps": {kind: found.summary() for kind, found in times.items()},
        "ratios": {
            title: common.ratio(times[above], times[below])
            for title, above, below in RATIOS
        },
    }


def main() -> None:
    """Measure every shape; the table goes to stderr, the JSON to stdout."""
    options = common.parser(__doc__)
    options.add_argument(
        "--shapes", type=shape, nargs="+", default=[(16, 128), (32, 64)]
    )
    args = common.parse(options)
    results = []
    for rows, length in args.shapes:
        found = measure(args.model, rows, length, args.rounds)
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
