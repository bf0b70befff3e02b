"""The notebook runs from its first cell to its last, on a shrunk recipe."""

import pathlib

import pytest

from tests.helpers import tinyrun

ROOT = pathlib.Path(__file__).parent.parent
NOTEBOOK = ROOT / "colab" / "quickstart.ipynb"


@pytest.fixture
def notebook():
    nbformat = pytest.importorskip("nbformat")
    found = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(found)
    return found


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_it_is_stored_without_outputs(notebook):
    assert len(code(notebook)) == 10
    assert all(not cell.outputs for cell in code(notebook))
    assert all(cell.execution_count is None for cell in code(notebook))


def test_installing_leaves_jax_alone(notebook):
    first = code(notebook)[0].source
    assert '"bitflax[demo]"' in first
    assert "upgrade" not in first
    assert "-U" not in first


def printed(cell) -> str:
    return "".join(out.text for out in cell.outputs if out.output_type == "stream")


@pytest.mark.slow
# What the kernel's own machinery deprecates is not ours to mend.
@pytest.mark.filterwarnings("ignore")
def test_it_runs(notebook, tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient")
    task = tinyrun.write_task(tmp_path)
    teacher = tinyrun.write_teacher(tmp_path / "teacher")
    settings = {
        "task": task,
        "teacher": teacher,
        "layers": "1,",
        "max_length": 16,
        "batch_size": 16,
        "teacher_epochs": 2,
        "fp32_epochs": 2,
        "onebit_epochs": 2,
    }
    text = " ".join(f"{name}={value}" for name, value in settings.items())
    monkeypatch.setenv("BITFLAX_SETTINGS", text)
    monkeypatch.setenv("BITFLAX_OUT", str(tmp_path / "run"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    # Compiled as a user's is, other than in all other tests.
    monkeypatch.setenv("XLA_FLAGS", "")
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=where).execute()
    cells = code(notebook)
    table = printed(cells[6]).splitlines()[1:]
    assert [row.split()[0] for row in table] == ["teacher", "fp32", "onebit", "packed"]
    pictures = [out for out in cells[7].outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 2
    assert len(printed(cells[8]).splitlines()) == 2
    losses = printed(cells[9]).splitlines()
    assert [row.split()[0] for row in losses] == ["10", "20", "30"]
    assert "'mine'" in losses[0]
