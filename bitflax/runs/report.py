"""A run's results: the table on the terminal, ``report.json`` and ``report.html``.

The page is one file: its style, its plots and its numbers are inside.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from bitflax import files, manifests, progress
from bitflax.data import Baseline
from bitflax.errors import DamagedFile, InputMissing, OutputError
from bitflax.runs import log, sections, svg
from bitflax.runs.folder import FINISHED
from bitflax.runs.log import finite
from bitflax.runs.svg import Number


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table: the teacher first, the packed student last.

    ``score`` and ``kept`` (the share of the teacher's score) are fractions; ``bits``
    are those of a quantised weight; ``bytes`` is the size on disk; ``above`` is
    ``(score - chance) / (teacher's score - chance)``. None: unknown, or does not apply.
    """

    name: str
    score: Number | None
    kept: Number | None = None
    bits: Any = 32
    bytes: int | None = None
    seconds: Number | None = None
    above: Number | None = None


def table(
    rows: Sequence[Row], metric: str = "score", baselines: Sequence[Baseline] = ()
) -> str:
    """Return the table as lines of text, the baselines first.

    >>> print(table([Row("teacher", 0.8, 1.0, 32, 9_000_000, 158.2, above=1.0),
    ...              Row("packed", 0.76, 0.95, 1, 300_000, above=0.92)], "accuracy",
    ...             [Baseline("TF-IDF + linear SVM", 0.7)]))
    stage                accuracy    kept  above chance  bits      bytes  ratio  seconds
    TF-IDF + linear SVM    0.7000       -             -     -          -      -        -
    teacher                0.8000  100.0%        100.0%    32  9,000,000   1.0x      158
    packed                 0.7600   95.0%         92.0%     1    300,000  30.0x        -
    """
    lines = [_head(metric, baselines), *_cells(rows, baselines)]
    return progress.columns(lines, "<" + ">" * (len(lines[0]) - 1))


def write_report(
    folder: str | Path,
    rows: Sequence[Row],
    lines: Sequence[Mapping[str, Any]],
    meta: Mapping[str, Any],
) -> None:
    """Write ``report.json`` and ``report.html``.

    Args:
      folder: the run folder.
      rows: the teacher first, the packed student last.
      lines: of ``log.jsonl``; ``loss/...`` and ``dev/...`` are plotted by stage.
      meta: ``task`` and ``metric``; ``baselines``, ``warnings`` and ``findings``, if
        any; everything else (name, command, versions, a list of notes) is printed below
        the plots.

    Raises:
      StorageError: the disk is full or broken.
    """
    folder, record = Path(folder), fields(rows, meta)
    files.write_text(folder / "report.json", json.dumps(record, indent=2) + "\n")
    files.write_text(folder / "report.html", html(rows, lines, meta))


def fields(rows: Sequence[Row], meta: Mapping[str, Any]) -> dict[str, Any]:
    """Return what ``report.json`` holds."""
    return {
        "task": meta["task"],
        "metric": meta["metric"],
        "stages": records(rows),
        "kept_above_chance": [finite(row.above) for row in rows],
        "baselines": [each._asdict() for each in meta.get("baselines", ())],
        "dev": meta.get("dev"),
        "warnings": [*meta.get("warnings", ())],
        "name": meta.get("name"),
        "notes": [*meta.get("notes", ())],
        "repeat": meta.get("repeat", {}),
        "findings": meta.get("findings", {}),
    }


