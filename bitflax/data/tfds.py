"""GLUE by TFDS (``tensorflow_datasets``), without TensorFlow.

TFDS writes and reads ``array_record`` files without TensorFlow; TFRecord files it
cannot even read without it.
"""

import contextlib
import logging
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bitflax.data import glue
from bitflax.data.examples import Examples, column
from bitflax.errors import DamagedFile, InputMissing

FORMAT = "array_record"


TIMEOUT = 10.0
"""Seconds to wait for the host of the data, before TFDS would retry for minutes."""


def load(
    name: str, data_dir: str | Path | None = None
) -> tuple[Examples, Examples, tuple[str, ...]]:
    """Return ``(train, dev, notes)`` of a GLUE task, downloaded once if need be.

    Rows are in the order of GLUE's own files, so that the data's hash is the same
    whichever way they came.

    Args:
      name: one of ``glue.TASKS``.
      data_dir: where TFDS has prepared the task; None: TFDS's own folder (the variable
        ``TFDS_DATA_DIR``, or ``~/tensorflow_datasets``), into which it is downloaded.

    Raises:
      InputMissing: the task is not in ``data_dir``, or cannot be downloaded.
      DamagedFile: what TFDS has prepared cannot be read.
    """
    task = glue.TASKS[name]
    builder = _builder(name, data_dir)
    folder = Path(builder.data_dir)
    if not (folder / "dataset_info.json").is_file():
        if data_dir is not None:
            raise InputMissing(
                data_dir,
                f"expected {task.folder}/train.tsv, or {name} prepared by TFDS, "
                "found neither",
                fix=f"correct data_dir, or leave it out to download {name} by TFDS",
            )
        _prepare(name, builder)
    if not any(folder.glob(f"*.{FORMAT}*")):
        raise InputMissing(
            folder,
            f"expected {FORMAT} files, found another format: TensorFlow reads it only",
            fix=f"prepare {name} in another folder: tfds build --file_format={FORMAT}",
        )
    try:
        train = _examples(builder.as_data_source(split="train"), task)
        dev = _examples(builder.as_data_source(split=task.split), task)
    except Exception as error:  # the readers below TFDS share no base class
        raise DamagedFile(
            folder,
            f"expected {name} as TFDS prepares it, found {first_line(error)}",
            fix="delete the folder, and prepare or copy it again",
        ) from error
    return train, dev, ()


def _builder(name: str, data_dir: str | Path | None) -> Any:
    """Return TFDS's builder of a task."""
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text.glue  # makes "glue" known

    config = name.replace("-mm", "")
    with quiet():
        return tfds.builder(
            config,
            data_dir=None if data_dir is None else str(Path(data_dir).expanduser()),
            file_format=FORMAT,
        )


def _prepare(name: str, builder: Any) -> None:
    """Download and prepare a task, once it is seen that its host answers."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.text import glue as tfds_glue

    url = builder.builder_config.data_url or tfds_glue._MRPC_TRAIN
    fix = (
        f"prepare {name} where there is a network and copy {builder.data_dir} here; or "
        f"set data_dir to a folder of GLUE's own {glue.TASKS[name].folder}/train.tsv "
        "and dev.tsv"
    )
    if not reachable(url):
        problem = f"not prepared in {builder.data_dir}, and {url} is out of reach"
        raise InputMissing(name, problem, fix=fix)
    try:
        with quiet():
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                file_format=FORMAT,
            )
    except Exception as error:  # whatever the network or the disk did
        raise InputMissing(
            name, f"the download failed: {first_line(error)}", fix=fix
        ) from error


def reachable(url: str) -> bool:
    """Whether the host of a URL answers at all, be it with an error."""
    try:
        request = urllib.request.Request(url, method="HEAD")
        urllib.request.urlopen(request, timeout=TIMEOUT).close()
    except urllib.error.HTTPError as error:
        error.close()
        return True
    except (OSError, ValueError):
        return False
    return True


def _examples(source: Any, task: glue.GlueTask) -> Examples:
    """Return a split in the order of ``idx``; TFDS shuffles what it writes."""
    # All at once is seven times faster than row by row.
    records = source.__getitems__(list(range(len(source))))
    records = sorted(records, key=lambda record: record["idx"])
    kind = np.float32 if task.regression else np.int32
    return Examples(
        texts=tuple(
            column([record[feature].decode() for record in records])
            for feature in task.features
        ),
        labels=np.array([record["label"] for record in records], kind),
        rows=np.array([record["idx"] for record in records], np.int64) + 1,
    )


def first_line(error: Exception) -> str:
    """Return an exception's kind and the first line of its message."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep TFDS from warning that a folder which does not exist is empty."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
