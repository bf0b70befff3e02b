"""A student on a hub: pushed by the real client to a hub here, and loaded from it."""

import json
import re
import shlex

import pytest

import bitflax as bf
from bitflax import cli, model
from bitflax.data import load_task
from bitflax.errors import ConfigError, InputMissing, OutputError, UsageError
from bitflax.inference import model_card, stored_model
from tests.helpers import hub, tinyrun
from tests.inference import test_exporting, test_predictor

TEXTS = test_predictor.TEXTS
# One process, many commands: the client takes a second to import.
COMMANDS = """
import json, shlex, sys
from bitflax import cli
for line in sys.argv[1:]:
    print("status", cli.main(shlex.split(line)), flush=True)
"""
EXTRAS = {
    "recipe": "quickstart",
    "task": "kinds.tsv",
    "metric": "accuracy",
    "stages": [["teacher", 0.8, 32, 9], ["packed", 0.7, 1, None]],
    "dev": "the 6 examples of dev.csv",
    "baselines": [["majority class", 0.4], ["TF-IDF + linear SVM", 0.6]],
    "max_length": 12,
}


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    path = tmp_path_factory.mktemp("student") / "model.safetensors"
    return test_exporting.write_packed(path, extras=EXTRAS)


def said(done) -> list[int]:
    return [int(n) for n in re.findall(r"^status (\d+)", done.stdout, re.M)]


def test_what_is_pushed_is_what_is_loaded(packed, tmp_path):
    text = shlex.quote(TEXTS[0])
    lines = [
        f"export {packed} --format hf --out {tmp_path / 'hf'} --push org/mine --private",
        f"export {packed} --format hf --out {tmp_path / 'b'} --push org/old",
        f"export {packed} --format hf --out {tmp_path / 'c'} --push org/other",
        f"export {packed} --format hf --out {tmp_path / 'd'} --push org/bare",
        f"export {packed} --format hf --out {tmp_path / 'e'} --push org/old --private",
        f"predict org/mine {text} --json",
        "verify org/mine",
        "inspect org/mine",
        "predict org/none a",
    ]
    home = tmp_path / "home"
    home.mkdir()
    mine = {"README.md": model_card.MARK.encode(), "odd.bin": b"1"}
    other = {"README.md": b"my model", "model.safetensors": b"1"}
    bare = {"model.safetensors": b"1"}
    with hub.serving(old=mine, other=other, bare=bare) as there:
        done = hub.asking(
            COMMANDS, *lines, endpoint=there.endpoint, home=home, HF_TOKEN=hub.TOKEN
        )
        files = there.repos["org/mine"]
        assert said(done) == [0, 0, 73, 73, 73, 0, 0, 0, 66], done.stderr
        assert there.private["org/mine"] is True
        # What was there and is not sent is gone; what is not ours stays.
        assert there.repos["org/old"].keys() == test_exporting.HF_FILES
        assert there.repos["org/other"] == other
        assert there.repos["org/bare"] == bare
        assert done.stderr.count("that bitflax export did not write") == 2
        assert "org/old: is public on the hub already" in done.stderr
        assert not [name for name in "cde" if (tmp_path / name).exists()]
    assert files["packed.safetensors"] == packed.read_bytes()
    assert files.keys() == test_exporting.HF_FILES
    assert f"{there.endpoint}/org/mine" in done.stderr
    answer = json.loads(re.search(r"^\{.*\}$", done.stdout, re.M)[0])
    here = bf.load(packed).predict(TEXTS[:1])[0]
    assert answer["label"] == here.label
    assert max(answer["probabilities"].values()) == pytest.approx(
        here.probability, abs=1e-5
    )
    # The dense weights stay where they are: only the packed file was fetched.
    assert "/org/mine/resolve" in " ".join(there.asked)
    assert not [p for p in there.asked if p.endswith("/model.safetensors")]
    # The hub is gone now; what was fetched serves.
    # A run here of the same last name has nothing to do with it.
    run = home / "mine"
    run.mkdir()
    report = {"task": "t", "metric": "accuracy", "stages": []}
    (run / "report.json").write_text(json.dumps(report))
    teacher = {"folder": None, "pretrained": "minilm"}
    recipe = {"recipe": {"name": "another-run", "teacher": teacher}}
    (run / "recipe.json").write_text(json.dumps(recipe))
    offline = hub.asking(
        COMMANDS,
        f"export org/mine --format hf --out {tmp_path / 'again'}",
        "export org/mine --format hf",
        endpoint=there.endpoint,
        home=home,
    )
    assert said(offline) == [0, 0], offline.stderr
    card = (home / "mine-hf" / "README.md").read_text()
    assert "another-run" not in card
    assert "quickstart" in card
    assert (
        tmp_path / "again" / "packed.safetensors"
    ).read_bytes() == packed.read_bytes()


