"""The engine's library: compiled at its first use, kept in the user's cache folder.

``$XDG_CACHE_HOME/bitflax/native/<key>/``, by default in ``~/.cache``, holds the library
and ``build.json``; the key is the SHA-256 of all that the library depends on, so that
what lies there is right or of another key. It may be deleted.
"""

import concurrent.futures
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import filelock

from bitflax import files, manifests
from bitflax.errors import InputMissing, StorageError

NAME = "libbitflax.so"
_RECORD = "build.json"
_LOG = logging.getLogger(__name__)

FLAGS = (
    "-std=c++17",
    "-O2",  # -O3 compiles for twice as long and computes as fast
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-exceptions",
    "-fno-rtti",
    "-fno-threadsafe-statics",
    "-fno-math-errno",
)
_AVX2 = ("-mavx2", "-mfma")
_AVX512 = (*_AVX2, "-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq")
_DOT = ("-march=armv8.2-a+dotprod",)
TARGETS: dict[str, dict[str, tuple[str, ...]]] = {
    "x86_64": {
        "avx512_table6": ("-DBITFLAX_TABLE=6", *_AVX512),
        "avx512_table5": ("-DBITFLAX_TABLE=5", *_AVX512),
        "avx512_vnni": ("-DBITFLAX_VNNI", *_AVX512, "-mavx512vnni"),
        "avx2_table": ("-DBITFLAX_QUADS", *_AVX2),
        "avx2": _AVX2,
    },
    "aarch64": {"neon_table": ("-DBITFLAX_QUADS",), "neon_dot": _DOT},
}
"""A machine's targets besides ``portable``, and the flags that each is compiled by."""

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


class Compiler(NamedTuple):
    """What compiles C++, and which it is."""

    command: tuple[str, ...]
    identity: str
    zig: bool = False


class Built(NamedTuple):
    """A library that was compiled."""

    path: Path
    record: Mapping[str, Any]
    """``compiler``, ``seconds`` and ``date`` of its build, ``sha256`` of the file."""


def machine() -> str:
    """Return this machine's architecture, by the name that ``TARGETS`` has."""
    name = platform.machine().lower()
    return _MACHINES.get(name, name)


def targets(architecture: str) -> dict[str, tuple[str, ...]]:
    """Return the targets of an architecture, and their flags."""
    return {**TARGETS.get(architecture, {}), "portable": ()}


def processor_flags(flags: Sequence[str], zig: bool) -> tuple[str, ...]:
    """Return a target's flags as a compiler takes them; Zig's own say the least CPU.

    >>> processor_flags(["-march=armv8.2-a+dotprod"], zig=True)
    ('-mcpu=baseline+dotprod',)
    """
    if not zig:
        return tuple(flags)
    more = [flag.partition("+")[2] for flag in flags if flag.startswith("-march=")]
    rest = [flag for flag in flags if not flag.startswith("-march=")]
    return (*rest, f"-mcpu={'+'.join(['baseline', *more])}")


def sources() -> list[Path]:
    """Return the C++ files, sorted."""
    folder = Path(__file__).parent
    return sorted([*folder.glob("*.h"), *folder.glob("*.cpp")])


def find_compiler() -> Compiler:
    """Return Zig's C++ compiler, or else the system's.

    Raises:
      InputMissing: there is neither, or the engine does not run on such a machine.
    """
    if os.name != "posix" or sys.byteorder != "little":
        problem = f"does not run on {platform.system()}, {platform.machine()}"
        raise InputMissing("the native engine", problem, fix="take the engine jax")
    if importlib.util.find_spec("ziglang") is not None:
        command = (sys.executable, "-m", "ziglang", "c++")
        return Compiler(command, f"zig {importlib.metadata.version('ziglang')}", True)
    wanted = shlex.split(os.environ.get("CXX", ""))
    for name in (*wanted[:1], "c++", "g++", "clang++"):
        if found := shutil.which(name):
            about = Path(found).resolve().stat()
            identity = f"{found} of {about.st_size} bytes, {about.st_mtime_ns}"
            rest = wanted[1:] if wanted and name == wanted[0] else ()
            return Compiler((found, *rest), identity)
    raise InputMissing(
        "the native engine",
        "no C++ compiler is there",
        fix="pip install 'bitflax[native]'",
    )


def cache_folder() -> Path:
    """Return the user's folder of compiled engines, made if need be.

    Raises:
      StorageError: it cannot be made, or others could put a library there.
    """
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "bitflax" / "native"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        about = folder.stat()
        if about.st_uid != os.getuid() or about.st_mode & 0o022:
            raise PermissionError(0, "others may write to it")
    except (OSError, RuntimeError) as error:  # RuntimeError: no home
        words = getattr(error, "strerror", None) or str(error)
        place = getattr(error, "filename", None) or "the cache folder"
        fix = "set XDG_CACHE_HOME to a folder of your own"
        raise StorageError(place, words, fix=fix) from None
    return folder


def library_key(compiler: Compiler) -> str:
    """Return what names a library: of sources, flags, compiler and machine."""
    sha = hashlib.sha256()
    for path in sources():
        sha.update(f"{path.name}\0".encode() + path.read_bytes() + b"\0")
    said = [*FLAGS, targets(machine()), compiler, sys.platform, machine(), _c_library()]
    sha.update(repr(said).encode())
    return sha.hexdigest()[:32]


