"""ICD-10-CM: tell the chapter of a diagnosis from its short text.

The US government's list of diagnoses (public domain) comes with the package
``simple-icd-10-cm``. Only the package's XML file is read, not its code.
"""

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bitflax import files
from bitflax.data.examples import Examples, NamedTask, Task, digest, object_column
from bitflax.data.passages import sha256
from bitflax.errors import DamagedFile, InputMissing

PACKAGE = "simple_icd_10_cm"
SPECIAL_PURPOSES = 22
"""A chapter of eleven texts: too few to learn or to measure."""
TEXTS_A_CATEGORY = 6
TEST_PERCENT = 20


SHA256 = "30185d89e34eb1b6ff5b05c27e62852016b85a91e5eaa0bb2c9bc82db20c08b4"
"""``examples.digest`` of the cut of April 2026's release."""


class Diagnosis(NamedTuple):
    """One text of the list, and where it stands."""

    text: str
    category: str
    chapter: int
    row: int


def load_icd10cm(name: str, data_dir: str | Path | None = None) -> Task:
    """Return the task: its labels are the chapters' titles, its dev the test part.

    A text is a code's description or one of its inclusion terms; a text that stands
    twice belongs to the first code. Of each three-character category (``E11``) the six
    texts of lowest SHA-256 stay, so that categories of hundreds of near-equal texts do
    not rule. A category is tested on where its SHA-256, as a number, is below 20 modulo
    100: no category is in both parts. In the release of April 2026 that makes 8,222 and
    1,952 texts of 21 chapters.

    Args:
      name: the task's.
      data_dir: None: the package alone has the list.

    Raises:
      InputMissing: the package is not installed.
      DamagedFile: its file is not the tabular list.
    """
    diagnoses, titles = _read()
    chosen = _choose(diagnoses)
    numbers = sorted(titles.keys() - {SPECIAL_PURPOSES})
    parts = [
        Examples(
            texts=(object_column([d.text for d in part]),),
            labels=np.array([numbers.index(d.chapter) for d in part], np.int32),
            rows=np.array([d.row for d in part], np.int64),
        )
        for part in (
            [d for d in chosen if not _tested(d.category)],
            [d for d in chosen if _tested(d.category)],
        )
    ]
    train, test = parts
    labels, notes = tuple(titles[number] for number in numbers), ()
    if digest(train, test, labels) != SHA256:
        notes = (
            f"another release of ICD-10-CM than that of April 2026: {len(train)} and "
            f"{len(test)} texts; scores compare with its own only",
        )
    return Task(name, train, test, labels, TASK.metric, notes=notes)


def passages() -> list[str]:
    """Return every text of the training categories: a corpus for general distillation.

    All of them, not six a category; none of a category that the task tests on. In the
    release of April 2026 that makes 48,134 texts.

    Raises:
      InputMissing: the package is not installed.
      DamagedFile: its file is not the tabular list.
    """
    diagnoses, _ = _read()
    return [d.text for d in diagnoses if not _tested(d.category)]


TASK = NamedTask(
    about="which of 21 chapters does the diagnosis belong to? (ICD-10-CM)",
    load=load_icd10cm,
    classes=21,
    metric="accuracy",
    passages=passages,
)


def _read() -> tuple[list[Diagnosis], dict[int, str]]:
    """Return the distinct texts of the task's chapters, and all chapters' titles."""
    path = tabular_list()
    try:
        chapters = ElementTree.parse(path).getroot().findall("chapter")
        titles = {
            int(c.findtext("name", "")): _title(c.findtext("desc", ""))
            for c in chapters
        }
        found = list(_diagnoses(chapters))
    except (ElementTree.ParseError, ValueError) as error:
        raise DamagedFile(
            path,
            f"expected ICD-10-CM's tabular list, found something else ({error})",
            fix="pip install --force-reinstall simple-icd-10-cm",
        ) from error
    return [d for d in found if d.chapter != SPECIAL_PURPOSES], titles


def tabular_list() -> Path:
    """Return the path of the newest release's XML file."""
    found = files.package_files(PACKAGE, "data/icd10c*tabular*.xml")
    if not found:
        raise InputMissing(
            "icd10cm",
            f"the package {PACKAGE.replace('_', '-')} that holds the data is missing",
            fix="pip install simple-icd-10-cm (or: pip install 'bitflax[demo]')",
        )
    return found[-1]


def _diagnoses(chapters: list) -> Iterator[Diagnosis]:
    """Yield every distinct text with the first code that bears it, in list order."""
    seen: set[str] = set()
    for chapter in chapters:
        number = int(chapter.findtext("name", ""))
        for code in chapter.iter("diag"):
            terms = [note.text or "" for note in code.findall("inclusionTerm/note")]
            for text in (code.findtext("desc", ""), *terms):
                if text and text not in seen:
                    seen.add(text)
                    category = code.findtext("name", "")[:3]
                    yield Diagnosis(text, category, number, len(seen))


def _choose(diagnoses: list[Diagnosis]) -> list[Diagnosis]:
    """Return at most six texts a category, by SHA-256, in list order."""
    categories: dict[str, list[Diagnosis]] = {}
    for diagnosis in diagnoses:
        categories.setdefault(diagnosis.category, []).append(diagnosis)
    kept = [
        diagnosis
        for members in categories.values()
        for diagnosis in sorted(members, key=lambda d: _sha256(d.text))[
            :TEXTS_A_CATEGORY
        ]
    ]
    return sorted(kept, key=lambda d: d.row)


def _tested(category: str) -> bool:
    """Whether a category belongs to the test part."""
    return _sha256(category) % 100 < TEST_PERCENT


def _sha256(text: str) -> int:
    """Return a text's SHA-256 as a number: an order that no one chose."""
    return int(sha256(text), 16)


def _title(description: str) -> str:
    """Return a chapter's title without its range of codes.

    >>> _title("Neoplasms (C00-D49)")
    'Neoplasms'
    """
    return re.sub(r"\s*\([A-Z]\w\w-[A-Z]\w\w\)$", "", description.strip())
