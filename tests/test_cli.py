"""The command line's manners: two-line errors, exit statuses, signals, pipes."""

import contextlib
import errno
import os
import signal
import subprocess
import sys

import jax
import pytest

import bitflax
from bitflax import cli, commands, errors
from tests.helpers import tinyrun

HOSTS = ["--coordinator", "127.0.0.1:1", "--processes", "2", "--process", "1"]


@pytest.fixture
def fails(monkeypatch):
    """Make ``bitflax ls`` raise an error."""

    def fails(error: BaseException) -> None:
        def command(args):
            raise error

        monkeypatch.setattr(commands, "ls_command", command)

    return fails


@pytest.mark.parametrize(
    ("argv", "problem", "fix"),
    [
        ([], "no command given", "the commands are: ls, show, run"),
        (["rn"], "no such command: rn", "did you mean 'run'?"),
        (["run", "quickstart"], "required: --out", "bitflax run --help"),
        (["run"], "required: RECIPE, --out", "bitflax run --help"),
        (["show", "quickstart", "--sett", "a=b"], "no such option", "'--set'"),
        (["run", "quickstart", "--ou", "x"], "required: --out", "--help"),
        (["run", "a", "--out", "b", "--label", "c"], "option: --label", "--set label="),
        (["show", "a", "extra", "--top", "3"], "option: --top", "--set top=..."),
        (["predict", "x", "--text", "a"], "option: --text", "of eval and augment"),
        (["eval", "x", "--task", "y", "--tex", "a"], "option: --tex", "'--text'"),
        (["show", "quickstart", "more"], "unrecognized arguments: more", "--help"),
        (["eval", "x"], "required: --task", "bitflax eval --help"),
        (["export", "x"], "required: --format", "bitflax export --help"),
        (["export", "x", "--format", "onnx"], "invalid choice: 'onnx'", "--help"),
        (["export", "x", "--format", "onnx-2bit"], "onnx-2bit is gone", "onnx-int8"),
        (["predict", "x", "--engine", "tf"], "invalid choice: 'tf'", "--help"),
        (["run", "quickstart", "--out", "x", "--until", "z"], "no such stage", "teach"),
        # A mistyped command waits for no other process.
        (["run", "quickstart", "--out", "x", "--until", "z", *HOSTS], "stage", "teach"),
        (["run", "quickstart", "--out", "x", *HOSTS[:2]], "--processes", "--process I"),
        (
            ["run", "a", "--out", "b", "--out", "b"],
            "--out: is given twice",
            "leave one",
        ),
        (
            ["predict", "x", "--column", "a", "--column", "b"],
            "given twice",
            "leave one",
        ),
    ],
)
def test_usage_errors(capsys, argv, problem, fix):
    assert cli.main(argv) == 2
    said = capsys.readouterr()
    first, second = said.err.splitlines()
    assert first.startswith("bitflax: error: ")
    assert problem in first
    assert second.startswith("fix: ")
    assert fix in second
    assert said.out == ""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UsageError, 2),
        (errors.DataError, 65),
        (errors.InputMissing, 66),
        (errors.OutputError, 73),
        (errors.StorageError, 74),
        (errors.FolderBusy, 75),
        (errors.DamagedFile, 76),
        (errors.ConfigError, 78),
        (errors.Diverged, 79),
    ],
)
def test_each_kind_of_error_has_its_status(capsys, fails, error, status):
    fails(error("train.tsv:17", "expected 2 columns", fix="put a tab"))
    assert cli.main(["ls"]) == status
    expected = "bitflax: error: train.tsv:17: expected 2 columns\nfix: put a tab\n"
    assert capsys.readouterr().err == expected


@pytest.mark.parametrize(
    ("error", "status", "first", "fix"),
    [
        (FileNotFoundError(2, "No such file", "a/b"), 66, "a/b: No such file", "give"),
        (OSError(errno.ENOSPC, "No space left", "a/b"), 74, "a/b: No space", "free"),
        (PermissionError(13, "Permission denied", "a"), 74, "a: Perm", "permissions"),
        (RuntimeError("odd\nmore"), 1, "internal: RuntimeError: odd", "--debug"),
        (KeyError("x"), 1, "internal: KeyError: 'x'", "a bug in bitflax"),
        (MemoryError(), 1, "memory: out of memory", "data.batch_size"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GB"), 1, "memory: out", "batch_size"),
    ],
)
def test_other_exceptions_are_two_lines_too(capsys, fails, error, status, first, fix):
    fails(error)
    assert cli.main(["ls"]) == status
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"bitflax: error: {first}")
    assert fix in lines[1]


