"""What others run: ONNX files and Hugging Face folders, whole or not at all."""

import dataclasses
import errno
import hashlib
import json
import os
import struct
import textwrap

import numpy as np
import pytest

import bitflax as bf
from bitflax import files
from bitflax.data.text import Tokenizer
from bitflax.errors import ConfigError, InputMissing, OutputError, StorageError
from bitflax.inference import exporting, predictor
from bitflax.model import pretrained
from bitflax.packed import file, packing
from tests.helpers import small
from tests.inference import test_predictor
from tests.inference.test_predictor import CONFIG, TEXTS, params, tokenizer

ACT = bf.symmetric(bits=8)
HF_FILES = {
    "README.md",
    "config.json",
    "model.safetensors",
    "model.safetensors.sha256",
    "packed.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}


def write_packed(path, act=ACT, words=True, extras=None):
    packed = packing.pack(params(), bf.xtc_1bit())
    known = tokenizer() if words else None
    file.save_packed(path, CONFIG, packed, act, known, extras)
    return path


@pytest.fixture
def packed(tmp_path):
    return write_packed(tmp_path / "model.safetensors", extras={"max_length": 12})


def names(folder):
    return {path.name for path in folder.iterdir()}


def test_a_folder_holds_the_same_weights_as_float32(packed):
    out = exporting.export(packed, kind="hf")
    assert out == packed.parent / "model-hf"
    assert names(out) == HF_FILES
    config, found = pretrained.load_pretrained(out)
    assert config == CONFIG
    expected = packing.unpack(file.load_packed(packed)[1])
    assert small.largest_difference(found, expected) == 0


def test_a_folder_predicts_without_rounded_activations(tmp_path):
    path = write_packed(tmp_path / "m", act=bf.symmetric(bits=4))
    out = exporting.export(path, tmp_path / "hf", "hf")
    _, packed = file.load_packed(path)
    (out / "packed.safetensors").unlink()  # which rounds them
    found = predictor.load(out).logits(TEXTS)
    for row, text in zip(found, TEXTS, strict=True):
        expected = test_predictor.alone(text, tree=packed)
        np.testing.assert_allclose(row, expected, atol=2e-5)
    rounded = predictor.load(path).logits(TEXTS)
    assert np.abs(found - rounded).max() > 2e-4


def test_transformers_reads_configuration_and_tokenizer(packed):
    transformers = pytest.importorskip("transformers")
    out = exporting.export(packed, kind="hf")
    config = transformers.AutoConfig.from_pretrained(out)
    assert config.architectures == ["BertForSequenceClassification"]
    assert config.id2label == {0: "no", 1: "yes", 2: "perhaps"}
    theirs = transformers.AutoTokenizer.from_pretrained(out)
    ours = Tokenizer.from_folder(out).encode((TEXTS,), 16)
    assert theirs(TEXTS[2])["input_ids"] == ours.ids[ours.offsets[2] :][:12].tolist()


def test_a_card_tells_what_the_file_says_of_itself(tmp_path):
    extras = {
        "recipe": "mine",
        "task": "icd10cm",
        "metric": "accuracy",
        "stages": [["teacher", 0.8, 32, 9_000_000], ["packed", 0.75, 1, None]],
    }
    path = write_packed(tmp_path / "m", extras=extras)
    text = (exporting.export(path, kind="hf") / "README.md").read_text()
    assert "recipe `mine` on the task `icd10cm`" in text
    size = path.stat().st_size
    assert f"| packed | 0.7500 | 93.8% | 1 | {size / 1e6:.2f} |" in text
    assert f"The packed file, `packed.safetensors`, has {size:,} bytes" in text


def test_a_card_tells_what_the_run_reports(tmp_path):
    write_packed(tmp_path / "model.safetensors")
    row = {"name": "onebit", "score": 0.5, "bits": 1, "bytes": None}
    report = {"task": "/data/a.tsv", "metric": "accuracy", "stages": [row]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    recipe = {"name": "xtc", "teacher": {"folder": None, "pretrained": "a/bert"}}
    (tmp_path / "recipe.json").write_text(json.dumps({"recipe": recipe}))
    out = exporting.export(tmp_path, kind="hf")
    text = (out / "README.md").read_text()
    assert 'base_model: "a/bert"' in text
    assert "recipe `xtc` on the task `a.tsv` from `a/bert`" in text
    assert "| onebit | 0.5000 |" in text


def test_an_earlier_export_is_replaced(packed):
    out = exporting.export(packed, kind="hf")
    (out / "tokenizer.json").write_text("old")
    exporting.export(packed, kind="hf")
    assert (out / "tokenizer.json").read_text() != "old"
    assert names(packed.parent) == {"model.safetensors", "model-hf"}


def test_another_model_is_no_place_to_write(packed, tmp_path):
    teacher = tmp_path / "teacher"
    pretrained.save_pretrained(teacher, CONFIG, params(), tokenizer())
    before = (teacher / "model.safetensors").read_bytes()
    with pytest.raises(OutputError, match="export did not write"):
        exporting.export(packed, teacher, "hf")
    (teacher / "README.md").write_text("# my own")
    with pytest.raises(OutputError, match="export did not write"):
        exporting.export(packed, teacher, "hf")
    (teacher / "notes.md").write_text("mine")
    with pytest.raises(OutputError, match=r"no part of a model: notes\.md"):
        exporting.export(packed, teacher, "hf")
    assert (teacher / "model.safetensors").read_bytes() == before


@pytest.mark.parametrize("kind", exporting.EXPORT_FORMATS)
def test_a_file_of_ones_own_is_left_alone(packed, kind):
    if kind != "hf":
        pytest.importorskip("onnx")
    before = packed.read_bytes()
    with pytest.raises(OutputError) as raised:
        exporting.export(packed, packed, kind)
    assert raised.value.status == 73
    assert packed.read_bytes() == before


def test_a_split_student_is_summed(tmp_path):
    ternary = bf.xtc_2bit()
    halves = bf.split(params(), ternary)
    packed = packing.pack(halves, bf.binary_rules(ternary))
    file.save_packed(tmp_path / "m", CONFIG, packed, ACT, tokenizer())
    out = exporting.export(tmp_path / "m", kind="hf")
    _, found = pretrained.load_pretrained(out)
    expected = packing.unpack(packed)
    assert small.largest_difference(found, expected) == 0


@pytest.mark.parametrize("kind", ["hf", "onnx-fp32"])
def test_latent_halves_are_refused(tmp_path, kind):
    if kind != "hf":
        pytest.importorskip("onnx")
    halves = bf.split(params(), bf.xtc_2bit())
    pretrained.save_pretrained(tmp_path / "m", CONFIG, halves, tokenizer(), extra=True)
    with pytest.raises(ConfigError, match="two latent halves"):
        exporting.export(tmp_path / "m", tmp_path / "out", kind)
    assert names(tmp_path) == {"m"}


def test_what_activations_learned_is_left_out(tmp_path):
    act = bf.lsq_act()
    batch = small.batch(2, seed=0)
    batch["input_ids"] %= CONFIG.vocab_size
    tree = bf.init_act(params(), act, batch, CONFIG)
    packed = packing.pack(tree, bf.xtc_1bit())
    file.save_packed(tmp_path / "m", CONFIG, packed, act, tokenizer())
    out = exporting.export(tmp_path / "m", kind="hf")
    _, found = pretrained.load_pretrained(out)
    assert not (out / "bitflax_extra.safetensors").exists()
    assert found.keys() == params().keys()
    assert "in ranges that it learned" in (out / "README.md").read_text()


def test_heads_of_another_width_are_refused(tmp_path):
    config = dataclasses.replace(CONFIG, head_size=4)
    tree = small.params(config)
    packed = packing.pack(tree, bf.xtc_1bit())
    file.save_packed(tmp_path / "m", config, packed, ACT, tokenizer())
    with pytest.raises(ConfigError, match="heads of width 4") as raised:
        exporting.export(tmp_path / "m", kind="hf")
    assert raised.value.status == 78
    assert names(tmp_path) == {"m"}


@pytest.mark.parametrize(
    ("kind", "run", "expected"),
    [
        ("hf", False, "student-hf"),
        ("onnx-int8", False, "student-int8.onnx"),
        ("onnx-fp32", True, "model-fp32.onnx"),
        ("hf", True, "model-hf"),
    ],
)
def test_an_export_lies_beside_its_model(tmp_path, kind, run, expected):
    name = "model" if run else "student"
    place = tmp_path / f"{name}.safetensors"
    place.write_bytes(b"")
    model = tmp_path if run else place
    assert exporting._beside(model, place, kind) == tmp_path / expected


def test_an_export_of_a_folder_lies_beside_it(tmp_path):
    folder = tmp_path / "mine.v2"
    folder.mkdir()
    assert exporting._beside(folder, folder, "hf") == tmp_path / "mine.v2-hf"
    stage = folder / "1-fp32" / "params"
    assert exporting._beside(folder, stage, "hf") == folder / "model-hf"


def test_an_unknown_format_is_said(packed):
    with pytest.raises(ConfigError, match="no format 'onnx'"):
        exporting.export(packed, kind="onnx")
    with pytest.raises(ConfigError, match="onnx-2bit is gone\nfix: onnx-int8"):
        exporting.export(packed, kind="onnx-2bit")


def test_a_missing_model_is_said_before_anything_is_written(tmp_path):
    with pytest.raises(InputMissing):
        exporting.export(tmp_path / "nowhere", tmp_path / "out", "hf")
    assert names(tmp_path) == set()


class TestNative:
    def test_a_flat_file_carries_what_it_takes_to_run_it(self, packed):
        out = exporting.export(packed, kind="native")
        assert out == packed.parent / "model.bitflax"
        raw = out.read_bytes()
        size, start = struct.unpack_from("<iQ", raw, 64 + 4 * 11)
        said = json.loads(raw[start : start + size])
        assert said.pop("tokenizer") == json.loads(tokenizer().to_json())
        assert said == {
            "bitflax": bf.__version__,
            "id2label": {"0": "no", "1": "yes", "2": "perhaps"},
            "regression": False,
            "max_length": 12,
        }
        digest = hashlib.sha256(raw[:32] + bytes(32) + raw[64:]).digest()
        assert digest == raw[32:64]

    def test_an_earlier_one_is_replaced_and_nothing_else(self, packed, tmp_path):
        out = exporting.export(packed, tmp_path / "m", kind="native")
        before = out.read_bytes()
        assert exporting.export(packed, out, kind="native").read_bytes() == before
        out.write_bytes(b"a letter")
        with pytest.raises(OutputError, match="did not write"):
            exporting.export(packed, out, kind="native")

    def test_a_model_that_it_cannot_hold_is_said(self, tmp_path):
        path = write_packed(tmp_path / "m", act=bf.symmetric(8, groups=2))
        with pytest.raises(ConfigError, match="neither a token's nor a tensor's"):
            exporting.export(path, kind="native")
        assert names(tmp_path) == {"m"}


class TestOnnx:
    onnxruntime = pytest.importorskip("onnxruntime")

    @pytest.mark.parametrize("kind", ["onnx-fp32", "onnx-int8"])
    def test_a_file_runs_as_the_docstring_says(self, packed, kind, capsys, monkeypatch):
        path = exporting.export(packed, packed.parent / "model-int8.onnx", kind)
        _, _, snippet = exporting.__doc__.partition("::\n\n")
        snippet = snippet.replace("a text", "a b").replace("a longer text", "c d e f")
        monkeypatch.chdir(path.parent)
        space = {}
        exec(textwrap.dedent(snippet), space)
        expected = predictor.load(packed).logits(["a b", "c d e f"])
        np.testing.assert_allclose(space["logits"], expected, atol=2e-3)
        said = [CONFIG.labels[i] for i in expected.argmax(axis=-1)]
        assert capsys.readouterr().out == f"{said}\n"
        assert (space["said"]["kind"], space["said"]["max_length"]) == (kind, "12")

    def test_an_earlier_export_is_replaced(self, packed):
        path = exporting.export(packed, kind="onnx-fp32")
        before = path.read_bytes()
        assert exporting.export(packed, path, "onnx-int8") == path
        assert path.read_bytes() != before
        assert names(packed.parent) == {"model.safetensors", "model-fp32.onnx"}

    def test_without_a_tokenizer_there_is_none_in_the_file(self, tmp_path):
        path = exporting.export(
            write_packed(tmp_path / "m", words=False), kind="onnx-int8"
        )
        session = self.onnxruntime.InferenceSession(path)
        assert "tokenizer" not in session.get_modelmeta().custom_metadata_map

    @pytest.mark.parametrize(
        ("out", "problem"),
        [("nowhere/m.onnx", "no such folder"), (".", "is a folder")],
    )
    def test_a_place_that_is_none_is_said(self, packed, out, problem):
        with pytest.raises(OutputError, match=problem):
            exporting.export(packed, packed.parent / out, "onnx-int8")

    def test_a_pipe_is_no_place_and_keeps_nobody_waiting(self, packed):
        os.mkfifo(packed.parent / "pipe")
        with pytest.raises(OutputError, match="no regular file"):
            exporting.export(packed, packed.parent / "pipe", "onnx-int8")

    def test_a_full_disk_leaves_the_old_file(self, packed, monkeypatch):
        path = exporting.export(packed, kind="onnx-fp32")
        before = path.read_bytes()

        def full(fd):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(files.os, "fsync", full)
        with pytest.raises(StorageError, match="No space left"):
            exporting.export(packed, path, "onnx-int8")
        assert path.read_bytes() == before
        assert names(packed.parent) == {"model.safetensors", "model-fp32.onnx"}
