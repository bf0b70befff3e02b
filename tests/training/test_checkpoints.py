"""Checkpoints: exact, on the right devices, and never used when damaged."""

import gc  # noqa: F401 - for the scripts
import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bitflax import files, manifests
from bitflax.errors import ConfigError, DamagedFile, StorageError
from bitflax.training.checkpoints import Checkpoints
from bitflax.types import TrainState
from tests.helpers import hosted

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3))


def make_state(step=0, seed=0, width=8):
    rng = np.random.default_rng(seed)
    params = {
        "encoder": {
            "kernel": jnp.asarray(rng.standard_normal((width, 3)), jnp.float32)
        },
        "bias": jnp.asarray(rng.standard_normal(3), jnp.float32),
    }
    return TrainState(
        jnp.int32(step), params, OPTIMIZER.init(params), jax.random.key(seed)
    )


@jax.jit
def train_step(state):
    key = jax.random.fold_in(state.key, state.step)
    noise = jax.random.normal(key, (3,))
    grads = jax.tree.map(jnp.cos, state.params)
    grads["bias"] += noise
    updates, opt_state = OPTIMIZER.update(grads, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    return TrainState(state.step + 1, params, opt_state, state.key)


def numbers(state):
    state = state._replace(key=jax.random.key_data(state.key))
    return [np.array(leaf) for leaf in jax.tree.leaves(state)]


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(numbers(a), numbers(b), strict=True):
        np.testing.assert_array_equal(x, y)
        assert x.dtype == y.dtype


def damage(folder, pattern="state/**/*", bit=3):
    """Flip one bit in the middle of the largest file that matches."""
    files = [p for p in folder.glob(pattern) if p.is_file()]
    path = max(files, key=lambda p: p.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1 << bit
    path.write_bytes(data)
    return path


def test_a_resumed_run_goes_on_exactly(tmp_path):
    whole = make_state()
    for _ in range(6):
        whole = train_step(whole)
    state = make_state()
    for _ in range(3):
        state = train_step(state)
    with Checkpoints(tmp_path) as saved:
        saved.save(3, state, {"position": 96, "names": ["a"]})
    with Checkpoints(tmp_path) as saved:
        state, extra = saved.restore(make_state(seed=1))
    assert extra == {"position": 96, "names": ["a"]}
    assert jnp.issubdtype(state.key.dtype, jax.dtypes.prng_key)
    for _ in range(3):
        state = train_step(state)
    assert_same(state, whole)


def test_nothing_saved_is_none_and_makes_no_folder(tmp_path):
    with Checkpoints(tmp_path / "none") as saved:
        assert saved.restore(make_state()) is None
        assert saved.steps == ()
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_keys_of_any_kind(tmp_path, impl):
    state = make_state()._replace(key=jax.random.split(jax.random.key(5, impl=impl), 3))
    with Checkpoints(tmp_path) as saved:
        saved.save(1, state, {})
        restored, _ = saved.restore(state)
    assert restored.key.shape == (3,)
    assert jax.random.key_impl(restored.key) == jax.random.key_impl(state.key)
    np.testing.assert_array_equal(
        jax.random.key_data(restored.key), jax.random.key_data(state.key)
    )


def test_the_template_says_where_the_state_goes(tmp_path):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    state = train_step(make_state())
    spread = jax.device_put(state, everywhere)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), spread
    )
    with Checkpoints(tmp_path) as saved:
        saves = ((state, spread), (spread, state), (spread, shapes))
        for step, (made, template) in enumerate(saves):
            saved.save(step, made, {})
            restored, _ = saved.restore(template)
            assert_same(restored, state)
            for x, y in zip(
                jax.tree.leaves(restored), jax.tree.leaves(template), strict=True
            ):
                assert x.sharding.is_equivalent_to(y.sharding, x.ndim)


def test_arrays_may_be_donated_as_soon_as_save_returns(tmp_path):
    def bump(tree):
        return jax.tree.map(lambda x: x + jnp.ones((), x.dtype), tree)

    state = make_state(width=200_000)
    kernel = np.array(state.params["encoder"]["kernel"])
    step = jax.jit(
        lambda s: s._replace(params=bump(s.params), opt_state=bump(s.opt_state)),
        donate_argnums=0,
    )
    with Checkpoints(tmp_path) as saved:
        saved.save(1, state, {})
        for _ in range(3):
            state = step(state)
        jax.block_until_ready(state)
        restored, _ = saved.restore(make_state(width=200_000))
        np.testing.assert_array_equal(restored.params["encoder"]["kernel"], kernel)
        step(restored)  # what was restored can be donated, too


def test_save_does_not_wait_for_the_manifest(tmp_path, monkeypatch):
    release = threading.Event()
    write = manifests.write_manifest

    def slow(*args):
        assert release.wait(60)
        write(*args)

    monkeypatch.setattr(manifests, "write_manifest", slow)
    with Checkpoints(tmp_path) as saved:
        saved.save(1, make_state(), {})
        assert saved.steps == ()
        release.set()
        saved.wait()
        assert saved.steps == (1,)


