"""Texts to token ids, once: a whole data set into three flat arrays."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from bitflax import files
from bitflax.errors import (
    BitflaxError,
    ConfigError,
    DamagedFile,
    InputMissing,
    StorageError,
)

CHUNK = 1 << 15
"""Texts a call into the tokenizer: enough for all its threads, bounded in memory."""
STREAM = 1 << 19
"""Characters a call where texts are streamed; the library needs 30 bytes for each."""
PAD_TOKENS = ("[PAD]", "<pad>")
VOCABULARIES = ("tokenizer.json", "vocab.txt")
SETTINGS = (
    "added_tokens.json",
    "special_tokens_map.json",
    "config.json",
    "tokenizer_config.json",
)


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of many examples, one after the other, without padding.

    Attributes:
      ids: int32 [all tokens].
      types: uint8 [all tokens]: 0 in the first text, 1 in the second.
      offsets: int64 [examples + 1]: example i is ``ids[offsets[i] : offsets[i + 1]]``.

    >>> tokens = Tokens(np.arange(5, dtype=np.int32), np.zeros(5, np.uint8),
    ...                 np.array([0, 2, 5]))
    >>> len(tokens), tokens.lengths.tolist()
    (2, [2, 3])
    """

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each example, int64 [examples]."""
        return np.diff(self.offsets)


class Tokenizer:
    """A BERT tokenizer that neither truncates nor pads unless it is asked to.

    It is Hugging Face's ``tokenizer.json``, run by the ``tokenizers`` library; what
    such a file says about truncation and padding (often 128 tokens) is dropped.
    """

    def __init__(self, backend: Any):
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        pads = [backend.token_to_id(token) for token in PAD_TOKENS]
        self.pad_id: int = next((pad for pad in pads if pad is not None), 0)
        self.vocab_size: int = backend.get_vocab_size()
        self.cls_id: int | None = backend.token_to_id("[CLS]")
        self.sep_id: int | None = backend.token_to_id("[SEP]")

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """Read the tokenizer of a Hugging Face folder, as transformers reads it.

        Raises:
          InputMissing: the folder, or a tokenizer in it, is missing.
          DamagedFile: a file is damaged or too large, or no tokenizer.
          ConfigError: its class is one of Python, not of the tokenizers library.
        """
        path = Path(path)
        place = next((path / n for n in VOCABULARIES if (path / n).is_file()), None)
        if place is None:
            raise InputMissing(
                path,
                "expected a folder with tokenizer.json or vocab.txt, found neither",
                fix="copy the model's tokenizer files into the folder",
            )
        with _damage(place):
            text = _as_transformers_reads(path, place)
        return cls.from_json(text, place)

    @classmethod
    def from_json(cls, text: str, place: object = "tokenizer.json") -> "Tokenizer":
        """Make a tokenizer of ``to_json``'s text; ``place`` is what an error names."""
        import tokenizers

        with _damage(place):
            return cls(tokenizers.Tokenizer.from_str(text))

    def to_json(self) -> str:
        """Return the whole tokenizer as text: what a packed model carries."""
        return self._backend.to_str()

    def encode(
        self,
        texts: Sequence[np.ndarray] | Sequence[Sequence[str]],
        max_length: int,
        cache: str | Path | None = None,
    ) -> Tokens:
        """Tokenise one or two columns of texts.

        Args:
          texts: one column, or two whose rows make pairs: strings [examples].
          max_length: of an example, [CLS] and [SEP] included. A longer pair loses its
            last tokens one by one, each from the longer text, from the second where
            both are as long (Devlin et al., ``truncate_seq_pair``).
          cache: a folder to keep the result in, and to take it from the next time.

        Raises:
          ConfigError: ``max_length`` leaves no room for a text.
        """
        pair = len(texts) == 2
        if max_length <= self._backend.num_special_tokens_to_add(pair) + pair:
            raise ConfigError(
                "max_length",
                f"expected room for special tokens and text, found {max_length}",
                fix="set max_length to 16 or more",
            )
        file = None if cache is None else Path(cache) / self._key(texts, max_length)
        tokens = None if file is None else _read(file)
        if tokens is None:
            tokens = self._encode(texts, max_length)
            if file is not None:
                _write(file, tokens)
        return tokens

    def stream(self, texts: Sequence[str], after: int) -> Int32[np.ndarray, "tokens"]:
        """Return the ids of texts one after the other, ``after`` (of [SEP]) after each.

        Nothing else is added; a text without any token leaves no ``after`` either.
        """
        parts = [np.zeros(0, np.int32)]
        for start, stop in _runs([len(text) for text in texts], STREAM):
            found: list[int] = []
            for encoding in self._backend.encode_batch_fast(
                list(texts[start:stop]), add_special_tokens=False
            ):
                if ids := encoding.ids:
                    found += ids
                    found.append(after)
            parts.append(np.array(found, np.int32))
        return np.concatenate(parts)

    def _encode(self, texts, max_length: int) -> Tokens:
        """Tokenise without a cache."""
        ids, types, lengths = [], [], []
        for start in range(0, len(texts[0]), CHUNK):
            columns = [list(column[start : start + CHUNK]) for column in texts]
            pairs = (
                list(zip(*columns, strict=True)) if len(columns) == 2 else columns[0]
            )
            for text, encoding in zip(
                pairs, self._backend.encode_batch_fast(pairs), strict=True
            ):
                if len(encoding.ids) > max_length:
                    encoding = self._cut(text, max_length)
                ids.append(np.array(encoding.ids, np.int32))
                types.append(np.array(encoding.type_ids, np.uint8))
                lengths.append(len(encoding.ids))
        return Tokens(
            np.concatenate([*ids, np.zeros(0, np.int32)]),
            np.concatenate([*types, np.zeros(0, np.uint8)]),
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
        )

    def _cut(self, text: str | tuple[str, str], max_length: int) -> Any:
        """Tokenise one text or pair that is too long.

        The library's own ``longest_first`` takes from the first text where BERT takes
        from the second.
        """
        parts = [text] if isinstance(text, str) else list(text)
        encodings = [self._backend.encode(p, add_special_tokens=False) for p in parts]
        room = max_length - self._backend.num_special_tokens_to_add(len(parts) == 2)
        keep = _longest_first([len(encoding.ids) for encoding in encodings], room)
        for encoding, count in zip(encodings, keep, strict=True):
            encoding.truncate(count)
        return self._backend.post_process(*encodings)

    def _key(self, texts, max_length: int) -> str:
        """Return the cache file's name: a hash of all that the result depends on."""
        sha = hashlib.sha256(f"tokens 2 {max_length} {self.to_json()}".encode())
        for column in texts:
            sha.update(json.dumps(list(column)).encode())
        return f"tokens-{sha.hexdigest()[:24]}.npz"


