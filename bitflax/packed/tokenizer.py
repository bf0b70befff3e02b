"""A tokenizer in a packed file: small, and of parts that can do no harm.

The text of Hugging Face's ``tokenizer.json`` is compressed with xz, the vocabulary as
lines. It comes back through a closed list of parts.
"""

import base64
import json
import lzma
import math
from typing import Any

import numpy as np

from bitflax.errors import ConfigError
from bitflax.packed import safetensors_file
from bitflax.types import BertConfig

_PARTS = 300_000
"""Marks in the JSON's text: they bound the memory that a reader's objects take."""
_DICTIONARY = 1 << 23


def tokenizer_to_bytes(text: str, config: BertConfig) -> bytes:
    """Compress a ``tokenizer.json`` with xz, the vocabulary as lines.

    The first line is the JSON. Where its ``model.vocab`` gives the ids 0, 1, ... in
    order, that field is null and the tokens follow, one a line: without their ids
    they take 30 % less. Each of a Unigram model has a tab and its score, a float32.

    Raises:
      ConfigError: as ``check_tokenizer``.
    """
    plain = check_tokenizer(text, config)
    return lzma.compress(plain, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=_filters())


def check_tokenizer(text: str, config: BertConfig) -> bytes:
    """Return what is compressed of a ``tokenizer.json``.

    Raises:
      ConfigError: a reader would not take it; says why.
    """
    try:
        plain = _plain(json.loads(text))
        most, _ = limits(config)
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
    vocab: Any = model.get("vocab") if isinstance(model, dict) else None
    lines: list[str] = []
    if isinstance(vocab, dict):
        tokens = sorted(vocab, key=vocab.__getitem__)
        if [vocab[t] for t in tokens] == list(range(len(tokens))):
            lines = tokens
    elif _is_scored(vocab):
        scores = [np.float32(score) for _, score in vocab]
        if all(float(s) == score for s, (_, score) in zip(scores, vocab, strict=True)):
            lines = [f"{t}\t{s!s}" for (t, _), s in zip(vocab, scores, strict=True)]
    if lines and not any("\n" in line for line in lines):
        found = {**found, "model": {**model, "vocab": None}}
    else:
        lines = []
    first = json.dumps(found, separators=(",", ":"), ensure_ascii=False)
    return "\n".join([first, *lines]).encode()


def _filters() -> list[dict]:
    """LZMA2 for text (pb=0), and a dictionary that bounds the reader's memory."""
    preset = 9 | lzma.PRESET_EXTREME
    lzma2 = {"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": _DICTIONARY}
    return [{**lzma2, "lc": 4, "lp": 0, "pb": 0}]


def tokenizer_from_bytes(packed: bytes, config: BertConfig) -> str:
    """Return the text of ``tokenizer.json``; the inverse of ``tokenizer_to_bytes``."""
    reader = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=4 * _DICTIONARY)
    try:
        plain = reader.decompress(packed, limits(config)[0] + 1)
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
        most = min(limits(config)[1], config.vocab_size)
        if rest.count(b"\n") >= most:
            raise ValueError(f"tokenizer: more than {most:,} tokens")
        _put_tokens(found, rest.decode("utf-8").split("\n"))
    check(found, config)
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False)


def _put_tokens(found: Any, tokens: list[str]) -> None:
    model = found.get("model") if isinstance(found, dict) else None
    if not isinstance(model, dict) or model.get("vocab", "") is not None:
        raise ValueError("tokenizer: a vocabulary, but no place for it")
    names = tokens
    if model.get("type") == "Unigram":
        pairs = [line.rpartition("\t") for line in tokens]
        model["vocab"] = [[name, float(np.float32(score))] for name, _, score in pairs]
        names = [name for name, *_ in pairs]
    else:
        model["vocab"] = {token: i for i, token in enumerate(tokens)}
    if len(set(names)) != len(names):
        raise ValueError("tokenizer: double tokens")


_MOST = 4 << 20
_TOKENS = 131_072
"""Bytes of a text and tokens: more where ``limits`` says so."""
_ADDED = 4096
_KEYS = {"version", "truncation", "padding", "added_tokens", "model"}
_BYTES = "add_prefix_space trim_offsets use_regex"
_SPACE = "replacement prepend_scheme add_prefix_space split"
_KINDS = {
    "model": {
        "WordPiece": "vocab unk_token continuing_subword_prefix "
        "max_input_chars_per_word",
        "WordLevel": "vocab unk_token",
        "Unigram": "vocab unk_id byte_fallback",
        "BPE": "vocab merges unk_token continuing_subword_prefix end_of_word_suffix "
        "dropout fuse_unk byte_fallback ignore_merges",
    },
    "normalizer": {
        "BertNormalizer": "clean_text handle_chinese_chars strip_accents lowercase",
        "Precompiled": "precompiled_charsmap",
        "Strip": "strip_left strip_right",
        **dict.fromkeys(
            ["Lowercase", "NFC", "NFD", "NFKC", "NFKD", "StripAccents"], ""
        ),
    },
    "pre_tokenizer": {
        "ByteLevel": _BYTES,
        "CharDelimiterSplit": "delimiter",
        "Digits": "individual_digits",
        "Metaspace": _SPACE,
        "Punctuation": "behavior",
        **dict.fromkeys(["BertPreTokenizer", "Whitespace", "WhitespaceSplit"], ""),
    },
    "post_processor": {
        "BertProcessing": "sep cls",
        "RobertaProcessing": "sep cls trim_offsets add_prefix_space",
        "TemplateProcessing": "single pair special_tokens",
        "ByteLevel": _BYTES,
    },
    "decoder": {
        "BPEDecoder": "suffix",
        "ByteLevel": _BYTES,
        "Metaspace": _SPACE,
        "WordPiece": "prefix cleanup",
    },
}
_SEQUENCE = {
    "normalizer": "normalizers",
    "pre_tokenizer": "pretokenizers",
    "post_processor": "processors",
    "decoder": "decoders",
}


