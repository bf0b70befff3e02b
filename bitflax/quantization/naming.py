"""Activation quantizers as JSON: a kind and exactly its fields, as files hold them."""

import dataclasses
from typing import Any

from bitflax.errors import ConfigError
from bitflax.quantization.learned_activations import clipped, elastic, lsq
from bitflax.quantization.quantizers import asymmetric, symmetric

_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (symmetric, asymmetric, clipped, lsq, elastic)
}


def quantizer_to_json(quantizer: Any) -> dict[str, Any]:
    """Return what names an activation quantizer in a file.

    Raises:
      ConfigError: it is none that a file can name.

    >>> quantizer_to_json(lsq(4))
    {'quantizer': 'lsq', 'bits': 4, 'signed': True}
    """
    name = type(quantizer).__name__
    if _KINDS.get(name) is not type(quantizer):
        raise ConfigError(
            "act",
            f"a packed file cannot name the activation quantizer {quantizer!r:.80}",
            fix=f"use one of {', '.join(_KINDS)}, or save with act=None and hand "
            "the quantizer to bitflax.bert yourself",
        )
    if isinstance(quantizer, clipped):
        inner = quantizer_to_json(quantizer.quantizer)
        fixed = {"fixed": True} if quantizer.fixed else {}
        return {"quantizer": name, "inner": inner, "at": quantizer.at, **fixed}
    return {"quantizer": name, **dataclasses.asdict(quantizer)}


def quantizer_from_json(found: Any) -> Any:
    """Return the quantizer that ``quantizer_to_json`` named.

    Raises:
      ValueError: it is none; says why.
    """
    name = found.get("quantizer") if isinstance(found, dict) else None
    if not isinstance(name, str) or name not in _KINDS:
        raise ValueError(f"a quantizer is none of {', '.join(_KINDS)}")
    kind, fields = _KINDS[name], {**found}
    del fields["quantizer"]
    if kind is clipped:
        fields["quantizer"] = _inner(fields.pop("inner", None))
        fields.setdefault("fixed", False)
    if set(fields) != {field.name for field in dataclasses.fields(kind)}:
        raise ValueError(f"the fields are not those of {name}")
    if isinstance(fields.get("axis"), list):
        fields["axis"] = tuple(fields["axis"])
    for field, fits in _FIELDS.items():
        if field in fields and not fits(fields[field]):
            raise ValueError(f"{field} of {name} cannot be {fields[field]!r:.40}")
    return kind(**fields)


def _inner(found: Any) -> Any:
    """Return what ``clipped`` rounds by: one of the two that learn nothing."""
    name = found.get("quantizer") if isinstance(found, dict) else None
    if name not in ("symmetric", "asymmetric"):  # before it is read: none nests
        raise ValueError("clipped rounds by symmetric or asymmetric")
    return quantizer_from_json(found)


def _is_axis(found: Any) -> bool:
    if isinstance(found, tuple):
        return len(found) <= 4 and all(type(n) is int for n in found)
    return found is None or type(found) is int


_FIELDS = {
    "bits": lambda found: type(found) is int,
    "axis": _is_axis,
    "levels": lambda found: type(found) is str,
    "groups": lambda found: found is None or (type(found) is int and found > 0),
    "signed": lambda found: type(found) is bool,
    "fixed": lambda found: type(found) is bool,
    "at": lambda found: type(found) in (int, float) and abs(found) < 1e38,
}
