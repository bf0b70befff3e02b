"""A model's folder appears whole or not at all."""

import errno
import itertools
import os
import pathlib

import pytest

from bitflax import files
from bitflax.errors import ConfigError, OutputError, StorageError


def test_a_new_folder_appears_with_its_parents(tmp_path):
    folder = tmp_path / "a" / "b"
    with files.replacing_folder(folder) as new:
        (new / "config.json").write_text("{}")
        assert not folder.exists()
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert [path.name for path in folder.parent.iterdir()] == ["b"]


def test_an_earlier_model_is_replaced_whole(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "vocab.txt").write_text("old")
    with files.replacing_folder(folder) as new:
        (new / "config.json").write_text("{}")
        assert (folder / "vocab.txt").exists()
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), StorageError),
        (OutputError("x", "y", fix="z"), OutputError),
        (ConfigError("x", "y", fix="z"), ConfigError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failure_leaves_what_was_there(tmp_path, failure, error):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("old")

    def write():
        with files.replacing_folder(folder) as new:
            (new / "config.json").write_text("new")
            raise failure

    with pytest.raises(error):
        write()
    assert (folder / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (OSError(errno.EIO, "Input/output error"), StorageError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_a_failure_between_the_renames_leaves_what_was_there(
    tmp_path, monkeypatch, failure, error
):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("old")
    _fail_renames(monkeypatch, {2: failure})
    with pytest.raises(error), files.replacing_folder(folder) as new:
        (new / "config.json").write_text("new")
    assert (folder / "config.json").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_an_earlier_model_that_cannot_come_back_is_kept_and_named(
    tmp_path, monkeypatch
):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("old")
    broken = OSError(errno.EIO, "Input/output error")
    _fail_renames(monkeypatch, {2: broken, 3: broken})
    with (
        pytest.raises(StorageError, match="Input/output error") as caught,
        files.replacing_folder(folder) as new,
    ):
        (new / "config.json").write_text("new")
    (kept,) = tmp_path.iterdir()
    assert (kept / "config.json").read_text() == "old"
    assert f"rename {kept} to {folder}" in str(caught.value)


def _fail_renames(monkeypatch, failures):
    """Have the renames of these numbers, from 1, raise."""
    rename, numbers = pathlib.Path.rename, itertools.count(1)

    def failing(path, target):
        failure = failures.get(next(numbers))
        if failure is not None:
            raise failure
        return rename(path, target)

    monkeypatch.setattr(pathlib.Path, "rename", failing)


def test_a_file_or_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder, problem in ((tmp_path / "file", "directory"), (tmp_path, "file")):
        with pytest.raises(OutputError, match=problem), files.replacing_folder(folder):
            pytest.fail("the body ran")
    with (
        pytest.raises(OutputError, match="directory"),
        files.replacing_folder(tmp_path / "file" / "model"),
    ):
        pytest.fail("the body ran")
    assert os.listdir(tmp_path) == ["file"]


def test_a_place_that_cannot_be_written_is_found_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(OutputError, match=f"{tmp_path} cannot be written"):
        files.check_model_folder(tmp_path / "new" / "model")


def test_what_a_killed_write_left_behind_is_replaced(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / f".{files.MANIFEST}.{'0' * 16}.part").touch()
    with files.replacing_folder(folder) as new:
        (new / "config.json").write_text("{}")
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    (folder / f".notes.txt.{'0' * 16}.part").touch()
    with pytest.raises(OutputError, match=r"no part of a model: \.notes\.txt"):
        files.check_model_folder(folder)
