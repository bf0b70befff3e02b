"""Many processes are one run: the same numbers, the same end, whoever is stopped."""

import functools
import os
import signal
import time

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from bitflax.errors import HostLost, UsageError
from bitflax.runs import log as runs_log
from bitflax.training import hosts, lost_process
from tests.helpers import hosted, tinyrun

PLACE = "10.0.0.1:8476"
RECIPE = '''
"""A teacher and a corpus, six rows a batch."""

import functools

import bitflax as bf


def recipe(*, task: str, teacher: str, text: str) -> bf.Recipe:
    loss = bf.weighted(
        hidden=(1.0, functools.partial(bf.hidden_mse, pairs=((0, 0), (1, 2)))),
        scores=(1.0, functools.partial(bf.score_mse, pairs=((0, 1),))),
    )
    corpus = bf.Corpus(source=text, length=12, batch_size=6)
    general = bf.Stage(name="general", init=bf.Init(layers=(1,)), corpus=corpus,
                       loss=loss, optim=bf.Optim(lr=1e-3), steps=20, evals=2)
    return bf.Recipe(
        data=bf.Data(task=task, max_length=16, batch_size=6),
        teacher=bf.Teacher(pretrained=teacher, epochs=1),
        stages=(general,),
    )
'''


# ---------------------------------------------------------------------- one process


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ((PLACE, None, None), "--processes and --process: not given"),
        ((None, 2, 0), "--coordinator: not given"),
        ((PLACE, 2, None), "--process: not given"),
        (("10.0.0.1", 2, 0), "expected HOST:PORT, found '10.0.0.1'"),
        (("host:99999", 2, 0), "expected HOST:PORT, found 'host:99999'"),
        (("host:port", 2, 0), "expected HOST:PORT, found 'host:port'"),
        ((PLACE, 0, 0), "--processes: expected 1 or more, found 0"),
        ((PLACE, 2, 2), "--process: expected 0 to 1, found 2"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, problem):
    with pytest.raises(UsageError, match=problem):
        hosts.initialize(*options)


def test_it_comes_before_any_computation():
    jax.numpy.ones(1)
    with pytest.raises(UsageError, match="must be called before any JAX calls"):
        hosts.initialize(PLACE, 2, 0)


def test_a_place_where_nobody_listens_is_named(monkeypatch, caplog):
    caplog.set_level("INFO", "bitflax")
    monkeypatch.setattr(hosts, "REACH_SECONDS", 0.1)
    place = f"127.0.0.1:{hosted.free_port()}"
    with pytest.raises(UsageError, match=f"process 0 is not reached at {place}"):
        hosts.initialize(place, 2, 1)
    assert caplog.messages == [f"process 1 of 2 waits for the others at {place}"]


def test_alone_nothing_happens():
    hosts.initialize()
    hosts.initialize(PLACE, 1, 0)
    assert not jax.distributed.is_initialized()
    assert hosts.process_part() == (0, 1)
    assert hosts.broadcast(lambda: (1, "as it is")) == (1, "as it is")
    hosts.barrier()


def test_slurm_and_open_mpi_say_by_themselves_who_takes_part(monkeypatch):
    called = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda *a, **k: called.append(a))
    monkeypatch.setattr(lost_process, "watch", lambda: called.append("watched"))
    names = ("JOB_ID", "STEP_NODELIST", "PROCID", "LOCALID")
    for name in names:
        monkeypatch.setenv(f"SLURM_{name}", "1")
    monkeypatch.setenv("SLURM_NTASKS", "1")
    hosts.initialize()
    assert called == []
    monkeypatch.setenv("SLURM_NTASKS", "2")
    before = signal.getsignal(signal.SIGTERM)
    hosts.initialize()
    assert called == [(None, None, None), "watched"]
    assert signal.getsignal(signal.SIGTERM) is before


# ------------------------------------------------------------------- many processes


@functools.cache
def here(kind, steps):
    """Return the parameters that one process trains."""
    step, state, teacher, batch = hosted.student(kind)
    step = jax.jit(step)
    for number in range(steps):
        state, _ = step(state, teacher, batch(number))
    return jax.device_get(jax.tree.leaves(state.params))


