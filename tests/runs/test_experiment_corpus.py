"""General distillation: from text alone, stopped and gone on with at any step."""

import functools
import json
import signal

import jax
import numpy as np
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.data import corpus as data_corpus
from bitflax.errors import ConfigError
from bitflax.runs import log as runs_log
from bitflax.runs import stages
from tests.helpers import tinyrun

STATES = bf.weighted(
    hidden=(1.0, functools.partial(bf.hidden_mse, pairs=((0, 0), (1, 2)))),
    scores=(2.0, functools.partial(bf.score_mse, pairs=((0, 1),))),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("general")
    tinyrun.write_teacher(folder / "teacher")
    lines = [f"{text}\n" for text, _ in tinyrun.texts(150, seed=1)]
    (folder / "text.txt").write_text("".join(lines))
    return folder


def made(place, **changes):
    fields = dict(name="general", init=bf.Init(layers=(1,)), loss=STATES, steps=12)
    corpus = bf.Corpus(source=str(place / "text.txt"), length=12, batch_size=8)
    fields |= dict(corpus=corpus, evals=3, optim=bf.Optim(lr=1e-2)) | changes
    teacher = bf.Teacher(pretrained=str(place / "teacher"))
    return bf.Recipe(data=None, teacher=teacher, stages=(bf.Stage(**fields),))


def run(recipe, out, **options):
    with tinyrun.devices(1):
        return stages.run(recipe, out, **options)


def student(out):
    return trees.flatten(bf.load_pretrained(out / "1-general" / "params")[1])


@pytest.fixture(scope="module")
def whole(place):
    return place / "whole", run(made(place), place / "whole")


def test_the_score_is_the_loss_on_what_is_held_out(whole, place):
    out, rows = whole
    log = [line for line in runs_log.read_log(out / "log.jsonl") if "dev/loss" in line]
    assert [line["step"] for line in log] == [4, 8, 12]
    assert rows[-1].score == log[-1]["dev/loss"] < log[0]["dev/loss"]
    last = log[-1]
    parts = last["dev/hidden"] + last["dev/scores"]
    assert last["dev/loss"] == pytest.approx(parts, rel=1e-6)
    assert [row.kept for row in rows] == [None, None]


def test_an_accelerator_compiles_it_ahead(whole, place, tmp_path, monkeypatch):
    missing = tinyrun.compile_ahead(monkeypatch)
    run(made(place), tmp_path / "run")
    assert missing == []
    found, expected = (
        [line | {"time": 0} for line in runs_log.read_log(out / "log.jsonl")]
        for out in (tmp_path / "run", whole[0])
    )
    assert found == expected


def test_the_held_out_loss_by_hand(whole, place):
    out, rows = whole
    tokenizer = tinyrun.tokenizer()
    settings = dict(length=12, batch_size=8, seed=5, cache=None)
    held = data_corpus.CorpusBatches(
        place / "text.txt", tokenizer, **settings
    ).evaluation()
    teacher = bf.load_pretrained(place / "teacher")
    found = bf.load_pretrained(out / "1-general" / "params")
    totals = {}
    for batch in held:
        said = [bf.bert(config)(params, batch) for config, params in (found, teacher)]
        for name, mean in STATES(*said, batch).items():
            total, count = totals.get(name, (0.0, 0.0))
            totals[name] = (total + float(mean.total), count + float(mean.count))
    by_hand = sum(total / count for total, count in totals.values())
    assert rows[-1].score == pytest.approx(by_hand, rel=1e-5)


def test_an_interrupted_run_goes_on(whole, place, tmp_path, monkeypatch):
    steps, real = [], data_corpus.CorpusBatches.batch

    def batch(self, number, *part):
        if number > 0:  # the first is read before the first step too
            steps.append(number)
        if number == 7:
            signal.raise_signal(signal.SIGINT)
        return real(self, number, *part)

    monkeypatch.setattr(data_corpus.CorpusBatches, "batch", batch)
    with pytest.raises(KeyboardInterrupt):
        run(made(place), tmp_path / "run")
    assert steps == [1, 2, 3, 4, 5, 6, 7]
    run(made(place), tmp_path / "run")
    assert steps[7:] == [8, 9, 10, 11]
    mine, its = student(tmp_path / "run"), student(whole[0])
    for path, leaf in its.items():
        np.testing.assert_array_equal(mine[path], leaf, path)


def test_the_head_of_a_student_without_a_task_is_no_ones(whole):
    config, _ = bf.load_pretrained(whole[0] / "1-general" / "params")
    assert (config.num_hidden_layers, config.num_labels) == (1, 2)
    assert not (whole[0] / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(steps=None), "a number of steps"),
        (dict(keep="best"), "'last', for a corpus"),
        (dict(corpus=None), "the recipe has no data"),
        (dict(init=bf.Init(layers=(7,))), "layer 7"),
        (dict(corpus=bf.Corpus(source="none.txt")), "none.txt"),
    ],
)
def test_what_cannot_run_is_refused_at_once(place, tmp_path, changes, words):
    with pytest.raises((ConfigError, bf.errors.InputMissing), match=words):
        run(made(place, **changes), tmp_path / "run")


