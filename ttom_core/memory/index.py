"""Nearest neighbours within one bucket: 256-byte sketches choose candidates, exact cosines decide.

A sketch is a random ±1 projection to 256 dimensions, rounded to 8 bits (Achlioptas 2003): distances
between unit vectors survive it within some percent, for 256 bytes instead of the 16 KB of 4096 floats.
The sketches are stored in SQLite; what is kept here is derived from it and can be thrown away at any time.
"""

from __future__ import annotations

import hashlib
from functools import lru_cache
from typing import Any

import numpy as np

SIZE = 256
SCALE = 32.0  # a coordinate has a variance of about 1, so that 8 bits reach out to four deviations
CANDIDATES = 128  # what the sketches propose for a read; a bucket of fewer entries is compared whole
# From here on FAISS answers five times faster from a quarter of the memory (benchmarks/memory.py); for
# less it would only make the first read wait for its import.
FAISS_FROM = 20_000


@lru_cache(maxsize=4)
def _projection(dimensions: int) -> np.ndarray:
    """Signs [SIZE, dimensions], from a hash: no library's random numbers may change what is on disk."""
    count = SIZE * dimensions
    stream = hashlib.shake_256(f"ttom sketch {dimensions}".encode()).digest(-(-count // 8))
    bits = np.unpackbits(np.frombuffer(stream, np.uint8), count=count)
    return (bits.astype(np.float32) * 2 - 1).reshape(SIZE, dimensions)


def sketch(vector: np.ndarray) -> np.ndarray:
    """The sketch int8 [SIZE] of a unit vector float32 [d]."""
    projected = _projection(vector.shape[-1]) @ vector
    return np.clip(np.rint(projected * SCALE), -127, 127).astype(np.int8)


class SketchIndex:
    """The sketches of one bucket by the number of their entry, in rising order."""

    def __init__(self) -> None:
        self.numbers = np.empty(0, np.int64)
        self._codes = np.empty((0, SIZE), np.float32)
        self._norms = np.empty(0, np.float32)
        self._faiss: Any = None

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def last(self) -> int:
        """The highest number so far; 0 before the first."""
        return int(self.numbers[-1]) if len(self) else 0

    def add(self, numbers: np.ndarray, codes: np.ndarray) -> None:
        """Append entries int64 [n] with their sketches int8 [n, SIZE]."""
        self.numbers = np.concatenate([self.numbers, numbers])
        wide = codes.astype(np.float32)
        if self._faiss is not None:
            self._faiss.add(wide)
            return
        self._codes = np.concatenate([self._codes, wide])
        self._norms = np.concatenate([self._norms, (wide * wide).sum(1)])
        if len(self) >= FAISS_FROM:
            self._move_to_faiss()

    def nearest(self, code: np.ndarray, count: int) -> np.ndarray:
        """Numbers [≤ count] of the entries whose sketches lie nearest to int8 [SIZE], in no order."""
        if count >= len(self):
            return self.numbers
        wide = code.astype(np.float32)
        if self._faiss is not None:
            return self.numbers[self._faiss.search(wide[None], count)[1][0]]
        distances = self._norms - 2 * (self._codes @ wide)
        return self.numbers[np.argpartition(distances, count)[:count]]

    def _move_to_faiss(self) -> None:
        try:
            import faiss
        except ImportError:  # the answers are the same without it, only later
            return
        kind = faiss.ScalarQuantizer.QT_8bit_direct_signed
        self._faiss = faiss.IndexScalarQuantizer(SIZE, kind, faiss.METRIC_L2)
        self._faiss.add(self._codes)
        self._codes, self._norms = self._codes[:0], self._norms[:0]
