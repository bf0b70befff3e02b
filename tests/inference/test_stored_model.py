"""What a path holds, as it was stored; ``test_predict`` runs it."""

import json

import numpy as np
import pytest

import bitflax as bf
from bitflax.errors import ConfigError, InputMissing
from bitflax.inference import stored_model
from bitflax.model import pretrained
from bitflax.model.leaves import Packed, Split
from bitflax.packed import file, packing
from tests.inference.test_predictor import CONFIG, params, tokenizer


def save(path, extras=None, tokenizer=None):
    packed = packing.pack(params(), bf.xtc_1bit())
    act = bf.symmetric(bits=8)
    file.save_packed(path, CONFIG, packed, act, tokenizer, extras)
    return path


def test_a_packed_file_is_opened_as_it_is(tmp_path):
    path = save(tmp_path / "m", {"max_length": 6, "task": "mine"}, tokenizer())
    found = stored_model.read_model(path)
    assert (found.config, found.act) == (CONFIG, bf.symmetric(bits=8))
    assert isinstance(found.params["encoder"]["layer_0"]["ffn"]["in"]["kernel"], Packed)
    assert found.tokenizer.to_json() == tokenizer().to_json()
    assert (found.extras["task"], found.max_length) == ("mine", 6)


def test_a_file_without_tokenizer_is_opened(tmp_path):
    found = stored_model.read_model(save(tmp_path / "m"))
    assert (found.tokenizer, found.max_length) == (None, None)


def test_a_folder_is_dense(tmp_path):
    pretrained.save_pretrained(tmp_path / "m", CONFIG, params(), tokenizer())
    found = stored_model.read_model(tmp_path / "m")
    assert (found.config, found.act, found.extras) == (CONFIG, None, {"max_length": 16})
    kernel = found.params["pooler"]["kernel"]
    np.testing.assert_array_equal(kernel, params()["pooler"]["kernel"])


def test_a_folder_needs_a_tokenizer(tmp_path):
    pretrained.save_pretrained(tmp_path / "m", CONFIG, params())
    with pytest.raises(InputMissing, match=r"tokenizer\.json"):
        stored_model.read_model(tmp_path / "m")


def test_latent_halves_are_refused(tmp_path):
    halves = bf.split(params(), bf.xtc_2bit())
    pretrained.save_pretrained(tmp_path / "m", CONFIG, halves, tokenizer(), extra=True)
    with pytest.raises(ConfigError, match="two latent halves") as raised:
        stored_model.read_model(tmp_path / "m")
    assert raised.value.place == str(tmp_path / "m")
    assert "the run's folder" in raised.value.fix


@pytest.mark.parametrize("split", [True, False])
def test_an_unfinished_run_names_latent_weights_that_can_be_opened(tmp_path, split):
    tree = bf.split(params(), bf.xtc_2bit()) if split else params()
    folder = tmp_path / "1-last" / "params"
    folder.parent.mkdir()
    pretrained.save_pretrained(folder, CONFIG, tree, tokenizer(), extra=True)
    stage = {"name": "last", "rules": [["encoder/.*", "binarize"]]}
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": {"stages": [stage]}}))
    with pytest.raises(ConfigError, match="has not packed them") as raised:
        stored_model.locate_model(tmp_path)
    assert ("latent weights" in raised.value.fix) != split


def test_packed_halves_are_opened(tmp_path):
    ternary = bf.xtc_2bit()
    packed = packing.pack(bf.split(params(), ternary), bf.binary_rules(ternary))
    file.save_packed(tmp_path / "m", CONFIG, packed)
    found = stored_model.read_model(tmp_path / "m")
    assert isinstance(found.params["embeddings"]["word"]["embedding"], Split)


def test_a_run_stands_for_its_packed_file(tmp_path):
    path = save(tmp_path / "model.safetensors")
    assert stored_model.locate_model(tmp_path) == path
    assert stored_model.locate_model(path) == path
