"""The table, report.json in its fixed form, and a page that needs nothing else."""

import html.parser
import json
import math
import re

import numpy as np
import pytest

from bitflax.data import Baseline
from bitflax.errors import DamagedFile, InputMissing
from bitflax.runs import report
from bitflax.runs.log import RunLog, read_log
from bitflax.runs.report import Row

ROWS = (
    Row("teacher", 0.8, 1.0, 32, 90_866_404, 158.2),
    Row("fp32", 0.79, 0.9875, 32, 69_000_000, 1156.4),
    Row("1bit", 0.786, 0.9825, "1", 69_000_000, 310),
    Row("packed", 0.785, 0.98125, 1, 2_931_712),
)
META = {
    "task": "icd10cm",
    "metric": "accuracy",
    "name": "quickstart",
    "command": "bitflax run recipes/quickstart.py --out runs/quickstart",
    "versions": {"jax": "0.10.2"},
    "notes": ["no dev file: split off by seed 0"],
}


@pytest.fixture
def lines(tmp_path):
    log = RunLog(tmp_path)
    for stage, size in (("1-fp32", 60), ("2-1bit", 400)):
        for step in range(1, size + 1):
            loss = {"logits": 1 / step, "hidden": 2.0, "scores": math.exp(-step)}
            log.write({"stage": stage, "step": step, "loss": loss, "lr": 1e-4})
            if step % 20 == 0:
                log.write({"stage": stage, "step": step, "dev": {"accuracy": 0.7}})
    log.write({"stage": "2-1bit", "step": 401, "loss": {"logits": math.nan}})
    log.close()
    return read_log(log.path)


def test_the_table_of_the_terminal():
    assert report.table(ROWS, "accuracy").splitlines() == [
        "stage    accuracy    kept  bits       bytes  ratio  seconds",
        "teacher    0.8000  100.0%    32  90,866,404   1.0x      158",
        "fp32       0.7900   98.8%    32  69,000,000   1.3x    1,156",
        "1bit       0.7860   98.2%     1  69,000,000   1.3x      310",
        "packed     0.7850   98.1%     1   2,931,712  31.0x        -",
    ]


def test_what_is_not_known_is_a_dash():
    rows = [Row("teacher", math.nan), Row("student", 0.5, None, None)]
    _, first, second = report.table(rows).splitlines()
    assert first.split() == ["teacher", "nan", "-", "32", "-", "-", "-"]
    assert second.split() == ["student", "0.5000", "-", "-", "-", "-", "-"]


def test_report_json_has_the_fixed_form(tmp_path, lines):
    report.write_report(tmp_path, ROWS, lines, META)
    text = (tmp_path / "report.json").read_text()
    record = json.loads(text, parse_constant=pytest.fail)
    more = ["kept_above_chance", "baselines", "dev", "warnings"]
    rest = ["name", "notes", "repeat", "findings"]
    assert list(record) == ["task", "metric", "stages", *more, *rest]
    assert [record[name] for name in more] == [[None] * 4, [], None, []]
    assert record["task"] == "icd10cm"
    assert record["metric"] == "accuracy"
    names = ["name", "score", "kept", "bits", "bytes", "seconds"]
    assert [list(stage) for stage in record["stages"]] == [names] * 4
    assert record["stages"][0] == {
        "name": "teacher",
        "score": 0.8,
        "kept": 1.0,
        "bits": 32,
        "bytes": 90_866_404,
        "seconds": 158.2,
    }
    assert record["stages"][-1]["seconds"] is None


def test_baselines_and_warnings_stand_in_table_page_and_json(tmp_path, lines):
    found = [Baseline("majority class", 0.3), Baseline("mean", None)]
    rows = [Row("teacher", 0.8, 1.0, above=1.0), Row("packed", 0.7, 0.875, above=0.8)]
    meta = META | {"baselines": found, "warnings": ["too <little>\nfix: raise lr"]}
    shown = report.table(rows, "accuracy", found).splitlines()
    assert [line.rsplit(maxsplit=7)[0].strip() for line in shown[1:]] == [
        "majority class",
        "mean",
        "teacher",
        "packed",
    ]
    assert shown[-1].split() == ["packed", "0.7000", "87.5%", "80.0%", "32", *"---"]
    report.write_report(tmp_path, rows, lines, meta)
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["kept_above_chance"] == [1.0, 0.8]
    assert record["baselines"] == [
        {"name": "majority class", "score": 0.3},
        {"name": "mean", "score": None},
    ]
    assert record["warnings"] == meta["warnings"]
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "too <little>\nfix: raise lr" in page.texts
    assert {"above chance", "80.0%", "majority class"} <= {*page.texts}
    said = "packed keeps 87.5% (80.0% of what is above chance)."
    assert any(text.endswith(said) for text in page.texts)


