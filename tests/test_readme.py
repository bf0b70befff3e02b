"""What the README and the pages of ``bitflax/docs`` say holds, and runs as printed."""

import contextlib
import dataclasses
import functools
import io
import json
import pathlib
import re
import shlex

import jax
import numpy as np
import pytest

import bitflax as bf
from bitflax import cli
from bitflax.data.text import Tokenizer
from bitflax.errors import BitflaxError
from bitflax.inference import exporting
from bitflax.model import leaves
from bitflax.recipe import loading
from bitflax.runs import trials
from tests.helpers import pages, small, tinyrun

PAGES = pytest.mark.parametrize("page", pages.PAGES.values(), ids=[*pages.PAGES])
ONNX_PAGE = "deploy.md"
BLOCKS = [
    pytest.param(code, name == ONNX_PAGE, id=f"{name}-{number}")
    for name, path in pages.PAGES.items()
    for number, code in enumerate(pages.blocks(path, "python"))
]


def halved(leaf):
    return isinstance(leaf, leaves.Split)


def close(one, other):
    np.testing.assert_allclose(one, other, atol=1e-6)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with ``runs/quickstart`` as a finished run has it, on a small model."""
    there = tmp_path_factory.mktemp("finished")
    run = there / "runs" / "quickstart"
    run.mkdir(parents=True)
    made = tinyrun.write_teacher(there / "two-layers")
    config = dataclasses.replace(bf.load_pretrained(made)[0], num_hidden_layers=6)
    params, tokenizer = small.params(config), Tokenizer.from_folder(made)
    bf.save_pretrained(run / "0-teacher" / "params", config, params, tokenizer)
    student = dataclasses.replace(config, num_hidden_layers=3)
    packed = bf.pack(bf.take_layers(params, (1, 3, 5)), bf.xtc_1bit())
    act, file = bf.symmetric(bits=8), run / "model.safetensors"
    bf.save_packed(file, student, packed, act, tokenizer.to_json())
    row = {"name": "packed", "score": 0.5, "bits": 1, "bytes": file.stat().st_size}
    (run / "report.json").write_text(json.dumps({"stages": [row]}))
    return there


@pytest.fixture
def exported(finished):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    return exporting.export(finished / "runs" / "quickstart", kind="onnx-int8")


@functools.cache
def ran(code: str, folder: pathlib.Path) -> tuple[dict, str]:
    """Run a block in a folder, where it leaves no file; return its names and words."""
    names, said, before = {"__name__": "block"}, io.StringIO(), {*folder.rglob("*")}
    with (
        tinyrun.devices(1),
        contextlib.redirect_stdout(said),
        contextlib.chdir(folder),
    ):
        exec(compile(code, "block", "exec"), names)
    assert {*folder.rglob("*")} == before
    return names, said.getvalue()


@pytest.mark.parametrize(("code", "onnx"), BLOCKS)
def test_python_prints_something_and_leaves_no_file(code, onnx, finished, request):
    if "import datasets" in code:
        pytest.importorskip("datasets")
    if onnx:
        request.getfixturevalue("exported")
    assert ran(code, finished)[1].strip()


def block(page: str, holds: str) -> str:
    return next(c for c in pages.blocks(pages.PAGES[page], "python") if holds in c)


def test_the_split_matrices_are_the_ternary_ones(finished):
    names, _ = ran(block("layers-and-bits.md", "bf.split"), finished)
    before = bf.quantize(names["params"], names["ternary"])
    both = jax.tree.map(leaves.dense, names["binary"], is_leaf=halved)
    jax.tree.map(close, both, before)


def test_the_own_step_steps_with_an_own_loss(finished):
    names, said = ran(block("extending.md", "make_train_step"), finished)
    assert int(names["state"].step) == 1
    assert {"logits", "hidden", "scores", "margin"} < set(names["metrics"])
    assert "bytes: LABEL_" in said


def test_the_own_quantizer_packs_to_one_bit(finished):
    kernels = [
        line
        for line in ran(block("extending.md", "median"), finished)[1].splitlines()
        if "kernel" in line
    ]
    assert len(kernels) == 6
    assert all(line.split()[0] == "1" for line in kernels)


def test_the_own_recipe_runs_to_a_packed_file_of_one_bit(tmp_path):
    (code,) = pages.blocks(pages.PAGES["extending.md"], "python mine.py")
    (tmp_path / "mine.py").write_text(code)
    teacher = f"teacher={tinyrun.write_teacher(tmp_path / 'teacher')}"
    task = f"task={tinyrun.write_task(tmp_path)}"
    short = ["layers=1", "data.max_length=16", "teacher.steps=2"]
    short += ["stages.onebit.steps=2", task, teacher]
    rows = tinyrun.run(tmp_path / "mine.py", tmp_path / "run", *short)
    assert (rows[-1].name, rows[-1].bits) == ("packed", 1)
    log = (tmp_path / "run" / "log.jsonl").read_text()
    assert '"loss/margin"' in log


def faults(command: str) -> str:
    """Return why a command line is none, or its recipe or settings are not there."""
    try:
        args = cli.make_parser().parse_args(shlex.split(command)[1:])
        # One in capitals, and mine.py, are the reader's own.
        if "recipe" in args and not re.fullmatch(r"[A-Z]+|mine\.py", args.recipe):
            file, seeds = loading.read_recipe(args.recipe), vars(args).get("seeds")
            over = vars(args).get("over", ())
            trials.make_trials(file, args.settings, over, seeds or 1)
    except BitflaxError as error:
        return str(error)
    except SystemExit:  # --version
        return ""
    return ""


def is_named(command: str) -> bool:
    """Whether it only names a command, or a command and its recipe: no options."""
    _, verb, *rest = command.split()
    known = loading.recipe_files()
    return verb in cli.make_parser().commands and all(name in known for name in rest)


@PAGES
def test_every_command_line_is_one(page):
    lines = [line for line in pages.commands(page) if not is_named(line)]
    assert {line: faults(line) for line in lines if faults(line)} == {}


def test_command_lines_are_found_and_their_faults_told(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "`bitflax ls` and `bitflax show\nquickstart --set nothing=1`\n"
        "```bash\na && bitflax run quikstart --out a > b  # why\n"
        'host$ bitflax predict a "b # c" --nothing\nssh --command="bitflax ls"\n```\n'
    )
    found = list(pages.commands(page))
    assert found[:2] == ["bitflax run quikstart --out a", 'bitflax predict a "b']
    assert found[2:4] == ["bitflax ls", "bitflax ls"]
    assert faults(found[0])
    assert faults("bitflax predict a b --nothing")
    assert "nothing" in faults(found[4])
    assert [line for line in found if is_named(line)] == ["bitflax ls"] * 2
    assert not is_named("bitflax run quikstart")
    assert faults("bitflax tune quickstart --out a --over nothing=1,2")


@PAGES
def test_every_setting_is_some_recipes(page):
    recipes = [loading.read_recipe(path) for path in loading.recipe_files().values()]
    for span in pages.spans(page):
        if span.startswith("--set ") and not re.search(r"=$|=[A-Z]|a\.b", span):
            settings = [s for s in shlex.split(span) if s != "--set"]
            assert any(built(recipe, settings) for recipe in recipes), span


def built(recipe, settings) -> bool:
    try:
        return bool(recipe.build(settings))
    except BitflaxError:
        return False


@PAGES
def test_every_name_is_there(page):
    names = re.findall(r"\bbf\.([a-zA-Z_]\w*)", pages.text(page))
    assert [name for name in names if not hasattr(bf, name)] == []


LINKED = [*pages.PAGES.values(), *pages.PACKAGE.glob("*.md")]


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for path, anchor in pages.links(page):
        assert path.exists(), path
        if anchor:
            assert anchor in pages.anchors(path), f"{path.name}#{anchor}"


def test_anchors_are_githubs(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# ONNX in C++\n## `a.b`, or c?\n## ONNX in C\n")
    assert pages.anchors(page) == {"onnx-in-c", "ab-or-c", "onnx-in-c-1"}


def test_every_page_is_reached_from_the_readme():
    reached = {path for path, _ in pages.links(pages.README)}
    assert {path.resolve() for path in pages.DOCS} <= reached
    assert len(pages.text(pages.README).splitlines()) <= 150


def test_the_readme_has_the_two_commands():
    first, second = pages.blocks(pages.README, "bash")[:2]
    assert "bitflax run quickstart" in first
    assert second.rstrip().endswith("python -m pytest")


def test_the_wheel_carries_the_pages():
    assert pages.DOCS
    assert all(path.is_relative_to(pages.PACKAGE) for path in pages.DOCS)
    assert pathlib.Path(pages.PACKAGE / "FORMAT.md").is_file()