def test_a_hub_out_of_reach_is_one_error_at_once(packed, tmp_path):
    lines = [
        f"export {packed} --format hf --out hf --push org/mine",
        "eval org/a --task b.csv",
    ]
    done = hub.asking(
        COMMANDS,
        *lines,
        endpoint="http://127.0.0.1:9",
        home=tmp_path,
        HF_TOKEN=hub.TOKEN,
    )
    assert said(done) == [73, 66]
    errors = re.findall(r"^bitflax: error: (.*)$", done.stderr, re.M)
    assert errors[0].startswith("org/mine: the hub does not take it (ConnectError")
    assert errors[1].startswith("org/a: no such folder, not in the hub's cache")
    assert not (tmp_path / "hf").exists()


def test_nobody_is_logged_in(packed, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(OutputError, match=r"nobody is logged in(.|\n)*hf auth login"):
        bf.export(packed, tmp_path / "hf", push="org/mine")
    assert not (tmp_path / "hf").exists()


@pytest.mark.parametrize("name", ["mine", "a/b/c", "../b", "/org/mine"])
def test_a_name_that_is_no_hubs_is_refused(name, packed, tmp_path):
    with pytest.raises(OutputError, match="expected a hub's OWNER/NAME"):
        bf.export(packed, tmp_path / "hf", push=name)


def test_nothing_is_private_that_is_not_pushed(packed, capsys):
    assert cli.main(["export", str(packed), "--format", "hf", "--private"]) == 2
    assert "give --push OWNER/NAME too" in capsys.readouterr().err


def test_dense_weights_that_were_changed_are_not_passed_over(packed, tmp_path):
    out = bf.export(packed, tmp_path / "mine-v1.5")
    assert bf.load(out, "jax").predict(TEXTS[:1])
    dense = bytearray((out / "model.safetensors").read_bytes())
    dense[-1] ^= 1
    (out / "model.safetensors").write_bytes(dense)
    with pytest.raises(ConfigError, match="was changed after") as caught:
        bf.load(out, "jax")
    assert "remove packed.safetensors" in caught.value.fix
    (out / "packed.safetensors").unlink()
    assert bf.load(out, "jax").predict(TEXTS[:1])


def test_a_file_is_not_pushed(packed):
    with pytest.raises(UsageError, match="--format hf"):
        bf.export(packed, kind="onnx-int8", push="org/mine")


@pytest.fixture
def never(monkeypatch):
    def asked(*args, **more):
        pytest.fail("asked a hub")

    monkeypatch.setattr(stored_model, "fetch", asked)


@pytest.mark.usefixtures("never")
def test_a_path_that_is_there_wins(packed, tmp_path, monkeypatch):
    folder = tmp_path / "org" / "mine"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(packed.read_bytes())
    monkeypatch.chdir(tmp_path)
    assert bf.load("org/mine", "jax").predict(TEXTS[:1])
    with pytest.raises(InputMissing):
        bf.load("org/other")  # beside it: mistyped, and no hub's
    with pytest.raises(InputMissing):
        bf.load("runs/model.safetensors")


def test_the_exported_folder_is_the_packed_student(packed, tmp_path):
    out = bf.export(packed, tmp_path / "bert-v1.5")
    mine, its = bf.load(packed, "jax").logits(TEXTS), bf.load(out, "jax").logits(TEXTS)
    assert (mine == its).all()
    assert bf.export(out, kind="native") == tmp_path / "bert-v1.5.bitflax"
    # A teacher is the dense model, as for transformers.
    assert model.resolve_folder(out) == out
    assert bf.load_pretrained(out)[0] == bf.load_packed(packed)[0]


def test_the_card_says_what_was_measured_and_how_it_is_loaded(packed, tmp_path):
    card = (bf.export(packed, tmp_path / "hf") / "README.md").read_text()
    assert "On the 6 examples of dev.csv, as the run measured them" in card
    assert "| for comparison: majority class | 0.4000 |  |  |  |" in card
    assert "| for comparison: TF-IDF \\+ linear SVM | 0.6000 |" in card
    assert 'bf.load(".")' in card


def test_a_run_says_what_it_measured_on(tmp_path):
    task = tinyrun.write_task(tmp_path)
    split = load_task(task)
    assert split.measured_on == "the 6 examples that seed 0 split off kinds.tsv"
    dev = tinyrun.write_tsv(tmp_path / "dev.tsv", tinyrun.texts(9, seed=1))
    assert load_task(task, dev=dev).measured_on == "the 9 examples of dev.tsv"


def test_the_command_knows_the_options():
    args = cli.make_parser().parse_args(shlex.split("export m --format hf --push a/b"))
    assert (args.push, args.private) == ("a/b", None)
