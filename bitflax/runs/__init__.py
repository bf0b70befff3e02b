"""A recipe's run, stage after stage, in its folder."""
