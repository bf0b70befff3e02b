"""Tasks by name or by file: ``load_task("glue/cola")``, ``load_task("mine.tsv")``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from bitflax.data import glue, icd10, own_files, tables
from bitflax.data.examples import Examples, Task, digest, shuffled, split_off
from bitflax.errors import ConfigError, DataError, nearest

ICD10CM = "icd10cm"


@dataclasses.dataclass(frozen=True)
class Loaded:
    """What a source gives; ``dev`` is None where it has none."""

    train: Examples
    dev: Examples | None
    labels: tuple[str, ...]
    metric: str
    regression: bool = False
    notes: tuple[str, ...] = ()


def task_names() -> tuple[str, ...]:
    """Return the names that ``load_task`` knows.

    >>> task_names()[:3]
    ('icd10cm', 'glue/cola', 'glue/sst2')
    """
    return (ICD10CM, *glue.GLUE_TASKS)


def describe_task(name: str) -> str:
    """Return what a named task asks, in one line."""
    if name == ICD10CM:
        return "which of 21 chapters does the diagnosis belong to? (ICD-10-CM)"
    return glue.GLUE_TASKS[name].about


def load_task(
    name_or_path: str | Path,
    *,
    data_dir: str | Path | None = None,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    dev: str | Path | None = None,
    seed: int = 0,
    limit: int | None = None,
    regression: bool | None = None,
    classes: Sequence[str] | None = None,
) -> Task:
    """Return a task with every row read and checked.

    Args:
      name_or_path: one of ``task_names()``, a .tsv, .csv or .jsonl file, or a folder
        with ``train.*`` (and ``dev.*``).
      data_dir: for GLUE: a folder in GLUE's own layout, the task's folder itself, or
        where TFDS has prepared the task; None: TFDS's own folder.
      text: own files: the column of the texts, or a pair of columns.
      label: own files: the column of the labels.
      dev: own files: the file to measure on; None: a tenth of the rows, by seed.
      seed: of the split and of ``limit``'s choice.
      limit: learn from so many examples only, the first of a shuffle by seed.
      regression: own files: whether the labels are real numbers; None: seen from them.
      classes: own files: the classes in the order of their numbers, where a teacher
        knows them already; None: those that occur, sorted.

    Raises:
      ConfigError: an unknown name, or a setting that does not belong to the task.
      InputMissing: a file, folder or package is missing, or GLUE is out of reach.
      DataError: bad rows; all of them are found before it is raised.
    """
    name = str(name_or_path)
    if limit is not None and limit < 1:
        raise ConfigError("limit", f"expected 1 or more, found {limit}", fix="raise it")
    if name in task_names():
        given = dict(text=text, label=label, dev=dev, regression=regression)
        given["classes"] = classes
        if name == ICD10CM:
            given["data_dir"] = data_dir
        _refuse(name, given)
        loaded = _icd10cm() if name == ICD10CM else _glue(name, data_dir)
    else:
        _check_path(name)
        _refuse(name, {"data_dir": data_dir})
        loaded = _own(
            name,
            text=text,
            label=label,
            dev=dev,
            regression=regression,
            classes=classes,
        )
    return _finished(name, loaded, seed, limit)


def _icd10cm() -> Loaded:
    """Load the chapters of ICD-10-CM."""
    train, dev, labels = icd10.icd10cm()
    notes = ()
    if digest(train, dev, labels) != icd10.SHA256:
        notes = (
            f"another release of ICD-10-CM than that of April 2026: {len(train)} and "
            f"{len(dev)} texts; scores compare with its own only",
        )
    return Loaded(train, dev, labels, "accuracy", notes=notes)


def _glue(name: str, data_dir: str | Path | None) -> Loaded:
    """Load a GLUE task from GLUE's files if ``data_dir`` holds some, else by TFDS."""
    task, faults = glue.GLUE_TASKS[name], tables.Faults()
    folder = None if data_dir is None else glue.find_folder(name, data_dir)
    if folder is None:
        train, dev, notes = glue.from_tfds(name, data_dir)
    else:
        train, dev, notes = glue.from_folder(name, folder, faults)
        faults.check()
    return Loaded(train, dev, task.labels, task.metric, task.regression, notes)


def _own(path: str, **settings) -> Loaded:
    """Load own files; without any dev labels, agreement is what can be measured."""
    found = own_files.load_own(path, **settings)
    metric = "pearson_spearman" if found.regression else "accuracy"
    measured = found.train if found.dev is None else found.dev
    if measured.labels is None:
        metric = "agreement"
    notes = found.notes
    if found.dev is not None and found.dev is not found.train:
        shown = set(zip(*found.train.texts, strict=True))
        both = sum(row in shown for row in zip(*found.dev.texts, strict=True))
        if both:
            notes += (f"{both} of {len(found.dev)} dev examples are in train as well",)
    return Loaded(found.train, found.dev, found.labels, metric, found.regression, notes)


def _finished(name: str, loaded: Loaded, seed: int, limit: int | None) -> Task:
    """Split dev off if need be, cut train to the limit, and say so."""
    train, dev, notes = loaded.train, loaded.dev, list(loaded.notes)
    if dev is None:
        if len(set(zip(*train.texts, strict=True))) < 2:
            raise DataError(
                name,
                "expected two different texts or more to split a dev set off",
                fix="add rows, or name a dev file",
            )
        train, dev = split_off(train, seed)
        notes.append(
            f"no dev file: {len(dev)} of {len(train) + len(dev)} examples were split "
            f"off by seed {seed}"
        )
    if limit is not None and limit < len(train):
        notes.append(f"{limit} of {len(train)} training examples, by seed {seed}")
        train = shuffled(train, limit, seed)
    return Task(
        name=name,
        train=train,
        dev=dev,
        labels=loaded.labels,
        metric=loaded.metric,
        regression=loaded.regression,
        notes=tuple(notes),
        sha256=digest(train, dev, loaded.labels),
    )


def _refuse(name: str, given: dict) -> None:
    """Refuse settings that would silently do nothing."""
    for setting, value in given.items():
        if value is not None:
            raise ConfigError(
                setting,
                f"does not apply to {name!r}, found {value!r}",
                fix=f"leave {setting} out",
            )


def _check_path(name: str) -> None:
    """Refuse what is neither a task's name nor looks like a file."""
    path = Path(name)
    if path.suffix.lower() in tables.SUFFIXES or path.exists():
        return
    raise ConfigError(
        name,
        "expected a task's name or a .tsv, .csv or .jsonl file, found neither",
        fix=nearest(name, task_names(), "tasks"),
    )
