"""How many steps a training has: the recipe's number, or one that suits the data."""

from bitflax.quantization import Rules, bits_of
from bitflax.types import check_count

EPOCHS, LEAST, MOST_EPOCHS = 3, 750, 40
"""Of 32 bits; 1 or 2 bits have twice the epochs, and four times the other two."""


def default_steps(steps_per_epoch: int, rules: Rules = ()) -> int:
    """Return the steps of a training for which no length is given.

    ``min(max(epochs x steps_per_epoch, least), most_epochs x steps_per_epoch)``: a few
    epochs where they are many steps; where they are few, as many steps as a new
    classifier needs, or as 1-bit weights do, which need four times as many; but no more
    epochs than help.

    Args:
      steps_per_epoch: how many batches show every example once.
      rules: the stage's; ``()`` is FP32, as the teacher.

    Source: measured on 539 and 2,002 examples of 77 classes and 8,222 of 21; see the
    tables in ``bitflax/docs/results.md``.

    >>> from bitflax.quantization import xtc_1bit
    >>> [default_steps(n) for n in (16, 63, 257, 2105)]
    [640, 750, 771, 6315]
    >>> [default_steps(n, xtc_1bit()) for n in (16, 63, 257, 2105)]
    [2560, 3000, 3000, 12630]
    """
    check_count("steps_per_epoch", steps_per_epoch)
    bits = min((bits_of(quantizer) or 1 for _, quantizer in rules), default=32)
    longer, times = (2, 4) if bits <= 2 else (1, 1)
    steps = max(longer * EPOCHS * steps_per_epoch, times * LEAST)
    return min(steps, times * MOST_EPOCHS * steps_per_epoch)


def planned_steps(
    steps: int | None,
    epochs: int | None,
    steps_per_epoch: int,
    rules: Rules = (),
    own: int | None = None,
) -> int:
    """Return the number of steps of a training.

    Args:
      steps: the recipe's, which come first.
      epochs: the recipe's, where it gives no steps.
      steps_per_epoch: how many batches show every example once.
      rules: the stage's.
      own: the same without augmentation, from which the default is computed; None:
        there is no augmentation.

    >>> planned_steps(None, 2, 100), planned_steps(None, None, 1200, own=300)
    (200, 900)
    """
    if steps is not None:
        return steps
    if epochs is not None:
        return epochs * steps_per_epoch
    return default_steps(own or steps_per_epoch, rules)