def limits(config: BertConfig) -> tuple[int, int]:
    """Return the most bytes of text and the most tokens.

    A word table takes at least one bit a value of the file: what 100 bytes of it allow
    a token more keeps a reader's memory bounded by the file's size.
    """
    table = config.vocab_size * config.hidden_size // 8
    return _MOST + table // 8, _TOKENS + table // 100


def check(found: Any, config: BertConfig) -> None:
    """Refuse the JSON of a tokenizer that has other parts than the known ones.

    Raises:
      ValueError: says which part, or which id that the model has no row for.
    """
    if not isinstance(found, dict) or not set(found) <= _KEYS.union(_KINDS):
        raise ValueError("tokenizer: not an object of a tokenizer's parts")
    for place in _KINDS:
        for part in _parts_of(found.get(place), place):
            _check_kind(part, place)
            if place == "post_processor":
                _check_special(part, config)
            if part["type"] == "Precompiled":
                _check_charsmap(part.get("precompiled_charsmap"))
    _check_model(found.get("model"), config)
    added = found.get("added_tokens") or []
    if not isinstance(added, list) or len(added) > _ADDED:
        raise ValueError(f"tokenizer: added_tokens are no list of at most {_ADDED}")
    if not all(_is_text(_get(token, "content"), 1, 64) for token in added):
        raise ValueError("tokenizer: an added token is not of 1 to 64 characters")
    vocab = found["model"]["vocab"]
    known = vocab if isinstance(vocab, dict) else [token for token, _ in vocab]
    tokens = {*known, *(token["content"] for token in added)}
    if len(tokens) > config.vocab_size:  # the library numbers new ones from the end
        raise ValueError("tokenizer: an added token that the model has no row for")


def _parts_of(found: Any, place: str) -> list:
    """Return the parts of a place: none, one, or those of a sequence."""
    if place not in _SEQUENCE or _get(found, "type") != "Sequence":
        return [] if found is None else [found]
    parts = found.get(_SEQUENCE[place])
    if len(found) != 2 or not isinstance(parts, list) or len(parts) > 8:
        raise ValueError(f"tokenizer: its {place} is no sequence of at most 8")
    return parts


def _check_kind(part: Any, place: str) -> None:
    """Refuse what is none of a place's kinds, or has other fields than its kind.

    The library goes by the fields: a part that says one type and has the fields of
    another becomes the other.
    """
    kind, kinds = _get(part, "type"), _KINDS[place]
    if not isinstance(kind, str) or kind not in kinds:
        known = ", ".join(kinds)
        raise ValueError(
            f"tokenizer: its {place} is {str(kind)[:40]!r}, none of {known}"
        )
    odd = set(part) - {"type", *kinds[kind].split()}
    if odd:
        raise ValueError(f"tokenizer: {kind} has no {sorted(odd)[0][:40]!r}")


