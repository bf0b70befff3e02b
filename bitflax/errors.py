"""The few errors a person meets: where, what was expected and found, the mend.

The command line prints one as two lines and exits with its status::

    bitflax: error: train.tsv:17: expected 2 columns, found 1
    fix: put a tab between text and label
"""

import difflib
from collections.abc import Iterable


class BitflaxError(Exception):
    """An error that a person can mend; the base of all of them.

    >>> print(DataError("train.tsv:17", "expected 2 columns, found 1", fix="add a tab"))
    train.tsv:17: expected 2 columns, found 1
    fix: add a tab
    """

    status = 1

    def __init__(self, place: object, problem: str, *, fix: str):
        self.place, self.problem, self.fix = str(place), problem, fix
        super().__init__(self.place, problem, fix)

    def __str__(self) -> str:
        """Return place, problem and mend on two lines."""
        return f"{self.place}: {self.problem}\nfix: {self.fix}"


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
