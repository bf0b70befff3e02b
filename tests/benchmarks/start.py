"""How long `bitflax run` takes to its first step, where its caches are warm.

A run of the recipe is started in a folder and ended at its first step, again and again:
the first start fills the folder's cache (tokens, compiled steps), the others read it.
Each start is a process of its own, and its clock begins when that process is made.

    python -m tests.benchmarks.start --recipe quickstart > start.json
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np

BEGAN = "BITFLAX_BEGAN"
PHASES = ("imported", "prepared", "begun", "first step")


def child(argv: list[str]) -> None:
    """Run the command to its first step; print when each phase was over, and end."""
    began, marks = float(os.environ[BEGAN]), {}

    def mark(name: str) -> None:
        marks[name] = time.time() - began

    import jax

    from bitflax import cli, training
    from bitflax.runs import stages

    mark("imported")
    prepare, train = stages.prepare, training.train

    def prepared(*args: Any) -> Any:
        experiment = prepare(*args)
        mark("prepared")
        return experiment

    def first(work: training.Training, *args: Any) -> Any:
        def batch(number: int) -> Any:
            mark("begun")  # from here on programs are compiled
            return work.batch(number)

        def take(*args: Any) -> Any:
            jax.block_until_ready(work.step(*args))
            mark("first step")
            print(json.dumps(marks | {"cpu": time.process_time()}), flush=True)
            os._exit(0)

        return train(dataclasses.replace(work, batch=batch, step=take), *args)

    # Where stages.py reads them.
    stages.prepare, training.train = prepared, first
    sys.exit(cli.main(argv))


def start(argv: list[str]) -> dict[str, float]:
    """Start a run in a process of its own; return when each phase was over."""
    command = [sys.executable, "-m", "tests.benchmarks.start", "--child", *argv]
    environment = os.environ | {BEGAN: repr(time.time())}
    found = subprocess.run(
        command, env=environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(found.stdout.splitlines()[-1])


def main() -> None:
    """Start cold once, then warm; the table goes to stderr, the JSON to stdout."""
    from tests.benchmarks import common

    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--recipe", default="quickstart")
    options.add_argument("--set", action="append", default=[], dest="settings")
    options.add_argument("--rounds", type=int, default=5)
    args = options.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        argv = ["run", args.recipe, "--out", f"{folder}/run"]
        for setting in args.settings:
            argv += ["--set", setting]
        cold = start(argv)
        warm = [start(argv) for _ in range(args.rounds)]
    found = {
        phase: np.percentile([each[phase] for each in warm], (25, 50, 75)).tolist()
        for phase in (*PHASES, "cpu")
    }
    lines = [
        [phase, f"{cold[phase]:.2f}", f"{middle:.2f}", f"{low:.2f}-{high:.2f}"]
        for phase, (low, middle, high) in found.items()
    ]
    head = ["seconds from the start", "cold", "warm", "quartiles"]
    common.say(common.table(head, lines))
    common.write("start", args, {"cold": cold, "warm": warm})


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2:])
    else:
        main()
