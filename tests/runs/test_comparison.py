"""Several runs on one page."""

import pytest

from bitflax.errors import InputMissing, UsageError
from bitflax.runs import comparison, report
from bitflax.runs.log import RunLog, read_log
from tests.runs.test_report import ROWS, Page, Row


@pytest.fixture
def two(tmp_path):
    """Two runs whose packed students score 0.785 and 0.775."""
    for name, rows in (("a", ROWS), ("b", (*ROWS[:3], Row("packed", 0.775, 0.96875)))):
        folder = tmp_path / name
        folder.mkdir()
        log = RunLog(folder)
        log.write({"stage": "1-fp32", "step": 5, "dev": {"accuracy": 0.7}})
        log.close()
        meta = {
            "task": "t",
            "metric": "accuracy",
            "repeat": {"command": f"<run {name}>"},
        }
        report.write_report(folder, rows, read_log(log.path), meta)
    return [tmp_path / "a", tmp_path / "b"]


def test_runs_stand_side_by_side_with_their_mean(two, tmp_path):
    out = comparison.draw_report(two, tmp_path / "page.html")
    text = out.read_text("utf-8")
    page = Page(text)
    for shown in (
        "0.7850 (98.1%)",
        "0.7750 (96.9%)",
        "0.7800 +-0.0071",
        "<run b>",
    ):
        assert shown in page.texts
    assert page.tags.count("svg") == 2
    assert "<run" not in text


def test_one_run_is_drawn_anew_in_its_folder(two):
    (two[0] / "report.html").unlink()
    assert comparison.draw_report(two[:1], None) == two[0] / "report.html"
    assert (two[0] / "report.html").is_file()


def test_runs_that_do_not_compare_are_refused(two, tmp_path):
    with pytest.raises(UsageError, match="given twice"):
        comparison.draw_report([two[0], two[0]], tmp_path / "x.html")
    meta = {"task": "other", "metric": "accuracy"}
    report.write_report(two[1], ROWS, (), meta)
    with pytest.raises(UsageError, match="cannot be compared"):
        comparison.draw_report(two, tmp_path / "x.html")
    with pytest.raises(InputMissing):
        comparison.draw_report([two[0], tmp_path / "no"], tmp_path / "x.html")


def test_a_folder_of_trials_is_all_of_its_runs(two, tmp_path):
    (tmp_path / "trials.json").write_text("{}")
    text = comparison.draw_report([tmp_path], tmp_path / "p.html").read_text("utf-8")
    assert "0.7850 (98.1%)" in text
    assert "0.7750 (96.9%)" in text


@pytest.mark.parametrize("count", [1, 2])
def test_a_damaged_log_is_said_on_the_page(two, count, tmp_path, caplog):
    path = two[0] / "log.jsonl"
    path.write_text(path.read_text() + "no JSON\n")
    out = comparison.draw_report(two[:count], tmp_path / "page.html")
    said = f"{path}:2: expected JSON: stage, step and numbers, found 'no JSON\\n'"
    assert said in caplog.text
    page = Page(out.read_text("utf-8"))
    assert any(text.startswith(said) for text in page.texts)
    assert page.tags.count("svg") == (3 if count == 1 else 2)  # with sizes and way
