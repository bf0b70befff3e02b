"""A small teacher, student and batches, for the tests that train."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import bitflax as bf
from bitflax import trees

LAYERS = (1, 3)


def config(layers: int, **changes) -> bf.BertConfig:
    shape = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
        "num_labels": 3,
    }
    return bf.BertConfig(**(shape | changes))


def params(config: bf.BertConfig, seed: int = 0):
    """Draw what ``bf.init_params`` draws, which takes a second to compile."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda: bf.init_params(config, jax.random.key(0)))

    def drawn(path, leaf):
        if leaf.ndim == 2:
            return jnp.asarray(rng.normal(0, 0.02, leaf.shape), leaf.dtype)
        return jnp.full(leaf.shape, float(path.endswith("norm/scale")), leaf.dtype)

    return trees.map_paths(drawn, shapes)


@functools.cache
def teacher_params():
    params = bf.init_params(config(4), jax.random.key(0))
    # Larger weights than a fresh model's, so that layers and attention differ.
    return jax.tree.map(lambda w: 4 * w if w.ndim == 2 else w, params)


def batch(rows: int, seed: int, filler: int = 0, length: int = 8) -> dict:
    """Rows of uneven lengths; the last ``filler`` rows have weight 0."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, length + 1, rows)
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids = (rng.integers(1, 50, (rows, length)) * mask).astype(np.int32)
    weight = np.ones(rows, np.float32)
    if filler:
        weight[-filler:] = 0
        # What filler rows hold must not matter.
        ids[-filler:] = rng.integers(1, 50, (filler, length))
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": rng.integers(0, 2, (rows, length)).astype(np.int32) * mask,
        "labels": rng.integers(0, 3, rows).astype(np.int32),
        "weight": weight,
    }


def one_stage(layers=LAYERS):
    """XTC's single-stage loss."""
    hidden = functools.partial(bf.hidden_mse, pairs=bf.layer_pairs(layers, hidden=True))
    scores = functools.partial(bf.score_mse, pairs=bf.layer_pairs(layers))
    return bf.weighted(
        logits=(1.0, bf.soft_cross_entropy), hidden=(1.0, hidden), scores=(1.0, scores)
    )


def kd_step(
    rules=(), act=None, accumulate=1, optim=None, steps=20, depth=4, layers=LAYERS
):
    """A step, and its first state, of a student with some of the teacher's layers."""
    quantize = functools.partial(bf.quantize, rules=rules) if rules else None
    optimizer = bf.make_optimizer(optim or bf.Optim(lr=1e-2), steps)
    step = bf.make_train_step(
        bf.bert(config(len(layers)), act),
        bf.bert(config(depth)),
        one_stage(layers),
        optimizer,
        quantize=quantize,
        accumulate=accumulate,
    )
    student = bf.take_layers(teacher_params(), layers)
    return step, bf.init_state(student, optimizer, key=jax.random.key(1))


def largest_difference(a, b) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(jnp.max(jnp.abs(x - np.asarray(y)))) for x, y in pairs)
