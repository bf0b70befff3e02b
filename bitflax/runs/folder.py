"""The run folder: one process at a time, one recipe as long as it exists.

with RunFolder("runs/quickstart") as folder:
    folder.write_recipe(text, resolved(...))
    ...
    folder.finish("model.safetensors", "report.html", "report.json")
"""

import contextlib
import io
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import filelock  # jax has imported it

from bitflax import files, manifests, progress, training
from bitflax.errors import (
    ConfigError,
    DamagedFile,
    InputMissing,
    OutputError,
    StorageError,
)
from bitflax.runs import folder_lock, log
from bitflax.runs.environment import (
    differences,
    listed,
    machine,
    versions,
    with_appended,
)

_LOG = logging.getLogger(__name__)

FINISHED = ".finished"
RECORD = {"recipe": dict, "versions": dict, "hashes": dict}
RESULT = {"scores": dict, "seconds": int | float}
# These change memory and time, not the result: after running out of memory, a run may
# go on with others.
COSTS = {"recompute", "cache_teacher", "cache_bytes"}


class RunFolder:
    """A run's folder, held by this process alone while the ``with`` lasts.

    With many processes, process 0 holds it and writes logs and results. The others call
    the same methods, which write nothing there, and read what process 0 wrote: the
    folder is on a disk that all share. Each writes its parts of checkpoints and caches.

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
            folder_lock.make_folder(self.path)
            self._lock = folder_lock.lock(self.path)
        if training.process_part()[1] > 1:
            folder_lock.check_shared(self.path)
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the log and release the folder."""
        try:
            # An error of closing must not hide the one that ended the run.
            failed = contextlib.suppress(StorageError) if exc[0] else None
            with failed or contextlib.nullcontext():
                self._log.close()
        finally:
            lock, self._lock = self._lock, None
            if lock is not None:
                lock.release()

    def stage(self, number: int, name: str) -> Path:
        """Return the folder ``<number>-<name>`` of a stage; make it if need be."""
        return self._folder(f"{number}-{name}")

    @property
    def cache(self) -> Path:
        """The folder of compiled steps and tokens, which may be deleted."""
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
        """Drop a stage's log lines after ``step`` (None: all); they come again."""
        if training.is_main_process():
            self._log.rewind(stage, step)

    def progress(self, total: int, desc: str, initial: int = 0) -> progress.Progress:
        """Return a progress bar on stderr; only process 0 shows one."""
        stream = None if training.is_main_process() else io.StringIO()
        return progress.Progress(total, desc, initial=initial, stream=stream)

    def write_recipe(
        self, text: str, resolved: Mapping[str, Any], overrides: Sequence[str] = ()
    ) -> None:
        """Write ``recipe.py`` and ``recipe.json``, or check that they are the same.

        A resumed run may differ in what only changes memory (``recompute``, the
        teacher's kept outputs), and may have more stages at its end. Other devices or
        versions, which change the last bits of numbers, are told and recorded.

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
        if known is not None and self._begun:
            began = with_appended(known["recipe"], mine)
            differ = list(differences(began, mine, free=COSTS))
            if differ:
                raise self._changed(differ)
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
        """Record the hash of an input; a resumed run must have the same.

        So must all processes.

        Args:
          name: what the input is.
          value: its hash.
          place: the file or folder that an error names.
          facts: sizes, or hashes of parts, by which an error says what differs.

        Raises:
          ConfigError: it has changed since the run began, or differs on this host.
        """
        self._check_same({name: value})
        if not training.is_main_process():
            return
        self._check_there()
        record = self.record
        known = record["hashes"].setdefault(name, value)
        before = record.setdefault("facts", {}).setdefault(name, dict(facts))
        if known != value:
            differ = [*differences(before, dict(facts))]
            raise self._changed(differ or ["its content differs"], name, place)
        self._write(record)

    def planned(self, stage: str, steps: int) -> int:
        """Return the steps that a stage began with; a default may be another since."""
        known = training.broadcast(lambda: self.record.get("steps", {}))
        if known.get(stage, steps) != steps:
            note = f"{stage} began with {known[stage]} steps, and goes on with them, "
            note += f"though the recipe now means {steps}: for those, another --out; "
            note += "--fork of this folder takes over what is finished"
            if training.is_main_process():
                progress.tell(note)
            self.note(note)
        elif stage not in known and training.is_main_process():
            self._write(self.record | {"steps": known | {stage: steps}})
        return known.get(stage, steps)

    @property
    def began(self) -> dict[str, Any]:
        """The resolved recipe that a stage began with; ``{}``: none did."""
        return self.record.get("recipe", {}) if self._begun else {}

    @property
    def _begun(self) -> bool:
        return any(self.path.glob("[0-9]*-*"))

    @property
    def finished(self) -> bool:
        """Whether a run has finished here and its results are still there."""
        return training.broadcast(self._finished)

    def _finished(self) -> bool:
        marker = self.path / FINISHED
        try:
            names = manifests.read_manifest(self.path, FINISHED)["files"]
        except DamagedFile:  # missing or unreadable: the results are made again
            names = {"": {}}
        if all((self.path / name).is_file() for name in names):
            fix = "remove it: the same command makes it again"
            manifests.check_manifest(self.path, FINISHED, fix)
            return True
        marker.unlink(missing_ok=True)
        return False

    def finish(self, *results: str) -> None:
        """Mark the run as done, so that the same command again does nothing.

        Args:
          results: its result files, relative to the folder; the mark holds while they
            are there.
        """
        if training.is_main_process():
            self._log.close()
            manifests.write_manifest(self.path, {}, FINISHED, results)
            with files.disk(self.path):
                files.sync(self.path)

    @property
    def record(self) -> dict[str, Any]:
        """What ``recipe.json`` says; ``changes`` tell how resumed runs differed."""
        return self._read() or {"changes": []}

    def note(self, text: str) -> None:
        """Record a change, if it is not recorded yet."""
        known = self.record
        if training.is_main_process() and text not in known["changes"]:
            self._write(known | {"changes": [*known["changes"], text]})

    def _check_there(self) -> None:
        """Check that the folder was not removed meanwhile, before it is written to."""
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

    def _changed(
        self, differ: Sequence[str], what: str = "settings", place: object = None
    ) -> ConfigError:
        problem = f"{self.path} began with other {what}: {listed(differ)}"
        fix = "choose another --out, or undo the change"
        return ConfigError(place or self.path, problem, fix=fix)

    def _check_same(self, mine: Mapping[str, Any]) -> None:
        """Check that all processes have what process 0 has."""
        differ = list(differences(training.broadcast(lambda: mine), mine))
        if differ and not training.is_main_process():
            text = "; ".join(differ[:5]).replace(" now", " here")
            fix = "give all processes the same command and the same files"
            who = f"process {training.process_part()[0]}"
            problem = f"{who} differs from process 0: {text}"
            raise ConfigError(self.path, problem, fix=fix)

    def _compared(self, known: dict[str, Any]) -> dict[str, Any]:
        """Tell and record which versions and devices differ from those at the start."""
        here, changes = machine(), list(known["changes"])
        for line in differences(known["versions"], versions()):
            _LOG.info("bitflax: note: %s: version of %s", self.path, line)
            changes.append(f"version of {line}")
        for line in differences(known["machine"], here):
            _LOG.warning(
                "%s: %s: scores may differ from those of a run that stays on one "
                "machine\nfix: resume it where it began, or begin another run",
                self.path,
                line,
            )
            changes.append(line)
        return known | {"machine": here, "changes": list(dict.fromkeys(changes))}


def need_run(path: Path) -> None:
    """Check that a path is the folder of a run.

    Raises:
      InputMissing: it holds no ``recipe.json``.
    """
    if not (path / "recipe.json").is_file():
        problem = "not a run's folder: no recipe.json in it"
        raise InputMissing(path, problem, fix="give the folder of a run, its --out")
