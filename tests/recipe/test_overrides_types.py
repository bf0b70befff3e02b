"""Type annotations at run time: what a field may hold, what a text means."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest

from bitflax.recipe import overrides


@pytest.mark.parametrize(
    ("text", "hint", "value"),
    [
        ("7", int, 7),
        (" 5e-5 ", float, 5e-5),
        ("3", float, 3.0),
        ("True", bool, True),
        ("no", bool, False),
        ("none", int | None, None),
        ("8", int | None, 8),
        ("none", str | None, None),
        ("'none'", str | None, "none"),
        ("best", Literal["last", "best"], "best"),
        ("1", Literal["a", 1], 1),
        ("1,3,5", tuple[int, ...], (1, 3, 5)),
        ("(1, 3,)", tuple[int, ...] | None, (1, 3)),
        ("[]", tuple[int, ...], ()),
        ("a,b", str | tuple[str, str] | None, ("a", "b")),
        ("a", str | tuple[str, str] | None, "a"),
        ("", str, ""),
    ],
)
def test_coerce(text, hint, value):
    found = overrides.coerce(text, hint)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("x", int),
        ("1.5", int),
        ("maybe", bool),
        ("middle", Literal["last", "best"]),
        ("1,x", tuple[int, ...]),
        ("a,b,c", tuple[str, str]),
        ("abs", Callable[[int], int]),
        ("anything", Any),
    ],
)
def test_coerce_refuses(text, hint):
    with pytest.raises(ValueError, match="expected"):
        overrides.coerce(text, hint)


@pytest.mark.parametrize(
    ("value", "hint", "holds"),
    [
        (1, int, True),
        (True, int, False),
        (1, float, True),
        (True, float, False),
        ("1", float, False),
        (None, int | None, True),
        ([1, 2], tuple[int, ...], False),
        ([1, 2], Sequence[int], True),
        ("ab", Sequence[str], False),
        ((("a", abs),), Sequence[tuple[str, Callable]], True),
        ((("a", 1),), Sequence[tuple[str, Callable]], False),
        (("a",), tuple[str, str], False),
        (3, Any, True),
        (1, Literal[True], False),
    ],
)
def test_conforms(value, hint, holds):
    assert overrides.conforms(value, hint) is holds
