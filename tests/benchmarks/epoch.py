"""What an epoch costs at real lengths, ours and the PyTorch peer's.

Ours is what a run does: batches by length, the words that the task uses. The peer's
batches come in random order and are padded to 128, as earlier scripts do it, or to the
longest of the batch; its word table is whole. The 1-bit step of each is timed at every
shape, all sides alternating within this process; an epoch is the sum over its real
batches of what their shapes take. Where the peer pads to the longest, a grid of lengths
is timed, and what lies between is interpolated.

    BITFLAX_DATA=/data taskset -c 0 python -m tests.benchmarks.epoch > epoch.json
"""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bitflax.data import batches, tasks
from bitflax.data.text import Tokenizer, Tokens
from bitflax.distillation import vocabulary
from bitflax.model import pretrained
from tests.benchmarks import common, steps, train_step

FOLDERS = {"glue/cola": "CoLA", "glue/mrpc": "MRPC", "glue/sst2": "SST-2"}
LONGEST = 128
RATIOS = (
    ("padded / bucketed", "padded", "bucketed"),
    ("bucketed / peer padded", "bucketed", "peer padded"),
    ("bucketed / peer longest", "bucketed", "peer longest"),
)


def read(name: str, tokenizer: Tokenizer) -> tuple[Tokens, Any]:
    """Return the tokens and labels of a task's training examples."""
    folder = Path(os.environ["BITFLAX_DATA"]) / "glue" / FOLDERS[name]
    train = tasks.load_task(name, data_dir=folder).train
    return tokenizer.encode(train.texts, LONGEST), train.labels


def longest(lengths: np.ndarray, rows: int) -> Counter[int]:
    """Count the batches by the longest of their examples, which come in random order.

    >>> longest(np.array([3, 3, 3, 3]), 2)
    Counter({3: 2})
    """
    order = np.random.default_rng(0).permutation(len(lengths))
    starts = range(0, len(order), rows)
    return Counter(int(lengths[order[i : i + rows]].max()) for i in starts)


def grid(lengths: Counter[int], points: int) -> list[int]:
    """Return so many lengths, evenly from the least to the greatest."""
    spaced = np.linspace(min(lengths), max(lengths), points)
    return sorted(set(np.round(spaced).astype(int).tolist()))


