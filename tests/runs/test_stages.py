"""Whole runs of a tiny teacher: what they write, and that they go on where they stop."""

import json
import shutil
import signal

import jax
import numpy as np
import pytest

import bitflax as bf
from bitflax import runs, trees
from bitflax.data import batches, examples, metrics, tasks
from bitflax.errors import ConfigError, DamagedFile, UsageError
from bitflax.inference import predictor as inference_predictor
from bitflax.inference import provenance
from bitflax.model import pretrained
from bitflax.packed import file, packing, rounding
from bitflax.runs import log, stages, tensorboard
from tests.helpers import tinyrun
from tests.runs import test_log

NAMES = ["teacher", "fp32", "onebit", "packed"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a recipe, a pretrained teacher and a task."""
    folder = tmp_path_factory.mktemp("tiny")
    tinyrun.write_recipe(folder)
    tinyrun.write_teacher(folder / "pretrained")
    tinyrun.write_task(folder)
    return folder


def start(place, out, *settings, task="kinds.tsv", **options):
    """Run the tiny recipe; later settings win over the usual ones."""
    usual = (f"task={place / task}", f"teacher={place / 'pretrained'}")
    return tinyrun.run(place / "tiny.py", out, *usual, *settings, **options)


@pytest.fixture(scope="module")
def whole(place):
    """A run that nobody interrupted, and its rows."""
    rows = start(place, place / "whole")
    return place / "whole", rows


def report(out):
    return json.loads((out / "report.json").read_text())


def result(out):
    return (out / "model.safetensors").read_bytes()


def ready(whole):
    return f"ready={whole[0] / '0-teacher' / 'params'}"


def test_a_run_writes_its_folder(whole):
    out, _ = whole
    names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    assert names == {
        "recipe.py",
        "recipe.json",
        "log.jsonl",
        "tensorboard",
        "cache",
        "0-teacher",
        "1-fp32",
        "2-onebit",
        "model.safetensors",
        "report.html",
        "report.json",
    }
    for stage in ("0-teacher", "1-fp32", "2-onebit"):
        kept = {path.name for path in (out / stage / "params").iterdir()}
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= kept
    record = json.loads((out / "recipe.json").read_text())
    assert record["hashes"].keys() == {"data", "teacher"}
    assert "jax" in record["versions"]
    assert (out / "recipe.py").read_text().startswith('"""A tiny run')


def test_the_report_is_of_the_form_that_others_read(whole):
    found = report(whole[0])
    more = {"kept_above_chance", "baselines", "dev", "warnings"}
    more |= {"name", "notes", "repeat", "findings"}
    assert found.keys() == {"task", "metric", "stages"} | more
    assert found["metric"] == "accuracy"
    fields = {"name", "score", "kept", "bits", "bytes", "seconds"}
    assert [row["name"] for row in found["stages"]] == NAMES
    assert all(row.keys() == fields for row in found["stages"])
    assert [row["bits"] for row in found["stages"]] == [32, 32, 1, 1]
    teacher, fp32, onebit, packed = found["stages"]
    assert teacher["kept"] == 1.0
    assert teacher["score"] > 0.8
    assert packed["kept"] == pytest.approx(packed["score"] / teacher["score"])
    assert packed["bytes"] == len(result(whole[0]))
    assert onebit["bytes"] is None
    assert fp32["bytes"] < teacher["bytes"]


def test_what_is_frozen_stays_and_counts_in_no_norm(whole, place, tmp_path):
    table, norms = "embeddings/word/embedding", []
    short = (ready(whole), "stages.fp32.steps=1", "stages.onebit.steps=1")
    for out, frozen in ((tmp_path / "all", ""), (tmp_path / "held", table)):
        start(place, out, *short, f"stages.onebit.optim.frozen={frozen}")
        lines = log.read_log(out / "log.jsonl")
        norms += [line["loss/grad_norm"] for line in lines if "loss/logits" in line]
    assert norms[0] == norms[2]
    assert norms[1] > norms[3]
    folders = (tmp_path / "held" / name / "params" for name in ("1-fp32", "2-onebit"))
    before, after = (bf.load_pretrained(folder)[1] for folder in folders)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before, after)
    assert [p for p, m in trees.flatten(moved).items() if not m] == [table]


def test_an_accelerator_compiles_stages_ahead(whole, place, tmp_path, monkeypatch):
    missing = tinyrun.compile_ahead(monkeypatch)
    start(place, tmp_path, ready(whole))
    assert missing == []
    found, expected = (
        [line | {"time": 0} for line in log.read_log(out / "log.jsonl")]
        for out in (tmp_path, whole[0])
    )
    assert found == [line for line in expected if line["stage"] != "0-teacher"]
    assert result(tmp_path) == result(whole[0])


