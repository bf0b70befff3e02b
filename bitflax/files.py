"""Files that are whole or not used: atomic writes, models' folders, a disk's errors."""

import contextlib
import errno
import importlib.util
import json
import logging
import os
import re
import secrets
import shutil
import stat
import sys
import threading
from collections.abc import Iterator, Set
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from bitflax.errors import (
    BitflaxError,
    DamagedFile,
    InputMissing,
    OutputError,
    StorageError,
    kind_of,
)

MANIFEST = "MANIFEST.json"
MOST_BYTES = 1 << 25
MOST_PARTS = 1 << 22
"""Of a text or JSON file of somebody else's; lines and the marks of a JSON's parts
bound the memory that objects made of it take. The largest BERT's tokenizer has 1/3."""


@contextlib.contextmanager
def disk(
    place: str | Path, *, also: tuple[type[Exception], ...] = ()
) -> Iterator[None]:
    """Turn what a full or broken disk raises inside into a ``StorageError``.

    Args:
      place: the file or folder that is written.
      also: what a library raises for it besides ``OSError``.

    Raises:
      StorageError: with the system's own words.

    >>> with disk("log.jsonl"):
    ...     raise OSError(28, "No space left on device")
    Traceback (most recent call last):
    bitflax.errors.StorageError: log.jsonl: No space left on device
    fix: make room there (... MB are free), or choose another --out
    """
    try:
        yield
    except BitflaxError:
        raise
    except (OSError, *also) as error:
        words = getattr(error, "strerror", None) or str(error).split("\n")[0]
        # tensorstore: "...: No space left on device [os_error_code='28']"
        words = words.split(" [os_error_code")[0].split(": ")[-1]
        mend = _free(place, error) or "see to the disk and its permissions"
        fix = f"{mend}, or choose another --out"
        raise StorageError(place, words, fix=fix) from error


def _free(place: str | Path, error: Exception) -> str:
    """Return the mend of a disk that is full, and how much room it has."""
    if "ENOSPC" in str(error) or "No space left" in str(error):
        with contextlib.suppress(OSError):
            free = shutil.disk_usage(_made(place)).free
            return f"make room there ({free / 1e6:,.1f} MB are free)"
    return ""


def _made(place: str | Path) -> Path:
    """Return the first folder above a path that is there."""
    path = Path(place).absolute()
    return path if path.exists() else _made(path.parent)


@contextlib.contextmanager
def threads_heard(place: str | Path) -> Iterator[None]:
    """Raise what libraries' threads fail by inside, instead of their tracebacks.

    An error that the body raises goes first: it is most often the same.

    Raises:
      StorageError: a thread's disk was full or broken.
    """
    failed, before = list[BaseException](), (threading.excepthook, sys.unraisablehook)
    tasks = logging.getLogger("asyncio")  # says what nobody asked a task for
    quiet, tasks.disabled = tasks.disabled, True
    threading.excepthook = lambda args: failed.append(args.exc_value or args.exc_type())

    def hook(error: Any) -> None:
        # C++ calls back from its threads when the loop that asked has failed already.
        if threading.current_thread() is threading.main_thread():
            before[1](error)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        threading.excepthook, sys.unraisablehook = before
        tasks.disabled = quiet
    with disk(place, also=(ValueError,)):
        for error in failed:
            raise error


_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def given(name: str | Path, kind: type[BitflaxError] = InputMissing) -> Path:
    """Return the path that a person gave, with ``~`` expanded: all paths pass here.

    Raises:
      InputMissing: it is empty, an address (``https://...``), a pipe or a device; with
        another ``kind``, which is an output's, the first two alone.
    """
    if str(name) == "":
        raise kind("''", "expected a path, found nothing", fix="give one; . is here")
    if _ADDRESS.match(str(name)):
        problem = "expected a path on this machine, found an address"
        fix = "give a path here, and copy it there afterwards"
        if kind is InputMissing:
            fix = "fetch it first, then give that file or folder (of a hub: org/name)"
        raise kind(name, problem, fix=fix)
    path = Path(os.path.expanduser(name))
    odd = os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path))
    if odd and kind is InputMissing:
        raise _not_regular(path)
    return path


