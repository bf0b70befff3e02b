"""Fields of frozen dataclasses by name and type: checking them and setting them.

A recipe is checked against its own type annotations, and ``--set a.b=c`` is read by
them, so that a mistyped field is an error that names the nearest right one.
"""

import dataclasses
import difflib
import typing
from collections.abc import Iterable
from typing import Any, TypeVar

from bitflax.errors import ConfigError
from bitflax.recipe import fieldtypes

T = TypeVar("T")


def nearest(name: str, names: Iterable[str], what: str = "names") -> str:
    """Return the mend of a mistyped name: the nearest right one, or all of them.

    >>> nearest("lrr", ["lr", "warmup"])
    "did you mean 'lr'?"
    >>> nearest("x", ["lr", "warmup"], "fields")
    'the fields are: lr, warmup'
    """
    names = list(names)
    close = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    if close:
        return f"did you mean {close[0]!r}?"
    if not names:
        return f"there are no {what}"
    return f"the {what} are: {', '.join(names[:20])}"


def check_fields(node: Any, place: str = "") -> None:
    """Check every field of a dataclass, and of those inside it, against its type.

    Raises:
      ConfigError: a field holds something else; its place is ``Class.field``.
    """
    hints = typing.get_type_hints(type(node))
    for field in dataclasses.fields(node):
        value, hint = getattr(node, field.name), hints[field.name]
        where = f"{place or type(node).__name__}.{field.name}"
        if not fieldtypes.conforms(value, hint):
            raise ConfigError(
                where,
                f"expected {fieldtypes.words(hint)}, found {value!r}",
                fix=_mend(value, hint),
            )
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            check_fields(value, where)


def _mend(value: Any, hint: Any) -> str:
    kinds = typing.get_args(hint) or (hint,)
    if isinstance(value, list) and fieldtypes.conforms(tuple(value), hint):
        return f"write {tuple(value)!r}"
    if isinstance(value, str) and any(kind in (int, float) for kind in kinds):
        return f"write {value} without quotes"
    if isinstance(value, str) and typing.get_origin(hint) is typing.Literal:
        return nearest(value, [str(kind) for kind in kinds], "choices")
    return f"give {fieldtypes.words(hint)}"


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
      ConfigError: there is no such field, or the value is not of its type.
    """
    for setting in settings:
        key, text = split_setting(setting)
        place = f"--set {setting}"
        try:
            node = _set(node, key.split("."), text, place, "")
        except ConfigError as error:
            if error.place == place:
                raise
            problem = f"{error.place}: {error.problem}"
            raise ConfigError(place, problem, fix=error.fix) from error
        except ValueError as error:
            raise ConfigError(place, str(error), fix="give another value") from error
    return node


def _set(node: Any, keys: list[str], text: str, place: str, path: str) -> Any:
    key, *rest = keys
    if isinstance(node, tuple) and any(map(dataclasses.is_dataclass, node)):
        index = _member(node, key, place, path)
        if not rest:
            raise _whole(node[index], f"{path}.{key}", place)
        child = _set(node[index], rest, text, place, f"{path}.{key}")
        return (*node[:index], child, *node[index + 1 :])
    if not dataclasses.is_dataclass(node):
        fix = f"set {path} itself" if node is None or path else "name a field"
        raise ConfigError(place, f"{path} is {node!r} and has no fields", fix=fix)
    names = [field.name for field in dataclasses.fields(node) if field.init]
    if key not in names:
        kind = type(node).__name__
        fix = nearest(key, names, f"fields of {kind}")
        raise ConfigError(place, f"{kind} has no field {key!r}", fix=fix)
    value = getattr(node, key)
    path = f"{path}.{key}" if path else key
    if rest:
        value = _set(value, rest, text, place, path)
    else:
        value = _read(text, typing.get_type_hints(type(node))[key], value, path, place)
    return dataclasses.replace(typing.cast(Any, node), **{key: value})


def _read(text: str, hint: Any, old: Any, path: str, place: str) -> Any:
    try:
        return fieldtypes.coerce(text, hint)
    except ValueError as error:
        whole = isinstance(old, tuple) and any(map(dataclasses.is_dataclass, old))
        if whole:
            raise _whole(old[0], f"{path}.0", place) from error
        if dataclasses.is_dataclass(old) and "function" not in fieldtypes.words(hint):
            raise _whole(old, path, place) from error
        raise ConfigError(
            place, str(error), fix=fieldtypes.how_to_give(hint)
        ) from error


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
    fix = f"{nearest(key, names, path)}; or an index, 0 to {len(nodes) - 1}"
    raise ConfigError(place, f"{path} has no {key!r}", fix=fix)
