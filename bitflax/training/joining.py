"""How the processes of a run find each other, before ``bitflax.training.hosts`` joins them."""

import socket
import time
from typing import Any

from bitflax.errors import UsageError

REACH_SECONDS = 240.0


def known_cluster() -> bool:
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


def check(missing: list[str], coordinator: Any, processes: Any, process: Any) -> None:
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


def reach(coordinator: str) -> None:
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
