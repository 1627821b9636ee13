"""Detectors, segmenters and trackers: what a score formula sees of a video, whoever looks.

One set for rendered scenes, exact where the colours are clean; and GroundingDINO with SAM 2 for videos of
real things (transformers, and weights from the Hugging Face Hub).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from ..errors import TTOMError
from .blobs import PALETTE, SHAPES, Blob, coloured, detect

BETWEEN = " . "  # between the phrases of one query, as GroundingDINO reads them

Frame = np.ndarray  # uint8 [H, W, 3]
BoxSides = tuple[
    float, float, float, float
]  # x, y of the top-left corner, width, height: shares of the frame


class DetectorError(TTOMError):
    """A detector is not installed, its weights are not there, or it was asked what it cannot do."""


@dataclass(frozen=True)
class Detection:
    """One object found in a frame: the words of the query it answers to, how likely, and where."""

    label: str
    score: float
    box: BoxSides

    @property
    def centre(self) -> tuple[float, float]:
        x, y, w, h = self.box
        return x + w / 2, y + h / 2


class Detector(Protocol):
    """Finds what a query names, several phrases being divided by " . ".

    Only boxes above `box_threshold` count; a label is made of the words above `text_threshold`.
    """

    def __call__(
        self, frame: Frame, query: str, box_threshold: float, text_threshold: float
    ) -> list[Detection]: ...


class Segmenter(Protocol):
    """One mask a box: bool [N, H, W]."""

    def __call__(self, frame: Frame, boxes: Sequence[BoxSides]) -> np.ndarray: ...


class Tracker(Protocol):
    """Where every pixel of the first frame goes: [T, H, W, 3] as x, y in pixels and 1 while visible."""

    def __call__(self, frames: np.ndarray) -> np.ndarray: ...


class DepthEstimator(Protocol):
    """Nearness of every pixel [H, W], 0 (far) to 255 (near)."""

    def __call__(self, frame: Frame) -> np.ndarray: ...


def _missing(*arguments: Any) -> Any:
    raise DetectorError(
        "This score needs a part of the vision that was not given; add the segmenter, the tracker or the "
        "depth estimator."
    )


NOT_GIVEN: Any = _missing  # says so when a score needs it


@dataclass(frozen=True)
class Vision:
    """The parts a score formula looks with, and what its results are to be called by."""

    name: str
    detect: Detector
    segment: Segmenter = NOT_GIVEN
    track: Tracker = NOT_GIVEN
    depth: DepthEstimator = NOT_GIVEN

    def lacking(self, parts: Sequence[str]) -> list[str]:
        """Those of these parts, by their names here, that were not given."""
        return [part for part in parts if getattr(self, part) is NOT_GIVEN]


# Rendered scenes ----------------------------------------------------------------------------------


def rendered_vision(depth: DepthEstimator = NOT_GIVEN) -> Vision:
    """Vision for coloured shapes on a plain ground; they lie in one plane, so depth is the caller's."""
    return Vision("blobs", detect_blobs, segment_blobs, track_blobs, depth)


def detect_blobs(
    frame: Frame, query: str, box_threshold: float = 0.0, text_threshold: float = 0.0
) -> list[Detection]:
    """The blobs whose colour and shape a phrase names; a phrase that names neither finds nothing."""
    found = detect(frame)
    return [
        Detection(phrase, 1.0, _sides(blob))
        for phrase in query.split(BETWEEN)
        for blob in found
        if _named(blob, phrase)
    ]


def segment_blobs(frame: Frame, boxes: Sequence[BoxSides]) -> np.ndarray:
    """The pixels of the palette colour that most of a box has."""
    height, width = frame.shape[:2]
    masks = np.zeros((len(boxes), height, width), bool)
    regions = np.stack([*coloured(frame).values()])
    for mask, (x, y, w, h) in zip(masks, boxes, strict=True):
        rows = slice(round(y * height), round((y + h) * height))
        columns = slice(round(x * width), round((x + w) * width))
        inside = regions[:, rows, columns]
        mask[rows, columns] = inside[inside.sum((1, 2)).argmax()]
    return masks


def track_blobs(frames: np.ndarray) -> np.ndarray:
    """Each blob of the first frame moves as a whole, to its nearest like; the ground stays where it is."""
    count, height, width = frames.shape[:3]
    y, x = np.mgrid[:height, :width]
    tracks = np.stack([x, y, np.ones_like(x)], -1).astype(float)[None].repeat(count, 0)
    starts = detect(frames[0])
    masks = segment_blobs(frames[0], [_sides(blob) for blob in starts])
    for start, mask in zip(starts, masks, strict=True):
        last = start
        for step in range(1, count):
            alike = [b for b in detect(frames[step]) if (b.colour, b.shape) == (start.colour, start.shape)]
            if not alike:
                tracks[step, mask, 2] = 0
                continue
            last = min(alike, key=lambda b: (b.x - last.x) ** 2 + (b.y - last.y) ** 2)
            tracks[step, mask, 0] += (last.x - start.x) * width
            tracks[step, mask, 1] += (last.y - start.y) * height
    return tracks


