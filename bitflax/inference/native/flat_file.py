"""A student as the flat file that the native engine maps and runs.

``bitflax/FORMAT.md`` has its table. A header, a description of 32-bit words in a fixed
order, and what its offsets point at; ``flat_file.cpp`` reads it in the same order.
"""

import hashlib
import json
import struct
from typing import Any

import numpy as np

from bitflax import model, quantization, trees
from bitflax.errors import ConfigError
from bitflax.model import Packed, Split
from bitflax.types import BertConfig, Params

VERSION = 1
_MAGIC = b"bitflax\0"
_HEADER, _DIGEST, _ALIGN = 64, slice(32, 64), 64
_NONE, _ROW, _TEXT, _FIXED = range(4)
_MATRICES = ("query", "key", "value")


def to_flat(
    config: BertConfig, params: Params, act: Any = None, metadata: Any = None
) -> np.ndarray:
    """Return the flat file of a model, uint8 [bytes]; its digest is not set yet.

    Args:
      config: the model's shape.
      params: dense parameters, or a packed tree.
      act: activation quantizers, as ``bitflax.bert`` takes them.
      metadata: what JSON can hold, for those who read the file without bitflax.

    Raises:
      ConfigError: the native engine does not compute this model; says why.
    """
    writer = _Writer(trees.flatten(params), model.at_sites(act, config))
    writer.shape(config, json.dumps(metadata or {}).encode())
    for name in ("word", "position", "token_type"):
        writer.matrix(f"embeddings/{name}/embedding")
    writer.norm("embeddings/norm")
    for i in range(config.num_hidden_layers):
        writer.layer(f"encoder/layer_{i}")
    writer.rounding("pooler/input", by_text=False)
    writer.linear("pooler")
    writer.linear("classifier")
    return writer.file()


class _Writer:
    """A description that grows, and the data that it points at."""

    def __init__(self, flat: dict[str, Any], act: dict[str, Any]):
        self.flat, self.act = flat, act
        self.words: list[bytes] = []
        # Where its offset goes, and what it is.
        self.data: list[tuple[int, np.ndarray]] = []

    def integers(self, *values: int) -> None:
        self.words += [struct.pack("<i", value) for value in values]

    def reals(self, *values: float | int) -> None:
        self.words += [struct.pack("<f", value) for value in values]

    def array(self, values: Any) -> None:
        """Point at an array."""
        self.data.append((len(self.words), np.ascontiguousarray(values)))
        self.words += [b"", b""]

    def shape(self, config: BertConfig, metadata: bytes) -> None:
        self.integers(
            config.vocab_size,
            config.hidden_size,
            config.num_hidden_layers,
            config.num_attention_heads,
            config.head_width,
            config.intermediate_size,
            config.max_position_embeddings,
            config.type_vocab_size,
            config.num_labels,
            config.hidden_act == "relu",
        )
        self.reals(config.layer_norm_eps)
        self.integers(len(metadata))
        self.array(np.frombuffer(metadata, np.uint8))

    def vector(self, path: str) -> None:
        self.array(np.asarray(self.flat[path], np.float32))

    def norm(self, path: str) -> None:
        self.vector(f"{path}/scale")
        self.vector(f"{path}/bias")

    def linear(self, path: str) -> None:
        self.matrix(f"{path}/kernel")
        self.vector(f"{path}/bias")

    def matrix(self, path: str) -> None:
        leaf = self.flat[path]
        parts = (leaf.a, leaf.b) if isinstance(leaf, Split) else (leaf,)
        self.integers(len(parts))
        for part in parts:
            self.leaf(part)

    def leaf(self, leaf: Any) -> None:
        if isinstance(leaf, Packed):
            scale = np.asarray(leaf.scale, np.float32)
            self.integers(leaf.bits, *leaf.shape, *scale.shape)
            self.array(leaf.codes)
            self.array(scale)
        else:
            values = np.asarray(leaf, np.float32)
            self.integers(32, *values.shape, 0, 0)
            self.array(values)
            self.array(np.zeros(0, np.float32))

    def layer(self, path: str) -> None:
        for name in _MATRICES:
            self.rounding(f"{path}/attention/{name}/input")
        for name in _MATRICES:
            self.rounding(f"{path}/attention/{name}/output")
        self.rounding(f"{path}/attention/probs", by_text=False)
        for name in ("attention/out", "ffn/in", "ffn/out"):
            self.rounding(f"{path}/{name}/input")
        for name in (*_MATRICES, "out"):
            self.linear(f"{path}/attention/{name}")
        self.norm(f"{path}/attention/norm")
        self.linear(f"{path}/ffn/in")
        self.linear(f"{path}/ffn/out")
        self.norm(f"{path}/ffn/norm")

    def rounding(self, site: str, by_text: bool = True) -> None:
        quantizer = self.act.get(site)
        if quantizer is None:
            self.integers(*[0] * 7)
            self.reals(0, 0, 0, 0)
            return
        grid, shared = _grid(site, quantizer)
        if shared == _TEXT and not by_text:
            raise _cannot(site, quantizer, "all of an activation shares its range")
        learned = self.flat.get(site)
        ends = [0.0] if learned is None else np.ravel(np.asarray(learned)).tolist()
        step = max(ends[0], quantization.LEAST_STEP)
        ends = ends if len(ends) == 2 else [0.0, 0.0]
        self.integers(shared, grid.low, grid.top, grid.steps)
        self.integers(
            grid.centred, grid.whole, bool(grid.steps) and learned is not None
        )
        self.reals(grid.spare, *ends, 0 if grid.steps else step)

    def file(self) -> np.ndarray:
        """Return the whole file, in memory that begins at a multiple of 64."""
        end = _HEADER + 4 * len(self.words)
        places = []
        for word, values in self.data:
            end += -end % _ALIGN
            places.append(end)
            offset = struct.pack("<Q", end)
            self.words[word : word + 2] = [offset[:4], offset[4:]]
            end += values.nbytes
        words = b"".join(self.words)
        whole = np.zeros(end + _ALIGN, np.uint8)
        start = -whole.ctypes.data % _ALIGN
        out = whole[start : start + end]
        head = struct.pack("<8sIIQQ", _MAGIC, VERSION, len(self.words), end, 0)
        _put(out, 0, head)
        _put(out, _HEADER, words)
        for place, (_, values) in zip(places, self.data, strict=True):
            _put(out, place, values.reshape(-1).view(np.uint8))
        return out


def _put(out: np.ndarray, place: int, values: Any) -> None:
    found = np.frombuffer(values, np.uint8)
    out[place : place + len(found)] = found


def seal(flat: np.ndarray) -> None:
    """Set a flat file's SHA-256: that of the file whose digest is zeros."""
    flat[_DIGEST] = 0
    flat[_DIGEST] = np.frombuffer(hashlib.sha256(flat.data).digest(), np.uint8)


def _grid(site: str, quantizer: Any) -> tuple[Any, int]:
    """Return a quantizer's levels, and who shares its range."""
    grid = getattr(quantizer, "grid", None)
    if grid is None:
        raise _cannot(site, quantizer, "it is none of bitflax's own")
    axis, groups = quantization.shared_by(quantizer)
    if groups or axis not in (None, (), -1, (-1,)):
        raise _cannot(
            site, quantizer, "its ranges are neither a token's nor a tensor's"
        )
    if axis == ():
        return grid, _FIXED
    return grid, _TEXT if axis is None else _ROW


def _cannot(site: str, quantizer: Any, why: str) -> ConfigError:
    return ConfigError(
        site,
        f"the native engine does not round by {quantizer!r:.80}: {why}",
        fix="take the engine jax",
    )
