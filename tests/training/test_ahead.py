"""Programs that are compiled in threads: which, once, and what happens meanwhile."""

import functools
import os
import signal
import textwrap
import threading

import jax
import numpy as np
import pytest

import bitflax as bf
from bitflax.data import metrics
from bitflax.signals import WORDS
from bitflax.training import ahead, device_choices, evaluation
from tests import test_signals
from tests.helpers import small
from tests.training import test_loop
from tests.training.test_evaluation import CONFIG, tokens


class Watched:
    """A jitted function that says what is traced, compiled and called.

    Args:
      fn: to jit.
      compiling: called in the thread that compiles, before it does.
    """

    def __init__(self, fn, compiling=lambda rows: None, **options):
        self.jitted, self.compiling = jax.jit(fn, **options), compiling
        self.traced, self.made, self.called = [], [], []

    def lower(self, *args):
        self.traced.append(rows_of(args))
        assert threading.current_thread() is threading.main_thread()
        return Lowered(self, rows_of(args), self.jitted.lower(*args))

    def __call__(self, *args):
        self.called.append(rows_of(args))
        return self.jitted(*args)


class Lowered:
    def __init__(self, of, rows, lowered):
        self.of, self.rows, self.lowered = of, rows, lowered

    def compile(self):
        assert threading.current_thread() is not threading.main_thread()
        self.of.compiling(self.rows)
        self.of.made.append(self.rows)
        return self.lowered.compile()


def rows_of(args):
    return len(jax.tree.leaves(args[-1])[0])


def vector(rows):
    return jax.ShapeDtypeStruct((rows,), np.float32)


def doubled(function, *rows):
    return [ahead.Program(function, (vector(n),)) for n in rows]


def ones(rows):
    return np.ones(rows, np.float32)


def test_what_is_compiled_ahead_is_called_and_compiled_once():
    watched = Watched(lambda x: 2 * x)
    double = ahead.Ahead(watched)
    with ahead.Compilation(doubled(double, 2, 3), 1) as programs:
        list(programs.wait())
        for rows in (2, 3, 2, 4):
            np.testing.assert_array_equal(double(ones(rows)), 2 * ones(rows))
    assert (watched.traced, watched.made, watched.called) == ([2, 3], [2, 3], [4])


def test_what_is_needed_comes_first_and_others_are_traced_meanwhile():
    held = threading.Event()
    watched = Watched(lambda x: 2 * x, lambda rows: rows == 4 and held.wait(20))
    double = ahead.Ahead(watched)
    with ahead.Compilation(doubled(double, 2, 3, 4), 1) as programs:
        said = programs.wait(ones(4))
        assert next(said) == (1, 3)
        assert watched.traced == [4]
        assert next(said) == next(said) == next(said) == (1, 3)
        assert watched.traced == [4, 2, 3]
        held.set()
        for _ in said:
            pass
        list(programs.wait())
    assert watched.made == [4, 2, 3]
    assert watched.called == []


def test_two_threads_compile_two_programs():
    both = threading.Barrier(2)
    watched = Watched(lambda x: 2 * x, lambda rows: both.wait(20))
    double = ahead.Ahead(watched)
    with ahead.Compilation(doubled(double, 2, 3), 2) as programs:
        list(programs.wait())
    assert sorted(watched.made) == [2, 3]


def test_a_fault_of_the_compiler_is_raised_where_the_program_is_called():
    def fail(rows):
        raise jax.errors.JaxRuntimeError("INTERNAL: ptxas exited with code 15")

    double = ahead.Ahead(Watched(lambda x: 2 * x, fail))
    with ahead.Compilation(doubled(double, 2), 1) as programs:
        list(programs.wait())
        with pytest.raises(jax.errors.JaxRuntimeError, match="ptxas"):
            double(ones(2))


def test_what_was_left_is_compiled_as_it_is_called():
    held = threading.Event()
    watched = Watched(lambda x: 2 * x, lambda rows: held.wait(20))
    double = ahead.Ahead(watched)
    with ahead.Compilation(doubled(double, 2, 3), 1) as programs:
        programs.begin_next()
        programs.begin_next()
    held.set()
    assert double(ones(2))[0] == double(ones(3))[0] == 2
    assert (watched.made, watched.called) == ([2], [3])


def test_without_threads_nothing_is_ahead():
    watched = Watched(lambda x: 2 * x)
    double = ahead.Ahead(watched)
    with ahead.Compilation(doubled(double, 2), 0) as programs:
        programs.begin_next()
        assert (list(programs.wait()), programs.count) == ([], 0)
    assert double(ones(2))[0] == 2
    assert (watched.traced, watched.called) == ([], [2])


def test_what_stands_around_a_run_holds_in_its_programs(x64):
    double = ahead.Ahead(Watched(lambda x: 2.0 * x))
    shape = jax.ShapeDtypeStruct((2,), np.float64)
    with ahead.Compilation([ahead.Program(double, (shape,))], 1) as programs:
        list(programs.wait())
        assert double(np.ones(2)).dtype == np.float64


def no_call(*args):
    raise AssertionError("nothing of these shapes was compiled ahead")


@pytest.mark.parametrize("devices", [1, 4])
def test_scores_know_their_programs(devices, monkeypatch):
    mesh = bf.mesh(jax.devices()[:devices])
    batches = bf.data.Batches(
        tokens(), batch_size=16, seed=0, buckets=(8, 16), multiple_of=devices
    )

    def quantize(params):
        return jax.tree.map(lambda x: 0.5 * x, params)

    scores = functools.partial(metrics.score, "accuracy")
    given = (bf.bert(CONFIG), batches, None, scores, False, mesh, quantize)
    scorer, params = evaluation.Evaluator(*given), small.params(CONFIG)
    expected = scorer.logits(params)
    scorer = evaluation.Evaluator(*given)
    with ahead.Compilation(scorer.programs(params), 2) as programs:
        assert programs.count == 2
        list(programs.wait())
        (step,) = scorer._steps.values()
        step.function = no_call
        np.testing.assert_array_equal(scorer.logits(params), expected)


