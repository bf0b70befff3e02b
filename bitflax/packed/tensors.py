"""The tensors of a packed file: leaves to named arrays, and back with suspicion."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from bitflax.errors import ConfigError
from bitflax.model import ACT_PARAMS, FIELDS, Packed, Split
from bitflax.packed import bitfields
from bitflax.packed.safetensors_file import Entry

Shapes = Mapping[str, tuple[int, ...]]
_FLOATS = ("F16", "F32")


def narrow(x: Any) -> np.ndarray:
    """Return floats as float16 where that holds every one exactly, else float32.

    >>> narrow(np.array([0.5])).dtype, narrow(np.array([0.1])).dtype
    (dtype('float16'), dtype('float32'))
    """
    x = np.asarray(x, np.float32)
    with np.errstate(over="ignore"):
        short = x.astype(np.float16)
    return short if np.array_equal(short.astype(np.float32), x) else x


def halves(path: str) -> tuple[str, str]:
    """Return the names of the two halves of a split matrix.

    >>> halves("ffn/in/kernel")
    ('ffn/in/kernel_1', 'ffn/in/kernel_2')
    """
    return f"{path}_1", f"{path}_2"


def _parts(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return ``{name: leaf}`` where the halves of a split matrix stand by name."""
    found = {}
    for path, leaf in flat.items():
        if isinstance(leaf, Split):
            found |= zip(halves(path), (leaf.a, leaf.b), strict=True)
        else:
            found[path] = leaf
    return found


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
        elif isinstance(flat[path], Packed | Split) and len(shapes[path]) != 2:
            problem = "a packed vector"
        elif isinstance(flat[path], Split) and not _are_packed(flat[path]):
            problem = "its halves are not two packed matrices of its shape"
        else:
            continue
        raise ConfigError(
            place, problem, fix="save the tree that pack() gave, with its own config"
        )


def _are_packed(split: Split) -> bool:
    both = (split.a, split.b)
    return all(isinstance(x, Packed) and x.shape == split.shape for x in both)


def to_specs(flat: Mapping[str, Any]) -> dict[str, dict]:
    """Return bits, shape and groups of every packed leaf, as the metadata has them."""
    return {
        path: {
            "bits": bitfields.stored_bits(
                leaf.bits, leaf.shape[1], np.asarray(leaf.codes, np.uint8)
            ),
            "shape": list(leaf.shape),
            "groups": list(leaf.scale.shape),
        }
        for path, leaf in sorted(_parts(flat).items())
        if isinstance(leaf, Packed)
    }


