"""The ``README.md`` of an exported folder: a model card that Hugging Face reads.

What is not known of the model is left out.
"""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from bitflax import trees
from bitflax.data import TASKS
from bitflax.inference import engines
from bitflax.inference.provenance import PACKAGED, Provenance, Scored
from bitflax.inference.stored_model import PACKED_COPY
from bitflax.model import Packed, Split, at_sites, learns
from bitflax.packed import StoredModel, size_report
from bitflax.types import BertConfig, Params

MARK = "<!-- written by bitflax export -->"
"""Marks a folder as an export, which another export may replace."""

_METRICS = {
    "accuracy": ["accuracy"],
    "matthews": ["matthews_correlation"],
    "f1_accuracy": ["f1", "accuracy"],
    "pearson_spearman": ["pearsonr", "spearmanr"],
}
_MOST_LABELS = 60

_TRANSFORMERS = """With transformers:

```python
from transformers import pipeline

classify = pipeline("text-classification", {name}{options})
classify("a text")
```"""

_BITFLAX = """With bitflax ({how}):

```python
import bitflax as bf

bf.load({name}).predict(["a text"])
```"""

_ONNX = "With ONNX Runtime, as one file: `bitflax export {name} --format {kind}`."


def card(
    model: StoredModel,
    origin: Provenance,
    size: int | None = None,
    repo: str | None = None,
) -> str:
    """Return the card of a folder with a model's dense weights.

    Args:
      model: what was exported.
      origin: where it comes from.
      size: the bytes of the packed file, which is in the folder as ``PACKED_COPY``;
        None: the model was not packed.
      repo: the name that the folder will have on a hub.
    """
    counts = _counts(model)
    bits, scores = _bits(model.params, counts), [*_scores(origin, size)]
    limits = [*_packed(counts, size), *_limits(model, scored=bool(scores))]
    parts = [
        _front(origin, bits),
        MARK,
        f"# {_title(model.config, origin, bits)}",
        " ".join(_what(model.config, origin)),
        *_labels(model.config),
        *scores,
        "\n".join(["## Limitations", "", *(f"- {text}" for text in limits)]),
        *_loading(model, repo or ".", packed=size is not None),
    ]
    return "\n\n".join(part.rstrip("\n") for part in parts) + "\n"


def _front(origin: Provenance, bits: int | float) -> str:
    """Return the YAML that a hub reads; its values are JSON, which is YAML too."""
    task = TASKS.get(origin.task or "")
    tags = ["bitflax", "bert", "knowledge-distillation"]
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "language": [task.language] if task else None,
        "base_model": _base(origin),
        "datasets": [task.dataset] if task and task.dataset else None,
        "metrics": _METRICS.get(origin.metric or ""),
        "tags": [*tags, f"{bits:g}-bit"] if bits < 32 else tags,
    }
    lines = (f"{k}: {json.dumps(v)}" for k, v in fields.items() if v is not None)
    return "\n".join(["---", *lines, "---"])


def _base(origin: Provenance) -> str | None:
    return PACKAGED.get(origin.teacher or "", origin.teacher)


def _bits(params: Params, counts: Counter[int | float]) -> int | float:
    """Return the bits of most of the weights; 32 where the model is dense."""
    # Not by the counts alone: size_report counts float16 where a float32 fits into it.
    if not any(isinstance(x, Packed | Split) for x in trees.flatten(params).values()):
        return 32
    return counts.most_common(1)[0][0]


def _counts(model: StoredModel) -> Counter[int | float]:
    """Return how many values are stored with how many bits."""
    counts: Counter[int | float] = Counter()
    for row in size_report(model.params):
        counts[row.bits] += row.values
    return counts


def _title(config: BertConfig, origin: Provenance, bits: int | float) -> str:
    layers = config.num_hidden_layers
    name = f"{_plain(origin.recipe)}: a" if origin.recipe else "A"
    weights = f" with {bits:g}-bit weights" if bits < 32 else ""
    return f"{name} BERT of {layers} layer{'s' if layers > 1 else ''}{weights}"


