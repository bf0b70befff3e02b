"""The native engine's self-test: its logits of small models against NumPy's."""

import itertools
import math
from typing import Any, NamedTuple

import numpy as np

from bitflax import packed, quantization, trees
from bitflax.errors import DamagedFile
from bitflax.inference import native
from bitflax.model import Packed, Split, parameter_shapes
from bitflax.types import BertConfig, Params

CONFIG = BertConfig(
    vocab_size=96,
    hidden_size=72,
    num_hidden_layers=2,
    num_attention_heads=3,
    intermediate_size=200,
    max_position_embeddings=24,
    num_labels=7,
)
ACT = quantization.symmetric(bits=8)
_ROWS, _CLOSE, _FLIPPED = 24, 2e-5, 0.05
_BITS = {"binary": (1,), "ternary": (2,), "split": (1, 1)}


class Tested(NamedTuple):
    """How a target of the engine computed one kind of model."""

    target: str
    kind: str
    close: int
    """How many of ``texts`` have NumPy's logits. In the others, an activation halfway
    between two levels was rounded to the other level."""
    texts: int
    worst: float

    @property
    def passed(self) -> bool:
        """Whether half of the texts are exact, and no other is wrong."""
        return 2 * self.close >= self.texts and self.worst < _FLIPPED


def chosen_target() -> str:
    """Return the target that a model runs on by default.

    Raises:
      InputMissing, StorageError: there is no native engine.
    """
    tree = _model(np.random.default_rng(0), (1,))
    return native.NativeModel(native.to_flat(CONFIG, tree, ACT), threads=1).target


def self_test() -> list[Tested]:
    """Run every target of this processor on a binary, a ternary and a split model.

    Raises:
      InputMissing, StorageError: there is no native engine.
      DamagedFile: its logits are not NumPy's.
    """
    rng = np.random.default_rng(0)
    shape = (_ROWS, CONFIG.max_position_embeddings)
    lengths = rng.integers(1, shape[1] + 1, _ROWS)
    batch = {
        "input_ids": rng.integers(0, CONFIG.vocab_size, shape, np.int32),
        "attention_mask": (np.arange(shape[1]) < lengths[:, None]).astype(np.int32),
        "token_type_ids": rng.integers(0, 2, shape, np.int32),
    }
    made = {kind: _model(rng, bits) for kind, bits in _BITS.items()}
    expected = {kind: _logits(tree, batch) for kind, tree in made.items()}
    found = []
    for target, kind in itertools.product(native.usable_targets(), made):
        flat = native.to_flat(CONFIG, made[kind], ACT)
        apart = np.abs(native.NativeModel(flat, target)(batch) - expected[kind])
        apart = apart.max(axis=1) / np.abs(expected[kind]).max()
        close = int((apart < _CLOSE).sum())
        test = Tested(target, kind, close, _ROWS, float(apart.max()))
        if not test.passed:
            problem = f"its self-test fails: {test}"
            fix = f"delete {native.cache_folder()}, or take the engine jax"
            raise DamagedFile("the native engine", problem, fix=fix)
        found.append(test)
    return found


def _model(rng: np.random.Generator, bits: tuple[int, ...]) -> Params:
    """Return random parameters whose kernels in the layers have so many bits."""

    def leaf(path: str, shape: tuple[int, ...]) -> Any:
        if len(shape) == 1:
            return (rng.normal(size=shape) / 8 + path.endswith("scale")).astype("f4")
        if not path.startswith("encoder/"):
            return (rng.normal(size=shape) / 2).astype(np.float32)
        halves = [_kernel(rng, shape, each) for each in bits]
        return halves[0] if len(halves) == 1 else Split(*halves)

    shapes = parameter_shapes(CONFIG, None)
    return trees.unflatten({path: leaf(path, shapes[path]) for path in sorted(shapes)})


def _kernel(rng: np.random.Generator, shape: tuple[int, ...], bits: int) -> Packed:
    fields = rng.integers(0, bits + 1, shape)
    scale = rng.uniform(0.1, 0.2, (1, shape[1])).astype(np.float32)
    return Packed(packed.fields_to_bytes(fields, bits), scale, bits, shape)


def _logits(params: Params, batch: dict[str, np.ndarray]) -> np.ndarray:
    """Return the logits as ``bitflax.bert(CONFIG, ACT)`` has them, in float64."""
    flat = {
        path: np.asarray(packed.on_host(leaf), np.float64)
        for path, leaf in trees.flatten(params).items()
    }
    erf = np.vectorize(math.erf)
    rows, tokens = batch["input_ids"].shape

    def linear(x: np.ndarray, path: str, rounded: bool = True) -> np.ndarray:
        step = np.abs(x).max(axis=-1, keepdims=True) / 127
        x = np.round(x / step) * step if rounded else x
        return x @ flat[f"{path}/kernel"] + flat[f"{path}/bias"]

    def norm(x: np.ndarray, path: str) -> np.ndarray:
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + CONFIG.layer_norm_eps)
        return x * flat[f"{path}/scale"] + flat[f"{path}/bias"]

    def heads(x: np.ndarray) -> np.ndarray:
        split = x.reshape(rows, tokens, CONFIG.num_attention_heads, -1)
        return split.transpose(0, 2, 1, 3)

    places = {"word": batch["input_ids"], "token_type": batch["token_type_ids"]}
    places["position"] = np.arange(tokens)
    x = sum(flat[f"embeddings/{name}/embedding"][ids] for name, ids in places.items())
    x = norm(np.asarray(x), "embeddings/norm")
    for i in range(CONFIG.num_hidden_layers):
        at = f"encoder/layer_{i}/attention"
        q, k, v = (
            heads(linear(x, f"{at}/{name}")) for name in ("query", "key", "value")
        )
        scores = q @ k.swapaxes(-1, -2) / np.sqrt(CONFIG.head_width)
        scores = np.where(batch["attention_mask"][:, None, None] == 1, scores, -1e30)
        probs = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (probs / probs.sum(axis=-1, keepdims=True)) @ v
        mixed = mixed.transpose(0, 2, 1, 3).reshape(rows, tokens, -1)
        x = norm(x + linear(mixed, f"{at}/out"), f"{at}/norm")
        ffn = at.replace("attention", "ffn")
        inner = linear(x, f"{ffn}/in")
        inner = inner * (1 + erf(inner / np.sqrt(2))) / 2
        x = norm(x + linear(inner, f"{ffn}/out"), f"{ffn}/norm")
    return linear(np.tanh(linear(x[:, 0], "pooler", False)), "classifier", False)
