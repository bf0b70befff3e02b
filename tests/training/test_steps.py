"""The optimizer against XTC's, and a step against gradients written out."""

import dataclasses
import functools
import logging
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import bitflax as bf
from bitflax import trees
from bitflax.model import leaves
from bitflax.training import optimizer, parallel, steps
from tests.helpers import oracles, small


def close(a, b, atol=2e-6):
    np.testing.assert_allclose(a, b, rtol=0, atol=atol)


# ---------------------------------------------------------------------- the optimizer


def test_adamw_is_xtcs():
    z = oracles.load("optimizers")
    rates = [float(z[f"adamw_xtc/lr{i}"]) for i in range(12)]
    optim = bf.Optim(lr=max(rates), warmup=0.25)
    close([optimizer.learning_rate(optim, 12)(i) for i in range(12)], rates, 1e-9)

    def tree(prefix):
        # The bias does not decay, the others do; all are clipped together.
        names = {"kernel": "w", "bias": "b", "limits": "clip"}
        return {ours: z[f"{prefix}/{theirs}"] for ours, theirs in names.items()}

    tx = bf.make_optimizer(optim, 12)
    params = jax.tree.map(jnp.asarray, tree("p0"))
    state = tx.init(params)
    update = jax.jit(tx.update)
    for i in range(12):
        updates, state = update(tree(f"g{i}"), state, params)
        params = optax.apply_updates(params, updates)
        expected = tree(f"adamw_xtc/step{i}")
        for name, value in params.items():
            np.testing.assert_allclose(value, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "middle", "end"),
    [("linear", 0.5, 0.0), ("cosine", 0.5, 0.0), ("constant", 1.0, 1.0)],
)
def test_rates_rise_and_fall(schedule, middle, end):
    rate = optimizer.learning_rate(bf.Optim(lr=1.0, warmup=0.2, schedule=schedule), 100)
    close([rate(i) for i in (0, 5, 20, 60, 100)], [0, 0.25, 1, middle, end], 1e-6)


def test_without_warm_up_the_first_step_has_the_whole_rate():
    rate = optimizer.learning_rate(bf.Optim(lr=1.0, warmup=0.0), 10)
    close([rate(i) for i in (0, 5, 10)], [1.0, 0.5, 0.0], 1e-6)


@pytest.mark.parametrize("steps", [0, -3, 1.5])
@pytest.mark.usefixtures("types_unchecked")
def test_a_training_without_steps_is_refused(steps):
    with pytest.raises(ValueError, match=f"steps must be at least 1 .* not {steps}"):
        bf.make_optimizer(bf.Optim(), steps)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("lr", 0.0),
        ("lr", None),
        ("lr", float("nan")),
        ("act_lr", float("inf")),
        ("clip", -1.0),
        ("eps", 0.0),
        ("b1", 1.0),
        ("b2", -0.1),
        ("weight_decay", -0.01),
        ("warmup", 1.5),
        ("schedule", "step"),
        ("kind", "sgd"),
    ],
)
@pytest.mark.usefixtures("types_unchecked")
def test_a_setting_out_of_range_is_refused(field, value):
    optim = bf.Optim(**{field: value})
    problem = rf"Optim.{field}: expected .*, found {value!r}"
    for make in (bf.make_optimizer, optimizer.learning_rate):
        with pytest.raises(ValueError, match=problem):
            make(optim, 10)


CONSTANT = bf.Optim(lr=0.1, warmup=0.0, schedule="constant")


def after(optim, grads, params, steps=3):
    tx = bf.make_optimizer(optim, 10)
    state = jax.jit(tx.init)(params)

    @jax.jit
    def update(state, params):
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    for _ in range(steps):
        params, state = update(state, params)
    return params, state


def test_biases_and_norms_do_not_decay():
    params = jax.tree.map(
        lambda w: np.ones(w.shape, w.dtype), bf.take_layers(teacher(), (0,))
    )
    zeros = jax.tree.map(np.zeros_like, params)
    found, _ = after(CONSTANT, zeros, params, 1)
    for path, leaf in trees.flatten(found).items():
        decays = path.endswith(("kernel", "embedding"))
        close(leaf, np.full(leaf.shape, 1 - 0.1 * 0.01 * decays), 1e-6)


