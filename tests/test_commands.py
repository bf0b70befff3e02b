"""The subcommands, in this process, on tiny models."""

import io
import os
import shutil
import sys

import jax
import numpy as np
import pytest

import bitflax as bf
from bitflax import cli, inference, runs, signals
from bitflax.inference import asking, predictor
from bitflax.model import pretrained
from bitflax.packed import file, packing
from tests.helpers import small, tinyrun


class Echo:
    """A predictor that says how it was asked."""

    def __init__(self, label="LABEL"):
        self.label, self.asked = label, []

    def predict(self, texts):
        self.asked.append(list(texts))
        return [predictor.Prediction(self.label, 0.5, text) for text in texts]


@pytest.fixture
def echo(monkeypatch):
    made = Echo()
    monkeypatch.setattr(inference, "load", lambda path, engine, threads: made)
    return made


def stdin(monkeypatch, data: bytes) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))


def test_ls_lists_recipes_and_tasks(capsys):
    assert cli.main(["ls"]) == 0
    said = capsys.readouterr().out
    for word in ("quickstart", "xtc", "finetune", "icd10cm", "glue/stsb"):
        assert f"  {word} " in said


@pytest.mark.parametrize("name", ["quickstart", "xtc", "finetune"])
def test_show_describes_every_recipe(capsys, name):
    assert cli.main(["show", name]) == 0
    said = capsys.readouterr().out
    for word in ("Command", "dials", "teacher "):
        assert word in said


def test_show_follows_set(capsys):
    assert cli.main(["show", "quickstart", "--set", "layers=0,1,2,3,4,5"]) == 0
    assert "[384, 1536] x 6" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["show", "quickstar"], 66),
        (["show", "quickstart", "--set", "layer=1"], 78),
        (["show", "quickstart", "--set", "layers=9"], 78),
        (["show", "quickstart", "--set", "per=row"], 78),
        (["show", "quickstart", "--set", "task=glue/sst"], 78),
        (["show", "quickstart", "--set", "seed=-1"], 78),
        (["inspect", "nowhere"], 66),
        (["predict", "nowhere", "text"], 66),
        (["eval", "nowhere", "--task", "icd10"], 66),
    ],
)
def test_mistakes_have_their_statuses(capsys, argv, status):
    assert cli.main(argv) == status
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("name", ["quickstart", "xtc", "finetune"])
def test_show_reads_the_data(capsys, tmp_path, name):
    teacher = tinyrun.write_teacher(tmp_path / "bert", layers=12)
    rows = "".join(f"{text},{kind},{kind}\n" for text, kind in tinyrun.texts())
    (tmp_path / "own.csv").write_text(f"body,kind,other\n{rows}")
    taught = "pretrained" if name == "finetune" else "teacher"
    argv = ["show", name, "--set", f"{taught}={teacher}"]
    dials = ["--set", "text=body", "--set", "label=kind"]
    own = ["--set", f"task={tmp_path}/own.csv"]
    assert cli.main([*argv, *dials, *own]) == 0
    said = capsys.readouterr().out
    assert "own.csv: texts from 'body', labels from 'kind', left out: 'other'" in said
    assert "54 examples to learn from, 6 to measure accuracy on; 3 classes" in said
    assert ("classifier/kernel [32, 3]" in said) == (name != "finetune")
    assert cli.main([*argv, *dials, *own, "--set", f"dev={tmp_path}/no.csv"]) == 66
    assert f"error: {tmp_path}/no.csv: there is no" in capsys.readouterr().err


def test_predict_prints_label_probability_and_text(capsys, echo):
    assert cli.main(["predict", "m", "one", "-", "two words"]) == 0
    out, err = capsys.readouterr()
    assert out == "LABEL\t0.5000\tone\nLABEL\t0.5000\t-\nLABEL\t0.5000\ttwo words\n"
    assert err == ""


