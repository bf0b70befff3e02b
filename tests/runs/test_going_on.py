"""A folder that goes on: with more stages, from another run, on another machine."""

import json
import logging
import shutil

import jax
import pytest

from bitflax import manifests
from bitflax.errors import ConfigError, DamagedFile, InputMissing
from bitflax.runs import environment, fork, log
from tests.helpers import tinyrun

KINDS = dict(enumerate(tinyrun.KINDS))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("going")
    tinyrun.write_recipe(folder)
    tinyrun.write_teacher(folder / "ready", num_labels=3, id2label=KINDS)
    tinyrun.write_task(folder)
    return folder


def start(place, out, *settings, fork=None, count=1):
    usual = (f"task={place / 'kinds.tsv'}", f"teacher={place / 'ready'}")
    usual += (f"ready={place / 'ready'}", "epochs=1")
    made = tinyrun.bf.load_recipe(place / "tiny.py", (*usual, *settings))
    with tinyrun.devices(count):
        return tinyrun.stages.run(made, out, fork=fork)


@pytest.fixture(scope="module")
def whole(place):
    """A run of both stages at once."""
    start(place, place / "whole")
    return place / "whole"


@pytest.fixture(scope="module")
def half(place):
    """A finished run of the first stage alone."""
    start(place, place / "half", "stages=1")
    return place / "half"


def packed(out):
    return (out / "model.safetensors").read_bytes()


def written(out):
    return [path.stat().st_mtime_ns for path in (out / "1-fp32" / "params").iterdir()]


def test_a_stage_is_appended_to_a_finished_run(place, whole, half, tmp_path):
    out = shutil.copytree(half, tmp_path / "run")
    assert not (out / "model.safetensors").exists()
    before = written(out)
    start(place, out)
    assert written(out) == before
    assert packed(out) == packed(whole)
    report = json.loads((out / "report.json").read_text())
    assert len(report["stages"]) == 4
    # The ready teacher may have learned what was split off its own file.
    assert sum("its score is too high" in note for note in report["notes"]) == 1
    with pytest.raises(ConfigError, match=r"stages\.1 was"):
        start(place, out, "stages=1")


