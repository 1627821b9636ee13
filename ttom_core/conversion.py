"""Layouts from what other tools draw, detect and segment, and back: pixel boxes, masks, tracks of points.

Pixels are counted as ComfyUI counts them, (0, 0) being the outer corner of the first one. Frames are
evenly spread over the clip, so that a layout made from 81 frames fits 21 latent ones.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .layout import MAX_BYTES, Box, Keyframe, Layout, LayoutError, TrackedObject, frame_times

MAX_FRAMES = 1000
MAX_OBJECTS = 200
THINNEST = 1e-6  # of the canvas; what is cut thinner at its edge is not there
HALF_PIXEL = 0.5


class Size(NamedTuple):
    """A canvas in pixels."""

    width: int
    height: int

    @property
    def sides(self) -> np.ndarray:
        """[4] to divide x, y, w, h by."""
        return np.array([self.width, self.height, self.width, self.height], float)


def layout_from_boxes(
    boxes: Any, size: Size, phrases: Sequence[str] = (), tolerance: float = HALF_PIXEL
) -> Layout:
    """A layout from ComfyUI's BOUNDING_BOX: lists, one a frame, of {x, y, width, height, …} in pixels.

    A list of boxes, or one box, is a single frame: its objects rest. Boxes are the same object where their
    `metadata.id` is the same; without it, those of one label that lie nearest from frame to frame. An
    object is named by the phrase that its label (`metadata.phrase`, `label` or `metadata.label`) equals;
    without phrases by its label itself; else the phrases name the objects in the order of their
    appearance, and a single phrase names all of them.

    Boxes are cut at the canvas's edges. Keyframes that even motion explains to within `tolerance` pixels
    are left out. LayoutError says what is no box, and where.
    """
    frames = _frames(boxes)
    _insist(any(frames), f"boxes: none of the {len(frames)} frames has one; did the detector find nothing?")
    tracks: dict[object, _Track] = {}
    for f, frame in enumerate(frames):
        for key, seen in _followed(frame, tracks, f):
            track = tracks.setdefault(key, _Track(seen.label, seen.name, seen.id, {}))
            track.boxes[f] = seen.box
    named = _named([track.label for track in tracks.values()], phrases)
    objects: list[TrackedObject] = []
    for track, phrase in zip(tracks.values(), named, strict=True):
        path = np.full((len(frames), 4), np.nan)
        path[list(track.boxes)] = list(track.boxes.values())
        item = _object(objects, phrase, path, size, tolerance, name=track.name, id=track.id)
        objects.append(item)
    return Layout(objects=tuple(objects), planner="boxes")


def layout_from_masks(
    masks: Sequence[np.ndarray], phrases: Sequence[str], tolerance: float = HALF_PIXEL
) -> Layout:
    """A layout from one mask [F, H, W] an object: the box around what is above a half, frame by frame.

    An object is on stage from the first to the last frame that shows it. A mask of one frame rests.
    """
    _insist(0 < len(masks) <= MAX_OBJECTS, f"masks: {len(masks)} are given; give 1 to {MAX_OBJECTS}.")
    objects: list[TrackedObject] = []
    for number, (mask, phrase) in enumerate(zip(masks, _named([""] * len(masks), phrases), strict=True), 1):
        mask = np.asarray(mask)
        _insist(
            mask.ndim == 3 and mask.size > 0 and len(mask) <= MAX_FRAMES,
            f"mask {number}: its shape is {list(mask.shape)}; give [frames, height, width], at most "
            f"{MAX_FRAMES} frames.",
        )
        _insist(bool(np.isfinite(mask).all()), f"mask {number}: it holds values that are no numbers.")
        size = Size(mask.shape[2], mask.shape[1])
        path = np.stack([_around(frame > 0.5) for frame in mask])
        objects.append(_object(objects, phrase, path, size, tolerance))
    return Layout(objects=tuple(objects), planner="masks")


def layout_from_tracks(
    tracks: str,
    size: Size,
    phrases: Sequence[str],
    box: tuple[float, float] = (0.25, 0.25),
    tolerance: float = HALF_PIXEL,
) -> Layout:
    """A layout from tracks as spline editors write them: JSON, a list of {x, y} in pixels for each object.

    The points of a track are evenly spread over the clip. A box of these shares of the canvas is put around
    each, and moved inside where it would reach out; while the point itself is outside, the object is not
    there. LayoutError says what is no track, and where.
    """
    _insist(
        all(0 < share <= 1 for share in box), f"box: {box} must be two shares of the canvas, above 0, to 1."
    )
    rows = _read_json(tracks.replace("'", '"'), "tracks")  # some editors quote as Python does
    _insist(isinstance(rows, list) and len(rows) > 0, "tracks: there are none; draw at least one.")
    if _is_point(rows[0]):
        rows = [rows]
    _insist(len(rows) <= MAX_OBJECTS, f"tracks: there are {len(rows)}; at most {MAX_OBJECTS} are read.")
    objects: list[TrackedObject] = []
    for t, (row, phrase) in enumerate(zip(rows, _named([""] * len(rows), phrases), strict=True), 1):
        where = f"track {t}"
        _insist(
            isinstance(row, list) and 0 < len(row) <= MAX_FRAMES,
            f"{where}: it must be a list of 1 to {MAX_FRAMES} points.",
        )
        points = np.array([_point(point, f"{where}, point {p}") for p, point in enumerate(row, 1)])
        points = points / size.sides[:2]
        outside = ((points < 0) | (points > 1)).any(1)
        corner = np.clip(points - np.array(box) / 2, 0, 1 - np.array(box))
        path = np.column_stack([corner, np.broadcast_to(box, corner.shape)]) * size.sides
        path[outside] = np.nan
        objects.append(_object(objects, phrase, path, size, tolerance))
    return Layout(objects=tuple(objects), planner="tracks")


def layout_to_boxes(layout: Layout, num_frames: int, size: Size) -> list[list[dict[str, Any]]]:
    """A layout as ComfyUI's BOUNDING_BOX: for each frame the boxes on stage, in whole pixels.

    `metadata` carries id, name and phrase, from which `layout_from_boxes` knows them again.
    """
    frames: list[list[dict[str, Any]]] = []
    boxes = layout.boxes(frame_times(num_frames)) * size.sides
    for column in boxes.transpose(1, 0, 2):
        frame = []
        for item, (x, y, w, h) in zip(layout.objects, column, strict=True):
            if math.isnan(x):
                continue
            left, right = _pixels(x, w, size.width)
            top, bottom = _pixels(y, h, size.height)
            metadata = {"id": item.id, "name": item.name, "phrase": item.phrase}
            sides = {"x": left, "y": top, "width": right - left, "height": bottom - top}
            frame.append({**sides, "metadata": metadata})
        frames.append(frame)
    return frames


def layout_to_tracks(layout: Layout, num_frames: int, size: Size) -> str:
    """A layout as the tracks of its objects' centres: JSON, a list of {x, y} in pixels for each object.

    While an object is off stage its point rests where it was last, or will first be, seen: what follows
    tracks knows no absence, and would take any other point for a leap.
    """
    times = frame_times(num_frames)
    tracks = []
    for item in layout.objects:
        boxes = item.boxes(times.clip(item.enter, item.leave)) * size.sides
        centres = boxes[:, :2] + boxes[:, 2:] / 2
        tracks.append([{"x": round(x, 3), "y": round(y, 3)} for x, y in centres.tolist()])
    return json.dumps(tracks)


def joined(layout: Layout, more: Layout) -> Layout:
    """Both layouts' objects on one canvas; ids that are taken get a number of their own."""
    objects = list(layout.objects)
    _insist(
        len(objects) + len(more.objects) <= MAX_OBJECTS,
        f"Together the layouts have {len(objects) + len(more.objects)} objects; at most {MAX_OBJECTS} fit.",
    )
    for item in more.objects:
        taken = any(item.id == other.id for other in objects)
        objects.append(item.model_copy(update={"id": _free(objects, item.phrase)}) if taken else item)
    return layout.model_copy(update={"objects": tuple(objects), "prompt": layout.prompt or more.prompt})


