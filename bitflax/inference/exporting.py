"""Exports: a model as one file for other engines, or a folder for transformers.

An ONNX file takes ``input_ids``, ``attention_mask`` and ``token_type_ids``, int64
[batch, sequence], and gives ``logits``, float32 [batch, labels]. Its metadata hold
what else is needed to run it: ``tokenizer`` (the text of ``tokenizer.json``),
``id2label`` (JSON), ``max_length`` and ``kind``. So, with no more than NumPy, ONNX
Runtime and tokenizers::

    import json, numpy as np, onnxruntime, tokenizers

    session = onnxruntime.InferenceSession("model-int8.onnx")
    said = session.get_modelmeta().custom_metadata_map
    tokenizer = tokenizers.Tokenizer.from_str(said["tokenizer"])
    tokenizer.enable_truncation(int(said["max_length"]))
    tokenizer.enable_padding()
    texts = tokenizer.encode_batch(["a text", "a longer text"])
    feed = {
        "input_ids": np.array([text.ids for text in texts]),
        "attention_mask": np.array([text.attention_mask for text in texts]),
        "token_type_ids": np.array([text.type_ids for text in texts]),
    }
    (logits,) = session.run(["logits"], feed)
    labels = json.loads(said["id2label"])
    print([labels[str(i)] for i in logits.argmax(axis=-1)])
"""

import importlib.metadata
import json
import logging
import os
import re
import shutil
from pathlib import Path

from bitflax import files, packed, trees
from bitflax.errors import ConfigError, OutputError, UsageError
from bitflax.inference import engines, model_card, native, onnx_bert, provenance
from bitflax.inference.stored_model import (
    DENSE_SUM,
    PACKED_COPY,
    given_model,
    locate_model,
    read_model,
    write_dense_sum,
)
from bitflax.model import (
    ACT_PARAMS,
    check_push,
    config_to_hf,
    is_hub_name,
    save_pretrained,
)
from bitflax.model import push as send
from bitflax.packed import StoredModel
from bitflax.types import Params

_LOG = logging.getLogger(__name__)

EXPORT_FORMATS = ("native", "onnx-int8", "onnx-fp32", "hf")
CARD = "README.md"
_ALSO = {CARD, PACKED_COPY, DENSE_SUM}
# How an ONNX file (IR version, then the producer's name) and a native one begin.
_OURS = re.compile(rb"\x08.\x12\x07bitflax|bitflax\0", re.DOTALL)


def export(
    model: str | Path,
    out: str | Path | None = None,
    kind: str = "hf",
    *,
    push: str | None = None,
    private: bool | None = None,
) -> Path:
    """Write a model for other programs. What fails leaves nothing half written.

    Args:
      model: as ``bitflax.load`` takes it.
      out: the file or the folder to write; None: beside the model. What an earlier
        export wrote there is replaced, nothing else.
      kind: ``"native"``: the flat file that the native engine runs, from C too;
        ``"onnx-fp32"``; ``"onnx-int8"``: integer matrix products, for a student with
        8-bit activations; or ``"hf"``: a folder of dense float32 weights, without
        what activation quantizers do, with a model card and the packed file.
      push: for ``"hf"``: a hub's ``OWNER/NAME``, where the folder is uploaded too. The
        repository is created if need be; files in it that the folder lacks are removed.
      private: whether a new repository is private; None: as the account's default.

    Returns:
      The file or folder.

    Raises:
      ConfigError: there is no such kind, or it cannot hold this model.
      InputMissing: there is no model, or ONNX is not installed.
      UsageError: a file is to be pushed, or nothing is and ``private`` is given.
      OutputError: the place cannot be written or holds something else; or the hub
        refuses it.
      DamagedFile: a file is damaged.
      StorageError: the disk is full.
    """
    _check_kind(kind, push)
    if private is not None and push is None:
        problem = "says how --push creates a repository, and there is no --push"
        raise UsageError("--private", problem, fix="give --push OWNER/NAME too")
    far = str(model).partition("/")[2] if is_hub_name(model) else None
    model = given_model(model)
    place = locate_model(model)
    if out is None and far is not None:  # not into the hub's cache
        out = _named(Path(far).absolute(), kind)
    elif out is None:
        out = _beside(model, place, kind)
    out = files.given(out, OutputError)
    (_check_folder if kind == "hf" else _check_file)(out)
    if push is not None:
        check_push(push, model_card.MARK, private)
    found = read_model(place)
    if kind == "hf":
        config_to_hf(found.config)  # raises early if transformers lacks this shape
        origin = None if far or model == place else provenance.from_run(model)
        size = place.stat().st_size if place.is_file() else None
        origin = origin or provenance.from_extras(found.extras)
        card = model_card.card(found, origin, size, push)
        _write_folder(out, found, card, place if size is not None else None)
        if push is not None:
            _LOG.info("%s", send(out, push, private))
    elif kind == "native":
        _write_native(out, found)
    else:
        _write_onnx(out, found, kind)
    return out


