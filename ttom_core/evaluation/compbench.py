"""T2V-CompBench's detection-based scores (Sun et al. 2024, version 2), by formula, with any detector.

Written anew from the benchmark's formulas, thresholds and order of choices. A result is called "CompBench
formula, detector X", never a T2V-CompBench score: that takes the benchmark's own detectors. The four
categories that a vision-language model judges are not here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import TTOMError
from .detectors import BETWEEN, BoxSides, Detection, Vision

SAMPLED = 16  # frames of a video that are looked at
TRACKED_FPS = 8  # frames a second that are tracked
RELATIONS_2D = ("left", "right", "above", "on", "under", "below")
RELATIONS_3D = ("in front of", "behind")
DIRECTIONS = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}
SPATIAL = ("spatial_relationships_2d", "spatial_relationships_3d")  # the halves of one category
# Score → the parts of a Vision that it needs beside the detector.
NEEDS: dict[str, tuple[str, ...]] = {
    "generative_numeracy": (),
    "spatial_relationships_2d": (),
    "spatial_relationships_3d": ("segment", "depth"),
    "motion_binding": ("segment", "track"),
}

Step = tuple[float, float]  # to the right and downwards, in shares of the frame


def score(frames: np.ndarray, fps: float, row: Mapping[str, Any], vision: Vision) -> float:
    """The score 0…1 of one video, frames uint8 [F, H, W, 3], by the category whose metadata `row` is.

    TTOMError when the row is of no such category, or the video too short.
    """
    asked = dimension(row)
    if asked == "generative_numeracy":
        nouns = [noun.strip() for noun in row["objects"].split(",")]
        counts = [int(number) for number in row["numbers"].split(",")]
        if len(nouns) != len(counts) or not 1 <= len(nouns) <= 2:
            raise TTOMError(
                f"The row of {row.get('prompt')!r} names {len(nouns)} objects and {len(counts)} numbers; "
                "give as many of both, one or two."
            )
        return float(np.mean([_numeracy(frame, nouns, counts, vision) for frame in sampled(frames)]))
    if asked in SPATIAL:
        nouns = [row["object_1"], row["object_2"]]
        judge = _spatial_2d if asked == SPATIAL[0] else _spatial_3d
        return float(np.mean([graded(judge(f, nouns, row["spatial"], vision)) for f in sampled(frames)]))
    if asked == "motion_binding":
        return graded_motion(_motion(frames, fps, row, vision))
    raise TTOMError(
        f"A metadata row with {', '.join(row) or 'no keys'} is of none of the categories that a detector "
        "can score: numeracy, spatial relationships and motion binding."
    )


def dimension(row: Mapping[str, Any]) -> str | None:
    """Which of NEEDS' scores a metadata row is for; None for what a vision-language model judges."""
    if {"objects", "numbers"} <= row.keys():
        return "generative_numeracy"
    if {"spatial", "object_1", "object_2"} <= row.keys():
        return SPATIAL[row["spatial"] in RELATIONS_3D]
    if {"object_1", "d_1", "object_2", "d_2"} <= row.keys():
        return "motion_binding"
    return None


def sampled(frames: np.ndarray) -> np.ndarray:
    """The 16 frames that are looked at, the first and the last among them."""
    if len(frames) < SAMPLED:
        raise TTOMError(f"A clip of {len(frames)} frames is too short to score; make at least {SAMPLED}.")
    return frames[np.linspace(0, len(frames) - 1, SAMPLED, dtype=int)]


def tracked(frames: np.ndarray, fps: float) -> np.ndarray:
    """The frames that are tracked, about 8 for each whole second."""
    count = tracked_count(len(frames), fps)
    if count >= len(frames):
        return frames
    return frames[np.linspace(0, len(frames) - 1, count, dtype=int)]


def tracked_count(frames: int, fps: float) -> int:
    """How many frames are tracked; TTOMError under a second, for then it would be none."""
    if frames < int(fps):
        raise TTOMError(
            f"A clip of {frames} frames at {fps:g} a second lasts less than the second that motion is "
            f"tracked over; make at least {int(fps)}."
        )
    return frames // int(fps) * TRACKED_FPS


# Boxes --------------------------------------------------------------------------------------------


