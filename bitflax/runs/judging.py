"""How much a model's heads and neurons matter for a task, by some of its examples."""

import jax
import jax.numpy as jnp

from bitflax.distillation import losses, width
from bitflax.model.apply import bert
from bitflax.runs.experiment import Lesson, Model
from bitflax.types import Batch, Mean, Params

BATCHES = 16


def judge(lesson: Lesson, whole: Model) -> width.Importance:
    """Return the importance of a fine-tuned model's heads and neurons.

    The loss is that of the labels; where the data have none, that of the model's own
    predictions.

    Args:
      lesson: the task.
      whole: the model, before its width is cut.
    """
    small = lesson.small(whole)
    apply, config = bert(small.config), small.config
    batches = lesson.batches(0)
    label = losses.label_mse if config.regression else losses.label_cross_entropy

    def loss(params: Params, batch: Batch) -> Mean:
        out = apply(params, batch)
        if "labels" not in batch:
            said = jax.lax.stop_gradient(out.logits)
            # Its own number would leave no gradient; any other gives the number's.
            own = said[:, 0] + 1 if config.regression else jnp.argmax(said, axis=-1)
            batch = {**batch, "labels": own}
        return label(out, None, batch)

    count = min(BATCHES, batches.steps_per_epoch)
    some = (batches.batch(i) for i in range(count))
    return width.importance(loss, small.params, some, config.num_attention_heads)
