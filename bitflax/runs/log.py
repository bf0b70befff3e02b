"""``log.jsonl`` and ``tensorboard/``: one line a logging step and an evaluation.

A line is flat JSON. Its names say what is plotted: ``loss/<part>`` and
``dev/<metric>`` by ``step`` for each ``stage``; other numbers are kept as they are::

    {"time": 1795506217.2, "stage": "2-1bit", "step": 40, "loss/logits": 0.31}
"""

import io
import json
import math
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from bitflax import files
from bitflax.runs.board import Board

OnLog = Callable[[Mapping[str, Any]], object]
"""Called with every line, flat, besides: a logger of one's own."""


class RunLog:
    """The log of a run folder; lines are on the disk when ``write`` returns.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     log = RunLog(folder)
    ...     log.write({"stage": "1-fp32", "step": 2, "loss": {"logits": 0.5}})
    ...     log.close()
    ...     read_log(Path(folder) / "log.jsonl")[0]["loss/logits"]
    0.5
    """

    def __init__(self, folder: str | Path, on_log: OnLog | None = None):
        self.path, self._on_log = Path(folder) / "log.jsonl", on_log
        self.board = Board(Path(folder))
        self._file: io.FileIO | None = None

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line; nested names are joined by ``/``, arrays become numbers.

        A number that is not finite becomes null: JSON has no name for it.

        Raises:
          StorageError: the disk is full or broken.
        """
        flat = flatten(line)
        with files.disk(self.path):
            if self._file is None:
                _drop_torn_end(self.path)
                self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115
            text = json.dumps({"time": round(time.time(), 3), **flat}) + "\n"
            data = memoryview(text.encode())
            while data:  # a disk that fills up takes a part
                data = data[self._file.write(data) :]
        if "stage" in flat and "step" in flat:
            self.board.numbers(flat["stage"], flat["step"], flat)
        if self._on_log is not None:
            self._on_log(flat)

    def rewind(self, stage: str, step: int | None = None) -> None:
        """Drop a stage's lines after ``step`` (None: all), which a resume repeats.

        Raises:
          StorageError: the disk is full or broken.
        """
        self.close()
        again = 0 if step is None else step + 1
        self.board.rewind(stage, again)
        lines = read_log(self.path)
        kept = [
            line
            for line in lines
            if line.get("stage") != stage or line.get("step", 0) < again
        ]
        if len(kept) < len(lines):
            text = "".join(json.dumps(line) + "\n" for line in kept)
            files.write_text(self.path, text)

    def close(self) -> None:
        """Close the files; a later ``write`` opens them again."""
        file, self._file = self._file, None
        if file is not None:
            with files.disk(self.path):
                file.close()
        self.board.close()


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """Return the lines of a log; a torn last line is left out, no file is no lines.

    Raises:
      StorageError: it cannot be read.
    """
    if not Path(path).exists():
        return []
    with files.disk(path):
        texts = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    lines = []
    for text in texts:
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict):
            lines.append(line)
    return lines


def flatten(line: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a flat line of texts and numbers.

    >>> flatten({"step": 3, "loss": {"a": 1.5, "b": float("nan")}})
    {'step': 3, 'loss/a': 1.5, 'loss/b': None}
    """
    flat: dict[str, Any] = {}
    for name, value in line.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}/")
        elif value is None or isinstance(value, (str, int)):
            flat[prefix + name] = value
        else:
            number = value.item() if hasattr(value, "item") else float(value)
            flat[prefix + name] = number if math.isfinite(number) else None
    return flat


def _drop_torn_end(path: Path) -> None:
    # A killed run may leave half a line; the next one must not be glued to it.
    if not path.is_file():
        return
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