def _runs(sizes: Sequence[int], most: int) -> Iterator[tuple[int, int]]:
    """Cut a row of sizes into runs that reach ``most`` with their last member.

    >>> list(_runs([3, 3, 9, 1], 6))
    [(0, 2), (2, 3), (3, 4)]
    """
    start = total = 0
    for place, size in enumerate(sizes, 1):
        total += size
        if total >= most or place == len(sizes):
            yield start, place
            start, total = place, 0


def _longest_first(lengths: Sequence[int], room: int) -> list[int]:
    """Return how many tokens of each text stay.

    >>> _longest_first([5, 5], 7), _longest_first([9, 2], 7), _longest_first([9], 7)
    ([4, 3], [5, 2], [7])
    """
    if len(lengths) == 1:
        return [min(lengths[0], room)]
    first, second = lengths
    if first + second <= room:
        return [first, second]
    half = room // 2
    if second <= half:
        return [room - second, second]
    if first <= room - half:
        return [first, room - first]
    return [room - half, half]


def _as_transformers_reads(folder: Path, place: Path) -> str:
    """Return the ``tokenizer.json`` that transformers makes of a folder's files."""
    said: dict[str, Any] = {}
    made: Any = None
    files.read_text(place)  # its size, before a library makes objects of it
    for file in (folder / name for name in SETTINGS):
        said |= files.read_json(file) if file.is_file() else {}
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
    return made.backend_tokenizer.to_str()


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
def _damage(place: object) -> Iterator[None]:
    """Turn what a library says of its input into the error of a damaged file."""
    try:
        yield
    except BaseException as error:
        panicked = type(error).__name__ == "PanicException"  # Rust's: no Exception
        known = isinstance(error, BitflaxError)
        if known or not (panicked or isinstance(error, Exception)):
            raise
        raise DamagedFile(
            place,
            f"expected a tokenizer of the tokenizers library, found {error!r:.200}",
            fix="take the model's tokenizer files from their source again",
        ) from error


def _read(file: Path) -> Tokens | None:
    """Return a cached result; None where there is none or its SHA-256 is wrong."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            found = Tokens(arrays["ids"], arrays["types"], arrays["offsets"])
            if _sum(found) == arrays["sha256"].tobytes():
                return found
            problem = "its SHA-256 differs"
    except FileNotFoundError:
        return None
    except Exception as error:  # whatever a damaged archive may make of numpy
        problem = type(error).__name__
    log = logging.getLogger(__name__)
    log.warning("%s: damaged (%s)\nfix: nothing: it is made again", file, problem)
    return None


def _sum(tokens: Tokens) -> bytes:
    """Return the SHA-256 of a result, the kinds of its arrays included."""
    sha = hashlib.sha256()
    for array in (tokens.ids, tokens.types, tokens.offsets):
        sha.update(f"{array.dtype.str} {array.shape}\0".encode())
        sha.update(np.ascontiguousarray(array).data)
    return sha.digest()


def _write(file: Path, tokens: Tokens) -> None:
    """Write a result so that no one ever reads half of it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with files.atomic(file) as stream:
            sha256 = np.frombuffer(_sum(tokens), np.uint8)
            np.savez(stream, **dataclasses.asdict(tokens), sha256=sha256)
    except OSError as error:
        problem = f"cannot be written: {error.strerror}"
        raise StorageError(file, problem, fix="free some space there") from error
