"""Fields of frozen dataclasses by name and type: checking them and setting them.

The type annotations of a recipe's classes are used twice: every field is checked
against its own, and the value of ``--set a.b=c`` is converted to it.
"""

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from bitflax import errors
from bitflax.data import HubDataset
from bitflax.errors import ConfigError

T = TypeVar("T")
LARGEST = {"batch_size": 1 << 20, "eps": 1, "epochs": 1 << 20, "steps": 2**31 - 1}
LARGEST |= dict.fromkeys(("lr", "act_lr", "weight_decay"), 1000)


def check_fields(node: Any, place: str = "") -> None:
    """Check every field of a dataclass, and of those inside it, against its type.

    Raises:
      ConfigError: a field holds something else; its place is ``Class.field``.
    """
    hints = typing.get_type_hints(type(node))
    for field in dataclasses.fields(node):
        value, hint = getattr(node, field.name), hints[field.name]
        where = f"{place or type(node).__name__}.{field.name}"
        if not conforms(value, hint):
            problem = f"expected {words(hint)}, found {value!r}"
            raise ConfigError(where, problem, fix=_mend(value, hint))
        most = LARGEST.get(field.name) or 2**63 - 1
        if isinstance(value, int | float) and not -most <= value <= most:  # or NaN
            problem = f"expected a finite number, at most {most:,}, found {value!r}"
            raise ConfigError(where, problem, fix="give such a number")
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            check_fields(value, where)


def _mend(value: Any, hint: Any) -> str:
    kinds = typing.get_args(hint) or (hint,)
    if isinstance(value, list) and conforms(tuple(value), hint):
        return f"write {tuple(value)!r}"
    if isinstance(value, str) and any(kind in (int, float) for kind in kinds):
        return f"write {value} without quotes"
    if isinstance(value, str) and typing.get_origin(hint) is typing.Literal:
        return errors.nearest(value, [str(kind) for kind in kinds], "choices")
    return f"give {words(hint)}"


def split_setting(setting: str) -> tuple[str, str]:
    """Return key and value of ``a.b=c``.

    Raises:
      ConfigError: there is no ``=``, or nothing before it.

    >>> split_setting("stages.1.optim.lr=5e-5")
    ('stages.1.optim.lr', '5e-5')
    """
    key, equals, text = setting.partition("=")
    if not equals or not key.strip():
        fix = "as in --set data.max_length=64"
        raise ConfigError(f"--set {setting}", "expected NAME=VALUE", fix=fix)
    return key.strip(), text


def override(node: T, *settings: str) -> T:
    """Return a dataclass with fields inside it set by path.

    A member of a tuple is named by its ``name`` or its index, counted from 0.

    Args:
      node: a frozen dataclass, such as a ``Recipe``.
      settings: such as ``"stages.1.optim.lr=5e-5"`` or ``"stages.1bit.epochs=3"``.

    Raises:
      ConfigError: there is no such field, the value is not of its type, or a field is
        set twice, be it once by a member's name and once by its index.
    """
    seen = set()
    for setting in settings:
        key, text = split_setting(setting)
        place = f"--set {setting}"
        try:
            way = _resolve(node, key.split("."), place)
            if way in seen:
                raise set_twice(key, place)
            seen.add(way)
            node = _set(node, way, key, text, place)
        except ConfigError as error:
            if error.place == place:
                raise
            problem = f"{error.place}: {error.problem}"
            raise ConfigError(place, problem, fix=error.fix) from error
        except ValueError as error:
            raise ConfigError(place, str(error), fix="give another value") from error
    return node


def set_twice(key: str, place: str) -> ConfigError:
    """Return the error of a field or dial that two settings name."""
    return ConfigError(place, f"{key} is set twice", fix="leave one of them out")


def _resolve(node: Any, keys: list[str], place: str) -> tuple[Any, ...]:
    """Return the way to a field: the names of fields, and members by their index."""
    way: list[Any] = []
    for number, key in enumerate(keys):
        path = ".".join(keys[:number])
        if _has_members(node):
            way.append(_member(node, key, place, path))
            node = node[way[-1]]
            continue
        if not dataclasses.is_dataclass(node):
            problem = f"{path} is {node!r} and has no fields"
            raise ConfigError(place, problem, fix=f"set {path} itself")
        names = [field.name for field in dataclasses.fields(node) if field.init]
        if key not in names:
            kind = type(node).__name__
            fix = errors.nearest(key, names, f"fields of {kind}")
            raise ConfigError(place, f"{kind} has no field {key!r}", fix=fix)
        way.append(key)
        node = getattr(node, key)
    return tuple(way)


def _has_members(node: Any) -> bool:
    """Whether this is a tuple of dataclasses, as ``Recipe.stages``."""
    return isinstance(node, tuple) and any(map(dataclasses.is_dataclass, node))


def _set(node: Any, way: tuple[Any, ...], path: str, text: str, place: str) -> Any:
    """Return a node with the field at the end of a way set; ``path`` names it."""
    key, *rest = way
    if isinstance(node, tuple):
        if not rest:
            raise _whole(node[key], path, place)
        child = _set(node[key], tuple(rest), path, text, place)
        return (*node[:key], child, *node[key + 1 :])
    value = getattr(node, key)
    if rest:
        value = _set(value, tuple(rest), path, text, place)
    else:
        value = _read(text, typing.get_type_hints(type(node))[key], value, path, place)
    return dataclasses.replace(node, **{key: value})


