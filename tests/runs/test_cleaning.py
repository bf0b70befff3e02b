"""What a finished run can spare, and what an unfinished one would lose."""

import pytest

from bitflax import cli, files, manifests
from bitflax.errors import FolderBusy, OutputError
from bitflax.runs import cleaning
from bitflax.runs.folder import RunFolder


@pytest.fixture
def run(tmp_path):
    """A run's folder: a stage with a checkpoint of 1,000 bytes, and a cache of 500."""
    with RunFolder(tmp_path / "run") as folder:
        folder.write_recipe("", {"stages": [{"name": "fp32"}]})
        (folder.cache / "tokens").write_bytes(b"x" * 500)
        saved = folder.stage(1, "fp32") / "checkpoints" / "40"
        saved.mkdir(parents=True)
        (saved / "state").write_bytes(b"x" * 1000)
        manifests.write_manifest(saved, {"step": 40})
        (tmp_path / "run" / "model.safetensors").write_bytes(b"packed")
    return tmp_path / "run"


def finish(path):
    files.write_text(path / "1-fp32" / "result.json", "{}")
    with RunFolder(path) as folder:
        folder.finish("model.safetensors")


def test_a_finished_run_stays_finished(run, capsys):
    finish(run)
    manifest = (run / "1-fp32/checkpoints/40" / files.MANIFEST).stat().st_size
    assert cleaning.resume_bytes(run) == 1500 + manifest
    assert cli.main(["clean", str(run)]) == 0
    assert capsys.readouterr().out.startswith(f"{run}\t0.0 MB removed")
    left = {path.name for path in run.iterdir() if not path.name.startswith(".")}
    assert left == {"1-fp32", "model.safetensors", "recipe.json"}
    assert [path.name for path in (run / "1-fp32").iterdir()] == ["result.json"]
    with RunFolder(run) as folder:
        assert folder.finished
    assert cleaning.clean(run) == 0


def test_an_unfinished_run_says_what_it_would_lose(run, capsys):
    assert cli.main(["clean", str(run)]) == 2
    err = capsys.readouterr().err
    assert f"error: {run}: the run is not finished: 1-fp32 would lose its" in err
    assert "lose its 40 steps" in err
    assert (run / "1-fp32/checkpoints/40/state").is_file()
    assert (run / "cache/tokens").is_file()


def test_a_run_that_is_held_is_left_alone(run):
    finish(run)
    with RunFolder(run), pytest.raises(FolderBusy):
        cleaning.clean(run)
    assert (run / "cache/tokens").is_file()


@pytest.mark.parametrize("name", ["nowhere", "plain"])
def test_another_folder_is_no_run(tmp_path, capsys, name):
    (tmp_path / "plain" / "cache").mkdir(parents=True)
    assert cli.main(["clean", str(tmp_path / name)]) == 66
    assert "not a run's folder" in capsys.readouterr().err
    assert (tmp_path / "plain" / "cache").is_dir()
    assert not (tmp_path / "nowhere").exists()


def test_a_name_that_this_process_cannot_spell(run, monkeypatch, capsys):
    finish(run)
    path = run.rename(
        run.with_name("\udcc3\udca9")
    )  # UTF-8, as a locale of ASCII has it
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    with pytest.raises(OutputError, match="its name is not ASCII") as caught:
        cleaning.clean(path)
    assert caught.value.place == str(path)
    assert "PYTHONUTF8=1" in caught.value.fix
    assert "--out" not in caught.value.fix
