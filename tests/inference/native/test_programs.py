"""The engine in programs of C and C++: the example, under sanitizers, on ARM."""

import functools
import pathlib
import platform
import shutil
import subprocess
import sys

import numpy as np
import pytest

from bitflax.inference import exporting
from bitflax.inference.native import building, flat_file
from bitflax.packed import file
from tests.helpers import natives
from tests.inference.native import test_flat_file

HERE = pathlib.Path(__file__).parent
INCLUDE = building.sources()[0].parent


def compiled(folder: pathlib.Path, command, source: str, targets: dict, flags) -> str:
    """Compile a program of this folder with the engine's sources; return its path."""
    command = [
        *command,
        "-O1",
        "-g1",  # the lines that a report names
        "-std=c++17",
        "-fno-exceptions",
        "-fno-rtti",
        *flags,
    ]
    command += ["-I", str(INCLUDE)]
    objects = []
    for path in [*building.sources(), HERE / source]:
        each = targets if path.name == "target.cpp" else {path.stem: ()}
        for name, own in each.items() if path.suffix == ".cpp" else ():
            objects.append(str(folder / f"{name}.o"))
            named = [f"-DBITFLAX_TARGET={name}"] if each is targets else []
            made = [*command, *named, *own, "-c", str(path), "-o", objects[-1]]
            subprocess.run(made, check=True)
    out = str(folder / "program")
    # Zig would make a C++ library first, which nobody needs.
    less = ["-nostdlib++"] if "ziglang" in command else []
    command += [*objects, *less, "-lpthread", "-o", out]
    subprocess.run(command, check=True)
    return out


def written(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Flat files of every kind of weights and quantizers, by their names."""
    kinds = [(weights, "8 bits") for weights in natives.WEIGHTS]
    kinds += [(weights, "none") for weights in ("binary", "split")]
    kinds += [("binary", act) for act in natives.ACTS]
    paths = {"small": folder / "small"}
    paths["small"].write_bytes(test_flat_file.sealed())
    for weights, act in dict.fromkeys(kinds):
        # One file of two layers is enough: a sanitizer makes each cost seconds.
        config = natives.SHORT if len(paths) > 1 else natives.CONFIG
        params, found = natives.model(weights, act, config)
        flat = flat_file.to_flat(config, params, found)
        flat_file.seal(flat)
        path = folder / f"{weights} {act}".replace(" ", "_")
        path.write_bytes(flat.tobytes())
        paths[path.name] = path
    return paths


def test_the_example_prints_the_logits_of_jax(tmp_path):
    natives.engine_or_skip()
    params, act = natives.model("binary", "4 bits")
    file.save_packed(tmp_path / "m.safetensors", natives.CONFIG, params, act)
    flat = exporting.export(tmp_path / "m.safetensors", kind="native")
    assert flat == tmp_path / "m.bitflax"
    out, built = tmp_path / "example", building.build().path
    zig = [sys.executable, "-m", "ziglang", "cc"]  # makes a C library first
    command = ["cc"] if shutil.which("cc") else zig
    command += ["-std=c11", "-Wall", "-Wextra", "-Werror", "-I", str(INCLUDE)]
    command += [str(HERE / "example.c"), str(built), f"-Wl,-rpath,{built.parent}"]
    subprocess.run([*command, "-o", str(out)], check=True)
    ids = [3, 50, 7, 119]
    asked = {"input_ids": np.array([ids], np.int32)}
    asked |= {"attention_mask": np.ones((1, 4), np.int32)}
    asked |= {"token_type_ids": np.zeros((1, 4), np.int32)}
    ran = subprocess.run([out, flat, *map(str, ids)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = np.array(ran.stdout.split(), np.float32)
    expected = natives.by_jax("binary", "4 bits", asked)[0]
    np.testing.assert_allclose(found, expected, atol=2e-6)
    ran = subprocess.run([out, flat, "120"], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "beyond the model's" in ran.stderr


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory):
    """The driver, watched by AddressSanitizer and UndefinedBehaviorSanitizer."""
    found = shutil.which("g++") or shutil.which("clang++")
    if not found:
        pytest.skip("neither g++ nor clang++ is installed; Zig has no AddressSanitizer")
    folder = tmp_path_factory.mktemp("sanitized")
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    targets = building.targets(building.machine())
    return compiled(folder, [found], "driver.cpp", targets, flags)


def driver(program, *words) -> str:
    """What the driver says; fails where it ends otherwise than well."""
    command = [*([program] if isinstance(program, str) else program), *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert ran.returncode == 0, f"{words}: {ran.stdout[-300:]}{ran.stderr[-3000:]}"
    assert ran.stderr == ""
    return ran.stdout


@pytest.mark.slow
@pytest.mark.long
def test_models_of_all_kinds_run_without_a_report(sanitized, tmp_path):
    paths = written(tmp_path)
    for number, target in enumerate(driver(sanitized, "targets").strip().split(",")):
        for path in paths.values():
            # What one thread does is no target's own.
            for threads in (1, 3) if number == 0 else (3,):
                assert driver(sanitized, "run", path, target, threads)


@pytest.mark.slow
@pytest.mark.long
def test_mutated_files_are_refused_or_run_without_a_report(sanitized, tmp_path):
    paths = written(tmp_path)
    targets = driver(sanitized, "targets").strip().split(",")
    refused = answered = 0
    for seed, path in enumerate(paths.values()):
        count = 6000 if path.name == "small" else 1000
        target = targets[seed % len(targets)]
        said = driver(sanitized, "mutate", path, target, seed, count).split()
        refused, answered = refused + int(said[0]), answered + int(said[1])
    assert refused + answered >= 20_000
    assert refused > 4000
    assert answered > 1000


@functools.cache
def emulator() -> list[str]:
    """What runs programs of 64-bit ARM here."""
    pytest.importorskip("ziglang")
    if platform.machine() == "aarch64":
        return []
    for name in ("qemu-aarch64", "qemu-aarch64-static"):
        if found := shutil.which(name):
            return [found]
    pytest.skip("qemu-aarch64 is not installed (apt-get install qemu-user)")


@pytest.mark.slow
@pytest.mark.long
def test_arm_computes_what_this_processor_does(tmp_path):
    runner = emulator()
    zig = [sys.executable, "-m", "ziglang", "c++", "-target", "aarch64-linux-musl"]
    targets = {
        name: building.processor_flags(flags, zig=True)
        for name, flags in building.targets("aarch64").items()
    }
    program = compiled(tmp_path, zig, "driver.cpp", targets, ["-static"])
    own = tmp_path / "own"
    own.mkdir()
    found = building.find_compiler().command
    here = compiled(own, found, "driver.cpp", {"portable": ()}, [])
    there = [*runner, program]
    assert set(driver(there, "targets").strip().split(",")) == {*targets}
    for name, path in written(tmp_path).items():
        expected = np.array(driver(here, "run", path, "portable", 1).split(), float)
        for target in targets:
            logits = np.array(driver(there, "run", path, target, 2).split(), float)
            apart = np.abs(logits - expected) / np.abs(expected).max()
            # Rounding the other way moves a text's logits, by more the fewer levels.
            flips = not name.endswith("none")
            exact = 0.75 if "8_bits" in name or name == "small" else 0.98
            assert np.mean(apart < 2e-6) >= (exact if flips else 1), (name, target)
            assert apart.max() < 0.05, (name, target)
