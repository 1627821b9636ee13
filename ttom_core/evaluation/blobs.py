"""Detector for rendered scenes: coloured blobs with a shape, exact where the colours are clean."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (222, 44, 44),
    "green": (44, 168, 70),
    "blue": (50, 84, 222),
    "yellow": (238, 204, 40),
    "purple": (158, 62, 196),
    "cyan": (60, 206, 214),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {"dark": (34, 36, 44), "light": (228, 226, 220)}
SHAPES = ("circle", "square", "triangle")

MIN_AREA = 24  # px of a 64×64 frame: half of the smallest object a scene draws
COLOUR_RADIUS = 75.0  # RGB distance within which a pixel belongs to a palette colour


@dataclass(frozen=True)
class Blob:
    """One connected region of one colour in one frame; centre and size are shares of the canvas."""

    colour: str
    shape: str
    x: float
    y: float
    w: float
    h: float
    area: float


def _shape_of(mask: np.ndarray) -> str:
    """Name the shape by how much of its bounding box a blob fills (triangle ½, circle π/4, square 1)."""
    fill = float(mask.mean())
    # A triangle's top half is clearly emptier than its bottom half; a circle is symmetric.
    top, bottom = np.array_split(mask, 2, axis=0)
    lopsided = float(bottom.mean() - top.mean())
    if lopsided > 0.25 or fill < 0.6:
        return "triangle"
    return "square" if fill > 0.9 else "circle"


def coloured(frame: np.ndarray) -> dict[str, np.ndarray]:
    """Where each palette colour is on one uint8 frame [H, W, 3]: bool [H, W] a colour."""
    table = np.array([*PALETTE.values(), *BACKGROUNDS.values()], dtype=np.float32)
    distance = np.linalg.norm(frame[:, :, None, :].astype(np.float32) - table, axis=-1)
    nearest = distance.argmin(-1)
    close = distance.min(-1) < COLOUR_RADIUS
    return {colour: (nearest == index) & close for index, colour in enumerate(PALETTE)}


def detect(frame: np.ndarray, min_area: int = MIN_AREA) -> list[Blob]:
    """Find the palette-coloured blobs of one uint8 frame [H, W, 3]."""
    height, width = frame.shape[:2]
    blobs = []
    for colour, region in coloured(frame).items():
        labels, count = ndimage.label(region)
        if not count:
            continue
        for label, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            mask = labels[rows, columns] == label
            if mask.sum() < min_area:
                continue
            h, w = mask.shape
            blobs.append(
                Blob(
                    colour,
                    _shape_of(mask),
                    (columns.start + w / 2) / width,
                    (rows.start + h / 2) / height,
                    w / width,
                    h / height,
                    float(mask.sum()) / (height * width),
                )
            )
    return blobs
