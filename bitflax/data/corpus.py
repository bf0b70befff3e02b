"""A large text as batches of one shape: streamed, shuffled, resumed by step alone.

A corpus is cut into windows of some megabytes. The windows come in an order that seed
and epoch choose; a window is read and tokenised while the one before it is trained on,
its passages are joined by [SEP] and cut into pieces of one length, and the pieces come
in an order that seed, epoch and window choose. So memory holds two windows, however
large the corpus.
"""

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32

from bitflax import files, manifests
from bitflax.data import passages, tasks, tfds
from bitflax.data.batches import Part, rows_of
from bitflax.data.text import Tokenizer
from bitflax.errors import ConfigError, DamagedFile, DataError

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Token ids int32 [pieces, length], and how many of each are no padding."""

    ids: Int32[np.ndarray, "pieces length"]
    lengths: Int32[np.ndarray, "pieces"]

    def __len__(self) -> int:
        """Return the number of pieces."""
        return len(self.ids)

    def take(self, rows: np.ndarray) -> "Pieces":
        """Return some of the pieces."""
        return Pieces(self.ids[rows], self.lengths[rows])

    def batch(self, rows: int, pad: int) -> dict[str, np.ndarray]:
        """Return the pieces as a batch; rows that there are none for get weight 0."""
        lack, length = rows - len(self), self.ids.shape[1]
        lengths = np.pad(self.lengths, (0, lack))
        mask = np.arange(length) < lengths[:, None]
        return {
            "input_ids": np.pad(self.ids, ((0, lack), (0, 0)), constant_values=pad),
            "attention_mask": mask.astype(np.int32),
            "token_type_ids": np.zeros((rows, length), np.int32),
            "weight": (lengths > 0).astype(np.float32),
        }


def cut_pieces(
    ids: Int32[np.ndarray, "tokens"], length: int, cls: int, pad: int
) -> Pieces:
    """Cut a row of ids into pieces ``[CLS] ... [SEP]`` of ``length`` tokens.

    Args:
      ids: of passages, [SEP] after each: the last id is [SEP].
      length: of a piece; the last one is padded to it.
      cls: the id of [CLS].
      pad: the id of [PAD].

    >>> cut_pieces(np.array([5, 6, 2, 7, 2], np.int32), 5, cls=1, pad=0)
    Pieces(ids=array([[1, 5, 6, 2, 2],
           [1, 7, 2, 0, 0]], dtype=int32), lengths=array([5, 3], dtype=int32))
    """
    room, ids, sep = length - 2, ids[:-1], ids[-1:]
    count = -(-len(ids) // room)
    body = np.full(count * room, pad, np.int32)
    body[: len(ids)] = ids
    out = np.full((count, length), pad, np.int32)
    out[:, 0], out[:, 1:-1] = cls, body.reshape(count, room)
    lengths = np.full(count, length, np.int32)
    lengths[-1:] -= count * room - len(ids)
    out[np.arange(count), lengths - 1] = sep
    return Pieces(out, lengths)


def joined(parts: Sequence[Pieces]) -> Pieces:
    """Return the pieces of all parts, one part after the other."""
    return Pieces(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.lengths for part in parts]),
    )


class PieceCounts:
    """How many pieces each window has, -1 where it is not known yet; kept in a file."""

    def __init__(self, source: passages.Source, about: str, cache: str | Path | None):
        self.pieces = np.full(source.windows, -1, np.int64)
        self._stamp, self._file = source.stamp, None
        kept: Mapping[str, Any] = {}
        if cache is not None:
            self._file = Path(cache) / f"corpus-{passages.sha256(about)[:24]}.json"
            kept = _kept(self._file)
        # What was read before, and has not been touched, is not read again.
        fresh = kept.get("stamp") != self._stamp
        self.sha256: str = source.check() if fresh else kept["text"]
        if kept and kept["text"] != self.sha256:
            raise DataError(
                source.name,
                "the text is not what it was when this run began (SHA-256 differs)",
                fix="put the old text back, or begin another run with another --out",
            )
        if kept:
            self.pieces[:] = kept["pieces"]
        if fresh:
            self._keep()

    def learn(self, window: int, pieces: int) -> None:
        """Remember how many pieces a window has."""
        if self.pieces[window] != pieces:
            self.pieces[window] = pieces
            self._keep()

    def _keep(self) -> None:
        if self._file is not None:
            kept = {"stamp": self._stamp, "text": self.sha256}
            with files.disk(self._file):
                self._file.parent.mkdir(parents=True, exist_ok=True)
            manifests.write_sealed(self._file, {**kept, "pieces": self.pieces.tolist()})


def _kept(file: Path) -> Mapping[str, Any]:
    """Return what a cache file says; nothing where it is missing or damaged."""
    try:
        return manifests.read_sealed(file) if file.exists() else {}
    except DamagedFile as error:
        text = "%s: %s\nfix: nothing: the pieces are counted again"
        _LOG.warning(text, error.place, error.problem)
        return {}


HELD_OUT = 0.01
EVAL_BATCHES = 64
EVAL_WINDOWS = 64


class CorpusBatches:
    """Batches of pieces of a text, for distillation without labels.

    A piece is ``[CLS] text [SEP]``, ``length`` tokens in all, cut from the passages of
    a window in a row without regard to where one ends ("full sentences" of RoBERTa,
    arXiv:1907.11692, section 4.2). The last piece of a window is padded rather than
    dropped, so that every token is learnt from once an epoch; there is one such piece
    in some thousands.

    Of all passages 1 %, by the SHA-256 of their text, are held out: training never sees
    them, or copies of them; ``evaluation`` shows them.

    With many hosts, each takes its part of the rows of the same global batch, and each
    reads and tokenises every window: a window's pieces go to all of them. Reading only
    a share would make the batches depend on the number of hosts; a core tokenises a
    megabyte a second or more, and all of a host's cores do.

    Args:
      source: a ``.txt`` file, a passage a line; a folder of such files; a text data set
        of TFDS (``wiki40b/en``); or ``icd10cm``, the texts of its training categories.
      tokenizer: of the teacher.
      length: tokens a piece, [CLS] and [SEP] included.
      batch_size: pieces of a global batch.
      seed: of the order.
      cache: the run's cache folder: how many pieces each window has is kept there, so
        that a resume reads nothing twice. None, or a deleted file: they are counted
        again, by tokenising what came before.
      multiple_of: the number of devices that share a batch: where ``batch_size`` is no
        multiple of it, rows of weight 0 stand at the end of every batch.
      data_dir: for TFDS: where it has prepared the data set.
      window: bytes of text a window.

    Raises:
      ConfigError: a setting is wrong, or the tokenizer has no [CLS] or [SEP].
      InputMissing: the text, or the package that holds it, is missing.
      DataError: a file is no UTF-8, or has changed since the run in ``cache`` began; or
        there are no two different passages.
    """

    def __init__(
        self,
        source: str | Path,
        tokenizer: Tokenizer,
        *,
        length: int,
        batch_size: int,
        seed: int,
        cache: str | Path | None,
        multiple_of: int = 1,
        data_dir: str | Path | None = None,
        window: int = passages.WINDOW,
    ):
        if tokenizer.cls_id is None or tokenizer.sep_id is None:
            problem = "expected [CLS] and [SEP] among the tokens, found none"
            raise ConfigError("tokenizer", problem, fix="give a BERT's tokenizer")
        self._cls, self._sep = tokenizer.cls_id, tokenizer.sep_id
        self.batch_size = batch_size
        self.rows = -(-batch_size // multiple_of) * multiple_of
        self.length, self._tokenizer, self._seed = length, tokenizer, seed
        self._source = _source(source, data_dir, window)
        about = f"pieces 1 {self._source.name} {length} {window} {tokenizer.to_json()}"
        self._counts = PieceCounts(self._source, about, cache)
        self._most_held = _most_held(self._source)
        # One thread: it alone reads and tokenises, and never two windows at once.
        self._pool = ThreadPoolExecutor(1, "corpus")
        self._windows: dict[int, Future[Pieces]] = {}
        self._held: Pieces | None = None

    @property
    def sha256(self) -> str:
        """The SHA-256 of the whole text."""
        return self._counts.sha256

    @property
    def steps_per_epoch(self) -> int:
        """How many batches show every piece once; the last may run into the next epoch.

        What was not yet read is read and tokenised for it.
        """
        for window in range(self._source.windows):
            if self._counts.pieces[window] < 0:
                self._load(window)
        return -(-int(self._counts.pieces.sum()) // self.batch_size)

    def batch(self, step: int, part: Part = (0, 1)) -> dict[str, np.ndarray]:
        """Return the batch of a global step, counted from 0.

        It depends on the corpus, the settings and the step alone. A batch that an epoch
        does not fill runs on into the next one: all batches have one shape.

        Args:
          step: counted from 0.
          part: ``(i, n)``: only the ``i``-th of ``n`` equal parts of its rows.

        Returns:
          ``input_ids``, ``attention_mask``, ``token_type_ids`` int32 [rows, length];
          ``weight`` float32 [rows], 0 in rows that only fill up.
        """
        first, left = self._share(part, self.batch_size)
        none = Pieces(np.zeros((0, self.length), np.int32), np.zeros(0, np.int32))
        row, parts = step * self.batch_size + first, [none]
        while left:
            epoch, place, first = self._find(row)
            window = int(self._order(epoch)[place])
            found = self._load(window)
            order = self._rng(epoch, window + 1).permutation(len(found))
            parts.append(found.take(order[first : first + left]))
            row, left = row + len(parts[-1]), left - len(parts[-1])
            if not left:
                self._read_ahead(epoch, place)
        return self._batch(joined(parts), part)

    def evaluation(self, part: Part = (0, 1)) -> Iterator[dict[str, np.ndarray]]:
        """Yield one to 64 batches of held-out text, or a part of each one's rows.

        The last one is filled up with rows of weight 0.
        """
        if self._held is None:
            self._held = self._pool.submit(self._read_held).result()
        for start in range(0, len(self._held), self.batch_size):
            first, count = self._share(
                part, min(self.batch_size, len(self._held) - start)
            )
            found = self._held.take(start + first + np.arange(count))
            yield self._batch(found, part)

    def _share(self, part: Part, real: int) -> tuple[int, int]:
        """Return the first of a part's rows that are no filler, and their number."""
        rows = rows_of(part, self.rows)
        return rows.start, max(0, min(rows.stop, real) - rows.start)

    def _batch(self, found: Pieces, part: Part) -> dict[str, np.ndarray]:
        return found.batch(self.rows // part[1], self._tokenizer.pad_id)

    def _find(self, row: int) -> tuple[int, int, int]:
        """Return (epoch, place of the window in its order, row within the window)."""
        while True:
            order = self._order(0)
            unknown = np.flatnonzero(self._counts.pieces[order] < 0)
            known = order[: unknown[0]] if len(unknown) else order
            ends = np.cumsum(self._counts.pieces[known])
            total = int(ends[-1]) if len(ends) else 0
            if row < total or not len(unknown):
                break
            self._load(int(order[unknown[0]]))
        if not total:
            raise self._nothing()
        epoch, row = divmod(row, total)
        if epoch:
            ends = np.cumsum(self._counts.pieces[self._order(epoch)])
        place = int(np.searchsorted(ends, row, side="right"))
        return epoch, place, row - (int(ends[place - 1]) if place else 0)

    def _order(self, epoch: int) -> np.ndarray:
        """Return the order of the windows in an epoch."""
        return self._rng(epoch, 0).permutation(self._source.windows)

    def _rng(self, epoch: int, use: int) -> np.random.Generator:
        return np.random.default_rng((self._seed, epoch, use))

    def _load(self, window: int) -> Pieces:
        """Return the pieces of a window, and remember how many they are."""
        self._begin(window)
        # The last one used goes to the end.
        self._windows[window] = self._windows.pop(window)
        found = self._windows[window].result()
        self._counts.learn(window, len(found))
        return found

    def _begin(self, window: int) -> None:
        """Begin to read a window; of those in memory the last one used stays."""
        if window not in self._windows:
            for old in list(self._windows)[:-1]:
                del self._windows[old]
            self._windows[window] = self._pool.submit(self._read, window)

    def _read_ahead(self, epoch: int, place: int) -> None:
        """Begin to read the window after this one."""
        order = self._order(epoch)
        last = place + 1 == len(order)
        self._begin(int(self._order(epoch + 1)[0] if last else order[place + 1]))

    def _read(self, window: int) -> Pieces:
        lines = self._source.lines(window)
        shown = [line for line in lines if _number(line) > self._most_held]
        return self._cut(self._tokenizer.stream(shown, self._sep))

    def _read_held(self) -> Pieces:
        """Return the held-out pieces of the first windows, as many as are shown."""
        most = EVAL_BATCHES * self.batch_size * (self.length - 2)
        parts, total = [], 0
        for window in range(self._source.windows):
            lines = self._source.lines(window)
            held = [line for line in lines if _number(line) <= self._most_held]
            parts.append(self._tokenizer.stream(held, self._sep))
            total += len(parts[-1])
            if total >= most or (total and window + 1 >= EVAL_WINDOWS):
                break
        if not total:
            raise self._nothing()
        return self._cut(np.concatenate(parts)[:most])

    def _cut(self, ids: np.ndarray) -> Pieces:
        return cut_pieces(ids, self.length, self._cls, self._tokenizer.pad_id)

    def _nothing(self) -> DataError:
        problem = "expected words in its passages, found none"
        return DataError(self._source.name, problem, fix="name another corpus")


def _source(
    source: str | Path, data_dir: str | Path | None, window: int
) -> passages.Source:
    """Return the passages that a name or a path stands for."""
    name, path = str(source), files.given(source)
    own = path.suffix.lower() == ".txt" or path.exists() or name[:1] in "./~"
    listed = tasks.TASKS[name].passages if name in tasks.TASKS else None
    if data_dir is not None and (own or listed):
        problem = f"does not apply to {name!r}, found {str(data_dir)!r}"
        raise ConfigError("data_dir", problem, fix="leave data_dir out")
    if listed is not None:
        return passages.Listed(name, listed())
    if own:
        return passages.TextFiles(path, window)
    return tfds.Records(name, data_dir, window)


def _number(passage: str) -> int:
    """Return the first 32 bits of a passage's SHA-256: an order that no one chose."""
    return int(passages.sha256(passage)[:8], 16)


def _most_held(source: passages.Source) -> int:
    """Return the largest number of a passage that is held out.

    1 % of all numbers; more where that would hold out nothing of the first windows'
    passages, less where it would leave nothing to learn from.
    """
    numbers: set[int] = set()
    for window in range(source.windows):
        numbers |= {_number(line) for line in source.lines(window)}
        if len(numbers) > 1:
            lowest, *others = sorted(numbers)
            return min(max(int(HELD_OUT * 2**32), lowest), (lowest, *others)[-2])
    raise DataError(
        source.name,
        f"expected two different passages or more, found {len(numbers)}",
        fix="add lines of text, or name another corpus",
    )
