"""What a packed file says besides its weights: configuration, activations, tokenizer.

Each goes out as JSON and comes back through a closed list of fields, types and
classes. What comes back wrong raises ValueError with what is wrong.
"""

import dataclasses
import json
import lzma
import math
import re
import types
import typing
from typing import Any

from bitflax import activations, hfnames, learned, quantizers, tensorfile
from bitflax.errors import ConfigError
from bitflax.types import BertConfig

ACTIVATIONS = {
    "symmetric": quantizers.symmetric,
    "asymmetric": quantizers.asymmetric,
    "clipped": learned.clipped,
    "lsq": learned.lsq,
    "elastic": learned.elastic,
}
MAX_TOKENIZER = 8 << 20
_MAX_PARTS = 500_000
_MAX_RULES = 500
_DICTIONARY = 1 << 23
_REGEX = re.compile(r"[\w/.*+?|()\[\]\\-]{1,200}")


def config_to_json(config: BertConfig) -> str:
    """Return all fields of the configuration, by their names in ``BertConfig``."""
    return json.dumps(dataclasses.asdict(config), separators=(",", ":"))


def config_from_json(text: str) -> BertConfig:
    """Return the configuration; the inverse of ``config_to_json``.

    >>> config_from_json(config_to_json(BertConfig(num_labels=3))).num_labels
    3
    """
    fields = tensorfile.strict_json(text, "config")
    hints = typing.get_type_hints(BertConfig)
    if not isinstance(fields, dict) or set(fields) != set(hints):
        raise ValueError("config: its fields are not those of a BertConfig")
    for name, value in fields.items():
        if name != "id2label" and not _is(value, hints[name]):
            raise ValueError(f"config: {name} cannot be {str(value)[:40]}")
    labels = fields["id2label"]
    if labels is not None:
        fields["id2label"] = _labels(labels, fields["num_labels"])
    try:
        return BertConfig(**fields)
    except ValueError as error:
        raise ValueError(f"config: {error}") from None


