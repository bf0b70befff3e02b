"""Many processes as one run: how they come together, and what they tell each other.

They talk over the service that ``jax.distributed`` keeps on process 0, not over their
devices: so it works beside a computation. With one process nothing is sent.
"""

import contextlib
import itertools
import json
import logging
import signal
import socket
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax

from bitflax import progress
from bitflax.errors import UsageError
from bitflax.training import lost_process

T = TypeVar("T")

_LOG = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 20
"""After so many without a sign of life the other processes give one up."""
REACH_SECONDS = 240.0
"""So long a process looks for process 0."""
_FLAGS = "bitflax/flags"
_numbers = itertools.count()


@progress.lines_shown()
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
        if not lost_process.known_cluster():
            return
    else:
        _check_arguments(missing, **given)
        if processes == 1:
            return
        text = "process %d of %d waits for the others at %s"
        _LOG.info(text, process, processes, coordinator)
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
    lost_process.watch()


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
    client, key = lost_process.client(), f"bitflax/share/{next(_numbers)}"
    if is_main_process():
        value = make()
        client.key_value_set(key, json.dumps(value))
        return value
    return json.loads(client.blocking_key_value_get(key, lost_process.FOREVER))


def barrier() -> None:
    """Wait until all processes have come here."""
    if jax.process_count() > 1:
        name = f"bitflax/barrier/{next(_numbers)}"
        lost_process.client().wait_at_barrier(name, lost_process.FOREVER)


def raise_flag(value: int) -> None:
    """Hand process 0 a number, which it finds by ``take_flag``; the first counts."""
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        lost_process.client().key_value_set(f"{_FLAGS}/0", str(value))


def take_flag() -> int | None:
    """Return the number that a process has handed over, once."""
    client = lost_process.client()
    found = client.key_value_dir_get(_FLAGS)
    if not found:
        return None
    client.key_value_delete(_FLAGS)
    return int(found[0][1])


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
