"""Tiny runs in processes that are forked from a warm one, to be killed and hindered."""

import functools
import gc
import json
import multiprocessing
import os
import pathlib
import sys

from tests.helpers import tinyrun

KINDS = dict(enumerate(tinyrun.KINDS))
WARM = ["bitflax.cli", "orbax.checkpoint", "tensorboardX", "transformers", "tqdm"]
WARM += ["transformers.models.auto.tokenization_auto", "tests.faults.runs"]

_context = multiprocessing.get_context("forkserver")


def serve(cache: pathlib.Path) -> None:
    """Have the warm process begin, which imports what runs need and computes nothing."""
    os.environ["JAX_COMPILATION_CACHE_DIR"] = str(cache)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    _context.set_forkserver_preload(WARM)


def write_place(folder: pathlib.Path) -> pathlib.Path:
    """Write a recipe of two stages, a ready teacher and a task."""
    folder.mkdir(parents=True, exist_ok=True)
    tinyrun.write_recipe(folder)
    tinyrun.write_teacher(folder / "ready", num_labels=3, id2label=KINDS)
    tinyrun.write_task(folder)
    return folder


def command(place: pathlib.Path, out: pathlib.Path, *more: str) -> list[str]:
    sets = [f"task={place / 'kinds.tsv'}", f"teacher={place / 'ready'}"]
    sets += [f"ready={place / 'ready'}", "epochs=4"]
    return (
        ["run", str(place / "tiny.py"), "--out", str(out)]
        + [word for each in sets for word in ("--set", each)]
        + list(more)
    )


class Run:
    """The command in a process of its own; ``said`` is what it wrote to stderr."""

    def __init__(self, argv, log: pathlib.Path, *hooks, env=()):
        self.log = log
        args = (list(map(str, argv)), str(log), hooks, dict(env))
        self._process = _context.Process(target=_child, args=args)
        self._process.start()
        self.pid = self._process.pid

    def wait(self, seconds: float = 60) -> int:
        """Return the status as a shell would say it; -9 where it hung and was killed."""
        self._process.join(seconds)
        if self._process.exitcode is None:
            self._process.kill()
            self._process.join()
            return -9
        code = self._process.exitcode
        return 128 - code if code < 0 else code

    @property
    def alive(self) -> bool:
        return self._process.is_alive()

    def send(self, number: int) -> None:
        os.kill(self.pid, number)

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace") if self.log.exists() else ""


def every_kind(begin, folder: pathlib.Path, hook):
    """Run until a fault came at every kind of file operation; yield run, status, folder.

    ``hook(root, seen, report)`` has one operation of a kind that ``seen`` has not fail,
    and writes its kind to ``report``. The next run goes on with what is there.
    """
    seen, number, report = set(), 0, folder / "report"
    while True:
        out = folder / f"run-{number}"
        report.unlink(missing_ok=True)
        fault = functools.partial(hook, str(out), frozenset(seen), str(report))
        run = begin(fault, out=out)
        status, new = run.wait(), report.exists()
        if new:
            seen.add(report.read_text())
        yield run, status, out
        if status == 0:
            if number and not new:
                break
            number += 1
    assert len(seen) >= 20, seen


def _child(argv, log, hooks, env):
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    for number in (1, 2):
        os.dup2(out, number)
    sys.stdout = os.fdopen(1, "w")
    # As Python itself opens it.
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    sys.argv = ["bitflax", *argv]
    # One device: eight on two cores wait for each other.
    os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    os.environ.update(env)
    gc.freeze()  # what was imported stays
    gc.set_threshold(50_000)
    from bitflax import cli
    from bitflax.training import loop

    loop.SAVE_SECONDS, loop.LOG_EVERY = 0.3, 3
    for hook in hooks:
        hook()
    cli.main()


def lines(out: pathlib.Path) -> list[dict]:
    """Return the log's lines but for the time of day."""
    texts = (out / "log.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(t).items() if k != "time"} for t in texts]


def end(out: pathlib.Path) -> dict:
    """Return all that a finished run must have the same, whatever came between."""
    kept = {
        str(path.relative_to(out)): path.read_bytes()
        for path in [out / "model.safetensors", *out.glob("*-*/params/*")]
    }
    rows = json.loads((out / "report.json").read_text())["stages"]
    return kept | {
        "log": lines(out),
        "scores": [(row["name"], row["score"], row["bits"]) for row in rows],
    }
