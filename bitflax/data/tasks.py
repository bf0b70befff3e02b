"""Tasks by name or by file: ``load_task("glue/cola")``, ``load_task("mine.tsv")``."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitflax import files
from bitflax.data import glue, hub_datasets, icd10, metrics, own_files, tables
from bitflax.data.examples import NamedTask, Task, digest, shuffled, split_off
from bitflax.errors import ConfigError, DataError, nearest

TASKS: dict[str, NamedTask] = {
    "icd10cm": icd10.TASK,
    **glue.TASKS,
}
"""Every task that has a name; a line here is all that another one needs."""


def named_task(task: Any) -> NamedTask | None:
    """Return what is known of a task by its name; None: it is data of one's own."""
    return TASKS.get(task) if isinstance(task, str) else None


def short_name(task: str) -> str:
    """Return a task's name; of a data file only what it is called, not where it lies.

    >>> short_name("glue/cola"), short_name("hf:a/b"), short_name("/home/me/mine.tsv")
    ('glue/cola', 'hf:a/b', 'mine.tsv')
    """
    keeps = task in TASKS or hub_datasets.is_hub_data(task)
    return task if keeps else Path(task).name


def load_task(
    name_or_path: str | Path | hub_datasets.HubDataset,
    *,
    data_dir: str | Path | None = None,
    text: str | Sequence[str] | None = None,
    label: str | None = None,
    dev: str | Path | None = None,
    seed: int = 0,
    limit: int | None = None,
    regression: bool | None = None,
    classes: Sequence[str] | None = None,
    labelled: bool = False,
    metric: metrics.Metric | None = None,
) -> Task:
    """Return a task with every row read and checked.

    Args:
      name_or_path: one of ``TASKS``, a .tsv, .csv or .jsonl file, a folder with
        ``train.*`` (and ``dev.*``), a ``Dataset`` or ``DatasetDict`` of ``datasets``,
        or ``hf:NAME``, ``hf:OWNER/NAME``, either with ``/CONFIG``, of a hub.
      data_dir: for GLUE: a folder in GLUE's own layout, the task's folder itself, or
        where TFDS has prepared the task; None: TFDS's own folder.
      text: own files: the column of the texts, or a pair of columns.
      label: own files: the column of the labels.
      dev: own files: the file to measure on, or the split of a ``datasets`` data set;
        None: its ``validation``, or a tenth of each class, by seed.
      seed: of the split and of ``limit``'s choice.
      limit: learn from so many examples only, the first of a shuffle by seed.
      regression: own files: whether the labels are real numbers; None: seen from them.
      classes: own files: the classes in the order of their numbers, where a teacher
        knows them already; None: those that occur, sorted.
      labelled: own files: whether one without labels is refused.
      metric: what is measured in place of the task's own metric.

    Raises:
      ConfigError: an unknown name, or a setting that does not belong to the task.
      InputMissing: a file, folder or package is missing, or GLUE is out of reach.
      DataError: bad rows; all of them are found before it is raised.
    """
    if limit is not None and limit < 1:
        problem = f"expected 1 or more, found {limit}"
        raise ConfigError("limit", problem, fix="leave it out")
    own: dict[str, Any] = dict(text=text, label=label, dev=dev)
    own |= dict(regression=regression, classes=classes)
    name, named = str(name_or_path), named_task(name_or_path)
    if named is None:
        _refuse(name, {"data_dir": data_dir})
        task = _load_own(name_or_path, **own, labelled=labelled)
    else:
        _refuse(name, own if named.takes_data_dir else {**own, "data_dir": data_dir})
        task = named.load(name, data_dir)
    return _measured(_finished(task, seed, limit), metric)


def _load_own(source: Any, *, dev: str | Path | None, **how: Any) -> Task:
    """Return the task of one's own data, wherever they lie."""
    if hub_datasets.is_hub_data(source):
        return hub_datasets.load_rows(source, dev=dev and str(dev), **how)
    if not isinstance(source, str | Path):
        problem = "expected a name, a path, a Dataset or a DatasetDict, found "
        problem += type(source).__name__
        fix = "of what streams or is no data set: datasets.Dataset.from_list([*rows])"
        raise ConfigError("task", problem, fix=fix)
    name = str(files.given(source))
    _check_path(name)
    return own_files.load_own(
        name, dev=None if dev is None else files.given(dev), **how
    )


def _measured(task: Task, metric: metrics.Metric | None) -> Task:
    """Return the task with another metric, if it fits."""
    if metric is None:
        return task
    place, name = "data.metric", metrics.metric_name(metric)
    if task.dev.labels is None:
        problem = f"{name} needs labels, and the dev examples have none"
        raise ConfigError(place, problem, fix="leave it out: agreement is measured")
    if not isinstance(metric, str):
        return dataclasses.replace(task, metric=name, own_metric=metric)
    fits = [n for n in metrics.METRICS if _fits(n, task)]
    if name not in fits:
        kind = "real numbers" if task.regression else f"{len(task.labels)} classes"
        problem = f"{name!r} does not measure {kind}"
        fix = f"give {' or '.join(fits)}, or a function in a recipe of your own"
        raise ConfigError(place, problem, fix=fix)
    return dataclasses.replace(task, metric=name, own_metric=None)


def _fits(metric: str, task: Task) -> bool:
    if metric == "f1_accuracy":
        return not task.regression and len(task.labels) == 2
    return metric != "agreement" and (metric == "pearson_spearman") == task.regression


def _finished(task: Task, seed: int, limit: int | None) -> Task:
    """Split dev off if need be, cut train to the limit, and say so."""
    train, dev, notes = task.train, task.dev, list(task.notes)
    dev_from, split = task.dev_from, not len(dev)
    if split:
        if len(set(zip(*train.texts, strict=True))) < 2:
            raise DataError(
                task.name,
                "expected two different texts or more to split a dev set off",
                fix="add rows, or name a dev file",
            )
        train, dev = split_off(train, seed)
        notes.append(
            f"no dev file: {len(dev)} of {len(train) + len(dev)} examples were split "
            f"off by seed {seed}"
        )
        dev_from = f"examples that seed {seed} split off {short_name(task.name)}"
    if limit is not None and limit < len(train):
        notes.append(f"{limit} of {len(train)} training examples, by seed {seed}")
        train = shuffled(train, limit, seed)
    sha256 = digest(train, dev, task.labels)
    return dataclasses.replace(
        task,
        train=train,
        dev=dev,
        notes=tuple(notes),
        sha256=sha256,
        dev_from=dev_from,
        split_off=split,
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
        "expected a task's name, a .tsv, .csv or .jsonl file, or hf:NAME, found none",
        fix=nearest(name, TASKS, "tasks"),
    )
