"""GLUE by TFDS: prepared with its own builder, read back by name, without TensorFlow."""

import sys
import time

import pytest

from bitflax.data import glue, tfds
from bitflax.data.tasks import load_task
from bitflax.errors import DamagedFile, InputMissing

# What TFDS's own dependencies warn of when they are imported is not bitflax's doing.
pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning"
)


@pytest.fixture
def files(write, tmp_path):
    """CoLA's files of a few rows, in GLUE's own layout, with quotes and umlauts."""
    for part, count in (("train", 30), ("dev", 6)):
        rows = [f'x\t{i % 2}\t\t"{part} {i} é\n' for i in range(count)]
        write(f"glue/CoLA/{part}.tsv", "".join(rows))
    write("glue/CoLA/test.tsv", "index\tsentence\n0\thidden\n")
    return tmp_path / "glue"


@pytest.fixture
def prepared(files, tmp_path, monkeypatch):
    """The same, prepared by TFDS's builder from the local files."""
    from tensorflow_datasets.core import download

    monkeypatch.setattr(
        download.DownloadManager, "download_and_extract", lambda self, url: str(files)
    )
    monkeypatch.setattr(tfds, "reachable", lambda url: True)
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    builder = tfds.open_builder("glue/cola", tmp_path / "tfds")
    tfds.prepare("glue/cola", builder, fix="")
    return tmp_path / "tfds"


def test_by_name_as_by_files_and_without_tensorflow(prepared, files):
    by_tfds = load_task("glue/cola", data_dir=prepared)
    by_files = load_task("glue/cola", data_dir=files)
    assert (len(by_tfds.train), len(by_tfds.dev)) == (30, 6)
    assert by_tfds.labels == ("unacceptable", "acceptable")
    assert by_tfds.train.texts[0][3] == '"train 3 é'
    assert by_tfds.train.rows.tolist() == list(range(1, 31))
    assert by_tfds.sha256 == by_files.sha256
    assert "tensorflow" not in sys.modules


def test_damage_is_an_error_that_names_the_folder(prepared):
    folder = next(prepared.glob("glue/cola/*"))
    for file in folder.glob("*train*"):
        file.write_bytes(b"")
    with pytest.raises(DamagedFile, match="delete the folder"):
        glue.from_tfds("glue/cola", prepared)


def test_another_format_is_refused(prepared):
    folder = next(prepared.glob("glue/cola/*"))
    for file in folder.glob("*array_record*"):
        file.rename(folder / file.name.replace("array_record", "tfrecord"))
    with pytest.raises(InputMissing, match="expected array_record files"):
        glue.from_tfds("glue/cola", prepared)


def test_offline_is_one_error_at_once(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr(
        tfds, "open_builder", lambda name, data_dir: pretend(tmp_path / "tfds")
    )
    start = time.monotonic()
    with pytest.raises(InputMissing, match=r"train\.txt is out of reach") as caught:
        load_task("glue/mrpc")
    assert time.monotonic() - start < 10
    assert "MRPC/train.tsv" in caught.value.fix


def pretend(folder):
    """A builder of TFDS's whose data lie nowhere yet."""

    class Builder:
        name = "glue"
        data_dir = str(folder)

        class builder_config:  # noqa: N801  # TFDS's own name
            data_url = ""

    return Builder()


def test_a_data_dir_with_neither_layout_is_refused(tmp_path):
    with pytest.raises(InputMissing, match=r"expected RTE/train\.tsv, or glue/rte"):
        load_task("glue/rte", data_dir=tmp_path)


def test_every_task_agrees_with_tfds():
    """Classes, columns and splits are those of TFDS's own definitions."""
    from tensorflow_datasets.text import glue as theirs

    configs = {f"glue/{c.name}": c for c in theirs.Glue.BUILDER_CONFIGS}
    for name, task in glue.GLUE_TASKS.items():
        config = configs[name.removesuffix("-mm")]
        assert list(task.labels) == (config.label_classes or [])
        assert list(task.features) == list(config.text_features)
        assert task.folder == config.data_dir
