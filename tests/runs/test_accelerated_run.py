"""A run with an accelerator's choices: few programs, and the results of a processor's."""

import collections
import json
import logging
import re

import jax
import pytest

from bitflax import inference, training
from bitflax.data import tasks
from bitflax.inference import engines
from bitflax.training import device_choices
from tests.helpers import tinyrun

SMALL = 20
"""Programs of a run besides those of the model."""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("accelerated")
    tinyrun.write_recipe(folder)
    tinyrun.write_teacher(folder / "pretrained")
    tinyrun.write_task(folder)
    return folder


def start(place, out):
    settings = (f"task={place / 'kinds.tsv'}", f"teacher={place / 'pretrained'}")
    return tinyrun.run(place / "tiny.py", out, *settings)


@pytest.fixture
def accelerator(monkeypatch):
    """One length of batches, the teacher in the steps, programs compiled ahead."""
    monkeypatch.setattr(device_choices, "compile_threads", lambda: 1)
    monkeypatch.setattr(training, "has_accelerator", lambda: True)
    monkeypatch.setattr(training, "keeps_outputs", lambda *given: False)
    monkeypatch.setattr(engines, "_has_accelerator", lambda: True)
    for module in (training, engines):
        monkeypatch.setattr(module, "shape_tokens", lambda *given: 10**9)


@pytest.mark.slow
def test_a_run_has_six_large_programs(place, tmp_path, accelerator, caplog):
    jax.clear_caches()  # what other tests have compiled
    jax.config.update("jax_log_compiles", True)  # in all threads
    try:
        with caplog.at_level(logging.WARNING):
            rows = start(place, tmp_path)
    finally:
        jax.config.update("jax_log_compiles", False)
    said = "\n".join(caplog.messages)
    made = collections.Counter(re.findall(r"Finished XLA compilation of (\S+)", said))
    assert (made.pop("jit(step)"), made.pop("jit(logits)")) == (3, 3)
    assert sum(made.values()) <= SMALL, made
    # The engine of a processor reads the file, and says the same.
    task = tasks.load_task(place / "kinds.tsv")
    assert inference.load(tmp_path, "jax").score(task)["accuracy"] == rows[-1].score
    kept = json.loads((tmp_path / "report.json").read_text())["findings"]
    assert "jax" not in [each["engine"] for each in kept["latency"]]
