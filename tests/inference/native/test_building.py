"""The engine is compiled once, into the user's cache; what is missing is said."""

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

import bitflax as bf
from bitflax.errors import ConfigError, InputMissing, StorageError
from bitflax.inference import engines
from bitflax.inference.native import building, library
from tests.helpers import natives

FAILS = "#!/bin/sh\necho 'no such vector unit' >&2; exit 3\n"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache folder of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    library.load_library.cache_clear()
    yield tmp_path / "cache" / "bitflax" / "native"
    library.load_library.cache_clear()


@pytest.fixture
def no_zig(monkeypatch):
    found = importlib.util.find_spec

    def find_spec(name, *rest):
        return None if name == "ziglang" else found(name, *rest)

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)


@pytest.fixture
def bad_compiler(tmp_path, monkeypatch, no_zig):
    """A system whose compiler fails."""
    path = tmp_path / "bin" / "c++"
    path.parent.mkdir()
    path.write_text(FAILS)
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    return path


@pytest.fixture
def no_compiler(monkeypatch, no_zig):
    monkeypatch.setattr(shutil, "which", lambda name: None)


def made(engine: str):
    params, act = natives.model("binary", "4 bits")
    return engines.make_engine(engine, natives.CONFIG, params, act)


def test_zig_compiles_where_it_is_installed():
    pytest.importorskip("ziglang")
    assert building.find_compiler().zig


@pytest.mark.parametrize(
    ("wanted", "there", "found"),
    [
        ("", {"c++", "g++"}, ("/bin/c++",)),
        ("", {"g++", "clang++"}, ("/bin/g++",)),
        ("", {"clang++"}, ("/bin/clang++",)),
        ("ccache g++-14", {"c++", "ccache"}, ("/bin/ccache", "g++-14")),
        ("gone -m64", {"c++"}, ("/bin/c++",)),
    ],
)
def test_else_the_systems_compiler(monkeypatch, no_zig, wanted, there, found):
    monkeypatch.setenv("CXX", wanted)
    monkeypatch.setattr(shutil, "which", lambda n: f"/bin/{n}" if n in there else None)
    monkeypatch.setattr(building.Path, "stat", lambda path: os.stat(sys.executable))
    assert building.find_compiler().command == found


def test_no_compiler_is_said_before_the_work(no_compiler, tmp_path):
    with pytest.raises(InputMissing, match="no C\\+\\+ compiler") as raised:
        bf.load(tmp_path / "nowhere", engine="native")
    assert raised.value.fix == "pip install 'bitflax[native]'"


def test_without_a_compiler_jax_answers(no_compiler, caplog):
    caplog.set_level(logging.INFO, logger="bitflax")
    found = made("auto")
    (said,) = caplog.messages
    assert said.startswith("the engine jax answers; the native engine: no C++ compiler")
    asked = natives.batch(2, 5)
    expected = natives.by_jax("binary", "4 bits", asked)
    assert natives.apart(found(asked), expected).max() < 1e-5


def test_a_model_that_is_not_native_runs_in_jax(caplog):
    natives.engine_or_skip()
    caplog.set_level(logging.INFO, logger="bitflax")
    params, _ = natives.model("binary")
    act = bf.symmetric(8, groups=2)
    found = engines.make_engine("auto", natives.CONFIG, params, act)
    assert not isinstance(found, library.NativeModel)
    (said,) = caplog.messages
    assert "the native engine does not round by" in said
    with pytest.raises(ConfigError, match="does not round by"):
        engines.make_engine("native", natives.CONFIG, params, act)


def test_what_does_not_compile_is_an_error_that_names_the_log(cache, bad_compiler):
    with pytest.raises(StorageError, match="did not compile") as raised:
        made("native")
    (log,) = cache.glob("*.log")
    assert str(log) in raised.value.problem
    text = log.read_text()
    assert "no such vector unit" in text
    assert f"$ {bad_compiler}" in text
    assert "exit status 3" in text
    assert {path.suffix for path in cache.iterdir()} == {".log", ".lock"}


