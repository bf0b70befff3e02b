"""The bar on a terminal, the lines elsewhere, and whom the logger's lines reach."""

import fcntl
import io
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import textwrap
import time

import jax.numpy as jnp
import pytest

from bitflax import progress
from bitflax.progress import Progress

LOG = logging.getLogger("bitflax.runs")


def test_a_line_a_state_that_is_no_terminal():
    stream = io.StringIO()
    with Progress(100, "1-fp32", initial=50, stream=stream, every=0) as bar:
        bar.update(51, {"logits": jnp.float32(0.25)})
        bar.update(60, {"accuracy": 0.75})
        bar.write("a note")
        bar.update(100)
    first, second, third, note, last = stream.getvalue().splitlines()
    assert first == "1-fp32 50/100 50% (00:00, ? left, ?/s)"
    assert second.startswith("1-fp32 51/100 51%, logits 0.25 (00:00, ")
    assert third.startswith("1-fp32 60/100 60%, logits 0.25, accuracy 0.75 (00:00, ")
    assert note == "a note"
    said = "1-fp32 100/100 100%, logits 0.25, accuracy 0.75 (00:00, 00:00 left, "
    assert last.startswith(said)
    assert last.endswith("/s)")


def test_ten_seconds_lie_between_two_lines():
    stream = io.StringIO()
    with Progress(100, "a", stream=stream) as bar:
        for step in range(1, 101):
            bar.update(step)
    assert len(stream.getvalue().splitlines()) == 2  # the first and the last


def test_a_name_ends_no_line_of_a_note(capsys):
    with progress.lines_shown():
        progress.tell("a\nb\x1b.csv: texts\nfix: name c\u2028d")
        progress.tell("a\nb.csv: texts")
    said = capsys.readouterr().err.splitlines()
    assert said[0] == r"bitflax: warning: a\nb\x1b.csv: texts"
    assert said[1:] == [r"fix: name c\u2028d", r"note: a\nb.csv: texts"]


def on_a_terminal(script, columns, rows=24):
    """Run a script whose stderr is a terminal; return what it shows."""
    master, slave = pty.openpty()
    size = struct.pack("HHHH", rows if columns else 0, columns, 0, 0)
    fcntl.ioctl(slave, termios.TIOCSWINSZ, size)
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        stderr=slave,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:  # the other side has closed
            break
        if not data:
            break
        shown += data
    os.close(master)
    assert process.wait() == 0, shown.decode()
    return shown.decode()


@pytest.mark.parametrize(("columns", "rows"), [(0, 0), (120, 0), (120, 24)])
def test_a_bar_on_a_terminal(columns, rows):
    shown = on_a_terminal(
        """
        from bitflax.progress import Progress
        with Progress(30, "2-1bit", initial=10) as bar:
            bar.update(20)
            bar.write("step 20: saved")
            bar.update(30, {"logits": 0.25, "accuracy": 0.785})
        """,
        columns,
        rows,
    )
    assert "step 20: saved\r\n" in shown
    last = [part for part in shown.split("\r") if "2-1bit" in part][-1]
    assert "30/30" in last
    assert "logits 0.25, accuracy 0.785" in last
    assert "00:00 left" in last
    assert ("|████|" in last) == (rows > 0)


def test_80_columns_hold_what_matters():
    shown = on_a_terminal(
        """
        import time
        from bitflax.progress import Progress
        with Progress(1542, "2-onebit", initial=700) as bar:
            bar.doing("compiling")
            time.sleep(0.2)
            bar.update(750, {"dev accuracy": 0.7854})
            bar.update(800, {"loss": 0.31234}, {"logits{": 0.1, "hidden": 0.2})
        """,
        80,
    )
    states = [part for part in shown.split("\r") if "2-onebit" in part]
    assert any("compiling" in state for state in states)
    assert "compiling" not in states[-1]
    for word in ("800/1542", " left, ", "loss 0.3123, dev accuracy 0.7854", "/s"):
        assert word in states[-1]
    assert len(states[-1].rstrip()) <= 80


