"""The data that every part of bitflax hands to every other part."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Params = dict[str, Any]
"""A nested dict of arrays: ``params["encoder"]["layer_0"]["ffn"]["in"]["kernel"]``."""

Batch = Mapping[str, Any]
"""``input_ids``, ``attention_mask``, ``token_type_ids`` [B, S]; ``labels`` [B] and
``weight`` [B] where there are any. A row of weight 0 counts nowhere."""

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What a model reads of a batch."""

Quantizer = Callable[[jax.Array], jax.Array]
"""An array to the array of its quantised values, with a gradient of its own."""


def check_count(name: str, value: Any, least: int = 1) -> int:
    """Return a whole number of at least ``least`` as an int; else raise ValueError."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{name} must be at least {least} and whole, not {value!r}")
    return int(value)


def check_number(name: str, value: Any) -> float:
    """Return a real number as a float; else raise ValueError."""
    real = isinstance(value, int | float | np.integer | np.floating)
    if isinstance(value, bool) or not real or not abs(value) < 1e38:
        raise ValueError(f"{name} must be a number, not {value!r:.80}")
    return float(value)


@dataclasses.dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT, in the field names of Hugging Face's ``config.json``.

    ``head_size`` is ``hidden_size / num_attention_heads`` where it is None.
    ``problem_type`` is ``"regression"`` or None (classes).

    Raises:
      ValueError: a size is not whole and positive, the heads do not divide the width,
        a rate or a label's name is none, or the activation function is not known.

    >>> BertConfig(hidden_size=64, num_attention_heads=4).head_width
    16
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    max_position_embeddings: int = 512
    num_labels: int = 2
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-12
    pad_token_id: int = 0
    type_vocab_size: int = 2
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    classifier_dropout: float | None = None
    id2label: Mapping[int, str] | None = dataclasses.field(default=None, hash=False)
    problem_type: str | None = None
    head_size: int | None = None

    def __post_init__(self):
        """Refuse a shape that no BERT can have."""
        for field in dataclasses.fields(self):
            name, value = f"BertConfig.{field.name}", getattr(self, field.name)
            if value is None and field.default is None:
                continue
            if field.type in (int, int | None):  # a file cannot hold NumPy's
                least = 0 if field.name == "pad_token_id" else 1
                value = check_count(name, value, least)
            elif field.type in (float, float | None):
                value = check_number(name, value)
            object.__setattr__(self, field.name, value)
        if self.num_hidden_layers > 1000:  # each is a tree of parameters, made first
            raise ValueError("BertConfig.num_hidden_layers must be at most 1000")
        if self.head_size is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"BertConfig.hidden_size {self.hidden_size} is not a multiple of "
                f"num_attention_heads {self.num_attention_heads}"
            )
        if self.hidden_act not in ("gelu", "relu"):
            raise ValueError(
                f"BertConfig.hidden_act must be gelu or relu, not {self.hidden_act!r}"
            )
        if not 0 < self.layer_norm_eps <= 1:
            raise ValueError("BertConfig.layer_norm_eps must lie between 0 and 1")
        for name, value in vars(self).items():
            if "dropout" in name and not 0 <= (value or 0) < 1:
                raise ValueError(f"BertConfig.{name} must lie between 0 and 1")
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError("BertConfig.pad_token_id lies outside the vocabulary")
        if self.id2label is not None:
            if not set(self.id2label) <= set(range(self.num_labels)):
                raise ValueError(
                    f"BertConfig.id2label names {sorted(self.id2label)}, but there are "
                    f"{self.num_labels} labels, from 0"
                )
            for i, name in self.id2label.items():
                if not isinstance(name, str) or not name.strip():
                    problem = f"gives label {i} no name, but {name!r:.80}"
                    raise ValueError(f"BertConfig.id2label {problem}")
            # Whole and in the order of the logits, however it came.
            ordered = dict(enumerate(self.labels))
            if len(set(ordered.values())) < len(ordered):
                raise ValueError("BertConfig.id2label gives two labels one name")
            object.__setattr__(self, "id2label", ordered)
        if self.regression and self.num_labels != 1:
            problem = f"must be 1 in a regression, not {self.num_labels}"
            raise ValueError(f"BertConfig.num_labels {problem}")
        if self.problem_type not in (None, "regression", "single_label_classification"):
            raise ValueError(
                f"BertConfig.problem_type {self.problem_type!r} is not supported: "
                "regression or single_label_classification"
            )

    @property
    def head_width(self) -> int:
        """The width of one attention head."""
        return self.head_size or self.hidden_size // self.num_attention_heads

    @property
    def regression(self) -> bool:
        """Whether the labels are real numbers."""
        return self.problem_type == "regression"

    @property
    def labels(self) -> tuple[str, ...]:
        """The label names in the order of the logits; ``LABEL_i`` where unnamed."""
        names = self.id2label or {}
        return tuple(names.get(i, f"LABEL_{i}") for i in range(self.num_labels))


class Outputs(NamedTuple):
    """What a BERT computes; under jit, what nobody uses of it is not computed."""

    logits: Any
    """[batch, labels]"""
    hidden: tuple
    """layers + 1 arrays [batch, sequence, width]; 0 is the embeddings' output."""
    scores: tuple
    """layers arrays [batch, heads, sequence, sequence]: before softmax, scaled by
    1 / sqrt(head width), no mask added."""


