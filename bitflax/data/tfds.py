"""GLUE by TFDS (``tensorflow_datasets``), without TensorFlow.

TFDS writes and reads ``array_record`` files without TensorFlow; TFRecord files it
cannot even read without it.
"""

import contextlib
import logging
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bitflax.data import glue, passages
from bitflax.data.examples import Examples, object_column
from bitflax.errors import ConfigError, DamagedFile, InputMissing

FORMAT = "array_record"
TIMEOUT = 10.0
"""Seconds to wait for the host of the data, before TFDS would retry for minutes."""


def load_glue(
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
    task = glue.GLUE_TASKS[name]
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
        f"set data_dir to a folder of GLUE's own {glue.GLUE_TASKS[name].folder}/"
        "train.tsv and dev.tsv"
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
            object_column([record[feature].decode() for record in records])
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


HOST = "https://storage.googleapis.com"
"""Where TFDS asks first, whatever the data set."""
_MARK = re.compile(r"_START_[A-Z]+_")


class Records:
    """The records of the split ``train``, each cut into its lines.

    Records are read as they are asked for. Wiki40B's marks are no text: lines of
    ``_START_..._`` are left out, and ``_NEWLINE_`` ends a passage.

    Args:
      name: as TFDS knows it.
      data_dir: where TFDS has prepared it; None: TFDS's own folder, into which it is
        downloaded if need be.
      window: bytes of text that are read at a time, about.

    Raises:
      ConfigError: TFDS has no such data set, or it has no texts.
      InputMissing: it is not prepared, or prepared in a format that only TensorFlow
        reads, and cannot be downloaded.
      DamagedFile: what is prepared cannot be read.
    """

    def __init__(
        self,
        name: str,
        data_dir: str | Path | None = None,
        window: int = passages.WINDOW,
    ):
        self.name = name
        builder = _text_builder(name, data_dir)
        self._folder = Path(builder.data_dir)
        if not (self._folder / "dataset_info.json").is_file():
            _prepare_text(name, builder, data_dir)
        files = sorted(self._folder.glob(f"*.{FORMAT}*"))
        if not files:
            raise InputMissing(
                self._folder,
                f"expected {FORMAT} files, found another format: only "
                "TensorFlow reads it",
                fix=f"tfds build {name} --file_format={FORMAT}",
            )
        if "text" not in (builder.info.features or {}):
            raise ConfigError(
                name, "it has no feature 'text'", fix="name a text data set"
            )
        try:
            self._records = builder.as_data_source(split="train")
            count = len(self._records)
        except Exception as error:  # the readers below TFDS share no base class
            raise self._damaged(error) from error
        size = max(1, builder.info.splits["train"].num_bytes // max(1, count))
        self._each = max(1, window // size)
        self.windows = -(-count // self._each)
        sizes = [f"{file.name} {file.stat().st_size}" for file in files]
        self.stamp = " ".join([str(builder.info.full_name), str(count), *sizes])

    def check(self) -> str:
        """Return the SHA-256 of the files' names and sizes: TFDS wrote them."""
        return passages.sha256(self.stamp)

    def lines(self, window: int) -> list[str]:
        """Return the passages of a window."""
        first = window * self._each
        places = range(first, min(first + self._each, len(self._records)))
        try:
            texts = [r["text"].decode() for r in self._records.__getitems__(places)]
        except Exception as error:  # as above
            raise self._damaged(error) from error
        found = passages.cut("\n".join(texts).replace("_NEWLINE_", "\n"))
        return [line for line in found if not _MARK.fullmatch(line)]

    def _damaged(self, error: Exception) -> DamagedFile:
        return DamagedFile(
            self._folder,
            f"expected {self.name} as TFDS prepares it, found {first_line(error)}",
            fix="delete the folder, and prepare or copy it again",
        )


def _text_builder(name: str, data_dir: str | Path | None) -> Any:
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text  # makes its names known

    try:
        with quiet():
            return tfds.builder(
                name,
                try_gcs=False,
                data_dir=None if data_dir is None else str(Path(data_dir).expanduser()),
                file_format=FORMAT,
            )
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise ConfigError(
            name,
            "expected a .txt file, a folder of such files, icd10cm, or a text data set "
            f"that TFDS knows; found none ({first_line(error)})",
            fix="correct the path, or the name (wiki40b/en)",
        ) from error


def _prepare_text(name: str, builder: Any, data_dir: str | Path | None) -> None:
    """Download and prepare a data set, once it is seen that there is a network."""
    import tensorflow_datasets as tfds

    fix = (
        f"prepare it where there is a network (tfds build {name} "
        f"--file_format={FORMAT}) and copy {builder.data_dir} here; or give "
        "a folder of .txt files"
    )
    if data_dir is not None:
        raise InputMissing(data_dir, f"{name} is not prepared there", fix=fix)
    if not reachable(HOST):
        problem = f"not prepared in {builder.data_dir}, and {HOST} is out of reach"
        raise InputMissing(name, problem, fix=fix)
    try:
        with quiet():
            builder.download_and_prepare(
                download_config=tfds.download.DownloadConfig(try_download_gcs=False),
                file_format=FORMAT,
            )
    except Exception as error:  # whatever the network, the disk or Beam did
        raise InputMissing(
            name, f"the download failed: {first_line(error)}", fix=fix
        ) from error
