"""GLUE's nine tasks: their columns and classes, out of GLUE's own files or TFDS.

Source: Wang et al., GLUE, ICLR 2019; classes and columns as TFDS's ``glue`` has them.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitflax.data import columns, tables, tfds
from bitflax.data.examples import Examples, NamedTask, Task, object_column
from bitflax.errors import DataError, InputMissing
from bitflax.files import given


class GlueTask(NamedTuple):
    """One task: where it lies and what its columns mean.

    ``values`` are the labels in the files, ``labels`` their names; both are empty for
    a regression. ``dev`` is the dev file's name without ``.tsv``, ``split`` TFDS's.
    """

    about: str
    folder: str
    texts: tuple[str, ...]
    label: str
    values: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    metric: str = "accuracy"
    header: tuple[str, ...] | None = None
    dev: str = "dev"
    split: str = "validation"
    features: tuple[str, ...] = ("sentence1", "sentence2")
    short_rows: bool = False
    copies: int = NamedTask.copies

    @property
    def regression(self) -> bool:
        """Whether the labels are real numbers."""
        return not self.labels


_ENTAILS = ("entailment", "not_entailment")
_NLI = GlueTask(
    about="does the premise entail the hypothesis? (matched dev set)",
    folder="MNLI",
    texts=("sentence1", "sentence2"),
    label="gold_label",
    values=("entailment", "neutral", "contradiction"),
    labels=("entailment", "neutral", "contradiction"),
    dev="dev_matched",
    split="validation_matched",
    features=("premise", "hypothesis"),
    copies=10,
)
GLUE_TASKS: dict[str, GlueTask] = {
    "glue/cola": GlueTask(
        about="is the English sentence acceptable?",
        folder="CoLA",
        texts=("sentence",),
        label="label",
        values=("0", "1"),
        labels=("unacceptable", "acceptable"),
        metric="matthews",
        header=("source", "label", "star", "sentence"),
        features=("sentence",),
    ),
    "glue/sst2": GlueTask(
        about="does the review praise the film?",
        folder="SST-2",
        texts=("sentence",),
        label="label",
        values=("0", "1"),
        labels=("negative", "positive"),
        copies=20,
        features=("sentence",),
    ),
    "glue/mrpc": GlueTask(
        about="do the two sentences mean the same?",
        folder="MRPC",
        texts=("#1 String", "#2 String"),
        label="Quality",
        values=("0", "1"),
        labels=("not_equivalent", "equivalent"),
        metric="f1_accuracy",
    ),
    "glue/stsb": GlueTask(
        about="how alike are the two sentences, from 0 to 5?",
        folder="STS-B",
        texts=("sentence1", "sentence2"),
        label="score",
        metric="pearson_spearman",
    ),
    "glue/qqp": GlueTask(
        about="do the two questions ask the same?",
        folder="QQP",
        texts=("question1", "question2"),
        label="is_duplicate",
        values=("0", "1"),
        labels=("not_duplicate", "duplicate"),
        metric="f1_accuracy",
        features=("question1", "question2"),
        short_rows=True,
        copies=10,
    ),
    "glue/mnli": _NLI,
    "glue/mnli-mm": _NLI._replace(
        about="the same as glue/mnli, measured on the mismatched dev set",
        dev="dev_mismatched",
        split="validation_mismatched",
        copies=30,
    ),
    "glue/qnli": GlueTask(
        about="does the sentence answer the question?",
        folder="QNLI",
        texts=("question", "sentence"),
        label="label",
        values=_ENTAILS,
        labels=_ENTAILS,
        features=("question", "sentence"),
        copies=20,
    ),
    "glue/rte": GlueTask(
        about="does the first sentence entail the second?",
        folder="RTE",
        texts=("sentence1", "sentence2"),
        label="label",
        values=_ENTAILS,
        labels=_ENTAILS,
    ),
    "glue/wnli": GlueTask(
        about="does the sentence with the pronoun resolved follow?",
        folder="WNLI",
        texts=("sentence1", "sentence2"),
        label="label",
        values=("0", "1"),
        labels=("not_entailment", "entailment"),
    ),
}


def find_folder(name: str, data_dir: str | Path) -> Path | None:
    """Return the folder of a task's .tsv files: in ``data_dir``, or that itself.

    Names count without case and dashes: ``CoLA``, ``cola``, ``SST-2``, ``sst2``.
    """
    root = given(data_dir)
    if not root.is_dir():
        raise InputMissing(
            root, "there is no such folder", fix="check the path of data_dir"
        )
    plain = GLUE_TASKS[name].folder.lower().replace("-", "")
    inner = [
        child
        for child in sorted(root.iterdir())
        if child.name.lower().replace("-", "") == plain
    ]
    found = [f for f in (*inner, root) if (f / "train.tsv").is_file()]
    return found[0] if found else None


def load_glue(name: str, data_dir: str | Path | None = None) -> Task:
    """Return a task from GLUE's own files if ``data_dir`` holds some, else by TFDS."""
    folder = None if data_dir is None else find_folder(name, data_dir)
    return from_folder(name, folder) if folder else from_tfds(name, data_dir)