class Epochs:
    """One task's epochs: how many batches of each shape, and the steps to time.

    Args:
      tokens: of the training examples.
      labels: theirs.
      args: the options.
    """

    def __init__(self, tokens: Tokens, labels: Any, args: Any):
        used = vocabulary.used_ids([tokens], 0)
        small = vocabulary.renumber_tokens(tokens, used)
        rows, buckets = args.batch_size, batches.buckets_for(tokens.lengths, LONGEST)
        self._args, self.words = args, len(used)
        self.bucketed = self._batches(small, labels, buckets)
        self._padded = self._batches(tokens, labels, (LONGEST,))
        shapes = self.bucketed.evaluation()
        self.counts: dict[str, Counter[int]] = {
            "bucketed": Counter(b["input_ids"].shape[1] for b in shapes),
            "padded": Counter({LONGEST: self._padded.steps_per_epoch}),
            "peer padded": Counter({LONGEST: self._padded.steps_per_epoch}),
            "peer longest": longest(tokens.lengths, rows),
        }

    def _batches(self, tokens: Tokens, labels: Any, buckets: Any) -> batches.Batches:
        rows = self._args.batch_size
        return batches.Batches(tokens, labels, batch_size=rows, seed=0, buckets=buckets)

    def sides(self) -> dict[str, Callable[[], Any]]:
        """Return the steps to time: ``{"way length": step}``."""
        args = self._args
        ours = steps.Stepper(
            args.step, args.model, self.bucketed, vocab_size=self.words
        )
        peer = train_step.side("peer 1-bit", args.model, self._padded)
        found: dict[str, Callable[[], Any]] = {}
        for batch in self.bucketed.evaluation():
            batch = _labelled(batch, args.model)
            length = batch["input_ids"].shape[1]
            found.setdefault(f"bucketed {length}", lambda b=batch: ours(b))
        whole = _labelled(next(self._padded.evaluation()), args.model)
        shrunk = _labelled(self._like(whole), args.model)
        found[f"padded {LONGEST}"] = lambda: ours(shrunk)
        found[f"peer padded {LONGEST}"] = lambda: peer(whole)
        for length in grid(self.counts["peer longest"], args.grid):
            cut = {k: v[:, :length] if v.ndim == 2 else v for k, v in whole.items()}
            found[f"peer longest {length}"] = lambda b=cut: peer(b)
        return found

    def _like(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return a batch with ids that the shrunk table has."""
        return batch | {"input_ids": batch["input_ids"] % self.words}

    def seconds(self, way: str, times: dict[str, common.Times]) -> common.Times:
        """Return an epoch's seconds, as each round by itself would have it."""
        points = {
            int(side.removeprefix(way)): found
            for side, found in times.items()
            if side.rpartition(" ")[0] == way
        }
        lengths, counts = zip(*sorted(self.counts[way].items()), strict=True)
        known = sorted(points)

        def total(clock: str) -> np.ndarray:
            rounds = np.array([getattr(points[n], clock) for n in known]).T
            return np.array(
                [np.dot(counts, np.interp(lengths, known, row)) for row in rounds]
            )

        return common.Times(total("wall"), total("cpu"))


def _labelled(batch: dict[str, np.ndarray], model: str) -> dict[str, np.ndarray]:
    """Return a batch with ids and labels that a smaller model has as well."""
    config, _, _ = steps.configs(model)
    return batch | {
        "input_ids": batch["input_ids"] % config.vocab_size,
        "labels": batch["labels"] % config.num_labels,
    }


def measure(name: str, args: Any, tokenizer: Tokenizer) -> dict[str, Any]:
    """Time both steps at every shape of a task."""
    tokens, labels = read(name, tokenizer)
    epochs = Epochs(tokens, labels, args)
    times = common.alternate(epochs.sides(), args.rounds)
    seconds = {way: epochs.seconds(way, times) for way in epochs.counts}
    return {
        "task": name,
        "step": args.step,
        "examples": len(tokens),
        "words": epochs.words,
        "real_tokens": int(tokens.lengths.sum()),
        "padded_tokens": epochs.bucketed.padded_tokens,
        "batches": {way: dict(sorted(n.items())) for way, n in epochs.counts.items()},
        "steps": {side: found.summary() for side, found in times.items()},
        "epoch_seconds": {way: found.summary() for way, found in seconds.items()},
        "ratios": {
            title: common.ratio(seconds[above], seconds[below])
            for title, above, below in RATIOS
        },
    }


def main() -> None:
    """Measure every task; the table goes to stderr, the JSON to stdout."""
    options = common.parser(__doc__)
    options.add_argument("--tasks", nargs="+", choices=FOLDERS, default=list(FOLDERS))
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--step", choices=steps.KINDS, default="1-bit")
    options.add_argument("--grid", type=int, default=6, help="lengths that are timed")
    args = common.parse(options)
    if "BITFLAX_DATA" not in os.environ:
        options.error("BITFLAX_DATA is unset: it names a folder with glue/ in it")
    tokenizer = Tokenizer.from_folder(pretrained.resolve_folder("minilm"))
    results = []
    for task in args.tasks:
        found = measure(task, args, tokenizer)
        results.append(found)
        common.say(f"\n{task}, {args.step} step of {args.model}, {args.rounds} rounds")
        for title, rows in (("step", "steps"), ("epoch", "epoch_seconds")):
            lines = [[side, *common.spread(s)] for side, s in found[rows].items()]
            head = [f"{title} (s)", "wall", "quartiles", "CPU (all threads)"]
            common.say(common.table(head, lines) + "\n")
        lines = [[t, *common.spread(r)] for t, r in found["ratios"].items()]
        common.say(common.table(["ratio", "wall", "quartiles", "CPU"], lines))
    common.write("epoch", args, {"results": results})


if __name__ == "__main__":
    main()
