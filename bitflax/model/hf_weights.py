"""The weights of a Hugging Face folder: files and shards to arrays to parameters.

What is no error is said by the logger ``bitflax``: names that nobody knows, and parts
of a model that start anew.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from bitflax import files, trees
from bitflax.errors import ConfigError, DamagedFile, InputMissing
from bitflax.model import names, torch_bin
from bitflax.model.leaves import Split
from bitflax.types import BertConfig, Params

_LOG = logging.getLogger(__name__)

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TYPES = {
    "BF16": ml_dtypes.bfloat16,
    "BOOL": np.bool_,
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
}
# A shard lies beside its index: no path out of a file is followed.
_SHARD = re.compile(r"[A-Za-z0-9_][\w.\-]*\.(safetensors|bin)")


def read_state(folder: Path) -> tuple[dict[str, np.ndarray], Path]:
    """Return all tensors of a model's folder, and the file that named them.

    ``model.safetensors`` goes before ``pytorch_model.bin``, and a whole file before
    ``<file>.index.json``, which names the shards.

    Raises:
      InputMissing: there are no weights, or a shard is not there.
      DamagedFile: a file is damaged or hostile.
    """
    for name in WEIGHTS:
        path, index = folder / name, folder / f"{name}.index.json"
        if path.is_file():
            return read_weights(path), path
        if index.is_file():
            return _read_shards(index), index
    known = (".json", ".txt", ".md")
    other = sorted(p.name for p in folder.iterdir() if p.suffix not in known)[:6]
    raise InputMissing(
        folder,
        f"expected {' or '.join(WEIGHTS)}, found "
        + (", ".join(other) if other else "no weights"),
        fix="save the model with transformers as safetensors",
    )


def read_weights(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of one ``.safetensors`` or ``.bin`` file."""
    if path.suffix == ".bin":
        return torch_bin.read(path)
    broken = (safetensors.SafetensorError, KeyError, TypeError, ValueError)
    # Read, not mapped: a mapped file that shrinks meanwhile kills the process.
    with files.reading(path, "not a whole safetensors file", broken=broken) as file:
        return {
            name: np.frombuffer(tensor["data"], _TYPES[tensor["dtype"]]).reshape(
                tensor["shape"]
            )
            for name, tensor in safetensors.deserialize(file.read())
        }


