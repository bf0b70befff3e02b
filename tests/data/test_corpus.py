"""A corpus as batches: by step alone, every piece once an epoch, none held out."""

import dataclasses
import json
import os
import threading
from collections import Counter

import numpy as np
import pytest
import tokenizers

from bitflax.data import corpus as data_corpus
from bitflax.data import icd10, passages, tasks
from bitflax.data.corpus import CorpusBatches
from bitflax.data.text import Tokenizer
from bitflax.errors import ConfigError, DataError, InputMissing

WORDS = 3000
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FIRST = len(SPECIAL)
LENGTH, ROWS = 10, 4


@pytest.fixture(scope="module")
def words():
    """A tokenizer whose tokens are the words w0 to w2999."""
    listed = (*SPECIAL, *(f"w{i}" for i in range(WORDS)))
    made = tokenizers.BertWordPieceTokenizer({word: i for i, word in enumerate(listed)})
    return Tokenizer.from_json(made.to_str())


@pytest.fixture
def path(write):
    """A text of 300 lines of 1 to 9 words, every word but once."""
    rng = np.random.default_rng(0)
    lines, place = [], 0
    for count in rng.integers(1, 10, 300):
        lines.append(" ".join(f"w{i}" for i in range(place, place + count)))
        place += count
    assert place < WORDS
    return write("corpus.txt", "\n".join(lines))


@pytest.fixture
def make(path, words, tmp_path):
    """Make the corpus of the text, in windows of about 500 bytes."""

    def make(source=path, tokenizer=words, **changes):
        settings = dict(length=LENGTH, batch_size=ROWS, seed=0, window=500)
        settings |= dict(cache=tmp_path / "cache")
        return CorpusBatches(source, tokenizer, **(settings | changes))

    return make


def tokens(batch):
    """Return the words of a batch's real rows, by number."""
    ids = batch["input_ids"][(batch["attention_mask"] == 1)]
    return (ids[ids >= FIRST] - FIRST).tolist()


def same(a, b):
    return all((a[name] == b[name]).all() for name in a) and a.keys() == b.keys()


def held_out(corpus):
    return [word for batch in corpus.evaluation() for word in tokens(batch)]


def counted(corpus):
    """Return the number of pieces of an epoch."""
    assert corpus.steps_per_epoch
    return int(corpus._counts.pieces.sum())