TASKS = {
    name: NamedTask(
        about=task.about,
        load=load_glue,
        classes=len(task.labels),
        metric=task.metric,
        takes_data_dir=True,
        copies=task.copies,
        dataset="nyu-mll/glue",
    )
    for name, task in GLUE_TASKS.items()
}


def from_tfds(name: str, data_dir: str | Path | None = None) -> Task:
    """Read a task that TFDS has prepared, downloaded once if need be.

    Rows are in the order of GLUE's own files, so that the data's hash is the same
    whichever way they came.

    Args:
      name: the task's.
      data_dir: where TFDS has prepared it; None: TFDS's own folder, into which it is
        downloaded.

    Raises:
      InputMissing: the task is not in ``data_dir``, or cannot be downloaded.
      DamagedFile: what TFDS has prepared cannot be read.
    """
    task = GLUE_TASKS[name]
    builder = tfds.open_builder(name.removesuffix("-mm"), data_dir)
    if not tfds.is_prepared(builder):
        if data_dir is not None:
            raise InputMissing(
                data_dir,
                f"expected {task.folder}/train.tsv, or {name} prepared by TFDS, "
                "found neither",
                fix=f"correct data_dir, or leave it out to download {name} by TFDS",
            )
        fix = (
            f"prepare {name} where there is a network and copy {builder.data_dir} "
            f"here; or set data_dir to a folder of GLUE's own {task.folder}/train.tsv "
            "and dev.tsv"
        )
        tfds.prepare(name, builder, fix)
    tfds.prepared_files(name, builder)
    with tfds.reading(name, builder):
        train = _in_order(builder.as_data_source(split="train"), task)
        dev = _in_order(builder.as_data_source(split=task.split), task)
    return _task(name, train, dev)


def _task(name: str, train: Examples, dev: Examples, notes: Sequence[str] = ()) -> Task:
    task = GLUE_TASKS[name]
    kind = (task.labels, task.metric, task.regression)
    return Task(name, train, dev, *kind, tuple(notes))


def _in_order(source: Any, task: GlueTask) -> Examples:
    """Return a split in the order of ``idx``; TFDS shuffles what it writes."""
    # All at once is seven times faster than row by row.
    records = source.__getitems__(list(range(len(source))))
    records = sorted(records, key=lambda record: record["idx"])
    kind = np.float32 if task.regression else np.int32
    return Examples(
        texts=tuple(
            object_column([record[feature].decode() for record in records])
            for feature in task.features
        ),
        labels=np.array([record["label"] for record in records], kind),
        rows=np.array([record["idx"] for record in records], np.int64) + 1,
    )


def from_folder(name: str, folder: Path) -> Task:
    """Read a task in GLUE's own layout.

    Args:
      name: the task's.
      folder: it holds ``train.tsv``, and perhaps ``dev.tsv`` (MNLI:
        ``dev_matched.tsv``).

    Raises:
      DataError: bad rows; all of them are found before it is raised.
    """
    task, faults, notes = GLUE_TASKS[name], tables.Faults(), []

    def read(path: Path) -> Examples:
        table = tables.read_table(
            path,
            lambda place, names: _wanted(task, place, names),
            faults,
            header=task.header,
            skip_short=task.short_rows,
        )
        if table.skipped:
            notes.append(
                f"{path}: {table.skipped} rows of too few columns left out, as by TFDS"
            )
        classes = None if task.regression else task.values
        which = (task.texts, task.label, classes)
        return columns.to_examples(table, *which, faults, allow_empty=task.short_rows)

    train, dev = read(folder / "train.tsv"), folder / f"{task.dev}.tsv"
    parts = train, read(dev) if dev.is_file() else train.take([])
    faults.check()
    return _task(name, *parts, notes)


def _wanted(task: GlueTask, place: str, names) -> tuple[str, ...]:
    """Return the task's columns, or say which one a file lacks."""
    wanted = (*task.texts, task.label)
    for column in wanted:
        if column not in names:
            raise DataError(
                f"{place}:1",
                f"expected {task.folder}'s column {column!r}, found "
                + ", ".join(repr(name) for name in names[:12]),
                fix=f"point data_dir at GLUE's own {task.folder} files",
            )
    return wanted