def _not_regular(path: Path) -> InputMissing:
    problem = "expected a file or a folder, found a pipe or a device"
    return InputMissing(path, problem, fix="write what it gives into a file first")


def need_space(folder: str | Path, size: int) -> None:
    """Check that the disk under a folder, made or not yet, has ``size`` bytes free.

    Raises:
      StorageError: it has not.
    """
    free = shutil.disk_usage(_made(folder)).free
    if free < size:
        problem = f"{size / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free"
        raise StorageError(folder, problem, fix="make room, or choose another --out")


def open_file(path: Path) -> BufferedReader:
    """Open a regular file for reading, and nothing that could keep a reader waiting.

    Raises:
      OSError: it is not there, cannot be read, or is a folder.
      InputMissing: it is a pipe or a device.
    """
    more = getattr(os, "O_NONBLOCK", 0)  # a pipe that nobody writes to would block
    file = open(path, "rb", opener=lambda n, flags: os.open(n, flags | more))  # noqa: SIM115
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise _not_regular(path)
    return file


@contextlib.contextmanager
def reading(
    path: Path,
    what: str = "",
    *,
    broken: tuple[type[Exception], ...] = (ValueError,),
    fix: str = "fetch the file again",
    but: str = "safetensors",
) -> Iterator[BufferedReader]:
    """Open a model's file, and turn what is raised inside into our errors.

    One that cannot be read is called what it is instead, but only then: the length that
    safetensors begins with may be any bytes, 35,615 those of gzip.

    Args:
      path: the file.
      what: what it is not where ``broken`` is raised, by what reads it.
      fix: the mend of such a file.
      but: the kinds that it may be, a regex.

    Raises:
      InputMissing: there is no such file, or it is a pipe or a device.
      StorageError: it cannot be read.
      DamagedFile: ``broken`` was raised inside.
    """
    start = b""
    try:
        with open_file(path) as file:
            start = file.peek()
            yield file
    except BitflaxError:
        raise
    except (FileNotFoundError, NotADirectoryError):
        fix = "give a packed file, or the folder of a Hugging Face model"
        raise InputMissing(path, "no such file", fix=fix) from None
    except (OSError, *broken) as error:
        # A seek to before the start, as a broken zip file asks for, is EINVAL.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            problem = f"cannot be read: {error.strerror}"
            raise StorageError(path, problem, fix="check rights and disk") from error
        problem = f"{what} ({error})" if what else str(error)
        kind = kind_of(start, model=True)
        if kind and not re.match(but, kind[0]):
            problem, fix = f"expected a file of a model, found {kind[0]}", kind[1]
        raise DamagedFile(path, problem, fix=fix) from error


def read_text(path: Path) -> str:
    """Return the text of a file of somebody else's, UTF-8; errors are ``reading``'s."""
    with reading(path, "not UTF-8") as file:
        return _text(file)


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; errors are ``reading``'s."""
    bad, fix = (ValueError, RecursionError), "correct it, or fetch it again"
    with reading(path, "not JSON", broken=bad, fix=fix) as file:
        fields = json.loads(_text(file), object_pairs_hook=unique_pairs)
        if isinstance(fields, dict):
            return fields
        raise DamagedFile(path, "expected a JSON object", fix=fix)


def _text(file: BufferedReader) -> str:
    data = file.read(MOST_BYTES + 1)
    if len(data) > MOST_BYTES or sum(map(data.count, b"\n,[{:")) > MOST_PARTS:
        problem = f"over {MOST_BYTES:,} bytes or {MOST_PARTS:,} parts"
        raise DamagedFile(file.name, problem, fix="do not use this file")
    if kind_of(data):
        raise ValueError("no text")
    return data.decode()


def unique_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return a JSON object; for ``json.loads``, which takes the last of equal keys.

    Raises:
      ValueError: a key is there twice.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return found


