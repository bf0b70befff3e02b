"""The 1-bit file: a student of 1, 2 and 8 bits a weight, and all it takes to run it.

Format, versions 1 and 2
------------------------
A safetensors file: a little-endian uint64, the bytes of the header; the header, a
UTF-8 JSON object; the tensors' bytes, without a gap, from the header's end to the
file's. The header names every tensor with ``dtype``, ``shape`` and ``data_offsets``
(counted from the header's end). The dtypes are U8, F16 and F32, little-endian; a
float tensor is F16 where that holds its values exactly, F32 otherwise.

**Tensors.** For each parameter path ``P`` (``encoder/layer_0/ffn/in/kernel``; kernels
are [in, out]) there is either

- ``P``: F16 or F32 of the parameter's shape, or
- ``P.codes``, U8 [rows, ceil(cols bits / 8)], and ``P.scale``, F16 or F32 [1 or rows,
  groups], where ``P`` is a matrix [rows, cols], or
- the sum of two such matrices, ``P_1.codes``, ``P_1.scale``, ``P_2.codes`` and
  ``P_2.scale``: the halves of a split student (``bitflax.splitting``), which takes two
  planes of one bit for each position. Version 2 alone has such.

What an activation's quantizer learns is a parameter whose path is its site
(``encoder/layer_0/ffn/in/input``): the two ends of a clip [2], or a step [].

A row of codes is packed by itself, the lowest bits of a byte first, its last byte
filled with zero bits. The field ``c`` in column ``j`` of row ``i`` stands for
``scale[i or 0, j * groups // cols]`` times ``2 c - 1`` (1 bit), ``c - 1`` (2 bits, 3
never occurs) or ``c`` as a signed byte (8 bits). ``groups`` divides ``cols``; scales
are finite and not negative. Vectors (biases, LayerNorm) are always plain.

``tokenizer``, U8 [bytes], is optional: xz data of a text whose first line is the
JSON of Hugging Face's ``tokenizer.json``. Where more lines follow, they are the
tokens of ids 0, 1, ..., and ``model.vocab`` of the JSON is null in their place.

**Metadata.** ``__metadata__`` of the header holds these texts, and no other:

==========  ======================================================================
format      ``bitflax-packed``
version     ``1``, or ``2`` where a parameter has halves or an activation's quantizer
            learns
config      JSON of ``BertConfig``, all its fields; ``id2label`` are the labels
act         JSON of the activation quantizers: null; ``{"quantizer": "symmetric" or
            "asymmetric", "bits", "axis", "levels", "groups"}``; ``{"quantizer":
            "clipped", "inner": one of these two, "at"}`` or ``{"quantizer": "lsq" or
            "elastic", "bits", "signed"}``, which learn; or a list of pairs [regex of a
            site, quantizer], of which the first match decides
packed      JSON ``{P: {"bits": 1, 2 or 8, "shape": [rows, cols], "groups": [1 or
            rows, groups]}}`` of every parameter that is stored as codes; where it has
            halves, ``P_1`` and ``P_2`` both, and no ``P``
extras      JSON object of whatever the writer adds; readers may ignore it
sha256      64 hex digits, as ``bitflax.tensorfile.digest`` says: over, each text
            ended by a zero byte, key and value of the other metadata in sorted order,
            then name, dtype, shape ("384,48") and bytes of each tensor in sorted order
==========  ======================================================================

A reader takes nothing on trust: the header has at most 2^20 bytes, keys are neither
unknown nor double, names and shapes are those that ``config`` asks for, all this
before a tensor is read; then the checksum, scales, padding bits and fields.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from bitflax import (
    encoding,
    leaves,
    packedact,
    packedfile,
    packedmeta,
    packedtokenizer,
    tensorfile,
    trees,
)
from bitflax.errors import OutputError, StorageError
from bitflax.leaves import Split
from bitflax.packedfile import SizeRow, size_table
from bitflax.packedreader import (
    FORMAT,
    VERSIONS,
    PackedModel,
    load_packed,
    read_packed,
    size_report,
)
from bitflax.rules import ACT_PARAMS, Rules, quantize
from bitflax.types import BertConfig, Params

__all__ = [
    "PackedModel",
    "SizeRow",
    "load_packed",
    "pack",
    "read_packed",
    "save_packed",
    "size_report",
    "size_table",
    "unpack",
]

RESTS = ("int8", "float16", "float32")


def pack(params: Params, rules: Rules, rest: str = "int8") -> Params:
    """Quantise by ``rules`` and pack the result; pack the rest by ``rest``.

    The bits are read off the quantised *values*, not off the quantizer: -s and s take
    1 bit, -s, 0 and s take 2, with one s a tensor, an output channel, a row, or a run
    of the last axis. A vector that a rule quantises is kept as its values. The halves
    of a ``Split`` matrix are packed each by itself; of one that no rule matches, their
    sum is. What is dropped: ``projection/...``, which only training uses.

    Args:
      params: a tree of latent weights, as training leaves it.
      rules: as ``bitflax.quantize`` takes them; () packs all of it as ``rest``.
      rest: what is kept of the other parameters. ``"int8"``: matrices 8 bits with a
        scale a row or a column, whichever errs less; vectors and matrices of one or
        two rows float16. ``"float16"``: all float16. ``"float32"``: exact.

    Returns:
      The tree with ``Packed`` for matrices that are codes (a ``Split`` of two where it
      was split), float32 arrays else; the model function takes it in place of
      ``params``. With a rest that is not float32, the scales of rows are rounded to
      float16 (one part in 2048).

    Raises:
      ValueError: ``rest`` is none of the three, or a rule matches no path.
      ConfigError: a quantizer's values do not fit; names the parameter.
      Diverged: a parameter is not finite.

    >>> tree = {"kernel": jnp.array([[1.0, -3.0]]), "bias": jnp.array([0.5, 0.25])}
    >>> packed = pack(tree, [("kernel", lambda w: jnp.sign(w) * 2)])
    >>> packed["kernel"].bits, packed["kernel"].codes, packed["bias"]
    (1, Array([[1]], dtype=uint8), Array([0.5 , 0.25], dtype=float32))
    """
    if rest not in RESTS:
        raise ValueError(f"rest must be one of {', '.join(RESTS)}, not {rest!r}")
    chosen = trees.match(rules, trees.flatten(params))
    packed = {
        path: _pack(path, leaf, path in chosen, rest)
        for path, leaf in trees.flatten(quantize(params, rules)).items()
        if not path.startswith("projection/")
    }
    return trees.unflatten(packed)


def _is_new(path: str, leaf: Any) -> bool:
    """Whether version 1 knows no such parameter."""
    return isinstance(leaf, Split) or re.fullmatch(ACT_PARAMS, path) is not None


def _pack(path: str, leaf: Any, chosen: bool, rest: str) -> Any:
    if re.fullmatch(ACT_PARAMS, path):  # a range or step of an activation: exact
        rest = "float32"
    if isinstance(leaf, Split):
        if chosen and len(leaf.shape) == 2:
            halves = (encoding.pack_leaf(path, x, True, rest) for x in (leaf.a, leaf.b))
            return Split(*halves)
        leaf = leaves.dense(leaf)
    return encoding.pack_leaf(path, leaf, chosen, rest)


def unpack(packed: Params) -> Params:
    """Return the dense float32 parameters that a packed tree stands for."""
    return trees.map_paths(
        lambda path, leaf: jnp.asarray(leaves.dense(leaf), jnp.float32), packed
    )


def _parts(
    config: BertConfig, packed: Params, act: Any, tokenizer: Any, extras: Any
) -> list:
    """Return the file as its parts, after checking that it may be written."""
    flat = trees.flatten(packed)
    named = packedact.to_json(act, config)
    packedfile.check_tree(flat, packedmeta.parameter_shapes(config, act))
    tensors = packedfile.to_tensors(flat)
    if tokenizer is not None:
        text = tokenizer if isinstance(tokenizer, str) else tokenizer.to_json()
        xz = packedtokenizer.to_bytes(text, config)
        tensors["tokenizer"] = np.frombuffer(xz, np.uint8)
    metadata = {
        "format": FORMAT,
        "version": VERSIONS[any(map(_is_new, flat, flat.values()))],
        "config": packedmeta.config_to_json(config),
        "act": named,
        "packed": json.dumps(packedfile.specs(flat), separators=(",", ":")),
        "extras": json.dumps(extras or {}, separators=(",", ":")),
    }
    return tensorfile.encode(tensors, metadata)


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
      tokenizer: a ``bitflax.data.text.Tokenizer``, or the text of a
        ``tokenizer.json``.
      extras: whatever else should travel along, as JSON has it.

    Raises:
      ConfigError: the tree does not fit the configuration, or ``act`` is not one that
        a file can name.
      OutputError: the file cannot be created.
      StorageError: writing failed.
    """
    path = Path(path)
    parts = _parts(config, packed, act, tokenizer, extras)
    try:
        tensorfile.write(path, parts)
    except (FileNotFoundError, NotADirectoryError, PermissionError) as error:
        raise OutputError(
            path, str(error.strerror), fix="give a folder that can be written"
        ) from error
    except OSError as error:
        raise StorageError(path, str(error.strerror), fix="free some space") from error
