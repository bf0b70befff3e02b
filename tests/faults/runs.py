"""Tiny runs in processes that are forked from a warm one, to be killed and hindered."""

import functools
import json
import pathlib

from tests.helpers import forked, tinyrun

KINDS = dict(enumerate(tinyrun.KINDS))
# One device: eight on two cores wait for each other.
ENV = {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


def write_place(folder: pathlib.Path) -> pathlib.Path:
    """Write a recipe of two stages, a ready teacher and a task."""
    folder.mkdir(parents=True, exist_ok=True)
    recipe = tinyrun.write_recipe(folder)
    # One layer of one: a try's time goes into tracing them.
    recipe.write_text(recipe.read_text().replace("(1,)", "(0,)"))
    tinyrun.write_teacher(folder / "ready", layers=1, num_labels=3, id2label=KINDS)
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
    """The command in a process of its own; ``said`` is what it wrote to stderr.

    What is compiled is kept in ``cache``, where a killed one may leave a torn file.
    """

    def __init__(self, argv, log: pathlib.Path, cache: pathlib.Path, *hooks, env=()):
        self.log = log
        hooks = (functools.partial(_prepare, str(cache)), *hooks)
        more = ENV | dict(env)
        self._process = forked.Forked(argv, log, log, *hooks, env=more)

    def wait(self, seconds: float = 150) -> int:
        """Return the status as a shell would say it; -9 where it hung and was killed."""
        code = self._process.wait(seconds)
        if code is None:
            self._process.kill()
            self._process.wait()
            return -9
        return 128 - code if code < 0 else code

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    def send(self, number: int) -> None:
        self._process.send_signal(number)

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


def _prepare(cache: str) -> None:
    """Have a run save and log more often than the seconds that it takes allow."""
    import jax

    from bitflax.training import loop

    jax.config.update("jax_compilation_cache_dir", cache)
    loop.SAVE_SECONDS, loop.LOG_EVERY = 0.5, 3


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
