"""Hugging Face checkpoints in and out, by the table of names in ``hfnames``.

What is no error is said by the logger ``bitflax``: names that nobody knows, and parts
of a model that start anew.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np

from bitflax import hffolder, trees
from bitflax.data.examples import label_places
from bitflax.errors import ConfigError, DamagedFile
from bitflax.model import hf_config, hf_weights, hfextra, hub, names
from bitflax.model.leaves import Split
from bitflax.types import BertConfig, Params

log = logging.getLogger("bitflax")


def params_from_hf(
    state: Mapping[str, Any],
    config: BertConfig,
    *,
    seed: int = 0,
    place: object = "state",
) -> Params:
    """Return the parameters that a Hugging Face state holds.

    Names may carry ``bert.``, ``module.`` or ``model.`` or none of them, and
    LayerNorm's old ``gamma`` and ``beta``. Buffers and the heads of other tasks are
    left out. A classifier or pooler that is not there starts from a normal
    distribution (deviation 0.02) and a zero bias, and the logger says so. Names of our
    own (``bitflax.model.hfextra``) give split matrices, learned ranges and a projection.

    Args:
      state: ``{name: array}``; a linear weight is [out, in].
      config: the shape that the state should have.
      seed: what a new head is drawn from.
      place: what errors name as the file.

    Raises:
      DamagedFile: a parameter is missing, is there twice, has another shape than the
        configuration says, or holds what is no finite real number.
    """
    found = _collect(state, place)
    table = names.entries(config)
    _fill_heads(found, table, config, np.random.default_rng(seed))
    owned = {e.path: hfextra.owned(e, found) for e in table}
    missing = [e.name for e in table if not owned[e.path]]
    if missing:
        raise DamagedFile(
            place,
            f"{len(missing)} of {len(table)} parameters are missing: {_some(missing)}",
            fix="give the folder of a BERT, whole",
        )
    flat = {}
    for path, parts in owned.items():
        leaves = [_leaf(found.pop(part.name), part, place) for part in parts]
        flat[path] = Split(*leaves) if len(leaves) == 2 else leaves[0]
    for path in sorted(hfextra.paths(config) & set(found)):
        own = names.Entry("", path, np.shape(found[path]))
        flat[path] = _leaf(found.pop(path), own, place)
    if found:
        log.warning("%s: not used, because unknown: %s", place, _some(found))
    return trees.unflatten(flat)


def params_to_hf(
    params: Params, config: BertConfig, *, extra: bool = False
) -> dict[str, np.ndarray]:
    """Return ``{name: array}`` as transformers' BertForSequenceClassification names it.

    Args:
      params: the parameters; a projection, which only training uses, is left out.
      config: their shape.
      extra: keep what that BERT has not, by the names of ``bitflax.model.hfextra``.

    Raises:
      ConfigError: the parameters are not those of the configuration, or not arrays.
    """
    flat, table = trees.flatten(params), names.entries(config)
    flat = flat if extra else hfextra.plain(flat)
    own = hfextra.paths(config) & set(flat) if extra else set()
    wrong = set(flat) ^ {entry.path for entry in table} ^ own
    if wrong:
        raise ConfigError(
            "params",
            f"missing or unknown beside the configuration: {_some(sorted(wrong))}",
            fix="give the parameters of one BERT with its own configuration",
        )
    state = {path: np.asarray(flat[path]) for path in sorted(own)}
    for entry, leaf in (pair for e in table for pair in hfextra.named(e, flat[e.path])):
        array = np.asarray(leaf)
        array = array.T if entry.transposed else array
        if array.dtype == object or array.shape != entry.shape:
            found = type(leaf).__name__
            raise ConfigError(
                entry.path,
                f"expected an array {entry.shape} in torch's layout, found {found} "
                f"{array.shape}",
                fix="unpack the parameters, and give the configuration that is theirs",
            )
        state[entry.name] = np.ascontiguousarray(array)
    return state


def load_pretrained(
    folder: str | Path,
    *,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | Sequence[str] | None = None,
    problem_type: str | None = None,
    seed: int = 0,
) -> tuple[BertConfig, Params]:
    """Load a BERT from a Hugging Face folder.

    ``num_labels``, ``id2label`` or ``problem_type`` make it a model for a new task:
    a head of another shape or with other label names starts anew, and is said.

    Args:
      folder: whatever ``resolve`` takes.
      num_labels: the number of labels; by default the folder's own.
      id2label: the labels' names in the order of the logits.
      problem_type: ``"regression"`` or ``"single_label_classification"``.
      seed: what a new head is drawn from.

    Raises:
      InputMissing: the folder or a file in it is not there.
      DamagedFile: a file is damaged or hostile, or does not fit ``config.json``.
      ConfigError: it is not a BERT that this package computes.
    """
    path = resolve(folder)
    place = path / "config.json"
    fields = hf_config.read_json(place)
    own = hf_config.config_from_hf(fields, place=place)
    config = own
    if (num_labels, id2label, problem_type) != (None, None, None):
        config = hf_config.config_from_hf(
            fields,
            num_labels=num_labels,
            id2label=id2label,
            problem_type=problem_type,
            place=place,
        )
    state, weights = hf_weights.read_state(path)
    state |= hfextra.read(path)
    state = _fit_head(_collect(state, weights), fields, own, config)
    return config, params_from_hf(state, config, seed=seed, place=weights)


def resolve(name: str | Path) -> Path:
    """Return the folder of a model: a folder, ``minilm``, or a hub's ``org/name``."""
    return hub.resolve(name)


