"""What the public docstrings mention can be found from where they stand."""

import ast
import inspect
import pathlib
import re
from collections.abc import Iterator

import pytest

import bitflax

PACKAGE = pathlib.Path(bitflax.__file__).parent
PUBLIC = {n for n, x in vars(bitflax).items() if n[0] != "_" and callable(x)}


def defined() -> set[str]:
    """Return the functions and classes that any file of the package defines."""
    kinds = ast.FunctionDef | ast.ClassDef
    trees = (ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py"))
    return {
        node.name for tree in trees for node in tree.body if isinstance(node, kinds)
    }


DEFINED = defined()


def documents(name: str) -> Iterator[str]:
    """Yield a public name's docstring, and those of a class's own methods."""
    found = getattr(bitflax, name)
    yield inspect.getdoc(found) or ""
    for part, method in vars(found).items() if inspect.isclass(found) else ():
        if part[0] != "_" and callable(method):
            yield inspect.getdoc(method) or ""


def lost(text: str) -> list[str]:
    """Return the names of a docstring that stand in the package, but nobody finds.

    >>> lost("``pack`` it, and see ``size_table`` or ``bitflax.packed.size_table``")
    ['size_table']
    """
    found = []
    for name in re.findall(r"``([A-Za-z_][\w.]*)(?:\([^`]*\))?``", text):
        first, _, rest = name.partition(".")
        inside = name.rpartition(".")[2] in DEFINED - PUBLIC
        if not reached(rest) if first == "bitflax" else inside:
            found.append(name)
    return found


def reached(path: str) -> bool:
    """Whether a dotted name leads somewhere from ``bitflax``."""
    there = bitflax
    for part in filter(None, path.split(".")):
        if not hasattr(there, part):
            return False
        there = getattr(there, part)
    return True


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_every_name_that_a_docstring_mentions_is_found(name):
    assert [lost(text) for text in documents(name) if lost(text)] == []


def test_a_name_that_nobody_finds_is_said():
    assert lost("``replicate`` it, or ``bitflax.nothing`` once") == [
        "replicate",
        "bitflax.nothing",
    ]