def iou(one: BoxSides, other: BoxSides) -> float:
    """Intersection over union of two boxes."""
    width = min(one[0] + one[2], other[0] + other[2]) - max(one[0], other[0])
    height = min(one[1] + one[3], other[1] + other[3]) - max(one[1], other[1])
    both = max(0.0, width) * max(0.0, height)
    union = one[2] * one[3] + other[2] * other[3] - both
    return both / union if union > 0 else 0.0


def distinct(found: Sequence[Detection], threshold: float) -> list[Detection]:
    """Without doubles: of two boxes over the threshold the likelier stays, in the place of the first."""
    kept: list[Detection] = []
    for one in found:
        twin = next((k for k, other in enumerate(kept) if iou(one.box, other.box) > threshold), None)
        if twin is None:
            kept.append(one)
        elif one.score > kept[twin].score:
            kept[twin] = one
    return kept


def _split(found: Sequence[Detection], nouns: Sequence[str], threshold: float) -> list[list[Detection]]:
    """The distinct detections of each noun; a label that says more, or less, than the noun is neither's."""
    kept = distinct(found, threshold)
    return [[one for one in kept if one.label == noun] for noun in nouns]


# Numeracy -----------------------------------------------------------------------------------------


def numeracy(found: Sequence[Detection], nouns: Sequence[str], counts: Sequence[int]) -> float:
    """The share of nouns whose count in a frame is right; `found` in the nouns' order."""
    groups = _split(found, nouns, 0.9)
    return sum(len(group) == n for group, n in zip(groups, counts, strict=True)) / len(nouns)


def _numeracy(frame: np.ndarray, nouns: Sequence[str], counts: Sequence[int], vision: Vision) -> float:
    found = [one for noun in nouns for one in vision.detect(frame, noun, 0.4, 0.25)]
    return numeracy(found, nouns, counts)


# Spatial relationships ----------------------------------------------------------------------------


def graded(raw: float) -> float:
    """A frame's raw value on the scale 0…1: −2 → 0, −1 → 0.2, 0 → 0.4, above that 0.4 + 0.6 raw."""
    if raw < 0:
        return 0.0 if raw < -1 else 0.2
    return 0.4 + 0.6 * raw


def spatial_2d(found: Sequence[Detection], nouns: Sequence[str], relation: str) -> float:
    """Raw value of a frame: 1 − IoU of the best pair that stands so; 0 none does, −1 one missing, −2 both.

    The best pair is the most likely and least overlapping one. `found` in the nouns' order.
    """
    ones, others = _split(found, nouns, 0.9)
    if not (ones and others):
        return -1.0 if ones or others else -2.0
    standing = [(a, b) for a in ones for b in others if _stands(a, b, relation)]
    pairs = [(1 - iou(a.box, b.box), a.score + b.score) for a, b in standing]
    return max(pairs, key=lambda pair: pair[0] / 2 + pair[1] / 4, default=(0.0, 0.0))[0]


def _stands(one: Detection, other: Detection, relation: str) -> bool:
    """Whether the larger of the two differences between the centres goes the relation's way."""
    across, down = (a - b for a, b in zip(one.centre, other.centre, strict=True))
    if relation in ("left", "right"):
        return abs(across) > abs(down) and (across < 0) == (relation == "left")
    return abs(down) > abs(across) and (down < 0) == (relation in ("above", "on"))


def _spatial_2d(frame: np.ndarray, nouns: Sequence[str], relation: str, vision: Vision) -> float:
    if relation not in RELATIONS_2D:
        known = ", ".join((*RELATIONS_2D, *RELATIONS_3D))
        raise TTOMError(f"There is no spatial relation {relation!r}; the benchmark has {known}.")
    return spatial_2d([d for noun in nouns for d in vision.detect(frame, noun, 0.35, 0.25)], nouns, relation)


