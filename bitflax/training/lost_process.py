"""A process that is lost or fails ends the others: exit status 69, or the one it had.

They hear of it over the service that ``jax.distributed`` keeps on process 0: a
computation that one of them left hangs. jax aborts the others in the end, without the
reason. With one process, which is all that most runs have, nothing here does anything.

All that bitflax uses without a public name is in this file. Its tests passed with jax
0.7.2, 0.10.2 and 0.12.0:

- ``jax._src.distributed.global_state``, its ``client`` (``key_value_set``,
  ``blocking_key_value_get``, ``key_value_dir_get``, ``key_value_delete``,
  ``wait_at_barrier``), ``service`` and ``process_id``: ``jax.distributed`` hands none
  of them out, and what ``multihost_utils`` offers runs on the devices. orbax takes them
  from here too.
- ``jax._src.clusters.ClusterEnv``: ``_cluster_types``, ``name``, ``is_env_present``,
  ``get_process_count``. ``jax.distributed.initialize`` asks them and raises where
  nobody is found; it cannot be asked first.
- ``ctypes.pythonapi.Py_IncRef``, as the last reference to a client calls its shutdown,
  which waits for those who are gone, and aborts; no option of jax's turns that off.
"""

import atexit
import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax

from bitflax import signals
from bitflax.errors import HostLost

LINGER = 2.0
"""Seconds that a process which failed waits, so that the others hear why."""
GRACE = 1.0
"""Seconds that a process has, once another has failed, to fail alike by itself."""
FOREVER = 7 * 24 * 3600 * 1000
"""Milliseconds, as the client counts."""
_OWN = ("RESOURCE_EXHAUSTED", "INVALID_ARGUMENT", "UNIMPLEMENTED", "callback")
"""What a runtime says of this process's own failures, not of another's."""
_ENDED = "bitflax/ended"
_watcher: threading.Thread | None = None
_together = False
_leaving = False
_told = False


def client() -> Any:
    """Return what this process reaches the service by: texts by key, and barriers."""
    return _state().client


def known_cluster() -> bool:
    """Return whether the environment names who takes part, and several do."""
    # Kubernetes is left out: asking it warns or fails in every container that is no
    # job of several.
    names = ("gcetpu", "gketpu", "slurm", "ompi")
    try:
        from jax._src import clusters

        kinds = clusters.ClusterEnv._cluster_types
        known = [c for c in kinds if getattr(c, "name", None) in names]
        here = next((c for c in known if c.is_env_present()), None)
        return here is not None and here.get_process_count() > 1
    except (OSError, RuntimeError):  # a TPU's host that has nobody to ask
        return False
    except (ImportError, AttributeError):  # another jax: most runs are alone
        return False


def watch() -> None:
    """Begin to listen whether another process fails; from then on all end together."""
    global _watcher
    signals.together = True
    _watcher = threading.Thread(target=_listen, name="lost", daemon=True)
    _watcher.start()
    atexit.register(_at_exit)  # runs before jax's own, which waits for minutes


def stop_together() -> None:
    """Say that all processes are about to stop at this point, none of them alone."""
    global _together
    _together = True


def leave_run(error: BaseException, status: int) -> None:
    """Tell the others why this process ends, and end it; unless all stop together.

    Nothing is waited for: the others may hang in a computation that this one left.
    """
    if _watcher is not None and not _together:
        _exit(status, wait=_tell(error, status) or _has_service())


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
    from jax._src import distributed

    return distributed.global_state


def _has_service() -> bool:
    """Whether the service ends with this process, which so goes last."""
    return _state().process_id == 0


def _tell(error: BaseException, status: int) -> bool:
    """Return whether this process, no other before it, said why all end."""
    global _told
    text = str(error) or type(error).__name__
    if isinstance(error, KeyboardInterrupt):
        text, status = "", 128 + (error.args or (signal.SIGINT,))[0]
    what = {"process": _state().process_id, "error": text, "status": status}
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client().key_value_set(_ENDED, json.dumps(what), allow_overwrite=_told)
        _told = True
    return _told


def _heard() -> Any:
    return json.loads(client().blocking_key_value_get(_ENDED, FOREVER))


def _listen() -> None:
    try:
        if said := _heard():
            time.sleep(GRACE)
            said = _heard()  # the command line may have said it better
    except jax.errors.JaxRuntimeError as error:
        if not (_together or _leaving) and (gone := lost_host(error)):
            _exit(gone.status, f"bitflax: error: {gone}")
        return
    if said and not _leaving and said["process"] != _state().process_id:
        text = f"bitflax: error: process {said['process']} failed: {said['error']}"
        text = text if said["error"] else signals.WORDS
        _exit(said["status"], text, wait=_has_service())


def _at_exit() -> None:
    failure = getattr(sys, "last_value", None)  # of a script, which nobody caught
    if failure is not None:
        leave_run(failure, 1)
    if _leaving and not _together:
        return _part_ways()
    stop_together()
    client().wait_at_barrier("bitflax/done", FOREVER)
    if _has_service():
        client().key_value_set(_ENDED, "{}", allow_overwrite=True)
    if _watcher is not None:
        _watcher.join(LINGER)


def _part_ways() -> None:
    """End without the others, who hear why; or with them, if they failed alike."""
    state = _state()
    try:
        most = int(1000 * LINGER * (1 + _has_service()))
        state.client.wait_at_barrier("bitflax/failed", most)
    except jax.errors.JaxRuntimeError:
        for held in (state.client, state.service):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(held))
        state.client = state.service = None


def _exit(status: int, text: str = "", wait: bool = False) -> None:
    """End at once; a log's handlers might not get to write the last words."""
    with contextlib.suppress(OSError, ValueError):
        if text:
            print(text, file=sys.stderr, flush=True)
    time.sleep(LINGER * (1 + _has_service()) if wait else 0)
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    os._exit(status)
