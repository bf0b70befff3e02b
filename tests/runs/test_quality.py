"""Scores against chance and a linear model: what is kept, and what is warned of."""

import json

import pytest

from bitflax.data import Baseline
from bitflax.runs import quality
from bitflax.runs.quality import Judge
from bitflax.runs.report import Row
from tests.helpers import tinyrun

SIMPLE = (Baseline("majority class", 0.527), Baseline("TF-IDF + linear SVM", 0.6))


def judge(**changes):
    return Judge(**{"baselines": SIMPLE, "examples": 277} | changes)


def rows(*scores):
    names = ("teacher", "fp32", "onebit", "packed")
    pairs = zip(names, scores, strict=False)
    return [Row(name, score, score / scores[0]) for name, score in pairs]


def test_good_scores_are_praised_and_nothing_is_warned_of():
    found = judge().judged(rows(0.9, 0.88, 0.85, 0.84))
    assert found[-1].kept == pytest.approx(0.84 / 0.9)
    assert found[-1].above == pytest.approx((0.84 - 0.527) / (0.9 - 0.527))
    assert [*judge().warnings(found, (2, 277))] == []


def test_nothing_is_kept_of_a_teacher_at_chance():
    low = judge(baselines=(SIMPLE[0], Baseline("TF-IDF + linear SVM", 0.53)))
    found = low.judged(rows(0.545, 0.54, 0.50, 0.495))
    assert [(row.kept, row.above) for row in found] == [(None, None)] * 4
    (said,) = low.warnings(found)
    problem = "the teacher scores 0.5450, no better than the majority class "
    assert said == (
        f"{problem}(0.5270)\nfix: raise teacher.epochs, halve or double "
        "teacher.optim.lr, or add examples"
    )


def test_a_teacher_under_the_linear_model():
    (said,) = judge(ready=True).warnings(rows(0.58))
    problem, fix = said.split("\nfix: ")
    assert problem == (
        "the teacher scores 0.5800, under the 0.6000 of TF-IDF + linear SVM on the "
        "same examples"
    )
    assert fix.startswith("give a teacher that")


def test_students_at_chance_are_named_with_the_stage_to_mend():
    found = judge().judged(rows(0.9, 0.88, 0.54, 0.53))
    (said,) = judge().warnings(found)
    assert said.startswith("no better than the majority class (0.5270): onebit")
    assert "stages.onebit.epochs (or .steps) or stages.onebit.optim.lr" in said
    (said,) = judge().warnings(rows(0.9, 0.88, 0.7, 0.53))
    assert "stages.onebit.optim.lr" in said


def test_a_packed_file_that_moves_labels():
    (said,) = judge().warnings(rows(0.9, 0.88, 0.85, 0.84), (41, 277))
    assert said.startswith("packing changes 41 of 277 labels (14.8 %)\nfix: ")


def test_without_labels_nothing_is_judged():
    found = rows(0.5, 0.4)
    assert Judge().judged(found) == found
    assert [*Judge().warnings(found)] == []


def test_a_metric_without_a_score_of_a_constant_has_chance_0():
    real = (Baseline("mean", None), Baseline("TF-IDF + ridge", 0.2))
    of = judge(baselines=real, metric="pearson_spearman", examples=400)
    assert of.judged(rows(0.8, 0.4))[1].above == 0.5
    assert of.at_chance(0.05)
    assert of.at_chance(float("nan"))
    assert not of.at_chance(0.06)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    tinyrun.write_teacher(folder / "base")
    tinyrun.write_task(folder)
    return tinyrun.write_recipe(folder)


def start(recipe, out, **more):
    folder = recipe.parent
    task, teacher = f"task={folder / 'kinds.tsv'}", f"teacher={folder / 'base'}"
    return tinyrun.run(recipe, out, task, teacher, "teacher.epochs=1", **more)


def test_a_run_says_what_is_wrong_and_measures_baselines_once(
    place, tmp_path, capsys, monkeypatch
):
    out = tmp_path / "run"
    found = start(place, out, until="teacher")
    said = capsys.readouterr()
    before = said.err.index("TF-IDF + linear SVM: accuracy")
    assert before < said.err.index("0-teacher")
    assert said.out.splitlines()[1].startswith("majority class")
    warned = "bitflax: warning: the teacher scores"
    assert found[0].score < 0.8
    assert warned in said.err
    kept = out / "cache" / "baselines.json"
    assert len(json.loads(kept.read_text())["baselines"]) == 2

    def measured(task):
        raise AssertionError("measured again")

    with monkeypatch.context() as context:
        context.setattr(quality, "measure_baselines", measured)
        start(place, out, until="teacher")
    assert warned in capsys.readouterr().err
    kept.write_text(kept.read_text().replace("TF-IDF", "another"))  # not as written
    start(place, out, until="teacher")
    assert "TF-IDF + linear SVM" in capsys.readouterr().out
