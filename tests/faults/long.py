"""The long form of the faults, an hour or more: ``python tests/faults/long.py``.

200 kills, 5,000 damages, 60 disk sizes (as root, who may mount), 200 races, kills
before and after every kind of file operation and errors of three kinds there, and
signals every 25 ms of the first 5 s.
"""

import os
import pathlib
import subprocess
import sys

if __name__ == "__main__":
    root = pathlib.Path(__file__).parents[2]
    argv = [sys.executable, "-m", "pytest", "-m", "faults", "tests/faults"]
    argv += ["--dist=worksteal", *sys.argv[1:]]
    env = os.environ | {"BITFLAX_FAULTS": "long"}
    sys.exit(subprocess.run(argv, cwd=root, env=env).returncode)
