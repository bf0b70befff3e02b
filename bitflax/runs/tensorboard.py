"""``tensorboard/`` of a run's folder: numbers by step, weights by layer, texts."""

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bitflax import files, trees
from bitflax.runs.findings import layer
from bitflax.types import Params

FLUSH_SECONDS = 10.0
"""How often new numbers are written to the disk."""
BINS = 64
MOST_VALUES = 1 << 20
"""In a layer's histogram; a larger layer is thinned to every second or third value."""


class TensorBoard:
    """Writes what TensorBoard shows of a run: a folder of event files a stage.

    Args:
      folder: the run's.
    """

    def __init__(self, folder: Path):
        self._folder = folder / "tensorboard"
        self._writers: dict[str, Any] = {}
        self._purge: dict[str, int] = {}
        self._flushed = time.monotonic()

    def numbers(self, stage: str, step: int, line: Mapping[str, Any]) -> None:
        """Add the numbers of a line of the log.

        Raises:
          StorageError: the disk is full or broken.
        """
        values = [
            {"tag": name, "simple_value": value}
            for name, value in line.items()
            if name != "step" and isinstance(value, (int, float))
        ]
        self._add(stage, step, {"value": values})
        if time.monotonic() - self._flushed > FLUSH_SECONDS:
            self._flushed = time.monotonic()
            with files.disk(self._folder):
                self._writers[stage].flush()

    def weights(self, stage: str, step: int, params: Params) -> None:
        """Add a histogram of the latent weights of each layer's matrices.

        Raises:
          StorageError: the disk is full or broken.
        """
        from tensorboardX import summary

        for name, values in _by_layer(params):
            made = summary.histogram(f"weights/{name}", values, BINS)
            self._add(stage, step, made)

    def texts(self, stage: str, texts: Mapping[str, str]) -> None:
        """Add texts by their names, in Markdown.

        Raises:
          StorageError: the disk is full or broken.
        """
        from tensorboardX import summary

        for name, text in texts.items():
            # A path in a text may hold bytes that are not UTF-8.
            plain = text.encode(errors="backslashreplace").decode()
            self._add(stage, 0, summary.text(name, plain))

    def rewind(self, stage: str, step: int) -> None:
        """Let TensorBoard drop a stage's numbers from a step on: they come again."""
        self.close()
        self._purge[stage] = step

    def close(self) -> None:
        """Close the files; what is added later goes to new ones."""
        writers, self._writers = self._writers, {}
        with files.disk(self._folder):
            for writer in writers.values():
                writer.close()

    def _add(self, stage: str, step: int, summary: Any) -> None:
        with files.disk(self._folder):
            if stage not in self._writers:
                purge = self._purge.pop(stage, None)
                self._writers[stage] = _writer(self._folder / stage, purge)
            self._writers[stage].write_event(_event(step, summary=summary))


def _by_layer(params: Params) -> Iterator[tuple[str, np.ndarray]]:
    """Yield each layer's name and its matrices' values; split ones have two halves.

    >>> tree = {"encoder": {"layer_0": {"kernel": np.eye(2), "bias": np.ones(2)}}}
    >>> [(name, values.tolist()) for name, values in _by_layer(tree)]
    [('layer_0', [1.0, 0.0, 0.0, 1.0])]
    """
    found: dict[str, list[np.ndarray]] = {}
    for path, leaf in trees.flatten(params).items():
        parts = [np.asarray(part) for part in jax.tree.leaves(leaf)]
        matrices = [part for part in parts if part.ndim > 1]
        found.setdefault(layer(path), []).extend(matrices)
    for name, matrices in found.items():
        size = sum(matrix.size for matrix in matrices)
        each = max(1, -(-size // MOST_VALUES))
        values = [matrix.ravel()[::each] for matrix in matrices]
        if values and all(np.isfinite(value).all() for value in values):
            yield name, np.concatenate(values)


def _writer(folder: Path, purge: int | None) -> Any:
    """Return tensorboardX's writer without its thread, which hangs on a full disk."""
    from tensorboardX import event_file_writer

    again = folder.is_dir()
    folder.mkdir(parents=True, exist_ok=True)
    # tensorboardX names files by the second; two of one second need another suffix.
    name, suffix = str(folder / "events"), f".{time.time_ns()}"
    writer = event_file_writer.EventsWriter(name, suffix)
    if again and purge is not None:
        writer.write_event(_event(purge, session_log={"status": "START"}))
    return writer


def _event(step: int, **fields: Any) -> Any:
    from tensorboardX.proto import event_pb2

    made: Any = event_pb2
    return made.Event(wall_time=time.time(), step=step, **fields)
