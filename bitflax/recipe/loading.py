"""Recipe files: finding one by name, running it, and setting its dials.

A recipe file has a docstring and a function ``recipe(*, dial=default, ...) -> Recipe``.
The function's parameters are its dials; ``--set`` sets these by name and any other
field by its path. A recipe is Python, and is run like any script of its user's.
"""

import ast
import contextlib
import dataclasses
import inspect
import re
import sys
import traceback
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from bitflax import errors, files
from bitflax.errors import BitflaxError, ConfigError, InputMissing
from bitflax.recipe import overrides
from bitflax.recipe.schema import Recipe

_PACKAGE = Path(__file__).resolve().parents[1]


def recipe_folders() -> list[Path]:
    """Return the folders where a bare name is looked up, in this order.

    First ``recipes`` in the working folder, then the package's own, which lie in it
    where a wheel was installed and beside it in a checkout.
    """
    folders = [Path("recipes"), _PACKAGE / "_recipes"]
    if (_PACKAGE.parent / "pyproject.toml").is_file():
        folders.append(_PACKAGE.parent / "recipes")
    return [folder for folder in folders if folder.is_dir()]


def recipe_files() -> dict[str, Path]:
    """Return every recipe that a bare name finds: ``{name: file}``."""
    files: dict[str, Path] = {}
    for folder in recipe_folders():
        for path in sorted(folder.glob("*.py")):
            if not path.name.startswith("_"):
                files.setdefault(path.stem, path)
    return files


def find_recipe(name: str | Path) -> Path:
    """Return the file of a recipe's path or bare name.

    Raises:
      InputMissing: there is none; the nearest name is given.
    """
    path = files.given(name)
    if path.is_file():
        return path
    named = recipe_files()
    bare = path.stem if path.suffix == ".py" else path.name
    if path.name == str(name) and path.suffix in ("", ".py") and bare in named:
        return named[bare]
    if path.is_dir():
        fix = f"name a recipe file in it, or one of: {', '.join(named)}"
        raise InputMissing(name, "a folder, not a recipe file", fix=fix)
    fix = errors.nearest(bare, named, "recipes")
    raise InputMissing(name, "no such recipe file, and no recipe of that name", fix=fix)


