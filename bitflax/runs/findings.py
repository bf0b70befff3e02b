"""What a report shows besides scores: answers by class, weights, bytes, latencies.

Everything is plain JSON: ``report.json`` keeps it, and the page is drawn from that.
"""

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitflax import data, inference, training, trees
from bitflax.data import Task
from bitflax.errors import BitflaxError
from bitflax.model import Split
from bitflax.packed import size_report
from bitflax.quantization import Rules, bits_of
from bitflax.types import Params

EXAMPLES = 20
MOST_CLASSES = 40
"""Of more classes, a confusion matrix is too large to be drawn."""
BINS, WIDEST = 60, 3.0
ANSWERS = 20


def answers(task: Task, teacher: np.ndarray, student: np.ndarray) -> dict[str, Any]:
    """Compare the answers of teacher and student, logits [examples, classes], on dev.

    Returns:
      ``classes``: the name, the number of examples and both F1 scores of each class;
      ``confusion``: both matrices [true][predicted], where there are few classes;
      ``disagreements``: examples that the models answer differently, those first of
      which both are surest, with both probabilities.
    """
    assert task.dev.labels is not None
    true, names = task.dev.labels, list(task.labels)
    both = [
        data.by_class(data.predictions(logits), true, len(names))
        for logits in (teacher, student)
    ]
    counts, scores = np.bincount(true, minlength=len(names)), [x.f1 for x in both]
    found: dict[str, Any] = {
        "classes": [
            {
                "label": name,
                "examples": int(counts[i]),
                "teacher_f1": float(scores[0][i]),
                "student_f1": float(scores[1][i]),
            }
            for i, name in enumerate(names)
        ],
        "disagreements": _disagreements(task, teacher, student),
    }
    if len(names) <= MOST_CLASSES:
        matrices = [x.confusion.tolist() for x in both]
        found["confusion"] = dict(zip(("teacher", "student"), matrices, strict=True))
    return found


def _disagreements(
    task: Task, teacher: np.ndarray, student: np.ndarray
) -> list[dict[str, Any]]:
    from scipy.special import softmax  # not before it is needed

    shares = [softmax(x, axis=-1) for x in (teacher, student)]
    first, second = (share.argmax(axis=1) for share in shares)
    surest = np.minimum(shares[0].max(axis=1), shares[1].max(axis=1))
    rows = np.flatnonzero(first != second)
    rows = rows[np.argsort(-surest[rows], kind="stable")][:EXAMPLES]
    assert task.dev.labels is not None
    return [
        {
            "text": " | ".join(str(texts[row]) for texts in task.dev.texts),
            "label": task.labels[task.dev.labels[row]],
            "teacher": [task.labels[first[row]], float(shares[0][row].max())],
            "student": [task.labels[second[row]], float(shares[1][row].max())],
        }
        for row in rows
    ]


def latent_histogram(params: Params, rules: Rules) -> dict[str, Any] | None:
    """Return a histogram of latent weights relative to their quantisation levels.

    Each matrix of 1 or 2 bits is divided by its scale, so that its levels are -1 and 1,
    or -1, 0 and 1; ratios beyond ``WIDEST`` are counted in the outermost bins.

    Returns:
      ``edges`` [BINS + 1], ``counts`` [BINS] and ``levels``; None where no matrix has 1
      or 2 bits.
    """
    edges = np.linspace(-WIDEST, WIDEST, BINS + 1)
    counts, levels = np.zeros(BINS, np.int64), set()
    flat = trees.flatten(params)
    for path, quantizer in trees.match(rules, flat).items():
        if bits_of(quantizer) not in (1, 2):
            continue
        leaf = flat[path]
        for half in (leaf.a, leaf.b) if isinstance(leaf, Split) else (leaf,):
            values = np.asarray(jax.jit(quantizer)(half))
            scale = np.abs(values)
            scale = np.where(scale == 0, scale.max(initial=0.0), scale)
            kept = scale > 0
            ratio = np.asarray(half)[kept] / scale[kept]
            counts += np.histogram(np.clip(ratio, -WIDEST, WIDEST), edges)[0]
            levels |= {*np.unique(np.sign(values)).tolist()}
    if not levels:
        return None
    return {
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "levels": sorted(levels),
    }


