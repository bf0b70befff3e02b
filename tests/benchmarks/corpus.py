"""What it costs to stream a text: tokens a second, memory, and the time of a resume.

No model runs. The text is made here, the same for everyone: lines of 5 to 80 words,
drawn by Zipf's law from the words of the tokenizer of the default teacher and from made
ones, which cost it several pieces.

    python -m tests.benchmarks.corpus --bytes 1e8 > small.json
    python -m tests.benchmarks.corpus --bytes 1e9 --keep /tmp/corpus > large.json
"""

import argparse
import json
import re
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bitflax.data.corpus import CorpusBatches
from bitflax.data.text import Tokenizer
from bitflax.model import pretrained
from tests.benchmarks import common

BLOCK = 100_000
"""Words that are drawn at a time."""


def words(tokenizer: Tokenizer, seed: int) -> np.ndarray:
    """Return 40,000 words: half of the vocabulary's own, half made of syllables."""
    rng = np.random.default_rng(seed)
    vocabulary = json.loads(tokenizer.to_json())["model"]["vocab"]
    own = sorted(word for word in vocabulary if re.fullmatch("[a-z]{2,}", word))
    syllables = [c + v for c in "bcdfghklmnprstvw" for v in "aeiou"]
    made = ["".join(rng.choice(syllables, n)) for n in rng.integers(2, 6, len(own))]
    return rng.permutation(np.array(own + made, object))


def write(path: Path, size: int, tokenizer: Tokenizer, seed: int = 0) -> None:
    """Write a text of ``size`` bytes, or a little more."""
    rng, listed = np.random.default_rng(seed), words(tokenizer, seed)
    share = 1 / np.arange(10, 10 + len(listed))
    ends = np.cumsum(share / share.sum())
    written = 0
    with path.open("w", encoding="utf-8") as file:
        while written < size:
            drawn = listed[np.searchsorted(ends, rng.random(BLOCK)) % len(listed)]
            place = 0
            while place < len(drawn):
                count = int(rng.integers(5, 81))
                line = " ".join(drawn[place : place + count]) + ".\n"
                written += file.write(line)
                place += count


def peak_mb() -> float:
    """Return the most memory that this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(path: Path, tokenizer: Tokenizer, args: Any, cache: Path) -> dict:
    """Stream one epoch, then resume in the middle."""
    settings: dict[str, Any] = dict(
        length=args.length, batch_size=args.batch_size, seed=0, cache=cache
    )
    before = peak_mb()
    start = time.perf_counter()
    corpus = CorpusBatches(path, tokenizer, **settings)
    opened = time.perf_counter() - start
    corpus.batch(0)
    first = time.perf_counter() - start
    held_out = sum(1 for _ in corpus.evaluation())
    start, cpu = time.perf_counter(), time.process_time()
    tokens = steps = 0
    longest = 0.0
    # Where the first epoch ends is known once its last window is read.
    while corpus._counts.pieces.min() < 0 or steps < corpus.steps_per_epoch:
        began = time.perf_counter()
        tokens += int(corpus.batch(steps)["attention_mask"].sum())
        longest = max(longest, time.perf_counter() - began)
        steps += 1
    wall, cpu = time.perf_counter() - start, time.process_time() - cpu
    start = time.perf_counter()
    expected = corpus.batch(steps // 2)["input_ids"]
    jump = time.perf_counter() - start
    start = time.perf_counter()
    again = CorpusBatches(path, tokenizer, **settings).batch(steps // 2)["input_ids"]
    resumed = time.perf_counter() - start
    assert (expected == again).all()
    return {
        "bytes": path.stat().st_size,
        "steps": steps,
        "tokens": tokens,
        "held-out batches": held_out,
        "seconds to open and check": opened,
        "seconds to the first batch": first,
        "seconds an epoch": wall,
        "CPU seconds an epoch": cpu,
        "tokens a second": tokens / wall,
        "MB a second": path.stat().st_size / wall / 1e6,
        "longest step": longest,
        "seconds to jump to the middle": jump,
        "seconds to resume in the middle": resumed,
        "peak MB before": before,
        "peak MB": peak_mb(),
    }


def main() -> None:
    """Measure one size; the JSON goes to stdout."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--bytes", type=float, default=1e8)
    options.add_argument("--length", type=int, default=128)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--keep", type=Path, help="folder to keep the text in")
    args = options.parse_args()
    tokenizer = Tokenizer.from_folder(pretrained.resolve_folder("minilm"))
    with tempfile.TemporaryDirectory() as folder:
        path = (args.keep or Path(folder)) / f"{args.bytes:.0f}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            write(path, int(args.bytes), tokenizer)
        found = measure(path, tokenizer, args, Path(folder) / "cache")
    args.keep = str(args.keep)
    common.write("corpus", args, found)


if __name__ == "__main__":
    main()
