"""A run as frozen dataclasses: data, teacher, and a tuple of stages.

The two ways of the XTC paper's figure 2 are two tuples of stages. Every class checks
the types and ranges of its fields when it is made: no run starts with a typo in it.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, Literal

from bitflax import errors
from bitflax.data import METRICS, HubDataset
from bitflax.errors import ConfigError, UsageError
from bitflax.model import Act
from bitflax.quantization import Rules
from bitflax.recipe import overrides
from bitflax.recipe.ranges import (
    check_counts,
    check_optim,
    check_patience,
    check_rules,
    check_unread,
    need,
)
from bitflax.types import BertConfig, LossFn, Optim

PACKAGED = "minilm"
Keep = Literal["last", "best"]
Dtype = Literal["bfloat16", "float32", "auto"] | None
LATER = {"later": True}
"""Marks fields that older run folders lack: resolved only where not the default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """The data that teacher and students learn from and are scored on.

    ``task`` is one of:

    - a named task (``bitflax ls`` lists them);
    - the path of your own ``.tsv``, ``.csv`` or ``.jsonl`` file; ``text`` (a column, or
      two for pairs), ``label`` (a column) and ``dev`` (another file) say what it holds;
    - Hugging Face's: a ``datasets.Dataset``, a ``datasets.DatasetDict``, or a name on a
      hub (``hf:glue/mrpc``); ``dev`` is then a split.

    ``data_dir`` is a folder in GLUE's own layout. ``limit`` keeps that many training
    examples. ``augment`` is a file that ``bitflax augment`` wrote, or ``"edits"``: each
    example and three copies with words dropped, swapped, replaced and inserted. Only
    students learn augmented examples. ``metric`` replaces the task's own: a name, such
    as ``"macro_f1"``, or a function ``(predictions, labels) -> number``, of which
    ``keep="best"`` keeps the highest.
    """

    task: str | HubDataset = "icd10cm"
    data_dir: str | None = None
    text: str | tuple[str, str] | None = None
    label: str | None = None
    dev: str | None = None
    regression: bool | None = None
    max_length: int = 128
    batch_size: int = 32
    limit: int | None = None
    augment: str | None = None
    metric: str | Callable[..., Any] | None = None
    seed: int = 0

    def __post_init__(self):
        """Check types and ranges."""
        overrides.check_fields(self)
        need(self.max_length > 3, "Data.max_length", "at least 4", self.max_length)
        check_counts(self, "Data", ("batch_size", "limit"))
        need(self.seed >= 0, "Data.seed", "at least 0", self.seed)
        known = self.augment in (None, "edits")
        known = known or str(self.augment).lower().endswith(".jsonl")
        need(known, "Data.augment", "'edits' or a .jsonl file", self.augment)
        known = not isinstance(self.metric, str) or self.metric in METRICS
        names = f"one of {', '.join(METRICS)}, or a function"
        need(known, "Data.metric", names, self.metric)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Corpus:
    """Text without labels, for general distillation from the pretrained teacher.

    ``source`` is a ``.txt`` file or a folder of them, one passage a line; the name of
    a TFDS text (``wiki40b/en``); or ``icd10cm``, all texts of that task's training
    categories. The text is cut into pieces of ``length`` tokens.
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
        check_counts(self, "Corpus", ("batch_size",))
        need(self.seed >= 0, "Corpus.seed", "at least 0", self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """Who teaches: an already fine-tuned ``folder``, or a ``pretrained`` model.

    ``pretrained`` is the name of a packaged model, a folder or a hub id (``minilm``
    where neither is given). Before the first stage it is fine-tuned on the task;
    ``optim``, ``epochs``, ``steps``, ``evals``, ``keep``, ``patience`` and ``dtype``
    are those of this training, as in ``Stage``; an ``optim.lr`` of None is 1e-4 for two
    classes, else 2e-4, as MiniLM needs it. ``smoothing`` is the probability that is
    spread over all classes; ``balanced`` gives every class the same weight.

    A ``folder`` is not fine-tuned: settings of that are refused, or unread (``optim``,
    ``dtype``); ``pretrained`` is what it was fine-tuned from, to teach from a corpus.
    """

    folder: str | None = None
    pretrained: str | None = None
    epochs: int | None = None
    steps: int | None = dataclasses.field(default=None, metadata=LATER)
    optim: Optim = Optim(lr=1e-4)  # noqa: RUF009 (frozen)
    evals: int = 1
    keep: Keep = dataclasses.field(default="last", metadata=LATER)
    patience: int | None = dataclasses.field(default=None, metadata=LATER)
    smoothing: float = dataclasses.field(default=0.0, metadata=LATER)
    balanced: bool = dataclasses.field(default=False, metadata=LATER)
    dtype: Dtype = dataclasses.field(default=None, metadata=LATER)

    @property
    def model(self) -> str:
        """What is loaded: the fine-tuned folder, or what will be fine-tuned."""
        given = (self.folder, self.pretrained, PACKAGED)
        return next(each for each in given if each is not None)

    def __post_init__(self):
        """Check types and ranges."""
        overrides.check_fields(self)
        if self.folder is None and self.pretrained is None:
            object.__setattr__(self, "pretrained", PACKAGED)
        if self.folder is not None:
            object.__setattr__(self, "epochs", self.epochs or 0)
            check_unread(self, "Teacher", ("folder", "pretrained", "optim", "dtype"))
        need((self.epochs or 0) >= 0, "Teacher.epochs", "at least 0", self.epochs)
        check_counts(self, "Teacher", ("steps", "evals", "patience"))
        smooth = 0 <= self.smoothing < 1
        expected = "a share, from 0 to below 1"
        need(smooth, "Teacher.smoothing", expected, self.smoothing)
        check_optim(self.optim, "Teacher.optim", rated=self.optim.lr is not None)


Kept = Literal["int4", "int8", "float16", "float32"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """The size of a student that starts from random weights.

    The default is TinyBERT's (Jiao et al. 2019, section 4.2). All other fields of its
    configuration are the teacher's.
    """

    num_hidden_layers: int = 4
    hidden_size: int = 312
    num_attention_heads: int = 12
    intermediate_size: int = 1200

    def __post_init__(self):
        """Check types and ranges."""
        overrides.check_fields(self)
        check_counts(self, "Shape", [field.name for field in dataclasses.fields(self)])
        whole = self.hidden_size % self.num_attention_heads == 0
        expected = f"a multiple of num_attention_heads {self.num_attention_heads}"
        need(whole, "Shape.hidden_size", expected, self.hidden_size)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Init:
    """Where a stage's parameters come from.

    ``source`` is ``"previous"`` (the stage before; the teacher for the first stage),
    ``"teacher"``, or a model's folder. ``layers`` are the indices, from 0, of its
    layers that the student takes (None: all). A ``shape`` stands in place of both
    ``layers`` and ``width``: the parameters are then random. ``width`` is how many
    attention heads and feed-forward neurons each layer keeps, those that matter most
    for the task (``bitflax.take_width``). ``split`` are ternary rules: each matrix that
    one matches becomes the sum of two binary ones (``bitflax.split``).
    """

    source: str = "previous"
    layers: tuple[int, ...] | None = None
    shape: Shape | None = None
    width: tuple[int, int] | None = None
    split: Rules = ()

    def __post_init__(self):
        """Check types and ranges."""
        overrides.check_fields(self)
        layers = self.layers is None or min(self.layers, default=-1) >= 0
        need(layers, "Init.layers", "at least one layer, counted from 0", self.layers)
        once = self.layers is None or len(set(self.layers)) == len(self.layers)
        need(once, "Init.layers", "each layer once", self.layers)
        for field in ("layers", "width"):
            value = getattr(self, field)
            drawn = self.shape is None or value is None
            need(drawn, f"Init.{field}", "none where there is a shape", value)
        width = self.width is None or min(self.width) > 0
        need(width, "Init.width", "at least one head and one neuron", self.width)
        check_rules(self.split, "Init.split")

    def config(self, source: BertConfig, place: str = "Init") -> BertConfig:
        """Return the configuration of the student that this makes of a model.

        Args:
          source: the model's configuration.
          place: the field that errors name.

        Raises:
          ConfigError: the model does not have the ``layers``, or fewer heads or neurons
            than ``width`` keeps.

        >>> Init(layers=(1, 3)).config(BertConfig()).num_hidden_layers
        2
        """
        if self.shape is not None:
            made = dataclasses.asdict(self.shape)
            return dataclasses.replace(source, head_size=None, **made)
        made = {}
        if self.layers is not None:
            have, last = source.num_hidden_layers, max(self.layers)
            if last >= have:
                problem = f"no layer {last}: there are {have}, counted from 0"
                fix = f"name layers from 0 to {have - 1}"
                raise ConfigError(f"{place}.layers", problem, fix=fix)
            made["num_hidden_layers"] = len(self.layers)
        if self.width is not None:
            whole = (source.num_attention_heads, source.intermediate_size)
            fits = all(n <= most for n, most in zip(self.width, whole, strict=True))
            need(fits, f"{place}.width", f"at most {whole}", self.width)
            heads, neurons = self.width
            made |= {"num_attention_heads": heads, "intermediate_size": neurons}
            made["head_size"] = source.head_width
        return dataclasses.replace(source, **made)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One training of a student.

    ``loss`` is a function of the student's outputs and those of its ``teacher``: the
    task's teacher, or the result of an earlier FP32 stage, by name. ``rules`` say which
    weights have which bits, ``act`` how activations are quantised.

    ``batch_size`` None is the data's. ``steps``, where it is given, replaces ``epochs``
    (of the examples without edits); without either, the length depends on data, classes
    and bits (``bitflax.default_steps``). There are ``evals`` evaluations, evenly
    spread, the last one after the last step. ``keep`` says which parameters are the
    result: the ``"last"`` ones, or the ``"best"`` of all evaluations. After
    ``patience`` evaluations in a row without a new best one, training ends early, and
    the best parameters are the result.

    ``cache_teacher`` computes those of the teacher's outputs that the loss reads once,
    and keeps them in memory if they fit into ``cache_bytes`` (None: a quarter of the
    memory, at most 4 GiB). Otherwise, with many processes, and where an accelerator
    computes them faster than the host copies them, the teacher runs in every step.
    ``dtype`` and ``teacher_dtype`` are what the operands of matrix products are rounded
    to (``bitflax.bert``; None: float32; ``"auto"``: bfloat16 where the device
    multiplies it natively); parameters, sums and the scores on dev are always float32.
    ``recompute`` saves memory for time, as for long texts. So does ``accumulate``: it
    cuts a batch into that many parts, and adds up their gradients.

    With a ``corpus`` the stage is general distillation: the teacher is the pretrained
    model before its fine-tuning, there are no labels, and ``steps`` must be given.
    """

    name: str
    init: Init = Init()
    teacher: str = "teacher"
    loss: LossFn
    rules: Rules = ()
    act: Act = None
    optim: Optim = Optim()  # noqa: RUF009 (frozen)
    epochs: int | None = None
    steps: int | None = None
    batch_size: int | None = None
    corpus: Corpus | None = None
    keep: Keep = "last"
    patience: int | None = dataclasses.field(default=None, metadata=LATER)
    evals: int = 4
    cache_teacher: bool = True
    cache_bytes: int | None = None
    dtype: Dtype = None
    teacher_dtype: Dtype = None
    recompute: bool = False
    accumulate: int = 1

    def __post_init__(self):
        """Check types and ranges; the name is a folder's name too."""
        place = f"Stage {self.name!r:.110}"
        if isinstance(self.cache_teacher, str):
            raise ConfigError(
                f"{place}.cache_teacher",
                f"expected true or false, found {self.cache_teacher!r}",
                fix="cache_teacher=True keeps them in memory; False runs the teacher",
            )
        overrides.check_fields(self, place=place)
        named = re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{,99}", self.name) is not None
        named = named and self.name != "teacher" and not self.name.isdecimal()
        free = "up to 100 letters, digits, - and _; no number and not 'teacher'"
        need(named, f"{place}.name", free, self.name)
        counts = ("epochs", "steps", "batch_size", "evals", "accumulate", "patience")
        check_counts(self, place, counts)
        bound = self.cache_bytes is None or self.cache_bytes >= 0
        need(bound, f"{place}.cache_bytes", "at least 0", self.cache_bytes)
        fixed = {"keep": "last", "patience": None, "teacher": "teacher"}
        for field, only in fixed.items() if self.corpus is not None else ():
            value = getattr(self, field)
            need(value == only, f"{place}.{field}", f"{only!r}, for a corpus", value)
        counted = self.corpus is None or self.steps is not None
        need(counted, f"{place}.steps", "a number of steps, for a corpus", self.steps)
        check_optim(self.optim, f"{place}.optim")
        check_rules(self.rules, f"{place}.rules")
        if isinstance(self.act, tuple):
            check_rules(self.act, f"{place}.act")

    @property
    def packs(self) -> bool:
        """Whether a run that ends with this stage writes a packed file."""
        return self.corpus is None and bool(self.rules or self.act)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recipe:
    """A whole run: data, teacher, stages, and how the rest of the file is packed.

    ``data`` None is general distillation alone, without a task. ``rest`` is how the
    packed file stores parameters that no rule quantises, as in ``bitflax.pack``:
    ``"int4"``, ``"int8"``, ``"float16"``, ``"float32"`` (exact), or pairs (path regex,
    one of these). ``positions`` is how many position embeddings the packed file keeps
    (None: all): it then reads texts of at most that many tokens.
    """

    data: Data | None = Data()
    teacher: Teacher = Teacher()
    stages: tuple[Stage, ...] = ()
    seed: int = 0
    rest: Kept | tuple[tuple[str, Kept], ...] = "int8"
    positions: int | None = None
    name: str = ""

    def __post_init__(self):
        """Check types, and that no two stages share a name."""
        overrides.check_fields(self)
        names = [stage.name for stage in self.stages]
        once = len(set(names)) == len(names)
        need(once, "Recipe.stages", "a name of its own for each stage", names)
        if not isinstance(self.rest, str):
            check_rules(self.rest, "Recipe.rest")
        need(self.seed >= 0, "Recipe.seed", "at least 0", self.seed)
        least = self.data.max_length if self.data else 1
        enough = self.positions is None or self.positions >= least
        need(enough, "Recipe.positions", f"at least max_length {least}", self.positions)
        full = {"teacher"}
        for stage in self.stages:
            place, known = f"Stage {stage.name!r}", stage.teacher in full
            expected = "'teacher' or an earlier FP32 stage"
            need(known, f"{place}.teacher", expected, stage.teacher)
            learns = self.data is not None or stage.corpus is not None
            need(learns, f"{place}.corpus", "a corpus, as the recipe has no data", None)
            size = stage.batch_size or (stage.corpus or self.data or Data()).batch_size
            parts, expected = stage.accumulate, f"at most the batch_size {size}"
            need(parts <= size, f"{place}.accumulate", expected, parts)
            wide = self.data is not None or stage.init.width is None
            judged = "none: without data nothing says which heads matter"
            need(wide, f"{place}.init.width", judged, stage.init.width)
            ready = self.data is None or self.teacher.pretrained is not None
            before = "what the folder was fine-tuned from, to teach from a corpus"
            need(ready or stage.corpus is None, "Teacher.pretrained", before, None)
            full |= set() if stage.rules or stage.act else {stage.name}


def check_plan(recipe: Recipe, until: str | None = None) -> None:
    """Check what depends on several settings: where a run stops, and ``patience``.

    Raises:
      UsageError: ``until`` names neither the teacher nor a stage; the nearest is given.
      ConfigError: a training's ``patience`` can never end it early.
      TypeError: it is no recipe, but its name, say.
    """
    if not isinstance(recipe, Recipe):
        raise TypeError(f"make a Recipe by bitflax.load_recipe, found {recipe!r:.100}")
    names = ["teacher", *(stage.name for stage in recipe.stages)]
    if until is not None and until not in names:
        fix = errors.nearest(until, names, "stages")
        raise UsageError(f"--until {until}", "the recipe has no such stage", fix=fix)
    check_patience(recipe.teacher, "teacher")
    for stage in recipe.stages:
        check_patience(stage, f"stages.{stage.name}")
