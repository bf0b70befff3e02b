"""A training that is stopped and goes on ends where one that was not stopped ends."""

import dataclasses
import json
import os
import signal
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bitflax as bf
from bitflax.errors import Diverged
from bitflax.runs.folder import RunFolder
from bitflax.training import loop, optimizer

STEPS = 9
OPTIM = bf.Optim(lr=0.1)


class Stopped(Exception):
    """What the test's own handler of SIGTERM raises."""


def apply(params, batch, rng=None):
    """A linear model with noise: a resume must take the random key along too."""
    logits = batch["x"] @ params["kernel"] + params["bias"][None]
    if rng is not None:
        logits += 0.1 * jax.random.normal(rng, logits.shape)
    return bf.Outputs(logits, (), ())


def a_batch(number):
    rng = np.random.default_rng(number)
    x = rng.normal(size=(6, 3)).astype(np.float32)
    return {"x": x, "labels": x.argmax(1).astype(np.int32)}


def first_state():
    params = {"kernel": jnp.zeros((3, 3)), "bias": jnp.zeros(3)}
    tx = bf.make_optimizer(OPTIM, STEPS)
    return bf.init_state(params, tx, key=jax.random.key(5))


@pytest.fixture(scope="module")
def step():
    loss = bf.weighted(labels=(1.0, bf.label_cross_entropy))
    tx = bf.make_optimizer(OPTIM, STEPS)
    step = jax.jit(bf.make_train_step(apply, None, loss, tx), donate_argnums=0)
    return lambda state, batch: step(state, None, batch)


@pytest.fixture(autouse=True)
def _often(monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 2)


def work(folder, step, **changes):
    stage = folder / "1-stage"
    stage.mkdir(parents=True, exist_ok=True)
    basic = loop.Training(
        name="1-stage",
        folder=stage,
        steps=STEPS,
        batch=a_batch,
        step=step,
        evaluate=lambda params: {"accuracy": float(jnp.sum(params["kernel"]))},
        metric="accuracy",
        eval_every=4,
        rate=optimizer.learning_rate(OPTIM, STEPS),
        keep="last",
        place="stages.stage",
    )
    return dataclasses.replace(basic, **changes)


def run(folder, step, **changes):
    with RunFolder(folder) as held:
        held.write_recipe("", {"seed": 0})
        return loop.train(work(folder, step, **changes), first_state(), held)


def logged(folder):
    lines = (folder / "log.jsonl").read_text("utf-8").splitlines()
    return [{k: v for k, v in json.loads(x).items() if k != "time"} for x in lines]


def assert_same(found, expected):
    for name, value in expected.params.items():
        np.testing.assert_array_equal(found.params[name], value)
    assert found.scores == expected.scores


