"""Passages of text, a window at a time: in any order, however large the files are."""

import codecs
import contextlib
import dataclasses
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol, runtime_checkable

import numpy as np

from bitflax.errors import DataError, InputMissing, StorageError, check_text
from bitflax.files import given, open_file

WINDOW = 1 << 22
"""Bytes of text a window: what is in memory, and what is shuffled within."""
LONGEST = 1 << 16
"""Characters a passage: a longer line is cut, at a space if there is one."""
BLOCK = 1 << 20


@runtime_checkable
class Source(Protocol):
    """Where passages come from.

    Attributes:
      name: what an error names.
      stamp: changes with whatever changes the passages; cheap.
      windows: how many there are.
    """

    name: str
    stamp: str
    windows: int

    def check(self) -> str:
        """Read everything once, and return the SHA-256 of it."""
        ...

    def lines(self, window: int) -> list[str]:
        """Return the passages of a window, none of them empty."""
        ...


class Listed:
    """Passages that are in memory already: one window."""

    windows = 1

    def __init__(self, name: str, texts: Sequence[str]):
        self.name, self._lines = name, list(cut("\n".join(texts)))
        self.stamp = sha256("\n".join(self._lines))

    def check(self) -> str:
        """Return the SHA-256 of the texts."""
        return self.stamp

    def lines(self, window: int) -> list[str]:
        """Return all passages."""
        return self._lines


@dataclasses.dataclass(frozen=True)
class File:
    """A file as it was when it was first seen."""

    path: Path
    size: int
    changed: int
    """``st_mtime_ns``"""


