"""Texts in, labels and probabilities out: from a packed file, a run or a folder.

>>> predictor = load("runs/quickstart")                     # doctest: +SKIP
>>> predictor.predict(["fracture of the left wrist"])       # doctest: +SKIP
[Prediction(label='Injury, poisoning ...', probability=0.98, text='fracture of ...')]
"""

import math
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32

from bitflax import data
from bitflax.data import Task, Tokenizer
from bitflax.errors import ConfigError, DataError, InputMissing
from bitflax.inference import engines, evaluation, native, stored_model
from bitflax.types import INPUTS, BertConfig, Params, label_places

Text = str | tuple[str, str]


class Prediction(NamedTuple):
    """What the model says of a text, or of a pair of texts.

    A regression's ``label`` is the real number, and its ``probability`` is NaN.
    """

    label: str | float
    probability: float
    text: Text


class Predictor:
    """A model with its tokenizer, compiled for the few shapes that it meets.

    Args:
      config: the model's shape and label names.
      params: dense parameters, or a packed tree.
      tokenizer: a ``bitflax.data.Tokenizer``.
      act: activation quantizers, as ``bitflax.bert`` takes them.
      max_length: longer texts are cut; None: as many as the model has positions.
      engine: what computes, one of ``bitflax.inference.ENGINES``.
      threads: that compute together, in ``"native"`` and ``"onnx"``; None: all cores.
      pairs: whether it was trained on pairs of texts, which then are asked for, or on
        single ones; None: unknown.

    Raises:
      ConfigError: the tokenizer knows more tokens than the model, ``max_length`` is
        more than its positions, or the engine cannot run the model.
      InputMissing: a package or a compiler that the engine needs is not installed.
    """

    def __init__(
        self,
        config: BertConfig,
        params: Params,
        tokenizer: Tokenizer,
        act: Any = None,
        max_length: int | None = None,
        engine: str = "jax",
        threads: int | None = None,
        pairs: bool | None = None,
    ):
        positions = config.max_position_embeddings
        tokenizer.check(config, max_length or positions)
        self.config, self.tokenizer, self.act = config, tokenizer, act
        self.pairs = pairs
        self.max_length = max_length or positions
        self._engine = engines.make_engine(engine, config, params, act, threads)
        self._ragged = isinstance(self._engine, native.NativeModel)

    def logits(
        self, texts: Sequence[Any], batch_size: int = 32
    ) -> Float32[np.ndarray, "texts labels"]:
        """Return the logits of texts, or of pairs of texts, in their order.

        Texts of like length run together. Where shapes compile, fewer texts than
        ``batch_size`` are filled up to a power of two, so that there are few.

        Raises:
          DataError: a text is empty or not a string, or not every one is a pair; or
            they are pairs and the model was trained on single texts, or the reverse.
          TypeError: one text is given, or a dict or a set of them.
        """
        return self._logits(_columns(_listed(texts)), batch_size)

    def probabilities(
        self, texts: Sequence[Any], batch_size: int = 32
    ) -> Float32[np.ndarray, "texts labels"]:
        """Return the probability of each label for each text, or pair of texts.

        Raises:
          DataError: a text is empty or not a string, or not every one is a pair.
          ConfigError: the model gives a real number.
        """
        if self.config.regression:
            fix = "use predict: its label is the number"
            raise ConfigError("probabilities", "a regression has none", fix=fix)
        return _softmax(self.logits(texts, batch_size))

    def predict(self, texts: Sequence[Any], batch_size: int = 32) -> list[Prediction]:
        """Return the label and its probability for each text, or pair of texts.

        Raises:
          DataError: a text is empty or not a string, or not every one is a pair.
        """
        texts = _listed(texts)
        logits = self.logits(texts, batch_size)
        if self.config.regression:
            values = logits[:, 0].tolist()
            return [
                Prediction(v, math.nan, t) for v, t in zip(values, texts, strict=True)
            ]
        best = data.predictions(logits)
        top = [float(row[i]) for row, i in zip(_softmax(logits), best, strict=True)]
        known = self.config.labels
        names = [known[i] for i in best]
        return [Prediction(*said) for said in zip(names, top, texts, strict=True)]

    def score(
        self,
        task: Task,
        batch_size: int = 32,
        done: Callable[[int], None] | None = None,
    ) -> dict[str, float]:
        """Return the task's metrics on its dev examples.

        Raises:
          ConfigError: the model's labels are not the task's.
          DataError: the dev examples have no labels.
        """
        return self.evaluate(task, batch_size, done).scores

    def evaluate(
        self,
        task: Task,
        batch_size: int = 32,
        done: Callable[[int], None] | None = None,
    ) -> evaluation.Evaluation:
        """Return what the model says of the task's dev examples, and how good that is.

        Classes are matched by their names, where the model has names.

        Args:
          task: what to score on.
          batch_size: texts that run together.
          done: called after each batch with the number of its texts.

        Raises:
          ConfigError: the model's labels are not the task's.
          DataError: the dev examples have no labels.
        """
        if task.dev.labels is None:
            problem = "the dev examples have no labels"
            raise DataError(task.name, problem, fix="give a labelled file")
        order = self._label_order(task)
        logits = self._logits(task.dev.texts, batch_size, done)
        said = data.predictions(logits, regression=order is None)
        if order is None:
            return evaluation.Evaluation(task, said, None)
        shares = np.empty_like(logits)
        shares[:, order] = _softmax(logits)
        return evaluation.Evaluation(task, order[said], shares)

    def _label_order(self, task: Task) -> np.ndarray | None:
        """Return the task's class of each of the model's; None for a regression."""
        mine, its = self.config.labels, task.labels
        if task.regression and self.config.regression:
            return None
        if len(mine) == len(its) and not task.regression:
            places = label_places(mine, its)
            if places is not None:
                return np.array(places, np.int32)
            if self.config.id2label is None:
                return np.arange(len(mine), dtype=np.int32)
        raise ConfigError(
            task.name,
            f"its labels are {_some(its)}, the model's are {_some(mine)}",
            fix="give a model that was trained on this task",
        )

    def _logits(
        self,
        columns: Sequence[Any],
        batch_size: int,
        done: Callable[[int], None] | None = None,
    ) -> np.ndarray:
        if len(columns[0]) and self.pairs is (len(columns) == 1):
            problem, fix = "single texts, found a pair", "leave the second text out"
            if self.pairs:
                problem, fix = "pairs of texts, found one", "give the second too: "
                fix += "(first, second), or `bitflax predict DIR FIRST --pair SECOND`"
            problem = f"the model was trained on {problem}"
            raise DataError("text 1", problem, fix=fix)
        tokens = self.tokenizer.encode(columns, self.max_length)
        tokens.check(self.config)
        out = np.zeros((len(tokens), self.config.num_labels), np.float32)
        if not len(tokens):
            return out
        for batch in self._batches(tokens, batch_size).evaluation():
            real = batch["index"] >= 0
            index = batch["index"][real]
            if self._ragged:
                batch = {name: batch[name][real] for name in INPUTS}
                out[index] = self._engine(batch)
            else:
                out[index] = self._engine(batch)[real]
            if done is not None:
                done(len(index))
        return out

    def _batches(self, tokens: data.Tokens, batch_size: int) -> data.Batches:
        if self._ragged:  # nothing compiles, and neither padding nor fillers cost
            few, buckets = len(tokens), tuple(np.unique(tokens.lengths).tolist())
        else:
            few = 1 << (len(tokens) - 1).bit_length()
            shape = engines.shape_tokens(self.config)
            buckets = data.buckets_for(tokens.lengths, self.max_length, shape)
        return data.Batches(
            tokens,
            batch_size=min(batch_size, few),
            seed=0,
            buckets=buckets,
            pad_id=self.tokenizer.pad_id,
        )