def test_the_newest_and_the_best_stay(tmp_path):
    metrics = {1: 0.3, 2: 0.9, 3: float("nan"), 4: None, 5: 0.5, 6: 0.4}
    with Checkpoints(tmp_path, keep_last=2, keep_best=1) as saved:
        for step, metric in metrics.items():
            saved.save(step, make_state(step), {"metric": metric or 0}, metric)
    with Checkpoints(tmp_path, keep_last=2, keep_best=1) as saved:
        assert saved.steps == (2, 5, 6)
        assert int(saved.restore(make_state())[0].step) == 6
        assert int(saved.restore(make_state(), best=True)[0].step) == 2
        saved.save(7, make_state(7), {}, 0.95)
        saved.save(8, make_state(8), {}, 0.1)
        saved.wait()
        assert saved.steps == (7, 8)
        assert int(saved.restore(make_state(), best=True)[0].step) == 7


def test_one_last_step_is_too_few(tmp_path):
    with pytest.raises(ValueError, match="at least 2"):
        Checkpoints(tmp_path, keep_last=1)


def save_three(folder):
    with Checkpoints(folder, keep_last=3) as saved:
        for step in (1, 2, 3):
            saved.save(step, make_state(step, seed=step), {"at": step}, step / 10)


@pytest.mark.parametrize("bit", [0, 3, 7])
@pytest.mark.parametrize("pattern", ["state/**/*", "extra/metadata", "MANIFEST.json"])
def test_a_damaged_newest_step_is_skipped_and_said(tmp_path, caplog, pattern, bit):
    save_three(tmp_path)
    path = damage(tmp_path / "3", pattern, bit)
    with Checkpoints(tmp_path, keep_last=3) as saved:
        state, extra = saved.restore(make_state())
    assert_same(state, make_state(2, seed=2))
    assert extra == {"at": 2}
    (said,) = caplog.messages
    assert str(path) in said or pattern == "MANIFEST.json"
    assert said.endswith("; the step is skipped")


@pytest.mark.parametrize("pattern", ["metrics/metrics", "state/**/*"])
def test_a_damaged_older_step_is_set_aside_and_said(tmp_path, caplog, pattern):
    save_three(tmp_path / "checkpoints")
    damage(tmp_path / "checkpoints" / "1", pattern)
    with Checkpoints(tmp_path / "checkpoints", keep_last=3) as saved:
        state, _ = saved.restore(make_state())
        saved.save(4, make_state(4, seed=4), {"at": 4}, 0.4)  # ranks what is kept
    assert_same(state, make_state(3, seed=3))
    assert "set aside" in caplog.text
    assert len(list((tmp_path / "set-aside").iterdir())) == 1


def test_a_missing_and_a_truncated_file_are_damage(tmp_path, caplog):
    save_three(tmp_path)
    (tmp_path / "3" / "state" / "_METADATA").unlink()
    with open(tmp_path / "2" / "extra" / "metadata", "ab") as file:
        file.write(b" ")
    with Checkpoints(tmp_path) as saved:
        assert int(saved.restore(make_state())[0].step) == 1
    assert "missing" in caplog.messages[0]
    assert "not what was written" in caplog.messages[1]


def test_all_damaged_is_an_error(tmp_path, caplog):
    save_three(tmp_path)
    for step in "123":
        damage(tmp_path / step)
    with Checkpoints(tmp_path) as saved, pytest.raises(DamagedFile) as caught:
        saved.restore(make_state())
    assert caught.value.status == 76
    assert "all 3" in caught.value.problem
    assert caplog.text.count("skipped") == 3


def test_a_damaged_best_step_gives_the_next_best(tmp_path, caplog):
    save_three(tmp_path)
    damage(tmp_path / "3", "MANIFEST.json")
    damage(tmp_path / "2")
    with Checkpoints(tmp_path) as saved:
        assert int(saved.restore(make_state(), best=True)[0].step) == 1
    assert "skipped" in caplog.text


def test_a_run_that_fell_back_replaces_the_steps_after_it(tmp_path, caplog):
    save_three(tmp_path)
    damage(tmp_path / "3")
    with Checkpoints(tmp_path) as saved:
        state, _ = saved.restore(make_state())
        saved.save(2, state, {"at": "ignored"})  # just restored: nothing to do
        saved.wait()
        assert saved.restore(make_state())[1] == {"at": 2}
        saved.save(3, make_state(3, seed=9), {"at": "again"})
        saved.wait()
        assert_same(saved.restore(make_state())[0], make_state(3, seed=9))
    assert "skipped" in caplog.text


def test_saving_a_step_before_the_newest_drops_the_later_ones(tmp_path):
    save_three(tmp_path)
    with Checkpoints(tmp_path) as saved:
        saved.save(2, make_state(2, seed=8), {"at": "new"})
        saved.wait()
        assert saved.steps == (1, 2)
        assert saved.restore(make_state())[1] == {"at": "new"}


