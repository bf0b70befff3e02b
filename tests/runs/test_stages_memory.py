"""Freed memory stays with the process, so that a step does not fault it in again."""

import subprocess
import sys

import pytest

FAULTS = """
import resource, sys
import numpy as np
from bitflax import memory
if sys.argv[1] == "keep":
    assert memory.keep_freed_pages()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
np.ones(8 << 20)
before = faults()
for _ in range(5):
    np.ones(8 << 20)
print(faults() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a setting of glibc's")
def test_pages_are_faulted_in_once():
    def count(how):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout)

    assert count("keep") < count("default") / 10
