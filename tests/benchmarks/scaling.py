"""What sharing a batch costs: eight devices against one that has it all.

Eight virtual devices of this machine's CPU, 8 rows each, against one device with the
same 64 rows of 64 tokens: the same arithmetic, so that the ratio of CPU time is the
ratio of work. What is above 1 is the price of sharing: smaller matrix products, the sum
of the gradients over devices, and the update, which every device does for itself.

    taskset -c 0 python -m tests.benchmarks.scaling > scaling.json
"""

import os

DEVICES = 8
# Read when jax starts, so it comes before its import.
os.environ["XLA_FLAGS"] = (
    f"{os.environ.get('XLA_FLAGS', '')}"
    f" --xla_force_host_platform_device_count={DEVICES}"
).strip()

import jax  # noqa: E402

from tests.benchmarks import common, steps, train_step  # noqa: E402

KINDS = ("fp32", "1-bit")


def main() -> None:
    """Measure both ways; the table goes to stderr, the JSON to stdout."""
    options = common.parser(__doc__)
    options.add_argument("--shape", type=train_step.shape, default=(64, 64))
    args = common.parse(options)
    batches = steps.full_batches(args.model, *args.shape)
    sides = {
        f"{kind} on {count}": steps.Stepper(
            kind, args.model, batches, devices=jax.devices()[:count]
        )
        for kind in KINDS
        for count in (1, DEVICES)
    }
    times = common.alternate(sides, args.rounds)
    ratios = {
        kind: common.ratio(times[f"{kind} on {DEVICES}"], times[f"{kind} on 1"])
        for kind in KINDS
    }
    found = {side: each.summary() for side, each in times.items()}
    lines = [[side, *common.spread(each)] for side, each in found.items()]
    head = ["step (s)", "wall", "quartiles", "CPU (all threads)"]
    common.say(common.table(head, lines) + "\n")
    lines = [[f"{kind}, 8 / 1", *common.spread(r)] for kind, r in ratios.items()]
    common.say(common.table(["ratio", "wall", "quartiles", "CPU"], lines))
    common.write("scaling", args, {"steps": found, "ratios": ratios})


if __name__ == "__main__":
    main()
