"""What a person should know of their data before anything is trained, with counts.

A notice with a mend (``fix:``) is a warning; what nobody need change has none.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from bitflax.data import Task, Tokenizer, Tokens
from bitflax.types import BertConfig

MOST_CUT = 0.1
MOST_UNKNOWN = 0.01
MOST_UNKNOWN_TOKENS = 0.1
MOST_SHARED = 0.05
MOST_UNREACHED = 0.01
"""Shares from which on a notice is a warning: GLUE's tasks at 128 tokens lie below."""


def data_notices(
    task: Task,
    tokens: Sequence[Tokens],
    tokenizer: Tokenizer,
    config: BertConfig,
    batch_size: int,
    max_length: int,
) -> Iterator[str]:
    """Yield what is to be said of a task's examples and of how they are read.

    Args:
      task: as the teacher numbers its classes.
      tokens: of its training examples and of its dev examples.
      tokenizer: the teacher's.
      config: the teacher's.
      batch_size: the largest that a stage has.
      max_length: where texts were cut.
    """
    yield from _class_notices(task)
    yield from _shared(task)
    rows = len(task.train)
    if rows < batch_size:
        fix = f"add examples, or --set data.batch_size={1 << (rows.bit_length() - 1)}"
        few = f"{rows} training examples are fewer than a batch of {batch_size}"
        yield f"{few}\nfix: {fix}"
    cut, what = sum(part.cut for part in tokens), f"are cut at {max_length} tokens"
    fix = f"raise data.max_length (the model has {config.max_position_embeddings} "
    fix += "positions), or shorten the texts"
    yield from _counted(cut, sum(map(len, tokens)), "texts", what, fix, MOST_CUT)
    yield from _unknown(tokens, tokenizer)
    lost, words = tokenizer.unreached(), tokenizer.vocab_size
    if lost >= MOST_UNREACHED * words:
        what = "of the vocabulary have capitals, but the tokenizer lower-cases texts"
        fix = (
            "do_lower_case: false in tokenizer_config.json, if the model is a cased one"
        )
        yield from _counted(lost, words, "words", what, fix)


def _counted(
    count: int, whole: int, noun: str, what: str, fix: str, most: float = 0.0
) -> Iterator[str]:
    """Yield a notice of so many of all, if any; a warning from the share ``most`` on.

    >>> [*_counted(3, 40, "texts", "are cut", "shorten them", 0.1)]
    ['3 of 40 texts (7.5 %) are cut']
    """
    if count:
        note = f"{count:,} of {whole:,} {noun} ({100 * count / whole:.3g} %) {what}"
        yield f"{note}\nfix: {fix}" if count >= most * whole else note


def _class_notices(task: Task) -> Iterator[str]:
    """Yield what classes have no training example, and parts of one class alone."""
    parts = {"training": task.train, "dev": task.dev}
    for name, part in parts.items() if len(task.labels) > 1 else ():
        if part.labels is None:
            continue
        counts = np.bincount(part.labels, minlength=len(task.labels))
        none = [repr(task.labels[i]) for i in np.flatnonzero(counts == 0)]
        fix = f"add {name} examples of the others"
        if len(none) == len(task.labels) - 1:
            only = task.labels[int(counts.argmax())]
            yield f"all {len(part):,} {name} examples are {only!r}\nfix: {fix}"
        elif none and name == "training":
            what = f"have no training example: {', '.join(none[:8])}"
            fix = "add examples of them, or leave these classes out"
            yield from _counted(len(none), len(task.labels), "classes", what, fix)


def _shared(task: Task) -> Iterator[str]:
    """Yield how many dev examples training has shown."""
    shown = set(zip(*task.train.texts, strict=True))
    both = sum(row in shown for row in zip(*task.dev.texts, strict=True))
    fix = "take them out of one of the two: they raise the scores"
    count, what = len(task.dev), "are in train as well"
    yield from _counted(both, count, "dev examples", what, fix, MOST_SHARED)


def _unknown(tokens: Sequence[Tokens], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield how many texts, and how many tokens, the tokenizer does not know."""
    marks = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id} - {None}
    alone = unknown = words = 0
    for part in tokens:
        inside = ~np.isin(part.ids, [*marks])
        strange = part.ids == tokenizer.unk_id
        known = np.logical_or.reduceat(inside & ~strange, part.offsets[:-1])
        alone += int(np.sum(~known))
        unknown, words = unknown + int(strange.sum()), words + int(inside.sum())
    fix = "look at these texts, or give a teacher of their language"
    count = sum(map(len, tokens))
    yield from _counted(alone, count, "texts", "are [UNK] alone", fix, MOST_UNKNOWN)
    if unknown >= MOST_UNKNOWN_TOKENS * words:
        yield from _counted(unknown, words, "tokens", "are [UNK]", fix)