@pytest.mark.parametrize(
    "argv",
    [
        ["m", "a", "b", "--engine", "onnx"],
        ["m", "a", "--engine", "onnx", "b"],
        ["m", "--engine", "onnx", "a", "b"],
        ["--engine", "onnx", "m", "a", "b"],
    ],
)
def test_texts_stand_on_either_side_of_an_option(capsys, echo, argv):
    assert cli.main(["predict", *argv]) == 0
    assert echo.asked == [["a", "b"]]


def test_predict_still_refuses_an_unknown_option(capsys, echo):
    assert cli.main(["predict", "m", "a", "--engin", "onnx"]) == 2
    assert "no such option: --engin" in capsys.readouterr().err
    assert echo.asked == []


def test_predict_prints_a_real_number(capsys, echo):
    echo.label = 4.25
    assert cli.main(["predict", "m", "one\ttwo"]) == 0
    assert capsys.readouterr().out == "4.2500\t-\tone\ttwo\n"
    assert echo.asked == [[("one", "two")]]


def test_predict_reads_stdin_in_pieces(capsys, echo, monkeypatch):
    lines = [f"text {i}" for i in range(1500)]
    stdin(monkeypatch, "\r\n".join(lines).encode())
    assert cli.main(["predict", "m"]) == 0
    assert [text for piece in echo.asked for text in piece] == lines
    assert len(echo.asked) == 2
    assert len(capsys.readouterr().out.splitlines()) == 1500


@pytest.mark.parametrize(
    ("data", "place", "problem"),
    [
        (b"a\tb\nc\td\te\n", "stdin:2", "expected a pair as in the first line"),
        (b"a\nb\tc\n", "stdin:2", "expected a text as in the first line, found 2"),
        (b"a\tb\tc\n", "stdin:1", "expected a text or a pair, found 3 fields"),
        (b"a\nb\n\xff\n", "stdin:3", "not UTF-8"),
        (b"a\n\nb\n", "stdin:2", "expected a text, found a blank line"),
    ],
)
def test_bad_lines_are_named(capsys, echo, monkeypatch, data, place, problem):
    stdin(monkeypatch, data)
    assert cli.main(["predict", "m"]) == 65
    assert f"bitflax: error: {place}: {problem}" in capsys.readouterr().err


def test_bytes_of_an_argument_are_named(capsys, echo):
    assert cli.main(["predict", "m", "a", "red \udcff cat"]) == 65
    assert "error: TEXT:2: not UTF-8" in capsys.readouterr().err


def test_a_nul_is_named_by_its_line(capsys, echo, monkeypatch):
    stdin(monkeypatch, b"a\nb\0c\n")
    assert cli.main(["predict", "m"]) == 65
    assert (
        "stdin:2: expected a text, found a text with a NUL" in capsys.readouterr().err
    )


def test_a_file_given_as_a_text_is_asked_about(capsys, echo, tmp_path):
    (tmp_path / "texts.txt").write_text("a\n")
    assert cli.main(["predict", "m", "a", f"{tmp_path}/texts.txt"]) == 2
    err = capsys.readouterr().err
    assert f"found the name of a file: '{tmp_path}/texts.txt'" in err
    assert "< FILE" in err
    assert cli.main(["predict", "m", f"{tmp_path}/nothing.txt"]) == 0
    assert echo.asked == [[f"{tmp_path}/nothing.txt"]]


def test_no_text_and_a_closed_stdin(capsys, echo, monkeypatch):
    monkeypatch.setattr(sys, "stdin", None)
    assert cli.main(["predict", "m"]) == 2
    assert "stdin is closed" in capsys.readouterr().err
    assert cli.main(["predict", "m", "a"]) == 0