@pytest.mark.parametrize("argv", [["ls", "--debug"], ["--debug", "ls"]])
def test_debug_shows_the_traceback(capsys, fails, argv):
    fails(errors.DataError("x", "y", fix="z"))
    assert cli.main(argv) == 65
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith("bitflax: error: x: y\nfix: z\n")


def test_ctrl_c_is_130(capsys, fails):
    fails(KeyboardInterrupt())
    assert cli.main(["ls"]) == 130
    assert "goes on where it stopped" in capsys.readouterr().err


def test_sigterm_is_143_and_its_handler_is_put_back(capsys, monkeypatch):
    saved = []

    def command(args):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        except KeyboardInterrupt:
            os.kill(os.getpid(), signal.SIGTERM)  # a second one does not disturb
            saved.append("checkpoint")
            raise

    monkeypatch.setattr(commands, "ls_command", command)
    before = signal.getsignal(signal.SIGTERM)
    assert cli.main(["ls"]) == 143
    assert saved == ["checkpoint"]
    assert signal.getsignal(signal.SIGTERM) == before
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["--help"], ["run", "--help"], ["--version"]])
def test_help_and_version(capsys, argv):
    assert cli.main(argv) == 0
    said = capsys.readouterr()
    assert said.err == ""
    word = bitflax.__version__ if argv == ["--version"] else "usage: bitflax"
    assert word in said.out


def test_every_command_has_help():
    for name in cli.make_parser().commands:
        assert cli.main([name, "--help"]) == 0


def test_a_closed_pipe_is_quiet():
    command = [sys.executable, "-m", "bitflax.cli", "ls"]
    read, write = os.pipe()
    os.close(read)
    found = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert found.stderr == ""
    assert found.returncode == 141


def test_a_device_that_is_not_there_is_no_bug(capsys, fails, monkeypatch):
    fails(AssertionError())
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    monkeypatch.setattr(jax, "devices", lambda: [][0])
    assert cli.main(["ls"]) == 78
    first, second = capsys.readouterr().err.splitlines()
    place = "bitflax: error: JAX_PLATFORMS: "
    assert first == f"{place}expected a device that is here, found 'cuda'"
    assert second.startswith("fix: unset it, or set it to cpu")


def test_a_bug_is_a_bug_where_the_device_is_there(capsys, fails, monkeypatch):
    fails(AssertionError("mine"))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert cli.main(["ls"]) == 1
    assert "internal: AssertionError: mine" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv",
    [
        "predict {} text",
        "eval {} --task {}",
        "eval model --task {}",
        "export {} --format hf",
        "verify {}",
        "inspect {}",
        "show {}",
        "show quickstart --set teacher={}",
        "run quickstart --set teacher.pretrained={} --out OUT",
        "augment {} --vectors glove --out OUT.jsonl",
    ],
)
@pytest.mark.parametrize("kind", ["address", "pipe", "device"])
def test_an_input_is_a_file_or_a_folder_here(capsys, tmp_path, argv, kind):
    places = {"address": "https://x.org/a.tsv", "pipe": "a.tsv", "device": "/dev/zero"}
    place = places[kind] if kind == "address" else str(tmp_path / places[kind])
    if kind == "pipe":
        os.mkfifo(place)
    if argv == "eval model --task {}":
        tinyrun.write_teacher(tmp_path / "model")
    words = argv.format(place, place).replace("OUT", str(tmp_path / "out"))
    words = words.replace("model", str(tmp_path / "model"))
    assert cli.main(words.split()) == 66
    said = capsys.readouterr().err.splitlines()[-2:]
    assert said[0].startswith(f"bitflax: error: {place}: expected a ")
    assert said[1].startswith("fix: ")