def test_a_text_longer_than_the_teacher_reads_is_refused(place, tmp_path):
    corpus = bf.Corpus(source=str(place / "text.txt"), length=64)
    with pytest.raises(ConfigError, match="only 16 positions"):
        run(made(place, corpus=corpus), tmp_path / "run")


def test_devices_share_a_corpus(whole, place, tmp_path):
    with tinyrun.devices(4):
        stages.run(made(place, steps=2, evals=1), tmp_path / "four")
    run(made(place, steps=2, evals=1), tmp_path / "one")
    mine, its = student(tmp_path / "four"), student(tmp_path / "one")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mine, its)


def ready(place, **teacher):
    loss = bf.weighted(logits=(1.0, bf.soft_labels))
    rows = tinyrun.write_task(place)
    stage = made(place).stages[0]
    return bf.Recipe(
        data=bf.Data(task=str(rows), max_length=16, batch_size=16),
        teacher=bf.Teacher(folder=str(place / "ready"), **teacher),
        stages=(stage, bf.Stage(name="task", loss=loss, epochs=1, evals=1)),
    )


@pytest.fixture(scope="module")
def folders(place):
    named = {"num_labels": 3, "id2label": dict(enumerate(tinyrun.KINDS))}
    tinyrun.write_teacher(place / "ready", **named)
    tinyrun.write_teacher(place / "shallow", layers=1)
    return place


def test_a_fine_tuned_folder_needs_what_it_was_before(folders, tmp_path):
    with pytest.raises(ConfigError, match=r"Teacher\.pretrained"):
        ready(folders)


def test_a_corpus_is_checked_against_the_pretrained_model(folders, tmp_path):
    made = ready(folders, pretrained=str(folders / "shallow"))
    with pytest.raises(ConfigError, match="no layer 1: there are 1"):
        run(made, tmp_path / "run")


def test_another_tokenizer_teaches_nothing(folders, tmp_path, monkeypatch):
    other = bf.Teacher(pretrained="minilm").pretrained
    made = ready(folders, pretrained=other)
    with pytest.raises(ConfigError, match="its tokenizer is not that of"):
        run(made, tmp_path / "run")


@pytest.mark.slow
def test_the_pretrained_model_of_a_folder_teaches_the_corpus(folders, tmp_path):
    rows = run(ready(folders, pretrained=str(folders / "teacher")), tmp_path / "run")
    assert [row.name for row in rows] == ["teacher", "general", "task"]
    assert rows[1].score is None
    hashes = json.loads((tmp_path / "run" / "recipe.json").read_text())["hashes"]
    named = {"data", "teacher", "corpus of general", "pretrained teacher"}
    assert hashes.keys() == named
