"""Files of a run's folder that are damaged, cut or lost: said, or of no consequence."""

import functools
import os
import pathlib
import random
import re
import shutil

import pytest

from tests.faults import checks, points, runs
from tests.faults.conftest import LONG

pytestmark = pytest.mark.faults

NOTICED = "SHA-256|set aside|damaged|cannot be read|missing"
TURNS = 5000 if LONG else 150
PARTS = 20 if LONG else 4


def damage(path: pathlib.Path, chance: random.Random) -> str:
    """Damage a file in one of five ways; return which."""
    data = bytearray(path.read_bytes())
    how = chance.choice(["bit", "bit", "cut", "empty", "lost", "noise"])
    if how == "lost":
        path.unlink()
        return how
    if data and how == "bit":
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    elif data and how == "noise":
        at = chance.randrange(len(data))
        data[at : at + 16] = os.urandom(16)
    else:
        del data[0 if how == "empty" else chance.randrange(len(data) + 1) :]
    path.write_bytes(data)
    return how


# What nothing reads again: made for people, or by the compiler, which has sums.
UNREAD = ("recipe.py", "tensorboard/", "log.jsonl", ".lock", "cache/compiled")


@pytest.fixture(scope="module")
def begun(place, tmp_path_factory):
    """Folders of a run: killed in its last stage, as that was done, and finished."""
    base = tmp_path_factory.mktemp("begun")
    hooks = {
        "stage": functools.partial(points.at_step, 9, 15),
        "packing": functools.partial(
            points.in_function, "bitflax.runs.results", "pack", 9
        ),
    }
    for name, hook in hooks.items():
        argv, log = runs.command(place, base / name), base / f"{name}.log"
        run = runs.Run(argv, log, place.parent / "xla", hook)
        assert run.wait() in (143, 137), run.said
    shutil.copytree(place / "whole", base / "finished")
    return base


@pytest.mark.parametrize("part", range(PARTS))
def test_no_damage_is_used_silently(part, begun, begin, whole, tmp_path):
    chance, noticed = random.Random(part), 0
    for turn in range(TURNS // PARTS):
        out = tmp_path / f"run-{turn}"
        kind = chance.choice(["stage", "packing", "finished", "finished"])
        shutil.copytree(begun / kind, out)
        names = sorted(str(p.relative_to(out)) for p in out.rglob("*") if p.is_file())
        name = chance.choice([n for n in names if not n.startswith(UNREAD)])
        before = (out / name).read_bytes()
        how = damage(out / name, chance)
        run = begin(out=out)
        status = run.wait()
        about = (kind, name, how, status, run.said)
        if status:
            checks.one_block(run.said, status)
            assert status in (73, 76), about
        elif kind != "finished" or "is finished" not in run.said:
            found = runs.end(out)
            kept = {n: v for n, v in whole.items() if n != "log"}
            assert [n for n in kept if found.get(n) != kept[n]] == [], about
        else:  # read again by nobody, or the very same
            result = name in ("model.safetensors", "report.json", "report.html")
            same = (out / name).exists() and (out / name).read_bytes() == before
            assert same or not result, about
        noticed += bool(status) or bool(re.search(NOTICED, run.said))
        shutil.rmtree(out)
    assert noticed > 1  # most others hit what nobody reads again


def test_an_edited_score_is_noticed(begun, begin, tmp_path):
    shutil.copytree(begun / "packing", tmp_path / "run")
    path = tmp_path / "run" / "1-fp32" / "result.json"
    text = path.read_text()
    path.write_text(re.sub(r'("accuracy": )[0-9.]+', r"\g<1>0.125", text))
    assert path.read_text() != text
    run = begin()
    status = run.wait()
    checks.one_block(run.said, status)
    assert status == 76
    assert str(path) in run.said


def test_lost_manifests_are_set_aside_and_said(begun, begin, whole, tmp_path):
    shutil.copytree(begun / "stage", tmp_path / "run")
    lost = list((tmp_path / "run" / "2-onebit" / "checkpoints").glob("*/MANIFEST.json"))
    assert lost
    for path in lost:
        path.unlink()
    run = begin()
    checks.same_end(run, run.wait(), tmp_path / "run", whole)
    assert "the stage begins at step 0" in run.said
    aside = list((tmp_path / "run" / "2-onebit" / "set-aside").iterdir())
    assert len(aside) == len(lost)


NANS = ["teacher", "embedding", "checkpoint", "stage", "loss"]


@pytest.mark.parametrize("where", NANS)
def test_nan_is_never_trained_on(where, place, begun, begin, tmp_path):
    import numpy as np
    import safetensors.numpy

    out, more, hooks = tmp_path / "run", (), ()
    if where in ("teacher", "embedding"):
        shutil.copytree(place / "ready", tmp_path / "ready")
        path, more = tmp_path / "ready" / "model.safetensors", ()
        more = ("--set", f"teacher.folder={tmp_path / 'ready'}")
    elif where == "stage":
        shutil.copytree(begun / "packing", out)
        path = out / "1-fp32" / "params" / "model.safetensors"
    else:
        path, hooks = None, (functools.partial(_nan_batch, where == "loss"),)
    if path is not None:
        state = safetensors.numpy.load_file(path)
        name = [
            n for n in sorted(state) if ("embeddings" in n) == (where == "embedding")
        ]
        state[name[0]].flat[3] = np.nan
        safetensors.numpy.save_file(state, path)
    run = begin(*hooks, more=more)
    status = run.wait()
    checks.one_block(run.said, status)
    assert status == (76 if path is not None else 79)


def _nan_batch(at_once: bool) -> None:
    """Have the kept outputs of the teacher be NaN from some step on."""
    import numpy as np

    from bitflax.distillation import teacher_outputs

    before, count = teacher_outputs.TeacherOutputs.add_to, []

    def add_to(self, batch):
        found = before(self, batch)
        count.append(0)
        if at_once or len(count) > 11:
            found["teacher_logits"] = np.full_like(found["teacher_logits"], np.nan)
        return found

    teacher_outputs.TeacherOutputs.add_to = add_to