def _read(text: str, hint: Any, old: Any, path: str, place: str) -> Any:
    try:
        return coerce(text, hint)
    except ValueError as error:
        if _has_members(old):
            raise _whole(old[0], f"{path}.0", place) from error
        if dataclasses.is_dataclass(old) and "function" not in words(hint):
            raise _whole(old, path, place) from error
        raise ConfigError(place, str(error), fix=how_to_give(hint)) from error


def _whole(node: Any, path: str, place: str) -> ConfigError:
    first = dataclasses.fields(node)[0].name
    problem = f"{type(node).__name__} is a group of fields, not one value"
    return ConfigError(place, problem, fix=f"set its fields, as in {path}.{first}=...")


def _member(nodes: tuple, key: str, place: str, path: str) -> int:
    names = [getattr(node, "name", "") for node in nodes]
    if key in names:
        return names.index(key)
    if key.isdecimal() and int(key) < len(nodes):
        return int(key)
    fix = f"{errors.nearest(key, names, path)}; or an index, 0 to {len(nodes) - 1}"
    raise ConfigError(place, f"{path} has no {key!r}", fix=fix)


_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "none",
    Any: "anything",
    HubDataset: "a Dataset",
}
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def words(hint: Any) -> str:
    """Return a type annotation in words.

    >>> words(int | None), words(tuple[int, ...])
    ('a whole number or none', 'a tuple, each a whole number')
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return " or ".join(words(arg) for arg in args)
    if origin is typing.Literal:
        return " or ".join(repr(arg) for arg in args)
    if origin is tuple:
        if args[-1] is ...:
            each = words(args[0])
            if _is_pairs(hint) and "function" not in each:
                return "pairs, in a recipe's file,"
            return f"a tuple, each {each}"
        return f"a tuple of {len(args)}, {', '.join(map(words, args))}"
    if origin is collections.abc.Callable:
        return "a function"
    if origin is collections.abc.Sequence:
        return f"a tuple, each {words(args[0])}"
    return _WORDS.get(hint, f"a {getattr(hint, '__name__', hint)}")


def _is_pairs(hint: Any) -> bool:
    """Whether a tuple's members are tuples, which ``--set`` cannot express."""
    return typing.get_origin(typing.get_args(hint)[0]) is tuple


def conforms(value: Any, hint: Any) -> bool:
    """Return whether a value is of a type annotation; an int is a float too.

    >>> conforms((1, 3), tuple[int, ...]), conforms("1", int | None), conforms(1, float)
    (True, False, True)
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(conforms(value, arg) for arg in args)
    if origin is typing.Literal:
        return any(value == arg and type(value) is type(arg) for arg in args)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if args[-1] is ...:
            return all(conforms(item, args[0]) for item in value)
        return len(value) == len(args) and all(map(conforms, value, args))
    if origin is collections.abc.Sequence:
        listed = isinstance(value, list | tuple)
        return listed and all(conforms(item, args[0]) for item in value)
    if hint is Any or origin is collections.abc.Callable:
        return hint is Any or callable(value)
    if hint in (int, float):
        return isinstance(value, (int, hint)) and not isinstance(value, bool)
    kind = origin or hint
    return isinstance(value, kind) if isinstance(kind, type) else True


def how_to_give(hint: Any) -> str:
    """Return the ``fix:`` that says how ``--set`` gives a value of a type.

    >>> how_to_give(tuple[int, ...])
    'give values with commas between, each a whole number'
    """
    if "a function" in words(hint) or hint is Any:
        return "change it in a copy of the recipe: --set cannot express it"
    return f"give {words(hint).replace('a tuple', 'values with commas between')}"


def coerce(text: str, hint: Any) -> Any:
    """Convert a text of the command line to a type.

    Raises:
      ValueError: the text is no such value.

    >>> coerce("1,3,5", tuple[int, ...]), coerce("none", int | None)
    ((1, 3, 5), None)
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    text = text.strip()
    if origin in (typing.Union, types.UnionType):
        # str takes any text, so it is tried last.
        return _first_of(text, sorted(args, key=lambda arg: arg is str), hint)
    if origin is typing.Literal:
        return _first_of(text, [type(arg) for arg in args], hint)
    if origin is tuple and not _is_pairs(hint):
        # A regular expression may begin with a bracket of its own.
        text = text.strip("()[]") if args[0] is not str else text
        items = [item for item in text.split(",") if item.strip()]
        kinds = [args[0]] * len(items) if args[-1] is ... else args
        if len(kinds) != len(items):
            raise ValueError(f"expected {words(hint)}, found {text!r}")
        return tuple(map(coerce, items, kinds))
    lower = text.lower()
    if hint in (None, type(None)) and lower in ("none", "null"):
        return None
    if hint is bool and lower in _TRUTH:
        return _TRUTH[lower]
    if hint in (int, float):
        try:
            return hint(text)
        except ValueError:
            raise ValueError(f"expected {words(hint)}, found {text!r}") from None
    if hint is str:
        quoted = len(text) > 1 and text[0] == text[-1] and text[0] in "'\""
        return text[1:-1] if quoted else text
    raise ValueError(f"expected {words(hint)}, found {text!r}")


def _first_of(text: str, kinds: Iterable[Any], hint: Any) -> Any:
    for kind in kinds:
        try:
            value = coerce(text, kind)
        except ValueError:
            continue
        if conforms(value, hint):
            return value
    raise ValueError(f"expected {words(hint)}, found {text!r}")
