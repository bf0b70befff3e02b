"""The cut of ICD-10-CM, as FACTS of the task fix it."""

import importlib.util

import numpy as np
import pytest

from bitflax.data import icd10
from bitflax.errors import DamagedFile, InputMissing

needs_package = pytest.mark.skipif(
    importlib.util.find_spec(icd10.PACKAGE) is None,
    reason="simple-icd-10-cm (the extra demo) is not installed",
)


@pytest.fixture(scope="module")
def read():
    """The real list, parsed once: it takes seconds."""
    return icd10._read()


@pytest.fixture(scope="module")
def cut(read):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(icd10, "_read", lambda: read)
        task = icd10.load_icd10cm("icd10cm")
        return task.train, task.dev, task.labels


@needs_package
def test_counts_and_titles(cut):
    train, test, titles = cut
    assert (len(train), len(test), len(titles)) == (8222, 1952, 21)
    assert titles[0] == "Certain infectious and parasitic diseases"
    assert titles[1] == "Neoplasms"
    assert titles[20].startswith("Factors influencing health status")
    assert set(train.labels) == set(test.labels) == set(range(21))


@needs_package
def test_texts_are_distinct_and_labelled_by_chapter(cut):
    train, test, titles = cut
    texts = [*train.texts[0], *test.texts[0]]
    assert len(set(texts)) == len(texts)
    labels = dict(zip(texts, [*train.labels, *test.labels], strict=True))
    assert titles[labels["Cholera"]] == "Certain infectious and parasitic diseases"
    assert train.labels.dtype == np.int32


@needs_package
def test_the_corpus_has_all_texts_of_the_training_categories_alone(
    cut, read, monkeypatch
):
    train, test, _ = cut
    monkeypatch.setattr(icd10, "_read", lambda: read)
    corpus = icd10.passages()
    assert (len(corpus), len(set(corpus))) == (48134, 48134)
    assert set(train.texts[0]) < set(corpus)
    assert not set(test.texts[0]) & set(corpus)
    # Nor the texts of test categories that the task does not take.
    tested = {d.text for d in read[0] if icd10._tested(d.category)}
    assert len(tested) > len(test)
    assert not tested & set(corpus)
    assert len(corpus) + len(tested) == len(read[0])


def made(tmp_path, monkeypatch, content):
    """Put another list in the package's place."""
    path = tmp_path / "list.xml"
    path.write_text(content)
    monkeypatch.setattr(icd10, "tabular_list", lambda: path)


def code(name, *texts):
    terms = "".join(f"<note>{text}</note>" for text in texts[1:])
    return (
        f"<diag><name>{name}</name><desc>{texts[0]}</desc>"
        f"<inclusionTerm>{terms}</inclusionTerm></diag>"
    )


def test_a_category_gives_six_texts_and_a_text_its_first_code(tmp_path, monkeypatch):
    codes = [
        code("A00", *(f"text {i}" for i in range(9))),
        code("A01", "text 0", "own"),
    ]
    chapters = [("1", "".join(codes)), ("2", code("B00", "text 1", "other"))]
    xml = "".join(
        f"<chapter><name>{n}</name><desc>Title {n} (A00-B99)</desc>{body}</chapter>"
        for n, body in [*chapters, ("22", code("U00", "special"))]
    )
    made(tmp_path, monkeypatch, f"<list>{xml}</list>")
    task = icd10.load_icd10cm("icd10cm")
    train, test, titles = task.train, task.dev, task.labels
    assert "another release" in task.notes[0]
    found = sorted([*train.texts[0], *test.texts[0]])
    ninth = sorted((f"text {i}" for i in range(9)), key=icd10._sha256)[:6]
    assert found == sorted([*ninth, "own", "other"])
    assert titles == ("Title 1", "Title 2")


def test_no_category_is_in_both_parts():
    categories = [f"{letter}{n:02}" for letter in "ABCDEFGH" for n in range(100)]
    share = np.mean([icd10._tested(category) for category in categories])
    assert 0.15 < share < 0.25


@pytest.mark.parametrize("content", ["no xml", "<list><chapter/></list>"])
def test_another_file_is_refused(tmp_path, monkeypatch, content):
    made(tmp_path, monkeypatch, content)
    with pytest.raises(DamagedFile, match="expected ICD-10-CM's tabular list"):
        icd10.load_icd10cm("icd10cm")


def test_a_missing_package_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(icd10, "PACKAGE", "no_such_package")
    with pytest.raises(InputMissing, match="pip install"):
        icd10.load_icd10cm("icd10cm")
