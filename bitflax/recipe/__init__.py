"""A run as frozen dataclasses, how they are read, and how they are told."""
