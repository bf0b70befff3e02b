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

from bitflax import files, progress, trees
from bitflax.runs.tensorboard import TensorBoard

OnLog = Callable[[Mapping[str, Any]], object]
"""A logger of your own, called with every line, flat."""


class RunLog:
    """The log of a run folder; when ``write`` returns, a killed run keeps the line.

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
        self.tensorboard = TensorBoard(Path(folder))
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
            while data:  # a disk that fills up may take a part of it
                data = data[self._file.write(data) :]
        if "stage" in flat and "step" in flat:
            self.tensorboard.numbers(flat["stage"], flat["step"], flat)
        if self._on_log is not None:
            self._on_log(flat)

    def rewind(self, stage: str, step: int | None = None) -> None:
        """Drop a stage's lines after ``step`` (None: all), which a resume repeats.

        Raises:
          StorageError: the disk is full or broken.
        """
        self.close()
        again = 0 if step is None else step + 1
        self.tensorboard.rewind(stage, again)
        _drop_torn_end(self.path)
        texts = _texts(self.path)
        kept = [
            text
            for text in texts  # a line that cannot be read stays
            if not (line := _line(text))
            or line["stage"] != stage
            or line["step"] < again
        ]
        if len(kept) < len(texts):
            with files.disk(self.path), files.atomic(self.path) as file:
                file.write(b"".join(kept))

    def flush(self) -> None:
        """Write all lines to the disk.

        Raises:
          StorageError: the disk is full, broken, or read-only by now.
        """
        if self._file is not None:
            with files.disk(self.path):
                os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the files; a later ``write`` opens them again."""
        file, self._file = self._file, None
        if file is not None:
            with files.disk(self.path), file:
                os.fsync(file.fileno())
        self.tensorboard.close()


def read_log(path: str | Path, notes: list[str] | None = None) -> list[dict[str, Any]]:
    """Return the lines of a log; lines that are damaged are left out, with a warning.

    Args:
      path: ``log.jsonl``.
      notes: the warning is appended here too.

    Raises:
      StorageError: it cannot be read.
    """
    lines, taken = dict[int, dict[str, Any]](), dict[str, list[int]]()
    bad = dict[int, str]()
    for number, text in enumerate(_texts(Path(path)), 1):
        line = _line(text)
        if line is None:
            shown = text[:60].decode(errors="replace")
            bad[number] = f"expected JSON: stage, step and numbers, found {shown!r}"
            continue
        lines[number] = line
        before, odd = taken.setdefault(line["stage"], []), None
        if before and line["step"] < lines[before[-1]]["step"]:
            # One step that is too large must not make all that follow wrong.
            fits = len(before) < 2 or line["step"] >= lines[before[-2]]["step"]
            odd = before.pop() if fits else number
            bad[odd] = f"expected no step out of order, found {lines[odd]['step']}"
        if odd != number:
            before.append(number)
    found = [line for number, line in lines.items() if number not in bad]
    if bad or not found:
        first = min(bad, default=1)
        said = bad.get(first, "expected lines of the log, found none")
        note = f"{path}:{first}: {said}; left out of the plots: {len(bad) or 'all'}"
        note += "\nfix: put the file back as it was: nothing else depends on it"
        progress.tell(note)
        if notes is not None:
            notes.append(note)
    return found


def _texts(path: Path) -> list[bytes]:
    """Return a log's lines as bytes; none where there is no file."""
    if not path.exists():
        return []
    with files.disk(path), files.open_file(path) as file:
        return file.readlines()


def _line(text: bytes) -> dict[str, Any] | None:
    """Return a line parsed, or None where it is not one that ``write`` wrote."""
    try:
        line = json.loads(text.decode())
        step, plotted = line["step"], [line[n] for n in line if n == "lr" or "/" in n]
        numbers = [step, *(number for number in plotted if number is not None)]
        right = isinstance(line["stage"], str) and type(step) is int and step >= 0
        right = right and all(type(x) in (int, float) for x in numbers)
        return line if right and all(map(math.isfinite, numbers)) else None
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return None


def flatten(line: Mapping[str, Any]) -> dict[str, Any]:
    """Return a flat line of texts and numbers.

    >>> flatten({"step": 3, "loss": {"a": 1.5, "b": float("nan")}})
    {'step': 3, 'loss/a': 1.5, 'loss/b': None}
    """
    return {name: finite(x) for name, x in trees.flatten(dict(line)).items()}


def finite(value: Any) -> Any:
    """Return a value as JSON has it: an array as a number, NaN and infinity as None."""
    value = value.item() if hasattr(value, "item") else value
    bad = isinstance(value, float) and not math.isfinite(value)
    return None if bad else value


def _drop_torn_end(path: Path) -> None:
    # A killed run may leave half a line; the next one must not be glued to it.
    if not path.is_file():
        return
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