def test_another_model_is_named(tmp_path):
    save_three(tmp_path)
    with Checkpoints(tmp_path) as saved:
        with pytest.raises(
            ConfigError, match=r"params/encoder/kernel.*\[8, 3\].*\[9, 3\]"
        ):
            saved.restore(
                make_state(width=9)._replace(opt_state=make_state().opt_state)
            )
        params = make_state().params | {"extra": jnp.ones(2)}
        with pytest.raises(ConfigError, match="params/extra is absent there"):
            saved.restore(make_state()._replace(params=params))


def test_what_an_interrupted_save_left_is_removed(tmp_path):
    save_three(tmp_path)
    (tmp_path / "3" / files.MANIFEST).unlink()
    (tmp_path / "4.orbax-checkpoint-tmp" / "state").mkdir(parents=True)
    (tmp_path / "notes").mkdir()
    with Checkpoints(tmp_path) as saved:
        assert saved.steps == (1, 2)
        assert int(saved.restore(make_state())[0].step) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2", "notes"]


def test_too_little_room_is_said_before_writing(tmp_path, monkeypatch):
    free = os.statvfs(tmp_path)
    usage = type(files.shutil.disk_usage(tmp_path))
    monkeypatch.setattr(
        files.shutil, "disk_usage", lambda _: usage(free.f_blocks, free.f_blocks, 100)
    )
    with Checkpoints(tmp_path) as saved, pytest.raises(StorageError, match="needed"):
        saved.save(1, make_state(), {})
    assert not list(tmp_path.iterdir())


SCRIPT_HEAD = """
    from tests.training.test_checkpoints import *
    saved = Checkpoints({folder!r})
    template = make_state(width=20_000)
    found = saved.restore(template)
    first = 0 if found is None else int(found[0].step)
    if found is not None:
        assert_same(found[0], make_state(first, seed=first, width=20_000))
        assert found[1] == {{"at": first}}
    print("from", first, flush=True)
"""


def run_script(body, folder):
    head = SCRIPT_HEAD.format(folder=str(folder))
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(head) + textwrap.dedent(body)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=hosted.ROOT,
    )


SAVE_ON = """
    for step in range(first + 1, 10_000):
        saved.save(step, make_state(step, seed=step, width=20_000), {"at": step})
        print(step, flush=True)
"""


@pytest.mark.slow
def test_sigkill_in_mid_save_and_resume(tmp_path):
    draw = random.Random(0)
    reached = 0
    for _ in range(3):
        process = run_script(SAVE_ON, tmp_path)
        assert process.stdout.readline().startswith("from"), process.stderr.read()
        for _ in range(draw.randint(3, 8)):
            reached = int(process.stdout.readline())
        # Anywhere in the save that has just begun in the background.
        threading.Event().wait(draw.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
    with Checkpoints(tmp_path) as saved:
        state, extra = saved.restore(make_state(width=20_000))
    step = int(state.step)
    # ``reached`` was begun, so that the one before it was finished.
    assert step >= reached - 1
    assert extra == {"at": step}
    assert_same(state, make_state(step, seed=step, width=20_000))


def test_killed_between_the_data_and_the_manifest(tmp_path):
    process = run_script(
        """
    saved.save(1, make_state(1, seed=1, width=20_000), {"at": 1})
    saved.wait()
    manifests.write_manifest = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    saved.save(2, make_state(2, seed=2, width=20_000), {"at": 2})
    saved.wait()
    """,
        tmp_path,
    )
    _, stderr = process.communicate()
    assert process.returncode == -signal.SIGKILL, stderr
    assert (tmp_path / "2" / "state").is_dir()
    with Checkpoints(tmp_path) as saved:
        assert saved.steps == (1,)
        assert int(saved.restore(make_state(width=20_000))[0].step) == 1
    assert not (tmp_path / "2").exists()


def limit_file_size():
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))


def test_a_disk_that_fills_up_while_writing(tmp_path):
    process = run_script(
        """
    limit_file_size()
    with files.threads_heard("."):  # as a run does
        try:
            saved.save(1, make_state(1, width=20_000), {})
            saved.wait()
        except StorageError as error:
            print(error.status, error.problem)
        try:
            saved.close()
        except StorageError:
            pass
        gc.collect()  # what nobody asked a task for is said by now
    """,
        tmp_path,
    )
    stdout, stderr = process.communicate()
    assert stdout.splitlines() == ["from 0", "74 File too large"], stderr
    assert "orbax" not in stderr
    with Checkpoints(tmp_path) as saved:
        assert saved.restore(make_state()) is None
    assert not list(tmp_path.iterdir())


def test_the_manifest_names_every_file_and_array(tmp_path):
    save_three(tmp_path)
    folder = tmp_path / "2"
    manifest = json.loads((folder / files.MANIFEST).read_text())
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(manifest["files"]) == there - {files.MANIFEST}
    assert manifest["leaves"]["params/encoder/kernel"] == ["float32", [8, 3]]
    assert manifest["step"] == 2
    assert manifest["metric"] == 0.2
