"""What a packed file spends, byte by byte, and will spend, from shapes alone."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from bitflax import model, quantization, trees
from bitflax.errors import ConfigError
from bitflax.packed import bitfields, packing
from bitflax.progress import columns
from bitflax.types import BertConfig


class SizeRow(NamedTuple):
    """A parameter's, the tokenizer's or the header's share of the file.

    ``values`` are positions of the matrix; a split one has ``bits`` of both halves for
    each. A ternary one has 1.6 bits, five in a byte.
    """

    name: str
    bits: int | float
    values: int
    bytes: int


def size_rows(
    found: Mapping[str, tuple[tuple[int, ...], int, int]],
    packed: Mapping[str, dict],
) -> list[SizeRow]:
    """Return a row a parameter of tensors {name: (shape, bytes, bytes an item)}."""
    shares: dict[str, SizeRow] = {}
    for name, (shape, size, item) in sorted(found.items()):
        path, _, part = name.rpartition(".")
        if part == "codes":
            spec, size = packed[path], size + found[f"{path}.scale"][1]
            half = path.endswith(("_1", "_2"))  # as no parameter's own name ends
            label = f"{path[:-2]} (two halves)" if half else path
            other = shares.get(label, SizeRow(label, 0, 0, 0))
            bits, values = spec["bits"] + other.bits, int(np.prod(spec["shape"]))
            shares[label] = SizeRow(label, bits, values, size + other.bytes)
        elif part != "scale" or not path:
            shares[name] = SizeRow(name, 8 * item, int(np.prod(shape)), size)
    return [*shares.values()]


def size_table(rows: list[SizeRow]) -> str:
    """Return the rows of ``size_report`` as a text, with their sum.

    >>> print(size_table([SizeRow("pooler/bias", 16, 384, 768)]))
    name         bits  values  bytes
    pooler/bias    16     384    768
    total                 384    768
    """
    values, total = sum(r.values for r in rows), sum(r.bytes for r in rows)
    cells = [("name", "bits", "values", "bytes")]
    cells += [(r.name, r.bits, f"{r.values:,}", f"{r.bytes:,}") for r in rows]
    return columns([*cells, ("total", "", f"{values:,}", f"{total:,}")], "<>>>")


Shape = tuple[int, ...]


class ExpectedSize(NamedTuple):
    """What the packed file will spend on one parameter."""

    path: str
    shape: Shape
    bits: int | float | None
    size: int


def parameter_bits(
    chosen: quantization.Rules,
    config: BertConfig,
    rest: packing.Rest = "int8",
    split: quantization.Rules = (),
    place: str = "rules",
) -> list[ExpectedSize]:
    """Return what the packed file spends on each parameter after a stage.

    Args:
      chosen: the rules that say which parameter has which bits.
      config: the student's shape.
      rest: how everything else is packed.
      split: the rules by which matrices were split: those have two halves.
      place: what an error calls the rules.

    Raises:
      ConfigError: a rule matches no parameter.
    """
    shapes = model.parameter_shapes(config)
    fix = "correct the rule's regular expression"
    try:
        matched = trees.match(chosen, shapes)
    except ValueError as error:
        raise ConfigError(place, str(error), fix=fix) from error
    try:
        rests = packing.rest_of(rest, shapes)
    except ValueError as error:
        raise ConfigError("Recipe.rest", str(error), fix=fix) from error
    # Halves that no rule quantises are packed as their sum.
    halved = trees.match(split, shapes).keys() & matched.keys()
    lines = []
    for path, shape in shapes.items():
        bits, size = _stored(matched.get(path), shape, rests[path])
        if path in halved:
            bits, size = bits and 2 * bits, 2 * size
        lines.append(ExpectedSize(path, shape, bits, size))
    return lines


def _stored(quantizer: Any, shape: Shape, rest: str) -> tuple[int | float | None, int]:
    """Return bits and bytes of a parameter, as ``bitflax.packed.file`` stores it."""
    values = math.prod(shape)
    if quantizer is None or len(shape) == 1:
        bits = packing.rest_bits(shape, rest)
        # A scale a row or a column: only the values tell which.
        if bits > 8:
            return bits, values * bits // 8
        return bits, shape[0] * bitfields.row_bytes(bits, shape[-1]) + 2 * max(shape)
    bits = quantization.bits_of(quantizer)
    if bits is None:
        return None, 4 * values
    rows, groups = quantization.scales_of(quantizer, shape)
    width = 2 if rows > 1 and rest != "float32" else 4
    bits = bitfields.stored_bits(bits, shape[1])
    return bits, shape[0] * bitfields.row_bytes(bits, shape[1]) + rows * groups * width
