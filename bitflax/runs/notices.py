"""Notices about a task's data, shown before anything is trained.

A notice with a ``fix:`` is a warning; one without needs no change.
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
"""A larger share is a warning; GLUE's tasks, at 128 tokens, have smaller ones."""


def data_notices(
    task: Task,
    tokens: Sequence[Tokens],
    tokenizer: Tokenizer,
    positions: int,
    max_length: int,
    batch_size: int,
    ready: bool = False,
) -> Iterator[str]:
    """Yield a notice for each thing that is odd about a task's data.

    Args:
      task: as the teacher numbers its classes.
      tokens: of its training examples and of its dev examples.
      tokenizer: the teacher's.
      positions: how many the teacher's model has.
      max_length: the number of tokens at which texts were cut.
      batch_size: the largest of all stages.
      ready: whether the teacher came fine-tuned.
    """
    if ready and task.split_off and task.dev.labels is not None:
        seen = "if the teacher has learned the examples that were split off to measure "
        yield f"{seen}on, its score is too high: name others by data.dev"
    yield from _class_notices(task)
    yield from _shared(task)
    yield from _contradictions(task)
    rows = len(task.train)
    if rows < batch_size:
        few = f"{rows} training examples are fewer than a batch of {batch_size}"
        fix = f"add examples, or --set data.batch_size={1 << (rows.bit_length() - 1)}"
        yield f"{few}\nfix: {fix}"
    cut, count = sum(part.cut for part in tokens), sum(map(len, tokens))
    what = f"are cut at {max_length} tokens"
    fix = f"raise data.max_length (up to {positions}, the model's positions)"
    yield from _counted(cut, count, "texts", what, fix, MOST_CUT)
    yield from _unknown(tokens, tokenizer)
    yield from _capitals(task, tokenizer)


def _counted(
    count: int, whole: int, noun: str, what: str, fix: str, most: float = 0.0
) -> Iterator[str]:
    """Yield a notice that ``count`` of ``whole`` are so; none where ``count`` is 0.

    It is a warning from a share of ``most`` on.

    >>> [*_counted(3, 40, "texts", "are cut", "shorten them", 0.1)]
    ['3 of 40 texts (7.5 %) are cut']
    """
    if count:
        note = f"{count:,} of {whole:,} {noun} ({100 * count / whole:.3g} %) {what}"
        yield f"{note}\nfix: {fix}" if count >= most * whole else note


def _shared(task: Task) -> Iterator[str]:
    """Yield how many dev examples are training examples too."""
    shown = set(zip(*task.train.texts, strict=True))
    both = sum(row in shown for row in zip(*task.dev.texts, strict=True))
    what, fix = "are in train as well", "remove them from one of the two: they raise "
    fix += "the scores"
    yield from _counted(both, len(task.dev), "dev examples", what, fix, MOST_SHARED)


def _capitals(task: Task, tokenizer: Tokenizer) -> Iterator[str]:
    """Yield how much is lost where tokenizer and vocabulary differ about capitals."""
    lost = tokenizer.unreached()
    if lost is None:
        texts = [t for part in (task.train, task.dev) for x in part.texts for t in x]
        count = sum(text != text.lower() for text in texts)
        what = "have capitals, which no word of the tokenizer has"
        fix = "in tokenizer_config.json, do_lower_case: true, if the model is uncased"
        yield from _counted(count, len(texts), "texts", what, fix)
    elif lost >= MOST_UNREACHED * tokenizer.vocab_size:
        what = "have capitals, but the tokenizer lower-cases texts"
        fix = "in tokenizer_config.json, do_lower_case: false, if the model is cased"
        yield from _counted(lost, tokenizer.vocab_size, "words", what, fix)


def _class_notices(task: Task) -> Iterator[str]:
    """Yield which classes have no training example, and which part has one label."""
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
    """Yield how many tokens are unknown, and how many texts have no known token."""
    marks = {tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id} - {None}
    alone = unknown = known = 0
    for part in tokens:
        missing = part.ids == (-1 if tokenizer.unk_id is None else tokenizer.unk_id)
        knows = ~missing & ~np.isin(part.ids, [*marks])
        alone += int(np.sum(~np.logical_or.reduceat(knows, part.offsets[:-1])))
        unknown, known = unknown + int(missing.sum()), known + int(knows.sum())
    fix = "look at these texts, or give a teacher of their language"
    what, count = "are [UNK]: words that the teacher's tokenizer lacks", unknown + known
    yield from _counted(unknown, count, "tokens", what, fix, MOST_UNKNOWN_TOKENS)
    what, count = "are [UNK] alone", sum(map(len, tokens))
    yield from _counted(alone, count, "texts", what, fix, MOST_UNKNOWN)