def _named(blob: Blob, phrase: str) -> bool:
    words = set(phrase.lower().split())
    kinds = words & {*PALETTE, *SHAPES}
    return bool(kinds) and kinds <= {blob.colour, blob.shape}


def _sides(blob: Blob) -> BoxSides:
    return blob.x - blob.w / 2, blob.y - blob.h / 2, blob.w, blob.h


# Real things --------------------------------------------------------------------------------------


class GroundingDino:
    """An open-vocabulary detector of transformers (Liu et al. 2023), loaded when it is first asked.

    `model` is a folder, or a name on the Hugging Face Hub.
    """

    def __init__(self, model: str = "IDEA-Research/grounding-dino-tiny", device: str | None = None) -> None:
        self.model_name, self.device = model, device
        self._parts: tuple[Any, Any] | None = None

    def __call__(
        self, frame: Frame, query: str, box_threshold: float = 0.35, text_threshold: float = 0.25
    ) -> list[Detection]:
        import torch
        from PIL import Image

        if self._parts is None:
            self._parts = _pretrained("AutoModelForZeroShotObjectDetection", self.model_name, self.device)
        processor, model = self._parts
        # Lower case and a closing full stop are what the model was trained on.
        text = query.lower().strip().removesuffix(".") + "."
        inputs = processor(images=Image.fromarray(frame), text=text, return_tensors="pt").to(model.device)
        with torch.inference_mode():
            outputs = model(**inputs)
        (found,) = processor.post_process_grounded_object_detection(
            outputs, inputs.input_ids, threshold=box_threshold, text_threshold=text_threshold
        )
        if not len(found["scores"]):
            return []  # for which transformers has one label, an empty one
        corners = found["boxes"].double().cpu().tolist()
        return [
            Detection(label, score, (left, top, right - left, bottom - top))
            for label, score, (left, top, right, bottom) in zip(
                found["text_labels"], found["scores"].tolist(), corners, strict=True
            )
        ]


class Sam2:
    """The segmenter SAM 2 of transformers (Ravi et al. 2024), one mask a box, loaded when first asked."""

    def __init__(self, model: str = "facebook/sam2.1-hiera-tiny", device: str | None = None) -> None:
        self.model_name, self.device = model, device
        self._parts: tuple[Any, Any] | None = None

    def __call__(self, frame: Frame, boxes: Sequence[BoxSides]) -> np.ndarray:
        import torch
        from PIL import Image

        height, width = frame.shape[:2]
        if not boxes:
            return np.zeros((0, height, width), bool)
        if self._parts is None:
            self._parts = _pretrained("Sam2Model", self.model_name, self.device)
        processor, model = self._parts
        corners = [[x * width, y * height, (x + w) * width, (y + h) * height] for x, y, w, h in boxes]
        image = Image.fromarray(frame)
        inputs = processor(images=image, input_boxes=[corners], return_tensors="pt").to(model.device)
        with torch.inference_mode():
            outputs = model(**inputs, multimask_output=False)
        (masks,) = processor.post_process_masks(outputs.pred_masks.cpu(), inputs["original_sizes"])
        return masks[:, 0].bool().numpy()


class DepthAnything:
    """The depth estimator of transformers (Yang et al. 2024), loaded when first asked.

    A frame's depths are stretched to whole steps of 0…255: the grey picture that the benchmark reads.
    """

    def __init__(self, model: str, device: str | None = None) -> None:
        self.model_name, self.device = model, device
        self._parts: tuple[Any, Any] | None = None

    def __call__(self, frame: Frame) -> np.ndarray:
        import torch
        from PIL import Image

        if self._parts is None:
            self._parts = _pretrained("AutoModelForDepthEstimation", self.model_name, self.device)
        processor, model = self._parts
        inputs = processor(images=Image.fromarray(frame), return_tensors="pt").to(model.device)
        with torch.inference_mode():
            outputs = model(**inputs)
        (found,) = processor.post_process_depth_estimation(outputs, target_sizes=[frame.shape[:2]])
        near = found["predicted_depth"].float().cpu().numpy()
        return np.floor((near - near.min()) / max(float(np.ptp(near)), 1e-9) * 255)


def _pretrained(kind: str, name: str, device: str | None) -> tuple[Any, Any]:
    """A processor and a model of transformers; DetectorError where either cannot be had."""
    try:
        import torch
        import transformers

        load: Callable[..., Any] = getattr(transformers, kind).from_pretrained
    except (ImportError, AttributeError) as error:
        raise DetectorError(
            f"The detector {name} needs a newer transformers; install it with `pip install ttom[detect]`."
        ) from error
    try:
        processor = transformers.AutoProcessor.from_pretrained(name)
        model = load(name, use_safetensors=True).eval()  # a pickle runs whatever it holds
    except ImportError as error:  # a package of its image processor, torchvision most often
        raise DetectorError(
            f"The detector {name} lacks a package; install them with `pip install ttom[detect]`."
        ) from error
    except (OSError, ValueError) as error:
        raise DetectorError(
            f"The weights of the detector {name} could not be loaded; give a folder that holds them as "
            "safetensors, or connect to the Hugging Face Hub."
        ) from error
    return processor, model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
