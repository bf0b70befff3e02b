"""The log: whole lines, no doubles after a resume, TensorBoard beside."""

import json
import os

import jax.numpy as jnp
import numpy as np
import pytest

from bitflax.errors import StorageError
from bitflax.runs import log as runs_log
from bitflax.runs.log import RunLog


@pytest.fixture
def log(tmp_path):
    log = RunLog(tmp_path)
    yield log
    log.close()


def steps(path, stage):
    return [line["step"] for line in runs_log.read_log(path) if line["stage"] == stage]


def test_lines_are_flat_json_on_the_disk_at_once(log):
    log.write(
        {
            "stage": "1-fp32",
            "step": np.int32(3),
            "loss": {"logits": jnp.float32(0.5), "total": np.float64(1.5)},
            "dev": {"pearson": float("nan")},
            "lr": 1e-4,
        }
    )
    text = log.path.read_text()
    assert text.endswith("\n")
    line = json.loads(text, parse_constant=pytest.fail)
    assert line.pop("time") > 1.7e9
    assert line == {
        "stage": "1-fp32",
        "step": 3,
        "loss/logits": 0.5,
        "loss/total": 1.5,
        "dev/pearson": None,
        "lr": 1e-4,
    }
    assert isinstance(line["step"], int)


def test_rewind_drops_what_a_resume_repeats(log):
    for stage in ("1-fp32", "2-1bit"):
        for step in range(0, 50, 10):
            log.write({"stage": stage, "step": step, "loss": {"a": 1.0}})
    log.rewind("2-1bit", 20)
    assert steps(log.path, "2-1bit") == [0, 10, 20]
    assert steps(log.path, "1-fp32") == [0, 10, 20, 30, 40]
    log.write({"stage": "2-1bit", "step": 30, "loss": {"a": 2.0}})
    assert steps(log.path, "2-1bit") == [0, 10, 20, 30]
    log.rewind("2-1bit")
    assert steps(log.path, "2-1bit") == []
    assert len(steps(log.path, "1-fp32")) == 5


def test_a_torn_line_is_left_out_and_not_glued_to_the_next(tmp_path):
    with open(tmp_path / "log.jsonl", "w") as file:
        file.write('{"stage": "a", "step": 1}\n{"stage": "a", "st')
    log = RunLog(tmp_path)
    assert steps(log.path, "a") == [1]
    log.write({"stage": "a", "step": 2})
    log.close()
    assert steps(log.path, "a") == [1, 2]


LINE = '{"stage": "a", "step": %s, "loss/x": %s}'
DAMAGES = [
    (["no JSON"], 1, "found 'no JSON"),
    (["[1, 2]"], 1, "expected JSON"),
    (["\udcff"], 1, "expected JSON"),
    (["[" * 100_000], 1, "expected JSON"),
    (['{"step": 1, "loss/x": 1}'], 1, "expected JSON"),
    (['{"stage": 1, "step": 1}'], 1, "expected JSON"),
    ([LINE % (10, '"1"')], 1, "expected JSON"),
    ([LINE % (10, "NaN")], 1, "expected JSON"),
    ([LINE % (10, "1e999")], 1, "expected JSON"),
    ([LINE % ("9" * 400, 1)], 1, "expected JSON"),
    ([LINE % (10.5, 1)], 1, "expected JSON"),
    ([LINE % ("true", 1)], 1, "expected JSON"),
    ([LINE % (-1, 1)], 1, "expected JSON"),
    ([LINE % (900, 1)], 1, "out of order, found 900"),
    ([LINE % (1, 1)], 1, "out of order, found 1;"),
    ([LINE % (900, 1), "", LINE % (2, 1)], 3, "out of order, found 900"),
]


@pytest.mark.parametrize(("damage", "count", "found"), DAMAGES)
def test_a_damaged_line_is_named_and_left_out(damage, count, found, tmp_path, caplog):
    path, good = tmp_path / "log.jsonl", [LINE % (step, 1) for step in (10, 20, 30, 40)]
    lines = [*good[:2], *damage, *good[2:]]
    path.write_text("\n".join([*lines, ""]), errors="surrogateescape")
    notes = []
    assert [line["step"] for line in runs_log.read_log(path, notes)] == [10, 20, 30, 40]
    assert notes[0].startswith(f"{path}:3: ")
    assert found in notes[0]
    assert f"; left out of the plots: {count}\nfix: put" in notes[0]
    assert notes == [record.getMessage() for record in caplog.records]
    # A resume drops its own lines, and never what it cannot read.
    RunLog(tmp_path).rewind("a", 25)
    kept = path.read_text(errors="surrogateescape").splitlines()
    assert kept == [
        text for text in lines if text not in good[2:] and "900" not in text
    ]


def test_no_file_is_no_lines(tmp_path):
    notes = []
    assert runs_log.read_log(tmp_path / "none.jsonl", notes) == []
    assert "none.jsonl:1: expected lines of the log, found none; left" in notes[0]
    RunLog(tmp_path).rewind("a", 3)
    assert os.listdir(tmp_path) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full here")
def test_a_full_disk(tmp_path):
    log = RunLog(tmp_path)
    log.path.symlink_to("/dev/full")
    with pytest.raises(StorageError, match="No space left") as caught:
        log.write({"stage": "a", "step": 1})
    assert caught.value.place.endswith("log.jsonl")
    with pytest.raises(StorageError):  # it has no disk to be brought to
        log.close()


def records(folder):
    """Yield a folder's events, as TensorBoard would."""
    from tensorboardX import proto

    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            size = int.from_bytes(data[:8], "little")
            yield proto.event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[12 + size + 4 :]


def summaries(folder):
    """Return (step, value) of all that is shown."""
    return [(event.step, v) for event in records(folder) for v in event.summary.value]


def events(folder):
    """Return (step, tag, value) of all events, and the restarts."""
    found = []
    for event in records(folder):
        found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
        if event.HasField("session_log"):
            found.append((event.step, "restart", event.session_log.status))
    return found


def test_tensorboard_has_the_numbers_and_knows_of_the_resume(log, tmp_path):
    log.write({"stage": "1-a", "step": 5, "loss": {"x": 0.5}, "note": "text"})
    log.write({"stage": "1-a", "step": 6, "loss": {"x": 0.25}})
    log.rewind("1-a", 5)
    log.write({"stage": "1-a", "step": 6, "loss": {"x": 0.125}})
    log.close()
    found = events(tmp_path / "tensorboard" / "1-a")
    assert [f for f in found if f[1] == "loss/x"] == [
        (5, "loss/x", 0.5),
        (6, "loss/x", 0.25),
        (6, "loss/x", 0.125),
    ]
    assert (6, "restart", 1) in found  # TensorBoard purges from step 6 on
    assert {tag for _, tag, _ in found} == {"loss/x", "restart"}