def test_frozen_parameters_stay_and_take_no_memory():
    params = {
        "pooler": {"kernel": jnp.ones((8, 8))},
        "ffn": {"kernel": jnp.ones((4, 4))},
    }
    optim = bf.Optim(lr=0.1, warmup=0.0, schedule="constant", frozen=("pooler/.*",))
    grads = jax.tree.map(lambda w: 100 * jnp.ones_like(w), params)
    found, state = after(optim, grads, params)
    np.testing.assert_array_equal(found["pooler"]["kernel"], 1)
    # A gradient that moves nothing does not count in the norm that is clipped.
    alone, _ = after(CONSTANT, {"ffn": grads["ffn"]}, {"ffn": params["ffn"]})
    np.testing.assert_array_equal(found["ffn"]["kernel"], alone["ffn"]["kernel"])
    assert not any(leaf.shape == (8, 8) for leaf in jax.tree.leaves(state))


def test_a_frozen_rule_that_matches_nothing_is_refused():
    tx = bf.make_optimizer(bf.Optim(frozen=("poller/.*",)), 10)
    with pytest.raises(ValueError, match=r"rule 'poller/\.\*' matches no"):
        tx.init({"pooler": {"kernel": jnp.ones(1)}})
    tx = bf.make_optimizer(bf.Optim(frozen=("pooler/.*", ".*")), 10)
    with pytest.raises(ValueError, match="nothing is trained"):
        tx.init({"pooler": {"kernel": jnp.ones(1)}})


def test_the_clip_bounds_the_norm_of_all_gradients_together():
    # Adam forgets a gradient's scale, so look at its first moment.
    params = {"a": {"kernel": jnp.zeros(3)}, "b": {"kernel": jnp.zeros(4)}}
    grads = {"a": {"kernel": 3 * jnp.ones(3)}, "b": {"kernel": -4 * jnp.ones(4)}}
    norm = np.sqrt(3 * 9 + 4 * 16)
    for clip, factor in ((1.0, 1 / norm), (100.0, 1.0), (None, 1.0)):
        optim = bf.Optim(lr=0.1, warmup=0.0, clip=clip)
        _, state = after(optim, grads, params, 1)
        (adam,) = [s for s in jax.tree.leaves(state, is_leaf=_is_adam) if _is_adam(s)]
        close(adam.mu["b"]["kernel"], np.full(4, -4 * 0.1 * factor), 1e-6)


def test_learned_activations_have_their_own_rate_and_no_decay():
    site = {"kernel": jnp.ones((2, 2)), "input": jnp.ones(2), "output": jnp.ones(())}
    params = {"query": site, "probs": jnp.ones(()), "a": {"probs": jnp.ones(())}}
    optim = dataclasses.replace(CONSTANT, act_lr=0.01, clip=None)
    zeros = jax.tree.map(jnp.zeros_like, params)
    found, _ = after(optim, zeros, params, 1)
    paths = trees.flatten(found)
    for path in ("query/input", "query/output", "a/probs"):
        np.testing.assert_array_equal(paths[path], 1)
    # A parameter at the top of the tree is at no site.
    close(paths["probs"], 1 - 0.1 * 0.01)
    ones = jax.tree.map(jnp.ones_like, params)
    found, _ = after(dataclasses.replace(optim, weight_decay=0.0), ones, params, 1)
    close(found["query"]["input"], [0.99, 0.99], 1e-6)
    close(found["query"]["kernel"], np.full((2, 2), 0.9), 1e-6)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_both_rates_rise_and_fall_alike(schedule):
    optim = bf.Optim(lr=1e-2, act_lr=1e-4, warmup=0.3, schedule=schedule, clip=None)
    tx = bf.make_optimizer(dataclasses.replace(optim, weight_decay=0.0), 10)
    params = {"a": {"kernel": jnp.ones(()), "input": jnp.ones(())}}
    state = tx.init(params)
    for _ in range(10):
        updates, state = tx.update(params, state, params)
        kernel, clip = updates["a"]["kernel"], updates["a"]["input"]
        np.testing.assert_allclose(clip, kernel / 100, rtol=1e-5)


