"""A recipe's run, stage after stage, in its folder."""

from bitflax.runs.cleaning import clean as clean
from bitflax.runs.prepare import read_task as read_task
from bitflax.runs.stages import run as run
