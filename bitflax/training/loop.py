"""One training, from its first step or from where it stopped, to its last."""

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np

from bitflax.errors import Diverged
from bitflax.training import (
    ahead,
    checkpoints,
    device_choices,
    held_signals,
    hosts,
    lost_process,
)
from bitflax.types import Mean, Params, TrainState

AGREE_SECONDS = 1.0
LOG_EVERY = 20
SAVE_SECONDS = 60.0

Scores = dict[str, float]
_NOTHING: dict[str, Any] = {"seconds": 0.0, "scores": {}}


class Pauses:
    """Tells after each step whether to save and whether to stop.

    Args:
      signals: this process's.
      before: seconds of training in earlier runs.
    """

    def __init__(self, signals: held_signals.Signals, before: float = 0.0):
        self.signals, self._before = signals, before
        self._began = self._saved = time.monotonic()
        self._next, self._told = 0, False
        self._last = (0, 0.0)

    @property
    def seconds(self) -> float:
        """Seconds of training over all runs."""
        return self._before + time.monotonic() - self._began

    def at(self, step: int, last: bool) -> tuple[bool, int | None]:
        """Return whether to save after a step, and the signal to stop for, or None.

        Args:
          step: its number; all processes ask after every step.
          last: whether it is the last one.
        """
        if jax.process_count() == 1:
            return self._due(), self.signals.caught
        if step < self._next and not last:
            return False, None
        if self.signals.caught is not None and not self._told:
            hosts.raise_flag(self.signals.caught)
            self._told = True
        said = hosts.broadcast(lambda: self._decide(step))
        self._next = step + said["steps"]
        return said["save"], said["stop"]

    def _due(self) -> bool:
        """Whether it is time to save; then the time begins anew."""
        if time.monotonic() - self._saved < SAVE_SECONDS:
            return False
        self._saved = time.monotonic()
        return True

    def _decide(self, step: int) -> dict[str, Any]:
        now, (before, then) = time.monotonic(), self._last
        self._last = (step, now)
        pace = (now - then) / max(step - before, 1)
        steps = int(AGREE_SECONDS / max(pace, 1e-9))
        return {
            "save": self._due(),
            "stop": hosts.take_flag(),
            "steps": max(1, min(LOG_EVERY, steps)),
        }