def save_pretrained(
    folder: str | Path,
    config: BertConfig,
    params: Params,
    tokenizer: Any = None,
    *,
    extra: bool = False,
) -> None:
    """Write a folder that transformers loads as ``BertForSequenceClassification``.

    It holds ``config.json``, ``model.safetensors`` and, where a tokenizer is given,
    the files that ``AutoTokenizer`` reads. The folder appears whole or not at all; an
    earlier model in it is replaced.

    Args:
      folder: where to write.
      config: the model's shape.
      params: its parameters: arrays, neither packed nor split; a projection, which
        only training uses, is left out.
      tokenizer: what gives its ``tokenizer.json`` by ``to_json()``.
      extra: keep for ``load_pretrained`` what Hugging Face's BERT has not (halves of
        split matrices, learned ranges, the projection), in
        ``bitflax_extra.safetensors``, and take a ``head_size`` of its own. With halves
        or such a size, ``config.json`` names another kind of model, so that
        transformers does not load a part of it as if it were all.

    Raises:
      ConfigError: parameters, configuration and tokenizer do not fit together, or
        Hugging Face's BERT has no such shape.
      OutputError: the folder cannot be made, or holds something else than a model.
      StorageError: the disk is full.
    """
    whole = not any(isinstance(leaf, Split) for leaf in trees.flatten(params).values())
    fields = hf_config.config_to_hf(config, own=extra, whole=whole)
    state = params_to_hf(params, config, extra=extra)
    known = {entry.name for entry in names.entries(config)}
    more = {name: state.pop(name) for name in sorted(set(state) - known)}
    fields["dtype"] = str(np.result_type(*{a.dtype for a in state.values()}))
    files = {"config.json": json.dumps(fields, indent=2) + "\n"}
    if tokenizer is not None:
        text = tokenizer.to_json()
        files |= hffolder.tokenizer_files(text, config.max_position_embeddings)
        words = files["vocab.txt"].count("\n")
        if words > config.vocab_size:
            raise ConfigError(
                "tokenizer",
                f"expected at most vocab_size {config.vocab_size} words, found {words}",
                fix="give the tokenizer that the model was trained with",
            )
    with hffolder.replacing(Path(folder)) as new:
        hf_weights.write_state(new / "model.safetensors", state)
        if more:
            hf_weights.write_state(new / hfextra.FILE, more)
        for name, text in files.items():
            (new / name).write_text(text, "utf-8")


def _collect(state: Mapping[str, Any], place: object) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for name, array in state.items():
        known = names.canonical(name)
        if known in found:
            raise DamagedFile(
                place, f"{name} is there twice", fix="save the model again"
            )
        if not names.IGNORED.fullmatch(known):
            found[known] = array
    return found


def _fill_heads(
    found: dict[str, np.ndarray],
    table: Iterable[names.Entry],
    config: BertConfig,
    rng: np.random.Generator,
) -> None:
    shapes = {entry.name: entry.shape for entry in table}
    for here, there, _ in names.HEADS:
        weight, bias = f"{there}.weight", f"{there}.bias"
        if weight in found or bias in found:
            continue
        draw = rng.normal(0.0, 0.02, shapes[weight])
        found[weight] = draw.astype(np.float32)
        found[bias] = np.zeros(shapes[bias], np.float32)
        log.warning("the %s starts anew: the checkpoint has none that fits", here)


def _leaf(array: Any, entry: names.Entry, place: object) -> Any:
    array = np.asarray(array)
    if array.dtype in (np.float16, ml_dtypes.bfloat16):
        array = array.astype(np.float32)
    problem = ""
    if array.shape != entry.shape:
        problem = f"expected shape {entry.shape}, found {array.shape}"
    elif array.dtype not in (np.float32, np.float64):
        problem = f"expected real numbers, found {array.dtype}"
    elif not np.isfinite(array).all():
        problem = "expected finite numbers, found infinity or NaN"
    if problem:
        raise DamagedFile(
            f"{place}:{entry.name}",
            problem,
            fix="fetch the model again; config.json must be the one beside it",
        )
    return jnp.array(array.T if entry.transposed else array)


def _fit_head(
    state: dict[str, np.ndarray],
    fields: Mapping[str, Any],
    own: BertConfig,
    config: BertConfig,
) -> dict[str, np.ndarray]:
    """Return the state without a head of another task; same labels are put in order."""
    head = [name for name in state if re.fullmatch(r"classifier(_[12])?\..*", name)]
    kinds = fields.get("architectures") or ["BertForSequenceClassification"]
    named = bool(own.id2label and config.id2label)
    rows = label_places(config.labels, own.labels) if named else None
    if (
        # The head of a token classifier bears the same name.
        "BertForSequenceClassification" not in kinds
        or own.num_labels != config.num_labels
        or own.regression != config.regression
        or (named and rows is None)
    ):
        return {name: array for name, array in state.items() if name not in head}
    if rows and head and own.labels != config.labels and rows != sorted(rows):
        log.warning("the classifier's labels are put in the order %s", config.labels)
        return state | {name: state[name][rows] for name in head}
    return state


def _some(names: Iterable[str]) -> str:
    names = list(names)
    rest = f" and {len(names) - 6} more" if len(names) > 6 else ""
    return ", ".join(names[:6]) + rest
