"""``bitflax verify``: what a file is and "ok", or what is wrong and exit status 76."""

import hashlib
import lzma
import os
import pathlib

import pytest

from bitflax import cli, commands
from bitflax.errors import DamagedFile, InputMissing, UsageError
from bitflax.inference import stored_model
from bitflax.model import pretrained
from bitflax.packed import file as packed_file
from bitflax.packed import packing
from tests.helpers import forgery, small, tinypacked


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(tinypacked.tiny())
    return path


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_file_is_said(file):
    found = stored_model.verify(file, sha256(file).upper())
    assert found.sha256 == sha256(file)
    tokens = found.model.tokenizer.vocab_size
    assert (found.version, tokens) == ("3", len(tinypacked.WORDS))
    assert found.model.config == tinypacked.CONFIG
    assert sum(row.bytes for row in found.rows) == file.stat().st_size
    lines = commands._verified(found).splitlines()
    said = {line.split("  ")[0]: line.split("  ")[-1].strip() for line in lines}
    assert lines[-1] == "ok"
    assert said["format"] == "bitflax-packed, version 3"
    assert said["bytes"] == f"{file.stat().st_size:,}"
    assert said["tokenizer"] == "32 tokens"
    assert "1 layers of 12, 2 heads, 32 inside" in said["shape"]
    assert said["activations"].count("clipped") == 1
    ternary = next(row for row in found.rows if row.bits == 1.6)
    assert said["1.6 bits"] == f"{ternary.values} weights in {ternary.bytes} bytes"


def test_the_version_is_that_of_the_format_and_the_changelog(tmp_path):
    config = small.config(1)
    params = small.params(config)
    packed_file.save_packed(tmp_path / "m", config, packing.pack(params, ()))
    found = stored_model.verify(tmp_path / "m")
    assert found.version == "1"
    said = commands._verified(found)
    assert "bitflax-packed, version 3; readers of version 1 know all of it too" in said
    package = pathlib.Path(commands.__file__).parent
    first, last = packed_file.VERSIONS[0], packed_file.VERSIONS[-1]
    title = (package / "FORMAT.md").read_text("utf-8").splitlines()[0]
    assert title == f"# The packed file, versions {first} to {last}"
    changes = (package / "CHANGELOG.md").read_text("utf-8")
    assert f"The packed file, version {last}" in changes


def test_a_file_without_act_and_tokenizer_is_said(tmp_path):
    config = small.config(1, num_labels=1, problem_type="regression")
    params = small.params(config)
    packed_file.save_packed(tmp_path / "m", config, packing.pack(params, ()))
    text = commands._verified(stored_model.verify(tmp_path / "m"))
    assert "; a number\n" in text
    assert "none\n" in text
    assert "not quantised\n" in text


@pytest.mark.parametrize(
    "text", ["", "12", "g" * 64, "0" * 63, "0" * 65, f"{'0' * 64}\n"]
)
def test_what_is_no_digest_is_a_usage_error(text, file):
    with pytest.raises(UsageError, match="expected 64 hexadecimal digits"):
        stored_model.verify(file, text)


def test_another_digest_is_said_before_the_file_is_looked_at(file):
    file.write_bytes(b"anything")
    with pytest.raises(
        DamagedFile, match=f"its SHA-256 is {sha256(file)}, not {'0' * 64}"
    ):
        stored_model.verify(file, "0" * 64)


def test_a_tokenizer_that_the_library_does_not_take_is_damage(file):
    forged = forgery.Forgery(tinypacked.tiny())
    text = b'{"model":{"type":"WordPiece","vocab":{"[UNK]":0}}}'
    raw = lzma.compress(text)
    forged.tensors["tokenizer"] = ["U8", [len(raw)], raw]
    file.write_bytes(forged.bytes())
    packed_file.read_packed(file)
    with pytest.raises(DamagedFile, match="expected a tokenizer"):
        stored_model.verify(file)


def test_a_folder_of_dense_weights_has_nothing_to_verify(tmp_path):
    params = small.params(small.config(1))
    pretrained.save_pretrained(tmp_path / "hf", small.config(1), params)
    with pytest.raises(InputMissing, match="carries no checksum"):
        stored_model.verify(tmp_path / "hf")


def status(*argv, capsys) -> tuple[int, str]:
    """Run the command; return its exit status and what it said."""
    found = cli.main(["verify", *map(str, argv)])
    out, err = capsys.readouterr()
    return found, out if found == 0 else err


def test_the_command(file, capsys):
    found, said = status(file, "--sha256", sha256(file), capsys=capsys)
    assert (found, said.splitlines()[-1]) == (0, "ok")
    assert status(file.parent, capsys=capsys)[0] == 0  # a run's folder


def test_the_commands_exit_statuses(file, tmp_path, capsys):
    found, said = status(tmp_path / "nothing", capsys=capsys)
    assert (found, "no such file" in said) == (66, True)
    assert status(file / "inside", capsys=capsys)[0] == 66
    assert status(file, "--sha256", "1234", capsys=capsys)[0] == 2
    assert status(file, "--sha256", "0" * 64, capsys=capsys)[0] == 76
    raw = bytearray(tinypacked.tiny())
    raw[-1] ^= 1
    file.write_bytes(raw)
    found, said = status(file, capsys=capsys)
    assert found == 76
    assert said.splitlines()[0].startswith(f"bitflax: error: {file}: the SHA-256")
    assert said.splitlines()[1].startswith("fix: fetch the file again")
    file.unlink()
    os.mkfifo(file)
    found, said = status(file, capsys=capsys)
    assert (found, "found a pipe or a device" in said) == (66, True)