@pytest.mark.parametrize("kind", ["adamw", "bertadam"])
def test_halves_are_one_parameter_to_decay_and_freezing(kind):
    half = jnp.ones((2, 2))
    params = {
        "ffn": {"kernel": leaves.Split(half, half), "bias": jnp.ones(2)},
        "pooler": {"kernel": leaves.Split(half, half)},
    }
    optim = dataclasses.replace(CONSTANT, kind=kind, frozen=("pooler/kernel",))
    zeros = jax.tree.map(jnp.zeros_like, params)
    found, _ = after(optim, zeros, params, 1)
    for leaf in (found["ffn"]["kernel"].a, found["ffn"]["kernel"].b):
        close(leaf, np.full((2, 2), 1 - 0.1 * 0.01))
    np.testing.assert_array_equal(found["ffn"]["bias"], 1)
    np.testing.assert_array_equal(found["pooler"]["kernel"].b, 1)


def _is_adam(node):
    return isinstance(node, optax.ScaleByAdamState)


# ---------------------------------------------------------------------------- one step


@functools.cache
def teacher():
    """Return two layers: where the number of layers does not matter."""
    return bf.take_layers(small.teacher_params(), (0, 1))


@functools.cache
def kd(accumulate=1):
    """Return a compiled step, whose rate is constant, and its first state."""
    optim = bf.Optim(lr=1e-2, warmup=0.0, schedule="constant", weight_decay=0.1)
    step, state = small.kd_step(
        accumulate=accumulate, optim=optim, depth=2, layers=(1,)
    )
    return jax.jit(step), state


@functools.cache
def told(seed):
    """Return what the teacher says of a batch."""
    apply = jax.jit(bf.bert(small.config(4)))
    return apply(small.teacher_params(), small.batch(6, seed, filler=2))


def by_hand(params, seed, rules=()):
    """Return the losses and gradients that a step should find."""
    batch, taught = small.batch(6, seed, filler=2), told(seed)

    def value(params):
        values = bf.quantize(params, rules) if rules else params
        out = bf.bert(small.config(2))(values, batch)
        parts = small.one_stage()(out, taught, batch)
        return bf.total(parts), parts

    return jax.jit(jax.value_and_grad(value, has_aux=True))(params)


@pytest.mark.parametrize("rules", [(), bf.xtc_1bit()])
def test_a_step_goes_down_the_gradient(rules):
    tx, batch = optax.sgd(1.0), small.batch(6, 0, filler=2)
    quantize = functools.partial(bf.quantize, rules=rules, lazy=True) if rules else None
    student = bf.bert(small.config(2))
    teacher = bf.bert(small.config(4))
    step = bf.make_train_step(
        student, teacher, small.one_stage(), tx, quantize=quantize
    )
    params = bf.take_layers(small.teacher_params(), small.LAYERS)
    state = bf.init_state(params, tx, key=jax.random.key(0))
    after, metrics = jax.jit(step)(state, small.teacher_params(), batch)
    (value, parts), gradient = by_hand(params, 0, rules)
    expected = jax.tree.map(jnp.subtract, params, gradient)
    assert small.largest_difference(after.params, expected) < 1e-5
    np.testing.assert_allclose(float(metrics["loss"]), value, rtol=1e-5)
    for name, part in parts.items():
        np.testing.assert_allclose(metrics[name], part, rtol=1e-5)
    norm = np.sqrt(sum(np.square(g).sum() for g in jax.tree.leaves(gradient)))
    np.testing.assert_allclose(float(metrics["grad_norm"]), norm, rtol=1e-5)
    assert int(after.step) == 1