@pytest.mark.parametrize(
    "argv",
    [
        "run quickstart --out s3://b/out",
        "export MODEL --format hf --out s3://b/out",
        "augment glue/rte --vectors glove --out s3://b/out",
    ],
)
def test_an_output_is_no_address(capsys, tmp_path, argv):
    words = argv.replace("MODEL", str(tinyrun.write_teacher(tmp_path / "m"))).split()
    assert cli.main(words) == 73
    first, second = capsys.readouterr().err.splitlines()
    assert first.endswith(
        "s3://b/out: expected a path on this machine, found an address"
    )
    assert second == "fix: give a path here, and copy it there afterwards"


def test_a_home_folder_is_found_in_every_path(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    tinyrun.write_teacher(tmp_path / "model")
    tinyrun.write_task(tmp_path)
    for argv in (
        "predict ~/model cat",
        "inspect ~/model",
        "export ~/model --format hf --out ~/out",
    ):
        assert cli.main(argv.split()) == 0, capsys.readouterr().err
    assert (tmp_path / "out" / "config.json").is_file()
    (tmp_path / "sub").mkdir()
    monkeypatch.chdir(tmp_path / "sub")
    assert cli.main(["verify", "~/model"]) == 66  # no packed file, but there
    assert "a folder of dense weights" in capsys.readouterr().err
    assert not list(tmp_path.glob("sub/*"))


@pytest.mark.parametrize(
    "argv",
    [
        ["clean", ""],
        ["report", ""],
        ["predict", "", "a"],
        ["inspect", ""],
        ["export", "", "--format", "hf"],
        ["eval", "MODEL", "--task", "TASK", "--dev", ""],
    ],
    ids=lambda argv: argv[0],
)
def test_an_empty_path_is_not_this_folder(argv, capsys, tmp_path):
    if "MODEL" in argv:
        known = {"MODEL": tinyrun.write_teacher(tmp_path / "hf")}
        known["TASK"] = tinyrun.write_task(tmp_path)
        argv = [str(known.get(word, word)) for word in argv]
    assert cli.main(argv) == 66
    assert "expected a path, found nothing" in capsys.readouterr().err


OURS = "<!doctype html>\n<html>\n<title>bitflax: mine</title>"
PAGES = [
    ("report", "page.html", OURS, 66),  # one of ours; there is no run
    ("report", "index.html", "<!doctype html>\n<title>My bitflax</title>", 73),
    ("report", "new.html", None, 66),
    ("report", "empty.html", "", 66),
    ("report", "page.html", "mine", 73),
    ("report", "kinds.tsv", "text\tlabel\n", 73),
    ("report", "new.txt", None, 73),
    ("eval", "said.jsonl", '{"row": 2, "text": "a"}\n', 66),
    ("eval", "task.jsonl", '{"text": "a", "label": "b"}\n', 73),
    ("eval", "dev.jsonl", '{"row": 2, "text": "a"}\n', 73),  # it is what is measured
    ("eval", "model.safetensors", None, 73),
]


@pytest.mark.parametrize(("command", "name", "text", "status"), PAGES)
def test_what_is_written_takes_no_other_file_s_place(
    command, name, text, status, tmp_path, capsys
):
    out = tmp_path / name
    if text is not None:
        out.write_text(text)
    more = ["--task", str(tmp_path / "task.tsv")] if command == "eval" else []
    more += ["--dev", str(tmp_path / "dev.jsonl")] if command == "eval" else []
    argv = [command, str(tmp_path / "none"), *more, "--out", str(out)]
    assert cli.main(argv) == status
    assert (str(out) in capsys.readouterr().err) == (status == 73)
    assert out.exists() == (text is not None)
    assert text is None or out.read_text() == text


def test_a_page_of_several_runs_takes_no_other_page_s_place(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "comparison.html").write_text("<!doctype html>")
    assert cli.main(["report", "a", "b"]) == 73
    assert cli.main(["report", "a"]) == 66
    assert "comparison.html: is there already, and" in capsys.readouterr().err


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no full device")
def test_a_full_stdout_is_named(monkeypatch, capsys):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert cli.main(["ls"]) == 74
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert "bitflax: error: stdout: No space left on device" in capsys.readouterr().err
