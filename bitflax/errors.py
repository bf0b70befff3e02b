"""The few errors a person meets: where, what was expected and found, the mend.

The command line prints one as two lines and exits with its status::

    bitflax: error: train.tsv:17: expected 2 columns, found 1
    fix: put a tab between text and label
"""

import difflib
import re
from collections.abc import Iterable

from bitflax.progress import escaped


class BitflaxError(Exception):
    """An error that a person can mend; the base of all of them.

    >>> print(DataError("train.tsv:17", "expected 2 columns, found 1", fix="add a tab"))
    train.tsv:17: expected 2 columns, found 1
    fix: add a tab
    """

    status = 1

    def __init__(
        self, place: object, problem: str, *, fix: str, more: Iterable[str] = ()
    ):
        self.place, self.problem, self.fix = str(place), problem, fix
        self.more = tuple(more)  # lines of other places that have the like
        super().__init__(self.place, problem, fix)

    def __str__(self) -> str:
        """Return place, problem and mend on two lines, control characters escaped."""
        problem = self.problem.replace("\n", " ")  # of a library's error
        lines = (f"{self.place}: {problem}", *self.more, f"fix: {self.fix}")
        return "\n".join(map(escaped, lines))


class UsageError(BitflaxError, ValueError):
    """The command line is off."""

    status = 2


class DataError(BitflaxError, ValueError):
    """A data file holds something that it should not."""

    status = 65


class InputMissing(BitflaxError, FileNotFoundError):
    """A file, folder or package that is needed is not there."""

    status = 66


class HostLost(BitflaxError, RuntimeError):
    """Another process of the run is gone."""

    status = 69


class OutputError(BitflaxError, OSError):
    """The output cannot be created."""

    status = 73


class StorageError(BitflaxError, OSError):
    """Reading or writing failed, or the disk is full."""

    status = 74


class FolderBusy(BitflaxError, RuntimeError):
    """Another run uses the folder."""

    status = 75


class DamagedFile(BitflaxError, ValueError):
    """A model file or checkpoint is damaged, or hostile."""

    status = 76


class ConfigError(BitflaxError, ValueError):
    """A recipe, an override or a model's configuration is wrong."""

    status = 78


class Diverged(BitflaxError, ArithmeticError):
    """Training left the real numbers."""

    status = 79


def nearest(name: str, names: Iterable[str], what: str = "names") -> str:
    """Return the mend of a mistyped name: the nearest right one, or all of them.

    >>> nearest("lrr", ["lr", "warmup"])
    "did you mean 'lr'?"
    >>> nearest("x", ["lr", "warmup"], "fields")
    'the fields are: lr, warmup'
    """
    names = [each for each in names if each != name]
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    if not names:
        return f"there are no {what}"
    return f"the {what} are: {', '.join(names[:20])}"


CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_CSV = "write it as .csv or .jsonl (pandas: to_json(orient='records', lines=True))"
_FOLDER = "give a packed file, or a folder that transformers saved as safetensors"
_KINDS = {
    rb"\x1f\x8b|BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf|Rar!\x1a": (
        "a compressed file (gzip, xz or the like)",
        "unpack it (gunzip, xz -d)",
    ),
    rb"version https://git-lfs": ("a Git LFS pointer", "fetch the file: git lfs pull"),
    rb"\s*<(?i:!doctype html|html)": ("HTML, a web page", "fetch the file itself"),
    rb"PK\x03\x04": (
        "zip, as .xlsx or PyTorch has it",
        "unpack it, or save the sheet as CSV",
        _FOLDER,
    ),
    rb"\xd0\xcf\x11\xe0": ("an old .xls or .doc", "save it as CSV", _FOLDER),
    rb"%PDF-": ("PDF", "give its texts, as .csv or .txt", _FOLDER),
    rb"PAR1|ARROW1|FEA1[\x00-\x1f]|\x89HDF": (
        "Parquet, Arrow or HDF5",
        _CSV,
        _FOLDER,
    ),
    rb"Obj\x01|SQLite format 3\0|\x93NUMPY": ("Avro, SQLite or NumPy", _CSV, _FOLDER),
    rb"\x89PNG|\xff\xd8\xff|\x7fELF": ("a picture or a program", "give data", _FOLDER),
    rb"\s*<\?xml|\{\\rtf": ("XML or RTF", "give its texts, as .csv or .txt", _FOLDER),
    rb"\x80[\x02-\x05]": ("pickle, which may run code", _CSV, _FOLDER),
    rb"GGUF": ("GGUF, a model", "give data", _FOLDER),
    rb"(?s:.{6})\0\0\{": ("safetensors, a model", "give data", "name it .safetensors"),
    rb"\xff\xfe|\xfe\xff|([\t -~]\0){2}|(\0[\t -~]){2}": (
        "UTF-16 or UTF-32",
        "save it as UTF-8 (iconv -f UTF-16 -t UTF-8)",
        _FOLDER,
    ),
}
"""By its first bytes: what a file is, and the mend where data and where a model is
wanted; one mend where it is the same."""


def kind_of(start: bytes, model: bool = False) -> tuple[str, str] | None:
    """Return what a file is that is neither text nor a model, and the mend.

    Args:
      start: its first bytes.
      model: whether a model is wanted, and not data.

    >>> kind_of(b"GGUF\\3"), kind_of(b"A text")
    (('GGUF, a model', 'give data'), None)
    """
    for pattern, (what, *fixes) in _KINDS.items():
        if re.match(pattern, start):
            return what, fixes[-1 if model else 0]
    return None


def check_text(start: bytes, place: object) -> None:
    """Check by a data file's first bytes that it is no other kind of file.

    Raises:
      DataError: it is; says which.
    """
    if kind := kind_of(start):
        raise DataError(place, f"expected a text, found {kind[0]}", fix=kind[1])
