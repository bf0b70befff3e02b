"""Lines in, lines out; ``test_commands`` goes through the command line."""

import io
import os
import sys

import pytest

from bitflax import commands
from bitflax.errors import DataError
from bitflax.inference import predictor


class Echo:
    def predict(self, texts):
        return [predictor.Prediction("L", 0.5, text) for text in texts]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def stdin(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_few_texts_are_answered_without_a_word_more(capsys):
    commands._print_predictions(Echo(), ["a", "b"])
    said = capsys.readouterr()
    assert said.out == "L\t0.5000\ta\nL\t0.5000\tb\n"
    assert said.err == ""


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_many_lines_are_counted_before_and_timed_after(capsys, monkeypatch, end):
    stdin(monkeypatch, b"\n".join([b"x"] * 2500) + end)
    commands._print_predictions(Echo(), [])
    said = capsys.readouterr()
    assert said.out.count("\n") == 2500
    bar, last = said.err.splitlines()
    assert bar.startswith("predict 2500/2500 100% (")
    assert last.startswith("predict: 2,500 texts in ")
    assert last.endswith(" a second")


def test_what_stdin_has_given_before_is_not_counted(monkeypatch):
    stdin(monkeypatch, b"a\nb\nc\n")
    sys.stdin.buffer.readline()
    assert commands._lines_left() == 2
    assert sys.stdin.buffer.readline() == b"b\n"


def test_a_pipe_is_not_counted(capsys, monkeypatch):
    read, write = os.pipe()
    with os.fdopen(write, "wb") as file:
        file.write(b"x\n" * 1200)
    with os.fdopen(read, "r") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert commands._lines_left() is None
        commands._print_predictions(Echo(), [])
    (last,) = capsys.readouterr().err.splitlines()
    assert last.startswith("predict: 1,200 texts in ")


def test_on_a_terminal_the_answers_are_the_progress(capsys, monkeypatch):
    out = Terminal()
    monkeypatch.setattr(sys, "stdout", out)
    commands._print_predictions(Echo(), ["x"] * 1200)
    (last,) = capsys.readouterr().err.splitlines()
    assert last.startswith("predict: 1,200 texts in ")
    assert out.getvalue().count("\n") == 1200


def test_a_text_of_another_width_is_named():
    with pytest.raises(DataError, match="TEXT:2: expected a text as in the first line"):
        commands._print_predictions(Echo(), ["a", "b\tc"])
