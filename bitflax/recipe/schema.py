"""A run as frozen dataclasses: data, teacher, and a tuple of stages.

Figure 2's two ways are two tuples of stages. Every class checks the types and the
ranges of its fields when it is made, so that no run starts with a typo in it.
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
    need,
)
from bitflax.types import BertConfig, LossFn, Optim

PACKAGED = "minilm"
Keep = Literal["last", "best"]
Dtype = Literal["bfloat16", "float32", "auto"] | None
LATER = {"later": True}
"""Of fields that came later: a run folder names them where they are not the default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """What is learned from.

    ``task`` is a named task (``bitflax ls`` lists them) or the path of an own
    ``.tsv``, ``.csv`` or ``.jsonl`` file; then ``text`` (one column, or two for
    pairs), ``label`` and ``dev`` (another file) say what is in it. Or it is Hugging
    Face's: a ``datasets.Dataset``, a ``datasets.DatasetDict``, or a name on a hub
    (``hf:glue/mrpc``); ``dev`` is a split then. ``data_dir`` is a
    folder in GLUE's own layout. ``limit`` keeps that many training examples;
    ``augment`` is what ``bitflax augment`` made of them, or ``"edits"``: each with
    three copies in which words are dropped, swapped, replaced and put in, of their own.
    Students learn that, the teacher is fine-tuned on the examples alone. ``metric`` is
    measured in place of the task's own: a name, such as ``"macro_f1"``, or a function
    ``(predictions, labels) -> number``; ``keep="best"`` keeps the highest.
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
        known = not isinstance(self.metric, str) or self.metric in METRICS
        names = f"one of {', '.join(METRICS)}, or a function"
        need(known, "Data.metric", names, self.metric)


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
        check_counts(self, "Corpus", ("batch_size",))
        need(self.seed >= 0, "Corpus.seed", "at least 0", self.seed)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Teacher:
    """Who teaches: an already fine-tuned ``folder``, or a ``pretrained`` model.

    ``pretrained`` is the name of a packaged model, a folder or a hub id (``minilm``
    where neither is given); it is fine-tuned on the task by ``optim`` before the first
    stage, for so long, and scored and kept as ``Stage`` says. ``smoothing`` is the
    share of a label that all classes have alike; with ``balanced`` every class weighs
    the same, however rare it is (``bitflax.label_cross_entropy``). ``dtype`` is that
    of its fine-tuning. Beside a ``folder`` it says what that was fine-tuned from, which
    teaches stages that have a corpus.
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
        return self.folder or self.pretrained or PACKAGED

    def __post_init__(self):
        """Check types and ranges."""
        overrides.check_fields(self)
        if self.folder is None and self.pretrained is None:
            object.__setattr__(self, "pretrained", PACKAGED)
        if self.folder is not None and self.epochs is None:
            object.__setattr__(self, "epochs", 0)
        epochs = self.epochs is None or self.epochs >= 0
        need(epochs, "Teacher.epochs", "at least 0, or none", self.epochs)
        check_counts(self, "Teacher", ("steps", "evals", "patience"))
        smooth = 0 <= self.smoothing < 1
        expected = "a share, from 0 to below 1"
        need(smooth, "Teacher.smoothing", expected, self.smoothing)
        check_optim(self.optim, "Teacher.optim")


Kept = Literal["int4", "int8", "float16", "float32"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """A student's size where it does not take the teacher's weights.

    TinyBERT's by default (Jiao et al. 2019, section 4.2); the rest is the teacher's.
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

    ``source`` is ``"previous"`` (the stage before; the teacher for the first),
    ``"teacher"``, or a model's folder; ``layers`` are those of its layers, from 0,
    that the student takes (None: all). With ``shape`` they are drawn at random in its
    place. ``width`` are the numbers of heads and of feed-forward neurons that a layer
    keeps, the most important ones for the task (``bitflax.take_width``). ``split`` are
    ternary rules by which each matrix then becomes two binary ones (``bitflax.split``).
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
        """Return the shape of what this makes of a model of shape ``source``.

        Args:
          source: the model's.
          place: where this stands, for errors.

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

    ``loss`` is a loss of this student and its ``teacher``: the task's, or the result of
    an earlier FP32 stage, by name. ``rules`` say which weights
    have which bits, ``act`` how activations are quantised. ``batch_size`` None is the
    data's. ``steps`` counts in place of ``epochs`` where it is given; without both, the
    stage is as long as its data and bits ask for (``bitflax.default_steps``). ``keep``
    says which parameters are the result: the ``"last"`` ones, or the ``"best"`` of all
    evaluations, of which there are ``evals``, evenly spread, the last one after the
    last step. After ``patience`` evaluations in a row that were not better than the
    best one, training ends, and the best parameters are the result.

    ``cache_teacher`` keeps the teacher's outputs, as many as the loss reads, in memory,
    if they fit into ``cache_bytes`` (None: a quarter of the memory, at most 4 GiB);
    else the teacher runs in every step, as it does with many processes and where that
    is quicker than to hand them to an accelerator. ``dtype`` and
    ``teacher_dtype`` are what the operands of matrix products are rounded to
    (``bitflax.bert``; None: they stay float32; ``"auto"``: bfloat16 where the device
    multiplies it by itself); parameters, sums and the student's scores on dev are
    float32 always. ``recompute`` saves memory for time, as for long
    texts; so does ``accumulate``, which cuts a batch into as many parts, with filler
    rows where need be, and adds up their gradients.

    With a ``corpus`` it is general distillation: the teacher is the pretrained model,
    before its fine-tuning, there are no labels, and ``steps`` must be given.
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
        for field, only in (
            *(("keep", "last"), ("patience", None), ("teacher", "teacher")),
        ):
            value = getattr(self, field)
            fits = self.corpus is None or value == only
            need(fits, f"{place}.{field}", f"{only!r}, for a corpus", value)
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

    ``data`` None is a run of general distillation alone, with no task. ``rest`` says
    what becomes of the parameters that no rule quantises, as ``bitflax.pack`` takes
    it: ``"int4"``, ``"int8"``, ``"float16"``, ``"float32"`` (exact), or pairs (path
    regex, one of these). ``positions`` is how many position embeddings the packed
    file keeps (None: all): the texts that it reads are no longer than that.
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
            need(learns, f"{place}.corpus", "a corpus: the recipe has no data", None)
            wide = self.data is not None or stage.init.width is None
            judged = "none: without data nothing says which heads matter"
            need(wide, f"{place}.init.width", judged, stage.init.width)
            ready = self.data is None or self.teacher.pretrained is not None
            before = "what the folder was fine-tuned from, to teach from a corpus"
            need(ready or stage.corpus is None, "Teacher.pretrained", before, None)
            full |= set() if stage.rules or stage.act else {stage.name}


def check_plan(recipe: Recipe, until: str | None = None) -> None:
    """Check what is known once all is set: where a run stops, and who may end early.

    Raises:
      UsageError: ``until`` names neither the teacher nor a stage; the nearest is given.
      ConfigError: a training's ``patience`` can never end it early.
    """
    names = ["teacher", *(stage.name for stage in recipe.stages)]
    if until is not None and until not in names:
        fix = errors.nearest(until, names, "stages")
        raise UsageError(f"--until {until}", "the recipe has no such stage", fix=fix)
    if recipe.teacher.folder is None:  # a ready one is never trained
        check_patience(recipe.teacher, "teacher")
    for stage in recipe.stages:
        check_patience(stage, f"stages.{stage.name}")