ALL = ("pmap 1-bit", "shard_map fp32", "shard_map 1-bit")


@pytest.mark.parametrize(
    ("count", "students"),
    [
        (2, ("shard_map linear",)),
        pytest.param(2, ALL, marks=pytest.mark.slow),
        pytest.param(4, ALL[1:], marks=[pytest.mark.slow, pytest.mark.long]),
    ],
    ids=["linear", "two", "four"],
)
def test_processes_train_as_one(count, students, tmp_path):
    steps, place = 20, f"127.0.0.1:{hosted.free_port()}"
    base = ["-m", "tests.helpers.hosted", place, count]
    commands = [[*base, i, steps, tmp_path, *students] for i in range(count)]
    with hosted.Processes(commands, tmp_path, fresh=True) as processes:
        assert processes.statuses() == [0] * count, processes.said(0)
    for name in students:
        expected = here(name.split()[1], steps)
        for process in range(count):
            with np.load(tmp_path / f"{name}-{process}.npz") as found:
                for number, leaf in enumerate(expected):
                    assert np.abs(found[f"arr_{number}"] - leaf).max() < 1e-5


# ----------------------------------------------------------------------- whole runs


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a recipe, a pretrained teacher, a task and a text."""
    folder = tmp_path_factory.mktemp("hosts")
    tinyrun.write_recipe(folder)
    tinyrun.write_teacher(folder / "pretrained")
    tinyrun.write_task(folder)
    (folder / "many.py").write_text(RECIPE.lstrip())
    lines = [f"{text}\n" for text, _ in tinyrun.texts(150, seed=1)]
    (folder / "text.txt").write_text("".join(lines))
    return folder


RATES = ("rest=float32", "stages.fp32.optim.lr=1e-3", "stages.onebit.optim.lr=1e-3")
# Adam moves a number whose gradient is mere rounding as far as any other.
RATES += tuple(
    f"{stage}.optim.eps=1e-4" for stage in ("teacher", "stages.fp32", "stages.onebit")
)
# Twenty steps a stage, 64 for the teacher: who is stopped once the log begins, at step
# 20, is stopped there. What a packed file rounds to 16 bits would turn 1e-7 into 5e-4
# where it falls between two numbers.
SETTINGS = ("teacher.epochs=16", "epochs=5", *RATES)
LONG = ("teacher.epochs=6", "epochs=500", *RATES)


def command(place, out, *settings, task=None, recipe="tiny.py"):
    task = task or place / "kinds.tsv"
    usual = (f"task={task}", f"teacher={place / 'pretrained'}")
    options = [x for text in (*usual, *settings) for x in ("--set", text)]
    return ["run", place / recipe, "--out", out, *options]


def run(place, out, count, *settings, fresh=False, **options):
    """Run to the end on so many processes."""
    base = command(place, out, *settings, **options)
    base = ["-m", "bitflax.cli", *base] if fresh else base
    extra = hosted.together(count) if count > 1 else [[]]
    logs = out.with_name(f"{out.name}.logs")
    with hosted.Processes([base + e for e in extra], logs, fresh=fresh) as processes:
        assert processes.statuses() == [0] * count, processes.said(0)
        return [path.read_text() for path in processes.outputs]


def weights(out, stage):
    return load_file(out / stage / "params" / "model.safetensors")


def assert_agree(out, whole, stages=("0-teacher", "1-fp32", "2-onebit")):
    for stage in stages:
        expected = weights(whole, stage)
        for name, found in weights(out, stage).items():
            assert np.abs(found - expected[name]).max() < 1e-5, (stage, name)


@pytest.fixture(scope="module")
def whole(place):
    """The folder of a run by one process."""
    run(place, place / "whole", 1, *SETTINGS)
    return place / "whole"


@pytest.mark.slow
def test_a_run_on_two_processes_is_the_run_on_one(place, whole):
    out = place / "on2"
    # As a shell starts them; all others are forked.
    printed = run(place, out, 2, *SETTINGS, fresh=True)
    assert "packed" in printed[0]
    assert all("teacher" not in text for text in printed[1:])  # process 0 alone writes
    assert_agree(out, whole)
    size = os.path.getsize(whole / "model.safetensors")
    assert os.path.getsize(out / "model.safetensors") == pytest.approx(size, abs=200)
    lines = [(f / "log.jsonl").read_text().count("\n") for f in (out, whole)]
    assert lines[0] == lines[1]
    run(place, out, 2, *SETTINGS)  # finished: nothing to do


@pytest.mark.slow
def test_a_corpus_and_uneven_batches_on_many_processes(place):
    # Six rows over four processes: two rows that fill up.
    outs = place / "six1", place / "six4"
    for count, out in zip((1, 4), outs, strict=True):
        text = f"text={place / 'text.txt'}"
        run(place, out, count, text, recipe="many.py")
    assert_agree(outs[1], outs[0], ("0-teacher", "1-general"))
    logs = [runs_log.read_log(out / "log.jsonl") for out in outs]
    one, four = ([x["dev/loss"] for x in log if "dev/loss" in x] for log in logs)
    assert len(one) == 2
    assert four == pytest.approx(one, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_process_ends_the_others(victim, place):
    out = place / f"killed{victim}"
    base = command(place, out, *LONG)
    commands = [base + extra for extra in hosted.together(2)]
    with hosted.Processes(commands, place / f"k{victim}") as processes:
        processes.wait_for(out / "log.jsonl")
        processes.send(victim, signal.SIGKILL)
        began = time.monotonic()
        # jax itself may be first to end a process whose process 0 is gone: 0.7 by 1.
        by_jax = 1 if jax.__version_info__ < (0, 8) else -6
        assert processes.started[1 - victim].wait(30) in (HostLost.status, by_jax)
        assert time.monotonic() - began < 30
        said = processes.said(1 - victim)
    assert "another process is gone" in said or "another task died" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "then", "asked"),
    [
        (2, 1, 1),
        pytest.param(1, 4, 0, marks=pytest.mark.long),
        pytest.param(4, 2, 3, marks=pytest.mark.long),
    ],
)
def test_a_stopped_run_goes_on_with_other_processes(first, then, asked, place, whole):
    out = place / f"stopped{first}{then}"
    base = command(place, out, *SETTINGS)
    extra = hosted.together(first) if first > 1 else [[]]
    logs = out.with_name(f"{out.name}.first")
    with hosted.Processes([base + e for e in extra], logs) as processes:
        processes.wait_for(out / "log.jsonl")
        processes.send(asked, signal.SIGTERM)
        assert processes.statuses() == [143] * first, processes.said(0)
        assert "saved at step" in processes.said(0)
    run(place, out, then, *SETTINGS)
    assert_agree(out, whole)


@pytest.mark.slow
def test_other_data_on_one_process_end_all(place):
    places = [place / "a", place / "b"]
    for seed, folder in enumerate(places):
        folder.mkdir()
        tinyrun.write_tsv(folder / "kinds.tsv", tinyrun.texts(seed=seed))
    base = command(place, place / "odd", *SETTINGS, task="kinds.tsv")
    commands = [base + extra for extra in hosted.together(2)]
    with hosted.Processes(commands, place / "odd.logs", places) as processes:
        assert processes.statuses() == [78, 78], processes.said(0)
        for said in map(processes.said, range(2)):
            assert "process 1 differs from process 0: data was" in said
            assert "give all processes the same command and the same files" in said
        assert "process 1 failed" in processes.said(0)


@pytest.mark.slow
def test_another_command_on_one_process_ends_all(place):
    commands = [
        command(place, place / "other", f"epochs={5 + number}") + extra
        for number, extra in enumerate(hosted.together(2))
    ]
    with hosted.Processes(commands, place / "other.logs") as processes:
        assert processes.statuses() == [78, 78], processes.said(0)
        assert "stages.0.epochs was 5, is 6 here" in processes.said(0)


@pytest.mark.slow
def test_folders_that_are_not_shared_are_refused(place):
    commands = [
        command(place, place / f"own{i}", *SETTINGS) + more
        for i, more in enumerate(hosted.together(2))
    ]
    with hosted.Processes(commands, place / "own.logs") as processes:
        assert processes.statuses() == [73, 73]
        assert "not the folder that process 0 writes" in processes.said(0)
        assert "not the folder that process 0 writes" in processes.said(1)