def sign_flips(
    start: Params, rules: Rules
) -> Callable[[Params], dict[str, dict[str, float]]] | None:
    """Return a function from parameters to the share of signs flipped since the start.

    The shares are those of the weights that the rules quantise, by layer (``layer_0``,
    ..., ``embeddings``). None where they quantise none.

    >>> tree = {"encoder": {"layer_0": {"kernel": jnp.array([1.0, -1.0, 1.0, 1.0])}}}
    >>> flips = sign_flips(tree, [(".*kernel", jnp.sign)])
    >>> flips(jax.tree.map(lambda w: -abs(w), tree))
    {'flips': {'layer_0': 0.75}}
    """
    chosen = [*trees.match(rules, trees.flatten(start))]
    if not chosen:
        return None

    def signs(params: Params, own: Any = jnp) -> dict[str, Any]:
        flat, leaves = trees.flatten(params), jax.tree.leaves
        return {
            path: [own.asarray(w) >= 0 for w in leaves(flat[path])] for path in chosen
        }

    # On the host, for which nothing is compiled.
    begun = jax.device_put(signs(start, np))
    places = {path: layer(path) for path in chosen}

    @jax.jit
    def counted(params: Params, begun: Mapping[str, Any]) -> dict[str, jax.Array]:
        found: dict[str, list[Any]] = {}
        for path, now in signs(params).items():
            both = zip(now, begun[path], strict=True)
            found.setdefault(places[path], []).extend(a != b for a, b in both)
        return {
            place: jnp.sum(jnp.stack([jnp.sum(each) for each in parts]))
            / sum(each.size for each in parts)
            for place, parts in found.items()
        }

    def flips(params: Params) -> dict[str, dict[str, float]]:
        found = jax.device_get(counted(params, begun))
        return {"flips": {place: float(share) for place, share in found.items()}}

    return flips


def last_flips(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return the last shares of flipped signs in a log, by layer.

    >>> last_flips([{"flips/layer_0": 0.1}, {"flips/layer_0": 0.2}, {"step": 3}])
    {'layer_0': 0.2}
    """
    found = [{n: x for n, x in line.items() if "flips/" in n} for line in lines]
    last = next((each for each in reversed(found) if each), {})
    return {name.removeprefix("flips/"): share for name, share in last.items()}


def layer(path: str) -> str:
    """Return the layer of a parameter, or else the first part of its path.

    >>> layer("encoder/layer_0/ffn/in/kernel"), layer("pooler/kernel")
    ('layer_0', 'pooler')
    """
    found = re.search(r"layer_\d+", path)
    return found[0] if found else path.split("/")[0]


def bytes_by_kind(path: Path) -> list[dict[str, Any]]:
    """Return the bytes of a packed file by part and bits, the largest first."""
    sizes: Counter[str] = Counter()
    for row in size_report(path):
        place = layer(row.name)
        kind = "encoder" if place.startswith("layer_") else place
        sizes[f"{kind}, {row.bits:g} bit"] += row.bytes
    return [{"kind": kind, "bytes": size} for kind, size in sizes.most_common()]


def latencies(path: Path, text: Any) -> list[dict[str, Any]]:
    """Return the milliseconds that each installed engine takes for one text.

    From text to logits, on all cores: the median of ``ANSWERS`` calls in a row. Not
    jax on an accelerator, where a program of this shape would be compiled for it.
    """
    found, untimed = [], {"auto", "onnx"}
    if training.has_accelerator():
        untimed.add("jax")
    for engine in inference.ENGINES:
        if engine in untimed:
            continue
        try:
            predictor = inference.load(path, engine)
            predictor.logits([text])
        except BitflaxError:  # it is not installed, or cannot run this model
            continue
        times = []
        for _ in range(ANSWERS):
            began = time.perf_counter()
            predictor.logits([text])
            times.append(time.perf_counter() - began)
        found.append({"engine": engine, "milliseconds": 1e3 * float(np.median(times))})
    return found
