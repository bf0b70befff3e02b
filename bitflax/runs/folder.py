"""The run folder: one run at a time, one recipe for good, everything in its place.

with RunFolder("runs/quickstart") as folder:
    folder.write_recipe(text, resolved(...))
    ...
    folder.finish("model.safetensors", "report.html", "report.json")
"""

import contextlib
import io
import json
import logging
import os
import re
import secrets
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock  # jax has imported it

from bitflax import files, manifests, progress, training
from bitflax.errors import (
    ConfigError,
    DamagedFile,
    FolderBusy,
    OutputError,
    StorageError,
)
from bitflax.runs import log
from bitflax.runs.environment import differences, machine, versions, with_appended

_LOG = logging.getLogger(__name__)

FINISHED = ".finished"
RECORD = {"recipe": dict, "versions": dict, "hashes": dict}
RESULT = {"scores": dict, "seconds": int | float}
# What a stage costs, not what it gives: a run that ran out of memory may change them.
COSTS = {"recompute", "cache_teacher", "cache_bytes"}


class RunFolder:
    """A run's folder, held by this process alone while the ``with`` lasts.

    With many processes process 0 holds it and writes logs and results; the others call
    the same methods, which write none, and read what it wrote: the folder is on a disk
    that all of them share and may write (checkpoints and caches have parts of each).

    Args:
      path: new, empty, or the folder of an earlier run.
      on_log: called with every logged line, flat, in process 0.

    Raises:
      OutputError: it is a file, cannot be made or written, or holds other things; or
        is not the same for all processes.
      FolderBusy: another run is there.
    """

    def __init__(self, path: str | Path, on_log: log.OnLog | None = None):
        self.path = files.given(path, OutputError)
        self._lock: filelock.BaseFileLock | None = None
        self._log = log.RunLog(self.path, on_log)
        self.tensorboard, self.flush = self._log.tensorboard, self._log.flush
        self._written = False  # recipe.json, here

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
            # Where something failed, that is what is to be said.
            failed = contextlib.suppress(StorageError) if exc[0] else None
            with failed or contextlib.nullcontext():
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
            self._check_there()
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
        differ from then on, and stages may be appended. Other devices, and what else
        changes the last bits of the numbers, are said and recorded.

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
            began = with_appended(known["recipe"], mine)
            differ = list(differences(began, mine, free=COSTS))
            if differ:
                raise self._another(differ)
            if began != known["recipe"]:
                (self.path / FINISHED).unlink(missing_ok=True)
                known |= {"recipe": mine, "overrides": list(overrides)}
            self._write(self._compared(known))
        else:
            self._write(
                {
                    "recipe": mine,
                    "overrides": list(overrides),
                    "versions": versions(),
                    "machine": machine(),
                    "changes": [],
                    "hashes": {},
                    "began": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
                }
            )
        if text:
            files.write_text(self.path / "recipe.py", text)

    def pin(
        self, name: str, value: str, place: object, facts: Mapping[str, Any]
    ) -> None:
        """Record the hash of an input, once; a resumed run must have the same.

        With many processes all of them must have the same.

        Args:
          name: what it is.
          value: its hash.
          place: the file or folder that an error names.
          facts: what an error compares: sizes, or hashes of parts.

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
        before = record.setdefault("facts", {}).setdefault(name, dict(facts))
        if known != value:
            differ = [*differences(before, dict(facts))]
            raise self._another(differ or ["its content differs"], name, place)
        self._write(record)

    @property
    def finished(self) -> bool:
        """Whether a run came to its end here and its results are still there."""
        return training.broadcast(self._finished)

    def _finished(self) -> bool:
        marker = self.path / FINISHED
        try:
            names = manifests.read_manifest(self.path, FINISHED)["files"]
        except DamagedFile:  # or none; the results are made again
            names = {"": {}}
        if all((self.path / name).is_file() for name in names):
            fix = "remove it: the same command makes it again"
            manifests.check_manifest(self.path, FINISHED, fix)
            return True
        marker.unlink(missing_ok=True)
        return False

    def finish(self, *results: str) -> None:
        """Say that the run is done; the same command again does nothing.

        Args:
          results: the files, relative to the folder, that make it done.
        """
        if training.is_main_process():
            self._log.close()
            manifests.write_manifest(self.path, {}, FINISHED, results)
            with files.disk(self.path):
                files.sync(self.path)

    @property
    def record(self) -> dict[str, Any]:
        """What ``recipe.json`` says; ``changes`` are those between the runs here."""
        return self._read() or {"changes": []}

    def note(self, text: str) -> None:
        """Record a change, once."""
        known = self.record
        if training.is_main_process() and text not in known["changes"]:
            self._write(known | {"changes": [*known["changes"], text]})

    def _check_there(self) -> None:
        """Refuse to make a folder anew, with holes, that vanished meanwhile."""
        if self._written and not (self.path / "recipe.json").is_file():
            problem = "the folder, or its recipe.json, is gone"
            fix = "put it back as it was, or begin another run"
            raise StorageError(self.path, problem, fix=fix)

    def _folder(self, name: str) -> Path:
        path = self.path / name
        self._check_there()
        with files.disk(path):
            path.mkdir(exist_ok=True)
        return path

    def _read(self) -> dict[str, Any] | None:
        path = self.path / "recipe.json"
        try:
            if not path.exists():
                return None
            record = manifests.read_sealed(path, earlier=RECORD)
            return {"changes": [], "machine": machine(), **record}
        except DamagedFile as error:
            fix = "put it back as it was, or choose another --out"
            raise DamagedFile(path, error.problem, fix=fix) from error

    def _write(self, record: Mapping[str, Any]) -> None:
        manifests.write_sealed(self.path / "recipe.json", record)
        self._written = True

    def _another(
        self, differ: Sequence[str], what: str = "settings", place: object = None
    ) -> ConfigError:
        more = f" (and {len(differ) - 5} more)" if len(differ) > 5 else ""
        problem = f"{self.path} began with other {what}: {'; '.join(differ[:5])}{more}"
        fix = "choose another --out, or put back what was"
        return ConfigError(place or self.path, problem, fix=fix)

    def _check_same(self, mine: Mapping[str, Any]) -> None:
        """Check that all processes have what process 0 has."""
        differ = list(differences(training.broadcast(lambda: mine), mine))
        if differ and not training.is_main_process():
            text = "; ".join(differ[:5]).replace(" now", " here")
            fix = "give all the same command and the same files"
            who = f"process {training.process_part()[0]}"
            problem = f"{who} differs from process 0: {text}"
            raise ConfigError(self.path, problem, fix=fix)

    def _compared(self, known: dict[str, Any]) -> dict[str, Any]:
        """Say and record what is not as it was when the folder began."""
        here, changes = machine(), list(known["changes"])
        for line in differences(known["versions"], versions()):
            _LOG.info("bitflax: note: %s: version of %s", self.path, line)
            changes.append(f"version of {line}")
        for line in differences(known["machine"], here):
            _LOG.warning(
                "%s: %s: other numbers, in their last bits or more, than those of a "
                "run on one machine\nfix: go on as the run began, or begin another",
                self.path,
                line,
            )
            changes.append(line)
        return known | {"machine": here, "changes": list(dict.fromkeys(changes))}


OURS = {"cache", "tensorboard", "log.jsonl"}  # made before the recipe is written
SEEN_SECONDS = 10.0


def _make_folder(path: Path) -> None:
    """Make a run's folder, or check that it is one.

    Raises:
      OutputError: it is a file, no UTF-8, holds other things, or cannot be made.
    """
    fix = "choose another --out"
    try:
        str(path.absolute()).encode()
    except UnicodeEncodeError:  # tensorstore, which writes checkpoints, takes none
        problem = f"its name is not {sys.getfilesystemencoding().upper()}"
        mend = "rename it, or choose another; if its name is UTF-8, PYTHONUTF8=1 helps"
        raise OutputError(path, problem, fix=mend) from None
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
        holder = place.read_text("utf-8", "replace").strip() or "another process"
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
            problem = "is not the folder that process 0 writes: all need the same"
            fix = "choose an --out on a disk that all hosts mount, as NFS"
            raise OutputError(path, problem, fix=fix)
        time.sleep(0.2)  # a network folder takes a while to show what is new
    training.barrier()
    if training.is_main_process():
        place.unlink()
