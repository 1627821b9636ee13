"""How far the objects of a clip are from the size and the shape that they should have."""

from __future__ import annotations

import math
from typing import Any

from .blobs import Blob

FILL = {
    "circle": math.pi / 4,
    "square": 1.0,
    "triangle": 0.5,
}  # share of a square bounding box
SIDES = (12 / 64, 20 / 64)  # the smallest and largest side of an object, as a share of the canvas
CHANGING_SIDES = (9 / 64, 27 / 64)  # of one that grows or shrinks
RASTER = 0.1  # what drawing in pixels does to a log ratio


def distortion(blobs: list[list[Blob]], spec: dict[str, Any]) -> float:
    """Distortion in 0…1 of detected blobs per frame against one prompt's nouns; 0 is none.

    An object's is 1 − exp(−(size + shape)), in natural logs of ratios, so that twice the largest area is ½:

    - size: how far its area lies outside what an object of its shape may have (`SIDES`);
    - shape: |log| of the share of its bounding box that it fills, over its shape's (`FILL`), and |log| of its
      width over its height, each beyond the raster's own tenth.

    A noun's is the mean over the blobs of its colour weighted by area: every pixel of that colour
    answers for the object it belongs to, and a grain of debris for little. A frame without any counts as
    1, which is where an object that shrinks away is heading; so vanishing never looks like quality. The
    clip's is the mean over frames, then over nouns. It says nothing of places or numbers.
    """
    return sum(_of_noun(blobs, noun, spec) for noun in spec["nouns"]) / len(spec["nouns"])


def _of_noun(blobs: list[list[Blob]], noun: dict[str, Any], spec: dict[str, Any]) -> float:
    changes = noun is spec["nouns"][0] and spec["expect"].get("change") in ("grows", "shrinks")
    sides = CHANGING_SIDES if changes else SIDES
    colours, frames = {noun["colour"]}, blobs
    if noun["end_colour"]:
        # Half way between two colours it has neither: its ends alone can be read.
        quarter = max(1, len(blobs) // 4)
        colours, frames = colours | {noun["end_colour"]}, [*blobs[:quarter], *blobs[-quarter:]]
    values = []
    for found in frames:
        own = [b for b in found if b.colour in colours]
        area = sum(b.area for b in own)
        spoilt = sum(b.area * _of_blob(b, noun["shape"], sides) for b in own)
        values.append(spoilt / area if own else 1.0)
    return sum(values) / len(values)


def _of_blob(blob: Blob, shape: str, sides: tuple[float, float]) -> float:
    fill = FILL[shape]
    smallest, largest = (math.log(fill * side * side) for side in sides)
    area = math.log(blob.area)
    size = max(0.0, area - largest - RASTER, smallest - RASTER - area)
    filled = abs(math.log(blob.area / (blob.w * blob.h) / fill))
    stretched = abs(math.log(blob.w / blob.h))
    return 1 - math.exp(-(size + max(0.0, filled - RASTER) + max(0.0, stretched - RASTER)))