def stage_one():
    """Return a loss that reads no logits."""
    parts = small.one_stage((1,)).parts
    return bf.weighted(**{name: parts[name] for name in ("hidden", "scores")})


@pytest.mark.parametrize(
    ("how", "kind"),
    [("jit", "bertadam"), ("accumulate", "adamw"), ("data_parallel", "adamw")],
)
def test_what_the_loss_does_not_read_stays_to_the_last_bit(how, kind):
    optim = bf.Optim(
        kind=kind, lr=1e-2, warmup=0.0, schedule="constant", weight_decay=0.5
    )
    tx = bf.make_optimizer(optim, 10)
    step = bf.make_train_step(
        bf.bert(small.config(1)),
        bf.bert(small.config(2)),
        stage_one(),
        tx,
        quantize=functools.partial(bf.quantize, rules=bf.xtc_1bit(), lazy=True),
        accumulate=2 if how == "accumulate" else 1,
    )
    params = bf.take_layers(teacher(), (1,))
    state = bf.init_state(params, tx, key=jax.random.key(0))
    run = MAPPINGS.get(how, jax.jit)(step)
    for seed in range(2):
        state, _ = run(state, teacher(), small.batch(4, seed))
        jax.block_until_ready(state)
    before, after = trees.flatten(params), trees.flatten(state.params)
    for path, leaf in after.items():
        same = np.array_equal(leaf, before[path])
        # A key's bias moves no softmax, but it moves scores.
        above = path.startswith(("pooler", "classifier"))
        assert same == above, path


def test_the_pad_row_only_decays():
    step, state = kd()
    before = np.array(state.params["embeddings"]["word"]["embedding"])
    for seed in range(3):
        state, _ = step(state, teacher(), small.batch(6, seed))
    found = np.array(state.params["embeddings"]["word"]["embedding"])
    close(found[0], before[0] * (1 - 1e-2 * 0.1) ** 3, 1e-6)
    assert np.abs(found[1:] - before[1:]).max() > 1e-3


def test_the_teachers_parameters_are_an_argument():
    step, state = kd()
    batch = small.batch(6, 0)
    _, one = step(state, teacher(), batch)
    compiled = step._cache_size()
    other = jax.tree.map(lambda w: 1.1 * w, teacher())
    _, two = step(state, other, batch)
    assert abs(float(one["loss"]) - float(two["loss"])) > 1e-3
    assert step._cache_size() == compiled


def fine_tuning(rate):
    config = small.config(2, hidden_dropout_prob=rate, attention_probs_dropout_prob=0.0)
    tx = optax.set_to_zero()
    loss = bf.weighted(labels=(1.0, bf.label_cross_entropy))
    step = jax.jit(bf.make_train_step(bf.bert(config), None, loss, tx))
    return step, bf.init_state(teacher(), tx, key=jax.random.key(0))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_dropout_is_anew_in_each_step_and_the_same_in_a_repeated_one(
    platform, monkeypatch
):
    device = types.SimpleNamespace(platform=platform)
    mesh = types.SimpleNamespace(devices=np.array([device], object))
    monkeypatch.setattr(parallel, "mesh", lambda: mesh)
    step, state = fine_tuning(0.5)
    batch = small.batch(6, 0)
    next_state, one = step(state, None, batch)
    _, again = step(state, None, batch)
    _, two = step(next_state, None, batch)
    assert float(one["labels"]) == float(again["labels"])
    assert abs(float(one["labels"]) - float(two["labels"])) > 1e-3
    other = state._replace(key=jax.random.key(1))
    assert float(step(other, None, batch)[1]["labels"]) != float(one["labels"])
    traced = str(jax.make_jaxpr(step)(state, None, batch))
    assert ("key<rbg>" in traced) is (platform == "tpu")


def test_a_taught_student_has_no_dropout():
    # The small configuration's rates are the default: 0.1.
    step, state = kd()
    batch = small.batch(6, 0)
    moved, one = step(state, teacher(), batch)
    _, two = step(moved._replace(params=state.params), teacher(), batch)
    assert float(one["loss"]) == float(two["loss"])


