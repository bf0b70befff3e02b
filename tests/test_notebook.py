"""The notebooks run from their first cell to their last, on shrunk settings."""

import json
import os
import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from tests.helpers import flags, pages, tinyrun

ROOT = pathlib.Path(__file__).parent.parent
FOLDER = ROOT / "colab"
NAMES = [path.stem for path in sorted(FOLDER.glob("*.ipynb"))]
MOST = 40_000
"""Bytes of a picture that a notebook stores."""
TINY = {
    "task": "kinds.tsv",
    "teacher": "teacher",
    "layers": "1,",
    "max_length": 16,
    "batch_size": 16,
    "teacher_epochs": 2,
    "fp32_epochs": 2,
    "onebit_epochs": 2,
}
SETTINGS = json.dumps([f"{name}={value}" for name, value in TINY.items()])
STUDENT = 'TEACHER, TASK, LAYERS, LENGTH, STEPS = "teacher", "kinds.tsv", (1,), 16, 3'
# What a test writes in the place of a line.
SHRUNK = {
    "1_quickstart": {
        'OUT, SETTINGS = "runs/quickstart", []': (
            f'OUT, SETTINGS = "runs/quickstart", {SETTINGS}'
        )
    },
    "2_own_csv": {
        'FILE, TEXT, LABEL = "", "message", "category"': (
            'FILE, TEXT, LABEL = "kinds.tsv", "text", "label"'
        ),
        "MORE = []": f"MORE = {SETTINGS}[1:]",
    },
    "3_compose": {
        'SETTINGS = ["limit=2000", "max_length=32", "onebit_epochs=6"]': (
            f"SETTINGS = {SETTINGS}"
        )
    },
    "4_weight_splitting": {
        'TEACHER, TASK, LAYERS, LENGTH, STEPS = "minilm", "icd10cm", (1, 3, 5), 24, 60': STUDENT
    },
    "5_devices": {
        'TEACHER, TASK, LAYERS, LENGTH, STEPS = "minilm", "icd10cm", (1, 3, 5), 32, 20': STUDENT
    },
}
PICTURES = dict(zip(NAMES, (2, 0, 1, 3, 0), strict=True))


def read(name):
    nbformat = pytest.importorskip("nbformat")
    found = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(found)
    return found


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(*cells) -> str:
    outputs = [out for cell in cells for out in cell.outputs]
    return "".join(out.text for out in outputs if out.output_type == "stream")


def pictures(*cells) -> list[str]:
    outputs = [out for cell in cells for out in cell.outputs]
    found = [out.get("data", {}).get("image/png") for out in outputs]
    return [each for each in found if each]