def test_tensorboard_shows_latent_weights_and_what_was_run(whole):
    folder = whole[0] / "tensorboard"
    seen = test_log.summaries(folder / "2-onebit")
    found = {step: v.histo for step, v in seen if v.tag == "weights/layer_0"}
    first, last = (found[step] for step in sorted(found))
    assert min(found) == 0
    assert first.sum_squares != last.sum_squares
    # A stage begins with what the one before it ended with.
    for histo, stage in ((first, "1-fp32"), (last, "2-onebit")):
        params = pretrained.load_pretrained(whole[0] / stage / "params", seed=None)[1]
        values = np.float64(dict(tensorboard._by_layer(params))["layer_0"])
        assert histo.num == values.size
        assert histo.max == pytest.approx(values.max(), rel=1e-6)
        assert histo.sum_squares == pytest.approx(np.square(values).sum(), rel=1e-5)
    texts = {v.tag: v for _, v in test_log.summaries(folder / "report")}
    assert texts.keys() == {f"{n}/text_summary" for n in ("table", "command", "recipe")}
    (table,) = texts["table/text_summary"].tensor.string_val
    assert b"packed" in table


def test_what_a_run_returns_is_what_it_reports(whole):
    out, rows = whole
    assert [row.name for row in rows] == NAMES
    assert [row.score for row in rows] == [r["score"] for r in report(out)["stages"]]


def test_the_log_has_every_stage(whole):
    lines = log.read_log(whole[0] / "log.jsonl")
    for stage in ("0-teacher", "1-fp32", "2-onebit"):
        mine = [line for line in lines if line["stage"] == stage]
        assert any("dev/accuracy" in line for line in mine)
        assert any("loss/loss" in line for line in mine)
        steps = [line["step"] for line in mine if "loss/loss" in line]
        assert steps == sorted(set(steps))


def test_the_packed_file_predicts_what_the_last_stage_does(whole, place):
    out, rows = whole
    task = tasks.load_task(place / "kinds.tsv")
    predictor = inference_predictor.load(out)
    assert predictor.score(task)["accuracy"] == rows[-1].score
    assert predictor.max_length == 16
    config, params = pretrained.load_pretrained(out / "2-onebit" / "params")
    values = rounding.stored(params, bf.xtc_1bit())
    plain = inference_predictor.Predictor(
        config, values, tinyrun.tokenizer(), bf.symmetric(bits=8)
    )
    texts = list(task.dev.texts[0])
    said = [found.label for found in predictor.predict(texts)]
    before = [found.label for found in plain.predict(texts)]
    moved = sum(a != b for a, b in zip(said, before, strict=True))
    assert moved <= 1
    right = np.array(task.labels)[task.dev.labels]
    assert np.mean(np.array(before) == right) == rows[-2].score


@pytest.mark.slow
def test_a_packed_file_may_keep_fewer_positions(whole, place, tmp_path):
    settings = (ready(whole), "data.max_length=12", "positions=12")
    rows = start(place, tmp_path / "run", *settings)
    found = file.read_packed(tmp_path / "run" / "model.safetensors")
    assert found.config.max_position_embeddings == 12
    task = tasks.load_task(place / "kinds.tsv")
    score = inference_predictor.load(tmp_path / "run").score(task)
    assert score["accuracy"] == rows[-1].score
    _, params = pretrained.load_pretrained(tmp_path / "run/2-onebit/params")
    whole = packing.unpack(packing.pack(params, bf.xtc_1bit()))
    path = "embeddings/position/embedding"
    table = trees.flatten(packing.unpack(found.params))[path]
    np.testing.assert_array_equal(table, trees.flatten(whole)[path][:12])


def test_the_packed_file_says_where_it_comes_from(whole):
    out, rows = whole
    found = provenance.from_extras(file.read_packed(out / "model.safetensors").extras)
    assert (found.recipe, found.task, found.metric) == ("tiny", "kinds.tsv", "accuracy")
    assert found.teacher is None  # a folder on this machine
    assert [stage.name for stage in found.stages] == NAMES
    assert [stage.score for stage in found.stages] == [row.score for row in rows]
    assert found.stages[0].bytes == rows[0].bytes
    said = provenance.from_run(out)
    assert said.stages[:3] == found.stages[:3]
    assert said.stages[3].bytes == len(result(out))