def test_a_loss_may_be_one_mean():
    tx = optax.sgd(1e-2)
    step = bf.make_train_step(
        bf.bert(small.config(1)), None, bf.label_cross_entropy, tx
    )
    params = small.params(small.config(1))
    state = bf.init_state(params, tx, key=jax.random.key(0))
    _, metrics = jax.jit(step)(state, None, small.batch(4, 0))
    assert set(metrics) == {"loss", "grad_norm"}
    assert abs(float(metrics["loss"]) - np.log(3)) < 0.1


def test_a_batch_of_filler_rows_alone_moves_nothing_to_nan():
    step, state = kd()
    state, metrics = step(state, teacher(), small.batch(6, 0, filler=6))
    assert float(metrics["loss"]) == 0
    assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(state.params))


@pytest.mark.parametrize("accumulate", [0, -1, 1.5])
@pytest.mark.usefixtures("types_unchecked")
def test_there_is_at_least_one_microbatch(accumulate):
    problem = f"accumulate must be at least 1 and whole, not {accumulate}"
    with pytest.raises(ValueError, match=problem):
        kd(accumulate=accumulate)


def test_microbatches_must_be_equal():
    step, state = kd(accumulate=4)
    with pytest.raises(ValueError, match="6 rows is no 4 equal microbatches"):
        step(state, teacher(), small.batch(6, 0))


# ---------------------------------------------------------------- states and compilation


def test_the_first_state_copies_every_leaf():
    params = {"w": jnp.ones(3), "deep": {"b": jnp.zeros(2)}}
    key = jax.random.key(0)
    state = bf.init_state(params, optax.adam(1.0), key=key)
    jax.tree.map(lambda x: x.delete(), state)
    assert all(not x.is_deleted() for x in jax.tree.leaves((params, key)))
    np.testing.assert_array_equal(params["w"], 1)


MAPPINGS = {
    "jit": jax.jit,
    "data_parallel": lambda step: bf.data_parallel(step, bf.mesh(jax.devices()[:2])),
    "pmapped": lambda step: bf.pmapped(step, jax.devices()[:2]),
}


@pytest.mark.parametrize("how", MAPPINGS)
def test_a_step_is_compiled_once(how, caplog):
    tx = bf.make_optimizer(bf.Optim(lr=1e-3), 10)
    loss = bf.weighted(logits=(1.0, bf.logits_mse))
    apply = bf.bert(small.config(1))
    params = bf.take_layers(teacher(), (0,))
    state = bf.init_state(params, tx, key=jax.random.key(0))
    step = MAPPINGS[how](bf.make_train_step(apply, apply, loss, tx))

    def compiled(state, seed):
        caplog.clear()
        # Log messages, not warnings: the tests' filter does not see them.
        with jax.log_compiles(), caplog.at_level(logging.WARNING):
            state, _ = step(state, params, small.batch(4, seed))
            jax.block_until_ready(state)
        return state, [m for m in caplog.messages if "Finished XLA compilation" in m]

    state, first = compiled(state, 0)
    assert first
    for seed in range(1, 4):
        state, more = compiled(state, seed)
        assert more == []


def test_an_eval_step_gives_the_logits_of_any_leaf():
    params, batch = bf.take_layers(small.teacher_params(), (0,)), small.batch(4, 0)
    apply = bf.bert(small.config(1))
    found = bf.make_eval_step(apply)(params, batch)
    close(found, jax.jit(apply)(params, batch).logits, 1e-5)


def test_a_reader_traces_once_for_each_structure():
    traced = []

    def fn(p, batch):
        traced.append(batch)
        return p["a"] * batch["x"] + (p["b"] if "y" in batch else 0)

    read, p = steps.leaves_reader(fn), {"a": jnp.ones(()), "b": jnp.ones(())}
    for _ in range(2):
        assert read(p, {"x": jnp.ones(3)}) == {"a": True, "b": False}
        assert read(p, {"x": jnp.ones(5), "y": 1}) == {"a": True, "b": True}
    assert len(traced) == 2
