"""A split student trains, is saved, resumes, packs and predicts like any other."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.inference import predictor
from bitflax.model import pretrained
from bitflax.model.leaves import Packed, Split
from bitflax.packed import file, packing
from bitflax.quantization import splitting
from bitflax.training import checkpoints
from tests.helpers import small
from tests.inference import test_predictor

pytestmark = pytest.mark.slow

CONFIG = small.config(1, id2label=test_predictor.LABELS)
ACT = bf.symmetric()
LOSS = bf.weighted(labels=(1.0, bf.label_cross_entropy))
TERNARY, BINARY = bf.xtc_2bit("channel"), bf.xtc_1bit("channel")
WORD = "embeddings/word/embedding"
RATE = 1e-2
BATCHES = [small.batch(16, seed) for seed in range(2)]


def optimizer():
    return bf.make_optimizer(bf.Optim(lr=RATE, warmup=0.0), 20)


@functools.cache
def step(rules):
    quantize = functools.partial(bf.quantize, rules=rules, lazy=True)
    apply = bf.bert(CONFIG, ACT)
    return jax.jit(
        bf.make_train_step(apply, None, LOSS, optimizer(), quantize=quantize)
    )


def first(params):
    return bf.init_state(params, optimizer(), key=jax.random.key(1))


def trained(state, rules, start=0, stop=20):
    """Return the state after some steps, and each one's loss."""
    values = []
    for number in range(start, stop):
        state, metrics = step(rules)(state, None, BATCHES[number % 2])
        values.append(float(metrics["loss"]))
    return state, values


@pytest.fixture(scope="module")
def stages():
    """A ternary stage, and a 1-bit one on what it splits into."""
    params = small.params(CONFIG)
    params = jax.tree.map(lambda w: 4 * w if w.ndim == 2 else w, params)
    ternary, before = trained(first(params), TERNARY)
    halves = splitting.split(ternary.params, TERNARY)
    binary, after = trained(first(halves), BINARY)
    return ternary.params, before, halves, binary, after


def loss_of(params, rules):
    out = jax.jit(bf.bert(CONFIG))(bf.quantize(params, rules), BATCHES[0])
    return float(bf.label_cross_entropy(out, None, BATCHES[0]).value)


def test_training_goes_on_where_it_was_and_learns(stages):
    ternary, before, halves, binary, after = stages
    assert np.mean(before[-4:]) < 0.9 * np.mean(before[:4])
    assert abs(loss_of(halves, BINARY) - loss_of(ternary, TERNARY)) < 1e-4
    assert np.mean(after[-4:]) < 0.9 * np.mean(before[-4:])
    flat, start = trees.flatten(binary.params), trees.flatten(halves)
    for path, leaf in flat.items():
        assert isinstance(leaf, Split) == (path in trees.match(BINARY, [*flat])), path
        moved = jax.tree.map(lambda x, y: bool(jnp.any(x != y)), leaf, start[path])
        assert all(jax.tree.leaves(moved)), path


def test_the_pad_row_stays_in_both_halves_but_for_weight_decay(stages):
    _, _, halves, binary, _ = stages
    tables = (trees.flatten(tree)[WORD] for tree in (halves, binary.params))
    for before, after in zip(*map(jax.tree.leaves, tables), strict=True):
        ratio = after[0] / before[0]
        assert jnp.max(ratio) <= 1
        assert jnp.min(ratio) >= 1 - 20 * RATE * 0.01


def test_a_checkpoint_resumes_to_the_same_bits(stages, tmp_path):
    _, _, halves, whole, values = stages
    half, _ = trained(first(halves), BINARY, stop=10)
    with checkpoints.Checkpoints(tmp_path) as saved:
        saved.save(10, half, {"at": 10})
        saved.wait()
        found, extra = saved.restore(first(halves))
    assert extra == {"at": 10}
    again, rest = trained(found, BINARY, start=10)
    assert rest == values[10:]
    jax.tree.map(np.testing.assert_array_equal, again.params, whole.params)
    names = checkpoints._flat_state(half)
    assert f"params/{WORD}/a" in names
    assert f"params/{WORD}/b" in names


def test_a_frozen_split_leaf_stays(stages):
    halves = stages[2]
    optim = bf.Optim(lr=1e-2, warmup=0.0, frozen=(r"embeddings/.*",))
    tx = bf.make_optimizer(optim, 4)
    grads = jax.tree.map(jnp.ones_like, halves)
    updates = jax.jit(lambda p, g: tx.update(g, tx.init(p), p)[0])(halves, grads)
    flat = trees.flatten(updates)
    assert not any(jnp.any(x) for x in jax.tree.leaves(flat[WORD]))
    kernel = flat["encoder/layer_0/ffn/in/kernel"]
    assert all(jnp.all(x != 0) for x in jax.tree.leaves(kernel))


def test_saved_loaded_packed_it_predicts_the_same(stages, tmp_path):
    params = stages[3].params
    pretrained.save_pretrained(tmp_path / "p", CONFIG, params, extra=True)
    config, loaded = pretrained.load_pretrained(tmp_path / "p")
    jax.tree.map(np.testing.assert_array_equal, loaded, params)
    packed = packing.pack(loaded, BINARY, rest="float32")
    assert isinstance(trees.flatten(packed)[WORD].a, Packed)
    path, tokenizer = tmp_path / "model.safetensors", test_predictor.tokenizer()
    file.save_packed(path, config, packed, ACT, tokenizer)
    found = predictor.load(path).logits(test_predictor.TEXTS)
    dense = packing.unpack(bf.quantize(params, BINARY))
    expected = predictor.Predictor(config, dense, tokenizer, ACT)
    np.testing.assert_allclose(
        found, expected.logits(test_predictor.TEXTS), rtol=0, atol=1e-5
    )
    assert np.std(found) > 0.01
