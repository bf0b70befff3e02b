"""What a masked word costs: in batches, and one sentence at a time.

One masked input after another is how TinyBERT's own code asks its masked LM: the
logits of all positions, then a sort of the whole vocabulary at one of them. That is
timed twice: compiled, padded to the lengths of the batches so that few shapes compile,
and not compiled, as PyTorch runs it. The model has random weights, the sentences are
CoLA's; all sides alternate within this process.

    BITFLAX_DATA=/data taskset -c 0 python -m tests.benchmarks.augment > augment.json
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import bitflax as bf
from bitflax.data import tasks
from bitflax.data.augmentation import augment, masked_lm, words
from bitflax.data.text import Tokenizer
from bitflax.model import pretrained
from tests.benchmarks import common, steps

COUNT = 15


def masked_inputs(sentences: int, splitter: words.Splitter) -> list[words.Masked]:
    """Return the masked inputs of CoLA's first training sentences."""
    folder = Path(os.environ["BITFLAX_DATA"]) / "glue" / "CoLA"
    texts = tasks.load_task("glue/cola", data_dir=folder).train.texts[0][:sentences]
    split = [splitter.split(text) for text in texts]
    special, made = splitter.special, []
    for sentence, pieces in zip(split, splitter.pieces(split), strict=True):
        for word in words.replaceable(sentence):
            if len(pieces[word]) == 1:
                made.append(words.masked(pieces, word, special))
    return [each for each in made if each is not None]


class OneByOne:
    """TinyBERT's way: one input a call, logits everywhere, the vocabulary sorted.

    Args:
      lm: the masked LM.
      compiled: whether the call is compiled, at padded lengths.
    """

    def __init__(self, lm: masked_lm.MaskedLM, compiled: bool):
        self.lm, self.compiled = lm, compiled
        apply, config = bf.bert(lm.config), lm.config

        def logits(params, head, batch):
            hidden = apply(params, batch).hidden[-1][0]
            gelu = lambda x: jax.nn.gelu(x, approximate=False)  # noqa: E731
            return masked_lm.head_logits(hidden, head, config.layer_norm_eps, gelu)

        self._logits = jax.jit(logits) if compiled else logits

    def __call__(self, inputs: Sequence[words.Masked]) -> list[list[int]]:
        """Return the likeliest words at each mask."""
        found = []
        for each in inputs:
            size = len(each.ids)
            length = next(n for n in masked_lm.LENGTHS if n >= size)
            rest = (length - size if self.compiled else 0) * [0]
            batch = {
                "input_ids": np.array([each.ids + rest]),
                "attention_mask": np.array([[1] * size + rest]),
                "token_type_ids": np.array([each.types + rest]),
            }
            logits = self._logits(self.lm._params, self.lm._head, batch)
            order = np.argsort(-np.asarray(logits)[each.place])
            found.append(order[:COUNT].tolist())
        return found


def random_head(config: bf.BertConfig, table: Any) -> Any:
    """Return a masked LM's head over a word table."""
    width = config.hidden_size
    kernel = 0.02 * jax.random.normal(jax.random.key(1), (width, width))
    return {
        "dense": {"kernel": kernel, "bias": jnp.zeros(width)},
        "norm": {"scale": jnp.ones(width), "bias": jnp.zeros(width)},
        "kernel": jnp.asarray(table.T),
        "bias": jnp.zeros(config.vocab_size),
    }


def main() -> None:
    """Time the three ways; the table goes to stderr, the JSON to stdout."""
    options = common.parser(__doc__)
    options.add_argument("--sentences", type=int, default=augment.CHUNK)
    options.add_argument("--alone", type=int, default=24, help="inputs one by one")
    args = common.parse(options)
    if "BITFLAX_DATA" not in os.environ:
        options.error("BITFLAX_DATA is unset: it names a folder with glue/ in it")
    config = steps.configs(args.model)[0]
    params = steps.teacher_params(args.model)
    tokenizer = Tokenizer.from_folder(pretrained.resolve_folder("minilm"))
    splitter = words.Splitter(tokenizer)
    head = random_head(config, params["embeddings"]["word"]["embedding"])
    lm = masked_lm.MaskedLM(config, params, head, splitter, tokenizer.pad_id)
    inputs = masked_inputs(args.sentences, splitter)
    some = inputs[:: max(1, len(inputs) // args.alone)]
    compiled, plain = OneByOne(lm, True), OneByOne(lm, False)
    few = some[:: max(1, len(some) // 6)]
    sides = {
        "batches": (lambda: lm(inputs, COUNT), len(inputs)),
        "one by one, compiled": (lambda: compiled(some), len(some)),
        "one by one, op by op": (lambda: plain(few), len(few)),
    }
    times = {
        name: common.Times(1e3 * found.wall / size, 1e3 * found.cpu / size)
        for (name, found), (_, size) in zip(
            common.alternate(
                {n: s for n, (s, _) in sides.items()}, args.rounds
            ).items(),
            sides.values(),
            strict=True,
        )
    }
    batches = times["batches"]
    rows = [
        [name, *common.spread(each.summary(), ".2f"),
         *common.spread(common.ratio(each, batches), ".2f")]
        for name, each in times.items()
    ]  # fmt: skip
    head_row = ["ms a masked word", "wall", "quartiles", "CPU"]
    common.say(common.table([*head_row, "/ batches", "quartiles", "CPU"], rows))
    mean = float(np.mean([len(each.ids) for each in inputs]))
    results = {
        "inputs": len(inputs),
        "mean_tokens": mean,
        "ms": {name: each.summary() for name, each in times.items()},
        "over_batches": {n: common.ratio(t, batches) for n, t in times.items()},
    }
    common.write("augment", args, results)


if __name__ == "__main__":
    main()