def write_state(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Write a ``.safetensors`` file that transformers reads."""
    whole = {name: np.asarray(array, order="C") for name, array in state.items()}
    path.write_bytes(safetensors.numpy.save(whole, metadata={"format": "pt"}))


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    weight_map: Any = files.read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise DamagedFile(index, "expected a weight_map", fix="fetch the file again")
    state: dict[str, np.ndarray] = {}
    for shard in sorted(set(map(str, weight_map.values()))):
        if not _SHARD.fullmatch(shard):
            raise DamagedFile(
                index,
                f"expected the name of a file beside it, found {shard!r}",
                fix="do not use this file",
            )
        path = index.parent / shard
        if not path.is_file():
            raise InputMissing(path, f"{index.name} names it", fix="fetch the shard")
        state |= read_weights(path)
    lost = sorted(set(weight_map) - set(state))
    if lost:
        raise DamagedFile(
            index, f"no shard holds {', '.join(lost[:5])}", fix="fetch the shards again"
        )
    return state


EXTRA_FILE = "bitflax_extra.safetensors"
"""What our stages hold that Hugging Face's BERT has no place for, beside its weights:

- the halves of a split matrix, [out, in] as the whole would be, by BinaryBERT's names:
  ``bert.encoder.layer.0.attention.self.query_1.weight`` and ``query_2.weight``;
- what activation quantizers learned, by the path of the site:
  ``encoder/layer_0/attention/query/input``;
- ``projection/kernel`` and ``projection/bias``, as they are here.
"""


def read_extra(folder: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a folder's extra file; none where there is none."""
    path = folder / EXTRA_FILE
    return read_weights(path) if path.is_file() else {}


def params_from_hf(
    state: Mapping[str, Any],
    config: BertConfig,
    *,
    seed: int | None = 0,
    place: object = "state",
) -> Params:
    """Return the parameters that a Hugging Face state holds.

    Names may carry ``bert.``, ``module.`` or ``model.`` or none of them, and
    LayerNorm's old ``gamma`` and ``beta``. Buffers and the heads of other tasks are
    left out. A classifier or pooler that is not there starts from a normal
    distribution (deviation 0.02) and a zero bias, and the logger says so. Names of our
    own (``bitflax.model.names``) give split matrices, learned ranges and a projection.

    Args:
      state: ``{name: array}``; a linear weight is [out, in].
      config: the shape that the state should have.
      seed: what a new head is drawn from; None: none may be.
      place: what errors name as the file.

    Raises:
      ConfigError: a head is missing, and there is no ``seed``.
      DamagedFile: a parameter is missing, is there twice, has another shape than the
        configuration says, or holds what is no finite real number.
    """
    found = _collect(state, place)
    table = names.parameter_entries(config)
    _fill_heads(found, table, seed, place)
    owned = {e.path: names.entries_in(e, found) for e in table}
    missing = [e.name for e in table if not owned[e.path]]
    if missing:
        raise DamagedFile(
            place,
            f"{len(missing)} of {len(table)} parameters are missing: {_some(missing)}",
            fix="give the folder of a BERT, whole",
        )
    flat = {}
    for path, parts in owned.items():
        leaves = [_leaf(found.pop(part.name), part, place) for part in parts]
        flat[path] = Split(*leaves) if len(leaves) == 2 else leaves[0]
    for path in sorted(names.extra_paths(config) & set(found)):
        own = names.Entry("", path, np.shape(found[path]))
        flat[path] = _leaf(found.pop(path), own, place)
    if found:
        _LOG.warning("%s: not used, because unknown: %s", place, _some(found))
    return trees.unflatten(flat)


def params_to_hf(
    params: Params, config: BertConfig, *, extra: bool = False
) -> dict[str, np.ndarray]:
    """Return ``{name: array}`` as transformers' BertForSequenceClassification names it.

    Args:
      params: the parameters; a projection, which only training uses, is left out.
      config: their shape.
      extra: keep what that BERT has not, by the names of ``bitflax.model.names``.

    Raises:
      ConfigError: the parameters are not those of the configuration, or not arrays.
    """
    flat, table = trees.flatten(params), names.parameter_entries(config)
    flat = flat if extra else names.without_extras(flat)
    own = names.extra_paths(config) & set(flat) if extra else set()
    wrong = set(flat) ^ {entry.path for entry in table} ^ own
    if wrong:
        raise ConfigError(
            "params",
            f"missing or unknown beside the configuration: {_some(sorted(wrong))}",
            fix="give the parameters of one BERT with its own configuration",
        )
    state = {path: np.asarray(flat[path]) for path in sorted(own)}
    for entry, leaf in (
        pair for e in table for pair in names.named_halves(e, flat[e.path])
    ):
        array = np.asarray(leaf)
        array = array.T if entry.transposed else array
        if array.dtype == object or array.shape != entry.shape:
            found = type(leaf).__name__
            raise ConfigError(
                entry.path,
                f"expected an array {entry.shape} in torch's layout, found {found} "
                f"{array.shape}",
                fix="unpack the parameters, and give the configuration that is theirs",
            )
        if not jnp.issubdtype(array.dtype, jnp.floating):
            problem = f"expected real numbers, found {array.dtype}"
            fix = "give parameters of float32, or of another dtype of real numbers"
            raise ConfigError(entry.path, problem, fix=fix)
        state[entry.name] = np.ascontiguousarray(array)
    return state


def _collect(state: Mapping[str, Any], place: object) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, array in state.items():
        known = names.canonical_name(name)
        if known in found:
            raise DamagedFile(
                place, f"{name} is there twice", fix="save the model again"
            )
        if not names.IGNORED.fullmatch(known):
            found[known] = array
    return found


def _fill_heads(
    found: dict[str, np.ndarray],
    table: Iterable[names.Entry],
    seed: int | None,
    place: object,
) -> None:
    rng = np.random.default_rng(seed)
    shapes = {entry.name: entry.shape for entry in table}
    for here, there, _ in names.HEADS:
        weight, bias = f"{there}.weight", f"{there}.bias"
        if weight in found or bias in found:
            continue
        if seed is None:
            raise ConfigError(
                place,
                f"its {here} is missing or another task's: a random one would answer",
                fix="give a fine-tuned model, or fine-tune this one first: "
                "Teacher(pretrained=..., epochs=3)",
            )
        draw = rng.normal(0.0, 0.02, shapes[weight])
        found[weight] = draw.astype(np.float32)
        found[bias] = np.zeros(shapes[bias], np.float32)
        _LOG.warning("the %s starts anew: the checkpoint has none that fits", here)


def _leaf(array: Any, entry: names.Entry, place: object) -> Any:
    array = np.asarray(array)
    if array.dtype in (np.float16, ml_dtypes.bfloat16):
        array = array.astype(np.float32)
    problem = ""
    if array.shape != entry.shape:
        problem = f"expected shape {entry.shape}, found {array.shape}"
    elif array.dtype not in (np.float32, np.float64):
        problem = f"expected real numbers, found {array.dtype}"
    elif not (np.abs(array) <= np.finfo(np.float32).max).all():
        problem = "expected finite numbers of float32, found infinity or NaN"
    if problem:
        raise DamagedFile(
            f"{place}:{entry.name}",
            problem,
            fix="fetch the model again; config.json must be the one beside it",
        )
    # ``jnp.array`` would compile a program for each shape.
    return jax.device_put(np.array(array.T if entry.transposed else array, order="C"))


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + rest
