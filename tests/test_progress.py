"""The bar on a terminal and the lines elsewhere."""

import fcntl
import io
import os
import pty
import struct
import subprocess
import sys
import termios
import textwrap

import jax.numpy as jnp
import pytest

from bitflax import progress
from bitflax.progress import Progress


@pytest.fixture
def now(monkeypatch):
    """A clock that the test turns: ``now[0]`` is the time."""
    time = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: time[0])
    return time


def test_a_line_every_ten_seconds_and_the_last(now):
    stream = io.StringIO()
    with Progress(100, "1-fp32", stream=stream) as bar:
        for step in range(1, 101):
            now[0] += 0.5
            bar.update(step, {"logits": jnp.float32(1 / step)})
            if step == 30:
                bar.update(30, {"accuracy": 0.75})
    lines = stream.getvalue().splitlines()
    assert lines[0] == "1-fp32 20/100 20% logits 0.0500 (0:10, 0:40 left)"
    assert lines[1].startswith("1-fp32 40/100 40% logits 0.0250 accuracy 0.7500 ")
    assert (
        lines[-1]
        == "1-fp32 100/100 100% logits 0.0100 accuracy 0.7500 (0:50, 0:00 left)"
    )
    assert len(lines) == 5  # the last is not printed twice


def test_the_first_step_compiles_and_does_not_count_for_the_rate(now):
    stream = io.StringIO()
    bar = Progress(11, "a", stream=stream)
    now[0] += 60
    bar.update(1)
    assert "1/11 9% (1:00, ? left)" in stream.getvalue()
    now[0] += 20
    bar.update(3)
    assert "3/11 27% (1:20, 1:20 left)" in stream.getvalue()


def test_a_resumed_run_counts_from_where_it_was(now):
    stream = io.StringIO()
    with Progress(100, "a", initial=50, stream=stream) as bar:
        bar.update(51)
        now[0] += 10
        bar.update(61)
        assert stream.getvalue() == "a 61/100 61% (0:10, 0:39 left)\n"
        bar.write("a note")
    assert stream.getvalue().splitlines()[1:] == ["a note"]


def test_nothing_happened_is_no_line(now):
    stream = io.StringIO()
    with Progress(0, "a", stream=stream):
        pass
    assert stream.getvalue() == ""


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.0000"), (0.12345, "0.1235"), (1.5e-5, "1.50e-05"), (12345.6, "1.23e+04")],
)
def test_numbers_are_short(now, value, text):
    stream = io.StringIO()
    with Progress(1, "a", stream=stream) as bar:
        bar.update(1, {"x": value})
    assert f"x {text} " in stream.getvalue()


def on_a_terminal(script, columns):
    """Run a script whose stderr is a terminal; return what it shows."""
    master, slave = pty.openpty()
    size = struct.pack("HHHH", 24 if columns else 0, columns, 0, 0)
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


@pytest.mark.parametrize("columns", [0, 60, 120])
def test_a_bar_on_a_terminal(columns):
    shown = on_a_terminal(
        """
        import time
        from bitflax.progressbar import Progress
        with Progress(30, "2-1bit", initial=10) as bar:
            for step in range(11, 31):
                time.sleep(0.02)
                bar.update(step, {"logits": 0.25, "accuracy": 0.785})
                if step == 20:
                    bar.write("step 20: saved")
        """,
        columns,
    )
    last = [part for part in shown.split("\r") if "2-1bit" in part][-1]
    assert "100%" in last
    assert "30/30" in last
    assert "left" in last
    assert ("logits 0.2500 accuracy 0.7850" in last) == (columns == 120)
    assert "step 20: saved" in shown


def test_without_tqdm_a_terminal_gets_lines():
    shown = on_a_terminal(
        """
        import sys
        sys.modules["tqdm"] = None
        from bitflax.progressbar import Progress
        with Progress(2, "a") as bar:
            bar.update(2)
        """,
        80,
    )
    assert shown.strip() == "a 2/2 100% (0:00, 0:00 left)"


@pytest.mark.parametrize("count", [0, 1, 1000])
def test_a_few_texts_are_not_worth_a_word(capsys, count):
    with progress.throughput(count, "eval") as done:
        done(count)
    assert capsys.readouterr().err == ""


def test_many_texts_are_shown_and_timed(capsys, now):
    with progress.throughput(3000, "eval") as done:
        for _ in range(3):
            now[0] += 20
            done(1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "eval 1000/3000 33% (0:20, ? left)",
        "eval 2000/3000 67% (0:40, 0:20 left)",
        "eval 3000/3000 100% (1:00, 0:00 left)",
        "eval: 3,000 texts in 60.0 s, 50 a second",
    ]


@pytest.mark.parametrize(("total", "shown"), [(None, True), (3000, False)])
def test_the_way_there_may_be_hidden(capsys, now, total, shown):
    with progress.throughput(total, "eval", shown=shown) as done:
        now[0] += 30
        done(3000)
    assert capsys.readouterr().err == "eval: 3,000 texts in 30.0 s, 100 a second\n"
