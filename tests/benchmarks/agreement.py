"""How many labels an engine changes: every engine against the student as trained.

The last stage's latent weights are quantised by the run's own rules, the rest is rounded
as the file holds it, and JAX runs them with the run's activation quantizers: that is
the student. It is packed anew, by today's
code, and every engine answers the task's whole dev set from what was packed.

    python -m tests.benchmarks.agreement RUN [RUN ...] > agreement.json
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

import bitflax as bf
from bitflax.data import metrics, tasks
from bitflax.data.text import Tokenizer
from bitflax.inference import onnx_bert
from bitflax.inference.engines import run_onnx
from bitflax.model import pretrained
from bitflax.packed import packing, rounding
from bitflax.recipe import loading
from bitflax.types import label_places
from tests.benchmarks import common


def answers(
    run: Path, kinds: Sequence[str]
) -> tuple[dict[str, np.ndarray], Any, bf.BertConfig]:
    """Return ``{engine: logits}`` of the dev set, the student first; task and shape."""
    record = json.loads((run / "recipe.json").read_text())
    recipe = loading.load_recipe(run / "recipe.py", record["overrides"])
    data, stage = recipe.data, recipe.stages[-1]
    assert data is not None
    folder = run / f"{len(recipe.stages)}-{stage.name}" / "params"
    config, latent = pretrained.load_pretrained(folder)
    task = tasks.load_task(data.task, data_dir=data.data_dir)
    texts = list(task.dev.texts[0])
    if len(task.dev.texts) == 2:
        texts = list(zip(*task.dev.texts, strict=True))
    tokenizer = Tokenizer.from_folder(folder)

    def logits(
        params: Any, act: Any, graph: Any = None, engine: str = "jax"
    ) -> np.ndarray:
        made = bf.Predictor(config, params, tokenizer, act, data.max_length, engine)
        if graph is not None:
            made._engine = run_onnx(graph.SerializeToString())
        return made.logits(texts)

    given = rounding.round_rest(latent, stage.rules, recipe.rest)
    packed = packing.pack(given, stage.rules, recipe.rest)
    plain = packing.unpack(packed)
    student = rounding.stored(latent, stage.rules, recipe.rest)
    found = {"as trained": logits(student, stage.act)}
    found["jax, packed"] = logits(packed, stage.act)
    found["native, packed"] = logits(packed, stage.act, engine="native")
    for kind in kinds:
        graph = onnx_bert.build_onnx(config, packed, stage.act, kind)
        found[kind] = logits(plain, None, graph)
    found["hf (no rounding of activations)"] = logits(plain, None)
    return found, task, config


def measure(run: Path, kinds: Sequence[str]) -> list[dict[str, Any]]:
    """Return a row an engine: agreement with the student, score, largest difference."""
    found, task, config = answers(run, kinds)
    right = task.dev.labels
    if not task.regression:
        right = np.array(label_places(task.labels, config.labels))[right]
    whole, packed = found["as trained"], found["jax, packed"]
    by_jax = metrics.predictions(packed, regression=task.regression)
    before = metrics.predictions(whole, regression=task.regression)
    rows = []
    for engine, logits in found.items():
        said = metrics.predictions(logits, regression=task.regression)
        rows.append(
            {
                "run": str(run),
                "engine": engine,
                "agreement": metrics.agreement(said, before),
                "moved": int(np.sum(said != before)),
                "examples": len(said),
                task.metric: metrics.score(task.metric, said, right)[task.metric],
                "largest difference of logits": float(np.abs(logits - whole).max()),
                "moved from jax, packed": int(np.sum(said != by_jax)),
                "texts over 1e-3 from it": _far(logits, packed),
            }
        )
    return rows


def _far(logits: np.ndarray, others: np.ndarray) -> int:
    """Count the texts of which an activation was rounded the other way."""
    return int(np.sum(np.abs(logits - others).max(axis=1) > 1e-3))


def main() -> None:
    """Measure every run; the table goes to stderr, the JSON to stdout."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("runs", nargs="+", metavar="RUN")
    options.add_argument("--kinds", nargs="*", choices=onnx_bert.KINDS)
    args = options.parse_args()
    args.kinds = onnx_bert.KINDS if args.kinds is None else args.kinds
    rows = [row for run in args.runs for row in measure(Path(run), args.kinds)]
    lines = [
        [f"{cell:.4f}" if isinstance(cell, float) else cell for cell in row.values()]
        for row in rows
    ]
    common.say(common.table(list(rows[0]), lines))
    common.write("agreement", args, {"results": rows})


if __name__ == "__main__":
    main()
