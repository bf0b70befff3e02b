"""When a training saves and stops; what many processes agree on, without them."""

import signal

import jax
import pytest

from bitflax.training import held_signals, hosts, loop


class Asked(Exception):
    """What the test's own handler of SIGTERM raises."""


@pytest.fixture
def handler():
    def stop(number, frame):
        raise Asked

    before = signal.signal(signal.SIGTERM, stop)
    yield stop
    signal.signal(signal.SIGTERM, before)


def test_a_signal_is_held_back_until_it_is_delivered(handler):
    with held_signals.Signals() as signals:
        signal.raise_signal(signal.SIGTERM)
        assert signals.caught == signal.SIGTERM
        with pytest.raises(Asked):
            signals.deliver(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_whoever_asks_twice_stops_at_once(handler):
    with held_signals.Signals():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Asked):
            signal.raise_signal(signal.SIGTERM)
        assert signal.getsignal(signal.SIGTERM) is handler


def test_a_signal_after_the_last_step_is_not_lost(handler):
    with pytest.raises(Asked), held_signals.Signals():
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is handler


def test_an_error_goes_before_a_signal(handler):
    def fail():
        with held_signals.Signals():
            signal.raise_signal(signal.SIGTERM)
            raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        fail()


@pytest.fixture
def time(monkeypatch):
    """Seconds that pass as the test says."""
    now = [100.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    return now


def test_a_checkpoint_is_due_once_a_period(time):
    pauses = loop.Pauses(held_signals.Signals(), before=5.0)
    for seconds, due in ((59, False), (2, True), (0, False)):
        time[0] += seconds
        assert pauses.at(1, last=False) == (due, None)
    assert pauses.seconds == 66.0


class Said:
    """What processes tell each other, on this one."""

    def __init__(self, monkeypatch):
        self.flag, self.asked = None, 0
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        monkeypatch.setattr(hosts, "broadcast", self.share)
        monkeypatch.setattr(hosts, "raise_flag", self.raise_flag)
        monkeypatch.setattr(hosts, "take_flag", self.take_flag)

    def share(self, make):
        self.asked += 1
        return make()

    def raise_flag(self, value):
        assert self.flag is None
        self.flag = value

    def take_flag(self):
        found, self.flag = self.flag, None
        return found


def test_many_processes_agree_about_once_a_second(time, monkeypatch):
    said = Said(monkeypatch)
    decide = loop.Pauses(held_signals.Signals())
    saved = []
    for step in range(1, 1001):
        time[0] += 0.1
        due, stop = decide.at(step, last=False)
        assert stop is None
        saved += [step] if due else []
    assert said.asked == pytest.approx(100, abs=3)
    # Once a minute, of the 100 seconds, and up to a second late.
    assert len(saved) == 1
    assert 599 <= saved[0] <= 611


def test_slow_steps_agree_each_and_fast_ones_not_too_seldom(time, monkeypatch):
    for pace, expected in ((5.0, 40), (0.001, 4)):
        said = Said(monkeypatch)
        decide = loop.Pauses(held_signals.Signals())
        for step in range(1, 41):
            time[0] += pace
            decide.at(step, last=False)
        assert said.asked == pytest.approx(expected, abs=2)


def test_a_signal_of_any_process_stops_all_at_the_next_agreement(time, monkeypatch):
    said, signals = Said(monkeypatch), held_signals.Signals()
    decide = loop.Pauses(signals)
    signals.caught = signal.SIGTERM
    assert decide.at(1, last=False) == (False, signal.SIGTERM)
    assert said.flag is None


def test_the_last_step_asks_in_any_case(time, monkeypatch):
    said = Said(monkeypatch)
    decide = loop.Pauses(held_signals.Signals())
    for step in (1, 2, 3):
        time[0] += 0.001
        decide.at(step, last=False)
    assert said.asked == 2
    decide.at(4, last=True)
    assert said.asked == 3
