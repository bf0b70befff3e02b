"""The run folder: one run at a time, one recipe for good, everything in its place.

with RunFolder("runs/quickstart") as folder:
    folder.write_recipe(text, resolving.resolved(...))
    ...
    folder.finish("model.safetensors", "report.html", "report.json")
"""

import errno
import importlib.metadata
import json
import os
import platform
import re
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from bitflax import progressbar, runlog, storage
from bitflax.errors import ConfigError, DamagedFile, FolderBusy, OutputError

# What a run may have made before its recipe is written.
_OURS = {"cache", "tensorboard", "log.jsonl"}
_PACKAGES = (
    "bitflax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tokenizers",
    "numpy",
)


class RunFolder:
    """A run's folder, held by this process alone while the ``with`` lasts.

    Args:
      path: new, empty, or the folder of an earlier run.

    Raises:
      OutputError: it is a file, cannot be made or written, or holds other things.
      FolderBusy: another process runs there.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self._lock: IO[str] | None = None
        self._log = runlog.RunLog(self.path)

    def __enter__(self) -> "RunFolder":
        """Make the folder and lock it."""
        _make(self.path)
        self._lock = _lock(self.path)
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the log and give the folder free."""
        try:
            self._log.close()
        finally:
            lock, self._lock = self._lock, None
            if lock is not None:
                lock.close()

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
        """Compiled steps, tokens, teacher outputs: what may be deleted."""
        return self._folder("cache")

    @property
    def log_path(self) -> Path:
        """The file that ``log`` writes."""
        return self._log.path

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to ``log.jsonl`` and TensorBoard; see ``runlog``.

        ``{"stage": ..., "step": ..., "loss": {...}, "dev": {...}, "lr": ...}``

        Raises:
          StorageError: the disk is full or broken.
        """
        self._log.write(line)

    def rewind(self, stage: str, step: int | None = None) -> None:
        """Drop a stage's log lines after ``step`` (None: all): they come again."""
        self._log.rewind(stage, step)

    def progress(self, total: int, desc: str, initial: int = 0) -> progressbar.Progress:
        """Return a progress bar on stderr."""
        return progressbar.Progress(total, desc, initial=initial)

    def write_recipe(
        self, text: str, resolved: Mapping[str, Any], overrides: Sequence[str] = ()
    ) -> None:
        """Write ``recipe.py`` and ``recipe.json``, or check that they are the same.

        Args:
          text: the recipe file, as it is.
          resolved: the recipe with all defaults and overrides, as JSON.
          overrides: what ``--set`` was given.

        Raises:
          ConfigError: a stage began with another recipe; says what differs.
          DamagedFile: ``recipe.json`` cannot be read.
        """
        mine = json.loads(json.dumps(resolved))
        known = self._read()
        if known is not None and any(self.path.glob("[0-9]*-*")):  # a stage began
            differ = list(_differences(known["recipe"], mine))
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
            storage.write_text(self.path / "recipe.py", text)

    def pin(self, name: str, value: str) -> None:
        """Record the hash of an input, once; a resumed run must have the same.

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
        storage.write_text(self.path / ".finished", "\n".join(results) + "\n")

    def need(self, size: int) -> None:
        """Check that ``size`` bytes are free.

        Raises:
          StorageError: they are not.
        """
        storage.need(self.path, size)

    def _folder(self, name: str) -> Path:
        path = self.path / name
        with storage.disk(path):
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
        storage.write_text(self.path / "recipe.json", json.dumps(record, indent=2))

    def _another(self, differ: Sequence[str]) -> ConfigError:
        more = f" (and {len(differ) - 5} more)" if len(differ) > 5 else ""
        return ConfigError(
            self.path,
            f"the folder began with other settings: {'; '.join(differ[:5])}{more}",
            fix="choose another --out, or set it back",
        )

    def _compare_versions(self, known: Mapping[str, Any]) -> None:
        for line in _differences(known, versions()):
            print(f"bitflax: note: {self.path}: version of {line}", file=sys.stderr)


def versions() -> dict[str, str]:
    """Return the versions of Python and of what the numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _differences(there: Any, here: Any, path: str = "") -> Iterator[str]:
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = [(k, there.get(k), here.get(k)) for k in {**there, **here}]
    elif isinstance(there, list) and isinstance(here, list):
        size = max(len(there), len(here))
        there, here = (x + [None] * (size - len(x)) for x in (there, here))
        pairs = list(zip(range(size), there, here, strict=True))
    else:
        if there != here:
            yield f"{path} was {there!r}, is {here!r} now"
        return
    for name, x, y in pairs:
        yield from _differences(x, y, f"{path}.{name}" if path else str(name))


def _make(path: Path) -> None:
    fix = "choose another --out"
    try:
        path.mkdir(parents=True, exist_ok=True)
        names = {p.name for p in path.iterdir() if not p.name.startswith(".")}
    except FileExistsError:
        raise OutputError(path, "is a file, not a folder", fix=fix) from None
    except OSError as error:
        raise OutputError(path, f"cannot be made: {error.strerror}", fix=fix) from error
    foreign = sorted(names - _OURS)
    if foreign and not (path / "recipe.json").is_file():
        raise OutputError(path, f"is no run folder: it holds {foreign[0]}", fix=fix)


def _lock(path: Path) -> IO[str]:
    import fcntl

    try:
        file = open(path / ".lock", "a+", encoding="utf-8")  # noqa: SIM115
    except OSError as error:
        raise OutputError(
            path, f"cannot be written: {error.strerror}", fix="choose another --out"
        ) from error
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            # Some network folders have no locks; that is no reason not to train.
            print(f"bitflax: note: {path}: cannot be locked", file=sys.stderr)
            return file
        file.seek(0)
        holder = file.read().strip() or "another process"
        file.close()
        raise FolderBusy(
            path, f"in use by {holder}", fix="wait for it, or choose another --out"
        ) from None
    since = time.strftime("%Y-%m-%d %H:%M:%S")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
    file.flush()
    return file