class Mean(NamedTuple):
    """A mean as its sum and its count, so that shares of it add up exactly.

    The mean over many devices or microbatches is the sum of the totals over the sum
    of the counts; a mean of means is not, where padding is uneven.

    >>> float(Mean(6.0, 3.0).value), float(Mean(0.0, 0.0).value)
    (2.0, 0.0)
    """

    total: Any
    count: Any

    @property
    def value(self) -> jax.Array:
        """``total / count``; 0 where the count is 0."""
        none = self.count == 0
        return jnp.where(none, 0.0, self.total / jnp.where(none, 1, self.count))

    def __float__(self) -> float:
        """Return the mean as a Python number."""
        total, count = (np.asarray(x, np.float32) for x in self)
        return float(total / count) if count else 0.0


class TrainState(NamedTuple):
    """Everything that a train step changes."""

    step: jax.Array
    params: Params
    opt_state: Any
    key: jax.Array


_LEAST = 1e-30
"""Smaller ones are 0 to float32, or their products are: nothing would be trained."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optim:
    """An optimizer's settings; ``bitflax.make_optimizer`` makes it.

    ``kind`` is ``"adamw"`` or ``"bertadam"``. ``warmup`` is the share of all steps in
    which the rate rises from 0 to ``lr`` (None: left to a recipe's data, for its
    teacher alone); ``schedule`` is ``"linear"`` (down to 0 at the last step),
    ``"cosine"`` or ``"constant"``. ``clip`` bounds the global norm of the gradient
    (None: no bound); with BertAdam, the norm of each parameter's.
    ``act_lr`` is the rate of activation quantizers' learned parameters, which rises and
    falls as ``lr`` does; they have no weight decay. ``frozen`` are regexes of parameter
    paths that a stage leaves as they are.
    """

    kind: Literal["adamw", "bertadam"] = "adamw"
    lr: float | None = 5e-5
    act_lr: float = 1e-4
    warmup: float = 0.1
    schedule: str = "linear"
    weight_decay: float = 0.01
    clip: float | None = 1.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-6
    frozen: tuple[str, ...] = ()

    def out_of_range(self) -> Iterator[tuple[str, str]]:
        """Yield (field, what is expected there) of what no optimizer can train with.

        >>> list(Optim(b1=1.0).out_of_range())
        [('b1', 'a decay, from 0 to below 1')]
        """
        for field in ("lr", "act_lr", "eps", "clip"):
            value = getattr(self, field)
            if field == "clip" and value is None:
                continue
            if value is None or not _LEAST <= value < math.inf:
                yield field, f"a finite number above 0, {_LEAST} at least"
        for field in ("b1", "b2"):
            if not 0 <= getattr(self, field) < 1:
                yield field, "a decay, from 0 to below 1"
        if not 0 <= self.weight_decay < math.inf:
            yield "weight_decay", "a finite number, at least 0"
        if not 0 <= self.warmup <= 1:
            yield "warmup", "a share of the steps, 0 to 1"
        if self.schedule not in ("linear", "cosine", "constant"):
            yield "schedule", "linear, cosine or constant"
        if self.kind not in ("adamw", "bertadam"):
            yield "kind", "adamw or bertadam"


ApplyFn = Callable[..., Outputs]
"""A model: ``(params, batch, rng=None) -> Outputs``, pure, with dropout only where an
``rng`` key is given."""

LossFn = Callable[..., Any]
"""A loss; in a recipe's run ``batch["input_ids"]`` number the words that the task uses.
``(student: Outputs, teacher: Outputs | None, batch: Batch) -> Mean``, or, as
``bitflax.weighted`` makes it, ``-> dict[str, Mean]``."""


class Model(NamedTuple):
    """A configuration and its parameters."""

    config: BertConfig
    params: Params


def label_places(names: Sequence[str], among: Sequence[str]) -> list[int] | None:
    """Return where each label name stands among others; None: they are not the same.

    Equal names go together. Where not all have an equal, case does not count, unless
    two names of one side differ by nothing else: they are two classes.

    >>> label_places(("no", "yes"), ("Yes", "No"))
    [1, 0]
    >>> label_places(("polish", "Polish"), ("Polish", "polish"))
    [1, 0]
    >>> label_places(("polish", "Polish"), ("POLISH", "polish")) is None
    True
    """
    places = {name: i for i, name in enumerate(among)}
    if sorted(names) == sorted(among):
        return [places[name] for name in names]
    folded = {name.casefold(): i for name, i in places.items()}
    mine = [name.casefold() for name in names]
    if len(folded) == len(among) and sorted(mine) == sorted(folded):
        return [folded[name] for name in mine]
    return None
