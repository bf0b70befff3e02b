"""What a run depends on besides its recipe: versions, devices, dtypes they choose."""

import dataclasses
import importlib.metadata
import os
import platform
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from bitflax import training
from bitflax.recipe import Recipe

_EARLIER_LR = 2e-4
"""Of the teacher, before it depended on the classes: what older folders recorded."""
_PACKAGES = [
    "bitflax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "tokenizers",
    "numpy",
]


def memory() -> int:
    """Return the bytes of memory that this machine or container has."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:  # a container has less than its machine
        return min(whole, int(Path("/sys/fs/cgroup/memory.max").read_text()))
    except (OSError, ValueError):
        return whole


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def machine() -> dict[str, Any]:
    """Return the devices and the jax settings on which the last bits depend."""
    mesh = training.mesh()
    return {
        "devices": mesh.size,
        "device": mesh.devices.flat[0].device_kind,
        "x64": bool(getattr(jax.config, "jax_enable_x64", False)),
        "matmul": str(getattr(jax.config, "jax_default_matmul_precision", None)),
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
    }


def with_appended(there: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    """Return the recipe ``there`` with the later stages that only ``here`` has."""
    mine, its = (recipe.get("stages") or [] for recipe in (there, here))
    more = its[len(mine) :]
    return there | {"stages": mine + more} if more else there


def differences(
    there: Any, here: Any, path: str = "", free: Collection[str] = ()
) -> Iterator[str]:
    """Yield each difference of two JSON trees, except under the names in ``free``.

    >>> list(differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2}))
    ['a.b was 1, is 3 now']
    """
    if isinstance(there, dict) and isinstance(here, dict):
        names = [name for name in {**there, **here} if name not in free]
        pairs = [(name, there.get(name), here.get(name)) for name in names]
    elif isinstance(there, list) and isinstance(here, list):
        size = max(len(there), len(here))
        there, here = (x + [None] * (size - len(x)) for x in (there, here))
        pairs = list(zip(range(size), there, here, strict=True))
    else:
        if there != here and (there == there or here == here):  # NaN is NaN
            yield f"{path} was {there!r}, is {here!r} now"
        return
    for name, x, y in pairs:
        yield from differences(x, y, f"{path}.{name}" if path else str(name), free)


def listed(differ: Sequence[str]) -> str:
    """Return differences as one line of a message, the first five of many.

    >>> listed(["a was 1, is 2 now", "b was 1, is 3 now"])
    'a was 1, is 2 now; b was 1, is 3 now'
    """
    more = f" (and {len(differ) - 5} more)" if len(differ) > 5 else ""
    return "; ".join(differ[:5]) + more


def with_dtypes(recipe: Recipe, began: dict[str, Any]) -> Recipe:
    """Return the recipe with a dtype in place of each ``"auto"``.

    The devices decide, but a resumed run keeps the dtypes that it began with: ``began``
    is its resolved recipe, ``{}`` where it begins now.
    """

    def chosen(part: Any, before: dict[str, Any] | None, *names: str) -> Any:
        made = {}
        for name in names:
            asked = getattr(part, name)
            if asked == "auto" and before is not None:
                made[name] = before.get(name)
            else:
                made[name] = training.chosen_dtype(asked)
        return dataclasses.replace(part, **made)

    known = {stage["name"]: stage for stage in began.get("stages", ())}
    stages = tuple(
        chosen(stage, known.get(stage.name), "dtype", "teacher_dtype")
        for stage in recipe.stages
    )
    teacher = chosen(recipe.teacher, began.get("teacher"), "dtype")
    return dataclasses.replace(recipe, teacher=teacher, stages=stages)


def with_rate(recipe: Recipe, began: dict[str, Any]) -> Recipe:
    """Return the recipe with a teacher's rate that was the default of an earlier one.

    Where the recipe leaves the rate to the data, an earlier bitflax recorded 2e-4, and
    what it trained goes on, or is taken over, with that.

    Args:
      recipe: the run's.
      began: the resolved recipe that this folder, or the one it takes over from, began
        with; ``{}``: neither did.
    """
    teacher = recipe.teacher
    rate = began.get("teacher", {}).get("optim", {}).get("lr")
    if teacher.optim.lr is not None or rate != _EARLIER_LR:
        return recipe
    teacher = dataclasses.replace(
        teacher, optim=dataclasses.replace(teacher.optim, lr=rate)
    )
    return dataclasses.replace(recipe, teacher=teacher)
