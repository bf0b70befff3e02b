"""A file that a stopped command goes on with."""

import errno
import json

import pytest

from bitflax.data.augmentation.resumable_file import ResumableFile
from bitflax.errors import ConfigError, FolderBusy, OutputError

PIECES = ["a\n", "bé\n", "c\n"]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "new" / "out.jsonl"


def write(path, stop=3, **settings):
    with ResumableFile(path, {"seed": 0} | settings, len(PIECES)) as file:
        for number in range(file.done, stop):
            file.append(PIECES[number], number + 1)


def test_a_whole_file_has_its_name_and_no_part(path):
    write(path)
    assert path.read_text("utf-8") == "".join(PIECES)
    assert sorted(p.name for p in path.parent.iterdir()) == [
        path.name,
        "out.jsonl.json",
    ]


def test_a_stopped_file_is_gone_on_with(path):
    write(path, stop=2)
    assert not path.exists()
    part = path.with_name("out.jsonl.part")
    part.write_bytes(part.read_bytes() + b"half a pie")
    write(path)
    assert path.read_text("utf-8") == "".join(PIECES)


def test_ctrl_c_keeps_what_is_whole(path):
    def stopped():
        with ResumableFile(path, {"seed": 0}, 3) as file:
            file.append(PIECES[0], 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    with ResumableFile(path, {"seed": 0}, 3) as file:
        assert file.done == 1


def test_nothing_whole_leaves_nothing(path):
    with pytest.raises(KeyError), ResumableFile(path, {}, 3):
        raise KeyError
    assert list(path.parent.iterdir()) == []


def test_a_whole_file_is_left_as_it_is(path):
    write(path)
    before = path.stat().st_mtime_ns
    with ResumableFile(path, {"seed": 0}, 3) as file:
        assert file.done == 3
    assert path.stat().st_mtime_ns == before


@pytest.mark.parametrize("stop", [2, 3])
def test_other_settings_are_refused(path, stop):
    write(path, stop=stop)
    with pytest.raises(
        ConfigError, match="seed was 0, is 1 now; limit was None, is 2 now"
    ):
        write(path, seed=1, limit=2)


def test_a_file_of_someone_elses_is_refused(path):
    path.parent.mkdir()
    path.write_text("mine")
    with pytest.raises(OutputError, match="is there already"):
        write(path)
    assert path.read_text() == "mine"


@pytest.mark.parametrize("state", ["", "[]", '{"settings": {}}', '{"done": "x"}'])
def test_an_unreadable_record_begins_anew(path, state):
    write(path, stop=2)
    path.with_name("out.jsonl.json").write_text(state)
    write(path)
    assert path.read_text("utf-8") == "".join(PIECES)


def test_lost_bytes_begin_anew(path):
    write(path, stop=2)
    path.with_name("out.jsonl.part").write_text("a")
    write(path)
    assert path.read_text("utf-8") == "".join(PIECES)


def test_a_stop_before_the_last_name_is_mended(path):
    write(path)
    path.rename(path.with_name("out.jsonl.part"))
    write(path)
    assert path.read_text("utf-8") == "".join(PIECES)
    assert json.loads(path.with_name("out.jsonl.json").read_text())["done"] == 3


def test_two_at_once_are_refused(path):
    with ResumableFile(path, {"seed": 0}, 3) as file:
        file.append(PIECES[0], 1)
        with pytest.raises(FolderBusy, match="another process"):
            write(path)
        file.append(PIECES[1], 2)
    write(path)
    assert path.read_text("utf-8") == "".join(PIECES)


def test_a_folder_without_locks_is_written(path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("filelock.lock_descriptor", refuse)
    write(path)
    assert path.read_text("utf-8") == "".join(PIECES)
