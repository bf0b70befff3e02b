"""Damaged and hostile packed files by the thousand: refused, or the very same weights.

``python -m tests.benchmarks.fuzz [--files 100000] [--hostile 5000] [--seed 0]
[--model FILE]``

Of the damaged files (random bytes, wrong checksum) one in a hundred is made of
``--model``, a real file, the others of a file of 12 kB. One that is accepted has to say
and hold exactly what the original does. A hostile file has a right checksum, so that it
may be a good file of another student: one that is accepted has to have finite
parameters of the configured shapes, a model that can be traced with its activation
quantizers, a tokenizer that is built or refused, and has to be the same after it is
saved and read again. Whatever else happens is a failure, and so is a file that takes
over two seconds of the processor's time, or over twice its size and 64 MB of memory;
the process's own peak is measured, so that what libraries allocate counts.
"""

import argparse
import collections
import ctypes
import json
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import bitflax as bf
from bitflax import trees
from bitflax.data.text import Tokenizer
from bitflax.errors import DamagedFile
from bitflax.inference import stored_model
from bitflax.model import names
from bitflax.packed import file
from bitflax.packed.file import StoredModel
from tests.helpers import hostile, tinypacked

SECONDS, MEMORY = 2.0, 64e6
_TRACED: set[tuple[str, ...]] = set()


class Wrong(Exception):
    """A file was accepted that should not have been."""


def said(found: StoredModel) -> list:
    """Return all that a file says, to be compared."""
    rest = [repr(found.config), repr(found.act), found.tokenizer, repr(found.extras)]
    leaves = [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(found.params)]
    return [*rest, str(jax.tree.structure(found.params)), *leaves]


def opened(path: pathlib.Path) -> StoredModel:
    """Read a file, and build its tokenizer as a predictor does."""
    found = file.read_packed(path)
    if found.tokenizer is not None:
        Tokenizer.from_json(found.tokenizer, path)
    return found


def check_same(found: StoredModel, original: list) -> None:
    """Raise ``Wrong`` where what was read is not the original."""
    if said(found) != original:
        raise Wrong("silently different")


def check_sound(found: StoredModel, path: pathlib.Path) -> None:
    """Raise ``Wrong`` where what was read is no student that runs and is kept."""
    shapes = names.parameter_shapes(found.config, found.act)
    flat = trees.flatten(found.params)
    if {name: tuple(leaf.shape) for name, leaf in flat.items()} != shapes:
        raise Wrong("other parameters than configured")
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found.params)):
        raise Wrong("a parameter is not finite")
    check_runs(found)
    if found.tokenizer is not None:
        tokenizer = Tokenizer.from_json(found.tokenizer, path)
        ids = tokenizer.encode([["naïve \u2603 a b", "c" * 300]], 16).ids
        if len(ids) and ids.max() >= found.config.vocab_size:
            raise Wrong("the tokenizer gives ids without a row")
    again = path.with_name("again")
    file.save_packed(again, *found)
    if said(file.read_packed(again)) != said(found):
        raise Wrong("saved and read again, it is another")


def check_runs(found: StoredModel) -> None:
    """Raise ``Wrong`` where the model cannot be traced; each kind is traced once."""
    kind = (repr(found.config), repr(found.act), str(jax.tree.structure(found.params)))
    if kind in _TRACED:
        return
    ids = jax.ShapeDtypeStruct((2, 3), jnp.int32)
    batch = {"input_ids": ids, "attention_mask": ids, "token_type_ids": ids}
    try:
        jax.eval_shape(bf.bert(found.config, found.act), found.params, batch)
    except Exception as error:
        raise Wrong(f"the model does not run: {error}") from error
    _TRACED.add(kind)


class Peak:
    """The growth of this process's memory, from ``start`` to its peak since."""

    _libc = ctypes.CDLL(None)

    def start(self) -> None:
        """Give free memory back, so that its use shows, and begin anew."""
        self._libc.malloc_trim(0)
        pathlib.Path("/proc/self/clear_refs").write_text("5")
        self._before = self._read("VmRSS")

    def bytes(self) -> int:
        """Return by how much the peak is above what was there at the start."""
        return self._read("VmHWM") - self._before

    def _read(self, name: str) -> int:
        for line in pathlib.Path("/proc/self/status").read_text().splitlines():
            if line.startswith(f"{name}:"):
                return 1024 * int(line.split()[1])
        raise OSError(f"{name} is not in /proc/self/status")


