"""Removing what only a resume needs, checkpoints and cache, once a run is finished."""

import shutil
from pathlib import Path

from bitflax import files, manifests, training
from bitflax.errors import UsageError
from bitflax.runs.folder import RunFolder, need_run


def clean(path: str | Path) -> int:
    """Remove checkpoints and cache of a finished run; it stays finished.

    Results, logs and every stage's ``params/`` stay: a stage that is appended to the
    recipe can still start from them.

    Args:
      path: the run's folder.

    Returns:
      The number of bytes that were freed.

    Raises:
      InputMissing: it is no run's folder.
      UsageError: the run is not finished; says what it would lose.
      FolderBusy: the run is in progress.
      StorageError: something cannot be removed.
    """
    path = files.given(path)
    need_run(path)
    with RunFolder(path) as run:
        if not run.finished:
            fix = "finish it with the same `bitflax run`, or remove the whole folder"
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
    """Return what an unfinished run would lose with its checkpoints and cache."""
    lost = []
    for part in sorted(path.glob("[0-9]*-*/checkpoints")):
        steps = manifests.finished(part)
        if steps and not (part.parent / "result.json").is_file():
            lost.append(f"{part.parent.name} would lose its {max(steps)} steps")
    return ", ".join(lost) or "it would have to make its cache again"