def write_text(path: str | Path, text: str) -> None:
    """Write a text file at once: readers see the old text or all of the new one.

    Raises:
      StorageError: it cannot be written.
    """
    with disk(path), atomic(path) as file:
        # A folder's name need not be UTF-8, and a page shows it all the same.
        file.write(text.encode(errors="backslashreplace"))


_DRAFT = re.compile(r"^\.(.+)\.[0-9a-f]{16}\.part$")


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[BinaryIO]:
    """Open a new file for writing that becomes ``path`` when the block ends well.

    Whoever reads ``path``, even after a crash, sees the old file or the new, whole.

    Raises:
      OSError: the folder is not there or cannot be written, or the disk is full.
    """
    path = Path(path)
    # Processes of two hosts may have one number.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")
    try:
        with open(draft, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def package_files(package: str, pattern: str) -> list[Path]:
    """Return the files of an installed package, sorted, without running the package.

    >>> [path.name for path in package_files("bitflax", "data/ta*s.py")]
    ['tables.py', 'tasks.py']
    >>> package_files("no_such_package", "*")
    []
    """
    spec = importlib.util.find_spec(package)
    folders = (spec and spec.submodule_search_locations) or ()
    return sorted(path for folder in folders for path in Path(folder).glob(pattern))


_WEIGHTS = ("bitflax_extra.safetensors", "model.safetensors")
_TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "vocab.txt")
MODEL_FILES = frozenset((MANIFEST, "config.json", *_WEIGHTS, *_TOKENIZER))


def check_model_folder(folder: Path, also: Set[str] = frozenset()) -> None:
    """Refuse to write where something else lies than an earlier model.

    Args:
      folder: where to write; it need not be there.
      also: names of files that may lie there besides ``MODEL_FILES``.

    Raises:
      OutputError: it cannot be read or written, or holds something else than a model.
    """
    above = _made(folder.absolute().parent)
    if above.is_dir() and not os.access(above, os.W_OK):
        problem = f"{above} cannot be written"
        raise OutputError(folder, problem, fix="give another folder")
    try:
        names = sorted(path.name for path in folder.iterdir())
        # What a write that was killed left behind may go.
        known = MODEL_FILES | also
        foreign = [name for name in names if _DRAFT.sub(r"\1", name) not in known]
    except FileNotFoundError:
        foreign = []
    except OSError as error:
        raise OutputError(folder, f"{error.strerror}", fix="give another") from None
    if foreign:
        problem = f"holds what is no part of a model: {', '.join(foreign[:3])}"
        raise OutputError(folder, problem, fix="give a new folder")


@contextlib.contextmanager
def replacing_folder(folder: Path, also: Set[str] = frozenset()) -> Iterator[Path]:
    """Give an empty folder to write in, which then takes the place of ``folder``.

    Where the body fails, ``folder`` is what it was. Nothing but an earlier model is
    ever replaced.

    Args:
      folder: where to write.
      also: as ``check_model_folder`` takes it.

    Raises:
      OutputError: the folder cannot be made, or holds something else than a model.
      StorageError: writing failed, or the disk is full.
    """
    folder = Path(folder)
    new = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.new"
    old = new.with_suffix(".old")
    check_model_folder(folder, also)
    try:
        new.mkdir(parents=True)
    except OSError as error:
        raise OutputError(folder, f"{error.strerror}", fix="give another") from None
    try:
        with disk(folder):
            yield new
            for path in new.iterdir():
                sync(path)
            _swap(new, folder, old)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def _swap(new: Path, folder: Path, old: Path) -> None:
    """Give ``new`` the name ``folder``; ``old`` holds what was there meanwhile."""
    try:
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    finally:
        if old.exists() and not folder.exists():  # stopped between the two
            _bring_back(folder, old)
        shutil.rmtree(old, ignore_errors=True)


def _bring_back(folder: Path, old: Path) -> None:
    try:
        old.rename(folder)
    except OSError as error:
        problem = f"cannot write ({error.strerror or error})"
        fix = f"rename {old} to {folder}: it is the model that was there"
        raise StorageError(folder, problem, fix=fix) from None


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk, or raise OSError."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)
