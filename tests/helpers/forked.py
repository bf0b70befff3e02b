"""The command in processes that are forked from a warm one, which spares each imports.

The warm process imports what runs need and computes nothing: a backend that has begun
does not live through a fork.
"""

import atexit
import gc
import multiprocessing
import os
import sys
from pathlib import Path

WARM = ["bitflax.cli", "orbax.checkpoint", "tensorboardX", "transformers", "tqdm"]
WARM += ["transformers.models.auto.tokenization_auto", "tests.faults.runs"]
WARM += ["transformers.models.bert.configuration_bert", "jaxlib.mlir.dialects.mhlo"]
WARM += ["sklearn.feature_extraction.text", "sklearn.svm", "scipy.stats"]

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(WARM)


class Forked:
    """``bitflax`` with these arguments, in a process of its own.

    Args:
      argv: the arguments.
      out: the file that its stdout is written to.
      err: the file that its stderr is written to.
      hooks: called in the process before the command.
      env: what its environment has besides.
      folder: where it runs.
    """

    def __init__(self, argv, out: Path, err: Path, *hooks, env=(), folder=None):
        args = (list(map(str, argv)), str(out), str(err), hooks, dict(env), folder)
        self._process = _context.Process(target=_child, args=args)
        self._process.start()
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return its status, the negative number of the signal that ended it; or None."""
        return self._process.exitcode

    def wait(self, seconds: float | None = None) -> int | None:
        """Return as ``poll`` does once it has ended, or so many seconds have passed."""
        self._process.join(seconds)
        return self.poll()

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self._process.kill()


def _child(argv, out, err, hooks, env, folder):
    for number, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        os.dup2(file, number)
    sys.stdout = os.fdopen(1, "w")
    # As Python itself opens it.
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    sys.argv = ["bitflax", *argv]
    os.environ.update(env)
    if folder is not None:
        os.chdir(folder)
    gc.freeze()  # what was imported stays
    gc.set_threshold(50_000)
    from bitflax import cli

    for hook in hooks:
        hook()
    status = cli.main()
    # One of several processes comes back, and parts from the others at its exit.
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)
