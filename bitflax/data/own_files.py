"""A person's own .tsv, .csv and .jsonl files as training and dev examples."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bitflax.data import columns, tables
from bitflax.data.examples import Task
from bitflax.errors import DataError, InputMissing, nearest

TEXT_NAMES = ("text", "sentence", "texts", "sentences", "question", "review")
PAIR_NAMES = (
    ("sentence1", "sentence2"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
)
LABEL_NAMES = ("label", "labels", "class", "score", "target")
"""The names that are looked for where none is given."""
_MORE_TEXTS = ("title", "body", "context", "answer", "passage")
_LIKE_TEXTS = (*_MORE_TEXTS, "message", "content", "comment", "description", "query")
_LIKE_LABELS = ("category", "kind", "type", "topic", "intent", "sentiment", "rating")
_NEITHER = ("id", "idx", "index", "uid", "date", "")


def load_own(path: str | Path, *, dev: str | Path | None = None, **how: Any) -> Task:
    """Read and check every row of own files; without a dev file ``dev`` is empty.

    Args:
      path: the training file, or a folder with ``train.*`` and perhaps ``dev.*``.
      dev: the dev file; its columns bear the training file's names.
      how: what ``make_task`` takes besides.

    Raises:
      DataError: bad rows (all files are read before it is raised), a wrong column.
      InputMissing: no such file.
    """
    name = str(path)
    path, dev = _files(Path(path), dev)
    found = [each for each in (path, dev) if each is not None]
    sources = [Source(str(each), tables.read_table, each.name) for each in found]
    return make_task(name, *sources, **how)


Read = Callable[[str, tables.Choose, tables.Faults], tables.Table]


@dataclasses.dataclass(frozen=True)
class Source:
    """Rows that are read once it is known which columns are wanted.

    Attributes:
      place: what errors and notes call it.
      read: ``(place, choose, faults) -> Table``.
      called: what others call it, without a folder of this machine.
    """

    place: str
    read: Read
    called: str


def make_task(
    name: str,
    train: Source,
    dev: Source | None = None,
    *,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    regression: bool | None = None,
    classes: Sequence[str] | None = None,
    labelled: bool = False,
) -> Task:
    """Read and check every row of one or two sources.

    Without labels to measure by, agreement with a teacher is what can be measured.

    Args:
      name: of the task.
      train: what is learned from.
      dev: what is measured on; without it the task's ``dev`` is empty.
      text: the column of the texts, or two for pairs; None: the usual names.
      label: the column of the labels; None: the usual names, or no labels at all.
      regression: whether labels are real numbers; None: where most are numbers and
        some are not whole.
      classes: in the order of their numbers, where a model knows them; None: those
        that occur, sorted.
      labelled: whether a source without a column of labels is refused.

    Raises:
      DataError: bad rows (both are read before it is raised), a wrong column.
    """
    faults = tables.Faults()
    names: dict[str, tuple[tuple[str, ...], str | None]] = {}
    notes: list[str] = []

    def choose(place: str, header: Sequence[str]) -> tuple[str, ...]:
        first = next(iter(names.values()))[0] if names else None
        wanted = first if text is None else text
        found = choose_texts(place, header, wanted)
        names[place] = found, _label_column(place, header, label, found)
        if labelled and names[place][1] is None:
            raise _unlabelled(place, [name for name in header if name not in found])
        notes.append(_note(place, header, *names[place], chosen=wanted is not None))
        return tuple(n for n in (*found, names[place][1]) if n is not None)

    sources = {each.place: each for each in (train, dev) if each is not None}
    read = [each.read(place, choose, faults) for place, each in sources.items()]
    pairs = [(table, names[table.path][1]) for table in read]
    values = _classes(pairs, regression, classes)
    parts = [columns.to_examples(t, *names[t.path], values, faults) for t in read]
    column = pairs[0][1] if classes is None else None
    if column is not None and values is not None:
        notes += columns.check_spelling(read[0], column, faults)
    faults.check()
    if column is not None and values is not None:
        columns.check_classes(column, train.place, values, len(parts[0]))
    learned, measured = parts[0], parts[-1]
    metric = "pearson_spearman" if values is None else "accuracy"
    return Task(
        name=name,
        train=learned,
        dev=measured if dev else learned.take([]),
        labels=values or (),
        metric="agreement" if measured.labels is None else metric,
        regression=values is None,
        notes=tuple(notes),
        dev_from=f"examples of {dev.called}" if dev else "",
    )


def _files(path: Path, dev: str | Path | None) -> tuple[Path, Path | None]:
    """Return the training and the dev file; a folder's by their names."""
    if not path.is_dir():
        return path, None if dev is None else Path(dev)
    found = {
        stem: [f for f in (path / f"{stem}{s}" for s in tables.SUFFIXES) if f.is_file()]
        for stem in ("train", "dev")
    }
    if len(found["train"]) != 1:
        have = ", ".join(str(f.name) for f in sorted(path.iterdir())[:8]) or "nothing"
        raise InputMissing(
            path,
            f"expected one train.tsv, train.csv or train.jsonl, found {have}",
            fix="name the training file itself",
        )
    return found["train"][0], Path(dev) if dev else next(iter(found["dev"]), None)


