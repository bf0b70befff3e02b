"""What ``bitflax verify`` does: read all of a packed file strictly, and say what it is.

Nothing is taken on trust: names, shapes, checksum, scales, padding, configuration,
activation quantizers; and the tokenizer is built.
"""

import hashlib
import re
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

from bitflax.data.text import Tokenizer
from bitflax.errors import DamagedFile, InputMissing, UsageError
from bitflax.inference import stored_model
from bitflax.packed import file, safetensors_file
from bitflax.packed.file import PackedModel
from bitflax.packed.tensors import SizeRow


class Verified(NamedTuple):
    """What a packed file is, after all of it was read."""

    path: Path
    sha256: str
    """Of the whole file, in hexadecimal."""
    version: str
    """Of the format."""
    model: PackedModel
    tokens: int | None
    """How many the tokenizer knows; None: the file carries none."""
    rows: list[SizeRow]
    """Every byte of the file, as ``size_report`` accounts for them."""


def verify(path: str | Path, sha256: str | None = None) -> Verified:
    """Read a packed file, every part of it verified.

    Args:
      path: a packed file, or the folder of a run that has one.
      sha256: what the whole file's SHA-256 has to be, 64 hexadecimal digits; compared
        before anything in the file is looked at.

    Raises:
      UsageError: ``sha256`` is no such digest.
      InputMissing: there is no packed file.
      StorageError: reading failed.
      DamagedFile: something in it is not as it was written; says what.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        problem = f"expected 64 hexadecimal digits, found {sha256[:80]!r}"
        raise UsageError("--sha256", problem, fix="give what `sha256sum FILE` prints")
    place = stored_model.locate(Path(path))
    if place.is_dir():
        problem = "a folder of dense weights, which carries no checksum"
        fix = "give a packed model.safetensors, or a run's folder that has one"
        raise InputMissing(place, problem, fix=fix)
    found = file.guarded(_digest, place)
    if sha256 is not None and found != sha256.lower():
        problem = f"its SHA-256 is {found}, not {sha256.lower()}"
        fix = "fetch the file again, or compare with another digest"
        raise DamagedFile(place, problem, fix=fix)
    model = file.read_packed(place)
    tokens = None
    if model.tokenizer is not None:
        tokens = Tokenizer.from_json(model.tokenizer, place).vocab_size
    version, rows = file.describe(place)
    return Verified(place, found, version, model, tokens, rows)


def _digest(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()


def report(found: Verified) -> str:
    """Return what a verified file is, a fact a line."""
    config, rows = found.model.config, found.rows
    size = sum(row.bytes for row in rows)
    shape = f"{config.num_hidden_layers} layers of {config.hidden_size}, "
    shape += f"{config.num_attention_heads} heads, {config.intermediate_size} inside, "
    shape += f"{config.max_position_embeddings} positions"
    says = "a number" if config.regression else f"{config.num_labels} labels"
    facts = {
        "file": safetensors_file.shown(str(found.path)),
        "format": f"bitflax-packed, version {found.version}",
        "bytes": f"{size:,}",
        "sha256": found.sha256,
        "shape": f"{shape}, {config.vocab_size:,} words; {says}",
        "tokenizer": "none" if found.tokens is None else f"{found.tokens:,} tokens",
        "activations": _activations(found.model.act),
        **_by_bits(rows),
    }
    width = max(map(len, facts))
    return "\n".join([*(f"{k:<{width}}  {v}" for k, v in facts.items()), "ok"])


def _activations(act: Any) -> str:
    if act is None:
        return "not quantised"
    quantizers = dict.fromkeys(q for _, q in act) if isinstance(act, tuple) else [act]
    return "; ".join(map(repr, quantizers))


def _by_bits(rows: list[SizeRow]) -> dict[str, str]:
    """Return how many weights have how many bits, and what they take."""
    weights = [row for row in rows if row.name not in ("header", "tokenizer")]
    shares = {}
    for bits in sorted({row.bits for row in weights}):
        of = [row for row in weights if row.bits == bits]
        values, size = sum(row.values for row in of), sum(row.bytes for row in of)
        named = f"{bits:g} bit{'' if bits == 1 else 's'}"
        shares[named] = f"{values:,} weights in {size:,} bytes"
    return shares
