"""Runs of one recipe with other seeds and settings: what they share, and their table."""

import json

import pytest

from bitflax import distillation, recipe, runs
from bitflax.errors import ConfigError, OutputError, UsageError
from bitflax.runs import trials
from tests.helpers import tinyrun

RATES = "stages.fp32.optim.lr=1e-2,1e-4"


@pytest.fixture(scope="module")
def tuned(tmp_path_factory):
    """Two rates times two seeds of the tiny run."""
    folder = tmp_path_factory.mktemp("tune")
    teacher = tinyrun.write_teacher(folder / "teacher")
    file = recipe.read_recipe(tinyrun.write_recipe(folder))
    settings = [f"task={tinyrun.write_task(folder)}", f"teacher={teacher}"]
    settings += ["teacher.epochs=8", "epochs=2", "stages=1"]
    out = folder / "out"

    def tune(over=(RATES,), seeds=2):
        with tinyrun.devices(1):
            made = runs.make_trials(file, settings, over, seeds)
            return runs.run_trials(file, made, out)

    filled, fill = [], distillation.fill
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            distillation, "fill", lambda *a, **k: filled.append(1) or fill(*a, **k)
        )
        found = tune()
    return out, tune, found, len(filled)


def rows_of(out, name):
    return json.loads((out / name / "report.json").read_text())["stages"]


def test_every_combination_is_a_run_of_its_own(tuned):
    out, _, found, _ = tuned
    names = [f"lr={lr},seed={seed}" for seed in (0, 1) for lr in ("1e-2", "1e-4")]
    record = json.loads((out / "trials.json").read_text())
    assert [trial["name"] for trial in record["trials"]] == names
    for trial in record["trials"]:
        assert trial["stages"] == rows_of(out, trial["name"])
    assert record["choices"] == found
    scores = [choice["rows"][-1]["mean"] for choice in found]
    assert scores == sorted(scores, reverse=True)


def test_means_and_deviations_are_those_of_the_runs(tuned):
    out, _, found, _ = tuned
    for choice in found:
        rate = choice["settings"][0].partition("=")[2]
        one, two = (rows_of(out, f"lr={rate},seed={seed}")[-1] for seed in (0, 1))
        row = choice["rows"][-1]
        assert row["mean"] == pytest.approx((one["score"] + two["score"]) / 2)
        spread = abs(one["score"] - two["score"]) / 2**0.5
        assert row["deviation"] == pytest.approx(spread)


def test_runs_of_one_seed_share_the_teacher(tuned):
    out, _, _, _ = tuned
    for seed in (0, 1):
        first, second = (out / f"lr={lr},seed={seed}" for lr in ("1e-2", "1e-4"))
        a, b = (f / "0-teacher/params/model.safetensors" for f in (first, second))
        assert a.read_bytes() == b.read_bytes()
        assert not (second / "0-teacher" / "checkpoints").exists()
    a, b = (out / f"lr=1e-2,seed={n}/0-teacher/result.json" for n in (0, 1))
    assert a.read_bytes() != b.read_bytes()


def test_the_same_command_again_runs_nothing_and_says_the_same(tuned, capsys):
    out, tune, found, _ = tuned
    before = (out / "trials.json").read_bytes()
    capsys.readouterr()
    assert tune() == found
    assert (out / "trials.json").read_bytes() == before
    said = capsys.readouterr().out
    assert "+-" in said
    assert "best: bitflax run" in said
    best = found[0]["settings"][0]
    assert f"--set {best}" in said


def test_one_teacher_pass_serves_all_runs_of_a_seed(tuned):
    assert tuned[3] == 2


@pytest.mark.parametrize(
    ("over", "fails", "says"),
    [
        (["lr"], UsageError, "a name and values"),
        (["epochs="], UsageError, "a name and values"),
        (["epochs=1,1"], UsageError, "a name and values"),
        (["epochs=1,two"], ConfigError, "two"),
        (["epoch=1,2"], ConfigError, "did you mean 'epochs'"),
        (["epochs=1,two"], ConfigError, "--over epochs=two"),
        (["epochs=1", "epochs=2"], ConfigError, "--over epochs=2"),
        (["teacher=c,d"], ConfigError, "is set twice"),
        (["seed=1,2"], UsageError, "give --seeds 3"),
        (["teacher.patience=none,9"], ConfigError, "can never end it early"),
        (
            [f"epochs={','.join(map(str, range(1, 10_002)))}"],
            UsageError,
            "at most 10,000",
        ),
    ],
)
def test_a_typo_is_told_before_any_run(over, fails, says, tmp_path):
    file = recipe.read_recipe(tinyrun.write_recipe(tmp_path))
    with pytest.raises(fails) as error:
        runs.make_trials(file, ["task=a", "teacher=b"], over)
    assert says in f"{error.value.problem} {error.value.fix} {error.value.place}"


@pytest.mark.parametrize("seeds", [0, -1, 5001])
def test_so_many_seeds_are_a_slip(seeds, tmp_path):
    file = recipe.read_recipe(tinyrun.write_recipe(tmp_path))
    with pytest.raises(UsageError, match=r"--seeds: expected 1 to 5,000, found"):
        trials.make_trials(file, ["task=a", "teacher=b"], ["epochs=1,2"], seeds)


def test_a_runs_own_folder_is_refused(tuned, tmp_path):
    out, _, _, _ = tuned
    file = recipe.read_recipe(tinyrun.write_recipe(tmp_path))
    made = runs.make_trials(file, ["task=a", "teacher=b"])
    with pytest.raises(OutputError, match="is the folder of one run"):
        runs.run_trials(file, made, out / "lr=1e-2,seed=0")


def test_settings_of_the_same_last_name_have_their_whole_names():
    settings = ("teacher.optim.lr=1", "stages.a.optim.lr=a/b")
    made = trials.Trial(settings, 3, recipe.Recipe(data=None))
    assert made.name[:-8] == "teacher.optim.lr=1,stages.a.optim.lr=a_b,seed=3-"
