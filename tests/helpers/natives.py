"""Models of every kind that the native engine runs, and what jax computes of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax.errors import InputMissing
from bitflax.inference.native import building, flat_file, library

# No width is a multiple of a vector's, nor of a table's run.
CONFIG = bf.BertConfig(
    vocab_size=120,
    hidden_size=100,
    num_hidden_layers=2,
    num_attention_heads=5,
    intermediate_size=330,
    max_position_embeddings=40,
    num_labels=5,
)
ACTS = {
    "none": None,
    "8 bits": bf.symmetric(8),
    "8 bits, full": bf.symmetric(8, levels="full"),
    "8 bits, asymmetric": bf.asymmetric(8),
    "8 bits, asymmetric, full": bf.asymmetric(8, levels="full"),
    "4 bits": bf.symmetric(4),
    "2 bits": bf.symmetric(2),
    "elastic": (  # with its values 1-bit too, sums of them are 0, and have no sign
        (r".*/(probs|ffn/out/input)", bf.elastic(1, signed=False)),
        (r".*/input", bf.elastic(1)),
    ),
    "lsq": ((r".*/input", bf.lsq(4)),),
    "clipped": ((r".*/input", bf.clipped(bf.asymmetric(4))),),
    "fixed": ((r".*/input", bf.clipped(bf.asymmetric(4), 1.0, fixed=True)),),
    "sites": (
        (r"pooler/input|.*attention/(query|key|value)/output", bf.symmetric(4)),
        (r".*attention/probs", bf.asymmetric(4)),
        (r".*/input", bf.symmetric(4)),
    ),
}
# The least probability is that of padding where there is any, which jax rounds too.
WHOLE_TEXTS = ("elastic", "sites")
SHORT = dataclasses.replace(CONFIG, num_hidden_layers=1)
TINY = dataclasses.replace(
    SHORT, hidden_size=20, num_attention_heads=4, intermediate_size=40
)
WEIGHTS = ("binary", "by channel", "in groups", "ternary", "split", "int8", "dense")


def engine_or_skip() -> None:
    """Skip where this machine has no compiler."""
    try:
        building.build()
    except InputMissing as error:
        pytest.skip(str(error))


@functools.cache
def dense(config=CONFIG):
    made = bf.init_params(config, jax.random.key(1))

    def larger(x):
        noise = jax.random.normal(jax.random.key(x.size), x.shape)
        return 3 * x if x.ndim == 2 else x + 0.1 * noise

    return jax.tree.map(larger, made)


@functools.cache
def model(weights: str, act: str = "none", config=CONFIG):
    """Parameters of a kind, and quantizers: what ``bitflax.bert`` takes."""
    params, found = dense(config), ACTS[act]
    if found is not None:
        params = bf.init_act(params, found, batch(4, 12), config)
    rules = {
        "ternary": bf.xtc_2bit(),
        "int8": (),
        "in groups": (
            (r"encoder/.*/kernel", functools.partial(bf.binarize, groups=5)),
        ),
        "by channel": bf.xtc_1bit(per="channel"),
    }
    if weights == "split":
        params = bf.split(params, bf.xtc_2bit())
    if weights != "dense":
        params = bf.pack(params, rules.get(weights, bf.xtc_1bit()))
    return params, found


def batch(rows: int, tokens: int, seed: int = 0, ragged: bool = False) -> dict:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, CONFIG.vocab_size, (rows, tokens), np.int32)
    lengths = rng.integers(1, tokens + 1, rows) if ragged else np.full(rows, tokens)
    return {
        "input_ids": ids,
        "attention_mask": (np.arange(tokens) < lengths[:, None]).astype(np.int32),
        "token_type_ids": ids % 2,
    }


def engine(weights="binary", act="8 bits", target=None, threads=1, config=CONFIG):
    params, found = model(weights, act, config)
    flat = flat_file.to_flat(config, params, found)
    return library.NativeModel(flat, target, threads)


@functools.cache
def _jitted(config, act: str):
    apply = bf.bert(config, ACTS[act])
    return jax.jit(lambda params, batch: apply(params, batch).logits)


def by_jax(weights: str, act: str, asked: dict, config=CONFIG) -> np.ndarray:
    params, _ = model(weights, act, config)
    params = jax.tree.map(jnp.asarray, params)
    return np.asarray(_jitted(config, act)(params, asked))


class Watched:
    """A quantizer that notes which texts it rounds near half a level."""

    NEAR = 1e-5  # of a row's largest value: several times what floats err by

    def __init__(self, quantizer, notes: list):
        self.quantizer, self.notes = quantizer, notes

    def __getattr__(self, name):
        return getattr(self.quantizer, name)

    def __call__(self, x, **learned):
        near = self.NEAR * jnp.max(jnp.abs(x), axis=-1, keepdims=True)
        # The ends of a range are levels themselves, and would move all others.
        ends = (x == x.max(-1, keepdims=True)) | (x == x.min(-1, keepdims=True))
        near = jnp.where(ends, 0, near)
        low, high = (self.quantizer(x + d, **learned) for d in (-near, near))
        turns = jnp.abs(high - low) > 8 * near
        self.notes.append(turns.reshape(len(x), -1).any(axis=1))
        return self.quantizer(x, **learned)


def decided(weights: str, act: str, asked: dict, config) -> np.ndarray:
    """Whether no activation of a text lies so near half a level that floats decide."""
    notes = [jnp.zeros(len(asked["input_ids"]), bool)]
    params, found = model(weights, act, config)
    if found is not None:
        watched = (
            tuple((site, Watched(each, notes)) for site, each in found)
            if isinstance(found, tuple)
            else Watched(found, notes)
        )
        bf.bert(config, watched)(jax.tree.map(jnp.asarray, params), asked)
    return ~np.any(np.array(notes), axis=0)


def apart(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """How far each text's logits are apart, as a share of the largest logit."""
    return np.abs(found - expected).max(axis=1) / np.abs(expected).max()
