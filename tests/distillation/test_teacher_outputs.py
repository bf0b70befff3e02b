"""Kept teacher's outputs: the same losses and gradients as a teacher that runs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bitflax as bf
from bitflax.data.batches import Batches
from bitflax.data.text import Tokens
from bitflax.distillation import teacher_outputs
from bitflax.training import parallel
from tests.helpers import small

LENGTHS = (3, 8, 5, 2, 6, 3, 4, 7, 4, 2, 3, 8, 6)
BUCKETS = (4, 6, 8)
# A teacher of two layers, of which the student took the second.
LAYERS = (1,)
USED = {"logits", "hidden_0", "hidden_2", "scores_1"}


@functools.cache
def teacher_params():
    return bf.take_layers(small.teacher_params(), (0, 1))


def some_batches(seed=0):
    rng = np.random.default_rng(7)
    offsets = np.cumsum([0, *LENGTHS])
    ids = rng.integers(1, 50, offsets[-1]).astype(np.int32)
    types = rng.integers(0, 2, offsets[-1]).astype(np.uint8)
    tokens = Tokens(ids, types, offsets)
    labels = rng.integers(0, 3, len(LENGTHS)).astype(np.int32)
    return Batches(tokens, labels, batch_size=4, seed=seed, buckets=BUCKETS)


def shapes(layers=2):
    apply, batch = bf.bert(small.config(layers)), some_batches().batch(0)
    params = bf.take_layers(teacher_params(), range(layers))
    return jax.eval_shape(apply, params, batch)


@pytest.fixture(scope="module")
def kept():
    apply, batches = bf.bert(small.config(2)), some_batches()
    steps = teacher_outputs.fill(
        apply, teacher_params(), batches, shapes(), frozenset(USED)
    )
    found = list(steps)
    assert len(found) == batches.steps_per_epoch
    return found[-1]


# -------------------------------------------------------------------- which are needed


def used(loss, student=1):
    batch = some_batches().batch(0)
    return teacher_outputs.used_outputs(loss, shapes(student), shapes(), batch)


def test_a_loss_reads_what_its_pairs_name():
    assert used(small.one_stage(LAYERS)) == USED
    assert used(bf.soft_cross_entropy) == {"logits"}
    assert used(bf.label_cross_entropy) == frozenset()
    pairs = functools.partial(bf.attention_kl, pairs=((0, 1),))
    assert used(bf.weighted(a=(1.0, pairs), b=(1.0, bf.logits_mse))) == {
        "logits",
        "scores_1",
    }
    assert used(bf.hidden_mse, student=2) == {f"hidden_{i}" for i in range(3)}


def test_an_own_loss_is_traced_like_any_other():
    def first_token(student, teacher, batch):
        error = student.hidden[1][:, 0] - teacher.hidden[2][:, 0]
        return bf.Mean(jnp.sum(error**2), 1.0)

    assert used(first_token) == {"hidden_2"}


@pytest.mark.parametrize(
    ("loss", "reads"),
    [
        (bf.hidden_mse, False),
        (functools.partial(bf.hidden_mse, count_padding=False), False),
        (functools.partial(bf.hidden_mse, count_padding=True), True),
        (functools.partial(bf.score_mse, count_padding=True), True),
        (functools.partial(bf.score_mse, mask_value=-1e4), True),
        (functools.partial(bf.score_mse, mask_value=0.0), True),
        (functools.partial(bf.score_mse, pairs=((0, 1),)), False),
        # What an own loss does with hidden states cannot be known; with logits it can.
        (lambda s, t, b: bf.hidden_mse(s, t, b), True),
        (lambda s, t, b: bf.logits_mse(s, t, b), False),
    ],
)
def test_what_compares_padding_is_known(loss, reads):
    batch = small.batch(4, 0)
    said = jax.eval_shape(bf.bert(small.config(4)), small.teacher_params(), batch)
    two = bf.weighted(a=(1.0, bf.logits_mse), b=(1.0, loss))
    for one in (loss, bf.weighted(a=(1.0, loss)), two):
        assert teacher_outputs.may_read_padding(one, said, said, batch) == reads


# --------------------------------------------------------------------- what comes back


@functools.cache
def gradient_step(running):
    """Return a step of SGD with rate 1, taught by who runs or by what was kept."""
    apply = (
        bf.bert(small.config(2))
        if running
        else teacher_outputs.outputs_reader(shapes())
    )
    tx = optax.sgd(1.0)
    loss = small.one_stage(LAYERS)
    step = bf.make_train_step(bf.bert(small.config(1)), apply, loss, tx)
    student = bf.take_layers(teacher_params(), LAYERS)
    return jax.jit(step), bf.init_state(student, tx, key=jax.random.key(0))


def test_the_batches_are_hard_enough():
    """Some rows have moved to a longer bucket, and one batch has filler rows."""
    batches = some_batches()
    all_batches = [batches.batch(i) for i in range(2 * batches.steps_per_epoch)]
    moved = filler = 0
    for batch in all_batches:
        length = batch["input_ids"].shape[1]
        own = np.searchsorted(BUCKETS, batch["attention_mask"].sum(1))
        moved += np.sum((np.array(BUCKETS)[own] < length) & (batch["weight"] > 0))
        filler += np.sum(batch["index"] < 0)
    assert moved >= 2
    assert filler >= 2
    assert {b["input_ids"].shape[1] for b in all_batches} == set(BUCKETS)


@pytest.mark.slow
def test_losses_and_gradients_are_the_running_teachers(kept):
    batches = some_batches(seed=3)
    for number in range(batches.steps_per_epoch + 2):
        batch = batches.batch(number)
        ours = kept.add_to(batch)
        step, state = gradient_step(running=False)
        found, metrics = step(state, None, ours)
        step, state = gradient_step(running=True)
        expected, told = step(state, teacher_params(), batch)
        for name in told:
            np.testing.assert_allclose(metrics[name], told[name], rtol=2e-6)
        assert small.largest_difference(found.params, expected.params) < 2e-6


def test_an_example_gets_its_own_outputs_and_zeros_in_padding(kept):
    apply = jax.jit(bf.bert(small.config(2)))
    batch = some_batches(seed=5).batch(1)
    found = kept.add_to(batch)
    out = apply(teacher_params(), batch)
    real = batch["weight"] > 0
    mask = batch["attention_mask"] == 1
    assert {n for n in found if n.startswith("teacher_")} == {
        f"teacher_{n}" for n in USED
    }
    close = functools.partial(np.testing.assert_allclose, rtol=0, atol=2e-6)
    close(found["teacher_logits"][real], np.asarray(out.logits)[real])
    close(found["teacher_hidden_2"][mask], np.asarray(out.hidden[2])[mask])
    both = mask[:, None, :, None] & mask[:, None, None, :]
    both = np.broadcast_to(both, out.scores[1].shape)
    close(found["teacher_scores_1"][both], np.asarray(out.scores[1])[both])
    for name in USED:
        np.testing.assert_array_equal(found[f"teacher_{name}"][~real], 0)
    longest = np.array(BUCKETS)[np.searchsorted(BUCKETS, mask.sum(1))]
    for row, end in enumerate(longest):
        assert not found["teacher_hidden_2"][row, end:].any()
    # The batch itself is as it was.
    assert not any(name.startswith("teacher_") for name in batch)


def test_devices_share_the_work(kept):
    mesh = bf.mesh(jax.devices()[:2])
    batches, apply = some_batches(), bf.bert(small.config(2))
    params = parallel.replicate(teacher_params(), mesh)
    seen = set()

    def share(batch):
        shared = parallel.shard_batch(batch, mesh)
        seen.add(len(shared["input_ids"].addressable_shards))
        return shared

    *_, found = teacher_outputs.fill(
        apply, params, batches, shapes(), frozenset(USED), share=share
    )
    assert seen == {2}
    batch = batches.batch(0)
    one, two = kept.add_to(batch), found.add_to(batch)
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=0, atol=2e-6)


def test_what_was_put_for_an_example_comes_back_in_any_order():
    batches = some_batches()
    out = bf.Outputs(jax.ShapeDtypeStruct((4, 1), "float32"), (), ())
    kept = teacher_outputs.TeacherOutputs(frozenset({"logits"}), out, batches)
    for batch in batches.evaluation():
        kept.put(batch["index"], {"logits": batch["index"][:, None].astype(float)})
    for number in range(2 * batches.steps_per_epoch):
        batch = batches.batch(number)
        said = kept.add_to(batch)["teacher_logits"][:, 0]
        np.testing.assert_array_equal(said, np.maximum(batch["index"], 0))


def test_the_size_is_known_before(kept):
    expected = 0
    for length in LENGTHS:
        bucket = BUCKETS[np.searchsorted(BUCKETS, length)]
        # Three logits, two hidden states of 16, the scores of two heads.
        expected += 4 * (3 + 2 * bucket * 16 + 2 * bucket**2)
    names, batches = frozenset(USED), some_batches()
    assert teacher_outputs.outputs_size(names, shapes(), batches) == expected
    assert kept.nbytes == expected


def test_a_reader_says_nan_of_what_was_not_kept(kept):
    batch = kept.add_to(some_batches().batch(0))
    out = teacher_outputs.outputs_reader(shapes())({}, batch)
    assert out.logits is batch["teacher_logits"]
    assert out.scores[1] is batch["teacher_scores_1"]
    assert out.hidden[1].shape == out.hidden[0].shape
    assert np.isnan(out.hidden[1]).all()


def test_what_a_loss_computes_and_drops_need_not_be_kept():
    def idle(student, teacher, batch):
        bf.hidden_mse(student, teacher, batch, pairs=((0, 1),))
        return bf.logits_mse(student, teacher, batch)

    assert used(idle) == {"logits"}
    batch = some_batches().batch(0)
    batch["teacher_logits"] = np.ones((4, 3), np.float32)
    said = bf.bert(small.config(2))(teacher_params(), batch)
    taught = teacher_outputs.outputs_reader(shapes())({}, batch)
    assert np.isfinite(idle(said, taught, batch).value)
