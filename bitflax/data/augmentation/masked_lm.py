"""BERT's masked LM: the likeliest words at a masked place, many inputs at a time.

Devlin et al. 2018 (arXiv:1810.04805), as Hugging Face computes it in
``BertForMaskedLM``.
"""

import functools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bitflax import files, model
from bitflax.data import Tokenizer
from bitflax.data.augmentation.words import LONGEST, Masked, Splitter
from bitflax.errors import ConfigError, DamagedFile
from bitflax.types import BertConfig, Params

LENGTHS = (8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 128, 192, 256, 384, 512)
TOKENS, ACCELERATOR_TOKENS = 512, 4096
"""Token positions a batch, about. A CPU is no faster with more, and has more rows of
filler to compute."""
_HEAD = "cls.predictions"


def head_logits(
    hidden: Float[Array, "rows width"], head: Params, eps: float, act: Any
) -> Float[Array, "rows vocabulary"]:
    """Return the logits of all words: ``LN(act(h W + b)) E^T + c``.

    Args:
      hidden: the last hidden states at the masked places.
      head: ``dense`` and ``norm`` of the transform, ``kernel`` [width, vocabulary]
        (the word table, turned) and ``bias``.
      eps: LayerNorm's.
      act: the activation function.
    """
    x = act(hidden @ head["dense"]["kernel"] + head["dense"]["bias"][None])
    x = x - x.mean(-1, keepdims=True)
    x = x / jnp.sqrt(jnp.square(x).mean(-1, keepdims=True) + eps)
    x = x * head["norm"]["scale"][None] + head["norm"]["bias"][None]
    return x @ head["kernel"] + head["bias"][None]


