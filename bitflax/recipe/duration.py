"""How long and how fast a training goes: by the recipe, or as suits the data."""

import dataclasses

from bitflax.quantization import Rules, bits_of
from bitflax.recipe.schema import Stage, Teacher
from bitflax.types import Optim, check_count

EPOCHS, LEAST, MOST_EPOCHS = 3, 750, 40
"""Of 32 bits; 1 or 2 bits have twice the epochs, and four times the other two."""
STEPS_A_CLASS, CLASS_EPOCHS = 20, 8
"""Of more than 2 bits, where a classifier of many classes is learned: at least so many
steps for each class, as far as so many epochs go."""
TWO_CLASSES_LR, LR = 1e-4, 2e-4
"""Of a teacher whose recipe leaves it open."""


def default_steps(steps_per_epoch: int, rules: Rules = (), classes: int = 0) -> int:
    """Return the steps of a training for which no length is given.

    With ``n`` steps an epoch, ``min(max(3 n, 750, min(20 classes, 8 n)), 40 n)`` in
    FP32, ``min(max(6 n, 3000), 160 n)`` with 1 or 2 bits: a few epochs where they are
    many steps; where they are few, as many steps as a new classifier needs, more from
    38 classes on, or as 1-bit weights do; but no more epochs than help.

    Args:
      steps_per_epoch: how many batches show every example once.
      rules: the stage's; ``()`` is FP32, as the teacher.
      classes: how many the task has; 0: a real number.

    Raises:
      ValueError: ``steps_per_epoch`` or ``classes`` is not whole, or too small.

    Source: measured on 539, 2,002 and 8,008 examples of 77 classes and 8,222 of 21; see
    the tables in ``bitflax/docs/results.md``. Nothing was measured with more classes.

    >>> from bitflax.quantization import xtc_1bit
    >>> [default_steps(n) for n in (16, 63, 257, 2105)]
    [640, 750, 771, 6315]
    >>> [default_steps(n, classes=77) for n in (16, 63, 126, 257, 2105)]
    [640, 750, 1008, 1540, 6315]
    >>> [default_steps(n, xtc_1bit(), 1000) for n in (16, 63, 257, 2105)]
    [2560, 3000, 3000, 12630]
    """
    check_count("steps_per_epoch", steps_per_epoch)
    check_count("classes", classes, least=0)
    bits = min((bits_of(quantizer) or 1 for _, quantizer in rules), default=32)
    longer, times = (2, 4) if bits <= 2 else (1, 1)
    least = times * LEAST
    if bits > 2:
        least = max(least, min(STEPS_A_CLASS * classes, CLASS_EPOCHS * steps_per_epoch))
    steps = max(longer * EPOCHS * steps_per_epoch, least)
    return min(steps, times * MOST_EPOCHS * steps_per_epoch)


def planned_steps(
    part: Stage | Teacher,
    steps_per_epoch: int,
    own: int | None = None,
    classes: int = 0,
) -> int:
    """Return the number of steps of a stage's or a teacher's training.

    Its own ``steps`` come first, then its ``epochs``, then the default.

    Args:
      part: the stage, or the teacher that is fine-tuned.
      steps_per_epoch: how many batches show every example once.
      own: the same without augmentation, from which the default is computed; None:
        there is no augmentation.
      classes: how many the task has; 0: a real number.

    >>> planned_steps(Teacher(epochs=2), 100), planned_steps(Teacher(), 1200, own=300)
    (200, 900)
    """
    if part.steps is not None:
        return part.steps
    if part.epochs is not None:
        return part.epochs * steps_per_epoch
    rules = part.rules if isinstance(part, Stage) else ()
    return default_steps(own or steps_per_epoch, rules, classes)


def planned_optim(taught: Teacher, classes: int) -> Optim:
    """Return the optimizer's settings of a teacher's fine-tuning.

    Where it has no ``lr``, that is 1e-4 for two classes, else 2e-4.

    Args:
      taught: the teacher.
      classes: how many the task has; 0: a real number.

    Source: MiniLM with 1e-4 in place of 2e-4, ``bitflax/docs/results.md``: better on
    MRPC, CoLA and SST-2, which have two classes; worse on ICD-10-CM, which has 21; the
    same on STS-B's numbers. Each difference is within two errors of a score.

    >>> [planned_optim(Teacher(optim=Optim(lr=None)), n).lr for n in (0, 2, 21)]
    [0.0002, 0.0001, 0.0002]
    >>> planned_optim(Teacher(optim=Optim(lr=5e-5)), 2).lr
    5e-05
    """
    if taught.optim.lr is not None:
        return taught.optim
    rate = TWO_CLASSES_LR if classes == 2 else LR
    return dataclasses.replace(taught.optim, lr=rate)
