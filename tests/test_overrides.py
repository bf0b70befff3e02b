"""Types and paths: what a field may hold, what a text means, how one is set."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal

import pytest

from bitflax import overrides
from bitflax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Inner:
    lr: float = 0.1
    steps: int | None = None
    kind: Literal["last", "best"] = "last"


@dataclasses.dataclass(frozen=True)
class Named:
    name: str = "a"
    inner: Inner = Inner()


@dataclasses.dataclass(frozen=True)
class Outer:
    layers: tuple[int, ...] | None = None
    pair: str | tuple[str, str] | None = None
    on: bool = True
    fn: Callable[[int], int] = abs
    act: Any = None
    parts: tuple[Named, ...] = (Named(), Named(name="b"))


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


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("layers=1,3", lambda o: o.layers == (1, 3)),
        ("on=false", lambda o: o.on is False),
        ("parts.0.inner.lr=3", lambda o: o.parts[0].inner.lr == 3.0),
        ("parts.b.inner.steps=4", lambda o: o.parts[1].inner.steps == 4),
        ("parts.b.name=c", lambda o: o.parts[1].name == "c"),
        ("pair==", lambda o: o.pair == "="),
    ],
)
def test_override_sets_one_field(setting, read):
    before = Outer()
    after = overrides.override(before, setting)
    assert read(after)
    assert before == Outer()


@pytest.mark.parametrize(
    ("setting", "problem", "fix"),
    [
        ("layer=1", "Outer has no field 'layer'", "did you mean 'layers'?"),
        ("parts.0.iner.lr=1", "Named has no field 'iner'", "did you mean 'inner'?"),
        ("parts.c.name=d", "parts has no 'c'", "an index, 0 to 1"),
        ("parts.2.name=d", "parts has no '2'", "an index, 0 to 1"),
        ("parts.0=x", "Named is a group of fields", "parts.0.name=..."),
        ("parts=x", "Named is a group of fields", "parts.0.name=..."),
        ("parts.0.inner=x", "Inner is a group of fields", "parts.0.inner.lr=..."),
        ("layers.0=1", "layers is None and has no fields", "set layers itself"),
        ("on=maybe", "expected true or false, found 'maybe'", "give true or false"),
        ("parts.0.inner.steps=x", "expected a whole number or none", "or none"),
        ("parts.0.inner.kind=bst", "expected 'last' or 'best'", "'last' or 'best'"),
        ("layers=x", "found 'x'", "commas between"),
        ("fn=abs", "expected a function", "a copy of the recipe"),
        ("lr", "expected NAME=VALUE", "as in"),
        ("=1", "expected NAME=VALUE", "as in"),
    ],
)
def test_override_says_what_is_wrong(setting, problem, fix):
    with pytest.raises(ConfigError) as caught:
        overrides.override(Outer(), setting)
    assert caught.value.place == f"--set {setting}"
    assert problem in caught.value.problem
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("node", "place", "fix"),
    [
        (Outer(layers=[1, 3]), "Outer.layers", "write (1, 3)"),
        (Outer(on="yes"), "Outer.on", "give true or false"),
        (Named(inner=Inner(lr="1e-3")), "Named.inner.lr", "1e-3 without quotes"),
        (Inner(kind="bst"), "Inner.kind", "did you mean 'best'?"),
        (Outer(fn=3), "Outer.fn", "give a function"),
    ],
)
def test_check_fields_names_the_field(node, place, fix):
    with pytest.raises(ConfigError) as caught:
        overrides.check_fields(node)
    assert caught.value.place == place
    assert fix in caught.value.fix


def test_check_fields_accepts_the_defaults():
    overrides.check_fields(Outer())
