"""What a run refuses before its first step, and what it says."""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import bitflax as bf
from bitflax import training
from bitflax.data import Task, tasks
from bitflax.data.augmentation import augment
from bitflax.data.examples import Examples
from bitflax.errors import ConfigError, DataError, InputMissing, OutputError
from bitflax.recipe import describe
from bitflax.runs import experiment as runs_experiment
from bitflax.runs import folder as runs_folder
from bitflax.runs import prepare, results
from bitflax.types import Model
from tests.helpers import tinyrun


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a recipe, teachers, tasks."""
    folder = tmp_path_factory.mktemp("tiny")
    tinyrun.write_recipe(folder)
    tinyrun.write_teacher(folder / "pretrained")
    named = {"num_labels": 3, "id2label": dict(enumerate(tinyrun.KINDS))}
    tinyrun.write_teacher(folder / "ready", **named)
    tinyrun.write_teacher(folder / "unnamed", num_labels=3)
    tinyrun.write_teacher(folder / "two", id2label={0: "cold", 1: "hot"})
    tinyrun.write_teacher(folder / "real", num_labels=1, problem_type="regression")
    tinyrun.write_teacher(folder / "short", max_position_embeddings=8)
    (folder / "empty").mkdir()
    tinyrun.write_teacher(folder / "headless", **named)
    weights = folder / "headless" / "model.safetensors"
    state = safetensors.numpy.load_file(weights)
    kept = {name: x for name, x in state.items() if "classifier" not in name}
    safetensors.numpy.save_file(kept, weights, metadata={"format": "pt"})
    tinyrun.write_teacher(folder / "other", **named)
    words = (folder / "other" / "tokenizer.json").read_text()
    words = words.replace('"cat"', '"X"').replace('"dog"', '"cat"')
    (folder / "other" / "tokenizer.json").write_text(words.replace('"X"', '"dog"'))
    long = [
        (text, f"{i % 7}" + "x" * 200_000)
        for i, (text, _) in enumerate(tinyrun.texts())
    ]
    tinyrun.write_tsv(folder / "long.tsv", long)
    rows = tinyrun.texts()
    tinyrun.write_tsv(folder / "kinds.tsv", rows)
    tinyrun.write_tsv(folder / "bare.tsv", [(text,) for text, _ in rows], "text")
    holes = [(text, "" if i in (4, 9) else kind) for i, (text, kind) in enumerate(rows)]
    tinyrun.write_tsv(folder / "holes.tsv", holes)
    tinyrun.write_tsv(folder / "torn.tsv", [*rows[:5], ("alone",), *rows[5:]])
    tinyrun.write_tsv(folder / "one.tsv", [(text, "same") for text, _ in rows])
    return folder


@pytest.fixture
def refuse(place, tmp_path, monkeypatch):
    """Run and return the error; no step may be taken before it."""

    def step(*args, **kwargs):
        raise AssertionError("a step before the check")

    monkeypatch.setattr(runs_experiment.TaskData, "scorer", step)

    def run(error, *settings, out="run"):
        usual = (f"task={place / 'kinds.tsv'}", f"teacher={place / 'pretrained'}")
        settings = tuple(s.replace("PLACE", str(place)) for s in settings)
        with pytest.raises(error) as caught:
            tinyrun.run(place / "tiny.py", tmp_path / out, *usual, *settings)
        return caught.value

    return run


@pytest.mark.parametrize(
    ("settings", "error", "problem"),
    [
        (["task=PLACE/none.tsv"], InputMissing, "none.tsv"),
        (["task=glue/colla"], ConfigError, "expected a task's name"),
        (["task=PLACE/torn.tsv"], DataError, "torn.tsv:7: expected 2"),
        (["task=PLACE/holes.tsv"], DataError, "holes.tsv:6: expected a label"),
        (["task=PLACE/one.tsv"], DataError, "expected several classes"),
        (["data.label=kind"], DataError, "a column named 'kind'"),
        (["data.dev=PLACE/none.tsv"], InputMissing, "none.tsv"),
        (["teacher=PLACE/nowhere"], InputMissing, "no such folder"),
        (["teacher=PLACE/empty"], InputMissing, "empty"),
        (["ready=PLACE/two"], DataError, "a label in column 'label' (cold, hot)"),
        (["ready=PLACE/real"], DataError, "expected a real number"),
        (["ready=PLACE/real", "data.regression=false"], ConfigError, "real numbers"),
        (["task=PLACE/bare.tsv"], DataError, "bare.tsv:1: expected a column of labels"),
        (["data.dev=PLACE/bare.tsv"], DataError, "bare.tsv:1: expected a column of"),
        (["teacher=PLACE/short"], ConfigError, "max_position_embeddings is 8"),
        (["positions=17"], ConfigError, "expected at most 16, as the student has, fo"),
        (["teacher.epochs=0"], ConfigError, "neither an already fine-tuned folder"),
        (["stages.fp32.init.layers=5"], ConfigError, "stages.0 (fp32)"),
        (["ready=PLACE/headless"], ConfigError, "its classifier is missing"),
        (["stages.fp32.init.source=PLACE/other"], ConfigError, "other ids than"),
        (["task=PLACE/long.tsv"], ConfigError, "the header takes"),
        (["stages.fp32.optim.frozen=poler/.*"], ConfigError, "matches no parameter"),
        (["stages.fp32.optim.frozen=.*"], ConfigError, "(fp32).optim.frozen: freezes"),
        (["stages.onebit.optim.frozen=.*"], ConfigError, "(onebit).optim.frozen: fr"),
        (["teacher.optim.frozen=.*"], ConfigError, "teacher.optim.frozen: freezes"),
        (["teacher.optim.frozen=poler/.*"], ConfigError, "teacher.optim.frozen: rule"),
        (["stages.onebit.init.source=PLACE/nowhere"], InputMissing, "nowhere"),
    ],
)
def test_bad_input_is_named_before_the_first_step(refuse, settings, error, problem):
    found = refuse(error, *settings)
    assert problem in str(found)
    assert found.fix


def test_a_folder_of_other_things_is_no_run_folder(refuse, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").write_text("")
    assert "thesis.tex" in str(refuse(OutputError))


def test_a_loss_of_labels_needs_labels(refuse, place, tmp_path):
    recipe = (place / "tiny.py").read_text()
    text = recipe.replace("logits=(1.0, soft)", "labels=(1.0, bf.label_cross_entropy)")
    (place / "tiny.py").write_text(text)
    try:
        found = refuse(ConfigError, "task=PLACE/bare.tsv", "ready=PLACE/ready")
    finally:
        (place / "tiny.py").write_text(recipe)
    assert "labels" in str(found)


def test_all_that_a_loss_reads_may_not_be_frozen(refuse, place):
    recipe = (place / "tiny.py").read_text()
    (place / "tiny.py").write_text(recipe.replace("logits=(1.0, soft),", ""))
    try:
        frozen = "stages.0.optim.frozen=(encoder|embeddings)/.*"
        found = refuse(ConfigError, "ready=PLACE/ready", frozen)
    finally:
        (place / "tiny.py").write_text(recipe)
    assert "(fp32).optim.frozen: freezes all parameters that the loss" in str(found)


def test_whatever_comes_out_of_an_own_loss_is_the_recipes(refuse, place):
    recipe = (place / "tiny.py").read_text()
    text = recipe.replace("real = student.logits", "real = student.hidden[7]")
    assert text != recipe
    (place / "tiny.py").write_text(text)
    try:
        found = refuse(ConfigError)
    finally:
        (place / "tiny.py").write_text(recipe)
    assert "IndexError: tuple index out of range" in str(found)


def test_what_was_refused_can_be_mended_in_the_same_folder(refuse, place, tmp_path):
    refuse(DataError, "task=PLACE/holes.tsv")
    settings = (f"task={place / 'kinds.tsv'}", f"teacher={place / 'pretrained'}")
    with pytest.raises(AssertionError, match="a step before"):
        tinyrun.run(place / "tiny.py", tmp_path / "run", *settings)
    record = json.loads((tmp_path / "run" / "recipe.json").read_text())
    assert record["recipe"]["data"]["task"].endswith("kinds.tsv")


def test_default_label_names_are_matched_by_name():
    names = tuple(sorted(f"LABEL_{i}" for i in range(11)))  # LABEL_10 is the third
    texts = (np.array(["a"] * 11, object),)
    rows = Examples(texts, np.arange(11, dtype=np.int32), np.arange(11))
    config = bf.BertConfig(num_labels=11)
    task = prepare._in_order(Task("t", rows, rows, names, "accuracy"), config)
    assert task.labels == config.labels
    assert [task.labels[i] for i in task.dev.labels.tolist()] == [*names]


def test_a_teacher_without_label_names_counts_as_the_task_does(refuse):
    with pytest.raises(AssertionError):
        refuse(ConfigError, "ready=PLACE/unnamed")


def test_labels_that_differ_in_case_are_two_classes(place, tmp_path):
    apart = {"animal": "polish", "food": "Polish", "sky": "other"}
    rows = [(text, apart[kind]) for text, kind in tinyrun.texts()]
    file = tinyrun.write_tsv(tmp_path / "case.tsv", rows)
    settings = [f"task={file}", f"teacher={place / 'pretrained'}"]
    made = bf.load_recipe(place / "tiny.py", settings)
    with runs_folder.RunFolder(tmp_path / "run") as folder:
        folder.write_recipe("", describe.resolved(made))
        experiment = prepare.prepare(made, folder)
    task, teacher = experiment.task_data.task, experiment.teacher
    assert task.labels == teacher.config.labels == ("Polish", "other", "polish")
    said = {
        text: task.labels[i]
        for part in (task.train, task.dev)
        for text, i in zip(part.texts[0], part.labels, strict=True)
    }
    assert said == dict(rows)


def test_students_learn_augmented_examples_and_the_teacher_the_plain_ones(
    place, tmp_path
):
    rng = np.random.default_rng(0)
    words = sorted({word for text, _ in tinyrun.texts() for word in text.split()})
    rows = (" ".join([word, *map(str, rng.normal(size=4))]) for word in words)
    (tmp_path / "glove.txt").write_text("\n".join(rows) + "\n")
    task = tasks.load_task(place / "kinds.tsv")
    file = tmp_path / "more.jsonl"
    how = augment.Augment(vectors=str(tmp_path / "glove.txt"), copies=3)
    count = augment.write_augmented(task, file, how)
    assert count > len(task.train)
    dials = {"task": str(place / "kinds.tsv"), "teacher": str(place / "pretrained")}
    settings = [f"{name}={value}" for name, value in dials.items()]
    made = bf.load_recipe(place / "tiny.py", [*settings, f"data.augment={file}"])
    with runs_folder.RunFolder(tmp_path / "run") as folder:
        folder.write_recipe("", describe.resolved(made))
        experiment = prepare.prepare(made, folder)
    students, teachers = experiment.student_data, experiment.teacher_data
    assert (len(students.tokens), len(teachers.tokens)) == (count, len(task.train))
    assert len(students.task.train.labels) == count
    assert students.dev is teachers.dev
    first = students.tokens.lengths[0], teachers.tokens.lengths[0]
    assert first[0] == first[1]


def test_edits_are_for_students_and_train_no_longer(place, tmp_path, monkeypatch):
    # Three epochs of 54 examples, 16 a batch: 12 steps; with edits, 42.
    monkeypatch.setattr("bitflax.recipe.duration.LEAST", 10)
    monkeypatch.setattr("bitflax.recipe.duration.STEPS_A_CLASS", 5)
    dials = {"task": str(place / "kinds.tsv"), "teacher": str(place / "pretrained")}
    settings = [f"{name}={value}" for name, value in dials.items()]
    more = ["data.augment=edits", "stages.fp32.epochs=none"]
    made = bf.load_recipe(place / "tiny.py", [*settings, *more])
    with runs_folder.RunFolder(tmp_path / "run") as folder:
        folder.write_recipe("", describe.resolved(made))
        experiment = prepare.prepare(made, folder)
    students, teachers = experiment.student_data, experiment.teacher_data
    assert len(students.tokens) == 4 * len(teachers.tokens)
    (stage, *_) = made.stages
    taken = students.steps(stage, students.batches(1, stage))
    plain = teachers.batches(1, stage).steps_per_epoch
    assert taken == bf.default_steps(plain, classes=3) == 15
    said = describe.describe_recipe(made, None, students.task, teachers.task)
    assert f"{taken} steps ({round(taken / -(-54 // 16), 1):g} epochs)" in said


def test_where_the_teacher_is_quicker_its_outputs_are_not_kept(
    place, tmp_path, monkeypatch
):
    settings = [f"task={place / 'kinds.tsv'}", f"teacher={place / 'pretrained'}"]
    made = bf.load_recipe(place / "tiny.py", settings)
    asked = []

    def keeps(flop, size):
        asked.append((flop, size))
        return False

    monkeypatch.setattr(training, "keeps_outputs", keeps)
    with tinyrun.devices(1), runs_folder.RunFolder(tmp_path / "run") as folder:
        folder.write_recipe("", describe.resolved(made))
        experiment = prepare.prepare(made, folder)
        data, stage = experiment.task_data, made.stages[0]
        teacher = data.shrink(experiment.teacher)
        config, params = teacher
        half = dataclasses.replace(config, num_hidden_layers=1)
        student = Model(half, bf.take_layers(params, (1,)))
        batches = data.batches(1, stage)
        assert data.teacher_outputs(stage, teacher, student, batches) is None
    # Two layers of 32 x 32 four times and 32 x 64 twice; a student's step is three
    # passes of one.
    flop = 2 * batches.padded_tokens * (4 * 32**2 + 2 * 32 * 64) * (2 + 3 * 1)
    ((found, size),) = asked
    assert found == flop
    rows = np.array(batches.buckets)[batches.bucket]
    # Three logits, two hidden states, the scores of two heads.
    assert size == 4 * sum(3 + 2 * n * 32 + 2 * n * n for n in rows.tolist())


@pytest.mark.parametrize(
    ("cache_bytes", "memory", "fits", "said"),
    [
        (None, 4000, True, ""),
        (None, 3999, False, "take 1.000 GB, and 1.000 GB may be kept (cache_bytes)"),
        (10**9, 1000, True, ""),
        (10**15, 999, False, "fp32: the teacher's outputs take 1.000 GB, and 0.999"),
        (0, 4000, False, ""),
    ],
)
def test_outputs_larger_than_the_memory_are_not_kept_and_it_is_said(
    cache_bytes, memory, fits, said, monkeypatch, caplog
):
    monkeypatch.setattr(runs_experiment, "memory", lambda: memory * 10**6)
    caplog.set_level("INFO")
    data = object.__new__(runs_experiment.TaskData)
    data.kept_outputs = []
    stage = bf.Stage(name="fp32", loss=bf.soft_labels, cache_bytes=cache_bytes)
    assert data._fits(stage, 10**9) is fits
    assert said in caplog.text
    assert bool(said) == bool(caplog.text)


def test_a_loss_of_labels_finds_none_in_edits(place, tmp_path):
    dials = {"task": str(place / "kinds.tsv"), "teacher": str(place / "pretrained")}
    settings = [f"{name}={value}" for name, value in dials.items()]
    made = bf.load_recipe(place / "tiny.py", [*settings, "data.augment=edits"])
    loss = bf.weighted(labels=(1.0, bf.label_cross_entropy))
    stages = (dataclasses.replace(made.stages[0], loss=loss), *made.stages[1:])
    made = dataclasses.replace(made, stages=stages)
    with runs_folder.RunFolder(tmp_path / "run") as folder:
        folder.write_recipe("", describe.resolved(made))
        with pytest.raises(ConfigError, match="its loss reads 'labels'") as caught:
            prepare.prepare(made, folder)
    assert "--set data.augment=none" in caught.value.fix


def test_space_is_asked_for_what_is_not_written_yet(tmp_path):
    sizes = {"teacher": 9, "a": 100, "b": 10}
    shapes = {name: {"w": jnp.ones(size)} for name, size in sizes.items()}
    assert prepare._space(tmp_path, shapes, False) == 52 * 119
    assert prepare._space(tmp_path, shapes, True) == 52 * 110
    (tmp_path / "0-teacher").mkdir()
    (tmp_path / "0-teacher" / "result.json").write_text("{}")
    (tmp_path / "1-a" / "checkpoints").mkdir(parents=True)
    (tmp_path / "1-a" / "checkpoints" / "7").write_bytes(bytes(5000))
    assert prepare._space(tmp_path, shapes, False) == 52 * 110 - 5000


def test_an_unnamed_teacher_of_another_order_is_warned_of(place, monkeypatch, caplog):
    task = tasks.load_task(place / "kinds.tsv")
    data = object.__new__(runs_experiment.TaskData)
    data.task = task
    run = object.__new__(runs_experiment.Experiment)
    run.student_data = run.teacher_data = data
    right = np.eye(3)[task.dev.labels]
    results.check_order(run, right)
    assert not caplog.records
    results.check_order(run, right[:, [2, 0, 1]])
    (said,) = caplog.messages
    assert "in the order sky, animal, food it is right in 100.0% of dev" in said
    assert "\nfix: " in said
    assert "100.0% of dev" in data.task.notes[-1]


def test_more_bits_after_fewer_are_warned_of(place, tmp_path, caplog):
    settings = (f"task={place / 'kinds.tsv'}", f"teacher={place / 'pretrained'}")
    made = bf.load_recipe(place / "tiny.py", settings)
    fp32, onebit = made.stages
    first = dataclasses.replace(onebit, init=fp32.init)
    anew = dataclasses.replace(fp32, name="anew", init=bf.Init(source="teacher"))
    turned = dataclasses.replace(fp32, init=bf.Init())
    for stages, warned in (
        ((fp32, onebit), False),
        ((first, anew), False),
        ((first, turned), True),
    ):
        recipe = dataclasses.replace(made, stages=stages)
        with runs_folder.RunFolder(tmp_path / stages[1].name) as folder:
            folder.write_recipe("", describe.resolved(recipe))
            prepare.prepare(recipe, folder)
            said = [text for text in caplog.messages if text.startswith("stage ")]
            assert len(said) == len(folder.record["changes"]) == warned
    problem, fix = said[0].splitlines()
    assert problem == (
        "stage fp32 trains 32-bit weights, starting from the 1-bit ones of stage "
        "onebit, whose training is undone"
    )
    first, second = "put stages of fewer bits last", "give this one another init.source"
    assert fix == f"fix: {first}, or {second}"
    assert folder.record["changes"] == [f"{problem} ({fix})"]
