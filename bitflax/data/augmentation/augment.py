"""Task-data augmentation: write a task's examples with their variants, read them back.

TinyBERT: Jiao et al. 2019 (arXiv:1909.10351), algorithm 1 and section 4.2. The file is
JSON lines, which ``load_task`` reads as well: ``sentence`` or ``sentence1`` and
``sentence2``, ``label`` where there is one, and ``source``, the row of the example that
a variant was made of. An example itself comes before its variants.
"""

import dataclasses
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bitflax import data, files, manifests, model, progress
from bitflax.data import Examples, NamedTask, Task
from bitflax.data.augmentation import word_vectors, words
from bitflax.data.augmentation.masked_lm import load_masked_lm
from bitflax.data.augmentation.resumable_file import ResumableFile
from bitflax.data.augmentation.words import Finder, variants
from bitflax.errors import DataError, OutputError, UsageError

CHUNK = 256
"""Examples whose masked words share batches; a stopped run loses less than these."""
_TEXTS = {1: ("sentence",), 2: ("sentence1", "sentence2")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Augment:
    """How a task is augmented.

    ``copies`` is N (None: by the task), ``probability`` p, ``candidates`` M.
    ``masked_lm`` is a BertForMaskedLM's folder, ``vectors`` what ``load_vectors``
    takes; one of them may be None, and the other serves for all words that it can.

    Raises:
      UsageError: both are None, or a number is out of range.
    """

    masked_lm: str | None = None
    vectors: str | None = None
    copies: int | None = None
    probability: float = 0.4
    candidates: int = 15
    seed: int = 0

    def __post_init__(self):
        """Refuse what cannot work."""
        if self.masked_lm is None and self.vectors is None:
            raise UsageError(
                "bitflax augment",
                "neither --masked-lm nor --vectors is given",
                fix="give --vectors glove (pip install 'bitflax[augment]') or GloVe's "
                ".txt, or --masked-lm with the folder of a BertForMaskedLM",
            )
        for name, value, least in (
            ("copies", self.copies, 1),
            ("candidates", self.candidates, 1),
            ("seed", self.seed, 0),
        ):
            if value is not None and value < least:
                problem = f"expected {least} or more, found {value}"
                raise UsageError(f"--{name}", problem, fix=f"give {least} or more")
        if not 0 < self.probability <= 1:
            problem = f"expected more than 0 and at most 1, found {self.probability}"
            raise UsageError("--probability", problem, fix="leave it out: 0.4")


def check_out(out: str | Path) -> Path:
    """Return the path of a file that can be written.

    Raises:
      UsageError: it is no ``.jsonl``.
    """
    out = files.given(out, OutputError)
    if out.suffix.lower() != ".jsonl":
        problem = f"expected a .jsonl file, found {out.suffix or 'no suffix'!r}"
        raise UsageError("--out", problem, fix="name it train-augmented.jsonl")
    return out


@progress.lines_shown()
def write_augmented(task: Task, out: str | Path, how: Augment) -> int:
    """Write a task's training examples with their variants; go on where it stopped.

    What becomes of an example depends on the example, its row and the seed, not on
    what is done beside it or before it.

    Args:
      task: whose ``train`` is augmented.
      out: a ``.jsonl`` file; ``.part`` and ``.json`` beside it are the way there.
      how: the settings.

    Returns:
      The number of rows in the file.

    Raises:
      OutputError: the file cannot be made, or is another one.
      ConfigError: it was begun with other settings.
      BitflaxError: the masked LM or the vectors cannot be used.
    """
    out = check_out(out)
    named = data.TASKS.get(task.name)
    copies = how.copies or (named.copies if named else NamedTask.copies)
    settings = _settings(task, how, copies)
    with ResumableFile(out, settings, len(task.train)) as file:
        if file.done < file.total:
            size = sum(len(text) for texts in task.train.texts for text in texts)
            files.need_space(out.parent, (copies + 1) * (size + 60 * len(task.train)))
            finder = _finder(how)
            with progress.Progress(file.total, "augment", initial=file.done) as bar:
                for start in range(file.done, file.total, CHUNK):
                    stop = min(start + CHUNK, file.total)
                    rows = _rows(task, range(start, stop), finder, how, copies)
                    file.append("".join(rows), stop)
                    bar.update(stop)
    with out.open("rb") as lines:
        return sum(1 for _ in lines)


def _settings(task: Task, how: Augment, copies: int) -> dict[str, Any]:
    """Return what the file depends on; files by their contents, not by their place."""
    settings = dataclasses.asdict(how) | {"copies": copies}
    if how.masked_lm is not None:
        folder = model.resolve_folder(how.masked_lm)
        sums = manifests.model_sums(folder)
        settings["masked_lm"] = f"sha256 {manifests.sum_of(sums, names=False)}"
    if how.vectors is not None:
        path = word_vectors.path_of(how.vectors)
        settings["vectors"] = f"sha256 {manifests.sha256(path)}"
    return settings | {"task": task.name, "data": f"sha256 {task.sha256}"}


def _finder(how: Augment) -> Finder:
    """Load what finds candidates, and say what stands in for what is not given."""
    vectors = None if how.vectors is None else word_vectors.load_vectors(how.vectors)
    if how.masked_lm is None:
        progress.tell("no --masked-lm: word vectors give the candidates of every word")
        return Finder(words.Splitter(), None, vectors, count=how.candidates)
    if vectors is None:
        progress.tell("no --vectors: words of several pieces are not replaced")
    lm = load_masked_lm(how.masked_lm)
    if how.candidates >= lm.config.vocab_size:
        problem = f"{how.candidates}, but the masked LM knows {lm.config.vocab_size}"
        raise UsageError("--candidates", f"{problem} words", fix="leave it out: 15")
    return Finder(lm.splitter, lm, vectors, count=how.candidates, longest=lm.longest)


def _rows(
    task: Task, numbers: range, finder: Finder, how: Augment, copies: int
) -> Iterator[str]:
    """Yield the lines of some examples and their variants."""
    train = task.train
    texts = [[column[i] for column in train.texts] for i in numbers]
    # A premise that stands in several examples is looked at once.
    distinct = list(dict.fromkeys(text for row in texts for text in row))
    found = dict(zip(distinct, finder(distinct), strict=True))
    for i, row in zip(numbers, texts, strict=True):
        source = int(train.rows[i])
        rng = random.Random(f"{how.seed} {source}")
        rest: dict[str, Any] = {"source": source}
        if train.labels is not None:
            rest = {"label": _label(task, train.labels[i]), **rest}
        sentences = [found[text] for text in row]
        for made in variants(sentences, copies, how.probability, rng):
            names = _TEXTS[len(made)]
            line = dict(zip(names, made, strict=True)) | rest
            yield json.dumps(line, ensure_ascii=False) + "\n"


def _label(task: Task, label: Any) -> str | float:
    """Return a class's name, or the shortest decimal of a float32."""
    return float(str(label)) if task.regression else task.labels[int(label)]


def load_augmented(path: str | Path, task: Task) -> Examples:
    """Read what ``write_augmented`` wrote for this task: what to train on instead.

    The examples of ``task.train`` are in it, each before its variants, and are checked
    against the task. Rows of examples that the task does not train on (a ``limit``)
    are left out, so that none of dev's variants are learned.

    Args:
      path: the file.
      task: its training examples and labels.

    Returns:
      The examples; ``rows`` are those of the examples they were made of.

    Raises:
      InputMissing: there is no such file.
      DataError: bad rows; the file was made of other data, or of less.
    """
    names, faults = _TEXTS[len(task.train.texts)], data.Faults()
    labelled = task.train.labels is not None
    wanted = (*names, *(("label",) if labelled else ()), "source")

    def choose(place: str, header: Any) -> tuple[str, ...]:
        lost = [name for name in wanted if name not in header]
        if lost:
            raise DataError(
                place,
                f"expected a field {lost[0]!r}, found {', '.join(header)}",
                fix=f"make it for this task: bitflax augment {task.name} --out {path}",
            )
        return wanted

    table = data.read_table(files.given(path), choose, faults)
    label = "label" if labelled else None
    classes = None if task.regression else task.labels
    found = data.to_examples(table, names, label, classes, faults, allow_empty=True)
    for row, source in zip(table.rows, table.columns["source"], strict=True):
        if type(source) is not int:
            problem = f"expected a row's number as source, found {source!r:.20}"
            faults.add(table.path, row, problem, "make the file again")
    faults.check()
    sources = np.array(table.columns["source"], np.int64)
    return _own(dataclasses.replace(found, rows=sources), task, table.path)


def _own(found: Examples, task: Task, path: str) -> Examples:
    """Return the rows of the task's own examples, which have to be there unchanged."""
    firsts = np.flatnonzero(np.diff(found.rows, prepend=-1))
    there = dict(zip(found.rows[firsts].tolist(), firsts.tolist(), strict=True))
    train, lost = task.train, 0
    fix = f"make it again of this data: bitflax augment {task.name} --out FILE"
    for i, source in enumerate(train.rows.tolist()):
        if source not in there:
            lost += 1
            continue
        first = there[source]
        same = all(
            a[i] == b[first] for a, b in zip(train.texts, found.texts, strict=True)
        )
        if train.labels is not None and found.labels is not None:
            same = same and train.labels[i] == found.labels[first]
        if not same:
            problem = f"the example of row {source} is not the one of {task.name}"
            raise DataError(path, problem, fix=fix)
    if lost:
        raise DataError(
            path,
            f"{lost} of {len(train)} training examples of {task.name} are not in it",
            fix="give both the same data, limit and seed, or make it without --limit",
        )
    return found.take(np.flatnonzero(np.isin(found.rows, train.rows)))