def test_a_closed_stdout_is_told_before_any_work(capsys, echo, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    assert cli.main(["predict", "m", "a"]) == 74
    assert "error: stdout: is closed" in capsys.readouterr().err
    assert echo.asked == []


def test_a_stdout_of_ascii_takes_escapes(echo, monkeypatch):
    out, left = io.BytesIO(), []
    monkeypatch.setattr(sys, "argv", ["bitflax", "predict", "m", "caf\u00e9 \u6c49"])
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, "ascii"))
    monkeypatch.setattr(signals, "take_over", lambda: None)
    monkeypatch.setattr(signals, "leave", left.append)
    assert cli.main() == 0
    assert out.getvalue() == b"LABEL\t0.5000\tcaf\\xe9 \\u6c49\n"
    assert left == [0]


def test_what_moves_the_cursor_is_escaped_in_label_and_text(capsys, echo):
    echo.label = "a\x1b[2J\tb"
    text = "red \x1b[2J\n\u202ecat \u2028 caf\u00e9"
    assert cli.main(["predict", "m", text]) == 0
    assert capsys.readouterr().out == (
        "a\\x1b[2J\\tb\t0.5000\tred \\x1b[2J\\n\\u202ecat \\u2028 caf\u00e9\n"
    )


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (["a", "--csv", "b.csv"], "texts and a file of texts"),
        (["--column", "a"], "--column, and no --csv"),
        (["--pair", "a"], "0 texts and 1 --pair"),
    ],
)
def test_texts_come_from_one_place(capsys, echo, argv, problem):
    assert cli.main(["predict", "m", *argv]) == 2
    assert problem in capsys.readouterr().err
    assert echo.asked == []


def test_predict_reads_a_table_in_pieces(capsys, echo, tmp_path):
    rows = [f"text {i}" for i in range(1500)]
    (tmp_path / "a.csv").write_text("\n".join(["id,body", *(f"1,{r}" for r in rows)]))
    argv = ["predict", "m", "--csv", f"{tmp_path}/a.csv", "--column", "body"]
    assert cli.main(argv) == 0
    out, err = capsys.readouterr()
    assert [text for piece in echo.asked for text in piece] == rows
    assert out.splitlines()[-1] == "LABEL\t0.5000\ttext 1499"
    assert "predict 1500/1500 100%" in err


def test_a_text_of_another_width_is_named(capsys, echo):
    assert cli.main(["predict", "m", "a", "b\tc"]) == 65
    assert "TEXT:2: expected a text as in the first line" in capsys.readouterr().err