class MaskedLM:
    """A masked BERT that answers in batches; see ``load_masked_lm``.

    An input is padded to the next of ``LENGTHS``, and a length has one number of rows
    a batch: an answer does not depend on which other inputs are asked with it.

    Args:
      config: the model's shape.
      params: its parameters, those of a classifier.
      head: see ``head_logits``.
      splitter: of texts into the model's words and pieces.
      pad_id: the token that fills up.
    """

    def __init__(
        self,
        config: BertConfig,
        params: Params,
        head: Params,
        splitter: Splitter,
        pad_id: int = 0,
    ):
        self.config, self.splitter, self._pad = config, splitter, pad_id
        self._tokens = TOKENS if jax.default_backend() == "cpu" else ACCELERATOR_TOKENS
        self.longest = min(LONGEST, config.max_position_embeddings)
        self._params, self._head = params, head
        gelu = functools.partial(jax.nn.gelu, approximate=False)
        act = {"gelu": gelu, "relu": jax.nn.relu}[config.hidden_act]
        apply, eps = model.bert(config), config.layer_norm_eps

        def logits(params, head, batch, places):
            hidden = apply(params, batch).hidden[-1]
            at = jnp.take_along_axis(hidden, places[:, None, None], axis=1)[:, 0]
            return head_logits(at, head, eps, act)

        def best(params, head, batch, places, count):
            return jax.lax.top_k(logits(params, head, batch, places), count)[1]

        # How many texts will come is not known here; mostly a whole data set's.
        compiled = functools.partial(
            jax.jit, compiler_options=model.compiler_options(math.inf)
        )
        self.logits = compiled(logits)
        self._best = compiled(best, static_argnames="count")

    def __call__(self, inputs: Sequence[Masked], count: int) -> list[list[int]]:
        """Return the ids of the ``count`` likeliest words at each mask."""
        found = np.zeros((len(inputs), count), np.int32)
        waiting = []
        for rows, length in self._plan(inputs):
            batch, places = self._padded([inputs[row] for row in rows], length)
            best = self._best(self._params, self._head, batch, places, count)
            waiting.append((rows, best))
        for rows, best in waiting:
            found[rows] = np.asarray(best)[: len(rows)]
        return found.tolist()

    def _plan(self, inputs: Sequence[Masked]) -> list[tuple[np.ndarray, int]]:
        """Return (input numbers, length to pad to) of each batch."""
        offered = [n for n in LENGTHS if n < self.longest] + [self.longest]
        bucket = np.searchsorted(offered, [len(each.ids) for each in inputs])
        plan = []
        for number in np.unique(bucket).tolist():
            rows, length = np.flatnonzero(bucket == number), offered[number]
            size = rows_of(length, self._tokens)
            plan += [(rows[i : i + size], length) for i in range(0, len(rows), size)]
        return plan

    def _padded(
        self, inputs: Sequence[Masked], length: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Return the arrays of one batch, and where the masks are."""
        shape = (rows_of(length, self._tokens), length)
        ids = np.full(shape, self._pad, np.int32)
        types, mask = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        places = np.zeros(shape[0], np.int32)
        for row, each in enumerate(inputs):
            size = len(each.ids)
            ids[row, :size], types[row, :size], mask[row, :size] = *each[:2], 1
            places[row] = each.place
        # A model of one token type has no second row to look up.
        types = np.minimum(types, self.config.type_vocab_size - 1)
        batch = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        return batch, places


def rows_of(length: int, tokens: int) -> int:
    """Return how many rows a batch of a length has: always the same.

    >>> rows_of(28, 512), rows_of(512, 512)
    (16, 4)
    """
    return max(4, tokens // length // 4 * 4)


def load_masked_lm(folder: str | Path) -> MaskedLM:
    """Load a ``BertForMaskedLM`` from a Hugging Face folder.

    The special tokens and the unused words (``[MASK]``, ``[unused7]``) get a bias
    that keeps them from ever being the likeliest.

    Args:
      folder: whatever ``bitflax.load_pretrained`` takes.

    Raises:
      InputMissing: the folder or a file in it is not there.
      DamagedFile: a file is damaged, or does not fit ``config.json``.
      ConfigError: it is no BERT, has no masked LM's head, or its tokenizer does not
        fit.
    """
    path = model.resolve_folder(folder)
    fields = files.read_json(path / "config.json")
    config = model.config_from_hf(fields, num_labels=2, place=path / "config.json")
    tokenizer = Tokenizer.from_folder(path)
    state, weights = model.read_state(path)
    state = {model.canonical_name(name): array for name, array in state.items()}
    if f"{_HEAD}.transform.dense.weight" not in state:
        raise ConfigError(
            weights,
            "expected a masked LM's head (cls.predictions.*), found none",
            fix="give the folder of a BertForMaskedLM, as bert-base-uncased",
        )
    if tokenizer.vocab_size > config.vocab_size:
        raise ConfigError(
            path,
            f"{tokenizer.vocab_size} tokens, but the model has {config.vocab_size}",
            fix="give the folder the tokenizer that the model was trained with",
        )
    params = model.params_from_hf(_without_heads(config) | state, config, place=weights)
    tied = fields.get("tie_word_embeddings", True)
    head = _head(state, config, bool(tied), weights)
    splitter = Splitter(tokenizer)
    splitter.special  # noqa: B018  (raises where there is no [MASK])
    head["bias"] += _unwanted(splitter.vocabulary(), config.vocab_size)
    return MaskedLM(
        config, params, jax.tree.map(jnp.asarray, head), splitter, tokenizer.pad_id
    )


def _without_heads(config: BertConfig) -> dict[str, np.ndarray]:
    """Return a pooler and a classifier of zeros: nobody asks what they compute."""
    heads = tuple(f"{there}." for _, there, _ in model.HEADS)
    table = [e for e in model.parameter_entries(config) if e.name.startswith(heads)]
    return {entry.name: np.zeros(entry.shape, np.float32) for entry in table}


def _head(
    state: dict[str, np.ndarray], config: BertConfig, tied: bool, place: Path
) -> dict[str, Any]:
    """Return the head's parameters, kernels [in, out], float32."""
    words, width = config.vocab_size, config.hidden_size

    def take(*names: str, shape: tuple[int, ...]) -> np.ndarray:
        name = next((n for n in names if n in state), names[0])
        if name not in state or state[name].shape != shape:
            found = state[name].shape if name in state else "none"
            problem = f"expected shape {shape}, found {found}"
            raise DamagedFile(f"{place}:{name}", problem, fix="fetch the model again")
        return np.array(state[name], np.float32)

    table = "bert.embeddings.word_embeddings.weight"
    table = table if tied else f"{_HEAD}.decoder.weight"
    transform = f"{_HEAD}.transform"
    return {
        "dense": {
            "kernel": take(f"{transform}.dense.weight", shape=(width, width)).T,
            "bias": take(f"{transform}.dense.bias", shape=(width,)),
        },
        "norm": {
            "scale": take(f"{transform}.LayerNorm.weight", shape=(width,)),
            "bias": take(f"{transform}.LayerNorm.bias", shape=(width,)),
        },
        "kernel": take(table, shape=(words, width)).T,
        "bias": take(f"{_HEAD}.bias", f"{_HEAD}.decoder.bias", shape=(words,)),
    }


def _unwanted(vocabulary: dict[str, int], words: int) -> np.ndarray:
    """Return a large negative bias for ``[...]``, and for rows that are no word's."""
    bias = np.full(words, -1e9, np.float32)
    for name, number in vocabulary.items():
        if not (name.startswith("[") and name.endswith("]") and len(name) > 2):
            bias[number] = 0
    return bias