def _is(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a simple type, or of one in a union of them."""
    if isinstance(hint, types.UnionType):
        return any(_is(value, kind) for kind in typing.get_args(hint))
    if hint is float:
        return type(value) in (int, float) and abs(value) < math.inf
    return type(value) is hint


def _labels(found: Any, count: int) -> dict[int, str]:
    """Return ``{0: name, ...}`` of ``{"0": name, ...}``."""
    if not isinstance(found, dict) or list(found) != [str(i) for i in range(count)]:
        raise ValueError(f"config: id2label does not number {count} labels from 0")
    if not all(isinstance(name, str) for name in found.values()):
        raise ValueError("config: id2label holds a label that is not a text")
    return {i: name for i, name in enumerate(found.values())}


def parameter_shapes(config: BertConfig, act: Any = None) -> dict[str, tuple[int, ...]]:
    """Return ``{path: shape}`` of every parameter, what activations learn last.

    Args:
      config: the model's shape.
      act: its activation quantizers; those that learn have a parameter at each site.

    Raises:
      ValueError: a rule of ``act`` matches no site.

    >>> parameter_shapes(BertConfig())["encoder/layer_0/ffn/in/kernel"]
    (768, 3072)
    """
    shapes = {
        entry.path: entry.shape[::-1] if entry.transposed else entry.shape
        for entry in hfnames.entries(config)
    }
    return shapes | activations.learned_shapes(act, config)


def act_to_json(act: Any) -> str:
    """Return activation quantizers as JSON: null, one, or pairs [site regex, one].

    Raises:
      ConfigError: a quantizer is none that a file can name, or a regex is longer
        or more intricate than a reader accepts.

    >>> act_to_json(quantizers.symmetric(bits=4))
    '{"quantizer":"symmetric","bits":4,"axis":-1,"levels":"restricted","groups":null}'
    """
    pairs = isinstance(act, (tuple, list))
    found: Any = [[regex, _named(q)] for regex, q in act] if pairs else _named(act)
    text = json.dumps(found, separators=(",", ":"))
    try:
        act_from_json(text)
    except ValueError as error:
        raise ConfigError(
            "act", str(error), fix="name the sites with a simpler regex"
        ) from None
    return text


def _named(quantizer: Any) -> dict[str, Any] | None:
    if quantizer is None:
        return None
    name = type(quantizer).__name__
    if ACTIVATIONS.get(name) is not type(quantizer):
        raise ConfigError(
            "act",
            f"a packed file cannot name the activation quantizer {quantizer!r:.80}",
            fix=f"use one of {', '.join(ACTIVATIONS)}, or save with act=None and hand "
            "the quantizer to bitflax.bert yourself",
        )
    if isinstance(quantizer, learned.clipped):
        inner = _named(quantizer.quantizer)
        return {"quantizer": name, "inner": inner, "at": quantizer.at}
    return {"quantizer": name, **dataclasses.asdict(quantizer)}


def act_from_json(text: str) -> Any:
    """Return activation quantizers; the inverse of ``act_to_json``."""
    found = tensorfile.strict_json(text, "act")
    if found is None:
        return None
    if isinstance(found, dict):
        return _quantizer(found)
    if not isinstance(found, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in found
    ):
        raise ValueError("act: neither a quantizer nor pairs of site and quantizer")
    if len(found) > _MAX_RULES:
        raise ValueError(f"act: more than {_MAX_RULES} rules")
    return tuple((_site_regex(regex), _quantizer(named)) for regex, named in found)


def _quantizer(found: Any) -> Any:
    """Make a quantizer of its name and exactly its fields."""
    kind = found.get("quantizer") if isinstance(found, dict) else None
    if not isinstance(kind, str) or kind not in ACTIVATIONS:
        raise ValueError(f"act: a quantizer is none of {', '.join(ACTIVATIONS)}")
    fields = {name: value for name, value in found.items() if name != "quantizer"}
    made = ACTIVATIONS[kind]
    if made is learned.clipped:
        fields["quantizer"] = _inner(fields.pop("inner", None))
    if set(fields) != {field.name for field in dataclasses.fields(made)}:
        raise ValueError(f"act: the fields are not those of {kind}")
    if isinstance(fields.get("axis"), list):
        fields["axis"] = tuple(fields["axis"])
    odd = [name for name, value in fields.items() if not _FIELDS[name](value)]
    if odd:
        raise ValueError(f"act: {odd[0]} of {kind} cannot be {fields[odd[0]]!r:.40}")
    try:
        return made(**fields)
    except (ValueError, TypeError) as error:
        raise ValueError(f"act: {error}") from None


def _inner(found: Any) -> Any:
    """Return what ``clipped`` rounds by: one of the two that learn nothing."""
    kind = found.get("quantizer") if isinstance(found, dict) else None
    if kind not in ("symmetric", "asymmetric"):
        raise ValueError("act: clipped rounds by symmetric or asymmetric")
    return _quantizer(found)


def _is_axis(found: Any) -> bool:
    axes = found if isinstance(found, tuple) else (found,)
    return all(_is(n, int | None) and -4 <= (n or 0) <= 3 for n in axes)


_FIELDS = {
    "axis": _is_axis,
    "bits": lambda found: _is(found, int),
    "groups": lambda found: _is(found, int | None),
    "levels": lambda found: _is(found, str),
    "signed": lambda found: _is(found, bool),
    "at": lambda found: _is(found, float),
    "quantizer": lambda found: True,
}


def _site_regex(found: Any) -> str:
    """Refuse a regex that may keep a reader busy: over 4 repeats, or one of a group."""
    fits = isinstance(found, str) and _REGEX.fullmatch(found)
    if not fits or len(re.findall(r"[*+?]", found)) > 4 or re.search(r"\)[*+]", found):
        raise ValueError(f"act: no plain regex of sites: {str(found)[:60]!r}")
    try:
        re.compile(found)
    except (re.error, RecursionError):
        raise ValueError(f"act: no regex: {found[:60]!r}") from None
    return found


def tokenizer_to_bytes(text: str) -> bytes:
    """Compress a ``tokenizer.json`` with xz, the vocabulary as lines.

    The first line is the JSON. Where its ``model.vocab`` gives the ids 0, 1, ... in
    order, that field is null and the tokens follow, one a line: without their ids
    they take 30 % less.
    """
    found = json.loads(text)
    model, lines = found.get("model"), []
    vocab = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocab, dict) and not any("\n" in token for token in vocab):
        tokens = sorted(vocab, key=vocab.__getitem__)
        if tokens and [vocab[t] for t in tokens] == list(range(len(tokens))):
            lines, found = tokens, {**found, "model": {**model, "vocab": None}}
    first = json.dumps(found, separators=(",", ":"), ensure_ascii=False)
    plain = "\n".join([first, *lines]).encode()
    if len(plain) > MAX_TOKENIZER:
        raise ConfigError(
            "tokenizer",
            f"{len(plain)} bytes of tokenizer, over {MAX_TOKENIZER}",
            fix="save without a tokenizer",
        )
    return lzma.compress(plain, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=_filters())


def _filters() -> list[dict]:
    """LZMA2 for text (pb=0), and a dictionary that bounds the reader's memory."""
    preset = 9 | lzma.PRESET_EXTREME
    lzma2 = {"id": lzma.FILTER_LZMA2, "preset": preset, "dict_size": _DICTIONARY}
    return [{**lzma2, "lc": 4, "lp": 0, "pb": 0}]


def tokenizer_from_bytes(packed: bytes, vocab_size: int) -> str:
    """Return the text of ``tokenizer.json``; the inverse of ``tokenizer_to_bytes``."""
    reader = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=4 * _DICTIONARY)
    try:
        plain = reader.decompress(packed, MAX_TOKENIZER + 1)
    except (lzma.LZMAError, EOFError):
        raise ValueError("tokenizer: not whole xz data") from None
    if not reader.eof or reader.unused_data:
        raise ValueError("tokenizer: too long, or cut, or followed by more")
    first, *tokens = plain.decode("utf-8").split("\n")
    if sum(first.count(mark) for mark in ",[{") > _MAX_PARTS:
        raise ValueError("tokenizer: more parts than a tokenizer has")
    found = tensorfile.strict_json(first, "tokenizer")
    if tokens:
        model = found.get("model") if isinstance(found, dict) else None
        if not isinstance(model, dict) or model.get("vocab", "") is not None:
            raise ValueError("tokenizer: a vocabulary, but no place for it")
        model["vocab"] = {token: i for i, token in enumerate(tokens)}
        if not len(model["vocab"]) == len(tokens) <= vocab_size:
            raise ValueError("tokenizer: double tokens, or more than the model's")
    return json.dumps(found, separators=(",", ":"), ensure_ascii=False)
