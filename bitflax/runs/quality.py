"""Whether a run's scores are good: against chance, a linear model, and once packed.

"99 % of the teacher's score" says little where chance has nearly that score too. So
beside it stands the share of what lies above chance,
``(student - chance) / (teacher - chance)``.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence

from bitflax import manifests, training
from bitflax.data import Baseline, measure_baselines
from bitflax.errors import DamagedFile
from bitflax.runs.experiment import Experiment
from bitflax.runs.report import Row

MOST_MOVED = 0.01
"""The share of labels that packing may change without a warning."""
_FRACTIONS = ("accuracy", "f1_accuracy", "agreement")
"""Metrics whose standard error is that of a share, ``sqrt(p (1 - p) / n)``."""


@dataclasses.dataclass(frozen=True)
class Judge:
    """What a run's scores are held against.

    Attributes:
      baselines: the majority class or the mean, and a linear model; none where nothing
        has labels.
      metric: what all of them are.
      examples: how many the scores were measured on.
      ready: whether the teacher came fine-tuned, and is not fine-tuned here.
    """

    baselines: tuple[Baseline, ...] = ()
    metric: str = "accuracy"
    examples: int = 1
    ready: bool = False

    @property
    def chance(self) -> float | None:
        """The majority class's score; 0 where its metric has none; None: unknown."""
        return (self.baselines[0].score or 0.0) if self.baselines else None

    def at_chance(self, score: float | None) -> bool:
        """Whether a score is no more than a standard error above chance.

        >>> judge = Judge((Baseline("majority class", 0.527),), examples=277)
        >>> judge.at_chance(0.545), judge.at_chance(0.61)
        (True, False)
        """
        if self.chance is None or score is None:
            return False
        error = 1.0
        if self.metric in _FRACTIONS:
            error = math.sqrt(self.chance * (1 - self.chance))
        # Written so that NaN is at chance too.
        return not score > self.chance + error / math.sqrt(self.examples)

    def judged(self, rows: Sequence[Row]) -> list[Row]:
        """Return the rows with the share above chance that each keeps (``above``).

        Where the teacher itself is at chance, no row has a share.

        >>> judge = Judge((Baseline("majority class", 0.5),), examples=400)
        >>> [row.above for row in judge.judged([Row("t", 0.75), Row("s", 0.625)])]
        [1.0, 0.5]
        """
        chance = self.chance
        if chance is None or not rows:
            return [*rows]
        teacher = rows[0].score
        if self.at_chance(teacher):
            return [dataclasses.replace(row, kept=None, above=None) for row in rows]

        def above(score: float | None) -> float | None:
            if score is None or teacher is None:
                return None
            return (score - chance) / (teacher - chance)

        return [dataclasses.replace(row, above=above(row.score)) for row in rows]

    def warnings(
        self, rows: Sequence[Row], moved: tuple[int, int] = (0, 0)
    ) -> Iterator[str]:
        """Yield what is wrong with the scores, and which settings to change (``fix:``).

        Args:
          rows: the teacher first.
          moved: how many labels packing changed, and of how many.
        """
        yield from self._of_teacher(rows[0].score)
        yield from self._of_students(rows)
        count, whole = moved
        if count > MOST_MOVED * whole:
            share = f"{count} of {whole} labels ({100 * count / whole:.1f} %)"
            fix = "--set rest=float16, or rest=float32, which rounds nothing more"
            yield f"packing changes {share}\nfix: {fix}"

    def _of_students(self, rows: Sequence[Row]) -> Iterator[str]:
        """Yield a warning where students have learned too little of a good teacher."""
        low = [row for row in rows[1:] if self.at_chance(row.score)]
        if not low or self.at_chance(rows[0].score):
            return
        names = ", ".join(f"{row.name} ({row.score:.4f})" for row in low)
        problem = f"no better than the {self.baselines[0].name} ({self.chance:.4f})"
        name = rows[-2].name if low[0].name == "packed" else low[0].name
        place = f"stages.{name}"
        fix = f"raise {place}.epochs (or .steps) or {place}.optim.lr, or take more "
        yield f"{problem}: {names}\nfix: {fix}layers"

    def _of_teacher(self, score: float | None) -> Iterator[str]:
        """Yield a warning where the teacher has learned too little."""
        if score is None or not self.baselines:
            return
        constant, linear = self.baselines
        fix = "raise teacher.epochs, halve or double teacher.optim.lr, or add examples"
        if self.ready:
            fix = "give a teacher that was fine-tuned for longer, or on more examples"
        if linear.score is not None and not score >= linear.score:
            problem = f"the teacher scores {score:.4f}, under the {linear.score:.4f} "
            yield f"{problem}of {linear.name} on the same examples\nfix: {fix}"
        elif self.at_chance(score):
            problem = f"the teacher scores {score:.4f}, no better than the "
            yield f"{problem}{constant.name} ({self.chance:.4f})\nfix: {fix}"


def make_judge(experiment: Experiment) -> Judge:
    """Return what a run's scores are held against; baselines are measured once."""
    data = experiment.teacher_data
    if data is None or data.task.train.labels is None or data.task.dev.labels is None:
        return Judge()
    found = training.broadcast(lambda: _kept_baselines(experiment))
    ready = experiment.recipe.teacher.folder is not None
    baselines = tuple(Baseline(*each) for each in found)
    return Judge(baselines, data.metric, len(data.task.dev), ready)


def _kept_baselines(experiment: Experiment) -> list[list]:
    """Return the baselines that the run's cache holds; measure them if it has none."""
    assert experiment.teacher_data is not None
    task, path = experiment.teacher_data.task, experiment.run.cache / "baselines.json"
    try:
        kept = manifests.read_sealed(path) if path.is_file() else {}
    except DamagedFile:
        kept = {}
    of = {"data": task.sha256, "metric": task.metric}
    if {name: kept.get(name) for name in of} != of:
        found = [list(each) for each in measure_baselines(task)]
        kept = {**of, "baselines": found}
        manifests.write_sealed(path, kept)
    return kept["baselines"]