def records(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return rows as ``report.json`` holds them."""
    names = ("name", "score", "kept", "bits", "bytes", "seconds")
    return [{n: finite(getattr(row, n)) for n in names} for row in rows]


def html(
    rows: Sequence[Row], lines: Sequence[Mapping[str, Any]], meta: Mapping[str, Any]
) -> str:
    """Return the page; every text in it is escaped."""
    title = f"bitflax: {meta.get('name') or meta['task']}"
    known = ("task", "metric", "name", "baselines", "warnings", "findings", "repeat")
    more = {k: v for k, v in meta.items() if k not in known and v}
    more |= {k: v for k, v in meta.get("repeat", {}).items() if v or v == 0}
    metric, baselines = str(meta["metric"]), meta.get("baselines", ())
    levels = [(each.name, each.score) for each in baselines if each.score is not None]
    if rows and finite(rows[0].score) is not None:
        levels = [("teacher", rows[0].score), *levels]
    body = [
        sections.paragraph(_summary(rows, meta)),
        *map(warning, meta.get("warnings", ())),
        sections.table(_head(metric, baselines), _cells(rows, baselines)),
        *sections.path_section(rows, metric),
        _sizes(rows),
        *_stages(lines, levels, metric),
        *sections.findings_sections(meta.get("findings", {})),
        _details(more),
    ]
    return page(title, body)


def page(title: str, body: Sequence[str]) -> str:
    """Return a whole page of HTML."""
    inside = "\n".join([f"<h1>{escape(title)}</h1>", *body])
    return _PAGE.format(title=escape(title), style=_STYLE, body=inside)


def rewrite(folder: str | Path, out: str | Path | None = None) -> Path:
    """Draw a finished run's page again from its files; return the page's path.

    Args:
      folder: the run's.
      out: the page; None: ``report.html`` in the folder.

    Raises:
      InputMissing: there is no finished run.
      DamagedFile: its ``report.json`` cannot be read.
    """
    folder = files.given(folder)
    rows, meta = read_report(folder)
    notes = [*meta.get("warnings", ())]
    lines = log.read_log(folder / "log.jsonl", notes)
    page = html(rows, lines, meta | {"warnings": list(dict.fromkeys(notes))})
    place = files.given(folder / "report.html" if out is None else out, OutputError)
    manifests.write_listed(place, page, FINISHED)
    return place


def read_report(folder: Path) -> tuple[list[Row], dict[str, Any]]:
    """Return the rows of a finished run and what else ``report.json`` says.

    Raises:
      InputMissing: there is no finished run.
      DamagedFile: its ``report.json`` cannot be read, or is not one of a run.
    """
    path = folder / "report.json"
    if not path.is_file():
        fix = "give the folder of a run that is finished"
        raise InputMissing(folder, "no report.json in it", fix=fix)
    record = files.read_json(path)
    try:
        above = record.get("kept_above_chance") or [None] * len(record["stages"])
        pairs = zip(record["stages"], above, strict=True)
        rows = [Row(**row, above=share) for row, share in pairs]
        record["baselines"] = [Baseline(**x) for x in record.get("baselines", ())]
        return rows, {k: v for k, v in record.items() if k not in _ROWS}
    except (KeyError, TypeError, ValueError) as error:
        fix = "remove it: the run's command then writes it again"
        raise DamagedFile(path, "it is no run's report", fix=fix) from error


_ROWS = ("stages", "kept_above_chance")


def warning(text: str) -> str:
    """Return a warning as a paragraph of a page."""
    return f'<p class="warning">{escape(text)}</p>'


def _head(metric: str, baselines: Sequence[Baseline]) -> list[str]:
    above = ["above chance"] if baselines else []
    return ["stage", metric, "kept", *above, "bits", "bytes", "ratio", "seconds"]


def _cells(rows: Sequence[Row], baselines: Sequence[Baseline] = ()) -> list[list[str]]:
    whole = rows[0].bytes if rows else None
    simple = [Row(each.name, each.score, bits=None) for each in baselines]
    return [
        [
            row.name,
            _show(row.score, ".4f"),
            _show(row.kept, ".1%"),
            *([_show(row.above, ".1%")] if baselines else []),
            _show(row.bits, "g"),
            _show(row.bytes, ","),
            _show(whole and row.bytes and whole / row.bytes, ".1f", "x"),
            _show(row.seconds, ",.0f"),
        ]
        for row in [*simple, *rows]
    ]


def _show(value: Any, form: str, unit: str = "") -> str:
    if value is None or value == "":
        return "-"
    return value if isinstance(value, str) else format(value, form) + unit


def _summary(rows: Sequence[Row], meta: Mapping[str, Any]) -> str:
    text = f"Task {meta['task']}, scored by {meta['metric']} on its dev split."
    if len(rows) < 2:
        return text
    first, last = rows[0], rows[-1]
    if finite(last.kept) is not None:
        text += f" Of the teacher's score, {last.name} keeps {last.kept:.1%}"
        if finite(last.above) is not None:
            text += f" ({last.above:.1%} of what is above chance)"
        if first.bytes and last.bytes:
            text += f" in 1/{first.bytes / last.bytes:.0f} of its bytes"
        text += "."
    return text


def _sizes(rows: Sequence[Row]) -> str:
    bars = [(r.name, r.bytes, f"{r.bytes / 1e6:,.1f} MB") for r in rows if r.bytes]
    if not bars:
        return ""
    chart = svg.bar_chart("bytes on disk of each stage", bars)
    return f'<h2>Size on disk</h2>\n<figure class="bars">{chart}</figure>'


def _stages(
    lines: Sequence[Mapping[str, Any]], levels: Sequence[tuple[str, Any]], metric: str
) -> list[str]:
    parts = []
    for stage in dict.fromkeys(line["stage"] for line in lines):
        mine = [line for line in lines if line["stage"] == stage]
        names = sorted(dict.fromkeys(name for line in mine for name in line))
        figures = [
            _figure(name, points, levels, metric)
            for start in ("dev/", "loss/", "lr", "flips/")
            for name in names
            if name.startswith(start) and (points := logged_points(mine, name))
        ]
        if figures:
            grid = f'<div class="plots">{"".join(figures)}</div>'
            parts.append(f"<h2>{escape(str(stage))}</h2>\n{grid}")
    return parts


def logged_points(
    lines: Iterable[Mapping[str, Any]], name: str
) -> list[tuple[Number, Number]]:
    """Return (step, value) of the lines that have a number of this name."""
    pairs = ((line["step"], line.get(name)) for line in lines)
    return [(x, y) for x, y in pairs if isinstance(y, (int, float))]


_TITLES = {"lr": "learning rate", "flips": "share of signs that differ from the start"}


def _figure(
    name: str,
    points: Sequence[tuple[Number, Number]],
    levels: Sequence[tuple[str, Any]],
    metric: str,
) -> str:
    mine = levels if name == f"dev/{metric}" else ()
    kind, _, part = name.partition("/")
    title = _TITLES.get(kind, name) + (f", {part}" if kind == "flips" else "")
    y = part or title
    axes = ("step", y if kind != "flips" else "share")
    plot = svg.line_plot(f"{title} by step", points, levels=mine, axes=axes)
    return sections.figure(title, plot)


def _details(more: Mapping[str, Any]) -> str:
    if not more:
        return ""
    items = "".join(
        f"<dt>{escape(str(name))}</dt><dd>{escape(_plain(value))}</dd>"
        for name, value in more.items()
    )
    return f"<h2>How it was made</h2>\n<dl>{items}</dl>"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_plain(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return "; ".join(map(_plain, value))
    return str(value)


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { --text: #1c2024; --soft: #60646c; --line: #d9d9e0; --back: #fcfcfd;
  --card: #ffffff; --mark: #0b68cb; --level: #b54708; }
@media (prefers-color-scheme: dark) {
  :root { --text: #edeef0; --soft: #b0b4ba; --line: #3a3f45; --back: #111113;
    --card: #18191b; --mark: #70b8ff; --level: #ffb381; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 1100px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.5rem; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .75rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
.warning { white-space: pre-line; padding: .5rem .8rem; background: var(--card);
  border-left: 4px solid var(--level); }
table { border-collapse: collapse; font-variant-numeric: tabular-nums;
  font-size: .9rem; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
thead th { color: var(--soft); font-weight: 600; }
tr > th:first-child { text-align: left; padding-left: 0; }
tbody th { font-weight: 600; }
.plots { display: grid; gap: 12px;
  grid-template-columns: repeat(auto-fill, minmax(min(300px, 100%), 1fr)); }
figure { margin: 0; padding: 10px; background: var(--card);
  border: 1px solid var(--line); border-radius: 8px; }
figcaption { font-size: .9rem; font-weight: 600; margin-bottom: 4px;
  overflow-wrap: anywhere; }
.bars { max-width: 460px; padding: 14px 14px 4px; }
svg { display: block; width: 100%; height: auto; font: 11px system-ui, sans-serif; }
.axis-text { fill: var(--soft); } .on .axis-text { fill: var(--back); }
.name { fill: var(--text); font-size: 12px; }
.axis { stroke: var(--soft); } .grid { stroke: var(--line); }
.line { fill: none; stroke: var(--mark); stroke-width: 1.8;
  stroke-linejoin: round; }
.dot { fill: var(--mark); }
.dash { stroke: var(--level); stroke-width: 1.4; stroke-dasharray: 5 4; }
.station { fill: var(--card); stroke: var(--soft); }
.cell { fill: var(--mark); stroke: var(--line); stroke-width: .5; }
.path, .one { max-width: 460px; }
.words td, .words th { white-space: normal; text-align: left; vertical-align: top; }
.bar { fill: var(--mark); } .back { fill: var(--line); opacity: .5; }
@media (max-width: 600px) {
  main { padding: 10px; }
  table { font-size: .75rem; } th, td { padding: .35rem .2rem; }
  tr > th:first-child { white-space: normal; } }
dl { display: grid; grid-template-columns: minmax(5rem, max-content) 1fr;
  gap: .3rem 1rem; font-size: .9rem; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
"""
