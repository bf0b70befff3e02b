"""Hugging Face's ``datasets`` as tasks: an object in memory, or a name on a hub."""

import dataclasses
import itertools
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitflax.data import own_files, tables
from bitflax.data.examples import Task
from bitflax.errors import ConfigError, InputMissing, nearest

PREFIX = "hf:"
SECONDS = 5.0
_DEV = ("validation", "dev", "validation_matched")
_INSTALL = "pip install 'bitflax[hf]'"


@typing.runtime_checkable
class HubDataset(typing.Protocol):
    """A ``datasets.Dataset``, or a ``DatasetDict`` of such splits.

    What streams has no ``cache_files``, nor has a table of Arrow's.
    """

    @property
    def column_names(self) -> Any:
        """The columns; of a ``DatasetDict`` those of each split."""
        ...

    @property
    def cache_files(self) -> Any:
        """The files that it lies in, if any."""
        ...

    def __len__(self) -> int:
        """Return the number of rows, or of splits."""
        ...

    def __getitem__(self, key: Any) -> Any:
        """Return a column, or a split."""
        ...


def is_hub_data(task: Any) -> bool:
    """Whether a task is a data set of ``datasets``, in memory or by its name."""
    if isinstance(task, str):
        return task.startswith(PREFIX)
    return isinstance(task, HubDataset)


def has_dev(task: Task) -> bool:
    """Whether a data set has a split of its own to measure on: none was split off."""
    return task.dev_from.endswith("]")


def shown(rows: HubDataset) -> str:
    """Return what a data set in memory is, the same in every process.

    Its content is not said: a run pins that by SHA-256.
    """
    if isinstance(rows, Mapping):
        parts = ", ".join(f"{name}={len(split)}" for name, split in rows.items())
        return f"{type(rows).__name__}({parts})"
    return f"{type(rows).__name__}({len(rows)} rows: {', '.join(rows.column_names)})"


def load_rows(
    source: str | HubDataset,
    *,
    dev: str | None = None,
    label: str | None = None,
    regression: bool | None = None,
    classes: Sequence[str] | None = None,
    **how: Any,
) -> Task:
    """Return a task of a data set; without a split to measure on ``dev`` is empty.

    Rows that a ``ClassLabel`` numbers -1 have no label, and are left out with a note.

    Args:
      source: ``hf:NAME``, ``hf:OWNER/NAME``, either with ``/CONFIG`` behind it; or an
        object of ``datasets``.
      dev: the split to measure on; None: ``validation``, if there is one.
      label: the column of the labels; a ``ClassLabel`` says the classes, too.
      regression: whether labels are real numbers; None: seen from them.
      classes: in the order of their numbers, where a model knows them.
      how: what ``make_task`` takes besides.

    Raises:
      InputMissing: no hub and no cache gives it, or ``datasets`` is not installed; or
        a folder here bears its name.
      ConfigError: it has no such split, or none at all.
      DataError: bad rows, a wrong column.
    """
    name = source if isinstance(source, str) else type(source).__name__
    found: Any = _fetched(source) if isinstance(source, str) else source
    splits = dict(found) if isinstance(found, Mapping) else {"train": found}
    train, measured = _chosen(name, splits, dev)
    notes = _left_out(name, splits, train, measured)
    column = label or next(
        (n for n in own_files.LABEL_NAMES if n in splits[train].column_names), ""
    )
    known = getattr(splits[train].features.get(column), "names", None)
    if known and not regression:
        classes, regression = classes or tuple(known), False
    learned, *rest = (
        own_files.Source(p := f"{name}[{split}]", _reader(splits[split], notes), p)
        for split in filter(None, (train, measured))
    )
    how |= {"label": label, "regression": regression, "classes": classes}
    task = own_files.make_task(name, learned, *rest, **how)
    return dataclasses.replace(task, notes=(*task.notes, *notes))


