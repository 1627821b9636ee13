"""Detectors, segmenters and trackers: what a score formula sees of a video, whoever looks.

One set for rendered scenes, exact where the colours are clean; and for videos of real things GroundingDINO,
SAM 2 and Depth Anything (transformers, and weights from the Hugging Face Hub) with RAFT (torchvision).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from scipy import ndimage

from ..errors import TTOMError
from .blobs import PALETTE, SHAPES, Blob, coloured, detect

TRACKED_SIZE = (480, 856)  # rows and columns that the benchmark tracks at
BETWEEN = " . "  # between the phrases of one query, as GroundingDINO reads them

Frame = np.ndarray  # uint8 [H, W, 3]
Flow = np.ndarray  # [H, W, 2]: how far each pixel goes to the right and downwards, in pixels
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


class Raft:
    """A dense tracker: the optical flow RAFT (Teed and Deng 2020) followed from frame to frame.

    `model` is torchvision's name of it, raft_large or raft_small; loaded when first asked. On a CPU a second
    of video takes minutes.
    """

    def __init__(self, model: str = "raft_large", device: str | None = None) -> None:
        if model not in ("raft_large", "raft_small"):
            raise DetectorError(f"There is no tracker {model!r}; choose raft_large or raft_small.")
        self.model_name, self.device = model, device
        self._model: Any = None

    def __call__(self, frames: np.ndarray) -> np.ndarray:
        height, width = frames.shape[1:3]
        grow = np.array([TRACKED_SIZE[1] / width, TRACKED_SIZE[0] / height])
        starts = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
        tracks = follow((starts + 0.5) * grow - 0.5, self._flows(frames))
        tracks[..., :2] = (tracks[..., :2] + 0.5) / grow - 0.5
        return tracks

    def _flows(self, frames: np.ndarray) -> Iterator[tuple[Flow, Flow]]:
        """From each frame to the next and back."""
        import torch

        if self._model is None:
            self._model = _flow_model(self.model_name, self.device)
        device = next(self._model.parameters()).device

        def prepared(frame: Frame) -> Any:
            picture = torch.from_numpy(frame).permute(2, 0, 1)[None].to(device, torch.float32) / 127.5 - 1
            return torch.nn.functional.interpolate(picture, TRACKED_SIZE, mode="bilinear", antialias=True)

        for one, other in pairwise(frames):
            pair = torch.cat([prepared(one), prepared(other)])
            with torch.inference_mode():
                there, back = self._model(pair, pair.flip(0))[-1].permute(0, 2, 3, 1).cpu().numpy()
            yield there, back


def follow(starts: np.ndarray, flows: Iterable[tuple[Flow, Flow]]) -> np.ndarray:
    """Tracks float32 [T, H, W, 3] of points from x, y [H, W, 2] on, by the flows to each next frame and back.

    A point is lost for good where it leaves the frame, or where the way back does not lead to where it came
    from (Sundaram et al. 2010): there it is hidden.
    """
    places, seen = starts.astype(float), np.ones(starts.shape[:2], bool)
    tracks = [np.dstack([places, seen]).astype(np.float32)]
    for there, back in flows:
        step = _at(there, places)
        places = places + step
        returned = _at(back, places)
        edge = np.array(there.shape[1::-1]) - 1
        inside = ((places >= 0) & (places <= edge)).all(-1)
        gap, length = ((step + returned) ** 2).sum(-1), (step**2 + returned**2).sum(-1)
        seen = seen & inside & (gap < 0.01 * length + 0.5)
        tracks.append(np.dstack([places, seen]).astype(np.float32))
    return np.stack(tracks)


def _at(flow: Flow, places: np.ndarray) -> np.ndarray:
    """A flow at places x, y between its pixels."""
    across, down = np.moveaxis(places, -1, 0)
    parts = [
        ndimage.map_coordinates(part, (down, across), order=1, mode="nearest")
        for part in np.moveaxis(flow, -1, 0)
    ]
    return np.stack(parts, -1)


def _flow_model(name: str, device: str | None) -> Any:
    """An optical flow model of torchvision with its own weights; DetectorError where it cannot be had."""
    try:
        import torch
        from torchvision.models import get_model, get_model_weights
    except ImportError as error:
        raise DetectorError(
            f"The tracker {name} needs torchvision; install it with `pip install ttom[detect]`."
        ) from error
    model = get_model(name, weights=None).eval()
    try:
        # The one place where weights are no safetensors: tensors alone are read, of the hash in their name.
        model.load_state_dict(
            get_model_weights(name).DEFAULT.get_state_dict(check_hash=True, weights_only=True)
        )
    except (OSError, RuntimeError) as error:
        raise DetectorError(
            f"The weights of the tracker {name} could not be loaded; connect once to download.pytorch.org, "
            "from where torchvision takes them."
        ) from error
    return model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))


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
