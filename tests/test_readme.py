"""The README's research code runs as printed, on a small model."""

import dataclasses
import pathlib
import re

import jax
import numpy as np

import bitflax as bf
from bitflax.data.text import Tokenizer
from bitflax.model import leaves
from tests.helpers import small, tinyrun

README = pathlib.Path(__file__).parent.parent / "README.md"


def halved(leaf):
    return isinstance(leaf, leaves.Split)


def close(one, other):
    np.testing.assert_allclose(one, other, atol=1e-6)


def test_the_readmes_code_runs_as_printed(tmp_path, monkeypatch):
    codes = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    folder = tmp_path / "runs" / "quickstart" / "0-teacher" / "params"
    folder.parent.mkdir(parents=True)
    made = tinyrun.write_teacher(tmp_path / "two-layers")
    config, _ = bf.load_pretrained(made)
    config = dataclasses.replace(config, num_hidden_layers=6)
    params = small.params(config)
    bf.save_pretrained(folder, config, params, Tokenizer.from_folder(made))
    monkeypatch.chdir(tmp_path)
    with tinyrun.devices(1):
        split, steps = ran = [{} for _ in codes]
        for code, names in zip(codes, ran, strict=True):
            exec(compile(code, str(README), "exec"), names)
    assert int(steps["state"].step) == 1
    assert {"logits", "hidden", "scores", "margin"} < set(steps["metrics"])
    before = bf.quantize(split["params"], split["ternary"])
    jax.tree.map(
        close, jax.tree.map(leaves.dense, split["binary"], is_leaf=halved), before
    )
    assert bf.load("model.safetensors").config.num_hidden_layers == 3
