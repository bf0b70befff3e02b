"""A run as frozen dataclasses: data, teacher, and a tuple of stages.

Figure 2's two ways are two tuples of stages. Every class checks the types and the
ranges of its fields when it is made, so that no run starts with a typo in it.
"""

import dataclasses
import functools
import inspect
import re
from typing import Any, Literal

from bitflax import overrides
from bitflax.errors import ConfigError, UsageError
from bitflax.model import Act
from bitflax.rules import Rules
from bitflax.types import LossFn, Optim

override = overrides.override


def _need(holds: bool, place: str, expected: str, found: object) -> None:
    if not holds:
        problem = f"expected {expected}, found {found!r}"
        raise ConfigError(place, problem, fix=f"give {expected}")


def _check_optim(optim: Optim, place: str) -> None:
    _need(optim.lr > 0, f"{place}.lr", "a rate above 0", optim.lr)
    warmup = 0 <= optim.warmup <= 1
    _need(warmup, f"{place}.warmup", "a share of the steps, 0 to 1", optim.warmup)
    known = optim.schedule in ("linear", "cosine", "constant")
    _need(known, f"{place}.schedule", "linear, cosine or constant", optim.schedule)
    clip = optim.clip is None or optim.clip > 0
    _need(clip, f"{place}.clip", "a norm above 0, or none", optim.clip)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What is learned from.

    ``task`` is a named task (``bitflax ls`` lists them) or the path of an own
    ``.tsv``, ``.csv`` or ``.jsonl`` file; then ``text`` (one column, or two for
    pairs), ``label`` and ``dev`` (another file) say what is in it. ``data_dir`` is a
    folder in GLUE's own layout. ``limit`` keeps that many training examples.
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
    seed: int = 0

    def __post_init__(self):
        """Check types and ranges."""
        overrides.check_fields(self)
        _need(self.max_length > 3, "Data.max_length", "at least 4", self.max_length)
        _need(self.batch_size > 0, "Data.batch_size", "at least 1", self.batch_size)
        limit = self.limit is None or self.limit > 0
        _need(limit, "Data.limit", "at least 1, or none", self.limit)
        _need(self.seed >= 0, "Data.seed", "at least 0", self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """Who teaches: an already fine-tuned ``folder``, or a ``pretrained`` model.

    ``pretrained`` is the name of a packaged model, a folder or a hub id; it is
    fine-tuned on the task for ``epochs`` by ``optim`` before the first stage, and
    scored ``evals`` times, the last time at its end.
    """

    folder: str | None = None
    pretrained: str = "minilm"
    epochs: int = 0
    optim: Optim = Optim(lr=1e-4)  # noqa: RUF009 (frozen)
    evals: int = 1

    def __post_init__(self):
        """Check types and ranges."""
        overrides.check_fields(self)
        _need(self.epochs >= 0, "Teacher.epochs", "at least 0", self.epochs)
        _need(self.evals > 0, "Teacher.evals", "at least 1", self.evals)
        _check_optim(self.optim, "Teacher.optim")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Init:
    """Where a stage's parameters come from.

    ``source`` is ``"previous"`` (the stage before; the teacher for the first),
    ``"teacher"``, or a model's folder; ``layers`` are those of its layers, from 0,
    that the student takes (None: all).
    """

    source: str = "previous"
    layers: tuple[int, ...] | None = None

    def __post_init__(self):
        """Check types and ranges."""
        overrides.check_fields(self)
        layers = self.layers is None or min(self.layers, default=-1) >= 0
        _need(layers, "Init.layers", "at least one layer, counted from 0", self.layers)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One training of a student.

    ``loss`` is a loss of this student and the teacher; ``rules`` say which weights
    have which bits, ``act`` how activations are quantised. ``batch_size`` None is the
    data's. ``keep`` says which parameters are the result: the ``"last"`` ones, or the
    ``"best"`` of all evaluations, of which there are ``evals``, evenly spread, the
    last one after the last step. ``cache_teacher`` keeps the teacher's outputs in
    memory where they fit.
    """

    name: str
    init: Init = Init()
    loss: LossFn
    rules: Rules = ()
    act: Act = None
    optim: Optim = Optim()  # noqa: RUF009 (frozen)
    epochs: int = 1
    batch_size: int | None = None
    keep: Literal["last", "best"] = "last"
    evals: int = 4
    cache_teacher: bool = True

    def __post_init__(self):
        """Check types and ranges; the name is a folder's name too."""
        overrides.check_fields(self, place=f"Stage {self.name!r}")
        place = f"Stage {self.name!r}"
        named = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", self.name) is not None
        named = named and self.name != "teacher" and not self.name.isdecimal()
        free = "a name of letters, digits, - and _; no number and not 'teacher'"
        _need(named, f"{place}.name", free, self.name)
        _need(self.epochs > 0, f"{place}.epochs", "at least 1", self.epochs)
        _need(self.evals > 0, f"{place}.evals", "at least 1", self.evals)
        size = self.batch_size is None or self.batch_size > 0
        _need(size, f"{place}.batch_size", "at least 1, or none", self.batch_size)
        _check_optim(self.optim, f"{place}.optim")
        for regex, _ in self.rules:
            try:
                re.compile(regex)
            except re.error as error:
                found = f"{regex!r} ({error})"
                _need(False, f"{place}.rules", "a regular expression", found)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run: data, teacher, stages, and how the rest of the file is packed.

    ``rest`` says what becomes of the parameters that no rule quantises: ``"int8"`` by
    rows, ``"float16"``, or ``"float32"`` (exact).
    """

    data: Data = Data()
    teacher: Teacher = Teacher()
    stages: tuple[Stage, ...] = ()
    seed: int = 0
    rest: Literal["int8", "float16", "float32"] = "int8"
    name: str = ""

    def __post_init__(self):
        """Check types, and that no two stages share a name."""
        overrides.check_fields(self)
        names = [stage.name for stage in self.stages]
        once = len(set(names)) == len(names)
        _need(once, "Recipe.stages", "a name of its own for each stage", names)
        _need(self.seed >= 0, "Recipe.seed", "at least 0", self.seed)


def check_until(recipe: Recipe, until: str | None) -> None:
    """Check that ``until`` names the teacher or a stage.

    Raises:
      UsageError: it does not; the nearest name is given.
    """
    names = ["teacher", *(stage.name for stage in recipe.stages)]
    if until is not None and until not in names:
        fix = overrides.nearest(until, names, "stages")
        raise UsageError(f"--until {until}", "the recipe has no such stage", fix=fix)


def resolved(node: Any) -> Any:
    """Return a recipe, or a part of one, as JSON-able data; functions by name.

    The same recipe gives the same data in every process, so that a run can tell
    whether it goes on with the recipe that it began with.

    >>> resolved(Init(layers=(1, 3)))
    {'source': 'previous', 'layers': [1, 3]}
    """
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        kind = type(node)
        parts = {
            f.name: resolved(getattr(node, f.name)) for f in dataclasses.fields(node)
        }
        own = kind.__module__ in (__name__, Optim.__module__)
        return parts if own else {"kind": kind.__name__, **parts}
    if isinstance(node, dict):
        return {str(key): resolved(value) for key, value in node.items()}
    if isinstance(node, tuple | list):
        return [resolved(item) for item in node]
    if node is None or isinstance(node, bool | int | float | str):
        return node
    return function_name(node)


def function_name(fn: Any) -> str:
    """Return a function with its bound arguments as text, the same in every process.

    >>> function_name(functools.partial(round, ndigits=2))
    'round(ndigits=2)'
    """
    if isinstance(fn, functools.partial):
        bound = [_shown(arg) for arg in fn.args]
        bound += [
            f"{key}={_shown(value)}" for key, value in sorted(fn.keywords.items())
        ]
        return f"{function_name(fn.func)}({', '.join(bound)})"
    fn = inspect.unwrap(fn)
    name = getattr(fn, "__qualname__", type(fn).__qualname__)
    if not inspect.isfunction(fn) or not fn.__closure__:
        return name
    held = inspect.getclosurevars(fn).nonlocals
    bound = [f"{key}={_shown(value)}" for key, value in sorted(held.items())]
    return f"{name}({', '.join(bound)})"


def _shown(value: Any) -> str:
    # A function inside a closure may be that closure's own: its name has to do.
    if inspect.isfunction(value):
        return value.__qualname__
    shown = resolved(value)
    return shown if callable(value) and isinstance(shown, str) else repr(shown)
