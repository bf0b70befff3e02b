"""The README and the pages of ``bitflax/docs``, taken apart."""

import collections
import functools
import pathlib
import re
from collections.abc import Iterator

import bitflax

PACKAGE = pathlib.Path(bitflax.__file__).parent
README = PACKAGE.parent / "README.md"
DOCS = sorted((PACKAGE / "docs").glob("*.md"))
PAGES = {path.name: path for path in [README, *DOCS]}


@functools.cache
def text(path: pathlib.Path) -> str:
    return path.read_text("utf-8")


def blocks(path: pathlib.Path, language: str) -> list[str]:
    """Return a page's blocks of code of one language; those of a list are moved out."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text(path), re.M | re.S)
    return [re.sub(rf"^{indent}", "", code, flags=re.M) for indent, code in found]


def prose(path: pathlib.Path) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^ *```.*?^ *```", "", text(path), flags=re.M | re.S)


def spans(path: pathlib.Path) -> list[str]:
    """Return the code within a page's sentences, each on one line."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(path))]


def commands(path: pathlib.Path) -> Iterator[str]:
    """Yield every command line of a page that calls bitflax.

    It begins a line, or a span, or follows a prompt, ``&&`` or a quotation mark; it
    ends there too, or where a comment or a file of its output begins.
    """
    lines = "\n".join(blocks(path, "bash")).replace("\\\n", " ").splitlines()
    for line in [*lines, *spans(path)]:
        found = re.search(r"""(?:^|\$ |&& |=")(bitflax [a-z-].*)""", line)
        if found:
            yield re.split(r"\s+[#>]|\"$" if '="' in line else r"\s+[#>]", found[1])[0]


def anchors(path: pathlib.Path) -> set[str]:
    """Return the names that a link may give to a page's headings, as GitHub does."""
    found, seen = set(), collections.Counter()
    for heading in re.findall(r"^#+ (.+)$", prose(path), re.M):
        plain = re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower())
        slug = plain.strip().replace(" ", "-")
        found.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return found


def links(path: pathlib.Path) -> list[tuple[pathlib.Path, str]]:
    """Return where a page's links lead inside the project: a file and an anchor."""
    found = re.findall(r"\]\(([^)\s]+)\)", prose(path))
    inside = [link for link in found if not re.match(r"[a-z]+:", link)]
    parts = [link.partition("#") for link in inside]
    return [
        ((path.parent / file).resolve() if file else path.resolve(), anchor)
        for file, _, anchor in parts
    ]