def pieces_of(corpus, first, last):
    """Return rows ``first`` to ``last`` of the run, counted over all steps."""
    found = []
    for step in range(first // ROWS, -(-last // ROWS)):
        found += [tuple(row) for row in corpus.batch(step)["input_ids"].tolist()]
    skipped = first % ROWS
    return found[skipped : skipped + last - first]


# ------------------------------------------------------------------ what an epoch holds


def test_an_epoch_shows_every_word_but_the_held_out_once(make, path):
    corpus = make()
    count = counted(corpus)
    first = pieces_of(corpus, 0, count)
    words = Counter(i - FIRST for piece in first for i in piece if i >= FIRST)
    held = held_out(corpus)
    everything = [int(word[1:]) for word in path.read_text().split()]
    assert sorted([*words.elements(), *held]) == everything
    assert 0 < len(held) < 0.2 * len(everything)
    second = pieces_of(corpus, count, 2 * count)
    assert sorted(second) == sorted(first)
    assert second != first
    assert corpus.steps_per_epoch == -(-count // ROWS)


def test_a_batch_has_the_shape_and_the_types_of_any_other(make):
    corpus = make()
    for step in (0, 1, corpus.steps_per_epoch - 1, corpus.steps_per_epoch):
        batch = corpus.batch(step)
        assert batch["input_ids"].shape == (ROWS, LENGTH)
        assert batch["weight"].tolist() == [1] * ROWS
        assert (batch["input_ids"][:, 0] == 2).all()
        last = batch["attention_mask"].sum(-1) - 1
        assert (batch["input_ids"][np.arange(ROWS), last] == 3).all()
        assert {name: str(array.dtype) for name, array in batch.items()} == {
            "input_ids": "int32",
            "attention_mask": "int32",
            "token_type_ids": "int32",
            "weight": "float32",
        }


def test_passages_follow_each_other_across_pieces(make, write):
    path = write("a.txt", "\n".join(f"w{i} w{i + 1} w{i + 2}" for i in range(0, 60, 3)))
    corpus = make(path, window=10**6)
    bodies = [piece[1:-1] for piece in pieces_of(corpus, 0, counted(corpus))]
    row = [i for body in sorted(bodies, key=max) for i in body]
    held = held_out(corpus)
    assert len(held) == 3
    expected = []
    for word in range(0, 60, 3):
        if word not in held:
            expected += [word + FIRST, word + FIRST + 1, word + FIRST + 2, 3]
    # The last piece ends with the [SEP] of its last passage, and is padded.
    assert row[: len(expected)] == expected
    assert not any(row[len(expected) :])


# --------------------------------------------------------------------- by the step alone


def test_any_step_is_the_same_whatever_came_before(make, tmp_path):
    straight = make(cache=None)
    steps = 3 * straight.steps_per_epoch
    expected = [straight.batch(step) for step in range(steps)]
    assert len({batch["input_ids"].tobytes() for batch in expected}) == steps
    rng = np.random.default_rng(1)
    jumping = make(cache=None)
    for step in rng.permutation(steps):
        assert same(jumping.batch(int(step)), expected[step])
    for step in (0, 1, steps // 2, steps - 1):
        assert same(make(cache=None).batch(step), expected[step])
        assert same(make().batch(step), expected[step])
        assert same(make().batch(step), expected[step])


def test_seeds_give_other_orders_of_the_same_pieces(make):
    count = counted(make())
    one, two = (pieces_of(make(seed=seed), 0, count) for seed in (0, 1))
    assert sorted(one) == sorted(two)
    assert one != two


def reading(monkeypatch, corpus):
    """Note which windows are read from now on."""
    windows = []
    read = corpus._read

    def noted(window):
        windows.append(window)
        return read(window)

    monkeypatch.setattr(corpus, "_read", noted)
    return windows


def test_a_resume_reads_only_what_it_needs(make, monkeypatch, tmp_path):
    corpus = make()
    middle = corpus.steps_per_epoch // 2
    for step in range(middle + 1):
        corpus.batch(step)
    expected = corpus.batch(middle)
    again = make()
    windows = reading(monkeypatch, again)
    assert same(again.batch(middle), expected)
    again._pool.shutdown()
    # The window of the step (two, where the batch runs over) and the one after it.
    assert 2 <= len(windows) <= 3
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text("{}")
    without = make()
    windows = reading(monkeypatch, without)
    assert same(without.batch(middle), expected)
    assert len(windows) > 5


def test_an_earlier_bitflax_s_counts_are_made_again(make, tmp_path, caplog):
    counts = counted(make())
    (file,) = (tmp_path / "cache").iterdir()
    sealed = json.loads(file.read_text())
    file.write_text(json.dumps({k: v for k, v in sealed.items() if k != "sha256"}))
    assert counted(make()) == counts
    problem = f"{file}: it has no SHA-256: an earlier bitflax wrote it"
    assert caplog.messages == [f"{problem}\nfix: nothing: the pieces are counted again"]
    assert json.loads(file.read_text()) == sealed


def test_a_text_is_checked_once(make, monkeypatch):
    make()
    monkeypatch.setattr(passages.TextFiles, "check", lambda self: pytest.fail("again"))
    assert len(make().sha256) == 64


def test_each_window_is_read_once_an_epoch(make, monkeypatch):
    corpus = make(cache=None)
    windows = reading(monkeypatch, corpus)
    step = 0
    while corpus._counts.pieces.min() < 0 or step < corpus.steps_per_epoch:
        corpus.batch(step)
        step += 1
    corpus._pool.shutdown()
    assert len(set(windows)) == corpus._source.windows > 10
    assert len(windows) <= corpus._source.windows + 2


def test_a_text_of_one_window_is_tokenised_once(make, monkeypatch):
    corpus = make(window=10**6)
    windows = reading(monkeypatch, corpus)
    for step in range(3 * corpus.steps_per_epoch):
        corpus.batch(step)
    assert windows == [0]


def test_the_next_window_is_read_in_another_thread(make, monkeypatch):
    corpus = make()
    threads = set()
    read = corpus._source.lines

    def noted(window):
        threads.add(threading.current_thread().name)
        return read(window)

    monkeypatch.setattr(corpus._source, "lines", noted)
    corpus.batch(0)
    list(corpus.evaluation())
    assert len(threads) == 1
    assert threads != {threading.current_thread().name}


def test_memory_holds_two_windows_at_most(make):
    corpus = make()
    for step in range(corpus.steps_per_epoch):
        corpus.batch(step)
        assert len(corpus._windows) <= 2


# --------------------------------------------------------------------------- many hosts


@pytest.mark.parametrize(("rows", "hosts"), [(4, 2), (4, 4), (5, 4), (2, 8)])
def test_hosts_share_the_batches_of_one(make, rows, hosts):
    whole = make(batch_size=rows, multiple_of=hosts)
    for step in range(2 * whole.steps_per_epoch):
        parts = [whole.batch(step, (i, hosts)) for i in range(hosts)]
        assert len({len(part["weight"]) for part in parts}) == 1
        joined = {n: np.concatenate([p[n] for p in parts]) for n in parts[0]}
        assert same(joined, whole.batch(step))
    expected = list(whole.evaluation())
    parts = [list(whole.evaluation((i, hosts))) for i in range(hosts)]
    assert {len(part) for part in parts} == {len(expected)}
    for number, batch in enumerate(expected):
        joined = {n: np.concatenate([p[number][n] for p in parts]) for n in batch}
        assert same(joined, batch)


def test_the_pieces_of_a_step_do_not_depend_on_the_devices(make):
    one, four = make(batch_size=5), make(batch_size=5, multiple_of=4)
    for step in range(2 * one.steps_per_epoch):
        batch = four.batch(step)
        assert batch["weight"].tolist() == [1.0] * 5 + [0.0] * 3
        assert same({n: x[:5] for n, x in batch.items()}, one.batch(step))


def test_rows_that_hosts_cannot_share_are_refused(make):
    with pytest.raises(ValueError, match="4 rows, part 0 of 3"):
        make().batch(0, (0, 3))
    with pytest.raises(ValueError, match="4 rows, part 2 of 2"):
        make().batch(0, (2, 2))


# ------------------------------------------------------------------------------ held out


def test_copies_of_a_held_out_passage_are_held_out_too(make, path, write):
    text = path.read_text()
    corpus = make(write("twice.txt", f"{text}\n{text}"))
    held = set(held_out(corpus))
    shown = set()
    for step in range(corpus.steps_per_epoch):
        shown |= set(tokens(corpus.batch(step)))
    assert held
    assert not held & shown


def test_at_most_so_many_batches_are_held_out(make, monkeypatch):
    monkeypatch.setattr(data_corpus, "HELD_OUT", 0.5)
    monkeypatch.setattr(data_corpus, "EVAL_BATCHES", 3)
    batches = list(make().evaluation())
    assert len(batches) == 3
    assert all(batch["weight"].all() for batch in batches)
    monkeypatch.setattr(data_corpus, "EVAL_WINDOWS", 1)
    assert len(list(make().evaluation())) < 3


@pytest.mark.parametrize("share", [0.0, 0.01, 1.0])
def test_two_lines_are_a_corpus(make, write, monkeypatch, share):
    monkeypatch.setattr(data_corpus, "HELD_OUT", share)
    corpus = make(write("two.txt", "w1 w2\nw3 w4\n"))
    (batch,) = corpus.evaluation()
    assert batch["weight"].tolist() == [1, 0, 0, 0]
    shown = set(tokens(corpus.batch(0)))
    assert {*shown, *tokens(batch)} == {1, 2, 3, 4}
    assert not shown & set(tokens(batch))
    assert corpus.batch(0)["weight"].all()


# ------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize("text", ["w1", "w1\n \n w1 \n", "\n\n \n"])
def test_a_text_with_nothing_to_learn_is_refused(make, write, text):
    with pytest.raises(DataError, match="two different passages or more"):
        make(write("small.txt", text))


def test_passages_without_words_are_refused(make, write):
    corpus = make(write("odd.txt", "\u200b\n\u200b\u200b"))
    with pytest.raises(DataError, match="expected words"):
        corpus.batch(0)
    with pytest.raises(DataError, match="expected words"):
        list(corpus.evaluation())


def test_a_text_that_changed_between_two_runs_is_refused(make, path):
    make().batch(0)
    os.utime(path, ns=(1, 1))  # touched, but the same
    make().batch(0)
    path.write_text(path.read_text().replace("w7", "w8"))
    with pytest.raises(DataError, match="not what it was when this run began") as error:
        make()
    assert str(path) in error.value.place
    make(cache=None)


def test_a_text_that_changes_in_use_is_an_error(make, path):
    corpus = make(cache=None)
    corpus.batch(0)
    path.write_text("w1 w2")
    with pytest.raises(DataError, match="changed or removed while it was in use"):
        counted(corpus)


def test_bad_bytes_are_found_before_the_first_batch(make, path):
    path.write_bytes(path.read_bytes() + b"\nlast \xff line")
    with pytest.raises(DataError, match=r"corpus\.txt:301: expected UTF-8"):
        make()


def test_settings_that_cannot_be_are_refused(make, words, tmp_path):
    with pytest.raises(ConfigError, match="does not apply"):
        make(data_dir=tmp_path)
    with pytest.raises(InputMissing, match="no such file"):
        make(tmp_path / "none.txt")
    with pytest.raises(InputMissing, match="no such file"):
        make("./none")
    bare = json.loads(words.to_json())
    bare["model"]["vocab"] = {"[UNK]": 0, "w1": 1}
    bare |= {"post_processor": None, "added_tokens": []}
    with pytest.raises(ConfigError, match=r"expected \[CLS\] and \[SEP\]"):
        make(tokenizer=Tokenizer.from_json(json.dumps(bare)))


# --------------------------------------------------------------------------- ICD-10-CM


def test_icd10cm_is_a_corpus(make, monkeypatch, words):
    texts = [f"w{i} w{i + 1}" for i in range(0, 200, 2)]
    task = dataclasses.replace(icd10.TASK, passages=lambda: texts)
    monkeypatch.setitem(tasks.TASKS, "icd10cm", task)
    corpus = make("icd10cm")
    shown = pieces_of(corpus, 0, counted(corpus))
    found = [i - FIRST for piece in shown for i in piece if i >= FIRST]
    assert sorted([*found, *held_out(corpus)]) == list(range(200))
    with pytest.raises(ConfigError, match="does not apply"):
        make("icd10cm", data_dir="somewhere")
