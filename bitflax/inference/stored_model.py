"""What a path holds that predicts: a packed file, a run, a Hugging Face folder."""

import hashlib
import os
import re
from io import BufferedReader
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitflax import files, manifests, packed, progress, trees
from bitflax.data import Tokenizer
from bitflax.errors import ConfigError, DamagedFile, InputMissing, UsageError
from bitflax.model import (
    EXTRA_FILE,
    Split,
    fetch,
    is_hub_name,
    load_pretrained,
    resolve_folder,
)
from bitflax.packed import SizeRow, StoredModel
from bitflax.types import Params

PACKED_COPY = "packed.safetensors"
"""A copy of the packed file, which an exported folder has beside its dense weights."""
_DENSE = "model.safetensors"
DENSE_SUM = f"{_DENSE}.sha256"
"""The SHA-256 of the dense weights that the copy belongs to, as of ``sha256sum``."""


def given_model(name: str | Path) -> Path:
    """Return a model's path; a model on a hub is fetched first.

    Args:
      name: a path, or a hub's ``org/name`` where no such path exists. Of the hub's
        model the packed file is fetched, or the whole folder if it has none.

    Raises:
      InputMissing: it is a URL, or neither a hub nor the cache has it.
    """
    if is_hub_name(name):
        return fetch(str(name), alone=PACKED_COPY)
    return files.given(name)


def read_model(place: Path) -> StoredModel:
    """Read a model and make its tokenizer.

    Args:
      place: a packed file or a Hugging Face folder, from ``locate_model``.

    Raises:
      InputMissing: the folder has no weights or no tokenizer.
      ConfigError: the folder holds the latent halves of a split student, or no
        classifier.
      DamagedFile: a file is damaged.
    """
    if place.is_dir():
        config, params = load_pretrained(place, seed=None)
        _check_whole(params, place)
        run, stage = place.parent.parent, place.parent.name.partition("-")[2]
        if place.name == "params" and _quantised(run / "recipe.json", stage):
            problem = "latent weights: the student computes with quantised ones"
            progress.tell(f"{place}: {problem}\nfix: give the run, {run}")
        tokenizer = Tokenizer.from_folder(place)
        extras = {"max_length": tokenizer.max_length}
        return StoredModel(config, params, None, tokenizer, extras)
    found = packed.read_packed(place, np.asarray)  # an engine moves them to a device
    if found.tokenizer is None:
        return found
    made = Tokenizer.from_json(found.tokenizer, place, found.max_length)
    return found._replace(tokenizer=made)


def _check_whole(params: Params, place: Path) -> None:
    """Refuse a split student's latent weights: it computes with their 1-bit values."""
    halves = [p for p, x in trees.flatten(params).items() if isinstance(x, Split)]
    if halves:
        raise ConfigError(
            place,
            f"holds {halves[0]} as two latent halves; the student computes with their "
            "1-bit rounding, which only its packed file has",
            fix="finish the run, then give the run's folder or its model.safetensors; "
            "or pack() what load_pretrained() gives, and save_packed() that",
        )


def locate_model(path: Path) -> Path:
    """Return the packed file or the Hugging Face folder that a path stands for.

    A run's folder stands for its packed file, or for the last stage's ``params/`` where
    that stage is not quantised; an exported folder for the packed file in it.

    Raises:
      InputMissing: a folder holds no model.
      ConfigError: a run has not packed its student yet; or the dense weights of an
        exported folder were changed since its packed file was copied there.
    """
    if (path / PACKED_COPY).is_file():
        _check_dense(path)
        return path / PACKED_COPY
    if path.is_dir() and not os.path.lexists(path / "config.json"):
        return _of_run(path)
    return path


def write_dense_sum(folder: Path) -> None:
    """Write the SHA-256 of a folder's dense weights beside them."""
    found = packed.guarded(_digest, folder / _DENSE)
    files.write_text(folder / DENSE_SUM, f"{found}  {_DENSE}\n")