def choose_texts(place: str, header, text) -> tuple[str, ...]:
    """Return the one or two text columns of a file.

    Args:
      place: the file, for errors.
      header: its columns' names.
      text: one of them, or a pair; None: the usual names are looked for.

    Raises:
      DataError: it has no such column.
    """
    for mark, kind in zip(";\t|,|", [".csv"] * 3 + [".tsv"] * 2, strict=True):
        if place.lower().endswith(kind) and len(header) == 1 and mark in header[0]:
            raise DataError(
                f"{place}:1",
                f"expected a {kind} of several columns, found one: {_listed(header)}",
                fix="save it with commas (.csv) or with tabs (.tsv)",
            )
    if text is None:
        pairs = [pair for pair in PAIR_NAMES if set(pair) <= set(header)]
        single = [(name,) for name in TEXT_NAMES if name in header]
        for found in (*single, *pairs):
            return found
        raise DataError(
            f"{place}:1",
            f"expected a first row of names, with text among them, found "
            f"{_listed(header)}",
            fix="put a row of names first (text, label), if there is none; or "
            + _name_it("text", _likeliest(header, _LIKE_TEXTS, _LIKE_LABELS)),
        )
    wanted = (text,) if isinstance(text, str) else tuple(text)
    if len(wanted) not in (1, 2) or len(set(wanted)) < len(wanted):
        problem = f"expected one or two text columns, found {_listed(wanted)}"
        raise DataError(place, problem, fix="give text one name, or a pair of names")
    for name in wanted:
        _must_have(place, header, name)
    return wanted


def _label_column(place: str, header, label: str | None, texts) -> str | None:
    """Return the label column of a file; None where it has none."""
    if label is not None:
        _must_have(place, header, label)
        if label in texts:
            problem = f"expected labels in another column than texts, found {label!r}"
            raise DataError(f"{place}:1", problem, fix="name both columns")
        return label
    return next((n for n in LABEL_NAMES if n in header and n not in texts), None)


def _note(
    path: str, header: Sequence[str], texts: Sequence[str], label, *, chosen: bool
) -> str:
    """Return which columns of a file are used; a warning where one may be missed.

    >>> print(_note("a.csv", ["text", "kind"], ("text",), None, chosen=True))
    a.csv: texts from 'text', no labels, left out: 'kind'
    fix: name the labels' column (data.label, or --label), if it is there
    """
    left = [name for name in header if name not in texts and name != label]
    told = " and ".join(repr(name) for name in texts)
    labels = "no labels" if label is None else f"labels from {label!r}"
    note = f"{path}: texts from {told}, {labels}"
    note += f", left out: {_listed(left)}" if left else ""
    known = {*TEXT_NAMES, *itertools.chain(*PAIR_NAMES), *_MORE_TEXTS}
    second = [name for name in left if name.lower() in known and not chosen]
    fixes = []
    if second and len(texts) == 1:
        pair = f"{texts[0]}, or for pairs {texts[0]},{second[0]}"
        fixes.append(f"name the text's column (data.text, or --text): {pair}")
    if left and label is None:
        fixes.append("name the labels' column (data.label, or --label), if it is there")
    return note + (f"\nfix: {'; '.join(fixes)}" if fixes else "")


def _likeliest(
    header: Sequence[str], like: Sequence[str], unlike: Sequence[str]
) -> str:
    """Return the column that most likely is what nobody named.

    >>> _likeliest(["id", "category", "message"], _LIKE_TEXTS, _LIKE_LABELS)
    'message'
    """
    named = [name for name in header if name.lower() in like]
    free = [n for n in header if n.lower() not in (*unlike, *LABEL_NAMES, *_NEITHER)]
    return (named or free or list(header))[0]


def _name_it(what: str, column: str) -> str:
    """Return how a recipe and a command are told a column."""
    shown = column[:30]
    if re.search(r"[^\w.-]", shown):
        shown = f"'{shown}'"
    return f"name its column: --set data.{what}={shown}, or --{what} {shown}"


def _unlabelled(place: str, left: Sequence[str]) -> DataError:
    """Return the refusal of a file without labels; ``left`` may hold them."""
    found = f"found {_listed(left)} beside the texts" if left else "found texts alone"
    fix = "add one; texts alone teach with a ready teacher (teacher.folder)"
    if left:
        fix = _name_it("label", _likeliest(left[::-1], _LIKE_LABELS, _LIKE_TEXTS))
    expected = "expected a column of labels, as 'label' or 'class'"
    return DataError(f"{place}:1", f"{expected}, {found}", fix=fix)


def _must_have(place: str, header: Sequence[str], name: str) -> None:
    """Raise, naming the nearest column, where a file lacks one."""
    if name not in header:
        raise DataError(
            f"{place}:1",
            f"expected a column named {name!r}, found {_listed(header)}",
            fix=nearest(name, header, "columns"),
        )


def _listed(header: Sequence[str]) -> str:
    """Return column names for an error; long ones (a file without header) are cut."""
    more = f" and {len(header) - 8} more" if len(header) > 8 else ""
    return ", ".join(f"{name[:30]!r}" for name in header[:8]) + more


def _classes(labelled, regression: bool | None, classes) -> tuple[str, ...] | None:
    """Return the classes; None where labels are real numbers.

    The training file's classes are the classes; a dev file's only where the training
    file has no labels.
    """
    values = [table.columns[column] for table, column in labelled if column is not None]
    if classes is not None or not values:
        return tuple(classes or ())
    real = columns.looks_real(values[0]) if regression is None else regression
    return None if real else columns.class_names(values[0])
