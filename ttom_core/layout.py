"""Layout: which object is where, when. Boxes over time, one track an object (TTOM 3.1).

Everything is normalised: positions and sizes to 0…1 of the canvas, times to 0…1 of the clip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)

from .errors import TTOMError

MAX_BYTES = 1_000_000
TOLERANCE = 1e-6

Ease = Literal["linear", "in", "out", "in_out", "hold"]
# The share of the way to the next keyframe that is gone after a share of the time to it.
_EASES: dict[Ease, Callable[[np.ndarray], np.ndarray]] = {
    "linear": lambda share: share,
    "in": lambda share: share * share,
    "out": lambda share: share * (2 - share),
    "in_out": lambda share: share * share * (3 - 2 * share),
    "hold": np.zeros_like,
}


class LayoutError(TTOMError):
    """A layout is malformed."""


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Box(_Value):
    """A box by its top-left corner and size, in shares of the canvas."""

    x: float
    y: float
    w: float
    h: float

    @model_validator(mode="after")
    def _inside(self) -> Box:
        where = f"Box x={self.x:g}, y={self.y:g}, w={self.w:g}, h={self.h:g}"
        if self.w <= 0 or self.h <= 0:
            kind = "inverted" if self.w < 0 or self.h < 0 else "of zero area"
            raise ValueError(f"{where} is {kind}; give it a width and a height above 0")
        low, high = min(self.x, self.y), max(self.x + self.w, self.y + self.h)
        if low < -TOLERANCE or high > 1 + TOLERANCE:
            raise ValueError(f"{where} reaches outside the canvas; keep it within 0 to 1")
        return self

    @classmethod
    def around(cls, x: float, y: float, w: float, h: float | None = None) -> Box:
        """The box centred at (x, y), moved inside the canvas where it would reach out."""
        h = w if h is None else h
        return cls(x=min(max(x - w / 2, 0.0), 1 - w), y=min(max(y - h / 2, 0.0), 1 - h), w=w, h=h)

    @property
    def centre(self) -> tuple[float, float]:
        return self.x + self.w / 2, self.y + self.h / 2


class Keyframe(_Value):
    """A box at a time, and how it sets out for the next keyframe: evenly, gently, or not before it."""

    time: float = Field(ge=0, le=1)
    box: Box
    ease: Ease = "linear"

    @model_serializer(mode="wrap")
    def _short(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """An even motion goes without saying, so that layouts without easing are written as ever."""
        row: dict[str, Any] = dump(self)
        if self.ease == "linear":
            del row["ease"]
        return row


class TrackedObject(_Value):
    """One object: its identity, the words of the prompt that name it, and its box over time.

    It is on stage from `enter` to `leave`; between keyframes the box moves as the earlier one's `ease`
    says, before the first and after the last it rests.
    """

    id: str = Field(min_length=1, max_length=100)
    name: str = Field(min_length=1, max_length=200)
    phrase: str = Field(min_length=1, max_length=200)
    keyframes: tuple[Keyframe, ...]
    enter: float = Field(0.0, ge=0, le=1)
    leave: float = Field(1.0, ge=0, le=1)

    @field_validator("keyframes")
    @classmethod
    def _ordered(cls, keyframes: tuple[Keyframe, ...]) -> tuple[Keyframe, ...]:
        if not keyframes:
            raise ValueError("An object needs at least one keyframe; add a box for it")
        if len(keyframes) > 1000:
            raise ValueError(f"An object may have 1000 keyframes, not {len(keyframes)}")
        times = [k.time for k in keyframes]
        if any(b <= a for a, b in pairwise(times)):
            raise ValueError(f"Keyframe times must rise, not go {times}; sort them")
        return keyframes

    @model_validator(mode="after")
    def _on_stage(self) -> TrackedObject:
        if self.enter >= self.leave:
            raise ValueError(
                f"Object {self.id!r} enters at {self.enter:g} and leaves at {self.leave:g}; "
                "let it leave later than it enters"
            )
        return self

    def boxes(self, times: Sequence[float] | np.ndarray) -> np.ndarray:
        """Boxes [T, 4] as x, y, w, h at these times, on stage or not."""
        keys = [k.time for k in self.keyframes]
        sides = np.array([[k.box.x, k.box.y, k.box.w, k.box.h] for k in self.keyframes])
        moments = _eased(np.asarray(times, float), self.keyframes)
        return np.stack([np.interp(moments, keys, side) for side in sides.T], axis=-1)


class Layout(_Value):
    """All tracked objects of one prompt, which planner made them, and what it did not understand."""

    version: Literal[1] = 1
    prompt: str = Field("", max_length=20_000)
    objects: tuple[TrackedObject, ...] = Field(max_length=200)
    background: str = ""
    planner: str = "hand"
    unresolved: tuple[str, ...] = ()

    @field_validator("objects")
    @classmethod
    def _distinct(cls, objects: tuple[TrackedObject, ...]) -> tuple[TrackedObject, ...]:
        ids = [o.id for o in objects]
        for name in ids:
            if ids.count(name) > 1:
                raise ValueError(f"Two objects have the id {name!r}; give each its own")
        return objects

    @property
    def phrases(self) -> tuple[str, ...]:
        """The distinct phrases, in order."""
        return tuple(dict.fromkeys(o.phrase for o in self.objects))

    def boxes(self, times: Sequence[float] | np.ndarray) -> np.ndarray:
        """Boxes [N, T, 4] as x, y, w, h at these times; NaN while an object is off stage."""
        at = np.asarray(times, float)
        result = np.full((len(self.objects), len(at), 4), np.nan)
        for row, item in zip(result, self.objects, strict=True):
            on = (at >= item.enter - 1e-9) & (at <= item.leave + 1e-9)
            row[on] = item.boxes(at[on])
        return result

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Layout:
        """Read a layout; LayoutError with one sentence about the first thing that is wrong."""
        if len(text) > MAX_BYTES:
            raise LayoutError(f"The layout has {len(text)} bytes; at most {MAX_BYTES} are read.")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise LayoutError(_sentence(error)) from None

    def save(self, path: str | Path) -> None:
        """Write JSON, whole or not at all."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(self.to_json() + "\n", encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Layout:
        """Read a layout file; LayoutError names the file and what is wrong with it."""
        path = Path(path)
        try:
            if path.stat().st_size > MAX_BYTES:
                raise LayoutError(f"{path} is larger than {MAX_BYTES} bytes; that is no layout.")
            return cls.from_json(path.read_bytes())
        except OSError as error:
            raise LayoutError(f"The layout file {path} cannot be read: {error.strerror}.") from error
        except LayoutError as error:
            raise LayoutError(f"{path}: {error}") from None


def _sentence(error: ValidationError) -> str:
    """The first fault of a layout, as a sentence with its place and value."""
    first = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in first["loc"])
    if first["loc"] == ("version",):
        return f"The layout has version {first['input']!r}; this TTOM reads version 1."
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{message}{f' (at {place})' if place else ''}."
    if first["type"] == "json_invalid":
        return f"The layout is not valid JSON ({message.split(': ', 1)[-1]})."
    shown = repr(first.get("input"))
    return f"{place or 'The layout'}: {message}, not {shown[:80]}."


def _eased(at: np.ndarray, keyframes: Sequence[Keyframe]) -> np.ndarray:
    """The times at which the boxes would be where they are if every motion were even."""
    moments = at.copy()
    for start, end in pairwise(keyframes):
        if start.ease != "linear":
            between = (at > start.time) & (at < end.time)
            length = end.time - start.time
            moments[between] = start.time + length * _EASES[start.ease]((at[between] - start.time) / length)
    return moments


def frame_times(count: int) -> np.ndarray:
    """The times [count] of evenly spaced frames, the first at 0 and the last at 1."""
    return np.linspace(0.0, 1.0, count)
