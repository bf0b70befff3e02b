"""Type annotations at run time: in words, checked, and read from a text.

Just the kinds that a recipe's fields and dials have: numbers, texts, ``Literal``,
tuples, functions, and unions of them.
"""

import collections.abc
import types
import typing
from collections.abc import Iterable
from typing import Any

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    type(None): "none",
    Any: "anything",
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
            return f"a tuple, each {words(args[0])}"
        return f"a tuple of {len(args)}, {', '.join(map(words, args))}"
    if origin is collections.abc.Callable:
        return "a function"
    if origin is collections.abc.Sequence:
        return f"a tuple, each {words(args[0])}"
    return _WORDS.get(hint, f"a {getattr(hint, '__name__', hint)}")


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
    """Return how the command line writes a value of a type.

    >>> how_to_give(tuple[int, ...])
    'give values with commas between, each a whole number'
    """
    if "a function" in words(hint) or hint is Any:
        return "change it in a copy of the recipe: it is no single value"
    return f"give {words(hint).replace('a tuple', 'values with commas between')}"


def coerce(text: str, hint: Any) -> Any:
    """Return the value that a text of the command line means for a type.

    Raises:
      ValueError: the text is no such value.

    >>> coerce("1,3,5", tuple[int, ...]), coerce("none", int | None)
    ((1, 3, 5), None)
    """
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    text = text.strip()
    if origin in (typing.Union, types.UnionType):
        # Text would swallow every other kind, so it is tried last.
        return _first_of(text, sorted(args, key=lambda arg: arg is str), hint)
    if origin is typing.Literal:
        return _first_of(text, [type(arg) for arg in args], hint)
    if origin is tuple:
        items = [item for item in text.strip("()[]").split(",") if item.strip()]
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
