"""Losses, what a student takes of its teacher, a teacher's kept outputs."""
