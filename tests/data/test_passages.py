"""Windows of text files: every line once, wherever the cuts fall."""

import os
import random

import pytest

from bitflax.data import passages
from bitflax.data.passages import TextFiles
from bitflax.errors import DataError, InputMissing, StorageError


def all_lines(source):
    return [line for w in range(source.windows) for line in source.lines(w)]


def text(lines, seed=0, alphabet="abé漢🙂 "):
    rng = random.Random(seed)
    made = ("".join(rng.choices(alphabet, k=rng.randrange(30))) for _ in range(lines))
    return "\n".join(made)


@pytest.mark.parametrize("window", [50, 64, 100, 333, 5000, 10**6])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_every_line_is_in_one_window(write, window, end):
    # A line has 30 characters at most: 120 bytes.
    made = text(200, alphabet="abcd ").replace("\n", end)
    source = TextFiles(write("a.txt", made), window)
    assert all_lines(source) == [s for s in map(str.strip, made.split("\n")) if s]
    assert source.windows == -(-len(made.encode()) // window)
    source.check()


@pytest.mark.parametrize("window", [1, 8, 9, 11, 20])
def test_lines_longer_than_a_window_are_cut_between_characters(write, window):
    made = text(50)
    source = TextFiles(write("a.txt", made), window)
    found = all_lines(source)
    whole = "".join("".join(made.split()))
    assert "".join("".join(found).split()) == whole
    assert "\ufffd" not in "".join(found)


def test_many_files_are_one_row_of_bytes_in_the_order_of_their_paths(write, tmp_path):
    for name in ("b.txt", "a/z.TXT", "a/y.txt", "c/empty.txt", "d/last.txt"):
        write(name, "" if "empty" in name else f"{name} one\n{name} two")
    write("a/other.md", "not this")
    expected = [
        f"{name} {n}"
        for name in ("a/y.txt", "a/z.TXT", "b.txt", "d/last.txt")
        for n in ("one", "two")
    ]
    for window in (13, 17, 40, 1000):
        source = TextFiles(tmp_path, window)
        assert all_lines(source) == expected
    assert source.windows == 1


def test_a_line_without_an_end_is_read_bounded(write, monkeypatch):
    monkeypatch.setattr(passages, "LONGEST", 64)
    path = write("a.txt", "word " * 4000 + "x" * 5000)
    source = TextFiles(path, 1000)
    for window in range(source.windows):
        lines = source.lines(window)
        assert sum(map(len, lines)) <= 1000 + 64
        assert all(0 < len(line) <= 64 for line in lines)
    assert "".join("".join(all_lines(source)).split()) == "word" * 4000 + "x" * 5000
    # At a space, where there is one.
    assert set(" ".join(source.lines(0)).split()) == {"word"}


def test_a_byte_order_mark_is_no_text(write):
    assert TextFiles(write("a.txt", "\ufeffone\ntwo")).lines(0) == ["one", "two"]


def test_the_hash_is_of_the_text_alone(write, tmp_path):
    first = TextFiles(write("a.txt", "one\ntwo"))
    other = TextFiles(write("b.txt", "one\ntwo"))
    assert first.check() == other.check()
    assert first.stamp != other.stamp
    assert TextFiles(write("c.txt", "one\ntwO")).check() != first.check()


@pytest.mark.parametrize("block", [7, 1 << 20])
@pytest.mark.parametrize(
    ("bad", "place"),
    [
        (b"one\ntwo\nth\xffree\n", ":3: expected UTF-8, found 0xff at byte 10"),
        (b"one\n\xc3", ":2: expected UTF-8, found 0xc3 at byte 4"),
        ("\ufeffone".encode("utf-16"), ": expected a text, found UTF-16 or UTF-32"),
    ],
)
def test_what_is_no_utf_8_is_found_with_row_and_byte(
    write, monkeypatch, bad, place, block
):
    monkeypatch.setattr(passages, "BLOCK", block)
    write("a.txt", "good")
    path = write("b.txt", bad)
    with pytest.raises(DataError) as caught:
        TextFiles(path.parent).check()
    assert str(caught.value).startswith(f"{path}{place}")


def test_a_file_that_changes_while_it_is_used_is_an_error(write):
    path = write("a.txt", "one\ntwo")
    source = TextFiles(path)
    assert source.lines(0) == ["one", "two"]
    path.write_text("one\ntwo\nthree")
    with pytest.raises(DataError, match="changed or removed"):
        source.lines(0)
    path.unlink()
    with pytest.raises(DataError, match="changed or removed"):
        source.check()


def test_what_is_not_there_is_said(write, tmp_path):
    with pytest.raises(InputMissing, match="no such file or folder"):
        TextFiles(tmp_path / "none.txt")
    with pytest.raises(InputMissing, match=r"expected \.txt files"):
        TextFiles(tmp_path)
    with pytest.raises(DataError, match=r"expected a \.txt file"):
        TextFiles(write("a.csv", "text"))
    with pytest.raises(DataError, match="expected lines of text"):
        TextFiles(write("empty.txt", ""))


def test_a_file_that_cannot_be_read_is_found_at_once(write, monkeypatch):
    path = write("a.txt", "one")
    source = TextFiles(path)

    def refuse(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(type(path), "open", refuse)
    monkeypatch.setattr(passages, "open_file", refuse)
    with pytest.raises(InputMissing, match=r"a\.txt: cannot be read: Permission"):
        TextFiles(path)
    with pytest.raises(StorageError, match="cannot be read: Permission"):
        source.lines(0)


def test_a_listed_source_is_one_window():
    source = passages.Listed("some", [" one ", "", "two"])
    assert source.windows == 1
    assert source.lines(0) == ["one", "two"]
    assert source.check() == source.stamp


def test_touching_a_file_changes_its_stamp_only(write):
    path = write("a.txt", "one\ntwo")
    before = TextFiles(path)
    sha256 = before.check()
    os.utime(path, ns=(1, 1))
    after = TextFiles(path)
    assert before.stamp != after.stamp
    assert after.check() == sha256