def _softmax(logits: np.ndarray) -> np.ndarray:
    data.predictions(logits)  # refuses what is no number
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True, initial=-np.inf))
    return shifted / shifted.sum(axis=1, keepdims=True)


def _some(labels: Sequence[str]) -> str:
    if not labels:
        return "real numbers"
    more = ", ..." if len(labels) > 3 else ""
    return ", ".join(labels[:3]) + more


def _listed(texts: Any) -> list[Any]:
    if isinstance(texts, str | bytes | Mapping | Set):
        found = f"expected a list of texts, found {texts!r:.40}"
        raise TypeError(f"{found}: put it in a list")
    return list(texts)


def _columns(texts: Sequence[Any]) -> tuple[list[Any], ...]:
    """Return one column of texts, or two of pairs."""
    width = 2 if texts and isinstance(texts[0], (tuple, list)) else 1
    for number, text in enumerate(texts, 1):
        parts = tuple(text) if isinstance(text, (tuple, list)) else (text,)
        found = "" if len(parts) == width else f"{text!r:.60}"
        faults = (data.text_fault(part, allow_empty=False) for part in parts)
        if found := found or next(filter(None, faults), ""):
            expected = "a text" if width == 1 else "a pair of texts"
            raise DataError(
                f"text {number}",
                f"expected {expected}, found {found}",
                fix="give a list of strings, or a list of pairs of strings",
            )
    if width == 1:
        return (list(texts),)
    return [text[0] for text in texts], [text[1] for text in texts]


def load(
    path: str | Path, engine: str = "auto", threads: int | None = None
) -> Predictor:
    """Return a predictor of a packed file, a run, a Hugging Face folder, a hub's name.

    Args:
      path: a packed ``model.safetensors``; the folder of a run, whose packed model is
        taken, or the last stage's ``params/`` where that stage is not quantised; a
        Hugging Face folder with a tokenizer, whose ``packed.safetensors`` is taken, if
        it has one; or ``OWNER/NAME``, such a folder on a hub, where no such path is.
      engine: ``"native"`` (``pip install 'bitflax[native]'``, or a C++ compiler),
        ``"jax"``, ``"onnx"`` (``pip install 'bitflax[onnx]'``), or ``"auto"``: native
        where it is the faster one, else jax.
      threads: that compute together, in ``"native"`` and ``"onnx"``; None: all cores.

    Raises:
      InputMissing: there is nothing there that predicts, or the engine is missing.
      ConfigError: the run has not come to its packed model yet, or the engine cannot
        run the model.
      DamagedFile: a file is damaged.
      StorageError: the native engine does not compile.
    """
    engines.check_engine(engine, threads)
    place = stored_model.locate_model(stored_model.given_model(path))
    found = stored_model.read_model(place)
    if found.tokenizer is None:
        raise InputMissing(
            place,
            "the file carries no tokenizer",
            fix="pack it again with save_packed(..., tokenizer=...)",
        )
    pairs = found.extras.get("pairs")
    return Predictor(
        found.config,
        found.params,
        found.tokenizer,
        found.act,
        found.max_length,
        engine,
        threads,
        pairs if isinstance(pairs, bool) else None,
    )