def _check_dense(folder: Path) -> None:
    """Check that the dense weights are those beside which the packed file was put."""
    known, dense = folder / DENSE_SUM, folder / _DENSE
    if not known.is_file() or not dense.is_file():
        return
    with files.disk(known):
        expected = known.read_text("utf-8", "replace")[:64]
    if packed.guarded(_digest, dense) != expected:
        problem = f"{_DENSE} was changed after {PACKED_COPY} was exported beside it"
        fix = f"remove {PACKED_COPY} to use the changed weights, or give that file "
        raise ConfigError(folder, problem, fix=f"{fix}itself")


def _of_run(folder: Path) -> Path:
    """Return a run's packed file, or the parameters of its last stage."""
    if (folder / "model.safetensors").is_file():
        return folder / "model.safetensors"
    stages = [
        (int(part.name.split("-")[0]), part)
        for part in folder.iterdir()
        if re.match(r"\d+-", part.name) and (part / "params/config.json").is_file()
    ]
    if not stages:
        return resolve_folder(folder)  # says what is wrong with it
    _, last = max(stages)
    if _quantised(folder / "recipe.json", last.name.split("-", 1)[1]):
        latent = f", or give {last / 'params'} to see its latent weights"
        split = (last / "params" / EXTRA_FILE).is_file()  # and would be refused
        raise ConfigError(
            last,
            "this stage trains quantised weights, and the run has not packed them yet",
            fix=f"finish the run{'' if split else latent}",
        )
    return last / "params"


def _quantised(recipe: Path, stage: str) -> bool:
    """Whether the run's recipe has a stage of this name with rules or activations."""
    try:
        found = manifests.read_sealed(recipe, earlier={}) if recipe.exists() else {}
        stages = (x for x in found["recipe"]["stages"] if x.get("name") == stage)
        return any(bool(x.get("rules") or x.get("act")) for x in stages)
    except (KeyError, TypeError, AttributeError):
        return False


class Verified(NamedTuple):
    """What a packed file holds, after all of it was read and checked."""

    path: Path
    sha256: str
    """The whole file's, in hexadecimal."""
    version: str
    """The format's."""
    model: StoredModel
    rows: list[SizeRow]
    """The sizes of all its parts, from ``size_report``."""


def verify(path: str | Path, sha256: str | None = None) -> Verified:
    """Read a packed file and check every part of it.

    Args:
      path: a packed file, the folder of a run that has one, or a hub's ``org/name``.
      sha256: the expected SHA-256 of the whole file, 64 hexadecimal digits; compared
        before anything in the file is parsed.

    Raises:
      UsageError: ``sha256`` is not such a digest.
      InputMissing: there is no packed file.
      StorageError: reading failed.
      DamagedFile: a part is not as it was written; says which.
    """
    if sha256 is not None and not re.fullmatch(r"[0-9a-fA-F]{64}", sha256):
        problem = f"expected 64 hexadecimal digits, found {sha256[:80]!r}"
        raise UsageError("--sha256", problem, fix="give what `sha256sum FILE` prints")
    place = locate_model(given_model(path))
    if place.is_dir():
        problem = "a folder of dense weights, which carries no checksum"
        fix = "give a packed model.safetensors, or a run's folder that has one"
        raise InputMissing(place, problem, fix=fix)
    found = packed.guarded(_digest, place)
    if sha256 is not None and found != sha256.lower():
        problem = f"its SHA-256 is {found}, not {sha256.lower()}"
        fix = "fetch the file again, or compare with another digest"
        raise DamagedFile(place, problem, fix=fix)
    model = read_model(place)
    version, rows = packed.version_and_sizes(place)
    return Verified(place, found, version, model, rows)


def _digest(file: BufferedReader) -> str:
    return hashlib.file_digest(file, "sha256").hexdigest()
