"""Pieces: a long row of tokens cut to one length, and batches of them."""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32


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


def cut(ids: Int32[np.ndarray, "tokens"], length: int, cls: int, pad: int) -> Pieces:
    """Cut a row of ids into pieces ``[CLS] ... [SEP]`` of ``length`` tokens.

    Args:
      ids: of passages, [SEP] after each: the last id is [SEP].
      length: of a piece; the last one is padded to it.
      cls: the id of [CLS].
      pad: the id of [PAD].

    >>> cut(np.array([5, 6, 2, 7, 2], np.int32), 5, cls=1, pad=0)
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
