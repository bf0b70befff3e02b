"""A tokenizer in a packed file: small, and of parts that can do no harm.

The text of Hugging Face's ``tokenizer.json`` is compressed with xz, the vocabulary as
lines. It comes back through the closed list of ``bitflax.packed.tokenizerparts``. What comes
back wrong raises ValueError with what is wrong.
"""

import json
import lzma
from typing import Any

from bitflax.errors import ConfigError
from bitflax.packed import safetensors_file, tokenizerparts
from bitflax.types import BertConfig

_PARTS = 300_000
"""Marks in the JSON's text: they bound the memory that a reader's objects take."""


_DICTIONARY = 1 << 23


def to_bytes(text: str, config: BertConfig) -> bytes:
    """Compress a ``tokenizer.json`` with xz, the vocabulary as lines.

    The first line is the JSON. Where its ``model.vocab`` gives the ids 0, 1, ... in
    order, that field is null and the tokens follow, one a line: without their ids
    they take 30 % less.

    Raises:
      ConfigError: as ``checked``.
    """
    plain = checked(text, config)
    return lzma.compress(plain, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=_filters())


def checked(text: str, config: BertConfig) -> bytes:
    """Return what is compressed of a ``tokenizer.json``.

    Raises:
      ConfigError: a reader would not take it; says why.
    """
    try:
        plain = _plain(json.loads(text))
        most, _ = tokenizerparts.limits(config)
        if len(plain) > most:
            raise ValueError(f"{len(plain)} bytes, over {most}")
        _text(plain, config)
    except ValueError as error:
        raise ConfigError(
            "tokenizer",
            f"a packed file cannot carry it: {str(error).removeprefix('tokenizer: ')}",
            fix="save without a tokenizer, and hand it to Predictor yourself",
        ) from None
    return plain


def _plain(found: Any) -> bytes:
    model: Any = found.get("model") if isinstance(found, dict) else None
    vocab, lines = model.get("vocab") if isinstance(model, dict) else None, []
    if isinstance(vocab, dict) and not any("\n" in token for token in vocab):
        tokens = sorted(vocab, key=vocab.__getitem__)
        if tokens and [vocab[t] for t in tokens] == list(range(len(tokens))):
            lines, found = tokens, {**found, "model": {**model, "vocab": None}}
    first = json.dumps(found, separators=(",", ":"), ensure_ascii=False)
    return "\n".join([first, *lines]).encode()


def _filters() -> list[dict]:
    """LZMA2 for text (pb=0), and a dictionary that bounds the reader's memory."""
    preset = 9 | lzma.PRESET_EXTREME
    lzma2 = {"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": _DICTIONARY}
    return [{**lzma2, "lc": 4, "lp": 0, "pb": 0}]


def from_bytes(packed: bytes, config: BertConfig) -> str:
    """Return the text of ``tokenizer.json``; the inverse of ``to_bytes``."""
    reader = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=4 * _DICTIONARY)
    try:
        plain = reader.decompress(packed, tokenizerparts.limits(config)[0] + 1)
    except (lzma.LZMAError, EOFError):
        raise ValueError("tokenizer: not whole xz data") from None
    if not reader.eof or reader.unused_data:
        raise ValueError("tokenizer: too long, or cut, or followed by more")
    return _text(plain, config)


def _text(plain: bytes, config: BertConfig) -> str:
    """Return the JSON with its vocabulary in its place, all of it checked."""
    first, line, rest = plain.partition(b"\n")
    if sum(first.count(mark) for mark in b",[{:") > _PARTS:
        raise ValueError("tokenizer: more parts than a tokenizer has")
    found = safetensors_file.strict_json(first, "tokenizer")
    if line:
        most = min(tokenizerparts.limits(config)[1], config.vocab_size)
        if rest.count(b"\n") >= most:
            raise ValueError(f"tokenizer: more than {most:,} tokens")
        _put_tokens(found, rest.decode("utf-8").split("\n"))
    tokenizerparts.check(found, config)
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False)


def _put_tokens(found: Any, tokens: list[str]) -> None:
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict) or model.get("vocab", "") is not None:
        raise ValueError("tokenizer: a vocabulary, but no place for it")
    model["vocab"] = {token: i for i, token in enumerate(tokens)}
    if len(model["vocab"]) != len(tokens):
        raise ValueError("tokenizer: double tokens")