def spatial_3d(
    first: Sequence[Detection],
    second: Sequence[Detection],
    nouns: Sequence[str],
    relation: str,
    segment: Any,
    depth: np.ndarray,
) -> float:
    """As `spatial_2d`, by depth: the raw value is the IoU of the best overlapping pair that stands so.

    `first` and `second` are what was found for each noun, `segment` makes masks [N, H, W] of boxes, and
    `depth` [H, W] is larger in front.
    """
    ones, others = _split([*first, *second], nouns, 0.95)
    if not (ones and others):
        return -1.0 if ones or others else -2.0
    near, far = ([_mean_over(m, depth) for m in segment([d.box for d in group])] for group in (ones, others))
    best = (0.0, -1.0)
    for i, a in enumerate(ones):
        for j, b in enumerate(others):
            overlap = iou(a.box, b.box)
            stands = near[i] > far[j] if relation == "in front of" else near[i] < far[j]
            merit = overlap / 2 + (_likelihood(first, i, a) + _likelihood(second, j, b)) / 4
            if overlap and stands and merit > best[1]:
                best = (overlap, merit)
    return best[0]


def _likelihood(found: Sequence[Detection], place: int, one: Detection) -> float:
    """The likelihood that stood in its place before doubles were removed: the benchmark takes that one."""
    return (found[place] if place < len(found) else one).score


def _mean_over(mask: np.ndarray, depth: np.ndarray) -> float:
    """The mean depth of a mask; of an empty one NaN, which is neither nearer nor farther."""
    return float(depth[mask].mean()) if mask.any() else float("nan")


def _spatial_3d(frame: np.ndarray, nouns: Sequence[str], relation: str, vision: Vision) -> float:
    first, second = (vision.detect(frame, noun, 0.35, 0.25) for noun in nouns)
    return spatial_3d(
        first, second, nouns, relation, lambda boxes: vision.segment(frame, boxes), vision.depth(frame)
    )


# Motion binding -----------------------------------------------------------------------------------


def graded_motion(raw: float) -> float:
    """A video's motion on the scale 0…1: undetected 0, else 0.2 + 0.8 raw; found and still is 0.2."""
    return 0.0 if raw < 0 else 0.2 + 0.8 * raw


def displacement(tracks: np.ndarray) -> Step:
    """From the first frame to the last with a visible point: the means of the visible of tracks [T, N, 3].

    In the tracks' own units; (0, 0) where none is ever visible.
    """
    places = [step[step[:, 2] > 0, :2].mean(0) for step in tracks if (step[:, 2] > 0).any()]
    if not places:
        return 0.0, 0.0
    return float(places[-1][0] - places[0][0]), float(places[-1][1] - places[0][1])


def motion(steps: Sequence[Step | None], ground: Step | None, directions: Sequence[str]) -> float:
    """Raw value of a video: how far each object goes its way against the ground, the mean over objects.

    None is an object that was not found; −1 when none was. Without a ground nothing counts as moved.
    """
    if all(step is None for step in steps):
        return -1.0
    gone = 0.0
    for step, direction in zip(steps, directions, strict=True):
        axis, sign = DIRECTIONS[direction]
        if step is not None and ground is not None:
            gone += max(0.0, sign * (step[axis] - ground[axis]))
    return gone / len(steps)


def _motion(frames: np.ndarray, fps: float, row: Mapping[str, Any], vision: Vision) -> float:
    nouns = [row[key] for key in ("object_1", "object_2") if row[key]]
    directions = [row[key] for key in ("d_1", "d_2") if row[key]]
    if len(nouns) != len(directions) or not nouns or not set(directions) <= DIRECTIONS.keys():
        raise TTOMError(
            f"The row of {row.get('prompt')!r} moves {nouns} {directions}; give each object one of "
            f"{', '.join(DIRECTIONS)}."
        )
    clip = tracked(frames, fps)
    tracks = vision.track(clip) / (clip.shape[2], clip.shape[1], 1)  # pixels → shares of the frame

    def gone(mask: np.ndarray) -> Step:
        return displacement(tracks[:, mask])

    steps: list[Step | None] = []
    for noun in nouns:
        found = vision.detect(clip[0], noun, 0.3, 0.25)
        likeliest = max(found, key=lambda one: one.score, default=None)
        steps.append(gone(vision.segment(clip[0], [likeliest.box])[0]) if likeliest else None)
    everything = vision.detect(clip[0], BETWEEN.join(nouns), 0.3, 0.25)
    boxes = [one.box for one in everything]
    covered = np.any(vision.segment(clip[0], boxes), axis=0)
    ground = gone(np.logical_not(covered)) if boxes else None
    return motion(steps, ground, directions)
