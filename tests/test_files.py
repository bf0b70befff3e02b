"""Writing whole files, telling damaged ones, and saying why a disk refuses."""

import os

import pytest

from bitflax import files, manifests
from bitflax.errors import ConfigError, DamagedFile, InputMissing, StorageError


@pytest.mark.parametrize(
    ("raised", "words"),
    [
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError(5, "Input/output error"), "Input/output error"),
        (
            ValueError(
                'RESOURCE_EXHAUSTED: Error writing "w" at "/a/b": Failed to write 9 '
                "bytes to file 8: No space left on device [os_error_code='28'] [x='y']"
            ),
            "No space left on device",
        ),
    ],
)
def test_a_refusing_disk_is_a_storage_error(raised, words):
    with (
        pytest.raises(StorageError) as caught,
        files.disk("runs/a", also=(ValueError,)),
    ):
        raise raised
    assert caught.value.place == "runs/a"
    assert caught.value.problem == words
    assert caught.value.status == 74


def test_other_errors_pass_through():
    with pytest.raises(ValueError, match="mine"), files.disk("a"):
        raise ValueError("mine")
    # A BitflaxError may be an OSError or ValueError, too; it already says more.
    with (
        pytest.raises(ConfigError, match="b: c"),
        files.disk("a", also=(ValueError,)),
    ):
        raise ConfigError("b", "c", fix="d")


def test_write_text_replaces_at_once_and_leaves_no_draft(tmp_path):
    path = tmp_path / "a.json"
    files.write_text(path, "old")
    files.write_text(path, "new \N{GREEK SMALL LETTER ALPHA}")
    assert path.read_text(encoding="utf-8") == "new \N{GREEK SMALL LETTER ALPHA}"
    assert os.listdir(tmp_path) == ["a.json"]


