"""VBench's detection-based scores (Huang et al. 2024) by formula, with any detector, and its total.

Written anew from the benchmark's formulas. A result is called "VBench formula, detector X", never a VBench
score: that takes the benchmark's own detector. The other dimensions need models of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from ..errors import TTOMError
from .compbench import SAMPLED, iou
from .detectors import Detection, Detector

DIMENSIONS = ("object_class", "multiple_objects", "spatial_relationship")  # that a detector scores
THRESHOLD = 0.5  # of a detection; ours, the benchmark's detector has its own
OVERLAP = 0.1  # of two boxes, above which a relation counts for less

COLOURS = (
    *("white", "red", "pink", "blue", "silver", "purple", "orange", "green", "gray", "yellow", "black"),
    "grey",
)

# Dimension → weight and the lowest and highest value that is expected of it.
QUALITY = {
    "subject_consistency": (1.0, 0.1462, 1.0),
    "background_consistency": (1.0, 0.2615, 1.0),
    "temporal_flickering": (1.0, 0.6293, 1.0),
    "motion_smoothness": (1.0, 0.706, 0.9975),
    "aesthetic_quality": (1.0, 0.0, 1.0),
    "imaging_quality": (1.0, 0.0, 1.0),
    "dynamic_degree": (0.5, 0.0, 1.0),
}
SEMANTIC = {
    "object_class": (1.0, 0.0, 1.0),
    "multiple_objects": (1.0, 0.0, 1.0),
    "human_action": (1.0, 0.0, 1.0),
    "color": (1.0, 0.0, 1.0),
    "spatial_relationship": (1.0, 0.0, 1.0),
    "scene": (1.0, 0.0, 0.8222),
    "appearance_style": (1.0, 0.0009, 0.2855),
    "temporal_style": (1.0, 0.0, 0.364),
    "overall_consistency": (1.0, 0.0, 0.364),
}


def score(frames: np.ndarray, row: Mapping[str, Any], detect: Detector) -> float:
    """The score 0…1 of one video, frames uint8 [F, H, W, 3], by a row of VBench_full_info.json.

    For object_class, multiple_objects and spatial_relationship; TTOMError for a row of no such dimension.
    """
    size = frames.shape[2], frames.shape[1]
    relation = None
    match row.get("auxiliary_info"):
        case {"object_class": {"object": str(label)}}:
            nouns = [label]
        case {"multiple_objects": {"object": str(both)}} if " and " in both:
            nouns = [noun.strip() for noun in both.split(" and ")]
        case {
            "spatial_relationship": {
                "spatial_relationship": {"object_a": a, "object_b": b, "relationship": r}
            }
        }:
            nouns, relation = [a, b], r
        case _:
            raise TTOMError(
                f"The row of {row.get('prompt_en')!r} is of none of the dimensions that a detector scores: "
                "object_class, multiple_objects and spatial_relationship."
            )
    values = []
    for frame in sampled(frames):
        found = [one for noun in nouns for one in detect(frame, noun, THRESHOLD, THRESHOLD / 2)]
        values.append(present(found, nouns) if relation is None else spatial(found, nouns, relation, size))
    return float(np.mean(values))


def dimension(row: Mapping[str, Any]) -> str | None:
    """Which of DIMENSIONS a row of VBench_full_info.json is for, if any."""
    about = row.get("auxiliary_info")
    return next((name for name in DIMENSIONS if isinstance(about, dict) and name in about), None)


def sampled(frames: np.ndarray) -> np.ndarray:
    """The 16 frames that are looked at: the middles of as many intervals, a shorter clip's last repeated."""
    edges = np.linspace(0, len(frames), min(SAMPLED, len(frames)) + 1).astype(int)
    middles = (edges[:-1] + edges[1:] - 1) // 2
    return frames[np.pad(middles, (0, SAMPLED - len(middles)), mode="edge")]


def present(found: Sequence[Detection], nouns: Collection[str]) -> float:
    """1 when every noun is among a frame's labels (object class, multiple objects)."""
    return float(set(nouns) <= {one.label for one in found})


def spatial(
    found: Sequence[Detection], nouns: Collection[str], relation: str, size: tuple[int, int] = (1, 1)
) -> float:
    """The best of a frame's pairs: 1 along the relation's axis, less from an IoU of 0.1, 0 across it.

    As in the benchmark a pair may be of either noun, or of one twice, and the two ways of an axis are one:
    left is right. `size` is the frame's width and height, for the axis is judged in pixels.
    """
    level = relation in ("on the right of", "on the left of")
    if not level and relation not in ("on the bottom of", "on the top of"):
        raise TTOMError(f"There is no spatial relationship {relation!r}; the benchmark has on the left of, …")
    best = 0.0
    for one, other in combinations([one for one in found if one.label in nouns], 2):
        across, down = (abs(one.centre[axis] - other.centre[axis]) * size[axis] for axis in (0, 1))
        if across > down if level else down > across:
            overlap = iou(one.box, other.box)
            best = max(best, 1.0 if overlap < OVERLAP else OVERLAP / overlap)
    return best


def colour(seen: Sequence[Sequence[tuple[str, str]]], noun: str, wanted: str) -> float | None:
    """Frames where the noun is described in the wanted colour, over those where it is in any.

    `seen` holds (label, description) for each thing of each frame; None when no colour is ever named, which
    the benchmark leaves out of its mean.
    """
    described = [[text for label, text in frame if label == noun] for frame in seen]
    coloured = sum(any(c in text for text in frame for c in COLOURS) for frame in described)
    right = sum(any(wanted in text for text in frame) for frame in described)
    return right / coloured if coloured else None


def total(values: Mapping[str, float]) -> dict[str, float]:
    """Quality, semantic and total score of a model from its 16 dimensions, by their names; as published.

    Each is taken between its expected lowest and highest value; the total is 4 parts quality, 1 semantic.
    """
    lacking = [name for name in {**QUALITY, **SEMANTIC} if name not in values]
    if lacking:
        raise TTOMError(f"The total needs all 16 dimensions, and {', '.join(lacking)} are not there.")

    def mean(dimensions: Mapping[str, tuple[float, float, float]]) -> float:
        parts = [w * (values[name] - low) / (high - low) for name, (w, low, high) in dimensions.items()]
        return sum(parts) / sum(weight for weight, _, _ in dimensions.values())

    quality, semantic = mean(QUALITY), mean(SEMANTIC)
    return {"quality": quality, "semantic": semantic, "total": (4 * quality + semantic) / 5}
