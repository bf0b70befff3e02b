"""The README's research code runs as printed, on a small model."""

import dataclasses
import pathlib
import re

import jax

import bitflax as bf
from bitflax.data.text import Tokenizer
from tests import tinyrun

README = pathlib.Path(__file__).parent.parent / "README.md"


def test_the_readmes_code_runs_as_printed(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    folder = tmp_path / "runs" / "quickstart" / "0-teacher" / "params"
    folder.parent.mkdir(parents=True)
    made = tinyrun.write_teacher(tmp_path / "two-layers")
    config, _ = bf.load_pretrained(made)
    config = dataclasses.replace(config, num_hidden_layers=6)
    params = bf.init_params(config, jax.random.key(0))
    bf.save_pretrained(folder, config, params, Tokenizer.from_folder(made))
    monkeypatch.chdir(tmp_path)
    with tinyrun.devices(1):
        names: dict = {}
        exec(compile(code, str(README), "exec"), names)
    assert int(names["state"].step) == 1
    assert {"logits", "hidden", "scores", "margin"} < set(names["metrics"])
    assert bf.load("model.safetensors").config.num_hidden_layers == 3
