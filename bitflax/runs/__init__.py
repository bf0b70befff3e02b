"""A recipe's run, stage after stage, in its folder."""

from bitflax.runs.cleaning import clean as clean
from bitflax.runs.comparison import COMPARISON as COMPARISON
from bitflax.runs.comparison import draw_report as draw_report
from bitflax.runs.comparison import several as several
from bitflax.runs.prepare import read_task as read_task
from bitflax.runs.stages import run as run
from bitflax.runs.trials import make_trials as make_trials
from bitflax.runs.trials import run_trials as run_trials