@runtime_checkable
class Journal(Protocol):
    """Where a training writes what a person wants to see: a run's folder is one."""

    def log(self, line: Mapping[str, Any]) -> None:
        """Keep a line of numbers."""

    def rewind(self, stage: str, step: int | None = None) -> None:
        """Drop a stage's lines after ``step`` (None: all): they come again."""

    def flush(self) -> None:
        """Have the lines on the disk, whatever happens to the process or it."""

    def progress(self, total: int, desc: str, initial: int = 0) -> Any:
        """Return a bar: ``update(number, values, more)``, ``doing``, ``write``."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What ``train`` needs to know.

    Attributes:
      name: as in the log and the folder: ``"1-fp32"``.
      folder: of the stage.
      steps: how many there are in all.
      batch: the batch of a step, counted from 0: what makes a resume exact. NumPy's
        arrays will do: steps are sent ahead of the device, up to ``LOG_EVERY``, so that
        it takes a batch while it computes the steps before. To make one and to send
        its step took a processor 1.5 ms (32 x 128, six layers), so a thread or a second
        buffer for that would gain nothing; a teacher's kept hidden states and scores
        take 10 ms more, and are kept where a step takes as long.
      step: ``(state, batch) -> (state, metrics)``, compiled; the state is donated.
      evaluate: ``params -> scores``; the entry ``metric`` is compared.
      metric: the main metric's name.
      eval_every: in steps.
      rate: the learning rate of a step, for the log.
      keep: ``"last"`` or ``"best"``.
      patience: after so many evaluations in a row that are not better than the best,
        training ends, and the best is kept; None: it does not.
      watch: what the log's line of an evaluation tells of the parameters besides.
      place: how a person names the stage in an override: ``"stages.fp32"``.
      programs: what steps and evaluations call, in the order of their first calls;
        asked for where programs are compiled ahead.
    """

    name: str
    folder: Path
    steps: int
    batch: Callable[[int], Mapping[str, Any]]
    step: Callable[..., tuple[TrainState, dict[str, Mean]]]
    evaluate: Callable[[Params], Scores]
    metric: str
    eval_every: int
    rate: Callable[[int], Any]
    keep: str
    place: str
    patience: int | None = None
    watch: Callable[[Params], Mapping[str, Any]] | None = None
    programs: Callable[[], Iterable[ahead.Program]] = tuple

    @property
    def keeps_best(self) -> bool:
        """Whether the best parameters are the result."""
        return self.keep == "best" or self.patience is not None


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training ends with; ``seconds`` counts all its runs."""

    params: Params
    scores: Scores
    seconds: float
    steps: int


def train(work: Training, state: TrainState, run: Journal) -> Trained:
    """Train to the last step, from the newest checkpoint where there is one.

    Logs the losses' means over ``LOG_EVERY`` steps and every evaluation; saves about
    once a minute, and when SIGINT or SIGTERM asks to stop, which then is delivered: to
    all processes of a run, whichever was asked.

    Raises:
      Diverged: a loss is no finite number.
      KeyboardInterrupt: asked to stop; everything is saved.
    """
    folder = work.folder / "checkpoints"
    with checkpoints.Checkpoints(folder) as saved, held_signals.Signals() as signals:
        state, extra = saved.restore(state) or (state, _NOTHING)
        first = int(state.step)
        run.rewind(work.name, first)
        pauses = Pauses(signals, extra["seconds"])
        threads = device_choices.compile_threads()
        with (
            run.progress(work.steps, work.name, first) as bar,
            ahead.Compilation(work.programs() if threads else (), threads) as programs,
        ):
            patience = Patience(work.patience, *extra.get("patience", ()))
            steps = _Steps(work, run, bar, saved, pauses, patience, programs)
            state, scores = steps.take(
                state, first, extra["scores"], extra.get("waiting", [])
            )
        taken = int(state.step)
        run.flush()
        if work.keeps_best and (best := saved.restore(state, best=True)):
            state, scores = best[0], best[1]["scores"]
    return Trained(state.params, scores, pauses.seconds, taken)


@dataclasses.dataclass
class Patience:
    """Counts the evaluations in a row that were not better than the best one.

    >>> patience = Patience(2)
    >>> [patience.ends(score) for score in (0.5, 0.6, 0.6, 0.4)]
    [False, False, False, True]
    """

    most: int | None
    best: float | None = None
    waited: int = 0

    @property
    def over(self) -> bool:
        """Whether there were too many."""
        return self.most is not None and self.waited >= self.most

    def ends(self, score: float) -> bool:
        """Whether this evaluation is one too many."""
        better = score > (-math.inf if self.best is None else self.best)
        self.waited = 0 if better else self.waited + 1
        self.best = score if better else self.best
        return self.over


@dataclasses.dataclass
class _Steps:
    """The steps of a training that are left, and what has to happen between them."""

    work: Training
    run: Journal
    bar: Any
    saved: checkpoints.Checkpoints
    pauses: Pauses
    patience: Patience
    programs: ahead.Compilation

    def take(
        self, state: TrainState, first: int, scores: Scores, waiting: list[Any]
    ) -> tuple[TrainState, Scores]:
        """Run the steps after ``first``; return the last state and its scores.

        ``waiting`` is what the steps before it lost, and no line has told yet.
        """
        work = self.work
        # CPU devices that run ahead of each other can wait for each other for good.
        many = jax.default_backend() == "cpu" and jax.device_count() > 1
        compiled = set()
        for number in range(first + 1, 0 if self.patience.over else work.steps + 1):
            batch = work.batch(number - 1)
            last, told = number == work.steps, number % LOG_EVERY == 0
            scored = number % work.eval_every == 0 or last
            stop = self._wait_for_programs(None if scored else batch)
            if stop is not None:
                if number > 1:
                    self._save(number - 1, state, scores, waiting)
                self._stop(number - 1, stop)
            shapes = tuple((name, np.shape(x)) for name, x in batch.items())
            if shapes not in compiled and not self.programs.count:
                compiled.add(shapes)
                self.bar.doing("compiling", once=True)
            state, metrics = work.step(state, batch)
            if many:
                jax.block_until_ready(metrics)
            # Read before the next step was sent, numbers would have the device wait.
            if (number - 1) % LOG_EVERY == 0:
                self._log(number - 1, waiting)
            waiting.append(metrics)
            self.bar.update(number, {})
            self.programs.begin_next()
            if scored:
                if told or last:
                    self._log(number, waiting)
                scores = self._score(number, state)
                last = self._ends(number, scores) or last
                if last:
                    self._log(number, waiting)
            better = scored and work.keeps_best
            due, stop = self.pauses.at(number, last)
            if better or due or stop:
                metric = scores.get(work.metric) if better else None
                self._save(number, state, scores, waiting, metric)
            if stop:
                self._stop(number, stop)
            if last:
                break
        return state, scores

    def _wait_for_programs(self, batch: Mapping[str, Any] | None) -> int | None:
        """Wait for a batch's program, None: for all; return a signal that came first.

        XLA cannot be broken off, so that the step would end a minute later.
        """
        for made, of in self.programs.wait(batch):
            if (stop := self.pauses.signals.caught) is not None:
                return stop
            self.bar.doing(f"compiling {made} of {of}", once=True)
        return None

    def _save(
        self,
        number: int,
        state: TrainState,
        scores: Scores,
        waiting: list[Any],
        metric: float | None = None,
    ) -> None:
        if number % LOG_EVERY == 0:
            self._log(number, waiting)
        # A state that diverged is not worth saving.
        _means(self.work, number, waiting)
        waiting[:] = _numbers(waiting)
        extra = {"seconds": self.pauses.seconds, "scores": scores}
        extra["waiting"] = list(waiting)
        extra["patience"] = [self.patience.best, self.patience.waited]
        self.run.flush()  # no step without the lines before it
        self.saved.save(number, state, extra, metric)

    def _ends(self, number: int, scores: Scores) -> bool:
        """Whether the dev score has not risen for too long."""
        work, ends = self.work, self.patience.ends(scores[self.work.metric])
        if ends and number < work.steps:
            problem = f"the last {work.patience} evaluations were not better"
            self.bar.write(f"ends at step {number} of {work.steps}: {problem}")
        return ends

    def _log(self, number: int, waiting: list[Any]) -> None:
        """Tell the means of the steps up to this one that no line has told yet."""
        if not waiting:
            return
        values = _means(self.work, number, waiting)
        waiting.clear()
        rate = float(self.work.rate(number - 1))
        name = self.work.name
        self.run.log({"stage": name, "step": number, "loss": values, "lr": rate})
        self.bar.update(number, {"loss": values["loss"]}, _without(values, "loss"))

    def _score(self, number: int, state: TrainState) -> Scores:
        self.bar.doing("scoring dev")
        scores, metric = self.work.evaluate(state.params), self.work.metric
        seen = self.work.watch(state.params) if self.work.watch else {}
        line = {"stage": self.work.name, "step": number, "dev": scores}
        self.run.log({**line, **seen})
        self.bar.update(number, {f"dev {metric}": scores[metric]})
        return scores

    def _stop(self, number: int, stop: int) -> None:
        self.saved.wait()
        if number:
            said = "the same command goes on from here"
            self.bar.write(f"saved at step {number}; {said}")
        lost_process.stop_together()
        self.pauses.signals.deliver(stop)


def _without(values: Scores, name: str) -> Scores:
    return {each: value for each, value in values.items() if each != name}


def _numbers(waiting: list[Any]) -> list[dict[str, float]]:
    """Return each step's loss parts as numbers, which JSON keeps to the last bit."""
    return [{n: float(m[n]) for n in m} for m in jax.device_get(waiting)]


def _means(work: Training, step: int, waiting: list[Any]) -> dict[str, float]:
    """Return the means of loss parts, which till then lie on the device."""
    host = _numbers(waiting)
    names = host[-1].keys() if host else ()
    values = {n: sum(m[n] for m in host) / len(host) for n in names}
    bad = [name for name, value in values.items() if not math.isfinite(value)]
    if bad:
        raise Diverged(
            work.name,
            f"{', '.join(bad)} became {values[bad[0]]} by step {step}",
            fix=f"a lower rate, --set {work.place}.optim.lr=..., and another --out",
        )
    return values