def to_tensors(flat: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return the file's tensors of a tree: ``P``, or ``P.codes`` and ``P.scale``."""
    tensors = {}
    for path, leaf in _parts(flat).items():
        if isinstance(leaf, Packed):
            codes = np.asarray(leaf.codes, np.uint8)
            stored = bitfields.stored(codes, leaf.bits, leaf.shape[1])
            tensors[f"{path}.codes"] = stored
            tensors[f"{path}.scale"] = narrow(leaf.scale)
        else:
            tensors[path] = narrow(leaf)
    return tensors


def lowest_version(flat: Mapping[str, Any], specs: Mapping[str, dict]) -> str:
    """Return the lowest version that knows all leaves of a tree, and their specs."""
    if any(spec["bits"] in bitfields.SHORT for spec in specs.values()):
        return "3"
    split = any(isinstance(leaf, Split) for leaf in flat.values())
    return "2" if split or any(re.fullmatch(ACT_PARAMS, path) for path in flat) else "1"


def check_specs(found: Any, shapes: Shapes, version: str = "1") -> dict[str, dict]:
    """Read the metadata's table of packed parameters.

    Args:
      found: the JSON.
      shapes: ``{path: shape}`` of the configuration.
      version: of the file; from 2 on a matrix may have two halves, by their names,
        from 3 on a field 1.6 or 4 bits.
    """
    known = [str(n) for n in FIELDS if version == "3" or n not in bitfields.SHORT]
    if not isinstance(found, dict):
        raise ValueError("packed: not a JSON object")
    for name, spec in found.items():
        path = _owner(name, found) if version > "1" and name not in shapes else name
        if path not in shapes or len(shapes[path]) != 2:
            raise ValueError(f"packed: {name[:80]!r} is no matrix of this model")
        if not isinstance(spec, dict) or set(spec) != {"bits", "shape", "groups"}:
            raise ValueError(f"packed: {path}: expected bits, shape and groups")
        rows, cols = shapes[path]
        bits, groups = spec["bits"], spec["groups"]
        if repr(bits) not in known:
            raise ValueError(f"packed: {path}: bits are one of {', '.join(known)}")
        if spec["shape"] != [rows, cols]:
            raise ValueError(f"packed: {path}: the configuration asks for {rows, cols}")
        if not _are_groups(groups, rows, cols):
            raise ValueError(f"packed: {path}: groups do not divide {rows, cols}")
    return found


def _owner(name: str, found: Mapping[str, Any]) -> str:
    """Return the path whose halves ``name`` and its twin are; both must be there."""
    path = name[:-2] if name.endswith(("_1", "_2")) else name
    twins = halves(path)
    if name in twins and (path in found or not all(twin in found for twin in twins)):
        raise ValueError(f"packed: {path[:80]!r}: expected two halves, and no whole")
    return path


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
        names = [name for name in (path, *halves(path)) if name in packed]
        if not names:
            expected[path] = _FLOATS, shape
        for name in names:
            spec, (rows, cols) = packed[name], shape
            size = bitfields.row_bytes(spec["bits"], cols)
            expected[f"{name}.codes"] = ("U8",), (rows, size)
            expected[f"{name}.scale"] = _FLOATS, tuple(spec["groups"])
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


def to_leaves(
    tensors: dict[str, np.ndarray],
    shapes: Shapes,
    packed: Mapping[str, dict],
    asarray: Callable[..., Any] = jnp.asarray,
) -> dict[str, Any]:
    """Return the leaves of checked tensors, in the model's order, float32.

    Each tensor is taken out of ``tensors``: where its memory cannot be taken over, it
    is given free before the next one's is needed.

    Args:
      tensors: by name; emptied.
      shapes: of the parameters.
      packed: what the metadata say of those that are packed.
      asarray: makes an array of what was read.

    Raises:
      ValueError: a value is not finite, a scale negative, a code impossible.
    """
    flat: dict[str, Any] = {}
    for path, shape in shapes.items():
        names = [name for name in (path, *halves(path)) if name in packed]
        try:
            found = [
                _packed(tensors, name, packed[name]["bits"], shape, asarray)
                for name in names
            ]
            if not found:
                found = [_floats(tensors.pop(path), asarray)]
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None
        flat[path] = found[0] if len(found) == 1 else Split(*found)
    return flat


def _packed(
    tensors: dict[str, np.ndarray],
    name: str,
    bits: int | float,
    shape: tuple[int, ...],
    asarray: Callable[..., Any],
) -> Packed:
    codes, scale = tensors.pop(f"{name}.codes"), tensors.pop(f"{name}.scale")
    codes, whole = bitfields.loaded(codes, bits, shape[1])
    # As unsigned integers, floats with a sign lie above all others.
    if scale.view(np.uint32).max() >= 1 << 31:
        raise ValueError("a scale is negative")
    return Packed(asarray(codes, np.uint8), _floats(scale, asarray), whole, shape)


def _floats(x: np.ndarray, asarray: Callable[..., Any]) -> Any:
    # NaN is its own minimum; unlike np.isfinite(x), this takes no memory.
    if not (np.isfinite(x.min()) and np.isfinite(x.max())):
        raise ValueError("holds NaN or infinity")
    return asarray(x, np.float32)
