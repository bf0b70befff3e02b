"""Fields checked against their types, and set by path."""

import dataclasses
from collections.abc import Callable
from typing import Any, Literal

import pytest

from bitflax.errors import ConfigError
from bitflax.recipe import overrides


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
    rest: Literal["int8"] | tuple[tuple[str, Literal["int8"]], ...] = "int8"
    frozen: tuple[str, ...] = ()


@pytest.mark.parametrize(
    ("setting", "read"),
    [
        ("layers=1,3", lambda o: o.layers == (1, 3)),
        ("on=false", lambda o: o.on is False),
        ("parts.0.inner.lr=3", lambda o: o.parts[0].inner.lr == 3.0),
        ("parts.b.inner.steps=4", lambda o: o.parts[1].inner.steps == 4),
        ("parts.b.name=c", lambda o: o.parts[1].name == "c"),
        ("pair==", lambda o: o.pair == "="),
        ("frozen=(a|b)/x,[cd]", lambda o: o.frozen == ("(a|b)/x", "[cd]")),
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
        ("rest=x", "expected 'int8' or pairs, in a recipe's file,", "give 'int8' or"),
        ("rest=", "expected 'int8' or pairs, in a recipe's file,", "give 'int8' or"),
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