def read_boxes(text: str) -> Any:
    """Bounding boxes from JSON text, for `layout_from_boxes` to check."""
    return _read_json(text, "boxes")


# What is in a BOUNDING_BOX -----------------------------------------------------------------------


class _Seen(NamedTuple):
    """One detection: its box in pixels as x, y, w, h, and what it says of itself."""

    box: list[float]
    label: str
    name: str
    id: str


class _Track(NamedTuple):
    """One object over the frames that show it."""

    label: str
    name: str
    id: str
    boxes: dict[int, list[float]]


def _frames(boxes: Any) -> list[list[_Seen]]:
    if isinstance(boxes, Mapping):
        boxes = [[boxes]]
    _insist(
        isinstance(boxes, list | tuple) and len(boxes) > 0, "boxes: there are none; wire in at least one."
    )
    if all(isinstance(box, Mapping) for box in boxes):
        boxes = [boxes]
    _insist(len(boxes) <= MAX_FRAMES, f"boxes: {len(boxes)} frames are given; at most {MAX_FRAMES} are read.")
    frames = []
    for f, frame in enumerate(boxes, 1):
        _insist(
            isinstance(frame, list | tuple) and len(frame) <= MAX_OBJECTS,
            f"boxes: frame {f} must be a list of at most {MAX_OBJECTS} boxes.",
        )
        frames.append([_seen(box, f"boxes: frame {f}, box {b}") for b, box in enumerate(frame, 1)])
    return frames


