"""Augmented files: written, stopped, gone on with, and read back."""

import json
import random
from typing import Any

import numpy as np
import pytest

from bitflax import cli
from bitflax.data import tasks
from bitflax.data.augmentation import augment, masked_lm
from bitflax.data.augmentation import words as data_augmentation_words
from bitflax.data.examples import Examples, Task, object_column
from bitflax.errors import BitflaxError, ConfigError, DataError, UsageError
from tests.helpers import augmenting

TEXTS = [
    "The movie was unbelievable .",
    "I was running , the dog was great",
    "Paris 2019 was very bad",
    "the",
    "a terrible film\tand a\nslow story",
]


def make_task(rows=5, pair=False, regression=False, labelled=True):
    texts = [TEXTS[i % 5] + " film" * (i // 5) for i in range(rows)]
    columns = (
        (object_column(texts), object_column(texts[::-1]))
        if pair
        else (object_column(texts),)
    )
    labels = np.arange(rows, dtype=np.int32) % 2
    if regression:
        labels = (np.arange(rows) * 0.7).astype(np.float32)
    train = Examples(columns, labels if labelled else None, np.arange(2, rows + 2))
    names = () if regression else ("bad", "good")
    sha = f"{rows} {pair} {regression}"
    return Task("own.tsv", train, train, names, "accuracy", regression, sha256=sha)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory):
    return str(augmenting.save_vectors(tmp_path_factory.mktemp("v") / "glove.txt"))


@pytest.fixture(scope="module")
def masked(tmp_path_factory):
    return str(augmenting.save_masked(tmp_path_factory.mktemp("lm")))


@pytest.fixture(scope="module")
def lm(masked):
    """The masked LM, loaded once and with few lengths to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masked_lm, "LENGTHS", (32,))
        loaded = masked_lm.load_masked_lm(masked)
        patch.setattr(masked_lm, "load_masked_lm", lambda folder: loaded)
        yield masked


@pytest.fixture
def out(tmp_path):
    return tmp_path / "augmented.jsonl"


def lines(path):
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_an_example_comes_before_its_variants(out, vectors):
    task = make_task()
    how = augment.Augment(vectors=vectors, copies=6, candidates=5)
    count = augment.write_augmented(task, out, how)
    found = lines(out)
    assert count == len(found) > 2 * len(task.train)
    by_source = {}
    for line in found:
        by_source.setdefault(line["source"], []).append(line)
    assert list(by_source) == task.train.rows.tolist()
    for i, (_, group) in enumerate(by_source.items()):
        assert group[0]["sentence"] == TEXTS[i]
        assert {line["label"] for line in group} == {task.labels[i % 2]}
        sentences = [line["sentence"] for line in group]
        assert len(set(sentences)) == len(sentences) <= 7


@pytest.mark.parametrize("kind", ["single", "pair", "regression", "bare"])
def test_what_is_written_is_read_back(out, vectors, kind):
    task = make_task(
        pair=kind == "pair", regression=kind == "regression", labelled=kind != "bare"
    )
    augment.write_augmented(task, out, augment.Augment(vectors=vectors, copies=4))
    found: Any = augment.load_augmented(out, task)
    train: Any = task.train
    assert len(found.texts) == len(train.texts)
    assert len(found) > len(train)
    assert set(found.rows.tolist()) == set(train.rows.tolist())
    if kind == "bare":
        assert found.labels is None
    else:
        expected = dict(zip(train.rows.tolist(), train.labels.tolist(), strict=True))
        for row, label in zip(found.rows.tolist(), found.labels.tolist(), strict=True):
            assert label == expected[row]
        assert found.labels.dtype == train.labels.dtype


def test_the_file_is_a_task_like_any_other(out, vectors):
    augment.write_augmented(make_task(pair=True), out, augment.Augment(vectors=vectors))
    task = tasks.load_task(out)
    assert task.labels == ("bad", "good")
    assert len(task.train.texts) == 2


def test_both_ways_to_find_words_serve(out, vectors, lm):
    how = augment.Augment(vectors=vectors, masked_lm=lm, copies=10, candidates=5)
    augment.write_augmented(make_task(), out, how)
    vocabulary = set(augmenting.golden()[0]["vocab"])
    words = set(augmenting.golden()[0]["glove_words"])
    said = {word for line in lines(out) for word in line["sentence"].split()}
    assert said & (vocabulary - words - set(" ".join(TEXTS).lower().split()))
    assert said & (words - vocabulary - {"unbelievable", "running"})


@pytest.mark.parametrize("way", ["vectors", "masked_lm"])
def test_chunks_and_company_do_not_matter(tmp_path, monkeypatch, vectors, lm, way):
    given = {way: {"vectors": vectors, "masked_lm": lm}[way]}
    how = augment.Augment(**given, copies=5, candidates=5)
    made = []
    for chunk, rows in ((128, 12), (5, 12), (1, 6)):
        monkeypatch.setattr(augment, "CHUNK", chunk)
        path = tmp_path / f"{chunk}.jsonl"
        augment.write_augmented(make_task(rows), path, how)
        made.append(path.read_text())
    assert made[0] == made[1]
    assert made[0].startswith(made[2])


def test_each_example_has_a_generator_of_its_own(out, vectors):
    task = make_task()
    how = augment.Augment(vectors=vectors, copies=3, seed=7, candidates=4)
    augment.write_augmented(task, out, how)
    sentences = augment._finder(how)([TEXTS[1]])
    expected = data_augmentation_words.variants(sentences, 3, 0.4, random.Random("7 3"))
    found = [line["sentence"] for line in lines(out) if line["source"] == 3]
    assert found == [text for (text,) in expected]


def test_the_seed_matters(tmp_path, vectors):
    made = set()
    for seed in (0, 1):
        path = tmp_path / f"{seed}.jsonl"
        how = augment.Augment(vectors=vectors, seed=seed)
        augment.write_augmented(make_task(), path, how)
        made.add(path.read_text())
    assert len(made) == 2


def test_a_stopped_command_goes_on(out, vectors, monkeypatch, tmp_path):
    how, task = augment.Augment(vectors=vectors, copies=5), make_task(12)
    monkeypatch.setattr(augment, "CHUNK", 2)
    augment.write_augmented(task, tmp_path / "whole.jsonl", how)
    called, find = [], data_augmentation_words.Finder.__call__

    def stopping(self, texts):
        called.append(len(texts))
        if len(called) == 3:
            raise KeyboardInterrupt
        return find(self, texts)

    monkeypatch.setattr(data_augmentation_words.Finder, "__call__", stopping)
    with pytest.raises(KeyboardInterrupt):
        augment.write_augmented(task, out, how)
    assert not out.exists()
    augment.write_augmented(task, out, how)
    assert len(called) == 3 + 4
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_a_whole_file_is_not_made_again(out, vectors, monkeypatch):
    how = augment.Augment(vectors=vectors)
    count = augment.write_augmented(make_task(), out, how)
    monkeypatch.setattr(augment, "_finder", None)
    assert augment.write_augmented(make_task(), out, how) == count


@pytest.mark.parametrize("change", ["seed", "vectors", "data"])
def test_a_file_of_other_settings_is_refused(out, vectors, tmp_path, change):
    augment.write_augmented(make_task(), out, augment.Augment(vectors=vectors))
    other = tmp_path / "other.txt"
    other.write_text("a 1\nb 2\n")
    how = augment.Augment(
        vectors=str(other) if change == "vectors" else vectors,
        seed=int(change == "seed"),
    )
    task = make_task(6 if change == "data" else 5)
    with pytest.raises(ConfigError, match=f"other settings: {change} was"):
        augment.write_augmented(task, out, how)


@pytest.mark.parametrize(
    ("name", "copies"), [("glue/mnli", 10), ("glue/sst2", 20), ("glue/rte", 30)]
)
def test_copies_are_tinyberts(out, vectors, name, copies, monkeypatch):
    asked = []
    draw = lambda s, n, p, rng: asked.append(n) or [("a",)]  # noqa: E731
    monkeypatch.setattr(augment, "variants", draw)
    task = make_task()
    task = Task(name, task.train, task.dev, task.labels, "accuracy")
    augment.write_augmented(task, out, augment.Augment(vectors=vectors))
    assert set(asked) == {copies}


def test_examples_that_the_task_leaves_out_are_left_out(out, vectors):
    whole = make_task(10)
    augment.write_augmented(whole, out, augment.Augment(vectors=vectors, copies=2))
    part = Task(
        "own.tsv", whole.train.take([4, 7]), whole.dev, whole.labels, "accuracy"
    )
    found = augment.load_augmented(out, part)
    assert set(found.rows.tolist()) == {6, 9}


def changed(path, row, **fields):
    found = lines(path)
    found[row] |= fields
    path.write_text("".join(json.dumps(line) + "\n" for line in found))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"sentence": "another"}, "the example of row 2 is not the one of own.tsv"),
        ({"label": "good"}, "the example of row 2 is not the one of own.tsv"),
        (
            {"label": "fine"},
            r"jsonl:1: expected a label in column 'label' \(bad, good\)",
        ),
        ({"source": "x"}, "jsonl:1: expected a row's number as source"),
        ({"source": 99}, r"row 2 is not|1 of 5 training examples of own.tsv are not"),
        ({"sentence": 3}, "jsonl:1: expected words"),
    ],
)
def test_a_file_of_other_data_is_refused(out, vectors, fields, problem):
    task = make_task()
    augment.write_augmented(task, out, augment.Augment(vectors=vectors, copies=2))
    changed(out, 0, **fields)
    with pytest.raises(DataError, match=problem):
        augment.load_augmented(out, task)


def test_a_file_of_fewer_examples_is_refused(out, vectors):
    augment.write_augmented(make_task(3), out, augment.Augment(vectors=vectors))
    with pytest.raises(DataError, match="2 of 5 training examples") as caught:
        augment.load_augmented(out, make_task(5))
    assert "limit and seed" in caught.value.fix


def test_a_single_text_is_no_pair(out, vectors):
    augment.write_augmented(make_task(), out, augment.Augment(vectors=vectors))
    with pytest.raises(DataError, match="expected a field 'sentence1'"):
        augment.load_augmented(out, make_task(pair=True))


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({}, "neither --masked-lm nor --vectors"),
        ({"copies": 0}, "--copies: expected 1 or more, found 0"),
        ({"candidates": 0}, "--candidates"),
        ({"seed": -1}, "--seed: expected 0 or more"),
        ({"probability": 0.0}, "--probability: expected more than 0"),
        ({"probability": 1.1}, "--probability"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, problem):
    given = {"vectors": "glove"} | settings if settings else {}
    with pytest.raises(UsageError, match=problem):
        augment.Augment(**given)


def test_more_candidates_than_words_are_refused(out, masked):
    how = augment.Augment(masked_lm=masked, candidates=40)
    with pytest.raises(UsageError, match="--candidates: 40, but"):
        augment.write_augmented(make_task(), out, how)
    assert list(out.parent.iterdir()) == []


def test_a_missing_model_leaves_nothing(out, tmp_path):
    how = augment.Augment(masked_lm=str(tmp_path / "no"))
    with pytest.raises(BitflaxError, match="no such folder"):
        augment.write_augmented(make_task(), out, how)
    assert list(out.parent.iterdir()) == []


@pytest.fixture
def own(write):
    rows = [f"{text.split(chr(9))[0]}\t{i % 2}\n" for i, text in enumerate(TEXTS * 3)]
    return write("own.tsv", "text\tlabel\n" + "".join(rows)), write(
        "dev.tsv", "text\tlabel\na\t0\nb\t1\n"
    )


def test_the_command_writes_and_says_so(capsys, out, own, vectors, monkeypatch):
    argv = ["augment", str(own[0]), "--dev", str(own[1]), "--out", str(out)]
    argv += ["--vectors", vectors, "--copies", "3", "--limit", "10", "--seed", "2"]
    assert cli.main(argv) == 0
    said = capsys.readouterr()
    assert said.out == f"{out}\t{len(lines(out))} rows of 10 examples\n"
    assert "no --masked-lm: word vectors give the candidates of every word" in said.err
    assert "augment 10/10 100%" in said.err
    task = tasks.load_task(own[0], dev=own[1], limit=10, seed=2)
    assert len(augment.load_augmented(out, task)) == len(lines(out))


@pytest.mark.parametrize(
    ("more", "status", "problem"),
    [
        ([], 2, "neither --masked-lm nor --vectors is given"),
        (["--vectors", "no.txt"], 66, "no.txt: there is no such file"),
        (["--vectors", "glove", "--copies", "x"], 2, "--copies"),
        (["--vectors", "glove", "--out", "x.tsv"], 2, "expected a .jsonl file"),
    ],
)
def test_mistakes_are_two_lines(capsys, out, own, more, status, problem):
    place = [] if "--out" in more else ["--out", str(out)]
    argv = ["augment", str(own[0]), "--dev", str(own[1]), *place, *more]
    assert cli.main(argv) == status
    error = [x for x in capsys.readouterr().err.splitlines() if "note:" not in x]
    assert len(error) == 2
    assert problem in error[0]
    assert not out.exists()


def test_ctrl_c_is_130(capsys, out, own, vectors, monkeypatch):
    def interrupted(how):
        raise KeyboardInterrupt

    monkeypatch.setattr(augment, "_finder", interrupted)
    argv = ["augment", str(own[0]), "--out", str(out), "--vectors", vectors]
    assert cli.main(argv) == 130
    assert "Traceback" not in capsys.readouterr().err
