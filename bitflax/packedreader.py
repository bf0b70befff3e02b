"""Reading a packed file: nothing is taken on trust.

``bitflax.packing`` documents the format and writes it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bitflax import packedfile, packedmeta, tensorfile, trees
from bitflax.errors import DamagedFile, InputMissing, StorageError
from bitflax.packedfile import SizeRow
from bitflax.types import BertConfig, Params

FORMAT = "bitflax-packed"
VERSIONS = ("1", "2")
_KEYS = {"format", "version", "config", "act", "packed", "extras", "sha256"}
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
    return _guarded(_read, Path(path))


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
        specs, tensors = packedfile.specs(flat), packedfile.to_tensors(flat)
        found = {name: (t.shape, t.nbytes, t.itemsize) for name, t in tensors.items()}
        return packedfile.rows(found, specs)
    header, *_, specs = _guarded(_header, Path(packed))
    found = {
        name: (e.shape, e.stop - e.start, tensorfile.DTYPES[e.dtype].itemsize)
        for name, e in header.entries.items()
    }
    return [
        *packedfile.rows(found, specs),
        SizeRow("header", 8, header.size, header.size),
    ]


def _header(path: Path) -> tuple[tensorfile.Header, BertConfig, Any, dict]:
    """Read all that stands before the tensors; it fits the configuration.

    Returns:
      The header, the configuration, the activation quantizers, and what is packed.
    """
    header = tensorfile.read_header(path)
    found = header.metadata
    if found.get("format") != FORMAT:
        raise ValueError("a safetensors file, but no packed student")
    version = found.get("version")
    if version not in VERSIONS:
        known = " and ".join(VERSIONS)
        raise ValueError(f"version {version!r:.20}, where {known} are known")
    if set(found) != _KEYS:
        odd = sorted(set(found) ^ _KEYS)
        raise ValueError(f"metadata: unknown or missing keys: {odd!r:.80}")
    config = packedmeta.config_from_json(found["config"])
    if config.num_hidden_layers > len(header.entries):
        raise ValueError("config: more layers than there are tensors")
    act = packedmeta.act_from_json(found["act"])
    shapes = packedmeta.parameter_shapes(config, act)
    packed = tensorfile.strict_json(found["packed"], "packed")
    specs = packedfile.check_specs(packed, shapes, split=version != "1")
    packedfile.check_entries(header.entries, shapes, specs)
    return header, config, act, specs


def _read(path: Path) -> PackedModel:
    header, config, act, specs = _header(path)
    extras = tensorfile.strict_json(header.metadata["extras"], "extras")
    if not isinstance(extras, dict):
        raise ValueError("extras: not a JSON object")
    tensors = tensorfile.read_tensors(path, header)
    xz = tensors.pop("tokenizer", None)
    shapes = packedmeta.parameter_shapes(config, act)
    packed = packedfile.to_leaves(tensors, shapes, specs)
    text = None
    if xz is not None:
        text = packedmeta.tokenizer_from_bytes(xz.tobytes(), config.vocab_size)
    return PackedModel(config, trees.unflatten(packed), act, text, extras)


def _guarded(read: Callable[[Path], T], path: Path) -> T:
    try:
        return read(path)
    except FileNotFoundError:
        raise InputMissing(path, "no such file", fix="check the path") from None
    except OSError as error:
        raise StorageError(
            path, f"cannot be read: {error.strerror}", fix="give a packed file"
        ) from error
    except ValueError as error:
        raise DamagedFile(
            path, str(error), fix="fetch the file again, or pack the student again"
        ) from error