def _seen(box: Any, where: str) -> _Seen:
    _insist(
        isinstance(box, Mapping) and {"x", "y", "width", "height"} <= box.keys(),
        f"{where}: it must have x, y, width and height.",
    )
    x, y, w, h = (_number(box[side], f"{where}, {side}") for side in ("x", "y", "width", "height"))
    _insist(w > 0 and h > 0, f"{where}: its size is {w:g} × {h:g}; give both above 0.")
    told = box.get("metadata")
    told = told if isinstance(told, Mapping) else {}
    label = told.get("phrase") or box.get("label") or told.get("label") or ""
    name, identity = told.get("name") or "", told.get("id")
    for what, words, longest in (("label", label, 200), ("name", name, 200), ("id", identity, 100)):
        _insist(
            words is None or (isinstance(words, str | int) and len(str(words)) <= longest),
            f"{where}: its {what} must be text of at most {longest} characters.",
        )
    return _Seen([x, y, w, h], str(label).strip(), str(name), "" if identity is None else str(identity))


def _followed(frame: list[_Seen], tracks: dict[object, _Track], f: int) -> Iterator[tuple[object, _Seen]]:
    """The key of each detection's track: by its own id, else by nearness among those of its label."""
    from scipy.optimize import linear_sum_assignment

    anonymous: dict[str, list[_Seen]] = {}
    for seen in frame:
        if seen.id:
            key = ("id", seen.id, seen.label)
            _insist(
                key not in tracks or f not in tracks[key].boxes,
                f"boxes: frame {f + 1} has two boxes with the id {seen.id!r}; give each its own.",
            )
            yield key, seen
        else:
            anonymous.setdefault(seen.label, []).append(seen)
    for label, group in anonymous.items():
        known = [key for key, track in tracks.items() if track.label == label and not track.id]
        places = {}
        if known:
            last = np.array([_centre(next(reversed(tracks[key].boxes.values()))) for key in known])
            here = np.array([_centre(seen.box) for seen in group])
            ways = np.linalg.norm(here[:, None] - last[None], axis=-1)
            places = {
                int(row): known[int(column)] for row, column in zip(*linear_sum_assignment(ways), strict=True)
            }
        new = len(known)
        for row, seen in enumerate(group):
            if row not in places:
                places[row] = ("nth", label, new)
                new += 1
            yield places[row], seen


def _centre(box: Sequence[float]) -> tuple[float, float]:
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def _named(labels: Sequence[str], phrases: Sequence[str]) -> list[str]:
    """A phrase for each object: the one its label equals, its label, or the next in order."""
    phrases = [phrase.strip() for phrase in phrases if phrase.strip()]
    _insist(all(len(phrase) <= 200 for phrase in phrases), "phrases: one has more than 200 characters.")
    _insist(len(labels) <= MAX_OBJECTS, f"boxes: {len(labels)} objects are found; at most {MAX_OBJECTS} fit.")
    if not phrases:
        _insist(all(labels), "phrases: name the objects by the prompt's words, such as red circle.")
        return list(labels)
    if len(phrases) == 1:
        return phrases * len(labels)
    spelled = {phrase.lower(): phrase for phrase in phrases}
    named = [spelled.get(label.lower(), "") for label in labels]
    waiting = [phrase for phrase in phrases if phrase not in named]
    _insist(
        len(waiting) == named.count("") or not named.count(""),
        f"phrases: {len(phrases)} are given for {len(labels)} objects; name each one, or give one for all.",
    )
    following = iter(waiting)
    return [name or next(following) for name in named]


# Paths in pixels become objects ------------------------------------------------------------------


