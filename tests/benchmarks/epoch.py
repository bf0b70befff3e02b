"""What an epoch of a real data set costs: batches by length against padding to 128.

The step is timed at every shape that occurs, all shapes alternating within this
process; an epoch is the sum of the medians, each times the real number of batches of
its shape. The lengths are those of the training examples under the tokenizer of the
default teacher.

    BITFLAX_DATA=/data python -m tests.benchmarks.epoch > epoch.json
"""

import os
from collections import Counter
from pathlib import Path
from typing import Any

from bitflax import pretrained
from bitflax.data import batches as batching
from bitflax.data import tasks
from bitflax.data.text import Tokenizer, Tokens
from tests.benchmarks import common

FOLDERS = {"glue/cola": "CoLA", "glue/mrpc": "MRPC", "glue/sst2": "SST-2"}
LONGEST = 128


def read(name: str, tokenizer: Tokenizer) -> tuple[Tokens, Any]:
    """Return the tokens and labels of a task's training examples."""
    folder = Path(os.environ["BITFLAX_DATA"]) / "glue" / FOLDERS[name]
    train = tasks.load_task(name, data_dir=folder).train
    return tokenizer.encode(train.texts, LONGEST), train.labels


def measure(name: str, kind: str, args: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """Time a kind of step at every shape of a task, and the padded one."""
    tokens, labels = read(name, tokenizer)
    chosen = batching.buckets_for(tokens.lengths, LONGEST)
    ways = {}
    for way, buckets in (("bucketed", chosen), ("padded", (LONGEST,))):
        ways[way] = batching.Batches(
            tokens, labels, batch_size=args.batch_size, seed=0, buckets=buckets
        )
    stepper = common.Stepper(kind, args.model, ways["bucketed"])
    sides, counts = {}, {}
    for way, batches in ways.items():
        counts[way] = Counter(
            batch["input_ids"].shape for batch in batches.evaluation()
        )
        for batch in batches.evaluation():
            rows, length = batch["input_ids"].shape
            wrapped = within(batch, args.model)
            sides[f"{way} {rows}x{length}"] = lambda b=wrapped: stepper(b)
    times = common.alternate(sides, args.rounds)
    steps = {side: found.summary() for side, found in times.items()}
    epochs = {
        way: {
            clock: sum(
                count * steps[f"{way} {rows}x{length}"][clock]
                for (rows, length), count in counts[way].items()
            )
            for clock in ("wall", "cpu")
        }
        for way in ways
    }
    by_round = {way: _by_round(times, way, counts[way]) for way in ways}
    return {
        "task": name,
        "step": kind,
        "examples": len(tokens),
        "real_tokens": int(tokens.lengths.sum()),
        "padded_tokens": {way: b.padded_tokens for way, b in ways.items()},
        "batches": {
            way: {f"{rows}x{length}": n for (rows, length), n in found.items()}
            for way, found in counts.items()
        },
        "steps": steps,
        "epoch_seconds": epochs,
        "padded / bucketed": common.ratio(by_round["padded"], by_round["bucketed"]),
    }


def within(batch: dict[str, Any], model: str) -> dict[str, Any]:
    """Return a batch with ids and labels that a smaller model has as well."""
    config, _, _ = common.configs(model)
    labels = batch["labels"] % config.num_labels
    return batch | {
        "input_ids": batch["input_ids"] % config.vocab_size,
        "labels": labels,
    }


def _by_round(times: dict[str, common.Times], way: str, counts: Any) -> common.Times:
    """Return the epoch as each round by itself would have it."""
    parts = [
        (n, times[f"{way} {rows}x{length}"]) for (rows, length), n in counts.items()
    ]
    wall = sum(n * found.wall for n, found in parts)
    return common.Times(wall, sum(n * found.cpu for n, found in parts))


def main() -> None:
    """Measure every task; the table goes to stderr, the JSON to stdout."""
    options = common.parser(__doc__)
    options.add_argument(
        "--tasks",
        nargs="+",
        choices=FOLDERS,
        default=["glue/cola", "glue/mrpc", "glue/sst2"],
    )
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--step", choices=common.STEPS[:3], default="1-bit")
    args = common.parse(options)
    if "BITFLAX_DATA" not in os.environ:
        options.error("BITFLAX_DATA is unset: it names a folder with glue/ in it")
    tokenizer = Tokenizer.from_folder(pretrained.resolve("minilm"))
    results = []
    for task in args.tasks:
        found = measure(task, args.step, args, tokenizer)
        results.append(found)
        common.say(f"\n{task}, {args.step} step of {args.model}, {args.rounds} rounds")
        lines = []
        for side, summary in found["steps"].items():
            way, shape = side.split()
            lines.append([side, found["batches"][way][shape], *common.spread(summary)])
        head = ["step (s)", "batches", "wall", "quartiles", "CPU (all threads)"]
        common.say(common.table(head, lines))
        for way, clock in found["epoch_seconds"].items():
            common.say(f"epoch, {way}: {clock['wall']:.1f} s, CPU {clock['cpu']:.1f} s")
        wall, quartiles, cpu = common.spread(found["padded / bucketed"], ".2f")
        common.say(f"padded / bucketed: {wall} ({quartiles}), CPU {cpu}")
    common.write("epoch", args, {"results": results})


if __name__ == "__main__":
    main()
