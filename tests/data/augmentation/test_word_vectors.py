"""Vectors out of each kind of file, and the nearest words."""

import sys

import numpy as np
import pytest

from bitflax.data.augmentation import word_vectors
from bitflax.errors import DamagedFile, DataError, InputMissing
from tests.helpers import augmenting

WORDS = ["the", "movie", "film", "of"]
VECTORS = np.array([[1, 0], [0, 2], [0.5, 1.5], [-1, 0.1]], np.float32)
TEXT = "the 1 0\nmovie 0 2\nfilm 0.5 1.5\nof -1 0.1\n"


def assert_same(found):
    assert found.words == WORDS
    unit = VECTORS / np.linalg.norm(VECTORS, axis=1, keepdims=True)
    np.testing.assert_allclose(found.matrix, unit, rtol=1e-6)


def test_neighbours_are_those_of_a_full_sort():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(300)]
    vectors = word_vectors.WordVectors(words, rng.normal(size=(300, 5)))
    found = vectors.nearest([*words, "unknown"], 7)
    assert found.pop("unknown") == []
    cosines = vectors.matrix @ vectors.matrix.T
    np.fill_diagonal(cosines, -np.inf)
    for word, row in zip(words, cosines, strict=True):
        assert found[word] == [words[i] for i in np.argsort(-row)[:7]]


def test_neighbours_are_tinyberts():
    data, arrays = augmenting.golden()
    vectors = word_vectors.WordVectors(data["glove_words"], arrays["glove"])
    (case, *_) = data["cases"]
    assert vectors.nearest(["unbelievable"], data["M"]) == {
        "unbelievable": case["candidates"]["3"]
    }


def test_few_words_have_few_neighbours():
    vectors = word_vectors.WordVectors(["a", "b"], np.eye(2))
    assert vectors.nearest(["a"], 15) == {"a": ["b"]}
    assert word_vectors.WordVectors(["a"], np.eye(1)).nearest(["a"], 15) == {"a": []}


def test_zeros_repetitions_and_unk_are_left_out():
    words = ["a", "<unk>", "b", "a", "zero"]
    found = word_vectors.WordVectors(words, np.array([[1], [1], [2], [-1], [0]]))
    assert found.words == ["a", "b"]
    assert found.matrix.tolist() == [[1], [1]]


@pytest.mark.parametrize("first", ["", "4 2\n"])
def test_text_is_read(write, first):
    assert_same(word_vectors.load_vectors(write("glove.txt", first + TEXT)))


def test_a_word_may_hold_spaces(write):
    found = word_vectors.load_vectors(write("glove.txt", "a 1 0\nat name 0 1\n"))
    assert found.words == ["a", "at name"]


def test_only_the_first_words_are_read(write, monkeypatch):
    monkeypatch.setattr(word_vectors, "MOST", 2)
    assert word_vectors.load_vectors(write("glove.txt", TEXT)).words == ["the", "movie"]


@pytest.mark.parametrize(
    ("text", "place", "problem"),
    [
        ("a 1 2\nb 1\n", ":2", "expected a word and 2 numbers, found 2 fields"),
        ("a 1 2\nb 1 x\n", ":2", "expected a word and 2 numbers"),
        ("a\n", ":1", "expected a word and its numbers"),
        ("", "", "expected vectors, found none"),
        ("a 1\nb inf\n", "", "expected finite numbers"),
        (b"a 1\n\xff 1\n", "", "expected UTF-8"),
    ],
)
def test_bad_text_is_refused(write, text, place, problem):
    path = write("glove.txt", text)
    with pytest.raises(DataError, match=problem) as caught:
        word_vectors.load_vectors(path)
    assert caught.value.place == f"{path}{place}"


def test_a_missing_file_is_named():
    with pytest.raises(InputMissing, match="there is no such file"):
        word_vectors.load_vectors("nowhere.txt")


def test_another_kind_of_file_is_refused(tmp_path):
    np.save(tmp_path / "v.npy", VECTORS)
    with pytest.raises(
        DataError, match=r"expected a \.txt or 'glove', found \.npy"
    ) as e:
        word_vectors.load_vectors(tmp_path / "v.npy")
    assert e.value.fix == "give GloVe's text, or glove"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package laid out as the one that ships GloVe."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    arrow = sys.modules["pyarrow"]
    data = tmp_path / "some_vectors" / "data"
    data.mkdir(parents=True)
    (data.parent / "__init__.py").write_text("raise SystemExit('never run')")
    np.save(data / "x_emb.npy", VECTORS)
    parquet.write_table(arrow.table({"index": WORDS}), data / "x_index.parquet")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(word_vectors, "PACKAGE", "some_vectors")
    return data


def test_a_package_is_read_without_running_it(package):
    assert_same(word_vectors.load_vectors("glove"))


def test_only_the_packages_first_words_are_read(package, monkeypatch):
    monkeypatch.setattr(word_vectors, "MOST", 2)
    assert word_vectors.load_vectors("glove").words == ["the", "movie"]


@pytest.mark.parametrize(
    ("array", "problem"),
    [
        (np.zeros(3), "expected numbers"),
        (np.array([["a"]]), "expected numbers"),
        (VECTORS[:2], "4 words, but 2 vectors"),
    ],
)
def test_bad_arrays_are_refused(package, array, problem):
    np.save(package / "x_emb.npy", array)
    with pytest.raises(DataError, match=problem):
        word_vectors.load_vectors("glove")


def test_pickles_are_not_opened(package):
    np.save(package / "x_emb.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(DamagedFile, match="not an array of numbers"):
        word_vectors.load_vectors("glove")


def test_a_damaged_word_list_is_said(package):
    (package / "x_index.parquet").write_bytes(b"no parquet")
    with pytest.raises(DamagedFile, match="not a word list"):
        word_vectors.load_vectors("glove")


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(word_vectors, "PACKAGE", "no_such_package")
    with pytest.raises(InputMissing, match=r"pip install 'bitflax\[augment\]'"):
        word_vectors.load_vectors("glove")