def _object(
    others: Sequence[TrackedObject],
    phrase: str,
    path: np.ndarray,
    size: Size,
    tolerance: float,
    name: str = "",
    id: str = "",
) -> TrackedObject:
    """An object from its boxes [F, 4] in pixels, NaN where it is not there."""
    _insist(min(size) > 0, f"The canvas is {size.width} × {size.height} pixels; give it an extent.")
    shares = path / size.sides
    low = np.clip(shares[:, :2], 0, 1)
    extent = np.clip(shares[:, :2] + shares[:, 2:], 0, 1) - low
    there = np.flatnonzero((extent > THINNEST).all(1))  # NaN is not
    _insist(
        len(there) > 0, f"{phrase!r} is on none of the {len(path)} frames; is the size of the canvas right?"
    )
    times = frame_times(len(path))
    boxes = np.column_stack([low, extent])[there]
    keyframes = tuple(
        Keyframe(time=float(times[there[k]]), box=Box(**dict(zip("xywh", boxes[k].tolist(), strict=True))))
        for k in _telling(boxes, times[there], tolerance / size.sides)
    )
    # It came, or went, somewhere between two frames.
    half = 0.5 / max(len(path) - 1, 1)
    return TrackedObject(
        id=id if id and all(id != other.id for other in others) else _free(others, phrase),
        name=name or phrase,
        phrase=phrase,
        keyframes=keyframes,
        enter=max(0.0, float(times[there[0]]) - half) if there[0] else 0.0,
        leave=min(1.0, float(times[there[-1]]) + half) if there[-1] < len(path) - 1 else 1.0,
    )


def _telling(boxes: np.ndarray, times: np.ndarray, tolerance: np.ndarray) -> list[int]:
    """The keyframes that the others do not explain to within a tolerance [4] (Douglas and Peucker 1973)."""
    tolerance = tolerance + 1e-9
    last = len(boxes) - 1
    if (np.abs(boxes - boxes[0]) <= tolerance).all():
        return [0]
    kept, spans = {0, last}, [(0, last)]
    while spans:
        start, end = spans.pop()
        if end - start < 2:
            continue
        share = (times[start + 1 : end] - times[start]) / (times[end] - times[start])
        even = boxes[start] + share[:, None] * (boxes[end] - boxes[start])
        off = (np.abs(boxes[start + 1 : end] - even) / tolerance).max(1)
        if off.max() > 1:
            farthest = start + 1 + int(off.argmax())
            kept.add(farthest)
            spans += [(start, farthest), (farthest, end)]
    return sorted(kept)


def _free(objects: Sequence[TrackedObject], phrase: str) -> str:
    """An id that no object has yet: the phrase and a number."""
    taken = {item.id for item in objects}
    return next(id for n in range(1, len(taken) + 2) if (id := f"{phrase[:90]} {n}") not in taken)


def _around(shown: np.ndarray) -> np.ndarray:
    """The box [4] in pixels around what is True [H, W]; NaN when nothing is."""
    rows, columns = np.flatnonzero(shown.any(1)), np.flatnonzero(shown.any(0))
    if not len(rows):
        return np.full(4, np.nan)
    return np.array([columns[0], rows[0], columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1], float)


def _pixels(start: float, length: float, end: int) -> tuple[int, int]:
    """The whole pixels from and to which a box reaches: at least one, all on the canvas."""
    first = min(round(start), end - 1)
    return first, min(max(round(start + length), first + 1), end)


# What is read from strangers ---------------------------------------------------------------------


def _insist(holds: bool, sentence: str) -> None:
    if not holds:
        raise LayoutError(sentence)


def _read_json(text: str, what: str) -> Any:
    _insist(
        len(text) <= MAX_BYTES, f"{what}: the text has {len(text)} characters; at most {MAX_BYTES} are read."
    )
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise LayoutError(f"{what}: the text is no JSON; wire in what the other node puts out.") from None


def _is_point(value: Any) -> bool:
    return isinstance(value, Mapping) or (
        isinstance(value, list) and len(value) == 2 and not any(isinstance(v, list | Mapping) for v in value)
    )


def _point(value: Any, where: str) -> tuple[float, float]:
    _insist(_is_point(value), f"{where}: it must be {{x, y}} in pixels.")
    x, y = (value.get("x"), value.get("y")) if isinstance(value, Mapping) else value
    return _number(x, f"{where}, x"), _number(y, f"{where}, y")


def _number(value: Any, where: str) -> float:
    """A finite number, also from the scalars of numpy and torch."""
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    _insist(math.isfinite(number), f"{where}: it must be a finite number of pixels, not {str(value)[:40]!r}.")
    return number
