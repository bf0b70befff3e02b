"""The PyTorch peer of the benchmarks computes what we compute; the programs run."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest

import bitflax as bf
from bitflax.data import icd10
from bitflax.data.passages import sha256
from tests.benchmarks import cuts, steps
from tests.helpers import flags

ROOT = pathlib.Path(__file__).parent.parent
CUTS = "c135fa175b177d02f965861ce43270f2d295a30cf18f8e4260adfc7481aad3a2"
PROGRAMS = {
    "train_step": ["--shapes", "2x8", "--sides", "fp32", "1-bit"],
    "scaling": ["--shape", "8x8"],
    "estimate": [],
    "inference": ["--threads", "1", "--loads", "1"],
    "compile": [
        "--rows",
        "4",
        "--length",
        "16",
        "--set",
        "layers=1",
        "--only",
        "scores",
    ],
    "memory": ["--shape", "8x16", "--kinds", "1-bit", "1-bit recompute"],
}


@pytest.fixture(scope="module")
def peer():
    pytest.importorskip("torch")
    from tests.benchmarks import peer

    return peer


@pytest.mark.parametrize("kind", ["fine-tuning", "fp32", "1-bit"])
def test_the_peer_learns_as_we_do(kind, peer):
    # A sign or a level that flips in between would show as more than this.
    lengths, optim = np.array([12, 16, 7, 9]), bf.Optim(lr=1e-3, warmup=1e-3)
    batches = steps.random_batches("tiny", lengths, batch_size=4, buckets=(16,))
    one = jax.devices()[:1]
    ours = steps.Stepper(
        kind, "tiny", batches, devices=one, optim=optim, count_padding=True
    )
    theirs = peer.Stepper(kind, "tiny", batches, optim=optim)
    first = None
    for _ in range(6):
        metrics, parts = ours(), theirs()
        first = first or parts
        for name, value in parts.items():
            assert float(metrics[name]) == pytest.approx(value, rel=1e-4, abs=1e-7)
    assert parts != first


def test_cuts_are_even_and_hold_one_another():
    found = {name: [f"{name}{i}" for i in range(n)] for name, n in
             [("A", 30), ("B", 12), ("C", 25), ("D", 3)]}  # fmt: skip
    made = cuts.cut(found, 2, [4, 21])
    assert {name: len(rows) for name, rows in made.items()} == {
        "dev": 20, "4": 4, "21": 20
    }  # fmt: skip
    assert [label for _, label in made["4"]] == ["A", "A", "C", "C"]
    assert set(made["4"]) < set(made["21"])
    assert not set(made["dev"]) & set(made["21"])
    with pytest.raises(SystemExit, match="fewer than 3 sections have 13 texts"):
        cuts.cut(found, 3, [9])
    with pytest.raises(SystemExit, match="1 rows are fewer than 2 classes"):
        cuts.cut(found, 2, [4, 1])


@pytest.mark.skipif(
    importlib.util.find_spec(icd10.PACKAGE) is None,
    reason="simple-icd-10-cm (the extra demo) is not installed",
)
def test_the_cuts_that_were_measured():
    made = cuts.cut(cuts.sections(), 77, [539, 2002, 8008])
    assert [len(made[name]) for name in ("dev", "539", "2002", "8008")] == [
        770, 539, 2002, 8008
    ]  # fmt: skip
    assert sha256(repr(made)) == CUTS


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_writes_its_json(name):
    rounds = [] if name in ("compile", "estimate") else ["--rounds", "1"]
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--model", "tiny"]
    found = subprocess.run(
        [*command, *rounds, *PROGRAMS[name]],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": flags.QUICK},
        stdout=subprocess.PIPE,
        check=True,
    )
    record = json.loads(found.stdout)
    assert record["benchmark"] == name
    assert record["machine"]["versions"]["jax"] == jax.__version__


@pytest.mark.slow
def test_a_recipe_that_is_not_covered_is_refused():
    command = [sys.executable, "-m", "tests.benchmarks.compile", "--only", "nothing"]
    more = ["--recipe", "general_kd", "--set", "layers=1", "--model", "tiny"]
    found = subprocess.run(
        [*command, *more],
        cwd=ROOT,
        env={"JAX_PLATFORMS": "cpu", **os.environ},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert found.returncode == 1
    assert found.stderr.endswith("general: a corpus: not covered\n")


@pytest.mark.slow
@pytest.mark.parametrize(("target", "plugin"), [
    ("v5e:2x4", "libtpu"), ("v5e:4x8", "libtpu"), ("h100", "jax_plugins.xla_cuda12"),
])  # fmt: skip
def test_the_one_bit_step_compiles_for_devices_that_are_not_there(target, plugin):
    try:
        importlib.import_module(plugin)
    except ImportError:
        pytest.skip(f"{plugin} is not installed: pip install 'jax[tpu,cuda12]'")
    command = [sys.executable, "-m", "tests.benchmarks.compile", "--target", target]
    found = subprocess.run(
        [
            *command,
            "--model",
            "tiny",
            "--length",
            "16",
            "--set",
            "layers=1",
            "--only",
            "step, onebit",
        ],
        cwd=ROOT,
        env={"JAX_PLATFORMS": "cpu", **os.environ},
        stdout=subprocess.PIPE,
        check=True,
    )
    (step,) = json.loads(found.stdout)["programs"].values()
    assert step["kernels"] > 0
    # Gradients together and the means' counts together, not one an array.
    assert step["all-reduces"] <= 3
