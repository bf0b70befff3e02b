"""A recipe's run, stage after stage, in its folder."""

from bitflax.runs.stages import run as run
