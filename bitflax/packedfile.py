"""The tensors of a packed file: from leaves to named arrays, and back with suspicion.

``bitflax.packing`` documents the format. What is wrong in a file raises ValueError,
which ``bitflax.packing`` turns into a ``DamagedFile`` with the file's name.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import UInt8

from bitflax.errors import ConfigError
from bitflax.leaves import Packed
from bitflax.tensorfile import Entry

Shapes = Mapping[str, tuple[int, ...]]
_FLOATS = ("F16", "F32")


class SizeRow(NamedTuple):
    """A parameter's, the tokenizer's or the header's share of the file."""

    name: str
    bits: int
    values: int
    bytes: int


def narrow(x: Any) -> np.ndarray:
    """Return floats as float16 where that holds every one exactly, else float32.

    >>> narrow(np.array([0.5])).dtype, narrow(np.array([0.1])).dtype
    (dtype('float16'), dtype('float32'))
    """
    x = np.asarray(x, np.float32)
    with np.errstate(over="ignore"):
        short = x.astype(np.float16)
    return short if np.array_equal(short.astype(np.float32), x) else x


def check_tree(flat: Mapping[str, Any], shapes: Shapes) -> None:
    """Refuse to write a tree that is not the configuration's.

    Raises:
      ConfigError: names the first parameter that is missing, unknown, or of another
        shape or kind.
    """
    for path in [*shapes, *flat]:
        place = path
        if path not in flat or path not in shapes:
            problem = "is missing" if path in shapes else "is no parameter of a BERT"
        elif tuple(flat[path].shape) != shapes[path]:
            found = tuple(flat[path].shape)
            problem = f"expected the shape {shapes[path]}, found {found}"
        elif isinstance(flat[path], Packed) and len(shapes[path]) != 2:
            problem = "a packed vector"
        else:
            continue
        raise ConfigError(
            place, problem, fix="save the tree that pack() gave, with its own config"
        )


def specs(flat: Mapping[str, Any]) -> dict[str, dict]:
    """Return bits, shape and groups of every packed leaf, as the metadata has them."""
    return {
        path: {
            "bits": leaf.bits,
            "shape": list(leaf.shape),
            "groups": list(leaf.scale.shape),
        }
        for path, leaf in sorted(flat.items())
        if isinstance(leaf, Packed)
    }


