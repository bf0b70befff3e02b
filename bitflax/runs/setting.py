"""What all stages of a run share."""

import dataclasses
import functools

import jax

from bitflax.data.text import Tokenizer
from bitflax.errors import ConfigError
from bitflax.model import pretrained
from bitflax.recipe.recipe import Recipe, Stage
from bitflax.runs import initialization
from bitflax.runs.experiment import Lesson, Model
from bitflax.runs.folder import RunFolder
from bitflax.runs.general import General


@dataclasses.dataclass
class Setting:
    """What all stages of a run share.

    Attributes:
      recipe: the recipe.
      run: the run folder, held.
      mesh: all devices.
      tokenizer: the teacher's.
      teacher: the teacher, or what it will be fine-tuned from.
      task: the task, as its stages see it; None where the recipe has none.
      plain: the task as its teacher is fine-tuned on it: not augmented.
    """

    recipe: Recipe
    run: RunFolder
    mesh: jax.sharding.Mesh
    tokenizer: Tokenizer
    teacher: Model
    task: Lesson | None = None
    plain: Lesson | None = None

    @property
    def lesson(self) -> Lesson:
        """The task, where one must be there."""
        if self.task is None:
            raise ConfigError("Recipe.data", "no task", fix="give data with a task")
        return self.task

    def lesson_of(self, stage: Stage) -> Lesson | General:
        """Return what a stage learns from: the task, or its corpus."""
        return self.lesson if stage.corpus is None else self.general

    @functools.cached_property
    def general(self) -> General:
        """What stages with a corpus learn from, and the pretrained model that teaches.

        Its head is the teacher's, so that a student of it fits the task.
        """
        teacher, taught = self.teacher, self.recipe.teacher
        if taught.folder is not None and taught.pretrained is not None:
            key = jax.random.key(self.recipe.seed)
            teacher = initialization.loaded(taught.pretrained, teacher.config, key)
            folder = pretrained.resolve(taught.pretrained)
            own = Tokenizer.from_folder(folder)
            if own.to_json() != self.tokenizer.to_json():
                raise ConfigError(
                    folder,
                    f"its tokenizer is not that of {taught.folder}",
                    fix="give Teacher.pretrained that the folder was fine-tuned from",
                )
        return General(self.run, self.mesh, self.recipe.seed, self.tokenizer, teacher)