def test_a_finished_run_is_left_alone(whole, place, capsys):
    out, _ = whole
    before = {
        p: p.stat().st_mtime_ns for p in out.rglob("*") if p.name == "report.json"
    }
    before |= {p: p.stat().st_mtime_ns for p in out.rglob("*.safetensors")}
    assert start(place, out) == []
    assert "is finished" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_another_recipe_is_refused(whole, place):
    with pytest.raises(ConfigError, match=r"epochs was 4, is 3 now"):
        start(place, whole[0], "epochs=3")


def test_other_data_are_refused(whole, place, tmp_path):
    task = tinyrun.write_tsv(tmp_path / "mine.tsv", tinyrun.texts())
    shutil.copytree(whole[0] / "0-teacher" / "params", tmp_path / "hf")
    settings = (f"task={task}", f"ready={tmp_path / 'hf'}")
    start(place, tmp_path / "run", *settings, until="fp32")
    tinyrun.write_tsv(task, tinyrun.texts(seed=1))
    with pytest.raises(ConfigError, match=r"began with other data: train was '54 ro"):
        start(place, tmp_path / "run", *settings)
    tinyrun.write_tsv(task, tinyrun.texts())
    config = tmp_path / "hf" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(ConfigError, match=r"teacher: config\.json was '") as caught:
        start(place, tmp_path / "run", *settings)
    assert caught.value.place == str(tmp_path / "hf")


def test_a_balanced_teacher_learns_every_class_as_much():
    labels = np.array([0, 0, 0, 0, 1, 2], np.int32)
    texts = (np.array(["a"] * 6, object),)
    train = examples.Examples(texts, labels, np.arange(6))
    task = examples.Task("t", train, train, ("x", "y", "z"), "accuracy")
    loss = stages.label_loss(bf.Teacher(balanced=True, smoothing=0.1), task)
    weights = loss.keywords["class_weights"]
    assert [n * w for n, w in zip((4, 1, 1), weights, strict=True)] == [2.0, 2.0, 2.0]
    assert loss.keywords["smoothing"] == 0.1
    assert stages.label_loss(bf.Teacher(), task) is bf.label_cross_entropy


def test_until_stops_and_the_next_run_goes_on(whole, place, tmp_path):
    out = tmp_path / "run"
    for stage, made in (("teacher", 1), ("fp32", 2)):
        rows = start(place, out, until=stage)
        assert [row.name for row in rows] == NAMES[:made]
        assert len(list(out.glob("?-*"))) == made
        assert not (out / "report.json").exists()
    rows = start(place, out, until="onebit")
    assert [row.name for row in rows] == NAMES
    assert result(out) == result(whole[0])


def slowly(number):
    """A stage of which later ones are tested too."""
    return pytest.param(number, marks=pytest.mark.slow)


def stop_at(monkeypatch, number, step, how):
    """Stop a stage while it fetches the batch of a step, once."""
    real, stopped = batches.Batches.batch, []

    def batch(self, at, *part):
        if self.seed == 1000 * number and at == step and not stopped:
            stopped.append(at)
            how()
        return real(self, at, *part)

    monkeypatch.setattr(batches.Batches, "batch", batch)


def begun(whole, out, number):
    """Copy the whole run as it was before a stage."""
    shutil.copytree(whole[0], out)
    later = [f"{i}-{NAMES[i]}" for i in range(number, 3)]
    for name in (".finished", "report.json", "report.html", "model.safetensors"):
        (out / name).unlink()
    for stage in later:
        shutil.rmtree(out / stage)
    lines = log.read_log(out / "log.jsonl")
    kept = [json.dumps(line) for line in lines if line["stage"] not in later]
    (out / "log.jsonl").write_text("".join(f"{line}\n" for line in kept))
    return out


def interrupt():
    signal.raise_signal(signal.SIGINT)


def fail():
    raise MemoryError("the machine went down")


@pytest.mark.parametrize("number", [*map(slowly, (0, 1)), 2])
def test_an_interrupted_stage_goes_on(whole, place, tmp_path, monkeypatch, number):
    out = begun(whole, tmp_path / "run", number)
    stop_at(monkeypatch, number, 3, interrupt)
    with pytest.raises(KeyboardInterrupt):
        start(place, out)
    stage = f"{number}-{NAMES[number]}"
    assert (out / stage / "checkpoints" / "4").is_dir()
    assert not (out / stage / "params").exists()
    rows = start(place, out)
    assert [row.score for row in rows] == [row.score for row in whole[1]]
    assert result(out) == result(whole[0])