@pytest.mark.parametrize("end", [b"", b"\n"])
def test_many_lines_are_counted_before_and_timed_after(capsys, echo, monkeypatch, end):
    stdin(monkeypatch, b"\n".join([b"x"] * 2500) + end)
    assert cli.main(["predict", "m"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 2500
    first, second, last = err.splitlines()
    assert first.startswith("predict 0/2500 0% (")
    assert second.startswith("predict 2500/2500 100% (")
    assert last.startswith("predict: 2,500 texts in ")
    assert last.endswith(" a second")


def test_what_stdin_has_given_before_is_not_counted(monkeypatch):
    stdin(monkeypatch, b"a\nb\nc\n")
    sys.stdin.buffer.readline()
    assert asking.lines_left() == 2
    assert sys.stdin.buffer.readline() == b"b\n"


def test_a_pipe_is_not_counted(capsys, echo, monkeypatch):
    read, write = os.pipe()
    with os.fdopen(write, "wb") as file:
        file.write(b"x\n" * 1200)
    with os.fdopen(read, "r") as file:
        monkeypatch.setattr(sys, "stdin", file)
        assert cli.main(["predict", "m"]) == 0
    (last,) = capsys.readouterr().err.splitlines()
    assert last.startswith("predict: 1,200 texts in ")


def test_on_a_terminal_the_answers_are_the_progress(capsys, echo, monkeypatch):
    out = io.StringIO()
    out.isatty = lambda: True
    monkeypatch.setattr(sys, "stdout", out)
    assert cli.main(["predict", "m", *["x"] * 1200]) == 0
    (last,) = capsys.readouterr().err.splitlines()
    assert last.startswith("predict: 1,200 texts in ")
    assert out.getvalue().count("\n") == 1200


CONFIG = bf.BertConfig(
    vocab_size=50,
    hidden_size=20,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=36,
    max_position_embeddings=16,
)


@pytest.fixture(scope="module")
def params():
    return small.params(CONFIG)


@pytest.fixture(scope="module")
def packed(params, tmp_path_factory):
    """A run's folder with a packed file in it."""
    folder = tmp_path_factory.mktemp("run")
    tree = packing.pack(params, bf.xtc_1bit())
    file.save_packed(folder / "model.safetensors", CONFIG, tree)
    return folder


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_inspect_accounts_for_every_byte(capsys, packed, name):
    assert cli.main(["inspect", str(packed / name)]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    total = (packed / "model.safetensors").stat().st_size
    assert last.split()[0] == "total"
    assert last.split()[-1] == f"{total:,}"


def test_inspect_reads_a_model_folder(capsys, params, tmp_path):
    pretrained.save_pretrained(tmp_path / "model", CONFIG, params)
    assert cli.main(["inspect", str(tmp_path / "model")]) == 0
    *rows, last = capsys.readouterr().out.splitlines()[1:]
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    assert last.split() == ["total", f"{size:,}", f"{4 * size:,}"]
    assert {row.split()[1] for row in rows} == {"32"}


def test_inspect_reads_the_file_that_is_named(capsys, params, packed, tmp_path):
    folder = tmp_path / "model"
    pretrained.save_pretrained(folder, CONFIG, params)
    for name, source in (("s", packed), ("other.safetensors", folder)):
        shutil.copy(source / "model.safetensors", folder / name)
    (folder / "model.safetensors").unlink()
    assert cli.main(["inspect", str(folder / "s")]) == 0
    total = (folder / "s").stat().st_size
    assert capsys.readouterr().out.split()[-1] == f"{total:,}"
    (folder / "torn").write_bytes((folder / "s").read_bytes()[:-9])
    assert cli.main(["inspect", str(folder / "torn")]) == 76
    assert cli.main(["inspect", str(folder / "other.safetensors")]) == 0
    size = sum(np.size(leaf) for leaf in jax.tree.leaves(params))
    assert capsys.readouterr().out.split()[-1] == f"{4 * size:,}"


def test_inspect_names_the_stage_of_an_unfinished_run(capsys, tmp_path):
    (tmp_path / "1-fp32" / "params").mkdir(parents=True)
    assert cli.main(["inspect", str(tmp_path)]) == 66
    assert "1-fp32/params" in capsys.readouterr().err


def test_predict_hands_the_engine_on(monkeypatch, capsys):
    asked = []

    def load(path, engine, threads):
        asked.append((path, engine, threads))
        return Echo()

    monkeypatch.setattr(inference, "load", load)
    argv = ["predict", "m", "a", "--engine", "onnx", "--threads", "2"]
    assert cli.main(argv) == 0
    assert cli.main(["predict", "m", "a"]) == 0
    assert asked == [("m", "onnx", 2), ("m", "auto", None)]


def test_export_prints_path_and_bytes(capsys, packed, tmp_path):
    out = tmp_path / "hf"
    argv = ["export", str(packed), "--format", "hf", "--out", str(out)]
    assert cli.main(argv) == 0
    size = sum(path.stat().st_size for path in out.iterdir())
    assert capsys.readouterr().out == f"{out}\t{size}\n"


def test_run_hands_everything_to_stages(monkeypatch, tmp_path):
    called = {}

    def run(recipe, out, **options):
        called.update(recipe=recipe, out=out, **options)

    monkeypatch.setattr(runs, "run", run)
    argv = ["run", "quickstart", "--out", str(tmp_path), "--set", "seed=3"]
    assert cli.main([*argv, "--set", "limit=5", "--until", "fp32"]) == 0
    assert called["recipe"].seed == 3
    assert called["recipe"].data.limit == 5
    assert called["out"] == str(tmp_path)
    assert called["until"] == "fp32"
    assert called["overrides"] == ("seed=3", "limit=5")
    assert "def recipe(" in called["source"]
