"""The programs of ``docs/deploy.md`` run as printed, where what they need is there."""

import ast
import contextlib
import io
import json
import os
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

import bitflax as bf
from bitflax.inference import exporting
from bitflax.inference.native import building
from bitflax.packed import read_packed
from tests.helpers import natives, pages, small, tinyrun

PAGE = pages.PAGES["deploy.md"]
TEXTS = ["acute bronchitis", "fracture of the left wrist"]
IDS = [2, 5, 13, 8, 3]
"""In place of those that the page prints, which the tiny vocabulary has not."""


def program(language: str) -> str:
    (code,) = pages.blocks(PAGE, language)
    ids = ", ".join(map(str, IDS))
    code = code.replace("101, 11325, 26293, 102", ids).replace("1, 1, 1, 1", "1, " * 5)
    return code.replace("types[4]", "types[5]").replace("types, 1, 4", "types, 1, 5")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's folder inside a working folder: packed student, exports, teacher."""
    out = tmp_path_factory.mktemp("deployed") / "runs" / "quickstart"
    out.mkdir(parents=True)
    names = {0: "food", 1: "animal", 2: "sky"}
    teacher = out / "0-teacher" / "params"
    tinyrun.write_teacher(teacher, num_labels=3, id2label=names)
    config = bf.load_pretrained(teacher)[0]
    packed = bf.pack(small.params(config, 5), bf.xtc_1bit())
    text = tinyrun.tokenizer().to_json()
    bf.save_packed(out / "model.safetensors", config, packed, bf.symmetric(8), text)
    return out


@pytest.fixture(scope="module")
def onnx_run(run):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    exporting.export(run, kind="onnx-int8")
    return run


def logits(run: pathlib.Path) -> np.ndarray:
    model = read_packed(run / "model.safetensors")
    row = np.array([IDS])
    batch = {"input_ids": row, "attention_mask": row * 0 + 1, "token_type_ids": row * 0}
    apply = bf.bert(model.config, model.act)
    return np.asarray(apply(model.params, batch).logits)[0]


def output(*command: object, folder: pathlib.Path, **more: str) -> str:
    found = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env=os.environ | more,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 0, found.stderr
    return found.stdout


def folder_of(run: pathlib.Path) -> pathlib.Path:
    return run.parent.parent


def same(said: str, run: pathlib.Path) -> None:
    np.testing.assert_allclose([float(x) for x in said.split()], logits(run), atol=1e-4)


@pytest.mark.parametrize("language", ["python", "javascript", "cpp", "c"])
def test_a_program_is_short(language):
    lines = [line for line in program(language).splitlines() if line.strip()]
    ours = [line for line in lines if not line.startswith(("import", "#include"))]
    assert len(ours) <= 13


def test_python_says_what_bitflax_says(onnx_run, monkeypatch):
    monkeypatch.chdir(folder_of(onnx_run))
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(program("python"), str(PAGE), "exec"), {})
    expected = [found.label for found in bf.load(onnx_run, "jax").predict(TEXTS)]
    assert ast.literal_eval(said.getvalue()) == expected


def node_modules() -> pathlib.Path:
    """Return a folder that has the two packages, as NODE_PATH names it, or skip."""
    if not shutil.which("node"):
        pytest.skip("no node")
    for place in filter(None, os.environ.get("NODE_PATH", "").split(os.pathsep)):
        modules = pathlib.Path(place)
        if all((modules / n).is_dir() for n in ("onnxruntime-node", "@huggingface")):
            return modules
    pytest.skip("NODE_PATH names no onnxruntime-node and @huggingface/tokenizers")


def test_javascript_says_what_bitflax_says(onnx_run):
    modules, folder = node_modules(), folder_of(onnx_run)
    (folder / "node_modules").symlink_to(modules)  # where `import` looks
    (folder / "predict.mjs").write_text(program("javascript"))
    expected = bf.load(onnx_run, "jax").predict(TEXTS[:1])[0].label
    assert output("node", "predict.mjs", folder=folder).split() == [expected]


def test_cpp_gives_the_same_logits(onnx_run):
    release = pathlib.Path(os.environ.get("ONNXRUNTIME_HOME", "/usr/local"))
    compiler = shutil.which("c++")
    if not compiler or not (release / "include" / "onnxruntime_cxx_api.h").is_file():
        pytest.skip("no C++ compiler, or ONNXRUNTIME_HOME has no include/ of a release")
    folder, libraries = folder_of(onnx_run), release / "lib"
    (folder / "predict.cpp").write_text(program("cpp"))
    flags = ["-std=c++17", "-I", release / "include", "predict.cpp", "-L", libraries]
    flags += ["-lonnxruntime", f"-Wl,-rpath,{libraries}", "-o", "predict"]
    output(compiler, *flags, folder=folder)
    same(output("./predict", folder=folder), onnx_run)


def test_c_gives_the_same_logits(run):
    natives.engine_or_skip()
    exporting.export(run, kind="native")
    folder, built = folder_of(run), building.build().path
    (folder / "predict.c").write_text(program("c"))
    zig = [sys.executable, "-m", "ziglang", "cc"]
    command = ["cc"] if shutil.which("cc") else zig
    command += ["-Wall", "-Wextra", "-Werror", "-I", str(building.sources()[0].parent)]
    command += [
        "predict.c",
        str(built),
        f"-Wl,-rpath,{built.parent}",
        "-o",
        "predict-c",
    ]
    output(*command, folder=folder)
    same(output("./predict-c", folder=folder), run)


def test_the_ids_are_replaced():
    assert "101" not in program("c") + program("cpp")
    assert json.dumps(IDS)[1:-1] in program("c")