def test_there_are_five():
    assert list(SHRUNK) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_what_is_stored_is_small(name):
    cells = code(read(name))
    kept = [cell for cell in cells if cell.outputs]
    assert (len(kept) > 0) == (name == "1_quickstart")
    assert all(cell.execution_count is None for cell in cells)
    stored = pictures(*kept)
    assert all(len(each) * 3 // 4 < MOST for each in stored)
    assert (FOLDER / f"{name}.ipynb").stat().st_size < 2 * MOST + 20_000


def test_the_quickstart_shows_a_whole_run():
    cells = code(read("1_quickstart"))
    assert len(pictures(*cells)) == 2
    table = next(printed(cell) for cell in cells if "report['metric']" in cell.source)
    names = [row.split()[0] for row in table.splitlines()[1:]]
    assert names == ["teacher", "fp32", "onebit", "packed"]
    assert "2,727," in table  # bytes: of the default recipe


def wanted(name) -> tuple[str, str]:
    """Return what a notebook installs, and the repository's address in it."""
    first = code(read(name))[0].source
    (line,) = re.findall(r'%pip install -q "(.*)"', first)
    (address,) = re.findall(r'^REPOSITORY = "(.*)"$', first, re.M)
    return line.replace("{REPOSITORY}", address), address


@pytest.mark.parametrize("name", NAMES)
def test_installing_leaves_jax_alone_and_needs_no_release(name):
    first = code(read(name))[0].source
    line, address = wanted(name)
    found = Requirement(line)
    assert found.url == f"git+{address}"
    extras = project()["optional-dependencies"]
    assert found.extras <= extras.keys()
    assert "upgrade" not in first
    assert "-U" not in first


@pytest.mark.slow
def test_what_a_notebook_installs_is_the_package_with_its_recipes(tmp_path):
    if not (ROOT / ".git").exists():
        pytest.skip("not a checkout")
    line, address = wanted("1_quickstart")
    here = {  # git fetches this checkout for that address
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.{ROOT.as_uri()}.insteadOf",
        "GIT_CONFIG_VALUE_0": address,
    }
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target"]
    subprocess.run([*pip, tmp_path, line], env=os.environ | here, check=True)
    assert (tmp_path / "bitflax" / "_recipes" / "quickstart.py").is_file()


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def test_the_repository_has_one_address():
    """It stands in ``pyproject.toml``; whoever moves it replaces it everywhere."""
    address = project()["urls"]["Repository"]
    owner = address.removeprefix("https://github.com/")
    files = [*pages.PAGES.values(), *pages.PACKAGE.glob("*.md"), *FOLDER.glob("*")]
    seen = set()
    for path in [*files, ROOT / "pyproject.toml"]:
        text = path.read_text("utf-8")
        seen |= set(re.findall(r"github(?:\.com)?/([\w.-]+/bitflax)\b", text))
    assert seen == {owner}
    for name in NAMES:
        badge = f"https://colab.research.google.com/github/{owner}/blob/main/colab"
        assert f"({badge}/{name}.ipynb)" in read(name).cells[0].source
        assert f"colab/{name}.ipynb" in pages.text(pages.README)


def test_links_of_notebooks_lead_to_files():
    for name in NAMES:
        text = "\n".join(c.source for c in read(name).cells if c.cell_type != "code")
        for path in re.findall(r"/blob/main/([^)#\s]+)", text):
            assert (ROOT / path).is_file(), path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a tiny task and a tiny teacher."""
    folder = tmp_path_factory.mktemp("notebooks")
    tinyrun.write_task(folder)
    tinyrun.write_teacher(folder / "teacher")
    return folder


@pytest.mark.slow
# What the kernel's own machinery deprecates is not ours to mend.
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", NAMES)
def test_it_runs(name, place, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("matplotlib")
    notebook, lines = read(name), dict(SHRUNK[name])
    for cell in code(notebook):
        for old in [line for line in lines if f"\n{line}" in f"\n{cell.source}"]:
            cell.source = cell.source.replace(old, lines.pop(old))
    assert lines == {}
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # The first is compiled as a user's is, other than in all other tests.
    many = f"{flags.QUICK} --xla_force_host_platform_device_count=4"
    chosen = {"1_quickstart": "", "5_devices": many}.get(name, flags.QUICK)
    monkeypatch.setenv("XLA_FLAGS", chosen)
    where = {"metadata": {"path": str(place)}}
    nbclient.NotebookClient(notebook, timeout=300, resources=where).execute()
    cells = code(notebook)
    assert len(pictures(*cells)) == PICTURES[name]
    SAID[name](printed(*cells), cells)


def quickstart(said, cells):
    tables = [printed(cell) for cell in cells if "report['metric']" in cell.source]
    names = [row.split()[0] for row in tables[0].splitlines()[1:]]
    assert names == ["teacher", "fp32", "onebit", "packed"]
    assert len(printed(cells[-1]).splitlines()) == 2


def own_csv(said, cells):
    assert "texts from 'text', labels from 'label'" in said
    assert "the 6 examples that seed 0 split off kinds.tsv" in said
    assert re.search(r"\d of 6 are right", said)
    assert re.search(r"model\.safetensors, 0\.0\d MB", said)
    frames = [out for cell in cells for out in cell.outputs if "data" in out]
    assert "srcdoc=" in frames[-1]["data"]["text/html"]


def compose(said, cells):
    table = printed(cells[-1]).splitlines()
    assert len(table) == 4
    assert all("% of the teacher" in row and "bytes" in row for row in table)


def splitting(said, cells):
    assert float(re.search(r"greatest difference: (\S+)", said)[1]) < 1e-6
    assert "a + b is the latent matrix: True" in said
    apart = float(re.search(r"split against ternary: (\S+)", said)[1])
    plain = float(re.search(r"1-bit at once against ternary: (\S+)", said)[1])
    assert apart < 1e-5 < plain


def devices(said, cells):
    assert "4 devices" in said
    assert re.search(r"a batch \(32, \d+\) - each device has \(8, \d+\)", said)
    assert float(re.search(r"relative difference: (\S+)", said)[1]) < 1e-4


SAID = dict(zip(NAMES, (quickstart, own_csv, compose, splitting, devices), strict=True))
