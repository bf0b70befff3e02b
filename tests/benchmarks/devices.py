"""Whole stages on one device and on eight: the same scores, seed by seed.

Twenty steps agree to 1e-5 whatever the number of devices (tests/training/test_parallel.py). Over
a stage the signs of 1-bit weights amplify how sums were rounded, as another order of
adding would; what has to stay is the score. Runs the quickstart, shrunk, with each seed
on each number of devices, and prints the scores, the difference that the devices make
(paired by seed), and the spread that the seeds make.

    python -m tests.benchmarks.devices --teacher runs/quickstart/0-teacher/params
"""

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
from pathlib import Path

# Read when jax starts, so it comes before its import.
_FLAG = "--xla_force_host_platform_device_count=8"
os.environ["XLA_FLAGS"] = f"{_FLAG} {os.environ.get('XLA_FLAGS', '')}".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import numpy as np  # noqa: E402

import bitflax as bf  # noqa: E402
from bitflax.runs import stages  # noqa: E402
from tests.benchmarks import common  # noqa: E402
from tests.helpers import tinyrun  # noqa: E402

RECIPE = Path(__file__).parents[2] / "recipes" / "quickstart.py"
STAGES = ("fp32", "onebit")


def scores(args: argparse.Namespace, seed: int, devices: int) -> dict[str, float]:
    """Return each stage's score of a run with a seed on so many devices."""
    settings = {
        "teacher": args.teacher,
        "teacher_epochs": 0,
        "layers": "1,3",
        "limit": args.limit,
        "fp32_epochs": args.epochs,
        "onebit_epochs": 2 * args.epochs,
        "max_length": 32,
        "stages.fp32.evals": 1,
        "stages.onebit.evals": 1,
        "seed": seed,
    }
    made = bf.load_recipe(RECIPE, [f"{name}={x}" for name, x in settings.items()])
    quiet = io.StringIO()
    with tempfile.TemporaryDirectory() as out, tinyrun.devices(devices):
        streams = contextlib.redirect_stdout(quiet), contextlib.redirect_stderr(quiet)
        with streams[0], streams[1]:
            rows = stages.run(made, Path(out) / "run")
    return {row.name: float(row.score) for row in rows if row.name in STAGES}


def summary(found: np.ndarray) -> dict[str, float]:
    """Return mean and sample deviation."""
    return {"mean": float(found.mean()), "deviation": float(found.std(ddof=1))}


def main() -> int:
    """Run all, print a table on stderr and JSON on stdout."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True, help="a fine-tuned folder")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--limit", type=int, default=1024, help="training examples")
    parser.add_argument("--epochs", type=int, default=1, help="in FP32; 1-bit twice")
    args = parser.parse_args()
    found = {(stage, n): [] for stage in STAGES for n in (1, 8)}
    for seed in range(args.seeds):
        for devices in (1, 8):
            began = time.monotonic()
            for stage, score in scores(args, seed, devices).items():
                found[stage, devices].append(score)
            seconds = time.monotonic() - began
            common.say(f"seed {seed}, {devices} devices: {seconds:.0f} s")
    results, rows = {}, []
    for stage in STAGES:
        one, eight = (np.array(found[stage, n]) for n in (1, 8))
        parts = {"one": one, "eight": eight, "eight - one": eight - one}
        results[stage] = {
            name: summary(part) | {"seeds": part.tolist()}
            for name, part in parts.items()
        }
        for name, part in parts.items():
            shown = summary(part)
            cells = [f"{shown['mean']:+.4f}", f"{shown['deviation']:.4f}"]
            rows.append([f"{stage}, {name}", *cells, *(f"{x:+.4f}" for x in part)])
    head = ["accuracy", "mean", "deviation", *map(str, range(args.seeds))]
    common.say(common.table(head, rows))
    common.write("devices", args, {"results": results})
    return 0


if __name__ == "__main__":
    sys.exit(main())
