"""Data sets of few examples and many classes, cut from ICD-10-CM: CSV files to run on.

A class is a section of the list (``A00-A09``); those of most texts are taken. Of each,
the ten texts of lowest SHA-256 are the dev set and the next ones the examples: equally
many of every class. Larger cuts hold the smaller ones, and all share a dev set.

    python -m tests.benchmarks.cuts /tmp/cuts --rows 539 2002 8008
    bitflax run quickstart --set task=/tmp/cuts/539.csv --set dev=/tmp/cuts/dev.csv
"""

import argparse
import csv
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping, Sequence
from pathlib import Path

from bitflax.data import icd10
from bitflax.data.passages import sha256

DEV = 10
"""Texts of a class in the dev set."""


def sections() -> dict[str, list[str]]:
    """Return the texts of every section, by SHA-256: ``{codes: [text, ...]}``.

    A text that stands twice belongs to the section that has it first.
    """
    found: dict[str, list[str]] = {}
    seen = {""}
    for section in ElementTree.parse(icd10.tabular_list()).getroot().iter("section"):
        described = (code.findtext("desc", "") for code in section.iter("diag"))
        terms = (note.text or "" for note in section.iterfind(".//inclusionTerm/note"))
        texts = {text.strip() for text in (*described, *terms)}
        found[section.attrib["id"]] = sorted(texts - seen, key=sha256)
        seen |= texts
    return found


def cut(
    found: Mapping[str, Sequence[str]], classes: int, rows: Sequence[int]
) -> dict[str, list[tuple[str, str]]]:
    """Return the dev set and a training set for each number of rows, by name.

    A set has at most so many rows: as many as are equally many of every class.

    Raises:
      SystemExit: there are fewer rows than classes, or fewer than ``classes`` sections
        with as many texts as that takes.
    """
    shares = {str(number): number // classes for number in rows}
    if not all(shares.values()):
        raise SystemExit(f"{min(rows)} rows are fewer than {classes} classes")
    least = DEV + max(shares.values())
    largest = sorted(found, key=lambda name: -len(found[name]))[:classes]
    if len(largest) < classes or len(found[largest[-1]]) < least:
        raise SystemExit(f"fewer than {classes} sections have {least} texts")
    chosen = [(name, texts) for name, texts in found.items() if name in largest]
    places = {"dev": slice(DEV)}
    places |= {name: slice(DEV, DEV + share) for name, share in shares.items()}
    return {
        name: [(text, label) for label, texts in chosen for text in texts[place]]
        for name, place in places.items()
    }


def main() -> None:
    """Write ``dev.csv`` and ``ROWS.csv`` for each number of rows."""
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("folder", type=Path)
    options.add_argument("--classes", type=int, default=77)
    options.add_argument("--rows", type=int, nargs="+", default=[539, 2002, 8008])
    args = options.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in cut(sections(), args.classes, args.rows).items():
        path = args.folder / f"{name}.csv"
        with path.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows([("text", "label"), *rows])
        print(f"{path}: {len(rows)} texts, {args.classes} classes")


if __name__ == "__main__":
    main()
