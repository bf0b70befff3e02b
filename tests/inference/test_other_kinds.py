"""A file of another kind, given as a model's, is called what it is, with the mend."""

import json
import struct

import numpy as np
import pytest

from bitflax import files, packed
from bitflax.errors import DamagedFile
from bitflax.model import hf_weights

KINDS = {
    "Git LFS pointer": (
        b"version https://git-lfs.github.com/spec/v1\n",
        "git lfs pull",
    ),
    "HTML": (b"\n<html><body>404</body></html>", "fetch the file itself"),
    "zip": (b"PK\x03\x04\x14\x00\x00\x00", "safetensors"),
    "gzip": (b"\x1f\x8b\x08\x00\x00\x00\x00\x00", "unpack it"),
    "pickle": (b"\x80\x04\x95\x10\x00\x00\x00\x00", "safetensors"),
    "GGUF": (b"GGUF\x03\x00\x00\x00", "safetensors"),
}
READERS = {
    "student.safetensors": packed.read_packed,
    "model.safetensors": hf_weights.read_weights,
    "pytorch_model.bin": hf_weights.read_weights,
    "config.json": files.read_json,
    "vocab.txt": files.read_text,
}
OWN = {("pytorch_model.bin", "zip"), ("pytorch_model.bin", "pickle")}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize("kind", KINDS)
def test_another_kind_of_file_is_named(kind, name, tmp_path):
    start, fix = KINDS[kind]
    path = tmp_path / name
    path.write_bytes(start + b"the rest")
    with pytest.raises(DamagedFile) as caught:
        READERS[name](path)
    assert caught.value.place == str(path)
    if (name, kind) in OWN:  # its own formats begin so
        assert "PyTorch state" in caught.value.problem
    else:
        assert kind in caught.value.problem
        assert fix in caught.value.fix


def test_a_state_of_safetensors_by_torch_s_name_is_told_its_own(tmp_path):
    path = tmp_path / "pytorch_model.bin"
    hf_weights.write_state(path, {"w": np.zeros(3, np.float32)})
    with pytest.raises(DamagedFile, match="found safetensors") as caught:
        hf_weights.read_weights(path)
    assert caught.value.fix == "name it .safetensors"
    path.rename(tmp_path / "model.safetensors")
    assert hf_weights.read_weights(tmp_path / "model.safetensors")["w"].shape == (3,)


@pytest.mark.parametrize("start", [b"text\tlabel\n", b"\x08\x0a\x12\x07bitflax"])
def test_a_text_or_a_graph_is_no_packed_student(start, tmp_path):
    (tmp_path / "model").write_bytes(start + b"the rest")
    with pytest.raises(DamagedFile, match="no packed student: another kind of file"):
        packed.read_packed(tmp_path / "model")


def test_names_from_a_file_do_nothing_to_a_terminal():
    error = DamagedFile("a", "found \x1b[2J, \x9b and caf\u00e9", fix="none\tneeded")
    assert str(error) == "a: found \\x1b[2J, \\x9b and caf\u00e9\nfix: none\\tneeded"


def test_a_length_that_reads_like_gzip_is_a_length(tmp_path):
    header = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
    raw = json.dumps(header).encode().ljust(0x8B1F)
    data = struct.pack("<Q", len(raw)) + raw + np.float32(1).tobytes()
    assert data.startswith(b"\x1f\x8b")
    (tmp_path / "model.safetensors").write_bytes(data)
    assert hf_weights.read_weights(tmp_path / "model.safetensors")["w"] == 1
