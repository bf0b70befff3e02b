"""What files were when they were written: a SHA-256 each, checked when they are read.

A manifest is a JSON file that lies beside what it lists::

    {"step": 120, "files": {"state/d/0": {"bytes": 4096, "sha256": "..."}, ...},
     "sha256": "of all the rest of this JSON"}

What cannot be read is never deleted: it is set aside.
"""

import hashlib
import json
import logging
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitflax import files
from bitflax.errors import DamagedFile
from bitflax.files import MANIFEST

_LOG = logging.getLogger(__name__)

_FIX = "remove the folder that holds it"


def write_sealed(path: Path, fields: Mapping[str, Any]) -> None:
    """Write a JSON object and the SHA-256 of all that it says."""
    sealed = {**fields, "sha256": _seal(fields)}
    files.write_text(path, json.dumps(sealed, indent=1) + "\n")


def read_sealed(
    path: Path, *, earlier: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the object that ``write_sealed`` wrote, without the SHA-256.

    An earlier bitflax wrote none: such an object is taken where ``earlier`` says which
    fields of which types it has at least.

    Raises:
      DamagedFile: it is missing, or not what was written.
    """
    try:
        with files.open_file(path) as file:
            fields = json.loads(file.read(), object_pairs_hook=files.unique_pairs)
        seal = fields.pop("sha256", None)
    except (OSError, ValueError, AttributeError, TypeError, RecursionError) as error:
        raise _damaged(path, "it cannot be read") from error
    if seal is None:
        if earlier is None:
            raise _damaged(path, "it has no SHA-256: an earlier bitflax wrote it")
        lost = [n for n, kind in earlier.items() if not isinstance(fields.get(n), kind)]
        if lost:
            raise _damaged(path, f"it is not what was written: no {lost[0]} in it")
    elif seal != _seal(fields):
        raise _damaged(path, "it is not what was written (SHA-256 differs)")
    return fields


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file's bytes, in hexadecimal."""
    with files.open_file(Path(path)) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_sums(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each file that says something of a model, by its name."""
    kinds = (".json", ".txt", ".safetensors", ".bin")
    found = sorted(path for path in folder.iterdir() if path.suffix in kinds)
    return {path.name: sha256(path) for path in found}


def sum_of(sums: Mapping[str, str], *, names: bool = True) -> str:
    """Return the SHA-256 of all that a model's folder says, in hexadecimal.

    Args:
      sums: as ``model_sums`` gives them.
      names: whether a file's name counts too: it does in what a run pins, not in the
        record of an augmentation.
    """
    lines = [f"{name} {each}\n" if names else each for name, each in sums.items()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def write_manifest(
    folder: Path,
    head: Mapping[str, Any],
    name: str = MANIFEST,
    listed: Sequence[str] | None = None,
) -> None:
    """Write ``MANIFEST.json``: ``head``, and size and SHA-256 of every file below.

    It is written last and at once, so that it also says that the folder is whole.
    ``listed`` are the files, relative to the folder, where not all below are meant.
    """
    found = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != name]
    paths = found if listed is None else [folder / each for each in listed]
    with files.disk(folder):
        for path in paths:  # else it may outlive them on a disk that fails
            files.sync(path)
        states = {p.relative_to(folder).as_posix(): _state(p) for p in paths}
    write_sealed(folder / name, {**head, "files": states})


def _state(path: Path) -> dict[str, Any]:
    return {"bytes": path.stat().st_size, "sha256": sha256(path)}


def read_manifest(folder: Path, name: str = MANIFEST) -> dict[str, Any]:
    """Return a folder's manifest: what was written, ``files`` included.

    Raises:
      DamagedFile: it is missing, or not what was written.
    """
    return read_sealed(folder / name)


def write_listed(path: Path, text: str, name: str) -> None:
    """Write a file anew, and what a manifest beside it, if any, says of this file."""
    manifest = path.parent / name
    fields = read_manifest(path.parent, name) if manifest.is_file() else {"files": {}}
    files.write_text(path, text)
    if path.name in fields["files"]:
        fields["files"][path.name] = _state(path)
        write_sealed(manifest, fields)


def check_manifest(folder: Path, name: str = MANIFEST, fix: str = _FIX) -> None:
    """Check every listed file against its size and SHA-256.

    Raises:
      DamagedFile: a file is missing or is not what was written.
    """
    for listed, entry in read_manifest(folder, name)["files"].items():
        path = folder / listed
        if not path.is_file():
            raise DamagedFile(path, "the file is missing", fix=fix)
        if _state(path) != entry:
            problem = "the file is not what was written (SHA-256 differs)"
            raise DamagedFile(path, problem, fix=fix)


def _seal(manifest: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()


def finished(folder: Path) -> set[int]:
    """Return the numbered folders in ``folder`` that have a manifest."""
    manifests = folder.glob(f"*/{MANIFEST}")
    return {int(p.parent.name) for p in manifests if p.parent.name.isdecimal()}


def remove_unfinished(folder: Path) -> list[Path]:
    """Remove orbax's ``<n>.orbax-...``, and set aside numbered folders without one.

    Returns:
      What was set aside.
    """
    done, lost = {str(number) for number in finished(folder)}, []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        numbered = path.is_dir() and path.name.split(".")[0].isdecimal()
        if not numbered or path.name in done:
            continue
        with files.disk(path):
            if path.name.isdecimal() and any(path.iterdir()):
                lost.append(set_aside(path))
                text = "%s: has no %s: set aside as %s\nfix: nothing, if the run was "
                text += "killed as it saved; else check the disk"
                _LOG.warning(text, path, MANIFEST, lost[-1])
            else:
                shutil.rmtree(path)
    return lost


def set_aside(path: Path) -> Path:
    """Move what cannot be read to ``set-aside/`` beside its folder; return where."""
    place = path.parent.parent / "set-aside"
    place.mkdir(exist_ok=True)
    new = place / f"{path.name}-{secrets.token_hex(4)}"
    return path.rename(new)


def _damaged(path: Path, problem: str) -> DamagedFile:
    return DamagedFile(path, problem, fix=_FIX)
