"""What a step needs at most, and what computing the layers again on the way back saves.

The peak resident memory of a process that takes two steps of 1-bit distillation and
nothing else, as the kernel counts it; each kind of step has a process of its own.

    python -m tests.benchmarks.memory --model bert-base --shape 8x512 > memory.json
"""

import json
import resource
import subprocess
import sys
from typing import Any

import jax

from tests.benchmarks import common, steps, train_step

KINDS = ("fine-tuning", "fp32", "1-bit", "1-bit recompute")


def peak(kind: str, name: str, shape: tuple[int, int], count: int) -> None:
    """Take steps; print the peak of this process, in bytes, and what it was before."""
    batches = steps.full_batches(name, *shape)
    stepper = steps.Stepper(kind, name, batches)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(count):
        jax.block_until_ready(stepper())
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps({"before": 1024 * before, "peak": 1024 * after}))


def measure(kind: str, args: Any) -> dict[str, int]:
    """Return the peak of a kind of step, from a process of its own."""
    rows, length = args.shape
    command = [sys.executable, "-m", "tests.benchmarks.memory", "--child", kind]
    command += ["--model", args.model, "--shape", f"{rows}x{length}"]
    found = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    """Measure every kind; the table goes to stderr, the JSON to stdout."""
    options = common.parser(__doc__)
    options.set_defaults(rounds=2)
    options.add_argument("--shape", type=train_step.shape, default=(8, 512))
    options.add_argument("--kinds", nargs="+", choices=steps.KINDS, default=KINDS)
    options.add_argument("--child", choices=steps.KINDS, help="measure this process")
    args = common.parse(options)
    if args.child:
        peak(args.child, args.model, args.shape, args.rounds)
        return
    found = {kind: measure(kind, args) for kind in args.kinds}
    base = "1-bit" if "1-bit" in found else args.kinds[0]
    lines = [
        [
            kind,
            f"{each['before'] / 2**20:.0f}",
            f"{each['peak'] / 2**20:.0f}",
            f"{each['peak'] / found[base]['peak']:.2f}",
        ]
        for kind, each in found.items()
    ]
    head = ["step", "before, MiB", "peak, MiB", f"peak / {base}"]
    common.say(common.table(head, lines))
    common.write("memory", args, {"memory": found})


if __name__ == "__main__":
    main()
