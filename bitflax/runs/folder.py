"""The run folder: one run at a time, one recipe for good, everything in its place.

with RunFolder("runs/quickstart") as folder:
    folder.write_recipe(text, resolved(...))
    ...
    folder.finish("model.safetensors", "report.html", "report.json")
"""

import importlib.metadata
import io
import json
import logging
import os
import platform
import re
import secrets
import socket
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock  # jax has imported it

from bitflax import files, progress, training
from bitflax.errors import ConfigError, DamagedFile, FolderBusy, OutputError
from bitflax.runs import log

_LOG = logging.getLogger(__name__)

# What a stage costs, and not what it gives: a run that ran out of memory may go on
# with other ones.
_COSTS = {"recompute", "cache_teacher", "cache_bytes"}
_PACKAGES = (
    *("bitflax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint"),
    *("transformers", "tokenizers", "numpy"),
)


class RunFolder:
    """A run's folder, held by this process alone while the ``with`` lasts.

    With many processes process 0 holds it and writes logs and results; the others call
    the same methods, which write none, and read what it wrote: the folder is on a disk
    that all of them share and may write (checkpoints and caches have parts of each).

    Args:
      path: new, empty, or the folder of an earlier run.

    Raises:
      OutputError: it is a file, cannot be made or written, or holds other things; or
        is not the same for all processes.
      FolderBusy: another run is there.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock: filelock.BaseFileLock | None = None
        self._log = log.RunLog(self.path)

    def __enter__(self) -> "RunFolder":
        """Make the folder and lock it."""
        if training.is_main_process():
            _make_folder(self.path)
            self._lock = _lock(self.path)
        if training.process_part()[1] > 1:
            _check_shared(self.path)
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the log and give the folder free."""
        try:
            self._log.close()
        finally:
            lock, self._lock = self._lock, None
            if lock is not None:
                lock.release()

    def stage(self, number: int, name: str) -> Path:
        """Return the folder ``<number>-<name>`` of a stage, made if need be.

        Raises:
          ConfigError: the name is no file name.
        """
        if not re.fullmatch(r"[\w][\w.+-]*", name):
            raise ConfigError(
                f"stages.{number}.name",
                f"{name!r} cannot name a folder",
                fix="use letters, digits, '-', '_', '+' and '.'",
            )
        return self._folder(f"{number}-{name}")

    @property
    def cache(self) -> Path:
        """Compiled steps, tokens: what may be deleted."""
        return self._folder("cache")

    @property
    def log_path(self) -> Path:
        """The file that ``log`` writes."""
        return self._log.path

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to ``log.jsonl`` and TensorBoard; see ``RunLog``.

        ``{"stage": ..., "step": ..., "loss": {...}, "dev": {...}, "lr": ...}``

        Raises:
          StorageError: the disk is full or broken.
        """
        if training.is_main_process():
            self._log.write(line)

    def rewind(self, stage: str, step: int | None = None) -> None:
        """Drop a stage's log lines after ``step`` (None: all): they come again."""
        if training.is_main_process():
            self._log.rewind(stage, step)

    def progress(self, total: int, desc: str, initial: int = 0) -> progress.Progress:
        """Return a progress bar on stderr; process 0's alone is seen."""
        stream = None if training.is_main_process() else io.StringIO()
        return progress.Progress(total, desc, initial=initial, stream=stream)

    def write_recipe(
        self, text: str, resolved: Mapping[str, Any], overrides: Sequence[str] = ()
    ) -> None:
        """Write ``recipe.py`` and ``recipe.json``, or check that they are the same.

        What only changes a stage's memory (``recompute``, a teacher's kept outputs) may
        differ from then on.

        Args:
          text: the recipe file, as it is.
          resolved: the recipe with all defaults and overrides, as JSON.
          overrides: what ``--set`` was given.

        Raises:
          ConfigError: a stage began with another recipe, or another process has
            another one; says what differs.
          DamagedFile: ``recipe.json`` cannot be read.
        """
        mine = json.loads(json.dumps(resolved))
        self._check_same(mine)
        if not training.is_main_process():
            return
        known = self._read()
        if known is not None and any(self.path.glob("[0-9]*-*")):  # a stage began
            differ = list(_differences(known["recipe"], mine, free=_COSTS))
            if differ:
                raise self._another(differ)
            self._compare_versions(known["versions"])
        else:
            self._write(
                {
                    "recipe": mine,
                    "overrides": list(overrides),
                    "versions": versions(),
                    "hashes": {},
                    "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                }
            )
        if text:
            files.write_text(self.path / "recipe.py", text)

    def pin(self, name: str, value: str) -> None:
        """Record the hash of an input, once; a resumed run must have the same.

        With many processes all of them must have the same.

        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as tmp, RunFolder(tmp) as folder:
        ...     folder.write_recipe("", {"seed": 0})
        ...     folder.pin("data", "53aa")
        ...     folder.pin("data", "1ee7")
        Traceback (most recent call last):
        bitflax.errors.ConfigError: ...: the folder began with other settings: data was
            '53aa', is '1ee7' now
        fix: choose another --out, or set it back

        Raises:
          ConfigError: it has changed since the folder began.
        """
        self._check_same({name: value})
        if not training.is_main_process():
            return
        record = self._read()
        if record is None:
            raise RuntimeError("pin comes after write_recipe")
        known = record["hashes"].setdefault(name, value)
        if known != value:
            raise self._another([f"{name} was {known!r}, is {value!r} now"])
        self._write(record)

    @property
    def finished(self) -> bool:
        """Whether a run came to its end here and its results are still there."""
        return training.broadcast(self._finished)

    def _finished(self) -> bool:
        marker = self.path / ".finished"
        if not marker.is_file():
            return False
        names = marker.read_text(encoding="utf-8").split("\n")
        return all((self.path / name).exists() for name in names if name)

    def finish(self, *results: str) -> None:
        """Say that the run is done; the same command again does nothing.

        Args:
          results: the files, relative to the folder, that make it done.
        """
        if training.is_main_process():
            files.write_text(self.path / ".finished", "\n".join(results) + "\n")

    def _folder(self, name: str) -> Path:
        path = self.path / name
        with files.disk(path):
            path.mkdir(exist_ok=True)
        return path

    def _read(self) -> dict[str, Any] | None:
        path = self.path / "recipe.json"
        try:
            record = json.loads(path.read_bytes())
            if {"recipe", "versions", "hashes"} - record.keys():
                raise ValueError("it is not one of a run")
        except FileNotFoundError:
            return None
        except (ValueError, AttributeError) as error:
            raise DamagedFile(
                path, f"cannot be used: {error}", fix="choose another --out"
            ) from error
        return record

    def _write(self, record: Mapping[str, Any]) -> None:
        files.write_text(self.path / "recipe.json", json.dumps(record, indent=2))

    def _another(self, differ: Sequence[str]) -> ConfigError:
        more = f" (and {len(differ) - 5} more)" if len(differ) > 5 else ""
        return ConfigError(
            self.path,
            f"the folder began with other settings: {'; '.join(differ[:5])}{more}",
            fix="choose another --out, or set it back",
        )

    def _check_same(self, mine: Mapping[str, Any]) -> None:
        """Check that all processes have what process 0 has."""
        differ = list(_differences(training.broadcast(lambda: mine), mine))
        if differ:
            text = "; ".join(differ[:5]).replace(" now", " here")
            problem = (
                f"process {training.process_part()[0]} differs from process 0: {text}"
            )
            fix = "give all the same command and the same files"
            raise ConfigError(self.path, problem, fix=fix)

    def _compare_versions(self, known: Mapping[str, Any]) -> None:
        for line in _differences(known, versions()):
            _LOG.info("bitflax: note: %s: version of %s", self.path, line)


def versions() -> dict[str, str]:
    """Return the versions of Python and of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _differences(
    there: Any, here: Any, path: str = "", free: Collection[str] = ()
) -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        names = [name for name in {**there, **here} if name not in free]
        pairs = [(name, there.get(name), here.get(name)) for name in names]
    elif isinstance(there, list) and isinstance(here, list):
        size = max(len(there), len(here))
        there, here = (x + [None] * (size - len(x)) for x in (there, here))
        pairs = list(zip(range(size), there, here, strict=True))
    else:
        if there != here:
            yield f"{path} was {there!r}, is {here!r} now"
        return
    for name, x, y in pairs:
        yield from _differences(x, y, f"{path}.{name}" if path else str(name), free)


# What a run may have made before its recipe is written.
OURS = {"cache", "tensorboard", "log.jsonl"}
SEEN_SECONDS = 10.0


def _make_folder(path: Path) -> None:
    """Make a run's folder, or check that it is one.

    Raises:
      OutputError: it is a file, cannot be made, or holds other things.
    """
    fix = "choose another --out"
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = {p.name for p in path.iterdir() if not p.name.startswith(".")}
    except FileExistsError:
        raise OutputError(path, "is a file, not a folder", fix=fix) from None
    except OSError as error:
        raise OutputError(path, f"cannot be made: {error.strerror}", fix=fix) from error
    foreign = sorted(names - OURS)
    if foreign and not (path / "recipe.json").is_file():
        raise OutputError(path, f"is no run folder: it holds {foreign[0]}", fix=fix)


def _lock(path: Path) -> filelock.BaseFileLock:
    """Return the lock that says that this process runs in the folder.

    Raises:
      FolderBusy: another process does.
      OutputError: it cannot be written.
    """
    place = path / ".lock"
    lock = filelock.FileLock(place, fallback_to_soft=False)
    try:
        place.touch()
        lock.acquire(blocking=False)
    except filelock.Timeout:
        holder = place.read_text("utf-8").strip() or "another process"
        raise FolderBusy(
            path, f"in use by {holder}", fix="wait for it, or choose another --out"
        ) from None
    except OSError as error:
        if not os.access(place, os.W_OK):
            problem = f"cannot be written: {error.strerror}"
            raise OutputError(path, problem, fix="choose another --out") from error
        # Some network folders have no locks; that is no reason not to train.
        _LOG.info("bitflax: note: %s: cannot be locked", path)
        return lock
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    here = f"process {os.getpid()} on {socket.gethostname()} since {since}\n"
    place.write_text(here, "utf-8")
    return lock


def _check_shared(path: Path) -> None:
    """Check that what process 0 writes into the folder is there for all processes.

    Raises:
      OutputError: this process has another folder of that name, or none.
    """
    place = path / ".shared"

    def write() -> str:
        mark = secrets.token_hex(8)
        place.write_text(mark)
        return mark

    mark = training.broadcast(write)
    until = time.monotonic() + SEEN_SECONDS
    while not place.is_file() or place.read_text() != mark:
        if time.monotonic() > until:
            raise OutputError(
                path,
                "is not the folder that process 0 writes: all processes need one and "
                "the same",
                fix="choose an --out on a disk that all hosts mount, as NFS",
            )
        time.sleep(0.2)  # a network folder takes a while to show what is new
    training.barrier()
    if training.is_main_process():
        place.unlink()