def _what(config: BertConfig, origin: Provenance) -> Iterator[str]:
    if config.regression:
        yield "It gives a text, or a pair of texts, a real number."
    else:
        yield f"It sorts a text, or a pair, into one of {config.num_labels} classes."
    yield (
        f"It has {config.num_hidden_layers} layers, {config.hidden_size} wide, with "
        f"{config.num_attention_heads} heads and {config.intermediate_size:,} neurons "
        f"each, and knows {config.vocab_size:,} words."
    )
    made = [f"by bitflax's recipe {_code(origin.recipe)}"] if origin.recipe else []
    made += [f"on the task {_code(origin.task)}"] if origin.task else []
    base = _base(origin)
    made += [f"from {_code(base)}"] if base else []
    if made:
        yield f"It was made {' '.join(made)}."


def _labels(config: BertConfig) -> Iterator[str]:
    if config.id2label and config.num_labels <= _MOST_LABELS:
        yield "Classes: " + ", ".join(map(_code, config.labels)) + "."


def _scores(origin: Provenance, size: int | None) -> Iterator[str]:
    """Yield the table of all stages that have a score."""
    rows = [row for row in origin.stages if row.score is not None]
    if not rows:
        return
    first = rows[0].score if rows[0].name == "teacher" else None
    lines = [
        f"| | {_plain(origin.metric or 'score')} | of the teacher's | bits | MB |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, score in origin.baselines:
        simple = Scored(f"for comparison: {name}", score, None, None)
        lines.append(f"| {' | '.join(_cells(simple, None))} |")
    for row in rows:
        if row.name == "packed" and size:
            row = row._replace(bytes=size)
        lines.append(f"| {' | '.join(_cells(row, first))} |")
    task = f" of {_code(origin.task)}" if origin.task else ""
    measured = _plain(origin.dev) or f"the dev examples{task}"
    yield f"## Scores\n\nOn {measured}, as the run measured them:"
    yield "\n".join(lines)


def _cells(row: Scored, first: float | None) -> Sequence[str]:
    kept = f"{row.score / first:.1%}" if first and row.score is not None else ""
    size = f"{row.bytes / 1e6:.2f}" if row.bytes else ""
    score = "" if row.score is None else f"{row.score:.4f}"
    return _plain(row.name), score, kept, str(row.bits or ""), size


def _packed(counts: Counter[int | float], size: int | None) -> Iterator[str]:
    """Yield how the packed file and the dense weights beside it compare."""
    if size:
        shares = ", ".join(
            f"{count:,} of {bits:g} bit{'s' if bits > 1 else ''}"
            for bits, count in sorted(counts.items())
        )
        yield (
            f"The packed file, `{PACKED_COPY}`, has {size:,} bytes: {shares}. "
            f"`model.safetensors`, which transformers loads, holds the same "
            f"{sum(counts.values()):,} values as float32: it is as large and as fast "
            "as any other BERT of this shape."
        )


def _limits(model: StoredModel, scored: bool) -> Iterator[str]:
    found = at_sites(model.act, model.config).values()
    bits = sorted({q.bits for q in found if getattr(q, "bits", None)})
    if found:
        ranges = ", in ranges that it learned" if any(map(learns, found)) else ""
        rounded = f" to {' and '.join(map(str, bits))} bits" if bits else ""
        yield (
            f"The student was trained with activations rounded{rounded}{ranges}; "
            "transformers does not round them. The logits differ a little from those "
            "of the packed file, and so may the label of a text between two classes."
            + (" The scores above are those of the rounded student." if scored else "")
        )
    if model.max_length:
        yield (
            f"It was trained on texts of at most {model.max_length} tokens; bitflax "
            "cuts longer ones there."
        )
    yield "No licence is stated here: those of the teacher and of the data apply."


def _loading(model: StoredModel, name: str, packed: bool) -> Iterator[str]:
    yield "## How to load"
    options = ""
    if model.max_length is not None:
        options = f", truncation=True, max_length={model.max_length}"
    yield _TRANSFORMERS.format(name=json.dumps(name), options=options)
    taken = f"which takes the packed file, `{PACKED_COPY}`"
    how = taken if packed else "the same weights"
    yield _BITFLAX.format(how=how, name=json.dumps(name))
    kind = engines.onnx_kind(model.config, model.act)
    yield _ONNX.format(name=name, kind=kind)


def _plain(text: str | None) -> str:
    """Return a text on one line, with Markdown's special characters escaped."""
    line = " ".join((text or "").split())
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>()#+!|~" else c for c in line)


def _code(text: str | None) -> str:
    line = " ".join((text or "").split()).replace("`", "'")
    return f"`{line}`"
