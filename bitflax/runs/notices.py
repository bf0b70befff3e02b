"""What a person should know of their data before anything is trained, with counts.

A notice with a mend (``fix:``) is a warning; what nobody need change has none.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from bitflax.data import Task, Tokenizer, Tokens

MOST_CUT = 0.1
MOST_UNKNOWN = 0.01
MOST_UNKNOWN_TOKENS = 0.02
MOST_SHARED = 0.05
MOST_CONTRADICTED = 0.05
MOST_UNREACHED = 0.01
"""Shares from which on a notice is a warning: GLUE's tasks at 128 tokens lie below."""


def data_notices(
    task: Task,
    tokens: Sequence[Tokens],
    tokenizer: Tokenizer,
    positions: int,
    max_length: int,
    batch_size: int,
) -> Iterator[str]:
    """Yield what is to be said of a task's examples and of how they are read.

    Args:
      task: as the teacher numbers its classes.
      tokens: of its training examples and of its dev examples.
      tokenizer: the teacher's.
      positions: how many its model has.
      max_length: where texts were cut.
      batch_size: the largest of all stages.
    """
    yield from _class_notices(task)
    shown = set(zip(*task.train.texts, strict=True))
    both = sum(row in shown for row in zip(*task.dev.texts, strict=True))
    fix, size = "take them out of one of the two: they raise the scores", len(task.dev)
    what = "dev examples", "are in train as well"
    yield from _counted(both, size, *what, fix, MOST_SHARED)
    yield from _contradictions(task)
    rows = len(task.train)
    if rows < batch_size:
        few = f"{rows} training examples are fewer than a batch of {batch_size}"
        fix = f"add examples, or --set data.batch_size={1 << (rows.bit_length() - 1)}"
        yield f"{few}\nfix: {fix}"
    cut, count = sum(part.cut for part in tokens), sum(map(len, tokens))
    fix = f"raise data.max_length (up to {positions}, the model's positions)"
    what = "texts", f"are cut at {max_length} tokens"
    yield from _counted(cut, count, *what, fix, MOST_CUT)
    yield from _unknown(tokens, tokenizer)
    lost, words = tokenizer.unreached(), tokenizer.vocab_size
    if lost is None:
        texts = [t for part in (task.train, task.dev) for x in part.texts for t in x]
        lost, words = sum(text != text.lower() for text in texts), len(texts)
        what = "texts", "have capitals, which no word of the tokenizer has"
        fix = "in tokenizer_config.json, do_lower_case: true, if the model is uncased"
        yield from _counted(lost, words, *what, fix)
    elif lost >= MOST_UNREACHED * words:
        what = "words", "have capitals, but the tokenizer lower-cases texts"
        fix = "in tokenizer_config.json, do_lower_case: false, if the model is cased"
        yield from _counted(lost, words, *what, fix)


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
    """Yield what classes have no training example, and parts of one label alone."""
    parts = {"training": task.train, "dev": task.dev}
    for name, part in parts.items() if task.regression else ():
        if part.labels is not None and len({*part.labels.tolist()}) == 1:
            all_of = f"all {len(part):,} {name} examples have the label"
            yield f"{all_of} {part.labels[0]:g}\nfix: add {name} examples of others"
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


def _contradictions(task: Task) -> Iterator[str]:
    """Yield how many training examples have one text and several labels."""
    said: dict[tuple[str, ...], set[float]] = {}
    labels = () if task.train.labels is None else task.train.labels.tolist()
    rows = [*zip(*task.train.texts, strict=True)][: len(labels)]
    for row, label in zip(rows, labels, strict=True):
        said.setdefault(row, set()).add(label)
    odd = sum(len(said[row]) > 1 for row in rows)
    what = "training examples", "have a text that stands with another label too"
    fix = "give a text one label"
    yield from _counted(odd, len(rows), *what, fix, MOST_CONTRADICTED)


def _unknown(tokens: Sequence[Tokens], tokenizer: Tokenizer) -> Iterator[str]:
    """Yield how many tokens the tokenizer does not know, and texts of no other."""
    marks = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id} - {None}
    alone = unknown = known = 0
    for part in tokens:
        missing = part.ids == (-1 if tokenizer.unk_id is None else tokenizer.unk_id)
        knows = ~missing & ~np.isin(part.ids, [*marks])
        alone += int(np.sum(~np.logical_or.reduceat(knows, part.offsets[:-1])))
        unknown, known = unknown + int(missing.sum()), known + int(knows.sum())
    fix = "look at these texts, or give a teacher of their language"
    what = (
        unknown + known,
        "tokens",
        "are [UNK]: words that the teacher's tokenizer lacks",
    )
    yield from _counted(unknown, *what, fix, MOST_UNKNOWN_TOKENS)
    what = sum(map(len, tokens)), "texts", "are [UNK] alone"
    yield from _counted(alone, *what, fix, MOST_UNKNOWN)