@pytest.fixture(scope="module")
def whole(step, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    before, loop.LOG_EVERY = loop.LOG_EVERY, 2
    found = run(folder, step)
    loop.LOG_EVERY = before
    return found, logged(folder)


@pytest.fixture
def sigterm():
    """Have SIGTERM raise ``Stopped``, as the command line has it raise its own."""

    def stop(number, frame):
        raise Stopped

    before = signal.signal(signal.SIGTERM, stop)
    yield stop
    signal.signal(signal.SIGTERM, before)


def stopping(number, at):
    """Return the batches, with a signal while one of them is made."""

    def batch(i):
        if i + 1 == at:
            os.kill(os.getpid(), number)
        return a_batch(i)

    return batch


@pytest.mark.parametrize("at", [1, 5, 8, STEPS])
def test_a_stopped_training_goes_on_to_the_same_bits(
    at, step, whole, sigterm, tmp_path
):
    with pytest.raises(Stopped):
        run(tmp_path / "run", step, batch=stopping(signal.SIGTERM, at))
    assert signal.getsignal(signal.SIGTERM) is sigterm
    seen = []

    def batch(i):
        seen.append(i)
        return a_batch(i)

    found = run(tmp_path / "run", step, batch=batch)
    assert seen == list(range(at, STEPS))
    assert_same(found, whole[0])
    assert logged(tmp_path / "run") == whole[1]


def falling(folder):
    """Return an evaluation whose scores rise twice and then fall."""
    scores = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    known = {}

    def evaluate(params):
        key = float(jnp.sum(jnp.abs(params["kernel"])))
        if key not in known:
            known[key] = next(scores)
        return {"accuracy": known[key]}

    return evaluate


@pytest.mark.parametrize("at", [None, 2, 3, 4])
def test_patience_ends_a_training_and_keeps_the_best(
    at, step, sigterm, tmp_path, capsys
):
    changes = {"evaluate": falling(tmp_path), "eval_every": 1, "patience": 2}
    if at is not None:
        with pytest.raises(Stopped):
            run(tmp_path, step, batch=stopping(signal.SIGTERM, at), **changes)
    found = run(tmp_path, step, **changes)
    assert "ends at step 4 of 9: the last 2 evaluations" in capsys.readouterr().err
    assert (found.steps, found.scores) == (4, {"accuracy": 0.7})
    two = first_state()
    for number in range(2):
        two, _ = step(two, a_batch(number))
    np.testing.assert_array_equal(found.params["kernel"], two.params["kernel"])
    lines = logged(tmp_path)
    assert [x["step"] for x in lines if "dev/accuracy" in x] == [1, 2, 3, 4]
    assert [x["step"] for x in lines if "loss/loss" in x] == [2, 4]


def test_ctrl_c_stops_after_the_step(step, whole, tmp_path, capsys):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", step, batch=stopping(signal.SIGINT, 3))
    assert "saved at step 3" in capsys.readouterr().err
    assert_same(run(tmp_path / "run", step), whole[0])


def test_a_crash_falls_back_to_the_last_checkpoint(step, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_SECONDS", 0.0)

    def broken(i):
        if i == 6:
            raise OSError("the machine is gone")
        return a_batch(i)

    with pytest.raises(OSError, match="gone"):
        run(tmp_path / "run", step, batch=broken)
    assert_same(run(tmp_path / "run", step), whole[0])
    assert logged(tmp_path / "run") == whole[1]


def test_a_step_that_fails_as_it_is_asked_to_stop_has_stopped(step, tmp_path, sigterm):
    def batch(i):
        os.kill(os.getpid(), signal.SIGTERM)
        raise jax.errors.JaxRuntimeError("INTERNAL: ptxas exited with code 15")

    with pytest.raises(Stopped):
        run(tmp_path / "run", step, batch=batch)


def test_a_training_logs_means_rates_and_scores(whole):
    lines = whole[1]
    losses = [x for x in lines if "loss/loss" in x]
    assert [x["step"] for x in losses] == [2, 4, 6, 8, STEPS]
    assert [x["step"] for x in lines if "dev/accuracy" in x] == [4, 8, STEPS]
    assert losses[-1]["loss/labels"] < losses[0]["loss/labels"]
    rate = optimizer.learning_rate(OPTIM, STEPS)
    for line in losses:
        np.testing.assert_allclose(line["lr"], float(rate(line["step"] - 1)), rtol=1e-6)
        np.testing.assert_allclose(line["loss/loss"], line["loss/labels"], rtol=1e-6)


def test_numbers_are_read_when_the_device_has_the_next_step(
    step, whole, tmp_path, monkeypatch
):
    order, read = [], jax.device_get

    def noted(state, batch):
        order.append("step")
        return step(state, batch)

    def device_get(values):
        order.extend([f"read {len(values)}"] * bool(values))
        return read(values)

    monkeypatch.setattr(jax, "device_get", device_get)
    run(tmp_path / "run", noted)
    two = ["step", "step"]
    # At 4 and 8 there are scores, and the losses' line stands before theirs.
    order = [x for x in order if x != "read 1"]
    assert order == [*two, "step", "read 2", "step", "read 2"] * 2 + ["step"]
    assert logged(tmp_path / "run") == whole[1]


def test_the_best_of_a_training_is_kept(step, tmp_path):
    seen = []

    def evaluate(params):
        seen.append(jax.tree.map(np.array, params))
        return {"accuracy": [0.1, 0.9, 0.3][len(seen) - 1]}

    found = run(tmp_path / "run", step, evaluate=evaluate, keep="best")
    assert found.scores == {"accuracy": 0.9}
    np.testing.assert_array_equal(found.params["kernel"], seen[1]["kernel"])
    assert np.any(seen[1]["kernel"] != seen[2]["kernel"])


def test_the_best_before_a_stop_is_still_the_best(step, sigterm, tmp_path):
    seen = []

    def evaluate(params):
        seen.append(jax.tree.map(np.array, params))
        return {"accuracy": [0.9, 0.1, 0.3][len(seen) - 1]}

    settings = {"evaluate": evaluate, "keep": "best"}
    with pytest.raises(Stopped):
        run(tmp_path / "run", step, batch=stopping(signal.SIGTERM, 6), **settings)
    found = run(tmp_path / "run", step, **settings)
    assert found.scores == {"accuracy": 0.9}
    np.testing.assert_array_equal(found.params["kernel"], seen[0]["kernel"])


def test_the_last_is_kept_where_it_is_not_the_best(step, tmp_path):
    scores = iter([0.9, 0.5, 0.1])
    found = run(
        tmp_path / "run", step, evaluate=lambda params: {"accuracy": next(scores)}
    )
    assert found.scores == {"accuracy": 0.1}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_no_number_says_so(value, step, tmp_path):
    def diverging(state, batch):
        state, metrics = step(state, batch)
        if int(state.step) >= 3:
            metrics["labels"] = bf.Mean(jnp.float32(value), jnp.float32(1))
        return state, metrics

    with pytest.raises(
        Diverged, match=f"1-stage: labels became {value} by step 4"
    ) as e:
        run(tmp_path / "run", diverging)
    assert "--set stages.stage.optim.lr=" in str(e.value)
    assert e.value.status == 79


def test_seconds_count_all_runs(step, sigterm, tmp_path, monkeypatch):
    now = [0.0]

    def slow(batch):
        def ten_seconds(i):
            now[0] += 10
            return batch(i)

        return ten_seconds

    clock = types.SimpleNamespace(monotonic=lambda: now[0])
    monkeypatch.setattr(loop, "time", clock)
    with pytest.raises(Stopped):
        run(tmp_path / "run", step, batch=slow(stopping(signal.SIGTERM, 2)))
    now[0] = 1e6
    assert run(tmp_path / "run", step, batch=slow(a_batch)).seconds == 10 * STEPS
