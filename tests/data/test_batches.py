"""Batches: every example once an epoch, few shapes, little padding, exact resume."""

import itertools

import numpy as np
import pytest

from bitflax.data import batches
from bitflax.data.batches import Batches, buckets_for
from bitflax.data.text import Tokens


def tokens_of(lengths):
    """Examples whose tokens say which example and place they are."""
    lengths = np.asarray(lengths, np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = [1000 * i + np.arange(n) + 1 for i, n in enumerate(lengths)]
    ids = np.concatenate([*ids, np.zeros(0)])
    return Tokens(ids.astype(np.int32), (ids % 2).astype(np.uint8), offsets)


def made(count=103, seed=0, batch_size=8, buckets=(4, 8, 16), **settings):
    lengths = np.random.default_rng(5).integers(2, 17, count)
    labels = np.arange(count, dtype=np.int32)
    return Batches(
        tokens_of(lengths),
        labels,
        batch_size=batch_size,
        seed=seed,
        buckets=buckets,
        **settings,
    )


@pytest.mark.parametrize("name", ["batch_size", "multiple_of"])
@pytest.mark.parametrize("size", [0, -8, True])
def test_a_batch_has_an_example_or_more(name, size):
    with pytest.raises(ValueError, match=f"{name} must be at least 1 and whole"):
        made(**{name: size})


def epoch(data, number):
    steps = data.steps_per_epoch
    return [data.batch(step) for step in range(number * steps, (number + 1) * steps)]


def same(one, other):
    return all(np.array_equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("count", [1, 7, 8, 9, 103, 104])
@pytest.mark.parametrize("number", [0, 3])
def test_an_epoch_shows_every_example_once(count, number):
    data = made(count)
    found = epoch(data, number)
    index = np.concatenate([batch["index"] for batch in found])
    assert sorted(index[index >= 0]) == list(range(count))
    assert len(found) == -(-count // 8)
    # No more filler rows than the last batch needs, and all of them in one batch.
    assert sum((batch["weight"] == 0).any() for batch in found) == (count % 8 > 0)


def test_rows_hold_their_examples():
    data = made()
    for batch in epoch(data, 1):
        for row, i in enumerate(batch["index"]):
            length = data.tokens.lengths[i] if i >= 0 else 0
            expected = 1000 * i + np.arange(length) + 1
            assert batch["input_ids"][row, :length].tolist() == expected.tolist()
            assert not batch["input_ids"][row, length:].any()
            assert batch["attention_mask"][row].sum() == length
            assert batch["attention_mask"][row, :length].all()
            types = batch["token_type_ids"][row]
            assert types[:length].tolist() == (expected % 2).tolist()
            assert not types[length:].any()
            assert batch["weight"][row] == (i >= 0)
            assert batch["labels"][row] == max(i, 0)


def test_kinds_and_shapes():
    data = made(pad_id=7, multiple_of=3)
    assert (data.batch_size, data.rows) == (8, 9)
    shapes = set()
    for batch in epoch(data, 0):
        ids = batch["input_ids"]
        shapes.add(ids.shape)
        assert (ids[batch["attention_mask"] == 0] == 7).all()
        kinds = {name: str(array.dtype) for name, array in batch.items()}
        assert kinds.pop("weight") == "float32"
        assert set(kinds.values()) == {"int32"}
    assert shapes == set(data.shapes()) <= {(9, 4), (9, 8), (9, 16)}


def test_each_shape_has_a_first_step():
    data, seen = made(multiple_of=3), []
    lengths = [batch["input_ids"].shape[1] for batch in epoch(data, 0)]
    for step in data.first_steps():
        seen.append(lengths[step])
        assert lengths.index(lengths[step]) == step
    assert sorted(seen) == [length for _, length in data.shapes()]
    assert len(seen) > 1


def test_order_depends_on_seed_and_step_alone():
    one, two = made(seed=1), made(seed=1)
    steps = range(4 * one.steps_per_epoch)
    forward = [one.batch(step) for step in steps]
    for step in reversed(steps):
        assert same(two.batch(step), forward[step])
    assert not all(same(made(seed=2).batch(step), forward[step]) for step in steps)
    first, second = forward[: one.steps_per_epoch], forward[one.steps_per_epoch :]
    assert not all(same(a, b) for a, b in zip(first, second, strict=False))


@pytest.mark.parametrize("devices", [2, 3, 16])
def test_the_examples_of_a_step_do_not_depend_on_the_devices(devices):
    one, many = made(), made(multiple_of=devices)
    for batch, expected in zip(epoch(many, 1), epoch(one, 1), strict=True):
        assert len(batch["index"]) % devices == 0
        assert same({name: x[:8] for name, x in batch.items()}, expected)
        assert (batch["index"][8:] == -1).all()
        assert not batch["weight"][8:].any()


def test_parts_are_a_batch_s_rows_in_order():
    data = made(multiple_of=3)
    for step in range(data.steps_per_epoch):
        parts = [data.batch(step, (i, 3)) for i in range(3)]
        joined = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
        assert same(joined, data.batch(step))
    parts = zip(*(data.evaluation((i, 3)) for i in range(3)), strict=True)
    for part, whole in zip(parts, data.evaluation(), strict=True):
        joined = {n: np.concatenate([p[n] for p in part]) for n in whole}
        assert same(joined, whole)
    with pytest.raises(ValueError, match="9 rows, part 0 of 2"):
        data.batch(0, (0, 2))


def test_lengths_do_not_come_in_order():
    widths = [batch["input_ids"].shape[1] for batch in epoch(made(400), 0)]
    assert widths != sorted(widths)
    assert widths != sorted(widths, reverse=True)


def test_evaluation_is_in_a_fixed_order_and_can_be_put_back():
    data = made()
    out = np.zeros(len(data.tokens), int)
    for batch in data.evaluation():
        real = batch["weight"] > 0
        out[batch["index"][real]] = batch["input_ids"][real, 0]
    assert out.tolist() == [1000 * i + 1 for i in range(len(out))]
    assert all(same(a, b) for a, b in zip(data.evaluation(), data.evaluation()))  # noqa: B905


def least(lengths, buckets, batch_size):
    """The fewest padded tokens of whole batches, by trying every way of counting."""
    counts = np.bincount(np.searchsorted(buckets, lengths), minlength=len(buckets))
    steps = -(-len(lengths) // batch_size)
    ways = itertools.product(range(steps + 1), repeat=len(buckets))
    return min(
        batch_size * int(np.dot(way, buckets))
        for way in ways
        if sum(way) == steps
        # Every example finds a place in a batch as long as itself, or longer.
        and all(
            batch_size * sum(way[i:]) >= counts[i:].sum() for i in range(len(buckets))
        )
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("batch_size", [3, 8])
def test_no_other_way_of_filling_batches_computes_less(seed, batch_size):
    lengths = np.random.default_rng(seed).integers(1, 17, 20 + seed)
    buckets = (4, 8, 16)
    data = Batches(tokens_of(lengths), batch_size=batch_size, seed=0, buckets=buckets)
    assert data.padded_tokens == least(lengths, buckets, batch_size)
    computed = sum(batch["input_ids"].size for batch in epoch(data, 2))
    assert computed == data.padded_tokens
    assert "labels" not in data.batch(0)


def test_buckets_cost_a_fraction_of_padding_to_128():
    # Lengths as CoLA has them: a mean of 11 tokens, few above 30.
    lengths = np.clip(np.random.default_rng(0).gamma(5, 2.3, 8551), 4, 47).astype(int)
    tokens = tokens_of(lengths)
    near = Batches(
        tokens, batch_size=32, seed=0, buckets=buckets_for(tokens.lengths, 128)
    )
    far = Batches(tokens, batch_size=32, seed=0, buckets=(128,))
    assert far.padded_tokens / near.padded_tokens > 8
    assert near.steps_per_epoch == far.steps_per_epoch


@pytest.mark.parametrize(
    ("lengths", "limit", "expected"),
    [
        ([5] * 10, 128, (8,)),
        ([5] * 10 + [100], 128, (128,)),
        ([5] * 500 + [100], 128, (8, 128)),
        ([90] * 10, 100, (96,)),
        ([100] * 10, 100, (100,)),
        ([1000] * 10, 1000, (1000,)),
        ([], 128, (8,)),
    ],
)
def test_buckets_for(lengths, limit, expected):
    assert buckets_for(np.array(lengths, np.int64), limit) == expected


def test_buckets_are_at_most_eight_and_the_cheapest():
    lengths = np.random.default_rng(0).integers(3, 513, 20_000)
    chosen = buckets_for(lengths, 512)

    def cost(buckets):
        padded = np.array(buckets)[np.searchsorted(buckets, lengths)].sum()
        return padded + batches.COMPILE_TOKENS * len(buckets)

    assert len(chosen) == 8
    assert chosen[-1] == 512
    others = (
        (*some, 512)
        for size in range(8)
        for some in itertools.combinations(batches.LENGTHS[:-1], size)
    )
    rng = np.random.default_rng(1)
    sample = [other for other in others if rng.random() < 0.02]
    assert cost(chosen) <= min(cost(other) for other in sample)
    assert len(sample) > 50


@pytest.mark.parametrize(
    ("lengths", "changes", "problem"),
    [
        ([], {}, "there are no examples"),
        ([3, 9], {"buckets": (4, 8)}, "an example has 9 tokens, the last bucket 8"),
        ([3, 9], {"labels": np.zeros(3, np.int32)}, "2 examples but 3 labels"),
    ],
)
def test_what_makes_no_batches_is_refused(lengths, changes, problem):
    settings = {"batch_size": 2, "seed": 0, "buckets": (16,), **changes}
    with pytest.raises(ValueError, match=problem):
        Batches(tokens_of(lengths), **settings)
