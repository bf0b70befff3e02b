"""The 1-bit file: a student of 1, 2 and 8 bits a weight, and all it takes to run it.

Format, versions 1 to 3
-----------------------
``FORMAT.md`` beside this module says it whole, with a reader in plain NumPy; in short:

A safetensors file of U8, F16 and F32 tensors. A parameter of path ``P`` is there as

- ``P``, float16 where that is exact, else float32; or
- ``P.codes``, whole bytes a row, and ``P.scale`` [1 or rows, groups]: fields of 1 bit
  (-1 or +1), 2 bits (-1, 0 or +1; since version 3 five of them share a byte: 1.6 bits)
  or 8 bits (a signed integer; since version 3 4 where that is enough), times the scale
  of their row and run of columns; or
- the sum of two such matrices, ``P_1`` and ``P_2``: the halves of a split student
  (``bitflax.quantization.splitting``), two planes of one bit for each position (since version 2).

``tokenizer`` is ``tokenizer.json``, its vocabulary as lines, compressed with xz. The
header's metadata are ``format``, ``version``, ``config``, ``act`` (the activation
quantizers), ``packed`` (bits, shape and groups of each matrix that is codes),
``extras``, and ``sha256`` of all of it (``bitflax.packed.safetensors_file.digest``).

A reader takes nothing on trust: the header has at most 2^20 bytes, keys are neither
unknown nor double, names and shapes are those that ``config`` asks for, all this
before a tensor is read; then the checksum, scales, padding and fields.
"""

import json
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from bitflax import trees
from bitflax.errors import ConfigError, OutputError, StorageError
from bitflax.model import leaves
from bitflax.model.leaves import Split
from bitflax.packed import packedact, packing, safetensors_file
from bitflax.packed.file import FORMAT
from bitflax.packed.metadata import config_to_json, parameter_shapes
from bitflax.packed.tensors import check_tree, specs, to_tensors, version
from bitflax.packed.tokenizer import to_bytes
from bitflax.quantization.rules import ACT_PARAMS, Rules, quantize
from bitflax.types import BertConfig, Params


def pack(params: Params, rules: Rules, rest: packing.Rest = "int8") -> Params:
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
        two rows float16. ``"int4"``: the same, but 4 bits. ``"float16"``: all float16.
        ``"float32"``: exact. Or pairs (path regex, one of these), of which the first
        match decides; ``"int8"`` where none does.

    Returns:
      The tree with ``Packed`` for matrices that are codes (a ``Split`` of two where it
      was split), float32 arrays else; the model function takes it in place of
      ``params``. Of a quantised matrix whose rest is not float32, the scales of rows
      are rounded to float16 (one part in 2048).

    Raises:
      ValueError: ``rest`` is none of these, or a rule matches no path.
      ConfigError: a quantizer's values do not fit; names the parameter.
      Diverged: a parameter is not finite.

    >>> tree = {"kernel": jnp.array([[1.0, -3.0]]), "bias": jnp.array([0.5, 0.25])}
    >>> packed = pack(tree, [("kernel", lambda w: jnp.sign(w) * 2)])
    >>> packed["kernel"].bits, packed["kernel"].codes, packed["bias"]
    (1, Array([[1]], dtype=uint8), Array([0.5 , 0.25], dtype=float32))
    """
    flat = trees.flatten(params)
    chosen = trees.match(rules, flat)
    kept = [path for path in flat if not path.startswith("projection/")]
    rests = packing.rest_of(rest, kept)
    quantised = trees.flatten(quantize(params, rules))
    packed = {p: _pack(p, quantised[p], p in chosen, rests[p]) for p in kept}
    return trees.unflatten(packed)


def _is_new(path: str, leaf: Any) -> bool:
    """Whether version 1 knows no such parameter."""
    return isinstance(leaf, Split) or re.fullmatch(ACT_PARAMS, path) is not None


def _pack(path: str, leaf: Any, chosen: bool, rest: str) -> Any:
    if re.fullmatch(ACT_PARAMS, path):  # a range or step of an activation: exact
        rest = "float32"
    if isinstance(leaf, Split):
        if chosen and len(leaf.shape) == 2:
            halves = (packing.pack_leaf(path, x, True, rest) for x in (leaf.a, leaf.b))
            return Split(*halves)
        leaf = leaves.dense(leaf)
    return packing.pack_leaf(path, leaf, chosen, rest)


def unpack(packed: Params) -> Params:
    """Return the dense float32 parameters that a packed tree stands for."""
    return trees.map_paths(
        lambda path, leaf: jnp.asarray(leaves.dense(leaf), jnp.float32), packed
    )


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


def _parts(
    config: BertConfig, packed: Params, act: Any, tokenizer: Any, extras: Any
) -> list:
    """Return the file as its parts, after checking that it may be written."""
    flat = trees.flatten(packed)
    named = packedact.to_json(act, config)
    check_tree(flat, parameter_shapes(config, act))
    tensors = to_tensors(flat)
    if tokenizer is not None:
        text = tokenizer if isinstance(tokenizer, str) else tokenizer.to_json()
        xz = to_bytes(text, config)
        tensors["tokenizer"] = np.frombuffer(xz, np.uint8)
    packed_specs = specs(flat)
    new = any(map(_is_new, flat, flat.values()))
    metadata = {
        "format": FORMAT,
        "version": version(packed_specs, new),
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
      tokenizer: a ``bitflax.data.text.Tokenizer``, or the text of a
        ``tokenizer.json``.
      extras: whatever else should travel along, as JSON has it.

    Raises:
      ConfigError: the tree does not fit the configuration, ``act`` is not one that a
        file can name, or a reader would not take the tokenizer or the extras.
      OutputError: the file cannot be created.
      StorageError: writing failed.
    """
    path = Path(path)
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