def _chosen(
    name: str, splits: Mapping[str, Any], dev: str | None
) -> tuple[str, str | None]:
    """Return the splits to learn from and to measure on."""
    if not splits:
        fix = "give one with rows to learn from"
        raise ConfigError(name, "expected splits, found none", fix=fix)
    train = "train" if "train" in splits or len(splits) > 1 else next(iter(splits))
    for split in filter(None, (train, dev)):
        if split not in splits:
            problem = f"{name} has no split {split!r}"
            fix = nearest(split, splits, "splits")
            raise ConfigError("data.dev" if split == dev else name, problem, fix=fix)
    if dev is None:
        dev = next((split for split in _DEV if split in splits), None)
    return train, dev


def _left_out(
    name: str, splits: Mapping[str, Any], train: str, measured: str | None
) -> list[str]:
    """Return a note where labelled splits may have been meant to measure on."""
    left = [split for split in splits if split != train]
    if measured is not None or not left:
        return []
    fix = f"name the split to measure on, if it is labelled: data.dev={left[0]}"
    return [f"{name}: no validation split, left out: {', '.join(left)}\nfix: {fix}"]


def _reader(split: Any, notes: list[str]) -> own_files.Read:
    """Return what reads a split as a file is read; class numbers become names.

    It notes how many rows it leaves out for they have no label.
    """

    def read(place: str, choose: tables.Choose, faults: tables.Faults) -> tables.Table:
        wanted = choose(place, split.column_names)
        faults.opened(place)
        plain = split.select_columns(list(wanted)).with_format(None)
        columns = {name: list(plain[name]) for name in wanted}
        rows = [*range(1, len(split) + 1)]
        for name in wanted:
            if names := getattr(split.features[name], "names", None):
                bare = columns[name].count(-1)
                if 0 < bare < len(rows):
                    kept = [value != -1 for value in columns[name]]
                    for each, values in columns.items():
                        columns[each] = [*itertools.compress(values, kept)]
                    rows = [*itertools.compress(rows, kept)]
                    notes.append(f"{place}: {bare} rows without a label were left out")
                columns[name] = [_named(value, names) for value in columns[name]]
        return tables.Table(place, columns, rows)

    return read


def _named(value: Any, names: Sequence[str]) -> Any:
    """Return a class's name; -1 stands for no label."""
    if not isinstance(value, int):
        return value
    return names[value] if 0 <= value < len(names) else None


def _fetched(name: str) -> Any:
    """Return a hub's data set: all its splits, from the cache where they are there."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        import datasets
    except ImportError:
        problem = "`datasets` is not installed"
        raise InputMissing(PREFIX, problem, fix=_INSTALL) from None
    load: Any = datasets.load_dataset
    parts, tried = name.removeprefix(PREFIX).split("/"), ""
    places = {1: [(1, 1)], 2: [(2, 2), (1, 2)], 3: [(2, 3)]}.get(len(parts), [])
    for owner, config in places:  # OWNER/NAME first, then NAME/CONFIG
        repo, more = "/".join(parts[:owner]), parts[owner:config]
        if repo and Path(repo).exists():  # the library would read that
            problem = f"a file or folder named {repo} lies here"
            fix = "rename it; or give the file's own path, without hf:"
            raise InputMissing(name, problem, fix=fix)
        try:
            # One short question first: the library itself would retry many times.
            huggingface_hub.HfApi().dataset_info(repo, timeout=SECONDS)
        except (errors.RepositoryNotFoundError, errors.HFValidationError):
            continue
        except errors.OfflineModeIsEnabled:
            tried = "HF_HUB_OFFLINE is set, and it is not in the cache"
        except Exception as error:  # httpx's, requests' or the library's own
            problem = f"no hub gives it ({type(error).__name__}: {error})"
            fix = "HF_HUB_OFFLINE=1 takes what was fetched before; or give a file"
            raise InputMissing(name, problem, fix=fix) from None
        try:
            return load(repo, *more)
        except Exception as error:  # the library's errors share no base class
            if not tried:
                raise _unread(name, error) from error
    problem = tried or "the hub has no such data set (or it is private)"
    fix = "as in hf:glue/mrpc or hf:OWNER/NAME/CONFIG; `hf auth login` for private ones"
    raise InputMissing(name, problem, fix=fix)


def _unread(name: str, error: Exception) -> ConfigError:
    said = " ".join(str(error).split())[:300]
    fix = f"name a configuration, as in {name}/CONFIG, or give another data set"
    return ConfigError(name, f"{type(error).__name__}: {said}", fix=fix)
