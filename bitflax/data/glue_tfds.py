"""GLUE by TFDS, without TensorFlow."""

from bitflax.errors import InputMissing


def load(name, data_dir) -> tuple:
    raise InputMissing(name, "x", fix="y")