@pytest.mark.parametrize("number", [slowly(1), 2])
def test_a_stage_that_died_starts_again(whole, place, tmp_path, monkeypatch, number):
    out = begun(whole, tmp_path / "run", number)
    stop_at(monkeypatch, number, 5, fail)
    with pytest.raises(MemoryError):
        start(place, out)
    start(place, out)
    assert result(out) == result(whole[0])


def test_a_run_that_died_at_its_end_goes_on(whole, place, tmp_path, monkeypatch):
    shutil.copytree(whole[0], tmp_path / "run")
    for name in (".finished", "report.json", "report.html"):
        (tmp_path / "run" / name).unlink()
    start(place, tmp_path / "run")
    assert report(tmp_path / "run")["stages"][:-1] == report(whole[0])["stages"][:-1]
    assert result(tmp_path / "run") == result(whole[0])


def test_two_devices_give_the_same_run(whole, place, tmp_path):
    rows = start(place, tmp_path / "run", until="teacher", count=2)
    mine, theirs = (
        pretrained.load_pretrained(out / "0-teacher" / "params")[1]
        for out in (tmp_path / "run", whole[0])
    )
    for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(x, y, atol=5e-3)
    assert rows[0].score == whole[1][0].score


def losses(out, stage):
    lines = log.read_log(out / "log.jsonl")
    mine = [line for line in lines if line["stage"] == stage]
    return [line["loss/loss"] for line in mine if "loss/loss" in line]


@pytest.mark.slow
def test_what_a_stage_computes_with_is_its_own(whole, place, tmp_path):
    # 16 rows are no three equal parts: two more fill up.
    other = ("dtype=bfloat16", "recompute=true", "accumulate=3")
    settings = (ready(whole), *(f"stages.onebit.{field}" for field in other))
    start(place, tmp_path / "run", *settings)
    assert losses(tmp_path / "run", "1-fp32") == losses(whole[0], "1-fp32")
    found, expected = losses(tmp_path / "run", "2-onebit"), losses(whole[0], "2-onebit")
    assert found != expected
    np.testing.assert_allclose(found, expected, rtol=0.2)


def test_the_best_of_a_stage_is_kept(place, whole, tmp_path):
    start(place, tmp_path / "run", ready(whole), "keep=best", "epochs=8", "stages=1")
    lines = log.read_log(tmp_path / "run" / "log.jsonl")
    seen = [line["dev/accuracy"] for line in lines if "dev/accuracy" in line]
    assert len(seen) == 2
    _, fp32 = report(tmp_path / "run")["stages"]
    assert fp32["score"] == max(seen)


def test_a_run_that_ends_in_fp32_packs_nothing(place, whole, tmp_path):
    rows = start(place, tmp_path / "run", ready(whole), "stages=1")
    assert [row.name for row in rows] == ["teacher", "fp32"]
    assert not (tmp_path / "run" / "model.safetensors").exists()
    task = tasks.load_task(place / "kinds.tsv")
    assert (
        inference_predictor.load(tmp_path / "run").score(task)["accuracy"]
        == rows[-1].score
    )


def test_a_teacher_alone_is_a_run(place, whole, tmp_path):
    rows = start(place, tmp_path / "run", "stages=0")
    assert [row.name for row in rows] == ["teacher"]
    assert rows[0].score == whole[1][0].score
    assert start(place, tmp_path / "run", "stages=0") == []


def reordered(whole, folder):
    """Write the fine-tuned teacher with its labels in another order."""
    config, params = pretrained.load_pretrained(whole[0] / "0-teacher" / "params")
    names = [config.labels[i] for i in (2, 0, 1)]
    config, params = pretrained.load_pretrained(
        whole[0] / "0-teacher" / "params", id2label=names
    )
    assert list(config.labels) == names
    pretrained.save_pretrained(folder, config, params, tinyrun.tokenizer())
    return folder


def test_a_ready_teacher_scores_whatever_its_labels_order(whole, place, tmp_path):
    turned = reordered(whole, tmp_path / "turned")
    rows = start(place, tmp_path / "run", f"ready={turned}", "epochs=1")
    assert rows[0].score == whole[1][0].score
    predictor = inference_predictor.load(tmp_path / "run")
    assert predictor.config.labels == ("sky", "animal", "food")
    task = tasks.load_task(place / "kinds.tsv")
    assert predictor.score(task)["accuracy"] == rows[-1].score


