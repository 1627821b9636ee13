"""Layouts in world terms with a camera track, and what the camera sees of them: a Layout.

The world's unit is the canvas of a camera at rest, so boxes may lie outside 0…1: the camera can go there.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..layout import Box, Keyframe, Layout, LayoutError, TrackedObject, frame_times

MIN_SIDE = 0.02  # of the canvas; what is smaller holds no latent token
MIN_VISIBLE = 0.2  # share of an object's area within the frame from which on it counts as on stage
MAX_KEYFRAMES = 100
GRID = frame_times(21)  # where a moving camera is sampled: Wan's latent frames, and the checks' frames


class Form(BaseModel):
    """What a language model fills in: every field is required, as strict structured outputs ask.

    What a model adds of its own is told off by the schema, and passed over where no schema was enforced.
    """

    model_config = ConfigDict(
        frozen=True, allow_inf_nan=False, json_schema_extra={"additionalProperties": False}
    )


class WorldKeyframe(Form):
    """A box by its top-left corner and size at a time, in world units."""

    time: float
    x: float
    y: float
    w: float
    h: float


class WorldObject(Form):
    """A tracked object in the world; `resizes` says why its size changes, "" when it does not."""

    id: str
    name: str
    phrase: str
    enter: float
    leave: float
    resizes: str
    keyframes: tuple[WorldKeyframe, ...] = Field(min_length=1, max_length=MAX_KEYFRAMES)


class View(Form):
    """Where the camera looks at a time: the world point in the frame's centre, and the magnification."""

    time: float
    x: float
    y: float
    zoom: float = Field(description="1 shows the whole canvas, 2 half of it at twice the size")


class World(Form):
    """A plan: objects in the world and the camera that films them (no views: it rests)."""

    reasoning: str
    objects: tuple[WorldObject, ...] = Field(min_length=1, max_length=200)
    camera: tuple[View, ...] = Field(max_length=100)
    background: str

    @classmethod
    def of(cls, layout: Layout) -> World:
        """A layout as a world filmed by a camera at rest; `project` gives it back, eased ways spelled out."""
        objects = [
            WorldObject(
                id=o.id,
                name=o.name,
                phrase=o.phrase,
                enter=o.enter,
                leave=o.leave,
                resizes="",
                keyframes=_spelled_out(o),
            )
            for o in layout.objects
        ]
        return cls(reasoning="", objects=tuple(objects), camera=(), background=layout.background)

    @property
    def moving_camera(self) -> bool:
        return any((v.x, v.y, v.zoom) != (0.5, 0.5, 1.0) for v in self.camera)

    def boxes(self, times: Sequence[float] | np.ndarray) -> np.ndarray:
        """World boxes [N, T, 4] as x, y, w, h at these times; NaN while an object is off stage."""
        at = np.asarray(times, float)
        result = np.full((len(self.objects), len(at), 4), np.nan)
        for row, item in zip(result, self.objects, strict=True):
            keys = [k.time for k in item.keyframes]
            sides = np.array([[k.x, k.y, k.w, k.h] for k in item.keyframes])
            on = (at >= item.enter - 1e-9) & (at <= item.leave + 1e-9)
            for side in range(4):
                row[on, side] = np.interp(at[on], keys, sides[:, side])
        return result

    def seen(self, times: Sequence[float] | np.ndarray) -> np.ndarray:
        """Boxes [N, T, 4] in shares of the frame, as the camera sees them; they may reach outside."""
        boxes = self.boxes(times)
        if self.camera:
            keys = [v.time for v in self.camera]
            tracks = np.array([[v.x, v.y, v.zoom] for v in self.camera]).T
            x, y, zoom = (np.interp(times, keys, track) for track in tracks)
            boxes[..., :2] = 0.5 + (boxes[..., :2] - np.stack([x, y], -1)) * zoom[:, None]
            boxes[..., 2:] *= zoom[:, None]
        return boxes


def _spelled_out(item: TrackedObject) -> tuple[WorldKeyframe, ...]:
    """An object's keyframes for the world, which moves evenly: what is eased has the frames of GRID between.

    Of more keyframes than a world holds, as detections have, GRID's are taken.
    """
    keys = item.keyframes
    times = {k.time for k in keys}
    for start, end in pairwise(keys):
        if start.ease != "linear":
            times |= {t for t in GRID.tolist() if start.time < t < end.time}
    if len(times) > MAX_KEYFRAMES:
        times = {keys[0].time, keys[-1].time} | {t for t in GRID.tolist() if keys[0].time < t < keys[-1].time}
    at = sorted(times)
    sides = item.boxes(at).tolist()
    return tuple(
        WorldKeyframe(time=time, x=x, y=y, w=w, h=h) for time, (x, y, w, h) in zip(at, sides, strict=True)
    )


def project(world: World, prompt: str = "", planner: str = "hand") -> tuple[Layout, list[str]]:
    """The layout a camera sees, cut at the frame's edges, and a sentence for each thing that it lost.

    An object is on stage while at least a fifth of it is within the frame. LayoutError when the world
    holds no valid layout.
    """
    objects: list[TrackedObject] = []
    lost: list[str] = []
    try:
        for index, item in enumerate(world.objects):
            if not world.moving_camera:
                keys = [[k.time, k.x, k.y, k.w, k.h] for k in item.keyframes]
                enter, leave = item.enter, item.leave
            else:
                keys, sentence = _stay(world, index)
                lost += [sentence] if sentence else []
                if not keys:
                    continue
                enter, leave = keys[0][0], keys[-1][0]
            frames = tuple(Keyframe(time=t, box=Box(x=x, y=y, w=w, h=h)) for t, x, y, w, h in keys)
            objects.append(
                TrackedObject(
                    id=item.id,
                    name=item.name,
                    phrase=item.phrase,
                    keyframes=frames,
                    enter=enter,
                    leave=leave,
                )
            )
        layout = Layout(prompt=prompt, objects=tuple(objects), background=world.background, planner=planner)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise LayoutError(f"The plan is no layout: {first['msg'].removeprefix('Value error, ')}.") from None
    return layout, lost


def _stay(world: World, index: int) -> tuple[list[list[float]], str]:
    """The longest stay of an object within the frame as (time, x, y, w, h), and what was lost of it."""
    item = world.objects[index]
    times = np.array(sorted({*GRID, *(k.time for k in item.keyframes), *(v.time for v in world.camera)}))
    boxes = world.seen(times)[index]
    low = np.clip(boxes[:, :2], 0, 1)
    size = np.clip(boxes[:, :2] + boxes[:, 2:], 0, 1) - low
    with np.errstate(invalid="ignore"):
        inside = (size >= MIN_SIDE).all(1) & (size.prod(1) >= MIN_VISIBLE * boxes[:, 2:].prod(1))
    edges = np.flatnonzero(np.diff(np.r_[False, inside, False]))
    stays = [(a, b) for a, b in pairwise(edges) if inside[a] and b - a > 1]
    if not stays:
        return [], f"The camera never shows {item.id!r}."
    start, end = max(stays, key=lambda stay: times[stay[1] - 1] - times[stay[0]])
    keys = np.column_stack([times, low, size])[start:end].tolist()
    again = f"{item.id!r} leaves the frame and comes back; only its longest stay is laid out."
    return keys, again if len(stays) > 1 else ""
