"""Texts to token ids, once: a whole data set into three flat arrays."""

import dataclasses
import hashlib
import json
import logging
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from bitflax import files
from bitflax.data import tokenizer_folder
from bitflax.errors import ConfigError, StorageError
from bitflax.types import BertConfig

CHUNK = 1 << 15
"""Texts a call into the tokenizer: enough for all its threads, bounded in memory."""
STREAM = 1 << 19
"""Characters a call where texts are streamed; the library needs 30 bytes for each."""
PAD_TOKENS = ("[PAD]", "<pad>")
_MARK = re.compile(r"\[.*\]|<.*>")


@dataclasses.dataclass(frozen=True)
class Tokens:
    """Token ids of many examples, one after the other, without padding.

    Attributes:
      ids: int32 [all tokens].
      types: uint8 [all tokens]: 0 in the first text, 1 in the second.
      offsets: int64 [examples + 1]: example i is ``ids[offsets[i] : offsets[i + 1]]``.
      cut: how many examples were longer.

    >>> tokens = Tokens(np.arange(5, dtype=np.int32), np.zeros(5, np.uint8),
    ...                 np.array([0, 2, 5]))
    >>> len(tokens), tokens.lengths.tolist()
    (2, [2, 3])
    """

    ids: np.ndarray
    types: np.ndarray
    offsets: np.ndarray
    cut: int = 0

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """The number of tokens of each example, int64 [examples]."""
        return np.diff(self.offsets)

    def check(self, config: BertConfig) -> None:
        """Check that a model has a row for each id and each type.

        Raises:
          ConfigError: it has not. JAX would answer with another row.
        """
        ids, types = (int(x.max(initial=0)) for x in (self.ids, self.types))
        _need_rows(config, "vocab_size", "tokens", ids + 1)
        _need_rows(config, "type_vocab_size", "token types (of pairs)", types + 1)


def _need_rows(config: BertConfig, field: str, what: str, count: int) -> None:
    rows = getattr(config, field)
    if count > rows:
        problem = f"{count} {what}, but the model's {field} is {rows}"
        fix = f"give at most {rows}, as the model was trained with"
        place = "max_length" if what == "positions" else "tokenizer"
        raise ConfigError(place, problem, fix=fix)


class Tokenizer:
    """A BERT tokenizer that neither truncates nor pads unless it is asked to.

    It is Hugging Face's ``tokenizer.json``, run by the ``tokenizers`` library; what
    such a file says about truncation and padding (often 128 tokens) is dropped.
    ``max_length`` is what its model was trained for (None: unknown), for whoever cuts.
    """

    def __init__(self, backend: Any, max_length: int | None = None):
        self.max_length = max_length
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self.pad_id: int = self._first(PAD_TOKENS) or 0
        self.vocab_size: int = backend.get_vocab_size()
        self.cls_id = self._first(("[CLS]", "<s>"))
        self.sep_id = self._first(("[SEP]", "</s>"))
        self.unk_id = self._first(("[UNK]", "<unk>"))

    def _first(self, tokens: Sequence[str]) -> int | None:
        ids = map(self._backend.token_to_id, tokens)
        return next((i for i in ids if i is not None), None)

    @classmethod
    def from_folder(cls, path: str | Path) -> "Tokenizer":
        """Read the tokenizer of a Hugging Face folder, as transformers reads it.

        Raises:
          InputMissing: the folder, or a tokenizer in it, is missing.
          DamagedFile: a file is damaged or too large, or no tokenizer.
          ConfigError: its class is one of Python, not of the tokenizers library.
        """
        place, text, max_length = tokenizer_folder.read(Path(path))
        return cls.from_json(text, place, max_length)

    @classmethod
    def from_json(
        cls, text: str, place: object = "tokenizer.json", longest: int | None = None
    ) -> "Tokenizer":
        """Make a tokenizer of ``to_json``'s text; ``place`` is what an error names."""
        import tokenizers

        with tokenizer_folder.damage(place, Exception):
            return cls(tokenizers.Tokenizer.from_str(text), longest)

    def check(self, config: BertConfig, max_length: int) -> None:
        """Check that a model has a row for each token and each position.

        Raises:
          ConfigError: it has not.
        """
        largest = max(self._backend.get_vocab().values(), default=-1)
        _need_rows(config, "vocab_size", "tokens", largest + 1)
        _need_rows(config, "max_position_embeddings", "positions", max_length)

    def same_words(self, other: "Tokenizer") -> bool:
        """Whether both number the same words alike."""
        return self._backend.get_vocab() == other._backend.get_vocab()

    def unreached(self) -> int | None:
        """Count the words with capitals that lower-casing leaves to no text.

        None: no word has capitals, and texts keep theirs.
        """
        words = self._backend.get_vocab(with_added_tokens=False)
        words = [w for w in words if w != w.lower() and not _MARK.fullmatch(w)]
        normal = self._backend.normalizer
        read = normal.normalize_str if normal else str
        if not words and read("A") != read("a"):
            return None
        return sum(read(word) == read(word.lower()) for word in words)

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
            with tokenizer_folder.damage("tokenizer"):
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
        ids, types, lengths, cut = [], [], [], 0
        for start in range(0, len(texts[0]), CHUNK):
            columns = [list(column[start : start + CHUNK]) for column in texts]
            pairs = (
                list(zip(*columns, strict=True)) if len(columns) == 2 else columns[0]
            )
            for text, encoding in zip(
                pairs, self._backend.encode_batch_fast(pairs), strict=True
            ):
                if len(encoding.ids) > max_length:
                    encoding, cut = self._cut(text, max_length), cut + 1
                ids.append(np.array(encoding.ids, np.int32))
                types.append(np.array(encoding.type_ids, np.uint8))
                lengths.append(len(encoding.ids))
        return Tokens(
            np.concatenate([*ids, np.zeros(0, np.int32)]),
            np.concatenate([*types, np.zeros(0, np.uint8)]),
            np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64),
            cut,
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
        sha = hashlib.sha256(f"tokens 3 {max_length} {self.to_json()}".encode())
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
    second = min(second, max(room // 2, room - first))
    return [min(first, room - second), second]


def _read(file: Path) -> Tokens | None:
    """Return a cached result; None where there is none or its SHA-256 is wrong."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            parts = (arrays[name] for name in ("ids", "types", "offsets"))
            found = Tokens(*parts, cut=int(arrays["cut"]))
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
    sha = hashlib.sha256(f"{tokens.cut} cut\0".encode())
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
