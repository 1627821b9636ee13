"""What a GGUF file says of itself, read without believing it: every size is held against the file's length.

The readers there are follow whatever counts a file gives, for ever if it says so. The format:
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import importlib
import math
from pathlib import Path

HEADER_LIMIT = 2**24  # bytes; a video transformer's takes a hundredth of it
ALIGNMENT = b"general.alignment"
SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of each type
UINT32, STRING, ARRAY = 4, 8, 9
MOST_DIMENSIONS = 5


def insist_on_whole(path: Path) -> None:
    """ValueError for a file that is no GGUF, contradicts itself or ends before its last tensor does."""
    gguf = importlib.import_module("gguf")

    length = path.stat().st_size
    with path.open("rb") as file:
        header = _Header(file.read(HEADER_LIMIT))
    if header.take(4) != b"GGUF" or header.number(4) not in (2, 3):
        raise ValueError("no GGUF of version 2 or 3")
    tensors, facts = header.number(), header.number()
    alignment = 32
    for _ in range(facts):
        name, kind = header.string(), header.number(4)
        if name == ALIGNMENT and kind == UINT32:
            alignment = header.number(4)
        else:
            header.skip(kind)
    last = 0
    for _ in range(tensors):
        header.string()
        dimensions = header.number(4)
        if dimensions > MOST_DIMENSIONS:
            raise ValueError(f"a tensor of {dimensions} dimensions")
        count = math.prod(header.number() for _ in range(dimensions))
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(header.number(4))]
        last = max(last, header.number() + count // block * size)
    if not alignment or -(-header.at // alignment) * alignment + last > length:
        raise ValueError("tensors behind the end of the file")


class _Header:
    """The bytes at a file's start, and how far they are read."""

    def __init__(self, content: bytes) -> None:
        self.content, self.at = content, 0

    def take(self, size: int) -> bytes:
        if size > len(self.content) - self.at:
            raise ValueError("the header ends too early")
        self.at += size
        return self.content[self.at - size : self.at]

    def number(self, size: int = 8) -> int:
        return int.from_bytes(self.take(size), "little")

    def string(self) -> bytes:
        return self.take(self.number())

    def skip(self, kind: int) -> None:
        """Go past a value of this type."""
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            kind, count = self.number(4), self.number()
            if kind in SCALARS:
                self.take(SCALARS[kind] * count)
            else:
                for _ in range(count):
                    self.skip(kind)
        elif kind in SCALARS:
            self.take(SCALARS[kind])
        else:
            raise ValueError(f"a value of type {kind}")
