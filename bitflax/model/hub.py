"""A model on a hub, by its name: fetched from it, or sent there."""

import re
from pathlib import Path

from bitflax.errors import InputMissing, OutputError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")
_FILE = re.compile(r"\.(safetensors|json|jsonl|bin|csv|tsv|txt|onnx|bitflax)$")
SECONDS = 5.0
_SIDE_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
)


def is_hub_name(name: str | Path) -> bool:
    """Whether a text is a hub's ``org/name``: what lies here by that name wins.

    ``runs/teacher`` beside a folder ``runs`` is a mistyped path, not a hub's model.

    >>> is_hub_name("org/name"), is_hub_name("./name"), is_hub_name("a/m.safetensors")
    (True, False, False)
    """
    # First the form: no other path out of a model file is even looked for.
    if not isinstance(name, str) or not _HUB_ID.fullmatch(name) or _FILE.search(name):
        return False
    return not Path(name).exists() and not Path(name).parent.exists()


def fetch(repo: str, alone: str = "") -> Path:
    """Return a folder with a hub's model: configuration, weights and tokenizer.

    What was fetched before serves where the hub is not reached.

    Args:
      repo: its ``org/name``.
      alone: a file that is all that is fetched, where the hub's model has it.

    Raises:
      InputMissing: the hub has no such model, or neither it nor its cache is reached.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        # One short question first: the library itself would retry many times.
        info = huggingface_hub.HfApi().model_info(repo, timeout=SECONDS)
        names = {file.rfilename for file in info.siblings or ()}
        wanted = [alone] if alone in names else [*_SIDE_FILES, *_weights(names)]
        return Path(
            huggingface_hub.snapshot_download(
                repo, allow_patterns=wanted, etag_timeout=SECONDS
            )
        )
    except (errors.RepositoryNotFoundError, errors.GatedRepoError):
        raise InputMissing(
            repo,
            "no such folder, and the hub has no such model (or it is private)",
            fix="correct the name, or log in with `hf auth login`",
        ) from None
    except errors.OfflineModeIsEnabled:
        problem = "HF_HUB_OFFLINE is set"
    except Exception as error:
        # httpx's, requests' or the library's own, by its version.
        problem = f"no hub gives it ({type(error).__name__}: {error})"
    for name in filter(None, (alone, "config.json", "model.safetensors")):
        kept = huggingface_hub.try_to_load_from_cache(repo, name)
        if isinstance(kept, str):
            return Path(kept).parent
    raise InputMissing(
        repo,
        f"no such folder, not in the hub's cache, and {problem}",
        fix="give the folder of a model that is on this machine",
    )


def _weights(names: set[str]) -> list[str]:
    for stem, pattern in (
        ("model.safetensors", "model*.safetensors"),
        ("pytorch_model.bin", "pytorch_model*.bin"),
    ):
        if stem in names:
            return [stem]
        if f"{stem}.index.json" in names:
            return [f"{stem}.index.json", pattern]
    return []


def check_push(repo: str, mark: str, private: bool | None = None) -> None:
    """Check, before any work, that somebody may send a model under a name.

    Args:
      repo: a hub's ``org/name``.
      mark: what a model's card there has to hold, since all else is replaced.
      private: what a new one is to be; None: either.

    Raises:
      OutputError: it is no name, nobody is logged in, or the hub is not reached; or
        what is there has no such card, or is public where it is to be private.
    """
    import huggingface_hub

    if not _HUB_ID.fullmatch(repo):
        problem = f"expected a hub's OWNER/NAME, found {repo!r}"
        raise OutputError("push", problem, fix="as in --push me/my-1-bit-bert")
    if huggingface_hub.get_token() is None:
        problem = "nobody is logged in to the hub"
        raise OutputError(repo, problem, fix="`hf auth login`, or set HF_TOKEN")
    try:
        huggingface_hub.HfApi().whoami()
        there = _there(repo)
    except Exception as error:
        raise _not_taken(repo, error) from None
    if there is None:
        return
    hidden, card = there
    if card is not None and mark not in card:
        problem = "the hub has files there that bitflax export did not write"
        raise OutputError(repo, problem, fix="give another name, or empty that one")
    if private is not None and private != hidden:
        problem = f"is {'private' if hidden else 'public'} on the hub already"
        fix = "change that in its settings there, or give another name"
        raise OutputError(repo, problem, fix=fix)


def _there(repo: str) -> tuple[bool, str | None] | None:
    """Return whether what a hub has is private, and its card; None: it has nothing.

    The card is None where there are no files, and empty where they have none.
    """
    import huggingface_hub
    from huggingface_hub import errors

    try:
        info = huggingface_hub.HfApi().model_info(repo, timeout=SECONDS)
    except errors.RepositoryNotFoundError:
        return None
    names, card = {file.rfilename for file in info.siblings or ()}, None
    if "README.md" in names:
        path = huggingface_hub.hf_hub_download(
            repo, "README.md", revision=info.sha, etag_timeout=SECONDS
        )
        card = Path(path).read_text("utf-8", "replace")
    elif names - {".gitattributes"}:
        card = ""
    return bool(info.private), card


def push(folder: Path, repo: str, private: bool | None = None) -> str:
    """Send all files of a folder to a hub in one commit; return the model's address.

    What was there before and is not sent goes, in the same commit.

    Args:
      folder: what is sent.
      repo: its ``org/name`` there; made, where it is new.
      private: whether a new one is seen by its owner alone; None: as the owner's
        account has it.

    Raises:
      OutputError: the hub does not take it.
    """
    import huggingface_hub

    api = huggingface_hub.HfApi()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        about = "Written by bitflax export"
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=about, delete_patterns="*"
        )
    except Exception as error:
        raise _not_taken(repo, error) from None
    return str(made)


def _not_taken(repo: str, error: Exception) -> OutputError:
    said = (str(error).splitlines() or [""])[0][:200]
    problem = f"the hub does not take it ({type(error).__name__}: {said})"
    fix = "check the network, the name and your rights there (`hf auth whoami`)"
    return OutputError(repo, problem, fix=fix)
