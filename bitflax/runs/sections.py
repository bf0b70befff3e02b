"""The parts of a report's page below its table, each drawn from ``report.json``."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from bitflax.runs import svg


def path_section(rows: Sequence[Any], metric: str) -> list[str]:
    """Return a picture of the run's stages in order: score, bits and bytes."""
    if len(rows) < 2:
        return []
    stations = []
    for row in rows:
        score = "-" if row.score is None else f"{row.score:.4f}"
        bits = "" if row.bits is None else f"{row.bits} bit"
        size = "" if not row.bytes else f"{row.bytes / 1e6:,.2f} MB"
        stations.append((row.name, f"{metric} {score}", bits, size))
    picture = svg.stations("the run's stages, from the teacher on", stations)
    return ["<h2>Stage by stage</h2>", f'<figure class="path">{picture}</figure>']


def findings_sections(found: Mapping[str, Any]) -> list[str]:
    """Return a section for each finding that the run has."""
    parts = []
    for name, section in (
        ("answers", _answers),
        ("weights", _weights),
        ("flips", _flips),
        ("kinds", _kinds),
        ("latency", _latency),
    ):
        if found.get(name):
            parts += section(found[name])
    return parts


def _answers(found: Mapping[str, Any]) -> list[str]:
    parts = ["<h2>Class by class</h2>"]
    rows = [
        (
            one["label"],
            one["examples"],
            f"{one['teacher_f1']:.3f}",
            f"{one['student_f1']:.3f}",
        )
        for one in found["classes"]
    ]
    parts.append(
        table(("class", "examples", "teacher's F1", "student's F1"), rows, words=True)
    )
    if found.get("confusion"):
        names = [one["label"] for one in found["classes"]]
        figures = [
            figure(
                f"{who}: a row for each true class, a column for each prediction",
                svg.matrix(who, found["confusion"][who], names),
            )
            for who in ("teacher", "student")
        ]
        parts.append(f'<div class="plots">{"".join(figures)}</div>')
    rows = [
        (one["text"], one["label"], _sure(*one["teacher"]), _sure(*one["student"]))
        for one in found["disagreements"]
    ]
    parts.append("<h2>Where teacher and student disagree</h2>")
    if not rows:
        return [*parts, "<p>Nowhere on dev.</p>"]
    said = "The examples of which both were surest, with their probabilities."
    heads = ("text", "true class", "teacher", "student")
    return [*parts, f"<p>{said}</p>", table(heads, rows, words=True)]


def _sure(label: str, probability: float) -> str:
    return f"{label} ({probability:.0%})"


def _weights(found: Mapping[str, Any]) -> list[str]:
    levels = [(f"{level:+g}" if level else "0", level) for level in found["levels"]]
    picture = svg.histogram(
        "latent weights over their matrix's scale",
        found["edges"],
        found["counts"],
        levels,
        axes=("latent weight / scale of its row or matrix", "weights"),
    )
    text = "Training moves the latent weights; the student computes with their levels."
    return [
        "<h2>Weights</h2>",
        f"<p>{text}</p>",
        f'<figure class="one">{picture}</figure>',
    ]


def _flips(found: Mapping[str, float]) -> list[str]:
    bars = [(name, share, f"{share:.2%}") for name, share in found.items()]
    chart = svg.bar_chart("share of signs that differ from the stage's start", bars)
    caption = "<figcaption>signs that differ from the last stage's start</figcaption>"
    return [f'<figure class="bars">{caption}{chart}</figure>']


def _kinds(found: Sequence[Mapping[str, Any]]) -> list[str]:
    bars = [(one["kind"], one["bytes"], f"{one['bytes']:,} bytes") for one in found]
    chart = svg.bar_chart("bytes of the packed file by kind", bars)
    return ["<h2>What the file holds</h2>", f'<figure class="bars">{chart}</figure>']


def _latency(found: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [(one["engine"], f"{one['milliseconds']:.2f}") for one in found]
    text = "From text to label, one text at a time; medians on the machine of the run."
    heads = ("engine", "milliseconds")
    return ["<h2>Latency</h2>", f"<p>{text}</p>", table(heads, rows)]


def paragraph(text: str) -> str:
    """Return a paragraph; its text is escaped."""
    return f"<p>{escape(text)}</p>"


def figure(caption: str, picture: str) -> str:
    """Return a picture with its caption, which is escaped."""
    return f"<figure><figcaption>{escape(caption)}</figcaption>{picture}</figure>"


def table(
    heads: Sequence[Any], rows: Sequence[Sequence[Any]], *, words: bool = False
) -> str:
    """Return a table; every text in it is escaped. ``words``: its columns may wrap."""
    top = "".join(f'<th scope="col">{escape(str(head))}</th>' for head in heads)
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td>{escape(str(cell))}</td>" for cell in rest)
        lines.append(f'<tr><th scope="row">{escape(str(first))}</th>{cells}</tr>')
    kind = "wide words" if words else "wide"
    inside = f"<thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody>"
    return f'<div class="{kind}"><table>{inside}</table></div>'