def _c_library() -> str:
    try:
        return os.confstr("CS_GNU_LIBC_VERSION") or ""
    except (ValueError, OSError):
        return ""


def find_built() -> Built | None:
    """Return the library if it lies in the cache, whole.

    Raises:
      InputMissing, StorageError: as ``find_compiler`` and ``cache_folder``.
    """
    return _read(cache_folder() / library_key(find_compiler()))


def _read(place: Path) -> Built | None:
    try:
        record = json.loads((place / _RECORD).read_bytes())
        if manifests.sha256(place / NAME) == record["sha256"]:
            return Built(place / NAME, record)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def failed_before() -> Path | None:
    """Return the log of the last try to compile, if it failed.

    Raises:
      InputMissing, StorageError: as ``find_compiler`` and ``cache_folder``.
    """
    log = _log_of(cache_folder() / library_key(find_compiler()))
    return log if log.is_file() else None


def _log_of(place: Path) -> Path:
    return place.with_suffix(".log")


def build() -> Built:
    """Return the library, which is compiled if it is not in the cache.

    Of several processes one compiles, and the others wait for it.

    Raises:
      InputMissing: there is no compiler.
      StorageError: it does not compile, or the cache folder cannot be used.
    """
    compiler = find_compiler()
    place = cache_folder() / library_key(compiler)
    if found := _read(place):
        return found
    with files.disk(place), filelock.FileLock(place.with_suffix(".lock")):
        found = _read(place)
        if found is None:
            _LOG.info("the native engine is compiled, once; it takes some ten seconds")
            _compile_into(place, compiler)
            found = _read(place)
    if found is None:
        raise StorageError(place, "is not what was compiled", fix="check the disk")
    return found


def _compile_into(place: Path, compiler: Compiler) -> None:
    begin = time.monotonic()
    log = _log_of(place)
    with tempfile.TemporaryDirectory(prefix=".", dir=place.parent) as name:
        folder = Path(name) / "made"
        folder.mkdir(mode=0o700)
        said = compile_library(compiler, folder / NAME, Path(name))
        if said:
            log.write_text(said, "utf-8")
            problem = f"it did not compile; {log} has what the compiler said"
            fix = "another compiler: pip install 'bitflax[native]', or set CXX; or "
            raise StorageError("the native engine", problem, fix=f"{fix}--engine jax")
        record = {
            "compiler": compiler.identity,
            "date": time.strftime("%Y-%m-%d %H:%M:%S"),
            "seconds": round(time.monotonic() - begin, 1),
            "sha256": manifests.sha256(folder / NAME),
        }
        (folder / _RECORD).write_text(json.dumps(record), "utf-8")
        shutil.rmtree(place, ignore_errors=True)  # a damaged one
        folder.rename(place)
        log.unlink(missing_ok=True)


def compile_library(compiler: Compiler, out: Path, folder: Path) -> str:
    """Compile the sources for this machine's targets, all cores at once, and link.

    Args:
      compiler: what compiles.
      out: the library to write.
      folder: where its parts go.

    Returns:
      What the compiler said where it failed; "" where it did not.
    """
    here = targets(machine())
    commands = []
    for path in sources():
        if path.name == "target.cpp":
            parts = {
                name: (f"-DBITFLAX_TARGET={name}", *flags)
                for name, flags in here.items()
            }
        else:
            parts = {path.stem: ()} if path.suffix == ".cpp" else {}
        for stem, flags in parts.items():
            made = str(folder / f"{stem}.o")
            own = [*FLAGS, *processor_flags(flags, compiler.zig)]
            commands.append([*own, "-c", str(path), "-o", made])
    cores = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count()
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        said = "".join(pool.map(lambda command: _said(compiler, command), commands))
    if said:
        return said
    objects = [command[-1] for command in commands]
    link = ["-shared", *objects, "-o", str(out)]
    # Without a file of the C library Zig would make one, which takes a quarter minute.
    quick = _mapped_libraries() if compiler.zig else []
    return _said(compiler, [*link, *(["-s", "-nostdlib", *quick] if quick else [])])


def _mapped_libraries() -> list[str]:
    """Return the files of the C library that this process runs with."""
    try:
        maps = Path("/proc/self/maps").read_text("utf-8", "replace")
    except OSError:
        return []
    named = r"/\S*/(?:libc|libm|libpthread|ld-musl)[-.][^/\s]*$"
    found = dict.fromkeys(re.findall(named, maps, re.MULTILINE))
    return [*found] if any("libc" in path or "musl" in path for path in found) else []


def _said(compiler: Compiler, arguments: list[str]) -> str:
    """Run the compiler; return "" where it did well."""
    command = [*compiler.command, *arguments]
    try:
        ran = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
    except OSError as error:
        return f"$ {shlex.join(command)}\n{error}\n"
    if ran.returncode == 0:
        return ""
    return f"$ {shlex.join(command)}\n{ran.stdout}\nexit status {ran.returncode}\n"
