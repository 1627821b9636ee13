"""Where the objects of a clip really are: exact for rendered scenes, by detector and segmenter for others.

Both answer `ttom_core.probe.Grounding`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import TTOMError
from .blobs import PALETTE, SHAPES, coloured, detect

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
    """Boxes by GroundingDINO (Liu et al. 2023), the pixels in them by SAM 2 (Ravi et al. 2024).

    `detector` and `segmenter` are folders or names on the Hugging Face Hub. TTOMError when transformers
    or torchvision cannot run them or their weights cannot be loaded.
    """

    def __init__(
        self,
        detector: str = DETECTOR,
        segmenter: str = SEGMENTER,
        device: str | None = None,
        box_threshold: float = BOX_THRESHOLD,
        text_threshold: float = TEXT_THRESHOLD,
    ) -> None:
        import torch

        try:
            from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, Sam2Model
        except ImportError as error:
            raise TTOMError(
                "The grounding detector needs transformers 4.56 or newer; install it with "
                '`pip install "transformers>=4.56"`.'
            ) from error
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.box_threshold, self.text_threshold = box_threshold, text_threshold
        names = (name.replace("\\", "/").rstrip("/").split("/")[-1] for name in (detector, segmenter))
        self.name = f"{' + '.join(names)} at {box_threshold:g}, {text_threshold:g}"
        self.detector, self.find = _loaded(AutoModelForZeroShotObjectDetection, AutoProcessor, detector)
        self.segmenter, self.outline = _loaded(Sam2Model, AutoProcessor, segmenter)
        for model in (self.detector, self.segmenter):
            model.to(self.device).eval()

    def locate(self, frames: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
        """Masks bool [N, F, H, W]: everything the detector finds for a phrase, segmented."""
        masks = np.zeros((len(phrases), *frames.shape[:3]), bool)
        for f, frame in enumerate(frames):
            boxes = self.boxes(frame, phrases)
            owners = [n for n, found in enumerate(boxes) for _ in found]
            if owners:
                for n, segment in zip(owners, self._segments(frame, np.concatenate(boxes)), strict=True):
                    masks[n, f] |= segment
        return masks

    def boxes(self, frame: np.ndarray, phrases: Sequence[str]) -> list[np.ndarray]:
        """Each phrase's boxes [n, 4] on one frame, as left, top, right, bottom in pixels."""
        import torch

        # One query a phrase: asked together, the detector may join the words of two of them. It was
        # taught lower case with a full stop after each query.
        texts = [" ".join(phrase.lower().replace(".", " ").split()) + "." for phrase in phrases]
        inputs = self.find(images=[frame] * len(texts), text=texts, padding=True, return_tensors="pt").to(
            self.device
        )
        with torch.no_grad():
            outputs = self.detector(**inputs)
        height, width = frame.shape[:2]
        found = self.find.post_process_grounded_object_detection(
            outputs,
            inputs.input_ids,
            threshold=self.box_threshold,
            text_threshold=self.text_threshold,
            target_sizes=[(height, width)] * len(texts),
        )
        limit = np.array([width, height, width, height], np.float32)
        return [result["boxes"].float().cpu().numpy().reshape(-1, 4).clip(0, limit) for result in found]

    def _segments(self, frame: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        """A mask bool [n, H, W] for each box."""
        import torch

        inputs = self.outline(images=frame, input_boxes=[boxes.tolist()], return_tensors="pt").to(self.device)
        with torch.no_grad():
            outputs = self.segmenter(**inputs, multimask_output=False)
        (masks,) = self.outline.post_process_masks(outputs.pred_masks.cpu(), inputs["original_sizes"].cpu())
        segments: np.ndarray = masks[:, 0].numpy()
        return segments


def _loaded(model: Any, processor: Any, name: str) -> tuple[Any, Any]:
    """A model with its processor; TTOMError when they cannot be had."""
    try:
        return model.from_pretrained(name), processor.from_pretrained(name)
    except (ImportError, OSError, ValueError) as error:
        if "torchvision" in str(error).lower():
            raise TTOMError(
                f"{name} reads pictures with torchvision, which is missing; `pip install torchvision`."
            ) from error
        raise TTOMError(
            f"The model {name!r} cannot be loaded; name a folder or a model that is downloaded."
        ) from error
