"""A packed file, written whole or not at all, and read with nothing taken on trust.

``bitflax/FORMAT.md`` documents it. ``tensors``, ``metadata`` and ``tokenizer`` raise
ValueError with what is wrong; here it gets the file's name and the mend.
"""

import functools
import json
from collections.abc import Callable, Iterable
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax.numpy as jnp
import numpy as np

from bitflax import files, trees
from bitflax.errors import ConfigError, OutputError, StorageError
from bitflax.model import parameter_shapes
from bitflax.packed import safetensors_file, sizes
from bitflax.packed.metadata import (
    act_from_json,
    act_to_json,
    config_from_json,
    config_to_json,
)
from bitflax.packed.sizes import SizeRow
from bitflax.packed.tensors import (
    Shapes,
    check_entries,
    check_specs,
    check_tree,
    lowest_version,
    to_leaves,
    to_specs,
    to_tensors,
)
from bitflax.packed.tokenizer import tokenizer_from_bytes, tokenizer_to_bytes
from bitflax.types import BertConfig, Params

FORMAT = "bitflax-packed"
VERSIONS = ("1", "2", "3")
_KEYS = {"format", "version", "config", "act", "packed", "extras", "sha256"}
_TENSORS_A_LAYER = 16
T = TypeVar("T")


class StoredModel(NamedTuple):
    """A model as it was stored, and what travels with it.

    Attributes:
      config: its shape and label names.
      params: of a packed file matrices and tables as ``Packed``, as a ``Split`` of two
        ``Packed``, or as float32 arrays, and vectors as arrays; of a folder dense
        parameters.
      act: activation quantizers, as ``bitflax.bert`` takes them.
      tokenizer: the text of ``tokenizer.json`` as a file has it, a
        ``bitflax.data.Tokenizer`` once it is made; None: the file carries none.
      extras: what else a packed file carries.
    """

    config: BertConfig
    params: Params
    act: Any
    tokenizer: Any
    extras: dict[str, Any]

    @property
    def max_length(self) -> int | None:
        """The longest text that it was trained on, in tokens; None: unknown."""
        limit = self.extras.get("max_length")
        known = type(limit) is int and 0 < limit <= self.config.max_position_embeddings
        return limit if known else None


def read_packed(
    path: str | Path, asarray: Callable[..., Any] = jnp.asarray
) -> StoredModel:
    """Read a packed file, every part of it verified.

    Args:
      path: the file.
      asarray: makes the arrays; ``numpy.asarray`` leaves jax aside.

    Raises:
      InputMissing: there is no such file.
      StorageError: reading failed.
      DamagedFile: something in it is not as it was written; says what.
    """
    return guarded(functools.partial(_read, asarray=asarray), files.given(path))


def load_packed(path: str | Path) -> tuple[BertConfig, Params]:
    """Read a packed file's configuration and tree; see ``read_packed``.

    The tree takes the place of ``params``: ``bert(config, act)(packed, batch)``.
    """
    model = read_packed(path)
    return model.config, model.params


def size_report(packed: Params | str | Path) -> list[SizeRow]:
    """Account for every byte of a packed file, or of a packed tree's tensors.

    ``bitflax.packed.size_table`` makes a text of it.

    Returns:
      A row a parameter, codes and scales together; two halves of a split matrix are
      one row of the bits of both. Of a file, then the tokenizer and the header
      (lengths, names, metadata): the bytes add up to the file's.
    """
    if isinstance(packed, dict):
        flat = trees.flatten(packed)
        specs, tensors = to_specs(flat), to_tensors(flat)
        found = {name: (t.shape, t.nbytes, t.itemsize) for name, t in tensors.items()}
        return sizes.size_rows(found, specs)
    return version_and_sizes(Path(packed))[1]


def version_and_sizes(path: Path) -> tuple[str, list[SizeRow]]:
    """Return the version of a packed file's format, and its ``size_report``."""
    header = guarded(_header, path)
    file, found = header.file, {}
    for name, entry in file.entries.items():
        item = safetensors_file.DTYPES[entry.dtype].itemsize
        found[name] = entry.shape, entry.stop - entry.start, item
    own = SizeRow("header", 8, file.size, file.size)
    return file.metadata["version"], [*sizes.size_rows(found, header.specs), own]


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
            "a safetensors file, but no packed student; for dense weights give a folder"
        )
    version = found.get("version")
    if version not in VERSIONS:
        known = ", ".join(VERSIONS)
        raise ValueError(f"version {version!r:.20}, where {known} are known")
    if set(found) != _KEYS:
        odd = sorted(set(found) ^ _KEYS)
        raise ValueError(f"metadata: unknown or missing keys: {odd!r:.80}")
    config = config_from_json(found["config"])
    if _TENSORS_A_LAYER * config.num_hidden_layers > len(header.entries):
        raise ValueError("config: more layers than there are tensors")
    act = act_from_json(found["act"], config)
    shapes = parameter_shapes(config, act)
    packed = safetensors_file.strict_json(found["packed"], "packed")
    specs = check_specs(packed, shapes, version)
    check_entries(header.entries, shapes, specs)
    extras = safetensors_file.strict_json(found["extras"], "extras")
    if not isinstance(extras, dict):
        raise ValueError("extras: not a JSON object")
    return _Header(header, config, act, extras, shapes, specs)


