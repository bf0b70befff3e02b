"""The tokenizer of a Hugging Face folder, as transformers itself reads it.

Its files are somebody else's: sizes, ids and regexes are looked at before a library
makes objects of them, which may take its memory or its hours.
"""

import contextlib
import json
import logging
import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitflax import files
from bitflax.errors import BitflaxError, ConfigError, DamagedFile, InputMissing

VOCABULARIES = ("tokenizer.json", "vocab.txt")
SETTINGS = (
    "added_tokens.json",
    "special_tokens_map.json",
    "config.json",
    "tokenizer_config.json",
)
MOST_TOKENS = 1 << 20
LONGEST = 1 << 20
"""Tokens of a text: what says more says that it does not know."""
_REGEXES = (" {2,}",)
"""Those that XLM-R's tokenizer has; others may run for hours or panic."""


def read(folder: Path) -> tuple[Path, str, int | None]:
    """Return a folder's vocabulary file, ``tokenizer.json``'s text, and max_length.

    Raises:
      InputMissing: the folder, or a tokenizer in it, is missing.
      DamagedFile: a file is damaged or too large, or no tokenizer.
      ConfigError: its class is one of Python, not of the tokenizers library.
    """
    place = next((folder / n for n in VOCABULARIES if (folder / n).exists()), None)
    if place is None:
        raise InputMissing(
            folder,
            "expected a folder with tokenizer.json or vocab.txt, found neither",
            fix="copy the model's tokenizer files into the folder",
        )
    said: dict[str, Any] = {}
    for file in (folder / name for name in SETTINGS):
        found = files.read_json(file) if file.exists() else {}
        if file.name == "added_tokens.json":
            with damage(file, Exception):
                _check_ids(found.values())
        said |= found
    with damage(place, Exception):
        _check_vocabulary(files.read_text(place), place.name)
        _check_ids(int(key) for key in said.get("added_tokens_decoder") or {})
        text, longest = _as_transformers_reads(folder, said)
    known = isinstance(longest, int) and 0 < longest < LONGEST
    return place, text, longest if known else None


def _check_vocabulary(text: str, name: str) -> None:
    """Refuse lines that shift the ids of all later ones, and ids that no table has."""
    if name == "vocab.txt":
        lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
        places: dict[str, int] = {}
        for number, line in enumerate(lines, 1):
            if not line.strip(" "):
                raise ValueError(f"line {number} is blank, which shifts all later ids")
            if places.setdefault(line, number) != number:
                problem = f"{line!r:.40} in the lines {places[line]} and {number}"
                raise ValueError(f"{problem}, which shifts all later ids")
        return
    found = json.loads(text)
    for regex in re.findall(r'"Regex"\s*:\s*"((?:[^"\\]|\\.)*)"', text):
        if regex not in _REGEXES:
            raise ValueError(f"a regex of its own, {regex!r:.60}")
    vocab = (found.get("model") or {}).get("vocab") or {}
    ids = list(vocab.values()) if isinstance(vocab, dict) else []
    _check_ids([*ids, *(token["id"] for token in found.get("added_tokens") or [])])
    if len(set(ids)) < len(ids):
        raise ValueError("a vocabulary where two tokens have one id")


def _check_ids(ids: Any) -> None:
    for i in ids:
        if type(i) is not int or not 0 <= i < MOST_TOKENS:
            raise ValueError(f"the id {i!r:.40}, where 0 to {MOST_TOKENS:,} can be")


def _check_special(backend: Any, said: Mapping[str, Any]) -> None:
    """Refuse a tokenizer that marks no text's ends, or pads with a word."""
    if backend.num_special_tokens_to_add(False) < 2:
        raise ValueError("no [CLS] before a text and no [SEP] after it")
    # Multilingual MiniLMs say 0 where XLM-R's <pad> is 1; both are no words.
    pad, mine = said.get("pad_token_id"), backend.token_to_id("[PAD]")
    if pad is not None and mine is not None and pad != mine:
        raise ValueError(f"[PAD] with the id {mine}, config.json's pad_token_id {pad}")


def _as_transformers_reads(folder: Path, said: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the ``tokenizer.json`` that transformers makes of a folder's files, and
    the longest text that they allow."""
    made: Any = None
    kind = said.get("tokenizer_class")
    with _quiet_transformers() as library:
        # A BERT's sizes are not looked at here, and config.json may be missing.
        bert = (said.get("model_type") or "bert") == "bert"
        config = library.BertConfig(tokenizer_class=kind) if bert else None
        # A class of Python may ask for a package that splits words.
        with contextlib.suppress(ImportError):
            made = library.AutoTokenizer.from_pretrained(
                folder, config=config, local_files_only=True, trust_remote_code=False
            )
            kind = type(made).__name__
    if not isinstance(made, library.PreTrainedTokenizerFast):
        raise ConfigError(
            folder,
            f"the tokenizers library does not run its tokenizer, {kind}",
            fix="give a model whose tokenizer transformers calls fast",
        )
    words = made.backend_tokenizer.model
    unknown = getattr(words, "unk_token", None)
    if unknown is not None and words.token_to_id(unknown) is None:
        raise ValueError(f"a vocabulary without {unknown}")
    _check_special(made.backend_tokenizer, said)
    return made.backend_tokenizer.to_str(), made.model_max_length


@contextlib.contextmanager
def _quiet_transformers() -> Iterator[Any]:
    """Import transformers, which takes over a second, and keep its advice to itself."""
    log = logging.getLogger("transformers")
    log.disabled = True  # it sets the level anew, and says that there is no PyTorch
    try:
        import transformers
    finally:
        log.disabled = False
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        # transformers 5.15 reads vocab.txt by what tokenizers 0.22 deprecates.
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            yield transformers
    finally:
        log.setLevel(level)


@contextlib.contextmanager
def damage(place: object, *kinds: type[Exception]) -> Iterator[None]:
    """Turn a library's panic, or one of ``kinds``, into the error of a damaged file."""
    try:
        yield
    except BaseException as error:
        panicked = type(error).__name__ == "PanicException"  # Rust's: no Exception
        known = isinstance(error, BitflaxError)
        if known or not (panicked or isinstance(error, kinds)):
            raise
        found = str(error) if isinstance(error, ValueError) else repr(error)
        raise DamagedFile(
            place,
            f"expected a tokenizer of the tokenizers library, found {found:.200}",
            fix="take the model's tokenizer files from their source again",
        ) from error
