"""A run with an accelerator's choices: few programs, and the results of a processor's."""

import collections
import dataclasses
import json
import logging
import re

import jax
import pytest

import bitflax as bf
from bitflax import inference, training
from bitflax.data import tasks
from bitflax.inference import engines
from bitflax.training import ahead, device_choices, parallel
from tests.benchmarks import compile
from tests.helpers import tinyrun

SMALL = 20
"""Programs of a run besides those of the model."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accelerated")
    tinyrun.write_recipe(folder)
    tinyrun.write_teacher(folder / "pretrained")
    tinyrun.write_task(folder)
    return folder


def start(place, out):
    settings = (f"task={place / 'kinds.tsv'}", f"teacher={place / 'pretrained'}")
    return tinyrun.run(place / "tiny.py", out, *settings)


@pytest.fixture
def accelerator(monkeypatch):
    """One length of batches, the teacher in the steps, programs compiled ahead."""
    monkeypatch.setattr(device_choices, "compile_threads", lambda: 1)
    monkeypatch.setattr(training, "has_accelerator", lambda: True)
    monkeypatch.setattr(training, "keeps_outputs", lambda *given: False)
    monkeypatch.setattr(engines, "_has_accelerator", lambda: True)
    for module in (training, engines):
        monkeypatch.setattr(module, "shape_tokens", lambda *given: 10**9)


@pytest.mark.slow
def test_a_run_has_six_large_programs(place, tmp_path, accelerator, caplog):
    jax.clear_caches()  # what other tests have compiled
    jax.config.update("jax_log_compiles", True)  # in all threads
    try:
        with caplog.at_level(logging.WARNING):
            rows = start(place, tmp_path)
    finally:
        jax.config.update("jax_log_compiles", False)
    said = "\n".join(caplog.messages)
    made = collections.Counter(re.findall(r"Finished XLA compilation of (\S+)", said))
    assert (made.pop("jit(step)"), made.pop("jit(logits)")) == (3, 3)
    assert sum(made.values()) <= SMALL, made
    # The engine of a processor reads the file, and says the same.
    task = tasks.load_task(place / "kinds.tsv")
    assert inference.load(tmp_path, "jax").score(task)["accuracy"] == rows[-1].score
    kept = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert "jax" not in [each["engine"] for each in kept["latency"]]


@pytest.mark.slow
def test_the_benchmark_compiles_the_large_programs_of_a_run(
    place, tmp_path, accelerator, monkeypatch
):
    made, begin = [], ahead.Program.begin

    def noted(program, pool):
        if program.begun is None:
            made.append((program.function.function, program.args))
        begin(program, pool)

    monkeypatch.setattr(ahead.Program, "begin", noted)
    start(place, tmp_path)
    settings = [f"task={place / 'kinds.tsv'}", f"teacher={place / 'pretrained'}"]
    plan = bf.load_recipe(place / "tiny.py", settings)
    config, _ = bf.load_pretrained(tmp_path / "0-teacher" / "params")
    state, _, batch = made[0][1]  # the teacher's step
    words = len(state.params["embeddings"]["word"]["embedding"])
    config = dataclasses.replace(config, vocab_size=words)
    task = tasks.load_task(place / "kinds.tsv")
    examples, dev = len(task.train), len(task.dev)
    sizes = (*batch["input_ids"].shape, examples, dev)
    known = compile.Programs(parallel.mesh(jax.devices()[:1]), plan, config, *sizes)
    known = [each for each in known if not each[0].startswith("values")]

    def text(fn, args):
        # A step of one process is not told where a batch lies, as `Programs` does.
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), args[-1])
        return fn.lower(*args[:-1], batch).as_text()

    assert len(known) == len(made)
    for (name, *its), run in zip(known, made, strict=True):
        assert text(*its) == text(*run), name


def with_fewer_positions(recipe):
    data = dataclasses.replace(recipe.data, max_length=8)
    return dataclasses.replace(recipe, data=data, positions=12)


def with_a_narrow_student(recipe):
    shape = bf.Shape(
        num_hidden_layers=1,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=24,
    )
    fp32, onebit = recipe.stages
    fp32 = dataclasses.replace(fp32, init=bf.Init(shape=shape))
    return dataclasses.replace(recipe, stages=(fp32, onebit))


@pytest.mark.slow
@pytest.mark.parametrize("change", [with_fewer_positions, with_a_narrow_student])
def test_a_file_of_other_shapes_than_its_student_is_scored(
    change, place, tmp_path, accelerator
):
    settings = [f"task={place / 'kinds.tsv'}", f"teacher={place / 'pretrained'}"]
    recipe = change(bf.load_recipe(place / "tiny.py", settings))
    rows = bf.run(recipe, tmp_path / "run")
    task = tasks.load_task(place / "kinds.tsv")
    score = inference.load(tmp_path / "run", "jax").score(task)["accuracy"]
    assert score == rows[-1].score
