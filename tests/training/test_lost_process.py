"""A process that fails or is lost: what the others hear, and how they end."""

import threading
import types

import jax
import pytest

from bitflax import signals
from bitflax.errors import ConfigError, HostLost
from bitflax.training import lost_process
from tests.helpers import hosted


def test_alone_nobody_is_lost_or_told():
    lost_process.leave_run(ConfigError("a", "b", fix="c"), 78)  # returns
    error = jax.errors.JaxRuntimeError("Gloo: connection reset")
    assert lost_process.lost_host(error) is None


@pytest.mark.parametrize(
    ("said", "of"),
    [
        ("Gloo AllReduce failed: connection closed by peer [10.0.0.2]", HostLost),
        ("UNAVAILABLE: the coordination service is gone", HostLost),
        ("RESOURCE_EXHAUSTED: out of memory allocating 1 byte", type(None)),
        ("INVALID_ARGUMENT: buffer passed to Execute() has been deleted", type(None)),
        ("INTERNAL: CpuCallback error calling callback: KeyError: 3", type(None)),
    ],
)
def test_a_failure_of_ones_own_is_no_lost_process(monkeypatch, said, of):
    monkeypatch.setattr(lost_process, "_watcher", threading.current_thread())
    monkeypatch.setattr(lost_process, "_leaving", False)
    assert type(lost_process.lost_host(jax.errors.JaxRuntimeError(said))) is of


def test_environments_that_jax_names_otherwise_are_no_hindrance(monkeypatch):
    from jax._src import clusters

    nameless = [type("Cluster", (), {})]  # as jax 0.7's Kubernetes
    monkeypatch.setattr(clusters.ClusterEnv, "_cluster_types", nameless)
    assert not lost_process.known_cluster()
    monkeypatch.delattr(clusters.ClusterEnv, "_cluster_types")
    assert not lost_process.known_cluster()


SCRIPT = """
import sys
from bitflax.training import hosts

place, process, odd = sys.argv[1:]
hosts.initialize(place, 2, int(process))
hosts.barrier()
if process == odd:
    raise ValueError("my own mistake")
hosts.broadcast(hosts.barrier)
"""


@pytest.mark.slow
@pytest.mark.parametrize("odd", [0, 1])
def test_a_script_s_own_error_ends_the_other_process(odd, tmp_path):
    place = f"127.0.0.1:{hosted.free_port()}"
    commands = [["-c", SCRIPT, place, i, odd] for i in range(2)]
    with hosted.Processes(commands, tmp_path, fresh=True) as processes:
        assert processes.statuses() == [1, 1]
        assert "ValueError: my own mistake" in processes.said(odd)
        failed = f"bitflax: error: process {odd} failed: my own mistake"
        assert failed in processes.said(1 - odd)


CATCHING = """
import sys
import bitflax as bf
from bitflax.errors import BitflaxError

place, process, odd, status, out = sys.argv[1:]
bf.initialize(place, 2, int(process))
try:
    bf.run(bf.Recipe(), out, until="no stage" if process in odd else None)
except BitflaxError as error:
    print("caught", flush=True)
    sys.exit(int(status) or error.status)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("odd", "status", "expected"),
    [
        ("0", 0, [2, 2]),
        ("1", 0, [2, 2]),
        ("1", 3, [2, 3]),
        ("01", 3, [3, 3]),
    ],
)
def test_a_script_may_catch_the_error_of_its_run(odd, status, expected, tmp_path):
    place = f"127.0.0.1:{hosted.free_port()}"
    base = ["-c", CATCHING, place]
    commands = [[*base, i, odd, status, tmp_path / "out"] for i in range(2)]
    with hosted.Processes(commands, tmp_path, fresh=True) as processes:
        assert processes.statuses(60) == expected
        for process in range(2):
            caught = processes.outputs[process].read_text() == "caught\n"
            assert caught == (str(process) in odd)
            told = f"process {1 - process} failed: --until no stage"
            assert (told in processes.said(process)) != caught


class Service:
    """What the processes of a run tell each other by, in this one."""

    def __init__(self):
        self.said = {}

    def key_value_set(self, key, value, allow_overwrite):
        self.said[key] = value

    def blocking_key_value_get(self, key, wait):
        return self.said[key]


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (signals.Stopped(15), 143, signals.WORDS),
        (KeyboardInterrupt(), 130, signals.WORDS),
        (ConfigError("a", "b", fix="c"), 78, "bitflax: error: process 1 failed: a: b"),
    ],
)
def test_a_stop_is_no_failure(monkeypatch, error, status, words):
    service, ended = Service(), []
    state = types.SimpleNamespace()
    monkeypatch.setattr(lost_process, "_state", lambda: state)
    monkeypatch.setattr(lost_process, "client", lambda: service)
    monkeypatch.setattr(lost_process, "_told", False)
    monkeypatch.setattr(lost_process, "_exit", lambda *args, **_: ended.append(args))
    monkeypatch.setattr(lost_process.time, "sleep", lambda seconds: None)
    state.process_id = 1
    assert lost_process._tell(error, getattr(error, "status", 1))
    state.process_id = 0
    lost_process._listen()
    ((code, said),) = ended
    assert (code, said.splitlines()[0]) == (status, words)