@dataclasses.dataclass(frozen=True)
class RecipeFile:
    """A recipe file that has been read: its text, its docstring and its function."""

    path: Path
    source: str
    doc: str
    function: Callable[..., Any]

    @property
    def name(self) -> str:
        """The file's name without ``.py``."""
        return self.path.stem

    @property
    def dials(self) -> dict[str, tuple[Any, Any]]:
        """The dials: ``{name: (type, default)}``."""
        hints = typing.get_type_hints(self.function)
        found = {}
        for name, parameter in inspect.signature(self.function).parameters.items():
            if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
                continue
            guess = type(parameter.default)
            hint = guess if guess in (bool, int, float, str) else str | None
            found[name] = (hints.get(name, hint), parameter.default)
        return found

    def build(self, settings: Sequence[str] = ()) -> Recipe:
        """Return the recipe, with ``a.b=c`` settings.

        Raises:
          ConfigError: the function fails or returns no ``Recipe``, or a setting names
            no dial and no field, or is not of its type.
        """
        if isinstance(settings, str):  # its letters would be taken for settings
            raise TypeError("expected a list of settings, 'name=value', found one")
        dials, fields = self._sort(settings)
        for name, (_, default) in self.dials.items():
            if default is inspect.Parameter.empty and name not in dials:
                fix = f"give --set {name}=..."
                raise ConfigError(self.path, f"dial {name!r} has no default", fix=fix)
        with _located(self.path):
            recipe = self.function(**dials)
        if not isinstance(recipe, Recipe):
            problem = f"recipe() returned {type(recipe).__name__}, not a bitflax.Recipe"
            fix = "end it with `return bitflax.Recipe(...)`"
            raise ConfigError(self.path, problem, fix=fix)
        recipe = overrides.override(recipe, *fields)
        return dataclasses.replace(recipe, name=recipe.name or self.name)

    def _sort(self, settings: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        """Split settings into dials, converted to their types, and fields."""
        dials: dict[str, Any] = {}
        fields = []
        known = self.dials
        names = [field.name for field in dataclasses.fields(Recipe)]
        for setting in settings:
            key, text = overrides.split_setting(setting)
            place = f"--set {setting}"
            if key in dials:
                raise overrides.set_twice(key, place)
            if key in known:
                dials[key] = _dial(text, known[key][0], place)
            elif key.split(".")[0] in names:
                fields.append(setting)
            else:
                problem = f"{self.name} has no dial and no field {key.split('.')[0]!r}"
                fix = errors.nearest(key, [*known, *names], "dials and fields")
                raise ConfigError(place, problem, fix=fix)
        return dials, fields


def _dial(text: str, hint: Any, place: str) -> Any:
    try:
        return overrides.coerce(text, hint)
    except ValueError as error:
        fix = overrides.how_to_give(hint)
        raise ConfigError(place, str(error), fix=fix) from error


def read_recipe(path_or_name: str | Path) -> RecipeFile:
    """Read a recipe file and run it, without calling its ``recipe`` yet.

    Raises:
      InputMissing: there is no such recipe.
      ConfigError: it is not Python, fails, or has no ``recipe`` function.
    """
    path = find_recipe(path_or_name)
    source = _text(path)
    module = types.ModuleType(f"bitflax_recipe_{path.stem}")
    module.__file__ = str(path)
    with _located(path):
        exec(compile(source, str(path), "exec"), module.__dict__)
    function = getattr(module, "recipe", None)
    if not inspect.isfunction(function):
        problem = "expected a function `recipe`, found none"
        fix = "add `def recipe(): return bitflax.Recipe(...)`"
        raise ConfigError(path, problem, fix=fix)
    return RecipeFile(path, source, inspect.cleandoc(module.__doc__ or ""), function)


def load_recipe(path_or_name: str | Path, settings: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a file or of a bare name, with ``a.b=c`` settings.

    Args:
      path_or_name: ``recipes/xtc.py``, or a name that ``bitflax ls`` lists.
      settings: ``"layers=1,3,5"`` turns a dial, a parameter of the file's
        ``recipe``; ``"stages.1.optim.lr=5e-5"`` sets any other field.

    Raises:
      InputMissing: there is no such recipe.
      ConfigError: the file or a setting is wrong; the place says where.
    """
    return read_recipe(path_or_name).build(settings)


def recipe_summary(path: Path) -> str:
    """Return the first line of a recipe's docstring, without running it."""
    try:
        doc = ast.get_docstring(ast.parse(_text(path))) or "(no docstring)"
    except (SyntaxError, ValueError, BitflaxError):
        return "(cannot be read: `bitflax show` says why)"
    return doc.splitlines()[0]


def _text(path: Path) -> str:
    try:
        with files.open_file(path) as file:
            return file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        fix = "give a Python file that returns a recipe"
        raise ConfigError(path, f"not a text file ({error.reason})", fix=fix) from error
    except OSError as error:
        problem = f"cannot be read: {error.strerror}"
        raise InputMissing(path, problem, fix="make it readable") from error


@contextlib.contextmanager
def _located(path: Path) -> Iterator[None]:
    """Turn any exception of a recipe's own code into an error that names its line."""
    try:
        yield
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        rows = [frame.lineno for frame in frames if frame.filename == str(path)]
        if isinstance(error, SyntaxError) and error.filename == str(path):
            line = (error.text or "").strip()
            problem, rows = f"not Python: {error.msg}", [error.lineno]
            fix = f"correct the line: {line}" if line else "correct the file"
        elif isinstance(error, ConfigError):
            problem, fix = f"{error.place}: {error.problem}", error.fix
        else:
            problem, fix = _explained(error)
        place = f"{path}:{rows[-1]}" if rows else path
        raise ConfigError(place, problem, fix=fix) from error


def _explained(error: BaseException) -> tuple[str, str]:
    """Return problem and fix of an exception that a recipe's own code raised."""
    text = str(error)
    found = re.search(r"(\w+)(?:\.__init__)?\(\) got an unexpected .*?'(\w+)'", text)
    if isinstance(error, TypeError) and found:
        owner, name = found.groups()
        names = _parameters(owner)
        fix = errors.nearest(name, names, f"fields of {owner}")
        return f"{owner} has no field {name!r}", fix
    found = re.search(r"module '(.+?)' has no attribute '(\w+)'", text)
    if isinstance(error, AttributeError) and found:
        module = sys.modules.get(found[1])
        public = [name for name in dir(module) if not name.startswith("_")]
        return f"{found[1]} has no {found[2]!r}", errors.nearest(found[2], public)
    name = "" if type(error) is ValueError else f"{type(error).__name__}: "
    return f"{name}{text}", "correct the recipe; --debug shows more"


def _parameters(owner: str) -> list[str]:
    """Return the parameter names of the function or class of bitflax of this name."""
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] == "bitflax" and callable(getattr(module, owner, None)):
            signature = inspect.signature(getattr(module, owner))
            return [name for name in signature.parameters if name != "self"]
    return []