def _check_kind(kind: str, push: str | None) -> None:
    """Check that there is such a format, that it can be pushed, and its packages."""
    if kind == "onnx-2bit":
        fix = "onnx-int8, smaller and faster"
        raise ConfigError("format", "onnx-2bit is gone", fix=fix)
    if kind not in EXPORT_FORMATS:
        raise ConfigError(
            "format", f"no format {kind!r}", fix=f"one of {', '.join(EXPORT_FORMATS)}"
        )
    if push is not None and kind != "hf":
        problem = f"uploads a folder, and {kind} is a file"
        raise UsageError("--push", problem, fix="give --format hf")
    if kind.startswith("onnx"):
        engines.need_packages("onnx")


def _beside(model: Path, place: Path, kind: str) -> Path:
    """Return where an export goes by default."""
    stem = model.absolute()
    if model != place and place.name != PACKED_COPY:  # a run
        stem = stem / "model"
    elif model.is_file():  # a folder's name may have a dot
        stem = stem.with_suffix("")
    return _named(stem, kind)


def _named(stem: Path, kind: str) -> Path:
    """Return the file or folder of an export, named after its model."""
    if kind == "native":
        return stem.with_name(f"{stem.name}.bitflax")
    ending = "hf" if kind == "hf" else f"{kind.removeprefix('onnx-')}.onnx"
    return stem.with_name(f"{stem.name}-{ending}")


def _check_file(path: Path) -> None:
    """Check that a file can be written here."""
    problem = ""
    if not path.parent.is_dir():
        problem = "there is no such folder"
    elif path.is_dir():
        problem = "is a folder"
    elif not os.access(path.parent, os.W_OK):
        problem = "the folder cannot be written"
    elif path.exists() and not path.is_file():
        problem = "is no regular file"
    elif path.exists():
        with files.disk(path), path.open("rb") as file:
            if not _OURS.match(file.read(64)):
                problem = "is a file that bitflax export did not write"
    if problem:
        raise OutputError(path, problem, fix="give another --out")


def _check_folder(path: Path) -> None:
    """Check that a folder is new, empty, or an earlier export."""
    files.check_model_folder(path, also=_ALSO)
    card = path / CARD
    if path.exists() and any(path.iterdir()):
        if card.is_file() and model_card.MARK in card.read_text("utf-8", "replace"):
            return
        problem = "holds a model that bitflax export did not write"
        raise OutputError(path, problem, fix="give another --out")


def _write_native(out: Path, model: StoredModel) -> None:
    known = model.tokenizer
    metadata = {
        "bitflax": importlib.metadata.version("bitflax"),
        "id2label": dict(enumerate(model.config.labels)),
        "regression": model.config.regression,
        "max_length": model.max_length or model.config.max_position_embeddings,
        "tokenizer": None if known is None else json.loads(known.to_json()),
    }
    flat = native.to_flat(model.config, model.params, model.act, metadata)
    native.seal(flat)
    with files.disk(out), files.atomic(out) as file:
        file.write(flat.data)


def _write_onnx(out: Path, model: StoredModel, kind: str) -> None:
    graph = onnx_bert.build_onnx(model.config, model.params, model.act, kind)
    graph.producer_version = importlib.metadata.version("bitflax")
    limit = model.max_length or model.config.max_position_embeddings
    graph.metadata_props.add(key="max_length", value=str(limit))
    if model.tokenizer is not None:
        graph.metadata_props.add(key="tokenizer", value=model.tokenizer.to_json())
    with files.disk(out), files.atomic(out) as file:
        file.write(graph.SerializeToString())


def _write_folder(out: Path, model: StoredModel, card: str, file: Path | None) -> None:
    with files.replacing_folder(out, also=_ALSO) as new:
        save_pretrained(new, model.config, _dense(model), model.tokenizer)
        (new / CARD).write_text(card, "utf-8")
        if file is not None:
            shutil.copyfile(file, new / PACKED_COPY)
            write_dense_sum(new)


def _dense(model: StoredModel) -> Params:
    """Return dense weights, without the parameters of activation quantizers."""
    flat = trees.flatten(model.params).items()
    kept = {p: packed.on_host(x) for p, x in flat if not re.fullmatch(ACT_PARAMS, p)}
    return trees.unflatten(kept)
