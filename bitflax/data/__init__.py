"""Texts and labels, from a task's name to batches of token ids."""
