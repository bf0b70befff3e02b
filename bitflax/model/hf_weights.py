"""The weights of a Hugging Face folder as ``{name: array}``: whole or in shards."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (numpy learns bfloat16 from it)
import numpy as np
import safetensors
import safetensors.numpy

from bitflax.errors import DamagedFile, InputMissing, StorageError
from bitflax.model import hf_config, torch_bin

WEIGHTS = ("model.safetensors", "pytorch_model.bin")


_OTHERS = ("tf_model.h5", "flax_model.msgpack", "model.ckpt.index")


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
            return read_file(path), path
        if index.is_file():
            return _read_shards(index), index
    other = [name for name in _OTHERS if (folder / name).exists()]
    raise InputMissing(
        folder,
        f"expected {' or '.join(WEIGHTS)}, found "
        + (", ".join(other) if other else "no weights"),
        fix="save the model with transformers as safetensors",
    )


def read_file(path: Path) -> dict[str, np.ndarray]:
    """Return the tensors of one ``.safetensors`` or ``.bin`` file."""
    if path.suffix == ".bin":
        return torch_bin.read(path)
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise StorageError(
            path, f"cannot read it ({error})", fix="check rights and disk"
        ) from None
    except (safetensors.SafetensorError, TypeError, ValueError) as error:
        raise DamagedFile(
            path, f"not a whole safetensors file ({error})", fix="fetch the file again"
        ) from None


def write_state(path: Path, state: Mapping[str, np.ndarray]) -> None:
    """Write a ``.safetensors`` file that transformers reads."""
    whole = {name: np.asarray(array, order="C") for name, array in state.items()}
    path.write_bytes(safetensors.numpy.save(whole, metadata={"format": "pt"}))


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    weight_map: Any = hf_config.read_json(index).get("weight_map")
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
        state |= read_file(path)
    lost = sorted(set(weight_map) - set(state))
    if lost:
        raise DamagedFile(
            index, f"no shard holds {', '.join(lost[:5])}", fix="fetch the shards again"
        )
    return state