def test_a_fork_takes_over_what_is_the_same(place, whole, tmp_path, caplog):
    out = tmp_path / "fork"
    change = "stages.onebit.optim.lr=0.02"
    start(place, out, change, fork=whole)
    for name in ("params/model.safetensors", "result.json"):
        assert (out / "1-fp32" / name).read_bytes() == (
            whole / "1-fp32" / name
        ).read_bytes()
    start(place, tmp_path / "alone", change)
    assert packed(out) == packed(tmp_path / "alone") != packed(whole)
    lines = [
        [{**line, "time": 0} for line in log.read_log(each / "log.jsonl")]
        for each in (out, tmp_path / "alone")
    ]
    assert lines[0] == lines[1]
    assert "1-fp32: taken over from" in (out / "report.html").read_text()
    assert start(place, out, change, fork=whole) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (("seed=3",), r"seed was 0, is 3 now\nfix: set that as it was, or leave"),
        (("stages.fp32.optim.lr=0.02",), "nothing of it is finished and the same"),
    ],
)
def test_a_fork_of_which_nothing_is_the_same(place, whole, tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        start(place, tmp_path / "run", *settings, fork=whole)
    with pytest.raises(InputMissing, match="not a run's folder"):
        start(place, tmp_path / "run", fork=tmp_path)


def test_a_fork_takes_the_teacher_over_that_read_no_edits(place, tmp_path):
    for out, *change in (["plain"], ["edits", "data.augment=edits"]):
        settings = (f"task={place / 'kinds.tsv'}", f"teacher={place / 'ready'}")
        made = tinyrun.bf.load_recipe(
            place / "tiny.py", (*settings, "teacher.epochs=1", "stages=1", *change)
        )
        fork = tmp_path / "plain" if change else None
        with tinyrun.devices(1):
            tinyrun.stages.run(made, tmp_path / out, until="teacher", fork=fork)
    for name in ("params/model.safetensors", "result.json"):
        plain, edits = (tmp_path / out / "0-teacher" / name for out in (out, "plain"))
        assert plain.read_bytes() == edits.read_bytes()
    hashes = manifests.read_sealed(tmp_path / "edits" / "recipe.json")["hashes"]
    assert {"data", "augmented data"} <= {*hashes}


def test_a_teacher_of_an_earlier_default_rate_is_gone_on_with_and_taken_over(
    place, tmp_path
):
    def begin(out, rate, fork=None):
        settings = (f"task={place / 'kinds.tsv'}", f"teacher={place / 'ready'}")
        settings += ("teacher.epochs=1", f"teacher.optim.lr={rate}", "stages=1")
        made = tinyrun.bf.load_recipe(place / "tiny.py", settings)
        with tinyrun.devices(1):
            tinyrun.stages.run(made, tmp_path / out, until="teacher", fork=fork)
        record = manifests.read_sealed(tmp_path / out / "recipe.json")["recipe"]
        return record["teacher"]["optim"]["lr"]

    assert begin("old", "2e-4") == 2e-4
    assert begin("old", "none") == 2e-4
    assert begin("new", "none", fork=tmp_path / "old") == 2e-4
    taken, whole = (
        (tmp_path / out / "0-teacher" / "params" / "model.safetensors").read_bytes()
        for out in ("new", "old")
    )
    assert taken == whole
    # What failed before a first step decides nothing.
    shutil.rmtree(tmp_path / "new" / "0-teacher")
    shutil.copy(tmp_path / "old" / "recipe.json", tmp_path / "new" / "recipe.json")
    assert begin("new", "none") is None


def test_a_fork_retrains_the_stages_that_read_edits():
    data, stage = {"task": "a", "augment": None}, {"name": "task", "corpus": None}
    general = {"name": "general", "corpus": {"source": "icd10cm"}}
    began = {"data": data, "teacher": {"folder": None}, "stages": [general, stage]}
    edited = began | {"data": data | {"augment": "edits"}}
    assert fork.shared(began, began) == ["teacher", "general", "task"]
    assert fork.shared(began, edited) == ["teacher", "general"]
    assert fork.shared(began, began | {"data": data | {"task": "b"}}) == []


def test_a_fork_of_a_damaged_stage_is_refused(place, half, tmp_path):
    out = tmp_path / "fork"
    old = shutil.copytree(half, tmp_path / "old")
    path = old / "1-fp32" / "params" / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedFile, match="not what was written"):
        start(place, out, fork=old)


@pytest.mark.parametrize("name", ["recipe.json", "1-fp32/result.json"])
def test_a_record_that_says_nothing_is_damaged(place, half, tmp_path, name):
    old = shutil.copytree(half, tmp_path / "old")
    (old / name).write_text("{}")
    with pytest.raises(DamagedFile, match="not what was written") as caught:
        start(place, old)
    assert caught.value.place == str(old / name)
    if name == "recipe.json":
        with pytest.raises(DamagedFile, match="not what was written"):
            start(place, tmp_path / "fork", fork=old)


def test_other_devices_are_said_and_recorded(place, half, tmp_path, caplog):
    out = shutil.copytree(half, tmp_path / "run")
    caplog.set_level(logging.WARNING, "bitflax")
    start(place, out, count=2)
    (said,) = [m for m in caplog.messages if "devices" in m]
    assert "devices was 1, is 2 now" in said
    assert "\nfix: " in said
    assert manifests.read_sealed(out / "recipe.json")["changes"] == [
        "devices was 1, is 2 now"
    ]
    assert "devices was 1, is 2 now" in (out / "report.html").read_text()


def test_64_bits_are_of_the_machine(x64):
    assert environment.machine()["x64"] is True
    assert environment.machine()["devices"] == len(jax.devices())


def test_a_stage_that_trains_no_logits_has_no_score(place, tmp_path):
    bf = tinyrun.bf
    states = bf.weighted(hidden=(1.0, lambda s, t, b: bf.hidden_mse(s, t, b)))
    stage = bf.Stage(name="one", loss=states, epochs=1, evals=1)
    made = bf.Recipe(
        data=bf.Data(task=str(place / "kinds.tsv"), max_length=16, batch_size=16),
        teacher=bf.Teacher(folder=str(place / "ready")),
        stages=(stage,),
    )
    with tinyrun.devices(1):
        teacher, row = tinyrun.stages.run(made, tmp_path / "run")
    assert teacher.score is not None
    assert (row.score, row.kept) == (None, None)