def _check_charsmap(text: Any) -> None:
    """Check SentencePiece's table of characters: a size in bytes, as many of a trie of
    uint32, and UTF-8 texts, each ended by a zero byte.

    The trie is Darts' double array: unit i leads to the units that differ from
    ``i ^ offset`` in the last byte, of which the first says where a leaf's text begins.
    The library panics where one leads beyond.
    """
    try:
        data = base64.b64decode(text, validate=True)
        size = int.from_bytes(data[:4], "little")
        units = np.frombuffer(data, "<u4", size // 4, offset=4).astype(np.int64)
        texts = data[4 + size :].decode().encode() + b"\0"
    except (TypeError, ValueError):
        raise ValueError("tokenizer: its charsmap is cut, or no base64") from None
    first = np.arange(len(units)) ^ (units >> 10 << ((units & 512) >> 6))
    steps = units < 1 << 31  # others are leaves; the root is none, whatever it says
    steps[:1] = True
    first, leaf = first[steps], (units[steps] & 256) > 0
    if not size or size % 4 or (first | 255).max(initial=0) >= len(units):
        raise ValueError("tokenizer: its charsmap leads to what is not there")
    begins = units[first[leaf]] & ((1 << 31) - 1)
    known = np.frombuffer(texts, np.uint8)
    if begins.max(initial=0) >= len(known) or (known[begins] & 0xC0 == 0x80).any():
        raise ValueError("tokenizer: its charsmap points into no text")


def _check_model(model: Any, config: BertConfig) -> None:
    """Check a model's ids, and what it does with unknown and with long words."""
    if not isinstance(model, dict):
        raise ValueError("tokenizer: it has no model")
    kind, vocab = model["type"], model.get("vocab") or {}
    most = limits(config)[1]
    whole = _is_scored(vocab) if kind == "Unigram" else isinstance(vocab, dict)
    if not whole or not 0 < len(vocab) <= most:
        raise ValueError(f"tokenizer: its vocabulary is not of 1 to {most:,} tokens")
    if kind == "Unigram":
        if not _is_below(model.get("unk_id"), len(vocab)):
            raise ValueError("tokenizer: its unknown token is not in the vocabulary")
        if len(vocab) > config.vocab_size:
            raise ValueError("tokenizer: an id that the model has no row for")
        return
    if not all(_is_below(i, config.vocab_size) for i in vocab.values()):
        raise ValueError("tokenizer: an id that the model has no row for")
    unknown = model.get("unk_token", "[UNK]")
    known = unknown in vocab if isinstance(unknown, str) else unknown is None
    if not known or (unknown is None and kind != "BPE"):
        raise ValueError("tokenizer: its unknown token is not in the vocabulary")
    if not _is_below(model.get("max_input_chars_per_word", 100), 1001):
        raise ValueError("tokenizer: max_input_chars_per_word is over 1000")
    for name in ("continuing_subword_prefix", "end_of_word_suffix"):
        if not _is_text(model.get(name) or "", 0, 16):
            raise ValueError(f"tokenizer: {name} is not of at most 16 characters")
    if model.get("dropout") is not None:
        raise ValueError("tokenizer: its model drops merges at random")


def _check_special(part: dict, config: BertConfig) -> None:
    """Check the ids and the token types that a post-processor adds."""
    if part["type"] == "ByteLevel":
        return
    adds = _template if part["type"] == "TemplateProcessing" else _sep_and_cls
    ids, types = adds(part)
    if not all(_is_below(i, config.vocab_size) for i in ids):
        raise ValueError("tokenizer: a special id that the model has no row for")
    if not all(_is_below(i, max(2, config.type_vocab_size)) for i in types):
        raise ValueError("tokenizer: a token type that the model has no row for")


def _template(part: dict) -> tuple[list, list]:
    """Return the ids and the types of ``TemplateProcessing``.

    The library panics where a template names a special token that it has not.
    """
    special, types = part.get("special_tokens"), []
    if not isinstance(special, dict) or len(special) > 16:
        raise ValueError("tokenizer: a template has no table of special tokens")
    for name, texts in ("single", ["A"]), ("pair", ["A", "B"]):
        found = part.get(name)
        if not isinstance(found, list) or len(found) > 16:
            raise ValueError("tokenizer: a template is no list of at most 16 pieces")
        pieces = [_piece(piece) for piece in found]
        if sorted(text for kind, text, _ in pieces if kind == "Sequence") != texts:
            raise ValueError("tokenizer: a template leaves a text out, or doubles it")
        if any(kind != "Sequence" and text not in special for kind, text, _ in pieces):
            raise ValueError("tokenizer: a template has a special token of no id")
        types += [type_id for _, _, type_id in pieces]
    ids: list = []
    for token in special.values():
        found = _get(token, "ids")
        if not isinstance(found, list) or len(found) > 8:
            raise ValueError("tokenizer: special tokens without their ids")
        ids += found
    return ids, types


def _piece(found: Any) -> tuple[str, str, Any]:
    """Return (kind, name, type) of a template's piece."""
    if isinstance(found, dict) and len(found) == 1:
        ((kind, inner),) = found.items()
        name = _get(inner, "id")
        if kind in ("SpecialToken", "Sequence") and isinstance(name, str):
            return kind, name, _get(inner, "type_id")
    raise ValueError("tokenizer: a template's piece is no text and no special token")


def _sep_and_cls(part: dict) -> tuple[list, list]:
    """Return the ids of ``BertProcessing`` and ``RobertaProcessing``."""
    pairs: list[Any] = [part.get("sep"), part.get("cls")]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        raise ValueError("tokenizer: special tokens without their ids")
    return [i for _, i in pairs], []


def _is_scored(vocab: Any) -> bool:
    """Whether a vocabulary is Unigram's: pairs of a token and a finite score."""
    return isinstance(vocab, list) and all(
        isinstance(pair, list)
        and len(pair) == 2
        and isinstance(pair[0], str)
        and type(pair[1]) in (int, float)
        and math.isfinite(pair[1])
        for pair in vocab
    )


def _get(found: Any, key: str) -> Any:
    return found.get(key) if isinstance(found, dict) else None


def _is_below(found: Any, limit: int) -> bool:
    return type(found) is int and 0 <= found < limit


def _is_text(found: Any, least: int, most: int) -> bool:
    return isinstance(found, str) and least <= len(found) <= most
