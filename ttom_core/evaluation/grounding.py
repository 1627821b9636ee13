"""Where the objects of a clip really are: exact for rendered scenes, by detector and segmenter for others.

Both answer `ttom_core.probe.Grounding`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..errors import TTOMError
from .blobs import PALETTE, SHAPES, coloured, detect
from .detectors import GroundingDino, Sam2

GROUNDINGS = ("blobs", "detector")
DETECTOR = "IDEA-Research/grounding-dino-base"
SEGMENTER = "facebook/sam2.1-hiera-large"
# The thresholds of the paper's released code.
BOX_THRESHOLD = 0.35
TEXT_THRESHOLD = 0.25


def grounding_of(
    choice: str, detector: str = DETECTOR, segmenter: str = SEGMENTER
) -> BlobGrounding | DetectorGrounding:
    """The grounding a user chose: "blobs" or "detector"; TTOMError for anything else."""
    if choice == "blobs":
        return BlobGrounding()
    if choice == "detector":
        return DetectorGrounding(detector, segmenter)
    raise TTOMError(f"There is no grounding {choice!r}; choose one of {', '.join(GROUNDINGS)}.")


class BlobGrounding:
    """The pixels of the blobs in a phrase's colour: the truth of the demo's scenes.

    Of several phrases in one colour, each has the blobs in its shape. A phrase alone in its colour has
    them all: a circle that came out square is where the circle is.
    """

    name = "blobs"

    def locate(self, frames: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
        """Masks bool [N, F, H, W]; TTOMError for a phrase without one palette colour and one shape."""
        nouns = [_noun(phrase) for phrase in phrases]
        colours = [colour for colour, _ in nouns]
        masks = np.zeros((len(phrases), *frames.shape[:3]), bool)
        for f, frame in enumerate(frames):
            height, width = frame.shape[:2]
            regions = coloured(frame)
            for blob in detect(frame):
                left, right = ((blob.x + side * blob.w / 2) * width for side in (-1, 1))
                top, bottom = ((blob.y + side * blob.h / 2) * height for side in (-1, 1))
                where = slice(round(top), round(bottom)), slice(round(left), round(right))
                for mask, (colour, shape) in zip(masks[:, f], nouns, strict=True):
                    alone = colours.count(colour) == 1
                    if blob.colour == colour and (alone or blob.shape == shape):
                        mask[where] |= regions[blob.colour][where]
        return masks


def _noun(phrase: str) -> tuple[str, str]:
    """The colour and the shape that a phrase names."""
    words = [word.removesuffix("s") for word in phrase.lower().split()]
    colours, shapes = (set(words) & set(known) for known in (PALETTE, SHAPES))
    if len(colours) != 1 or len(shapes) != 1:
        raise TTOMError(
            f"{phrase!r} is no coloured shape of the demo's scenes; find it with the grounding detector."
        )
    return colours.pop(), shapes.pop()


class DetectorGrounding:
    """Everything that GroundingDINO finds for a phrase, outlined by SAM 2.

    `detector` and `segmenter` are folders or names on the Hugging Face Hub. DetectorError when a package
    or weights are missing: both are tried here, not only after the first clip was made.
    """

    def __init__(
        self,
        detector: str = DETECTOR,
        segmenter: str = SEGMENTER,
        device: str | None = None,
        box_threshold: float = BOX_THRESHOLD,
        text_threshold: float = TEXT_THRESHOLD,
    ) -> None:
        self.find, self.outline = GroundingDino(detector, device), Sam2(segmenter, device)
        self.thresholds = box_threshold, text_threshold
        names = (name.replace("\\", "/").rstrip("/").split("/")[-1] for name in (detector, segmenter))
        self.name = f"{' + '.join(names)} at {box_threshold:g}, {text_threshold:g}"
        blank = np.zeros((64, 64, 3), np.uint8)
        self.find(blank, "nothing", *self.thresholds)
        self.outline(blank, [(0, 0, 1, 1)])

    def locate(self, frames: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
        """Masks bool [N, F, H, W]."""
        masks = np.zeros((len(phrases), *frames.shape[:3]), bool)
        for f, frame in enumerate(frames):
            # One query a phrase: asked together, the detector may join the words of two of them.
            found = [self.find(frame, phrase.replace(".", " "), *self.thresholds) for phrase in phrases]
            owners = [n for n, detections in enumerate(found) for _ in detections]
            segments = self.outline(frame, [one.box for detections in found for one in detections])
            for n, segment in zip(owners, segments, strict=True):
                masks[n, f] |= segment
        return masks
