"""Reading a packed file: nothing is taken on trust.

``bitflax.packed.saving`` documents the format and writes it.
"""

from collections.abc import Callable
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bitflax import trees
from bitflax.errors import DamagedFile, InputMissing, StorageError
from bitflax.packed import metadata, packedact, safetensors_file, tokenizer
from bitflax.packed.tensors import (
    Shapes,
    SizeRow,
    check_entries,
    check_specs,
    rows,
    to_leaves,
    to_tensors,
)
from bitflax.packed.tensors import specs as tensors_specs
from bitflax.types import BertConfig, Params

FORMAT = "bitflax-packed"


VERSIONS = ("1", "2", "3")


_KEYS = {"format", "version", "config", "act", "packed", "extras", "sha256"}


_TENSORS_A_LAYER = 16


T = TypeVar("T")


class PackedModel(NamedTuple):
    """All that a packed file holds."""

    config: BertConfig
    packed: Params
    """Matrices and tables as ``Packed``, as a ``Split`` of two ``Packed``, or as
    float32 arrays; vectors as arrays."""
    act: Any
    tokenizer: str | None
    """The text of ``tokenizer.json``."""
    extras: dict[str, Any]


def read_packed(path: str | Path) -> PackedModel:
    """Read a packed file, every part of it verified.

    Raises:
      InputMissing: there is no such file.
      StorageError: reading failed.
      DamagedFile: something in it is not as it was written; says what.
    """
    return guarded(_read, Path(path))


def load_packed(path: str | Path) -> tuple[BertConfig, Params]:
    """Read a packed file's configuration and tree; see ``read_packed``.

    The tree takes the place of ``params``: ``bert(config, act)(packed, batch)``.
    """
    model = read_packed(path)
    return model.config, model.packed


def size_report(packed: Params | str | Path) -> list[SizeRow]:
    """Account for every byte of a packed file, or of a packed tree's tensors.

    ``size_table`` makes a text of it.

    Returns:
      A row a parameter, codes and scales together; two halves of a split matrix are
      one row of the bits of both. Of a file, then the tokenizer and the header
      (lengths, names, metadata): the bytes add up to the file's.
    """
    if isinstance(packed, dict):
        flat = trees.flatten(packed)
        specs, tensors = tensors_specs(flat), to_tensors(flat)
        found = {name: (t.shape, t.nbytes, t.itemsize) for name, t in tensors.items()}
        return rows(found, specs)
    return describe(Path(packed))[1]


def describe(path: Path) -> tuple[str, list[SizeRow]]:
    """Return the version of a packed file's format, and its ``size_report``."""
    header = guarded(_header, path)
    file, found = header.file, {}
    for name, entry in file.entries.items():
        item = safetensors_file.DTYPES[entry.dtype].itemsize
        found[name] = entry.shape, entry.stop - entry.start, item
    own = SizeRow("header", 8, file.size, file.size)
    return file.metadata["version"], [*rows(found, header.specs), own]


class _Header(NamedTuple):
    """All that stands before the tensors; it fits the configuration."""

    file: safetensors_file.Header
    config: BertConfig
    act: Any
    extras: dict[str, Any]
    shapes: Shapes
    specs: dict[str, dict]


def _header(file: BufferedReader) -> _Header:
    header = safetensors_file.read_header(file)
    found = header.metadata
    if found.get("format") != FORMAT:
        raise ValueError(
            "a safetensors file, but no packed student; give dense weights by folder"
        )
    version = found.get("version")
    if version not in VERSIONS:
        known = ", ".join(VERSIONS)
        raise ValueError(f"version {version!r:.20}, where {known} are known")
    if set(found) != _KEYS:
        odd = sorted(set(found) ^ _KEYS)
        raise ValueError(f"metadata: unknown or missing keys: {odd!r:.80}")
    config = metadata.config_from_json(found["config"])
    if _TENSORS_A_LAYER * config.num_hidden_layers > len(header.entries):
        raise ValueError("config: more layers than there are tensors")
    act = packedact.from_json(found["act"], config)
    shapes = metadata.parameter_shapes(config, act)
    packed = safetensors_file.strict_json(found["packed"], "packed")
    specs = check_specs(packed, shapes, version)
    check_entries(header.entries, shapes, specs)
    extras = safetensors_file.strict_json(found["extras"], "extras")
    if not isinstance(extras, dict):
        raise ValueError("extras: not a JSON object")
    return _Header(header, config, act, extras, shapes, specs)


def _read(file: BufferedReader) -> PackedModel:
    header, config, act, extras, shapes, specs = _header(file)
    tensors = safetensors_file.read_tensors(file, header)
    xz, text = tensors.pop("tokenizer", None), None
    if xz is not None:
        text = tokenizer.from_bytes(xz.tobytes(), config)
    packed = to_leaves(tensors, shapes, specs)
    return PackedModel(config, trees.unflatten(packed), act, text, extras)


def guarded(read: Callable[[BufferedReader], T], path: Path) -> T:
    """Return what ``read`` makes of a file; its errors name the file and the mend.

    Raises:
      InputMissing: there is no such file.
      StorageError: it is not a regular file, or reading failed.
      DamagedFile: ``read`` raised a ValueError.
    """
    try:
        with safetensors_file.open_file(path) as file:
            return read(file)
    except (FileNotFoundError, NotADirectoryError):
        raise InputMissing(path, "no such file", fix="check the path") from None
    except OSError as error:
        raise StorageError(
            path, f"cannot be read: {error.strerror}", fix="give a packed file"
        ) from error
    except ValueError as error:
        raise DamagedFile(
            path, str(error), fix="fetch the file again, or pack the student again"
        ) from error
