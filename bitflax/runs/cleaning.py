"""What only a resume needs of a run's folder, and its removal once the run is done."""

import shutil
from pathlib import Path

from bitflax import files, manifests, training
from bitflax.errors import InputMissing, UsageError
from bitflax.runs.folder import RunFolder


def clean(path: str | Path) -> int:
    """Remove checkpoints and cache of a finished run; it stays finished.

    Results, logs and every stage's ``params/`` stay, so that a stage appended to the
    recipe still goes on from there.

    Args:
      path: the run's folder.

    Returns:
      The bytes that are free now.

    Raises:
      InputMissing: it is no run's folder.
      UsageError: the run is not finished; says what it would lose.
      FolderBusy: a run is there.
      StorageError: something cannot be removed.
    """
    path = files.given(path)
    if not (path / "recipe.json").is_file():
        fix = "give the folder of a run (--out)"
        raise InputMissing(path, "no run's folder: no recipe.json in it", fix=fix)
    with RunFolder(path) as run:
        if not run.finished:
            fix = "finish it, by the same `bitflax run`; or remove the folder itself"
            raise UsageError(path, f"the run is not finished: {_lost(path)}", fix=fix)
        size = training.broadcast(lambda: resume_bytes(path))
        if training.is_main_process():
            with files.disk(path):
                for part in _parts(path):
                    shutil.rmtree(part)
        training.barrier()
    return size


def resume_bytes(path: Path) -> int:
    """Return the bytes of what ``clean`` removes.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     (Path(folder) / "cache").mkdir()
    ...     _ = (Path(folder) / "cache" / "tokens").write_bytes(b"12345")
    ...     resume_bytes(Path(folder))
    5
    """
    found = (file for part in _parts(path) for file in part.rglob("*"))
    return sum(file.stat().st_size for file in found if file.is_file())


def _parts(path: Path) -> list[Path]:
    found = [path / "cache", *sorted(path.glob("[0-9]*-*/checkpoints"))]
    return [part for part in found if part.is_dir() and not part.is_symlink()]


def _lost(path: Path) -> str:
    """Return what an unfinished run would lose."""
    lost = []
    for part in sorted(path.glob("[0-9]*-*/checkpoints")):
        steps = manifests.finished(part)
        if steps and not (part.parent / "result.json").is_file():
            lost.append(f"{part.parent.name} would begin anew, from step {max(steps)}")
    return ", ".join(lost) or "it would make its cache anew"