def test_numpy_and_nan_become_json(tmp_path, lines):
    rows = [Row("teacher", np.float64("nan"), None, np.int64(32), int(1e6), 2)]
    report.write_report(tmp_path, rows, lines, META)
    record = json.loads((tmp_path / "report.json").read_text())
    assert record["stages"][0]["score"] is None
    assert record["stages"][0]["bits"] == 32


class Page(html.parser.HTMLParser):
    """Checks that tags nest; collects texts, attributes and counts."""

    VOID = ("meta", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.texts, self.links, self.tags = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("href", "src", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip():
            self.texts.append(data.strip())


def test_the_page_is_whole_and_needs_nothing_else(tmp_path, lines):
    report.write_report(tmp_path, ROWS, lines, META)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.links == []
    assert not re.search(r"https?:|url\(|@import|<script", text)
    assert 'name="viewport"' in text
    assert "prefers-color-scheme: dark" in text
    # The way and the sizes; for each of the two stages three losses, a metric, a rate.
    assert page.tags.count("svg") == 2 + 2 * 5
    for shown in ("90,866,404", "31.0x", "98.1%", "1-fp32", "2-1bit", "loss/hidden"):
        assert shown in page.texts
    assert "jax 0.10.2" in page.texts
    assert META["command"] in page.texts
    assert text.count('class="dash"') == 2  # the teacher, on each metric plot
    assert len(text) < 100_000


FOUND = {
    "answers": {
        "classes": [
            {"label": n, "examples": 2, "teacher_f1": 1.0, "student_f1": 0.5}
            for n in ("cat", "<dog>")
        ],
        "confusion": {"teacher": [[2, 0], [0, 2]], "student": [[1, 1], [1, 1]]},
        "disagreements": [
            {
                "text": "<b>",
                "label": "cat",
                "teacher": ["cat", 0.9],
                "student": ["<dog>", 0.8],
            }
        ],
    },
    "weights": {"edges": [-1.0, 0.0, 1.0], "counts": [3, 5], "levels": [-1.0, 1.0]},
    "kinds": [{"kind": "encoder, 1 bit", "bytes": 1234}],
    "latency": [{"engine": "native", "milliseconds": 0.923}],
}


def test_the_page_shows_what_was_found_and_is_drawn_again_from_json(tmp_path, lines):
    meta = META | {"findings": FOUND, "repeat": {"seed": 0, "versions": {"jax": "1"}}}
    meta["baselines"] = [Baseline("TF-IDF + linear SVM", 0.7)]
    report.write_report(tmp_path, ROWS, lines, meta)
    text = (tmp_path / "report.html").read_text("utf-8")
    page = Page(text)
    for shown in ("<dog>", "cat (90%)", "<dog> (80%)", "1,234 bytes", "0.92", "native"):
        assert shown in page.texts
    assert text.count('class="cell"') == 8
    assert "<dog>" not in text
    # The teacher and the SVM on each metric's plot; both levels of the weights.
    assert text.count('class="dash"') == 2 * 2 + 2
    (tmp_path / "report.html").unlink()
    again = report.rewrite(tmp_path).read_text("utf-8")
    drop = {META["command"], "jax 0.10.2"}
    assert set(page.texts) - set(Page(again).texts) <= drop | {"command", "versions"}


def test_a_folder_without_a_report_is_refused(tmp_path):
    with pytest.raises(InputMissing, match="no report"):
        report.rewrite(tmp_path)
    (tmp_path / "report.json").write_text("{}")
    with pytest.raises(DamagedFile, match="no run's report"):
        report.rewrite(tmp_path)


def test_every_text_is_escaped(tmp_path):
    nasty = "<script>alert('&')</script>"
    log = RunLog(tmp_path)
    log.write({"stage": "1", "step": 1, f"loss/{nasty}": 0.5, f"dev/{nasty}": 0.5})
    line = json.loads(log.path.read_text())
    log.path.write_text(json.dumps({**line, "stage": nasty}))
    log.close()
    rows = [Row(nasty, 0.5, 1.0, nasty, 5, 1)] * 2
    meta = {"task": nasty, "metric": nasty, nasty: nasty, "list": [nasty]}
    report.write_report(tmp_path, rows, read_log(log.path), meta)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text
    page = Page(text)
    assert nasty in page.texts
    assert f"loss/{nasty}" in page.texts


def test_a_report_without_a_log_or_sizes(tmp_path):
    rows = [Row("teacher", 0.5, 1.0)]
    report.write_report(tmp_path, rows, (), {"task": "t", "metric": "mcc"})
    page = Page((tmp_path / "report.html").read_text(encoding="utf-8"))
    assert "svg" not in page.tags
    assert "0.5000" in page.texts


def test_the_summary_says_what_was_reached():
    assert report._summary(ROWS, META) == (
        "Task icd10cm, scored by accuracy on its dev split. "
        "Of the teacher's score, packed keeps 98.1% in 1/31 of its bytes."
    )