@pytest.mark.parametrize("devices", [1, 4])
def test_a_mapped_step_is_compiled_ahead_and_takes_its_state(devices):
    step, state = small.kd_step((), depth=2, layers=(1,))
    teacher = bf.take_layers(small.teacher_params(), (0, 1))
    mesh, batch = bf.mesh(jax.devices()[:devices]), small.batch(8, 0)
    function = ahead.Ahead(bf.data_parallel(step, mesh))
    state, teacher = bf.training.replicate((state, teacher), mesh)
    args = ahead.described((state, teacher, batch))
    with ahead.Compilation([ahead.Program(function, args)], 1) as programs:
        list(programs.wait())
    function.function = no_call
    for _ in range(2):  # what comes out goes in again
        before = state
        state, metrics = function(state, teacher, batch)
        jax.block_until_ready(metrics)
    assert jax.tree.leaves(before.params)[0].is_deleted()
    assert int(state.step) == 2


def two_lengths(number):
    """Return the loop's batches, of which some have a row less from the fifth on."""
    batch = test_loop.a_batch(number)
    return {name: x[: 5 if number >= 4 else 6] for name, x in batch.items()}


@pytest.fixture
def forced(monkeypatch):
    monkeypatch.setattr(test_loop.loop, "LOG_EVERY", 2)
    monkeypatch.setattr(device_choices, "compile_threads", lambda: 1)


def training(folder, compiling=lambda rows: None, batch=two_lengths):
    """Run the loop's training, compiled ahead; return what ends it and the step."""
    loss = bf.weighted(labels=(1.0, bf.label_cross_entropy))
    tx = bf.make_optimizer(test_loop.OPTIM, test_loop.STEPS)
    made = bf.make_train_step(test_loop.apply, None, loss, tx)
    watched = Watched(
        lambda state, batch: made(state, None, batch), compiling, donate_argnums=0
    )
    function = ahead.Ahead(watched)

    def programs():
        for number in (0, 4):
            args = ahead.described((test_loop.first_state(), two_lengths(number)))
            yield ahead.Program(function, args)

    found = test_loop.run(folder, function, batch=batch, programs=programs)
    return found, watched


def test_a_training_is_the_same_ahead(forced, tmp_path, monkeypatch, capsys):
    found, watched = training(tmp_path / "ahead")
    assert (watched.made, watched.called) == ([6, 5], [])
    assert "compiling 1 of 2" in capsys.readouterr().err
    monkeypatch.setattr(device_choices, "compile_threads", lambda: 0)
    expected, watched = training(tmp_path / "called")
    assert (watched.made, len(watched.called)) == ([], test_loop.STEPS)
    test_loop.assert_same(found, expected)
    lines = test_loop.logged(tmp_path / "called")
    assert test_loop.logged(tmp_path / "ahead") == lines


sigterm = test_loop.sigterm


def test_who_waits_for_a_program_saves_and_stops(forced, sigterm, tmp_path, capsys):
    made, ended = threading.Event(), threading.Event()

    def compiling(rows):
        if rows == 5:
            made.wait(20)
            os.kill(os.getpid(), signal.SIGTERM)
            ended.wait(20)

    def batch(number):
        if number == 3:  # the fourth step is scored, for which all are needed
            made.set()
        return two_lengths(number)

    expected, _ = training(tmp_path / "whole")
    with pytest.raises(test_loop.Stopped):
        training(tmp_path / "run", compiling, batch)
    assert not ended.is_set()
    ended.set()
    assert "saved at step 3" in capsys.readouterr().err
    seen = []
    found, _ = training(
        tmp_path / "run", batch=lambda i: seen.append(i) or two_lengths(i)
    )
    assert seen == list(range(3, test_loop.STEPS))
    test_loop.assert_same(found, expected)
    lines = test_loop.logged(tmp_path / "whole")
    assert test_loop.logged(tmp_path / "run") == lines


COMMAND = """
    import pathlib, threading
    import jax, jax.numpy as jnp
    from bitflax import cli, commands
    from bitflax.training import ahead, device_choices
    from tests.training import test_ahead, test_loop

    def slow(state, batch):  # so many take XLA half a minute
        x = batch["x"]
        for number in range(600):
            x = jnp.sort(x * number, axis=number % 2)
        return state, x

    def command(args):
        go = threading.Timer(1, lambda: print("go", flush=True))
        watched = test_ahead.Watched(slow, lambda rows: go.start())
        function = ahead.Ahead(watched)
        given = ahead.described((test_loop.first_state(), test_loop.a_batch(0)))
        device_choices.compile_threads = lambda: 1
        programs = lambda: [ahead.Program(function, given)]
        test_loop.run(pathlib.Path("run"), function, programs=programs)

    commands.ls_command = command
    sys.exit(cli.main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_command_ends_while_xla_compiles(number, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    argv = test_signals.command(textwrap.dedent(COMMAND))
    status, said = test_signals.asked(argv, number, cwd=tmp_path)
    assert status == 128 + number, said
    assert said.endswith(f"\n{WORDS}\n")
    assert "compiling 1 of 1" in said
    assert "saved" not in said
    assert "Traceback" not in said
