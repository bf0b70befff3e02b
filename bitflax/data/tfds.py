"""Data sets of TFDS (``tensorflow_datasets``), read without TensorFlow.

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

from bitflax import files
from bitflax.data import passages
from bitflax.errors import ConfigError, DamagedFile, InputMissing

FORMAT = "array_record"
TIMEOUT = 10.0
"""Seconds to wait for the host of the data, before TFDS would retry for minutes."""
HOST = "https://storage.googleapis.com"
"""Where TFDS asks first, whatever the data set; but for GLUE."""
_MARK = re.compile(r"_START_[A-Z]+_")


def open_builder(name: str, data_dir: str | Path | None) -> Any:
    """Return TFDS's builder of a data set; what it has prepared is in its ``data_dir``.

    Args:
      name: as TFDS knows it.
      data_dir: where TFDS has prepared it; None: TFDS's own folder (the variable
        ``TFDS_DATA_DIR``, or ``~/tensorflow_datasets``).
    """
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text  # makes its names known

    folder = None if data_dir is None else str(files.given(data_dir))
    with quiet():
        return tfds.builder(name, data_dir=folder, file_format=FORMAT)


def is_prepared(builder: Any) -> bool:
    """Whether a data set is on the disk already."""
    return (Path(builder.data_dir) / "dataset_info.json").is_file()


def prepare(name: str, builder: Any, fix: str) -> None:
    """Download and prepare a data set, once it is seen that its host answers.

    Raises:
      InputMissing: it does not, or the download fails; with ``fix``.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.text import glue

    # GLUE's tasks say where their files are; MRPC's text there is empty.
    other = glue._MRPC_TRAIN if builder.name == "glue" else HOST
    url = getattr(builder.builder_config, "data_url", None) or other
    if not reachable(url):
        problem = f"not prepared in {builder.data_dir}, and {url} is out of reach"
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


def prepared_files(name: str, builder: Any) -> list[Path]:
    """Return the files of a data set that is prepared.

    Raises:
      InputMissing: it is prepared in a format that only TensorFlow reads.
    """
    files = sorted(Path(builder.data_dir).glob(f"*.{FORMAT}*"))
    if not files:
        raise InputMissing(
            builder.data_dir,
            f"expected {FORMAT} files, found another format: only TensorFlow reads it",
            fix=f"prepare {name} in another folder: tfds build --file_format={FORMAT}",
        )
    return files


@contextlib.contextmanager
def reading(name: str, builder: Any) -> Iterator[None]:
    """Turn whatever reading raises into an error that names the folder.

    Raises:
      DamagedFile: what TFDS has prepared cannot be read.
    """
    try:
        yield
    except Exception as error:  # the readers below TFDS share no base class
        raise DamagedFile(
            builder.data_dir,
            f"expected {name} as TFDS prepares it, found {first_line(error)}",
            fix="delete the folder, and prepare or copy it again",
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
        self.name, self._builder = name, _known(name, data_dir)
        if not is_prepared(self._builder):
            fix = (
                f"prepare it where there is a network (tfds build {name} "
                f"--file_format={FORMAT}) and copy {self._builder.data_dir} here; or "
                "give a folder of .txt files"
            )
            if data_dir is not None:
                raise InputMissing(data_dir, f"{name} is not prepared there", fix=fix)
            prepare(name, self._builder, fix)
        files, info = prepared_files(name, self._builder), self._builder.info
        if "text" not in (info.features or {}):
            raise ConfigError(
                name, "it has no feature 'text'", fix="name a text data set"
            )
        with reading(name, self._builder):
            self._records = self._builder.as_data_source(split="train")
            count = len(self._records)
        size = max(1, info.splits["train"].num_bytes // max(1, count))
        self._each = max(1, window // size)
        self.windows = -(-count // self._each)
        sizes = [f"{file.name} {file.stat().st_size}" for file in files]
        self.stamp = " ".join([str(info.full_name), str(count), *sizes])

    def check(self) -> str:
        """Return the SHA-256 of the files' names and sizes: TFDS wrote them."""
        return passages.sha256(self.stamp)

    def lines(self, window: int) -> list[str]:
        """Return the passages of a window."""
        first = window * self._each
        places = range(first, min(first + self._each, len(self._records)))
        with reading(self.name, self._builder):
            texts = [r["text"].decode() for r in self._records.__getitems__(places)]
        found = passages.cut("\n".join(texts).replace("_NEWLINE_", "\n"))
        return [line for line in found if not _MARK.fullmatch(line)]


def _known(name: str, data_dir: str | Path | None) -> Any:
    """Return the builder of a corpus; its name may be mistyped."""
    import tensorflow_datasets as tfds

    try:
        return open_builder(name, data_dir)
    except (tfds.core.DatasetNotFoundError, ValueError, AssertionError) as error:
        raise ConfigError(
            name,
            "expected a .txt file, a folder of such files, icd10cm, or a text data set "
            f"that TFDS knows; found none ({first_line(error)})",
            fix="correct the path, or the name (wiki40b/en)",
        ) from error
