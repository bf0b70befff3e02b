"""Processes on this machine that are one run; as a program, one of them that trains."""

import functools
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from tests.helpers import flags, forked

ROOT = Path(__file__).parents[2]
WAIT = 600


def free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return held.getsockname()[1]


class Processes:
    """Commands that run side by side; their stderr goes to files.

    Args:
      commands: the arguments of each, after ``bitflax``, or after ``python``.
      folder: of the files.
      places: where each runs.
      fresh: whether each is a Python of its own, or forked from a warm one.
    """

    def __init__(self, commands, folder: Path, places=None, fresh=False):
        env = {"PYTHONPATH": str(ROOT), "XLA_FLAGS": flags.QUICK}
        folder.mkdir(parents=True, exist_ok=True)
        begin = _python if fresh else forked.Forked
        self.errors = [folder / f"{i}.err" for i in range(len(commands))]
        self.outputs = [folder / f"{i}.out" for i in range(len(commands))]
        self.started = []
        for number, args in enumerate(commands):
            out, err = self.outputs[number], self.errors[number]
            at = places and places[number]
            self.started.append(begin(args, out, err, env=env, folder=at))

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        for process in self.started:
            process.kill()
            process.wait()

    def statuses(self, wait: float = WAIT) -> list[int]:
        """Return the exit statuses once all have ended."""
        until = time.monotonic() + wait
        return [p.wait(max(0.1, until - time.monotonic())) for p in self.started]

    def said(self, number: int) -> str:
        return self.errors[number].read_text()

    def wait_for(self, path: Path) -> None:
        """Wait until a file is there."""
        until = time.monotonic() + WAIT
        while not path.exists():
            assert time.monotonic() < until, self.said(0)
            assert self.started[0].poll() is None, self.said(0)
            time.sleep(0.05)

    def send(self, number: int, what: signal.Signals) -> None:
        self.started[number].send_signal(what)


def _python(args, out: Path, err: Path, env, folder) -> subprocess.Popen:
    with out.open("w") as stdout, err.open("w") as stderr:
        return subprocess.Popen(
            [sys.executable, *map(str, args)],
            env=os.environ | env,
            cwd=folder,
            stdout=stdout,
            stderr=stderr,
        )


def together(count: int) -> list[list[str]]:
    """Return the options of each of so many processes."""
    place = f"127.0.0.1:{free_port()}"
    common = ["--coordinator", place, "--processes", str(count), "--process"]
    return [[*common, str(i)] for i in range(count)]


def student(kind: str):
    """Return a step, its first state, its teacher and the batch of a step."""
    import jax

    import bitflax as bf
    from tests.helpers import small

    batch = functools.partial(small.batch, 16, filler=3)
    if kind == "linear":  # compiles in no time
        return *_linear(), None, batch
    rules = bf.xtc_1bit() if kind == "1-bit" else ()
    teacher = bf.take_layers(small.teacher_params(), (0, 1))
    step, state = small.kd_step(rules, depth=2, layers=(1,))
    return step, state, jax.device_get(teacher), batch


def _linear():
    import jax
    import jax.numpy as jnp

    import bitflax as bf

    def apply(params, batch, rng=None):
        logits = batch["input_ids"] @ params["kernel"] + params["bias"][None]
        return bf.Outputs(logits, (), ())

    params = {"kernel": jnp.zeros((8, 3)), "bias": jnp.zeros(3)}
    loss = bf.weighted(labels=(1.0, bf.label_cross_entropy))
    tx = bf.make_optimizer(bf.Optim(lr=0.1), 20)
    step = bf.make_train_step(apply, None, loss, tx)
    return step, bf.init_state(params, tx, key=jax.random.key(0))


def train(place, processes, process, steps, out, *students) -> None:
    """Train each of some students on all processes' devices; each keeps what it has.

    A student is ``HOW KIND``, as ``shard_map fp32``.
    """
    import jax
    import numpy as np

    import bitflax as bf
    from bitflax.training import hosts, parallel

    hosts.initialize(place, processes, process)
    hosts.initialize(place, processes, process)  # once more does nothing
    mesh = bf.mesh()
    assert mesh.size == jax.device_count() == processes
    for name in students:
        found = _trained(*name.split(), mesh, process, steps)
        np.savez(f"{out}/{name}-{process}.npz", *found)
    everyone = parallel.summed(np.eye(processes)[process])
    np.testing.assert_array_equal(everyone, np.ones(processes))
    shared = parallel.shard_batch({"own": np.full(3, process)}, mesh)["own"]
    np.testing.assert_array_equal(parallel.own_rows(shared), np.full(3, process))
    assert hosts.broadcast(lambda: {"process": process}) == {"process": 0}


def _trained(how, kind, mesh, process, steps) -> list:
    import jax

    import bitflax as bf
    from bitflax.training import parallel

    step, state, teacher, batch = student(kind)
    # Only process 0's numbers count.
    teacher = jax.tree.map(lambda x: x + 7 * process, teacher)
    state, teacher = parallel.replicate((state, teacher), mesh)
    step = bf.pmapped(step) if how == "pmap" else bf.data_parallel(step, mesh)
    own_rows = slice(process * 16 // mesh.size, (process + 1) * 16 // mesh.size)
    for number in range(steps):
        own = {name: array[own_rows] for name, array in batch(number).items()}
        state, metrics = step(state, teacher, parallel.shard_batch(own, mesh))
        jax.block_until_ready(metrics)
    return jax.tree.leaves(parallel.to_local(state.params))


if __name__ == "__main__":
    place, processes, process, steps, *rest = sys.argv[1:]
    train(place, int(processes), int(process), int(steps), *rest)
