"""How many pieces the windows of a corpus have, and whether it is still the same."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from bitflax import storage
from bitflax.data import passages
from bitflax.errors import DataError


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
        self.sha256: str = source.check() if fresh else kept["sha256"]
        if kept and kept["sha256"] != self.sha256:
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
            kept = {"stamp": self._stamp, "sha256": self.sha256}
            text = json.dumps({**kept, "pieces": self.pieces.tolist()})
            with storage.disk(self._file):
                self._file.parent.mkdir(parents=True, exist_ok=True)
            storage.write_text(self._file, text)


def _kept(file: Path) -> Mapping[str, Any]:
    """Return what a cache file says; nothing where it is missing or damaged."""
    try:
        kept = json.loads(file.read_bytes())
        whole = {"stamp", "sha256", "pieces"} == set(kept)
    except (OSError, ValueError, TypeError):
        return {}
    return kept if whole else {}
