"""Many processes as one run: what they tell each other, and how they end together.

They talk over the service that ``jax.distributed`` keeps on process 0, not over their
devices: so it works beside a computation, and when a process fell out of one. With one
process, which is all that most runs have, nothing here does anything.
"""

import atexit
import contextlib
import ctypes
import itertools
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax

from bitflax.errors import HostLost, UsageError

T = TypeVar("T")

HEARTBEAT_SECONDS = 20
"""After so many without a sign of life the other processes give one up."""
LINGER = 2.0
"""Seconds that a process which failed waits, so that the others hear why."""
GRACE = 1.0
"""Seconds that a process has, once another has failed, to fail alike by itself."""
_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "callback")
"""What a runtime says of this process's own failures, not of another's."""
_FOREVER = 7 * 24 * 3600 * 1000
_ENDED = "bitflax/ended"
_FLAGS = "bitflax/flags"
_numbers = itertools.count()
_watcher: threading.Thread | None = None
_together = False
_leaving = False
_told = False


def initialize(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Join the other processes of a run; once, before any computation.

    Without arguments: as TPU pods, Slurm and Open MPI say in their environment;
    elsewhere, and with one process, nothing happens. If a process fails or is killed,
    the others end too, within seconds.

    Args:
      coordinator: ``HOST:PORT`` of process 0, the port any free one.
      processes: how many there are.
      process: the number of this one, from 0.

    Raises:
      UsageError: some arguments without the others, or wrong ones; jax has been used
        before; or the others did not come.
    """
    if jax.distributed.is_initialized():
        return
    given = {"coordinator": coordinator, "processes": processes, "process": process}
    missing = [f"--{name}" for name, value in given.items() if value is None]
    if len(missing) == 3:
        if not _known_cluster():
            return
    else:
        _check_arguments(missing, **given)
        if processes == 1:
            return
        _say(f"process {process} of {processes} waits for the others at {coordinator}")
        if process:
            _reach(str(coordinator))
    # jax installs its own handler of SIGTERM, which saves nothing.
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        raise UsageError(
            coordinator or "jax.distributed",
            f"the processes did not come together: {str(error).splitlines()[0]}",
            fix="start each of them, before it uses jax, with its own --process and a "
            "free port",
        ) from error
    for number, handler in before.items():
        with contextlib.suppress(ValueError):  # not in the main thread
            signal.signal(number, handler)
    _watch()


def process_part() -> tuple[int, int]:
    """Return this process's number and how many there are.

    >>> process_part()
    (0, 1)
    """
    return jax.process_index(), jax.process_count()


def is_main_process() -> bool:
    """Whether this is the process that writes."""
    return jax.process_index() == 0


def broadcast(make: Callable[[], T]) -> T:
    """Return what ``make`` returns on process 0, on all; they all have to come here.

    Args:
      make: called on process 0 alone; returns JSON.

    >>> broadcast(lambda: {"step": 3})
    {'step': 3}
    """
    if jax.process_count() == 1:
        return make()
    key = f"bitflax/share/{next(_numbers)}"
    if is_main_process():
        value = make()
        _client().key_value_set(key, json.dumps(value))
        return value
    return json.loads(_client().blocking_key_value_get(key, _FOREVER))


def barrier() -> None:
    """Wait until all processes have come here."""
    if jax.process_count() > 1:
        _client().wait_at_barrier(f"bitflax/barrier/{next(_numbers)}", _FOREVER)


def raise_flag(value: int) -> None:
    """Hand process 0 a number, which it finds by ``taken_flag``; the first counts."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(f"{_FLAGS}/0", str(value))


def taken_flag() -> int | None:
    """Return the number that a process has handed over, once."""
    found = _client().key_value_dir_get(_FLAGS)
    if not found:
        return None
    _client().key_value_delete(_FLAGS)
    return int(found[0][1])


def stop_together() -> None:
    """Say that all processes are about to stop at this point, none of them alone."""
    global _together
    _together = True


def leave_run(error: BaseException, status: int) -> None:
    """Tell the others why this process ends, and end it; unless all stop together.

    Nothing is waited for: the others may hang in a computation that this one left.
    """
    if _watcher is not None and not _together:
        _exit(status, wait=_tell(error, status) or is_main_process())


@contextlib.contextmanager
def failures_told() -> Iterator[None]:
    """Tell the others at once if the body fails: the script may catch its error."""
    global _leaving
    try:
        yield
    except BaseException as error:
        if _watcher is not None and not _together:
            error = lost_host(error) or error
            _tell(error, getattr(error, "status", 1))
        raise
    _leaving = False  # all came through


def lost_host(error: BaseException) -> HostLost | None:
    """Return what a runtime's error says of another process; None: nothing."""
    global _leaving
    if _watcher is None:
        return None
    _leaving = True
    runtime = isinstance(error, jax.errors.JaxRuntimeError)
    if not runtime or any(mark in str(error) for mark in _OWN):
        return None
    first_line = str(error).splitlines()[0]
    return HostLost(
        f"process {jax.process_index()} of {jax.process_count()}",
        f"another process is gone ({first_line})",
        fix="see what it said; then the same command everywhere, on as many processes "
        "as you like, goes on from the last checkpoint",
    )


def _state() -> Any:
    # jax has no public name for it; orbax takes it from here too.
    from jax._src import distributed

    return distributed.global_state


def _client() -> Any:
    return _state().client


def _watch() -> None:
    """Begin to listen whether another process fails; from then on all end together."""
    global _watcher
    _watcher = threading.Thread(target=_listen, name="hosts", daemon=True)
    _watcher.start()
    atexit.register(_at_exit)  # runs before jax's own, which waits for minutes


def _tell(error: BaseException, status: int) -> bool:
    """Return whether this process, no other before it, said why all end."""
    global _told
    text = str(error) or type(error).__name__
    what = {"process": jax.process_index(), "error": text, "status": status}
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(_ENDED, json.dumps(what), allow_overwrite=_told)
        _told = True
    return _told


def _heard() -> Any:
    return json.loads(_client().blocking_key_value_get(_ENDED, _FOREVER))


def _listen() -> None:
    try:
        if said := _heard():
            time.sleep(GRACE)
            said = _heard()  # the command line may have said it better
    except jax.errors.JaxRuntimeError as error:
        if not (_together or _leaving) and (gone := lost_host(error)):
            _say(f"bitflax: error: {gone}")
            _exit(gone.status)
        return
    if said and not _leaving and said["process"] != jax.process_index():
        _say(f"bitflax: error: process {said['process']} failed: {said['error']}")
        _exit(said["status"], wait=is_main_process())


def _at_exit() -> None:
    failure = getattr(sys, "last_value", None)  # of a script, which nobody caught
    if failure is not None:
        leave_run(failure, 1)
    if _leaving and not _together:
        return _part_ways()
    stop_together()
    barrier()
    if is_main_process():
        _client().key_value_set(_ENDED, "{}", allow_overwrite=True)
    if _watcher is not None:
        _watcher.join(LINGER)


def _part_ways() -> None:
    """End without the others, who hear why; or with them, if they failed alike."""
    state = _state()
    try:
        most = int(1000 * LINGER * (1 + is_main_process()))
        state.client.wait_at_barrier("bitflax/failed", most)
    except jax.errors.JaxRuntimeError:
        # jax's shutdown, which a destructor calls too, waits for those who are gone,
        # and aborts.
        for held in (state.client, state.service):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
        state.client = state.service = None


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)


