"""A BERT's configuration as Hugging Face's ``config.json``, both ways."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from bitflax.errors import ConfigError
from bitflax.types import BertConfig

_NUMBERS = {
    field.name: int if field.type is int else float
    for field in dataclasses.fields(BertConfig)
    if field.type in (int, float, float | None) and field.name != "num_labels"
}
_ACTS = {"gelu": "gelu", "gelu_python": "gelu", "relu": "relu"}  # gelu by erf

OWN_KIND = "bitflax-bert"
"""The ``model_type`` of what Hugging Face's BERT cannot hold: heads of another width,
or matrices in two halves."""

# What would compute something else than this package's BERT.
_ONLY = {
    "position_embedding_type": ("absolute", "relative positions are not supported"),
    "is_decoder": (False, "decoders are not supported"),
    "add_cross_attention": (False, "cross-attention is not supported"),
    "quantization_config": (None, "give weights that nobody quantised before"),
}


def config_from_hf(
    fields: Mapping[str, Any],
    *,
    num_labels: int | None = None,
    id2label: Mapping[int, str] | Sequence[str] | None = None,
    problem_type: str | None = None,
    place: object = "config.json",
) -> BertConfig:
    """Return the configuration that ``config.json`` holds.

    Args:
      fields: the file's JSON object.
      num_labels: another number of labels than the file's, for a new task.
      id2label: other label names than the file's; they say ``num_labels`` too.
      problem_type: ``"regression"`` or ``"single_label_classification"``.
      place: what errors name as the file.

    Raises:
      ConfigError: not a BERT of absolute positions with one label an example, or a
        field holds what it should not.

    >>> fields = {"model_type": "bert", "id2label": {"0": "no", "1": "yes"}}
    >>> config_from_hf(fields).labels
    ('no', 'yes')
    """
    _check_kind(fields, place)
    found = {n: _number(fields, n, kind, place) for n, kind in _NUMBERS.items()}
    given = {name: value for name, value in found.items() if value is not None}
    if fields.get("model_type") == OWN_KIND:
        given["head_size"] = _number(fields, "head_size", int, place)
    given["hidden_act"] = _act(fields.get("hidden_act", "gelu"), place)
    names, count = _labels(fields, num_labels, id2label, problem_type, place)
    problem = problem_type or fields.get("problem_type")
    if num_labels is not None or id2label is not None:
        problem = problem_type
    # Hugging Face's convention: one label and nothing said is a regression.
    problem = problem or ("regression" if count == 1 else None)
    try:
        return BertConfig(
            **given, num_labels=count, id2label=names, problem_type=problem
        )
    except (ValueError, TypeError) as error:
        raise ConfigError(place, str(error), fix="give another model") from None


def config_to_hf(
    config: BertConfig, *, own: bool = False, whole: bool = True
) -> dict[str, Any]:
    """Return the JSON object of ``config.json``; the inverse of ``config_from_hf``.

    Args:
      config: the model's shape.
      own: write what only this package reads, where Hugging Face's BERT cannot hold
        it: ``model_type`` then is ``bitflax-bert``, which transformers refuses.
      whole: whether all matrices are there, none in two halves.

    Raises:
      ConfigError: the heads' widths do not add up to ``hidden_size``, and not ``own``.
    """
    fits = config.head_width * config.num_attention_heads == config.hidden_size
    if not fits and not own:
        raise ConfigError(
            "BertConfig.head_size",
            f"{config.num_attention_heads} heads of width {config.head_width} are not "
            f"the hidden_size {config.hidden_size}; Hugging Face's BERT has no field "
            "for that",
            fix="save such a model as a packed file or a checkpoint",
        )
    fields = dataclasses.asdict(config)
    for name in ("head_size", "num_labels", "id2label"):
        del fields[name]
    kind: dict[str, Any] = {"model_type": "bert"}
    if not (fits and whole):
        kind = {"model_type": OWN_KIND, "head_size": config.head_size}
    return {
        "architectures": ["BertForSequenceClassification"],
        **kind,
        **fields,
        "id2label": {str(i): name for i, name in enumerate(config.labels)},
        "label2id": {name: i for i, name in enumerate(config.labels)},
        "position_embedding_type": "absolute",
        "initializer_range": 0.02,
    }


def _check_kind(fields: Mapping[str, Any], place: object) -> None:
    kind = fields.get("model_type")
    if kind is None and all(
        str(name).startswith("Bert") for name in fields.get("architectures") or ["?"]
    ):
        kind = "bert"
    if kind not in ("bert", OWN_KIND):
        raise ConfigError(
            f"{place}:model_type",
            f"expected 'bert', found {kind!r}",
            fix="give a BERT; other kinds of model are not supported",
        )
    for name, (value, reason) in _ONLY.items():
        if fields.get(name, value) not in (value, None):
            raise ConfigError(
                f"{place}:{name}",
                f"expected {value!r}, found {fields[name]!r}: {reason}",
                fix="give another model",
            )
    if fields.get("problem_type") == "multi_label_classification":
        raise ConfigError(
            f"{place}:problem_type",
            "multi_label_classification: several labels an example are not supported",
            fix="give a model with one label an example",
        )


def _act(name: Any, place: object) -> str:
    if not isinstance(name, str) or name not in _ACTS:
        raise ConfigError(
            f"{place}:hidden_act",
            f"expected gelu or relu, found {name!r}",
            fix="give another model",
        )
    return _ACTS[name]


def _number(fields: Mapping[str, Any], name: str, kind: type, place: object) -> Any:
    value = fields.get(name)
    if value is None:
        return None
    kinds = (int, float) if kind is float else (int,)
    if isinstance(value, bool) or not isinstance(value, kinds):
        raise ConfigError(
            f"{place}:{name}",
            f"expected {'a number' if kind is float else 'an integer'}, "
            f"found {value!r}",
            fix="correct the field",
        )
    return kind(value)


def _labels(
    fields: Mapping[str, Any],
    num_labels: int | None,
    id2label: Mapping[int, str] | Sequence[str] | None,
    problem_type: str | None,
    place: object,
) -> tuple[dict[int, str] | None, int]:
    if id2label is not None:
        pairs = id2label if isinstance(id2label, Mapping) else enumerate(id2label)
        names = _names(dict(pairs), "id2label")
        if num_labels not in (None, len(names)):
            raise ConfigError(
                "num_labels",
                f"expected {len(names)}, one a name of id2label, found {num_labels}",
                fix="give one of the two",
            )
    elif num_labels is not None:
        return None, num_labels
    elif problem_type == "regression":
        return None, 1
    elif fields.get("id2label") is None:
        count = _number(fields, "num_labels", int, place)
        return None, 2 if count is None else count
    else:
        names = _names(fields["id2label"], f"{place}:id2label")
        _check_back(names, fields.get("label2id"), place)
    unnamed = all(name == f"LABEL_{i}" for i, name in names.items())
    return (None if unnamed else names), len(names)


def _check_back(names: Mapping[int, str], back: Any, place: object) -> None:
    """Refuse ``label2id`` where it gives a name that is known another number."""
    back = back if isinstance(back, Mapping) else {}
    for number, name in names.items():
        if str(back.get(name, number)) != str(number):
            problem = f"expected {number} for {name!r}, as id2label says, found "
            fix = "put right whichever of the two is wrong"
            raise ConfigError(f"{place}:label2id", f"{problem}{back[name]!r}", fix=fix)


def _names(names: Any, place: str) -> dict[int, str]:
    """Return ``{0: name, ...}`` of a mapping whose keys may be strings."""
    try:
        found = {int(k): str(n) if type(n) is int else n for k, n in names.items()}
        if not found or sorted(found) != list(range(len(found))):
            raise ValueError
    except (AttributeError, TypeError, ValueError):
        raise ConfigError(
            place,
            f"expected a name for each of 0, 1, ..., found {names!r:.200}",
            fix="number the labels from 0 without a gap",
        ) from None
    return dict(sorted(found.items()))
