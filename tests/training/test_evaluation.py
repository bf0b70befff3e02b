"""Scores of a task's dev examples over many devices."""

import functools

import jax
import numpy as np
import pytest

import bitflax as bf
from bitflax.data import metrics
from bitflax.data.batches import Batches
from bitflax.data.text import Tokens
from bitflax.training import evaluation
from tests.helpers import small

EXAMPLES = 200
CONFIG = small.config(2)


def tokens():
    rng = np.random.default_rng(0)
    lengths = rng.integers(3, CONFIG.max_position_embeddings + 1, EXAMPLES)
    ends = np.cumsum(lengths)
    ids = rng.integers(1, CONFIG.vocab_size, ends[-1]).astype(np.int32)
    return Tokens(ids, np.zeros(ends[-1], np.uint8), np.concatenate([[0], ends]))


@pytest.mark.parametrize(("devices", "waits"), [(8, True), (1, False)])
def test_cpu_devices_end_a_batch_before_the_next(devices, waits, monkeypatch):
    # All devices agree on the scale of a whole tensor, in every batch: those that run
    # ahead of the others can wait for them for good.
    waited = []
    monkeypatch.setattr(jax, "block_until_ready", waited.append)
    mesh = bf.mesh(jax.devices()[:devices])
    batches = Batches(tokens(), batch_size=16, seed=0, buckets=(16,), multiple_of=8)
    apply = bf.bert(CONFIG, bf.symmetric(8, axis=None))
    labels = np.zeros(EXAMPLES, int)
    score = functools.partial(metrics.score, "accuracy")
    scores = evaluation.Evaluator(apply, batches, labels, score, False, mesh)
    step, queued = scores._function, []

    def watched(params, batch):
        # On one device a batch is queued behind the others.
        assert len(waited) == waits * len(queued)
        queued.append(step(params, batch).block_until_ready())
        return queued[-1]

    scores._function = watched
    params = small.params(CONFIG)
    assert scores.logits(params).shape == (EXAMPLES, CONFIG.num_labels)
    assert len(queued) > 10
