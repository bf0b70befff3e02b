"""Passages of a text data set of TFDS (``wiki40b/en``, ``wikipedia/...``).

As ``glue_tfds``: without TensorFlow, so from ``array_record`` files only.
"""

import re
from pathlib import Path
from typing import Any

from bitflax.data import passages
from bitflax.data.tfds import FORMAT, first_line, quiet, reachable
from bitflax.errors import ConfigError, DamagedFile, InputMissing

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
        builder = _builder(name, data_dir)
        self._folder = Path(builder.data_dir)
        if not (self._folder / "dataset_info.json").is_file():
            _prepare(name, builder, data_dir)
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


def _builder(name: str, data_dir: str | Path | None) -> Any:
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


def _prepare(name: str, builder: Any, data_dir: str | Path | None) -> None:
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