def test_write_text_that_fails_keeps_the_old_text(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    files.write_text(path, "old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        files.write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


@pytest.mark.parametrize(
    ("content", "error", "problem"),
    [
        (None, InputMissing, "no such file"),
        (b"{", DamagedFile, "not JSON"),
        (b"\xff", DamagedFile, "not JSON .*utf-8"),
        (b"[" * 100_000, DamagedFile, "not JSON"),
        (b"[1]", DamagedFile, "expected a JSON object"),
        (b"{}" + b" " * 200_000, DamagedFile, "over 200,000 bytes"),
        (b"[" * 100_001, DamagedFile, "or 100,000 parts"),
    ],
)
def test_a_file_that_is_no_json_object_is_said(
    tmp_path, monkeypatch, content, error, problem
):
    monkeypatch.setattr(files, "MOST_BYTES", 200_000)
    monkeypatch.setattr(files, "MOST_PARTS", 100_000)
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(error, match=problem) as caught:
        files.read_json(path)
    assert caught.value.place == str(path)
    with pytest.raises(StorageError, match="cannot be read: Is a dir"):
        files.read_json(tmp_path)


def test_need_counts_the_disk_of_a_folder_not_made_yet(tmp_path):
    files.need_space(tmp_path / "not" / "yet", 1)
    with pytest.raises(StorageError, match=r"1,000,000,000,000 MB are needed"):
        files.need_space(tmp_path / "not" / "yet", 10**18)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").write_bytes(b"abc")
    (tmp_path / "y").write_bytes(b"")
    manifests.write_manifest(tmp_path, {"step": 3})
    return tmp_path


def test_a_manifest_lists_every_file(folder):
    manifest = manifests.read_manifest(folder)
    assert manifest["step"] == 3
    assert manifest["files"] == {
        # FIPS 180-2's example, and the hash of nothing.
        "a/x": {
            "bytes": 3,
            "sha256": "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        },
        "y": {
            "bytes": 0,
            "sha256": "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        },
    }
    manifests.check_manifest(folder)


def test_a_manifest_does_not_outlive_its_files(folder, monkeypatch):
    done, sync = [], os.fsync

    def fsync(number):
        done.append(os.readlink(f"/proc/self/fd/{number}").rpartition("/")[2])
        sync(number)

    monkeypatch.setattr(os, "fsync", fsync)
    manifests.write_manifest(folder, {})
    assert [*sorted(done[:2]), done[2][:14]] == ["x", "y", ".MANIFEST.json"]

    def broken(number):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StorageError, match="Read-only"):
        manifests.write_manifest(folder, {})


@pytest.mark.parametrize("text", ["", "[]", "3", '{"files": {}}', "{", "\xff"])
def test_a_manifest_that_is_none(folder, text):
    (folder / files.MANIFEST).write_text(text, encoding="latin-1")
    with pytest.raises(DamagedFile) as caught:
        manifests.read_manifest(folder)
    assert caught.value.place == str(folder / files.MANIFEST)


def test_a_manifest_with_any_bit_flipped(folder):
    path = folder / files.MANIFEST
    data = path.read_bytes()
    written = manifests.read_manifest(folder)
    noticed = 0
    for place in range(len(data)):
        broken = bytearray(data)
        broken[place] ^= 1 << place % 7
        path.write_bytes(broken)
        try:
            same = manifests.read_manifest(folder) == written
        except DamagedFile:
            noticed += 1
        else:
            # A blank between two entries may become another kind of blank.
            assert same
            assert chr(data[place]).isspace()
    assert noticed > 0.9 * len(data)


def test_only_numbered_folders_are_finished_or_removed(tmp_path):
    for name in ("1", "2", "3.orbax-checkpoint-tmp", "notes"):
        (tmp_path / name).mkdir()
    (tmp_path / "4").write_text("a file")
    for name in ("1", "notes"):
        manifests.write_manifest(tmp_path / name, {})
    assert manifests.finished(tmp_path) == {1}
    manifests.remove_unfinished(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["1", "4", "notes"]
    assert manifests.finished(tmp_path / "none") == set()
    manifests.remove_unfinished(tmp_path / "none")


def test_a_models_folder_has_the_hash_that_runs_have_pinned(tmp_path):
    for name in ("vocab.txt", "config.json", "README.md"):
        (tmp_path / name).write_text(name)
    pinned = "e3e0be5f74c27418491cfbc8ba73ebe5dda05689608151224e88d94d91348853"
    recorded = "aa9bfac1177029ddb742dfdb91a9b45add18d4a3759f411e1457531590c8e081"
    assert manifests.sum_of(manifests.model_sums(tmp_path)) == pinned
    assert manifests.sum_of(manifests.model_sums(tmp_path), names=False) == recorded


def test_a_path_is_given_with_its_home(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert files.given("~/a/b") == tmp_path / "a" / "b"
    assert files.given("~nobody-of-this-name/a").name == "a"
    assert files.given("c:d/e").parts == ("c:d", "e")


def test_no_pipe_of_a_model_s_folder_is_waited_for(tmp_path):
    os.mkfifo(tmp_path / "notes.txt")
    for read in (files.read_text, manifests.sha256, files.read_json):
        with pytest.raises(InputMissing, match="found a pipe or a device"):
            read(tmp_path / "notes.txt")
    with pytest.raises(InputMissing, match="found a pipe or a device"):
        manifests.model_sums(tmp_path)
    (tmp_path / "notes.txt").rename(tmp_path / "recipe.json")
    with pytest.raises(DamagedFile, match="cannot be read"):
        manifests.read_sealed(tmp_path / "recipe.json")


@pytest.mark.parametrize(
    "text",
    ["{}", '{"a": 1}', '{"a": {}, "a": {}}', "[]", "null", "3", "{", "", "\x00"],
)
def test_what_is_no_sealed_object_is_damaged(text, tmp_path):
    path = tmp_path / "result.json"
    path.write_text(text)
    for earlier in (None, {"a": dict}):
        with pytest.raises(DamagedFile, match=r"result\.json"):
            manifests.read_sealed(path, earlier=earlier)


def test_an_object_without_a_seal_is_an_earlier_one_where_that_may_be(tmp_path):
    path = tmp_path / "result.json"
    path.write_text('{"a": {"b": 1}}')
    assert manifests.read_sealed(path, earlier={"a": dict}) == {"a": {"b": 1}}
    with pytest.raises(DamagedFile, match="an earlier bitflax wrote it"):
        manifests.read_sealed(path)
    manifests.write_sealed(path, {"b": 2})
    assert manifests.read_sealed(path, earlier={"a": dict}) == {"b": 2}
