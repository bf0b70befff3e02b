"""Writing a model's folder: all of it or nothing, and the tokenizer's files in it."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

from bitflax.errors import BitflaxError, DamagedFile, OutputError, StorageError

WRITTEN = frozenset(
    {
        "bitflax_extra.safetensors",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
)


def check(folder: Path, also: Set[str] = frozenset()) -> None:
    """Refuse to write where something else lies than an earlier model.

    Args:
      folder: where to write; it need not be there.
      also: names of files that may lie there besides ``WRITTEN``.

    Raises:
      OutputError: it cannot be read or written, or holds something else than a model.
    """
    above = folder.absolute().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if above.is_dir() and not os.access(above, os.W_OK):
        problem = f"{above} cannot be written"
        raise OutputError(folder, problem, fix="give another folder")
    try:
        foreign = sorted({p.name for p in folder.iterdir()} - WRITTEN - also)
    except FileNotFoundError:
        foreign = []
    except OSError as error:
        raise OutputError(
            folder, f"{error.strerror}", fix="give another folder"
        ) from None
    if foreign:
        raise OutputError(
            folder,
            f"holds what is no part of a model: {', '.join(foreign[:3])}",
            fix="give a new folder",
        )


@contextlib.contextmanager
def replacing(folder: Path, also: Set[str] = frozenset()) -> Iterator[Path]:
    """Give an empty folder to write in, which then takes the place of ``folder``.

    Where the body fails, ``folder`` is what it was. Nothing but an earlier model is
    ever replaced.

    Args:
      folder: where to write.
      also: as ``check`` takes it.

    Raises:
      OutputError: the folder cannot be made, or holds something else than a model.
      StorageError: writing failed, or the disk is full.
    """
    folder = Path(folder)
    new = folder.parent / f".{folder.name}.{secrets.token_hex(4)}.new"
    old = new.with_suffix(".old")
    check(folder, also)
    try:
        new.mkdir(parents=True)
    except OSError as error:
        raise OutputError(
            folder, f"{error.strerror}", fix="give another folder"
        ) from None
    try:
        yield new
        _flush(new)
        _swap(new, folder, old)
    except BitflaxError:  # some of them are OSErrors too
        raise
    except OSError as error:
        raise StorageError(
            folder, f"cannot write ({error.strerror or error})", fix="free some space"
        ) from None
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


def tokenizer_files(text: str, max_length: int) -> dict[str, str]:
    """Return ``{file name: text}`` of a BERT tokenizer's files.

    Args:
      text: the tokenizer as ``tokenizer.json`` holds it.
      max_length: the longest text that the model takes.

    Raises:
      DamagedFile: it is no WordPiece tokenizer.
    """
    try:
        whole: dict[str, Any] = json.loads(text)
        vocab, normalizer = whole["model"]["vocab"], whole["normalizer"] or {}
        words = sorted(vocab, key=vocab.__getitem__)
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DamagedFile(
            "tokenizer", "not a WordPiece tokenizer.json", fix="give a BERT's tokenizer"
        ) from None
    settings = {
        "tokenizer_class": "BertTokenizer",
        "do_lower_case": normalizer.get("lowercase", False),
        "strip_accents": normalizer.get("strip_accents"),
        "tokenize_chinese_chars": normalizer.get("handle_chinese_chars", True),
        "model_max_length": max_length,
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    return {
        "tokenizer.json": text,
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
        "vocab.txt": "".join(f"{word}\n" for word in words),
    }


def _flush(folder: Path) -> None:
    """Have the files on the disk before the folder gets its name."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
