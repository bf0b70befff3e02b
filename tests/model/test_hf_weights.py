"""Weights in one file or in shards; files that are damaged, missing or elsewhere."""

import json
import shutil

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from bitflax.errors import DamagedFile, InputMissing, StorageError
from bitflax.model import hf_weights

STATE = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b": np.ones(3, np.float16),
    "c": np.arange(4, dtype=np.int64),
    "d": np.arange(3).astype(ml_dtypes.bfloat16),
}


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def shards(folder, stem="model", weight_map=None):
    """Write STATE as two safetensors shards and their index."""
    names = {}
    for i, keys in enumerate((("a",), ("b", "c", "d")), 1):
        shard = f"{stem}-0000{i}-of-00002.safetensors"
        safetensors.numpy.save_file({k: STATE[k] for k in keys}, folder / shard)
        names |= dict.fromkeys(keys, shard)
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map or names}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index))
    return names


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    hf_weights.write_state(path, STATE | {"a": STATE["a"].T})
    assert_same(hf_weights.read_weights(path), STATE | {"a": STATE["a"].T})


def test_one_file_goes_before_shards_and_safetensors_before_torch(tmp_path, golden):
    shutil.copy(golden / "hf_tiny" / "kinds.bin", tmp_path / "pytorch_model.bin")
    state, path = hf_weights.read_state(tmp_path)
    assert (path.name, len(state)) == ("pytorch_model.bin", 12)
    shards(tmp_path)
    state, path = hf_weights.read_state(tmp_path)
    assert path.name == "model.safetensors.index.json"
    assert_same(state, STATE)
    hf_weights.write_state(tmp_path / "model.safetensors", {"a": STATE["a"]})
    state, path = hf_weights.read_state(tmp_path)
    assert path.name == "model.safetensors"
    assert_same(state, {"a": STATE["a"]})


def test_torch_shards_are_read(tmp_path, golden):
    shutil.copy(golden / "hf_tiny" / "kinds.bin", tmp_path / "pytorch_model-1.bin")
    index = {"weight_map": {"half": "pytorch_model-1.bin"}}
    (tmp_path / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    state, _ = hf_weights.read_state(tmp_path)
    assert state["half"].dtype == np.float16


@pytest.mark.parametrize(
    "shard",
    [
        "../model.safetensors",
        "/etc/passwd",
        "sub/model.safetensors",
        "..",
        ".hidden.safetensors",
        "model.pkl",
        "a\\b.safetensors",
        7,
    ],
)
def test_no_path_out_of_an_index_is_followed(tmp_path, shard):
    shards(tmp_path, weight_map={"a": shard})
    with pytest.raises(DamagedFile, match="expected the name of a file beside it"):
        hf_weights.read_state(tmp_path)


def test_a_missing_shard_is_named(tmp_path):
    names = shards(tmp_path)
    (tmp_path / names["a"]).unlink()
    with pytest.raises(InputMissing, match=names["a"]):
        hf_weights.read_state(tmp_path)


def test_a_tensor_that_no_shard_holds_is_named(tmp_path):
    names = shards(tmp_path)
    shards(tmp_path, weight_map=names | {"e": names["a"]})
    with pytest.raises(DamagedFile, match="no shard holds e"):
        hf_weights.read_state(tmp_path)


@pytest.mark.parametrize("weight_map", [[], "a", 1])
def test_an_index_without_a_map_is_refused(tmp_path, weight_map):
    index = {"weight_map": weight_map}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(DamagedFile, match="weight_map"):
        hf_weights.read_state(tmp_path)


@pytest.mark.parametrize("cut", [0, 4, 8, 60, -1])
def test_a_cut_file_is_refused(tmp_path, cut):
    path = tmp_path / "model.safetensors"
    hf_weights.write_state(path, STATE)
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DamagedFile, match="not a whole safetensors file"):
        hf_weights.read_state(tmp_path)


def test_a_folder_without_weights_says_what_it_has(tmp_path):
    with pytest.raises(InputMissing, match="found no weights"):
        hf_weights.read_state(tmp_path)
    for name in ("config.json", "tf_model.h5", "adapter_model.safetensors"):
        (tmp_path / name).touch()
    found = "found adapter_model.safetensors, tf_model.h5"
    with pytest.raises(InputMissing, match=found):
        hf_weights.read_state(tmp_path)


def test_what_cannot_be_read_is_said(tmp_path):
    with pytest.raises(StorageError, match="cannot be read: Is a dir"):
        hf_weights.read_weights(tmp_path)