class Trial:
    """Counts what becomes of files, and the most that one of them took."""

    def __init__(self, folder: pathlib.Path):
        self.path, self.peak = folder / "model.safetensors", Peak()
        self.counts: collections.Counter[str] = collections.Counter()
        self.failures: list[str] = []
        self.seconds = self.memory = 0.0
        self.slowest = self.largest = ""

    def read(self, raw: bytes, name: str) -> StoredModel | None:
        """Read one file, and return what it holds, where it is accepted."""
        self.path.write_bytes(raw)
        began, found, outcome = time.process_time(), None, "accepted"
        try:
            found = opened(self.path)
        except DamagedFile:
            outcome = "refused"
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._fail(name, f"{type(error).__name__}: {error}", raw)
            outcome = "failed"
        seconds = time.process_time() - began
        if seconds > self.seconds:
            self.seconds, self.slowest = seconds, name
        if seconds > SECONDS:
            self._fail(name, f"{seconds:.1f} s", raw)
        self.counts[outcome] += 1
        return found

    def judge(self, raw: bytes, name: str, check: Callable[[], None]) -> None:
        """Count an accepted file as a failure where ``check`` raises."""
        try:
            check()
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            self._fail(name, f"{type(error).__name__}: {error}", raw)

    def remember(self, name: str, raw: bytes) -> None:
        """Note the memory's peak since ``peak.start``, whatever was read meanwhile."""
        over = self.peak.bytes() - 2 * len(raw)
        if over > self.memory:
            self.memory, self.largest = over, name
        if over > MEMORY:
            self._fail(name, f"{over / 1e6:.0f} MB over twice its size", raw)

    def _fail(self, name: str, problem: str, raw: bytes) -> None:
        kept = self.path.with_name(f"failed-{len(self.failures)}")
        kept.write_bytes(raw)
        self.failures.append(f"{name}: {problem[:300]} ({kept})")

    def report(self) -> dict:
        """Return the counts and the extremes."""
        return {
            **self.counts,
            "failures": len(self.failures),
            "slowest_cpu_ms": round(1e3 * self.seconds, 1),
            "slowest": self.slowest,
            "memory_over_twice_its_size_mb": round(self.memory / 1e6, 1),
            "largest": self.largest,
        }


def damaged(trial: Trial, raw: bytes, count: int, rng: np.random.Generator) -> None:
    """Try ``count`` files of random damage to ``raw``."""
    trial.path.write_bytes(raw)
    original = said(opened(trial.path))
    for start in range(0, count, 100):
        trial.peak.start()
        for number in range(start, min(count, start + 100)):
            made, name = hostile.damaged(rng, raw), f"damaged {number}"
            found = trial.read(made, name)
            if found is not None:
                trial.judge(made, name, partial(check_same, found, original))
        trial.remember(f"damaged, 100 from {start}", b"")


def forged(trial: Trial, raw: bytes, count: int, rng: np.random.Generator) -> None:
    """Try ``count`` files whose checksum is right."""
    for number in range(count):
        kind, made = hostile.forged(rng, raw)
        name = f"{kind} {number}"
        trial.peak.start()
        found = trial.read(made, name)
        trial.remember(name, made)
        if found is not None:
            trial.judge(made, name, partial(check_sound, found, trial.path))


def main() -> int:
    """Run, print the counts and the extremes as JSON, and each failure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=100_000)
    parser.add_argument("--hostile", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", help="a real packed file, or a run")
    args = parser.parse_args()
    rng, tiny = np.random.default_rng(args.seed), tinypacked.tiny()
    # In memory where there is such a folder: a disk takes ten times the reader's time.
    memory = "/dev/shm" if pathlib.Path("/dev/shm").is_dir() else None
    folder = pathlib.Path(tempfile.mkdtemp(prefix="fuzz-", dir=memory))
    real = (
        stored_model.locate_model(pathlib.Path(args.model)).read_bytes()
        if args.model
        else b""
    )
    share = args.files // 100 if real else 0
    parts = {
        "damaged": (damaged, tiny, args.files - share),
        "damaged, real": (damaged, real, share),
        "hostile": (forged, tiny, args.hostile),
    }
    failures = []
    for name, (run, raw, count) in parts.items():
        trial, began = Trial(folder), time.perf_counter()
        if count:
            run(trial, raw, count, rng)
            seconds = round(time.perf_counter() - began)
            print(json.dumps({name: count, **trial.report(), "seconds": seconds}))
        failures += trial.failures
    print("\n".join(failures[:50]))
    if not failures:
        shutil.rmtree(folder)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
