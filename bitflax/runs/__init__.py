"""A recipe's run, stage after stage, in its folder."""

from bitflax.runs.stages import run as run
from bitflax.runs.trials import make_trials as make_trials
from bitflax.runs.trials import run_trials as run_trials