def test_what_did_not_compile_is_not_tried_again_by_itself(
    cache, bad_compiler, caplog, monkeypatch
):
    caplog.set_level(logging.INFO, logger="bitflax")
    made("auto")
    asked = []
    monkeypatch.setattr(building, "compile_library", lambda *args: asked.append(args))
    found = made("auto")
    assert asked == []
    (log,) = cache.glob("*.log")
    assert str(log) in caplog.messages[-1]
    assert found(natives.batch(1, 4)).shape == (1, 5)


def test_a_cache_that_others_may_write_to_is_not_used(cache):
    cache.mkdir(parents=True)
    cache.chmod(0o777)
    with pytest.raises(StorageError, match="others may write to it"):
        building.cache_folder()


def test_a_cache_that_cannot_be_made_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(StorageError, match="Not a directory"):
        building.cache_folder()


def test_the_key_is_of_sources_flags_compiler_and_machine(monkeypatch):
    one = building.Compiler(("c++",), "c++ 1")
    key = building.library_key(one)
    assert key == building.library_key(one)
    keys = {key, building.library_key(one._replace(identity="c++ 2"))}
    with monkeypatch.context() as patch:
        patch.setattr(building, "FLAGS", ("-O1",))
        keys.add(building.library_key(one))
    with monkeypatch.context() as patch:
        patch.setattr(building, "machine", lambda: "aarch64")
        keys.add(building.library_key(one))
    some = building.sources()[:-1]
    with monkeypatch.context() as patch:
        patch.setattr(building, "sources", lambda: some)
        keys.add(building.library_key(one))
    assert len(keys) == 5


def test_a_library_in_the_cache_is_taken_and_a_damaged_one_is_not(cache, monkeypatch):
    built = []

    def compile_library(compiler, out, folder):
        built.append(out)
        out.write_bytes(b"a library")
        return ""

    monkeypatch.setattr(building, "compile_library", compile_library)
    monkeypatch.setattr(
        building, "find_compiler", lambda: building.Compiler(("c++",), "c++ 1")
    )
    assert building.find_built() is None
    first = building.build()
    assert building.build() == first == building.find_built()
    assert len(built) == 1
    assert json.loads((first.path.parent / "build.json").read_text()) == first.record
    assert first.record["compiler"] == "c++ 1"
    first.path.write_bytes(b"a librarx")
    assert building.find_built() is None
    assert building.build().path.read_bytes() == b"a library"
    assert len(built) == 2
    first.path.write_bytes(b"no library")
    monkeypatch.setattr(building, "_read", lambda place: building.Built(first.path, {}))
    with pytest.raises(StorageError, match="libbitflax"):
        library.load_library()


RACE = """
import sys, time
from pathlib import Path
from bitflax.inference.native import building, library

library.load_library()
print(library.usable_targets()[-1], building.find_built().record["date"])
"""


@pytest.mark.slow
def test_of_several_processes_one_compiles(cache):
    natives.engine_or_skip()
    shutil.rmtree(cache)
    command = [sys.executable, "-c", RACE]
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(3)
    ]
    said = [process.communicate()[0] for process in running]
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(set(said)) == 1
    assert said[0].startswith(b"portable ")
    names = sorted(path.suffix for path in cache.iterdir())
    assert names == ["", ".lock"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_a_system_compiler_does_as_well(cache, monkeypatch, no_zig, name):
    if not shutil.which(name):
        pytest.skip(f"{name} is not installed")
    monkeypatch.setenv("CXX", name)
    asked = natives.batch(4, 20, ragged=True)
    expected = natives.by_jax("binary", "4 bits", asked)
    for target in library.usable_targets():
        found = natives.engine("binary", "4 bits", target)(asked)
        assert natives.apart(found, expected).max() < 2e-6, target
    assert np.isfinite(expected).all()