class TextFiles:
    """The lines of a ``.txt`` file, or of all those below a folder, sorted by path.

    The files count as one long row of bytes, which is cut into windows of ``window``
    bytes: many small files share a window, and a large one has many. A cut moves on to
    the next line's start, or, where that is further than 64 KiB, to the next space.

    Args:
      path: of the file or the folder.
      window: bytes, 8 or more.

    Raises:
      InputMissing: there is no such file, or none in the folder.
      DataError: the file is not called ``.txt``, or all files are empty.
    """

    def __init__(self, path: str | Path, window: int = WINDOW):
        path = given(path)
        self.name = str(path)
        self._files = [_seen(file) for file in _text_files(path)]
        sizes = [file.size for file in self._files]
        self._starts = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        self.bytes, self._window = int(self._starts[-1]), max(window, 8)
        if not self.bytes:
            raise DataError(
                path, "expected lines of text, found none", fix="name another corpus"
            )
        self.windows = -(-self.bytes // self._window)
        seen = [f"{f.path} {f.size} {f.changed}\n" for f in self._files]
        self.stamp = sha256("".join(seen))

    def check(self) -> str:
        """Read everything once: about a second a gigabyte.

        Raises:
          DataError: a file is not UTF-8; it names the row and the byte.
        """
        total = hashlib.sha256()
        for file in self._files:
            total.update(f"{file.size}\n".encode())
            decoder, done = codecs.getincrementaldecoder("utf-8")(), 0
            with _opened(file) as stream:
                while True:
                    block = stream.read(BLOCK)
                    total.update(block)
                    try:
                        decoder.decode(block, final=not block)
                    except UnicodeDecodeError as error:
                        held = len(error.object) - len(block)
                        raise _not_text(file, done - held + error.start) from None
                    if not block:
                        break
                    done += len(block)
        return total.hexdigest()

    def lines(self, window: int) -> list[str]:
        """Return the passages of a window.

        Raises:
          DataError: a file is not what it was.
        """
        found = []
        for file, start, stop in self._parts(
            self._edge(window), self._edge(window + 1)
        ):
            with _opened(file) as stream:
                stream.seek(start)
                text = stream.read(stop - start).decode("utf-8", "replace")
            found += cut(text.removeprefix("\ufeff"))
        return found

    def _parts(self, start: int, stop: int) -> Iterator[tuple[File, int, int]]:
        """Yield (file, first byte, end) of a run of bytes over all files."""
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        while start < stop:
            end = min(stop, int(self._starts[number + 1]))
            first = int(self._starts[number])
            if end > start:
                yield self._files[number], start - first, end - first
            start, number = end, number + 1

    def _edge(self, window: int) -> int:
        """Return the byte, over all files, that a window begins at."""
        place = window * self._window
        if place <= 0 or place >= self.bytes:
            return min(place, self.bytes)
        number = int(np.searchsorted(self._starts, place, side="right")) - 1
        first = int(self._starts[number])
        if place == first:
            return place
        # One byte back: a line that begins at the place itself stays whole.
        with _opened(self._files[number]) as stream:
            stream.seek(place - 1 - first)
            block = stream.read(min(LONGEST, self._window))
        if b"\n" in block:
            return place + block.index(b"\n")
        if place - 1 + len(block) == self._starts[number + 1]:
            return int(self._starts[number + 1])
        if b" " in block:
            return place + block.index(b" ")
        # Neither: the next byte that begins a character.
        begins = (i for i in range(1, len(block)) if block[i] & 0xC0 != 0x80)
        return place - 1 + next(begins, len(block))


def sha256(text: str) -> str:
    """Return the SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def cut(text: str) -> Iterator[str]:
    """Yield the lines of a text, stripped; none empty, none longer than ``LONGEST``.

    >>> list(cut("one \\n\\n two three\\r\\n"))
    ['one', 'two three']
    """
    for line in text.split("\n"):
        line = line.strip()
        while len(line) > LONGEST:
            end = line.rfind(" ", 1, LONGEST)
            end = LONGEST if end < 0 else end
            yield line[:end].rstrip()
            line = line[end:].lstrip()
        if line:
            yield line


def _text_files(path: Path) -> list[Path]:
    """Return the files of a path; the error says what is missing."""
    if path.is_dir():
        found = (p for p in path.rglob("*") if p.suffix.lower() == ".txt")
        files = sorted(p for p in found if p.is_file())
        if not files:
            raise InputMissing(
                path, "expected .txt files, found none", fix="name another folder"
            )
        return files
    if not path.exists():
        raise InputMissing(path, "no such file or folder", fix="correct the path")
    if path.suffix.lower() != ".txt":
        raise DataError(
            path,
            f"expected a .txt file, a passage a line, found {path.suffix or 'none'!r}",
            fix="write the texts into a .txt file, one a line",
        )
    return [path]


def _seen(path: Path) -> File:
    """Return a file as it is now, once it is seen that it can be read."""
    try:
        with open_file(path) as stream:
            check_text(stream.read(64), path)
        state = path.stat()
    except OSError as error:
        raise InputMissing(
            path, f"cannot be read: {error.strerror}", fix="check the file's rights"
        ) from error
    return File(path, state.st_size, state.st_mtime_ns)


@contextlib.contextmanager
def _opened(file: File) -> Iterator[BinaryIO]:
    """Open a file that must be what it was when it was first seen."""
    try:
        with file.path.open("rb") as stream:
            now = os.fstat(stream.fileno())
            if (now.st_size, now.st_mtime_ns) != (file.size, file.changed):
                raise FileNotFoundError
            yield stream
    except FileNotFoundError:
        raise DataError(
            file.path,
            "the file was changed or removed while it was in use",
            fix="put the old file back, or begin a new run",
        ) from None
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        raise StorageError(file.path, problem, fix="check the disk") from error


def _not_text(file: File, place: int) -> DataError:
    """Return the error of a byte that is no UTF-8, with its row."""
    with file.path.open("rb") as stream:
        row, left = 1, place
        while left and (block := stream.read(min(BLOCK, left))):
            row, left = row + block.count(b"\n"), left - len(block)
        stream.seek(place)
        byte = stream.read(1)
    found = f"0x{byte.hex()}" if byte else "the end of the file"
    return DataError(
        f"{file.path}:{row}",
        f"expected UTF-8, found {found} at byte {place}",
        fix="save the file as UTF-8 (iconv -t utf-8), or take the line out",
    )