def _read(file: BufferedReader, asarray: Callable[..., Any]) -> StoredModel:
    header, config, act, extras, shapes, specs = _header(file)
    tensors = safetensors_file.read_tensors(file, header)
    xz, text = tensors.pop("tokenizer", None), None
    if xz is not None:
        text = tokenizer_from_bytes(xz.tobytes(), config)
    packed = to_leaves(tensors, shapes, specs, asarray)
    return StoredModel(config, trees.unflatten(packed), act, text, extras)


def guarded(read: Callable[[BufferedReader], T], path: Path) -> T:
    """Return what ``read`` makes of a file; its errors name the file and the mend.

    Raises:
      InputMissing: there is no such file, or it is a pipe or a device.
      StorageError: reading failed.
      DamagedFile: ``read`` raised a ValueError.
    """
    fix = "fetch the file again, or pack the student again"
    with files.reading(path, fix=fix) as file:
        return read(file)


def _extras(found: Any) -> str:
    """Return what else travels along as JSON that the reader takes."""
    try:
        text = json.dumps(found or {}, separators=(",", ":"))
        if not isinstance(safetensors_file.strict_json(text, "extras"), dict):
            raise ValueError("not a JSON object")
    except (TypeError, ValueError) as error:
        problem = str(error).removeprefix("extras: ")
        fix = "give a dict that JSON can hold: texts as keys, finite numbers"
        raise ConfigError("extras", problem, fix=fix) from None
    return text


def check_header(config: BertConfig, act: Any, paths: Iterable[str]) -> None:
    """Check that a file's header can hold a model's names, before there are weights.

    Raises:
      ConfigError: it cannot, or a reader would not take ``config`` or ``act``.
    """
    texts = json.dumps([config_to_json(config), act_to_json(act, config)])
    # Of a parameter, its codes and its scales a header says no more than 300 bytes.
    size = len(texts.encode()) + sum(2 * len(path) + 300 for path in paths)
    if size > safetensors_file.MAX_HEADER:
        problem = f"the header takes {size} bytes, over {safetensors_file.MAX_HEADER}"
        raise ConfigError("metadata", problem, fix="shorten the labels")


def _parts(
    config: BertConfig, packed: Params, act: Any, tokenizer: Any, extras: Any
) -> list:
    """Return the file as its parts, after checking that it may be written."""
    flat = trees.flatten(packed)
    named = act_to_json(act, config)
    check_tree(flat, parameter_shapes(config, act))
    tensors = to_tensors(flat)
    if tokenizer is not None:
        text = tokenizer if isinstance(tokenizer, str) else tokenizer.to_json()
        xz = tokenizer_to_bytes(text, config)
        tensors["tokenizer"] = np.frombuffer(xz, np.uint8)
    packed_specs = to_specs(flat)
    metadata = {
        "format": FORMAT,
        "version": lowest_version(flat, packed_specs),
        "config": config_to_json(config),
        "act": named,
        "packed": json.dumps(packed_specs, separators=(",", ":")),
        "extras": _extras(extras),
    }
    try:
        return safetensors_file.encode(tensors, metadata)
    except ValueError as error:
        fix = "shorten the labels or the extras"
        raise ConfigError("metadata", str(error), fix=fix) from None


def save_packed(
    path: str | Path,
    config: BertConfig,
    packed: Params,
    act: Any = None,
    tokenizer: Any = None,
    extras: dict[str, Any] | None = None,
) -> None:
    """Write a packed student, whole or not at all.

    Args:
      path: where to; the folder must be there.
      config: its shape and labels.
      packed: the tree that ``pack`` returns.
      act: its activation quantizers, as ``bitflax.bert`` takes them.
      tokenizer: a ``bitflax.data.Tokenizer``, or the text of a
        ``tokenizer.json``.
      extras: whatever else should travel along, as JSON has it.

    Raises:
      ConfigError: the tree does not fit the configuration, ``act`` is not one that a
        file can name, or a reader would not take the tokenizer or the extras.
      OutputError: the file cannot be created.
      StorageError: writing failed.
    """
    path = files.given(path, OutputError)
    parts = _parts(config, packed, act, tokenizer, extras)
    try:
        safetensors_file.write(path, parts)
    except (
        FileNotFoundError,
        IsADirectoryError,
        NotADirectoryError,
        PermissionError,
    ) as error:
        fix = "give a file's name in a folder that can be written"
        raise OutputError(path, str(error.strerror), fix=fix) from error
    except OSError as error:
        raise StorageError(path, str(error.strerror), fix="free some space") from error
