"""One training, from its first step or from where it stopped, to its last."""

import contextlib
import dataclasses
import math
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from bitflax import checkpoints, runfolder
from bitflax.errors import Diverged
from bitflax.types import Mean, Params, TrainState

LOG_EVERY = 20
SAVE_SECONDS = 60.0

Scores = dict[str, float]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """What ``train`` needs to know.

    Attributes:
      name: as in the log and the folder: ``"1-fp32"``.
      folder: of the stage.
      steps: how many there are in all.
      batch: the batch of a step, counted from 0: what makes a resume exact.
      step: ``(state, batch) -> (state, metrics)``, compiled; the state is donated.
      evaluate: ``params -> scores``; the entry ``metric`` is compared.
      metric: the main metric's name.
      eval_every: in steps.
      rate: the learning rate of a step, for the log.
      keep: ``"last"`` or ``"best"``.
      place: how a person names the stage in an override: ``"stages.fp32"``.
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


@dataclasses.dataclass(frozen=True)
class Trained:
    """What a training ends with; ``seconds`` counts all its runs."""

    params: Params
    scores: Scores
    seconds: float


def train(work: Training, state: TrainState, run: runfolder.RunFolder) -> Trained:
    """Train to the last step, from the newest checkpoint where there is one.

    Logs the losses' means over ``LOG_EVERY`` steps and every evaluation; saves about
    once a minute, and when SIGINT or SIGTERM asks to stop, which then is delivered.

    Raises:
      Diverged: a loss is no finite number.
      KeyboardInterrupt: asked to stop; everything is saved.
    """
    folder = work.folder / "checkpoints"
    with checkpoints.Checkpoints(folder) as saved, _Signals() as signals:
        restored = saved.restore(state)
        extra = {"seconds": 0.0, "scores": {}}
        if restored is not None:
            state, extra = restored
        first = int(state.step)
        run.rewind(work.name, first)
        clock = _Clock(extra["seconds"])
        with run.progress(work.steps, work.name, first) as bar:
            steps = _Steps(work, run, bar, saved, signals, clock)
            state, scores = steps.take(state, first, extra["scores"])
        if work.keep == "best":
            best = saved.restore(state, best=True)
            if best is not None:
                state, scores = best[0], best[1]["scores"]
    return Trained(state.params, scores, clock.seconds)


@dataclasses.dataclass
class _Steps:
    """The steps of a training that are left, and what has to happen between them."""

    work: Training
    run: runfolder.RunFolder
    bar: Any
    saved: checkpoints.Checkpoints
    signals: "_Signals"
    clock: "_Clock"

    def take(
        self, state: TrainState, first: int, scores: Scores
    ) -> tuple[TrainState, Scores]:
        """Run the steps after ``first``; return the last state and its scores."""
        work, means = self.work, _Means()
        # Virtual devices that run ahead of each other can wait for each other for good.
        many = jax.default_backend() == "cpu" and jax.local_device_count() > 1
        for number in range(first + 1, work.steps + 1):
            state, metrics = work.step(state, work.batch(number - 1))
            if many:
                jax.block_until_ready(metrics)
            means.add(metrics)
            self.bar.update(number, {})
            last = number == work.steps
            if number % LOG_EVERY == 0 or last:
                self._log(number, means.read(work, number))
                means = _Means()
            scored = number % work.eval_every == 0 or last
            if scored:
                scores = self._score(number, state)
            better = scored and work.keep == "best"
            if better or self.signals.caught or self.clock.due():
                means.read(work, number)  # a state that diverged is not worth saving
                extra = {"seconds": self.clock.seconds, "scores": scores}
                metric = scores.get(work.metric) if better else None
                self.saved.save(number, state, extra, metric)
            if self.signals.caught:
                self._stop(number)
        return state, scores

    def _log(self, number: int, values: Scores) -> None:
        rate = float(self.work.rate(number - 1))
        name = self.work.name
        self.run.log({"stage": name, "step": number, "loss": values, "lr": rate})
        self.bar.update(number, values)

    def _score(self, number: int, state: TrainState) -> Scores:
        scores, metric = self.work.evaluate(state.params), self.work.metric
        self.run.log({"stage": self.work.name, "step": number, "dev": scores})
        self.bar.update(number, {metric: scores[metric]})
        return scores

    def _stop(self, number: int) -> None:
        self.saved.wait()
        self.bar.write(f"saved at step {number}; the same command goes on from here")
        self.signals.deliver()


class _Means:
    """Sums of loss parts on the device, read once every ``LOG_EVERY`` steps."""

    def __init__(self):
        self._waiting: list[dict[str, Mean]] = []

    def add(self, metrics: dict[str, Mean]) -> None:
        self._waiting.append(metrics)

    def read(self, work: Training, step: int) -> dict[str, float]:
        host = jax.device_get(self._waiting)
        names = host[-1].keys() if host else ()
        values = {n: sum(float(m[n]) for m in host) / len(host) for n in names}
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            raise Diverged(
                work.name,
                f"{', '.join(bad)} became {values[bad[0]]} by step {step}",
                fix=f"a lower rate, --set {work.place}.optim.lr=..., and another --out",
            )
        return values


class _Clock:
    """Seconds of training over all runs, and when the next checkpoint is due."""

    def __init__(self, before: float):
        self._before, self._began = before, time.monotonic()
        self._saved = self._began

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._began

    def due(self) -> bool:
        if time.monotonic() - self._saved < SAVE_SECONDS:
            return False
        self._saved = time.monotonic()
        return True


class _Signals:
    """Holds SIGINT and SIGTERM back until the step is done and saved."""

    def __init__(self):
        self.caught: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            # Handlers can be set in the main thread only.
            with contextlib.suppress(ValueError):
                self._before[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *exc):
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _catch(self, number, frame):
        if self.caught is not None:  # asked twice: stop at once
            self.__exit__()
            signal.raise_signal(number)
        self.caught = number

    def deliver(self) -> None:
        """Hand the signal on to who would have had it."""
        number, self.caught = self.caught, None
        self.__exit__()
        if number is not None:
            signal.raise_signal(number)
            raise KeyboardInterrupt