def _exit(status: int, wait: bool = False) -> None:
    # Process 0 takes the service along: it goes last.
    time.sleep(LINGER * (1 + is_main_process()) if wait else 0)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(status)


REACH_SECONDS = 240.0


def _known_cluster() -> bool:
    """Return whether the environment names who takes part, and several do."""
    # Which environments jax knows has no public name. Kubernetes is left out: asking
    # it warns or fails in every container that is no job of several.
    try:
        from jax._src import clusters

        names = ("gcetpu", "gketpu", "slurm", "ompi")
        kinds = clusters.ClusterEnv._cluster_types
        known = [c for c in kinds if getattr(c, "name", None) in names]
        here = next((c for c in known if c.is_env_present()), None)
        return here is not None and here.get_process_count() > 1
    except (OSError, RuntimeError):  # a TPU's host that has nobody to ask
        return False
    except (ImportError, AttributeError):  # another jax: most runs are alone
        return False


def _check_arguments(
    missing: list[str], coordinator: Any, processes: Any, process: Any
) -> None:
    """Check what a person gave to join by; ``missing`` names what was not given.

    Raises:
      UsageError: something is missing or wrong.
    """
    fix = "give --coordinator HOST:PORT --processes N --process I, I from 0 to N - 1"
    if missing:
        raise UsageError(" and ".join(missing), "not given", fix=fix)
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        problem = f"expected HOST:PORT, found {coordinator!r}"
        raise UsageError("--coordinator", problem, fix="as 10.0.0.2:8476")
    if processes < 1:
        problem = f"expected 1 or more, found {processes}"
        raise UsageError("--processes", problem, fix=fix)
    if not 0 <= process < processes:
        problem = f"expected 0 to {processes - 1}, found {process}"
        raise UsageError("--process", problem, fix=fix)


def _reach(coordinator: str) -> None:
    """Wait until process 0 listens: where jax gives up it aborts without a word.

    Raises:
      UsageError: it is not reached in ``REACH_SECONDS``.
    """
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + REACH_SECONDS
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()
            return
        except OSError as error:
            if time.monotonic() > until:
                problem = f"process 0 is not reached at {coordinator}: {error}"
                fix = "start process 0; give its address as this host reaches it"
                raise UsageError("--coordinator", problem, fix=fix) from error
        time.sleep(0.2)
