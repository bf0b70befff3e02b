"""The configuration in a packed file, and the parameters that it asks for.

It goes out as JSON and comes back through a closed list of fields and types. What
comes back wrong raises ValueError with what is wrong.
"""

import dataclasses
import json
import re
import types
import typing
from typing import Any

from bitflax.errors import ConfigError
from bitflax.model import names, sites
from bitflax.packed import safetensors_file
from bitflax.types import BertConfig

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def config_to_json(config: BertConfig) -> str:
    """Return all fields of the configuration, by their names in ``BertConfig``.

    Raises:
      ConfigError: a reader would not take it; says why.
    """
    text = json.dumps(dataclasses.asdict(config), separators=(",", ":"))
    try:
        config_from_json(text)
    except ValueError as error:
        raise ConfigError(
            "config", str(error).removeprefix("config: "), fix="mend it before packing"
        ) from None
    return text


def config_from_json(text: str) -> BertConfig:
    """Return the configuration; the inverse of ``config_to_json``.

    >>> config_from_json(config_to_json(BertConfig(num_labels=3))).num_labels
    3
    """
    fields = safetensors_file.strict_json(text, "config")
    hints = typing.get_type_hints(BertConfig)
    if not isinstance(fields, dict) or set(fields) != set(hints):
        raise ValueError("config: its fields are not those of a BertConfig")
    for name, value in fields.items():
        if name != "id2label" and not _is(value, hints[name]):
            raise ValueError(f"config: {name} cannot be {str(value)[:40]}")
        if type(value) is int and _is(0.5, hints[name]):
            fields[name] = float(value)
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
        return type(value) in (int, float) and abs(value) < 1e38
    return type(value) is hint


def _labels(found: Any, count: int) -> dict[int, str]:
    """Return ``{0: name, ...}`` of ``{"0": name, ...}``."""
    numbered = isinstance(found, dict) and len(found) == count
    if not numbered or list(found) != [str(i) for i in range(count)]:
        raise ValueError(f"config: id2label does not number {count} labels from 0")
    if not all(isinstance(name, str) for name in found.values()):
        raise ValueError("config: id2label holds a label that is not a text")
    # A label is printed: it must not end its line or command a terminal.
    if any(_CONTROL.search(name) for name in found.values()):
        raise ValueError("config: id2label holds a label with control characters")
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
        for entry in names.entries(config)
    }
    return shapes | sites.learned_shapes(act, config)