def test_texts_without_labels_train(whole, place, tmp_path):
    rows = [(text,) for text, _ in tinyrun.texts()]
    task = tinyrun.write_tsv(tmp_path / "bare.tsv", rows, "text")
    out = tmp_path / "run"
    found = start(place, out, ready(whole), f"task={task}")
    assert report(out)["metric"] == "agreement"
    assert found[0].score == 1.0
    labelled = tasks.load_task(place / "kinds.tsv")
    texts = list(labelled.dev.texts[0])
    teacher = inference_predictor.load(whole[0] / "0-teacher" / "params").predict(texts)
    student = inference_predictor.load(out).predict(texts)
    same = [a.label == b.label for a, b in zip(teacher, student, strict=True)]
    assert found[-1].score == np.mean(same)


def test_bare_texts_are_measured_by_a_labelled_dev_file(whole, place, tmp_path):
    rows = [(text,) for text, _ in tinyrun.texts()]
    task = tinyrun.write_tsv(tmp_path / "bare.tsv", rows, "text")
    dev = tinyrun.write_tsv(tmp_path / "dev.tsv", tinyrun.texts(20, seed=5))
    settings = (f"task={task}", f"data.dev={dev}", ready(whole), "epochs=1")
    start(place, tmp_path / "run", *settings, "stages=1")
    assert report(tmp_path / "run")["metric"] == "accuracy"


REAL = {"animal": 0.5, "food": 2.25, "sky": 4.0}


@pytest.mark.slow
def test_real_numbers_train(place, tmp_path):
    rows = [(text, REAL[kind]) for text, kind in tinyrun.texts()]
    task = tinyrun.write_tsv(tmp_path / "real.tsv", rows)
    found = start(place, tmp_path / "run", f"task={task}", "epochs=4")
    assert report(tmp_path / "run")["metric"] == "pearson_spearman"
    assert found[0].score > 0.7
    predictor = inference_predictor.load(tmp_path / "run")
    assert predictor.config.regression
    task = tasks.load_task(task)
    assert predictor.score(task)["pearson_spearman"] == pytest.approx(found[-1].score)
    assert isinstance(predictor.predict(["the old cat"])[0].label, float)


@pytest.mark.slow
def test_bare_texts_learn_real_numbers_of_a_ready_teacher(place, tmp_path):
    teacher = tinyrun.write_teacher(
        tmp_path / "real", num_labels=1, problem_type="regression"
    )
    rows = [(text,) for text, _ in tinyrun.texts()]
    task = tinyrun.write_tsv(tmp_path / "bare.tsv", rows, "text")
    found = start(place, tmp_path / "run", f"task={task}", f"ready={teacher}")
    assert found[0].score == pytest.approx(1.0)
    assert report(tmp_path / "run")["metric"] == "agreement"


@pytest.mark.slow
def test_pairs_train(place, tmp_path):
    words = [text for text, _ in tinyrun.texts()]
    kinds = [kind for _, kind in tinyrun.texts()]
    rows = [
        (words[i], words[i - j], int(kinds[i] == kinds[i - j]))
        for i in range(len(words))
        for j in (1, 3)
    ]
    header = "sentence1\tsentence2\tlabel"
    task = tinyrun.write_tsv(tmp_path / "pairs.tsv", rows, header)
    found = start(place, tmp_path / "run", f"task={task}", "epochs=1")
    predictor = inference_predictor.load(tmp_path / "run")
    assert predictor.predict([("the old cat", "a red dog")])[0].label in ("0", "1")
    assert predictor.score(tasks.load_task(task))["accuracy"] == found[-1].score


def test_the_metric_of_a_stage_is_that_of_its_own_parameters(whole, place):
    out, rows = whole
    task = tasks.load_task(place / "kinds.tsv")
    predictor = inference_predictor.load(out / "1-fp32" / "params")
    said = metrics.predictions(predictor.logits(list(task.dev.texts[0])))
    assert metrics.score("accuracy", said, task.dev.labels)["accuracy"] == rows[1].score


def test_a_stage_that_does_not_exist_is_said(place, tmp_path):
    with pytest.raises(UsageError, match="no such stage"):
        start(place, tmp_path / "run", until="onebits")
    assert not (tmp_path / "run").exists()


def test_a_page_that_is_drawn_anew_leaves_the_run_finished(
    whole, place, tmp_path, capsys
):
    out = tmp_path / "run"
    shutil.copytree(whole[0], out)
    page = out / "report.html"
    page.write_text(page.read_text() + " ")
    with pytest.raises(DamagedFile, match="not what was written"):
        start(place, out)
    runs.draw_report([out], None)
    assert start(place, out) == []
    assert "is finished" in capsys.readouterr().err
    json_ = out / "report.json"
    json_.write_text(json_.read_text() + " ")
    runs.draw_report([out], None)
    with pytest.raises(DamagedFile, match=r"report\.json"):
        start(place, out)
