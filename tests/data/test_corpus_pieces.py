"""Pieces hold every token once, and batches of them say what is padding."""

import numpy as np
import pytest

from bitflax.data import corpus

CLS, SEP, PAD = 1, 2, 0


@pytest.mark.parametrize("length", [3, 4, 7, 100])
@pytest.mark.parametrize("count", [1, 2, 5, 10, 98, 99])
def test_every_token_is_in_one_piece(count, length):
    ids = np.arange(10, 10 + count, dtype=np.int32)
    found = corpus.cut_pieces(np.append(ids, SEP).astype(np.int32), length, CLS, PAD)
    assert found.ids.shape == (-(-count // (length - 2)), length)
    texts = []
    for row, size in zip(found.ids, found.lengths, strict=True):
        assert row[0] == CLS
        assert row[size - 1] == SEP
        assert (row[size:] == PAD).all()
        texts += row[1 : size - 1].tolist()
    assert texts == ids.tolist()
    assert (found.lengths[:-1] == length).all()
    assert found.ids.dtype == found.lengths.dtype == np.int32


def test_nothing_is_no_piece():
    found = corpus.cut_pieces(np.zeros(0, np.int32), 5, CLS, PAD)
    assert (len(found), found.ids.shape) == (0, (0, 5))
    batch = found.batch(2, PAD)
    assert not batch["weight"].any()
    assert batch["input_ids"].shape == (2, 5)


def test_a_batch_is_filled_up_with_rows_of_weight_0():
    ids = np.array([5, 6, 7, 8, 9, SEP], np.int32)
    batch = corpus.cut_pieces(ids, 5, CLS, PAD).batch(3, PAD)
    assert batch["input_ids"].tolist() == [[1, 5, 6, 7, 2], [1, 8, 9, 2, 0], [0] * 5]
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 1, 0], [0] * 5]
    assert batch["weight"].tolist() == [1, 1, 0]
    assert not batch["token_type_ids"].any()
    kinds = {name: array.dtype for name, array in batch.items()}
    assert kinds.pop("weight") == np.float32
    assert set(kinds.values()) == {np.dtype(np.int32)}


def test_parts_are_joined_in_order():
    one = corpus.cut_pieces(np.array([5, SEP], np.int32), 4, CLS, PAD)
    two = corpus.cut_pieces(np.array([6, 7, 8, SEP], np.int32), 4, CLS, PAD)
    both = corpus.joined([one, two])
    assert both.ids[:, 1].tolist() == [5, 6, 8]
    assert both.take(np.array([2, 0])).lengths.tolist() == [3, 3]