def test_on_a_wide_terminal_the_parts_of_a_loss_come_last():
    shown = on_a_terminal(
        """
        from bitflax.progress import Progress
        with Progress(4, "a") as bar:
            bar.update(2, {"loss": 0.3}, {"log{its": 0.1, "hidden": 0.2})
        """,
        120,
    )
    last = [part for part in shown.split("\r") if "loss" in part][-1]
    assert last.rstrip().endswith("00:00, log{its 0.1, hidden 0.2")


def test_what_a_step_waits_for_is_said_at_once():
    stream = io.StringIO()
    with Progress(100, "a", stream=stream) as bar:
        bar.doing("compiling")
        bar.update(1)
    assert (
        stream.getvalue().splitlines()[1]
        == "a 0/100 0%, compiling (00:00, ? left, ?/s)"
    )


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_a_few_texts_are_not_worth_a_word(capsys, count):
    with progress.lines_shown(), progress.throughput(count, "eval") as done:
        done(count)
    assert capsys.readouterr().err == ""


def test_many_texts_are_shown_and_timed(capsys):
    with progress.lines_shown(), progress.throughput(3000, "eval") as done:
        for _ in range(3):
            done(1000)
    *shown, last = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in shown] == [
        "eval 0/3000 0%",
        "eval 3000/3000 100%",
    ]
    assert last.startswith("eval: 3,000 texts in 0.0 s, ")


@pytest.mark.parametrize(("total", "shown"), [(None, True), (3000, False)])
def test_the_way_there_may_be_hidden(capsys, total, shown):
    with (
        progress.lines_shown(),
        progress.throughput(total, "eval", shown=shown) as done,
    ):
        done(3000)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("eval: 3,000 texts in ")


def test_lines_come_once_and_only_meanwhile(capsys):
    with progress.lines_shown(), progress.lines_shown():
        LOG.info("1-fp32: %s", "accuracy 0.79")
        LOG.warning("a/3: damaged")
        LOG.debug("nobody asked")
    LOG.info("a library is silent")
    said = "1-fp32: accuracy 0.79\nbitflax: warning: a/3: damaged\n"
    assert capsys.readouterr().err == said


def test_who_sets_the_logger_up_has_it_their_way(capsys, caplog):
    with caplog.at_level(logging.WARNING, "bitflax"), progress.lines_shown():
        LOG.info("a score")
        LOG.warning("a/3: damaged")
    assert capsys.readouterr().err == ""
    assert caplog.messages == ["a/3: damaged"]


def test_what_is_said_again_is_waited_for_once():
    with progress.Progress(100, "1-fp32", stream=io.StringIO()) as bar:
        for number in (1, 2, 3):
            bar.doing(f"compiling {number} of 3", once=True)
            time.sleep(0.15)
        bar.update(1)
        assert time.time() - bar._bar.start_t < 0.2


@pytest.mark.parametrize("once", [True, False])
def test_what_is_waited_for_once_is_no_part_of_the_time_left(once):
    with progress.Progress(100, "1-fp32", stream=io.StringIO()) as bar:
        bar.doing("compiling", once=once)
        time.sleep(0.3)
        bar.update(1)
        assert (time.time() - bar._bar.start_t < 0.2) is once


def test_the_first_second_gives_no_rate():
    stream = io.StringIO()
    with Progress(750, "teacher", stream=stream) as bar:
        bar.update(1)
        bar.doing("compiling")
        time.sleep(1.1)
        bar.doing("scoring dev")
    early, late = stream.getvalue().splitlines()[1:3]
    assert early == "teacher 1/750 0%, compiling (00:00, ? left, ?/s)"
    assert re.search(r"scoring dev \(00:01, \d\d:\d\d left, +[\d.]+s?/s?\)", late), late