def to_tensors(flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the file's tensors of a tree: ``P``, or ``P.codes`` and ``P.scale``."""
    tensors = {}
    for path, leaf in flat.items():
        if isinstance(leaf, Packed):
            tensors[f"{path}.codes"] = np.asarray(leaf.codes, np.uint8)
            tensors[f"{path}.scale"] = narrow(leaf.scale)
        else:
            tensors[path] = narrow(leaf)
    return tensors


def check_specs(found: Any, shapes: Shapes) -> dict[str, dict]:
    """Read the metadata's table of packed parameters."""
    if not isinstance(found, dict):
        raise ValueError("packed: not a JSON object")
    for path, spec in found.items():
        if path not in shapes or len(shapes[path]) != 2:
            raise ValueError(f"packed: {path[:80]!r} is no matrix of this model")
        if not isinstance(spec, dict) or set(spec) != {"bits", "shape", "groups"}:
            raise ValueError(f"packed: {path}: expected bits, shape and groups")
        rows, cols = shapes[path]
        bits, groups = spec["bits"], spec["groups"]
        if type(bits) is not int or bits not in (1, 2, 8):
            raise ValueError(f"packed: {path}: bits are 1, 2 or 8")
        if spec["shape"] != [rows, cols]:
            raise ValueError(f"packed: {path}: the configuration asks for {rows, cols}")
        if not _are_groups(groups, rows, cols):
            raise ValueError(f"packed: {path}: groups do not divide {rows, cols}")
    return found


def _are_groups(found: Any, rows: int, cols: int) -> bool:
    if not isinstance(found, list) or len(found) != 2:
        return False
    if not all(type(n) is int and n > 0 for n in found):
        return False
    return found[0] in (1, rows) and cols % found[1] == 0


def check_entries(
    entries: Mapping[str, Entry], shapes: Shapes, packed: Mapping[str, dict]
) -> None:
    """Refuse a header whose tensors are not exactly those of the configuration."""
    expected: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {}
    for path, shape in shapes.items():
        if path not in packed:
            expected[path] = _FLOATS, shape
            continue
        (rows, cols), spec = shape, packed[path]
        expected[f"{path}.codes"] = ("U8",), (rows, math.ceil(cols * spec["bits"] / 8))
        expected[f"{path}.scale"] = _FLOATS, tuple(spec["groups"])
    names = set(entries) - {"tokenizer"}
    if names != set(expected):
        odd = sorted(names ^ set(expected))[0]
        what = "unknown" if odd in entries else "missing"
        raise ValueError(f"the tensor {odd[:80]!r} is {what}")
    for name, (dtypes, shape) in expected.items():
        entry = entries[name]
        if entry.dtype not in dtypes or entry.shape != shape:
            raise ValueError(
                f"{name}: expected {' or '.join(dtypes)} {shape}, "
                f"found {entry.dtype} {entry.shape}"
            )
    tokenizer = entries.get("tokenizer")
    if tokenizer and (tokenizer.dtype != "U8" or len(tokenizer.shape) != 1):
        raise ValueError("tokenizer: expected a row of bytes")


def check_codes(codes: UInt8[np.ndarray, "rows bytes"], bits: int, cols: int) -> None:
    """Refuse bytes that no packing writes.

    Raises:
      ValueError: a padding bit is set, or a 2-bit field holds 3.
    """
    used = cols * bits - 8 * (codes.shape[1] - 1)
    if used < 8 and (codes[:, -1] >> used).any():
        raise ValueError("padding bits are not zero")
    if bits == 2 and (codes & (codes >> 1) & 0x55).any():
        raise ValueError("a 2-bit field holds 3")


def to_leaves(
    tensors: Mapping[str, np.ndarray], shapes: Shapes, packed: Mapping[str, dict]
) -> dict[str, Any]:
    """Return the leaves of checked tensors, in the model's order, float32.

    Raises:
      ValueError: a value is not finite, a scale negative, a code impossible.
    """
    flat: dict[str, Any] = {}
    for path, shape in shapes.items():
        try:
            if path in packed:
                parts = tensors[f"{path}.codes"], tensors[f"{path}.scale"]
                flat[path] = _packed(*parts, packed[path]["bits"], shape)
            else:
                flat[path] = _floats(tensors[path])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
    return flat


def _packed(codes: np.ndarray, scale: np.ndarray, bits: int, shape: Any) -> Packed:
    check_codes(codes, bits, shape[1])
    if np.signbit(scale).any():
        raise ValueError("a scale is negative")
    return Packed(jnp.asarray(codes), _floats(scale), bits, tuple(shape))


def _floats(x: np.ndarray) -> Any:
    if not np.isfinite(x).all():
        raise ValueError("holds NaN or infinity")
    return jnp.asarray(x, jnp.float32)


def rows(
    found: Mapping[str, tuple[tuple[int, ...], int, int]],
    packed: Mapping[str, dict],
) -> list[SizeRow]:
    """Return a row a parameter of tensors {name: (shape, bytes, bytes an item)}."""
    shares = []
    for name, (shape, size, item) in sorted(found.items()):
        path, _, part = name.rpartition(".")
        if part == "codes":
            spec = packed[path]
            values = int(np.prod(spec["shape"]))
            size += found[f"{path}.scale"][1]
            shares.append(SizeRow(path, spec["bits"], values, size))
        elif part != "scale" or not path:
            shares.append(SizeRow(name, 8 * item, int(np.prod(shape)), size))
    return shares


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
    cells.append(("total", "", f"{values:,}", f"{total:,}"))
    widths = [max(len(str(row[i])) for row in cells) for i in range(4)]
    lines = []
    for name, *numbers in cells:
        right = (f"{n!s:>{w}}" for n, w in zip(numbers, widths[1:], strict=True))
        lines.append("  ".join([f"{name:<{widths[0]}}", *right]))
    return "\n".join(lines)
