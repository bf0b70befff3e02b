"""What a run learns from: a task's data, a corpus, a teacher."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

from bitflax.errors import ConfigError
from bitflax.recipe import overrides
from bitflax.types import Optim

PACKAGED = "minilm"


def need(holds: bool, place: str, expected: str, found: object) -> None:
    """Raise a ``ConfigError`` of a field, unless what it needs holds."""
    if not holds:
        problem = f"expected {expected}, found {found!r}"
        raise ConfigError(place, problem, fix=f"give {expected}")


def check_optim(optim: Optim, place: str) -> None:
    """Check the ranges of an optimizer's settings."""
    for name in ("lr", "act_lr", "eps"):
        value = getattr(optim, name)
        need(value > 0, f"{place}.{name}", "a number above 0", value)
    for name in ("b1", "b2"):
        value = getattr(optim, name)
        need(0 <= value < 1, f"{place}.{name}", "a decay, from 0 to below 1", value)
    check_rules([(regex, None) for regex in optim.frozen], f"{place}.frozen")
    decay = optim.weight_decay
    need(decay >= 0, f"{place}.weight_decay", "at least 0", decay)
    warmup = 0 <= optim.warmup <= 1
    need(warmup, f"{place}.warmup", "a share of the steps, 0 to 1", optim.warmup)
    known = optim.schedule in ("linear", "cosine", "constant")
    need(known, f"{place}.schedule", "linear, cosine or constant", optim.schedule)
    clip = optim.clip is None or optim.clip > 0
    need(clip, f"{place}.clip", "a norm above 0, or none", optim.clip)


def check_rules(rules: Sequence[tuple[str, Any]], place: str) -> None:
    """Check that every rule has a regular expression."""
    for regex, _ in rules:
        try:
            re.compile(regex)
        except re.error as error:
            need(False, place, "a regular expression", f"{regex!r} ({error})")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What is learned from.

    ``task`` is a named task (``bitflax ls`` lists them) or the path of an own
    ``.tsv``, ``.csv`` or ``.jsonl`` file; then ``text`` (one column, or two for
    pairs), ``label`` and ``dev`` (another file) say what is in it. ``data_dir`` is a
    folder in GLUE's own layout. ``limit`` keeps that many training examples;
    ``augment`` is what ``bitflax augment`` made of them: students learn it, the
    teacher is fine-tuned on the examples alone.
    """

    task: str = "icd10cm"
    data_dir: str | None = None
    text: str | tuple[str, str] | None = None
    label: str | None = None
    dev: str | None = None
    regression: bool | None = None
    max_length: int = 128
    batch_size: int = 32
    limit: int | None = None
    augment: str | None = None
    seed: int = 0

    def __post_init__(self):
        """Check types and ranges."""
        overrides.check_fields(self)
        need(self.max_length > 3, "Data.max_length", "at least 4", self.max_length)
        need(self.batch_size > 0, "Data.batch_size", "at least 1", self.batch_size)
        limit = self.limit is None or self.limit > 0
        need(limit, "Data.limit", "at least 1, or none", self.limit)
        need(self.seed >= 0, "Data.seed", "at least 0", self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Text without labels, for general distillation from the pretrained teacher.

    ``source`` is a ``.txt`` file or a folder of them, one passage a line; the name of
    a TFDS text (``wiki40b/en``); or ``icd10cm``, all texts of the categories that the
    task of this name learns from. It is cut into pieces of ``length`` tokens.
    """

    source: str = "icd10cm"
    data_dir: str | None = None
    length: int = 128
    batch_size: int = 32
    seed: int = 0

    def __post_init__(self):
        """Check types and ranges."""
        overrides.check_fields(self)
        need(self.length > 3, "Corpus.length", "at least 4", self.length)
        need(self.batch_size > 0, "Corpus.batch_size", "at least 1", self.batch_size)
        need(self.seed >= 0, "Corpus.seed", "at least 0", self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """Who teaches: an already fine-tuned ``folder``, or a ``pretrained`` model.

    ``pretrained`` is the name of a packaged model, a folder or a hub id (``minilm``
    where neither is given); it is fine-tuned on the task for ``epochs`` by ``optim``
    before the first stage, and scored ``evals`` times, the last time at its end.
    Beside a ``folder`` it says what that was fine-tuned from, which teaches stages that
    have a corpus.
    """

    folder: str | None = None
    pretrained: str | None = None
    epochs: int = 0
    optim: Optim = Optim(lr=1e-4)  # noqa: RUF009 (frozen)
    evals: int = 1

    @property
    def model(self) -> str:
        """What is loaded: the fine-tuned folder, or what will be fine-tuned."""
        return self.folder or self.pretrained or PACKAGED

    def __post_init__(self):
        """Check types and ranges."""
        overrides.check_fields(self)
        if self.folder is None and self.pretrained is None:
            object.__setattr__(self, "pretrained", PACKAGED)
        need(self.epochs >= 0, "Teacher.epochs", "at least 0", self.epochs)
        need(self.evals > 0, "Teacher.evals", "at least 1", self.evals)
        check_optim(self.optim, "Teacher.optim")
