"""The configuration and the activation quantizers in a packed file.

They go out as JSON and come back through a closed list of fields and types. What
comes back wrong raises ValueError with what is wrong.
"""

import dataclasses
import json
import re
import types
import typing
from collections.abc import Mapping
from typing import Any

from bitflax import model, quantization, trees
from bitflax.errors import CONTROL, ConfigError
from bitflax.packed import safetensors_file
from bitflax.types import BertConfig


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
    if any(CONTROL.search(name) for name in found.values()):
        raise ValueError("config: id2label holds a label with control characters")
    return {i: name for i, name in enumerate(found.values())}


_MAX_RULES = 500
_MAX_WORK = 10_000_000
"""Ways in which all regexes may be tried on all sites: under a second in all."""
_A_MATCH = 20
"""The cost of one attempt, in ways."""
_REGEX = re.compile(r"[\w/.*+?|()\[\]\\-]{1,200}")
_LONGEST = 50
"""More characters than a site's name has."""


def act_to_json(act: Any, config: BertConfig) -> str:
    """Return activation quantizers as JSON: null, one, or pairs [site regex, one].

    Raises:
      ConfigError: a quantizer is none that a file can name, or a reader would not
        take them; says why.

    >>> act_to_json(quantization.symmetric(bits=4), BertConfig())
    '{"quantizer":"symmetric","bits":4,"axis":-1,"levels":"restricted","groups":null}'
    """
    named = quantization.quantizer_to_json
    found: Any = None
    if isinstance(act, (tuple, list)):
        found = [[regex, named(quantizer)] for regex, quantizer in act]
    elif act is not None:
        found = named(act)
    text = json.dumps(found, separators=(",", ":"))
    try:
        act_from_json(text, config)
    except ValueError as error:
        raise ConfigError(
            "act",
            str(error).removeprefix("act: "),
            fix="name the sites with a simpler regex, or a quantizer that fits them",
        ) from None
    return text


def act_from_json(text: str, config: BertConfig) -> Any:
    """Return activation quantizers; the inverse of ``act_to_json``."""
    found = safetensors_file.strict_json(text, "act")
    if found is None or isinstance(found, dict):
        act: Any = None if found is None else _quantizer(found)
    else:
        act = _pairs(found)
    _check_work(act, config)
    shapes = model.parameter_shapes(config)
    for site, quantizer in model.at_sites(act, config).items():
        _check_fit(site, quantizer, shapes)
    return act


def _pairs(found: Any) -> tuple[tuple[str, Any], ...]:
    if not isinstance(found, list) or not all(
        isinstance(pair, list) and len(pair) == 2 for pair in found
    ):
        raise ValueError("act: neither a quantizer nor pairs of site and quantizer")
    if len(found) > _MAX_RULES:
        raise ValueError(f"act: more than {_MAX_RULES} rules")
    return tuple((_site_regex(regex), _quantizer(named)) for regex, named in found)


def _quantizer(found: Any) -> Any:
    try:
        return quantization.quantizer_from_json(found)
    except (ValueError, TypeError) as error:
        raise ValueError(f"act: {error}") from None


def _site_regex(found: Any) -> str:
    """Refuse a regex that repeats a group: it can be tried in endless ways."""
    fits = isinstance(found, str) and _REGEX.fullmatch(found)
    if not fits or re.search(r"\)[*+]", found):
        raise ValueError(f"act: no plain regex of sites: {str(found)[:60]!r}")
    try:
        trees.compiled(found)
    except ValueError as error:
        raise ValueError(f"act: {error}") from None
    return found


def _work(regex: str) -> int:
    """Bound the ways in which a regex without repeated groups is tried on a site.

    Each bar or question mark doubles them, each repeat multiplies them by the lengths
    that it may take: up to five digits, or a whole name.

    >>> _work(r"a/(b|c)/.*"), _work(r"layer_\\d+")
    (100, 5)
    """
    digits = len(re.findall(r"\\d[*+]", regex))
    repeats = len(re.findall(r"[*+]", regex)) - digits
    choices = regex.count("|") + regex.count("?")
    return 2**choices * 5**digits * _LONGEST**repeats


def _check_work(act: Any, config: BertConfig) -> None:
    regexes = [regex for regex, _ in act] if isinstance(act, tuple) else ()
    work = sum(_A_MATCH + _work(regex) for regex in regexes)
    if work * len(model.site_names(config)) > _MAX_WORK:
        raise ValueError("act: its regexes of sites are too many or too intricate")


def _check_fit(
    site: str, quantizer: Any, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Refuse axes that an activation does not have, groups that do not divide it."""
    axis, groups = quantization.shared_by(quantizer)
    rank = 2 if site == "pooler/input" else 4 if site.endswith("/probs") else 3
    if groups is not None:
        place, _, side = site.rpartition("/")
        kernel = shapes.get(f"{place}/kernel")  # probs have none: as long as the text
        if kernel is None or kernel[side == "output"] % groups:
            raise ValueError(f"act: {groups} groups do not divide {site}")
        return
    axes = axis if isinstance(axis, tuple) else () if axis is None else (axis,)
    places = {n % rank for n in axes if -rank <= n < rank}
    if len(places) < len(axes):
        raise ValueError(f"act: {site} has not the axes {axis!r:.40}")
