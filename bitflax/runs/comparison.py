"""Several runs on one page: their tables side by side, their scores over time."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitflax import files
from bitflax.errors import OutputError, UsageError
from bitflax.runs import log, report, sections, svg
from bitflax.runs.trials import REPORT, means, shown_mean

COMPARISON = "comparison.html"
"""The default name of the page of several runs, in the working folder."""


def several(folders: Sequence[str | Path]) -> bool:
    """Whether these folders hold more than one run."""
    return len(_all_runs(folders)) > 1


def draw_report(folders: Sequence[str | Path], out: str | Path | None) -> Path:
    """Draw one run's page anew, or a page of several runs.

    Args:
      folders: of finished runs; a folder that ``tune`` or ``--seeds`` made stands for
        all runs in it.
      out: the page; None: ``report.html`` in the one run's folder, else
        ``comparison.html`` here.

    Returns:
      The page's path.

    Raises:
      InputMissing: a folder has no finished run.
      DamagedFile: a ``report.json`` cannot be read.
      UsageError: a folder is given twice, or the runs have other tasks.
      OutputError: ``out`` cannot be written.
    """
    paths = _all_runs(folders)
    if len(paths) == 1:
        return report.rewrite(paths[0], out)
    if len({path.resolve() for path in paths}) < len(paths):
        raise UsageError("report", "a run is given twice", fix="name each run once")
    found = [report.read_report(path) for path in paths]
    kinds = {(meta["task"], meta["metric"]) for _, meta in found}
    if len(kinds) > 1:
        said = " and ".join(f"{task} by {metric}" for task, metric in sorted(kinds))
        fix = "give runs of one task, or draw them one by one"
        raise UsageError("report", f"these scores cannot be compared: {said}", fix=fix)
    out = files.given(COMPARISON if out is None else out, OutputError)
    task, metric = kinds.pop()
    page = report.page(f"bitflax: {len(paths)} runs", _body(paths, found, task, metric))
    files.write_text(out, page)
    return out


def _all_runs(folders: Sequence[str | Path]) -> list[Path]:
    return [run for folder in folders for run in _runs(files.given(folder))]


def _runs(folder: Path) -> list[Path]:
    """Return the folder itself, or the finished runs in it where ``tune`` made it."""
    if not (folder / REPORT).is_file():
        return [folder]
    return sorted(path.parent for path in folder.glob("*/report.json"))


def _body(
    paths: Sequence[Path], found: Sequence[Any], task: str, metric: str
) -> list[str]:
    """Return the page's parts: table, what differs, curves."""
    names = [path.name for path in paths]
    if len({*names}) < len(names):
        names = [str(path) for path in paths]
    commands = [
        (name, meta.get("repeat", {}).get("command", "-"))
        for name, (_, meta) in zip(names, found, strict=True)
    ]
    body = [
        sections.paragraph(f"Task {task}, scored by {metric} on its dev split."),
        _scores(names, [rows for rows, _ in found]),
        "<h2>What was run</h2>",
        sections.table(("run", "command"), commands, words=True),
    ]
    figures, notes = [], list[str]()
    for name, path in zip(names, paths, strict=True):
        figures += _curves(name, log.read_log(path / "log.jsonl", notes), metric)
    body += ["<h2>Scores</h2>", *map(report.warning, notes)]
    return [*body, f'<div class="plots">{"".join(figures)}</div>']


def _curves(run: str, lines: Sequence[Mapping[str, Any]], metric: str) -> list[str]:
    """Return a run's scores on dev by step, a figure a stage."""
    figures = []
    for stage in dict.fromkeys(line["stage"] for line in lines):
        mine = [line for line in lines if line["stage"] == stage]
        if points := report.logged_points(mine, f"dev/{metric}"):
            label = f"{run}, {stage}"
            plot = svg.line_plot(label, points, axes=("step", metric))
            figures.append(sections.figure(label, plot))
    return figures


def _scores(names: Sequence[str], runs: Sequence[Sequence[report.Row]]) -> str:
    """Return the table: a line a stage, a column a run.

    A stage that some run lacks has no mean.
    """
    stages = list(dict.fromkeys(row.name for rows in runs for row in rows))
    known = [{row.name: row for row in rows} for rows in runs]
    lines = []
    for stage in stages:
        rows = [each.get(stage) for each in known]
        cells = [_cell(row) for row in rows]
        mean = means([[row] for row in rows if row is not None])[0]
        lines.append((stage, *cells, shown_mean(mean) if all(rows) else "-"))
    return sections.table(("stage", *names, "mean +-deviation"), lines)


def _cell(row: report.Row | None) -> str:
    if row is None or row.score is None:
        return "-"
    return f"{row.score:.4f}" + (f" ({row.kept:.1%})" if row.kept is not None else "")
