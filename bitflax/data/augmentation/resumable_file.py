"""A file of lines that grows piece by piece, and can be gone on with.

Beside ``out.jsonl`` lies ``out.jsonl.json``: the settings that it is made with, how
many pieces are done and how many bytes they take. Until all are, the lines are in
``out.jsonl.part``.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import filelock

from bitflax import files
from bitflax.errors import ConfigError, FolderBusy, OutputError


class ResumableFile:
    """A file in the making, held by this process alone while the ``with`` lasts.

    Args:
      path: the file to be.
      settings: what it depends on, as JSON.
      total: the number of pieces.

    Raises:
      OutputError: the file is there and was not made by this, or cannot be made.
      ConfigError: it was begun with other settings; says which.
      FolderBusy: another process writes it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as tmp:
    ...     path = Path(tmp) / "out.jsonl"
    ...     with ResumableFile(path, {"seed": 0}, 2) as file:
    ...         file.append("a\\n", 1)
    ...     with ResumableFile(path, {"seed": 0}, 2) as file:
    ...         print(file.done)
    ...         file.append("b\\n", 2)
    ...     path.read_text()
    1
    'a\\nb\\n'
    """

    def __init__(self, path: str | Path, settings: Mapping[str, Any], total: int):
        self.path, self.total = Path(path), total
        self.settings = json.loads(json.dumps(settings))
        self.done, self._size = 0, 0
        self._part = self.path.with_name(f"{self.path.name}.part")
        self._state = self.path.with_name(f"{self.path.name}.json")
        self._file: IO[bytes] | None = None

    def __enter__(self) -> "ResumableFile":
        """Open the file, where the last process stopped."""
        known = self._known()
        if self.path.exists():
            if known is None or known["done"] < known["total"]:
                problem = "is there already, and not known to be an augmented file"
                raise OutputError(self.path, problem, fix="choose another --out")
            self.done = self.total
            return self
        with files.disk(self._part):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._part.open("ab")
        self._lock()
        size = self._part.stat().st_size
        if known is not None and known["bytes"] <= size:
            self.done, self._size = known["done"], known["bytes"]
        with files.disk(self._part):
            self._file.truncate(self._size)  # half a piece, written as it stopped
        return self

    def __exit__(self, *exc: object) -> None:
        """Close the file; where all pieces are done, give it its name."""
        file, self._file = self._file, None
        if file is None:
            return
        with file, files.disk(self.path):
            if self.done == self.total:
                self._record()
                os.replace(self._part, self.path)
            elif not self.done:
                self._part.unlink()

    def append(self, text: str, done: int) -> None:
        """Write a piece; ``done`` pieces are whole with it.

        Raises:
          StorageError: the disk is full; what was whole before stays.
        """
        assert self._file is not None
        data = text.encode()
        with files.disk(self._part):
            self._file.write(data)
            self._file.flush()
            os.fsync(self._file.fileno())
        self.done, self._size = done, self._size + len(data)
        self._record()

    def _record(self) -> None:
        record = {
            "settings": self.settings,
            "total": self.total,
            "done": self.done,
            "bytes": self._size,
        }
        files.write_text(self._state, json.dumps(record, indent=1))

    def _known(self) -> dict[str, Any] | None:
        """Return what an earlier process recorded; None: nothing that can be read."""
        try:
            known = json.loads(self._state.read_bytes())
            there = known["settings"]
            whole = all(type(known[k]) is int for k in ("done", "total", "bytes"))
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not whole or not (self.path.exists() or self._part.exists()):
            return None
        names = {**there, **self.settings}
        differ = [
            f"{name} was {there.get(name)!r}, is {self.settings.get(name)!r} now"
            for name in names
            if there.get(name) != self.settings.get(name)
        ]
        if differ:
            problem = f"was begun with other settings: {'; '.join(differ)}"
            fix = f"set it back, choose another --out, or remove {self._state.name}"
            raise ConfigError(self.path, problem, fix=fix)
        return known

    def _lock(self) -> None:
        assert self._file is not None
        try:
            alone = filelock.lock_descriptor(self._file.fileno(), blocking=False)
        except OSError:
            return  # some network folders have no locks
        if not alone:
            self._file.close()
            problem = "another process writes it"
            raise FolderBusy(self.path, problem, fix="wait for it")
