"""Composition, presence and distortion of a rendered clip, by detection alone, one rule per category.

The seven categories follow T2V-CompBench's; the rules are exact because the scenes are. A prompt comes
with what it says in machine-checkable form: `{category, prompt, nouns: [{colour, shape, count,
end_colour}], expect: {…}}`. Positions and sizes are shares of the canvas.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .blobs import BACKGROUNDS, PALETTE, Blob, detect
from .distortion import distortion

SIZES = (0.008, 0.22)  # sane areas of one object, as a share of the canvas
TRAVEL = 0.15  # least displacement that counts as moving
STILL = 0.08  # most displacement that counts as standing still
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
RELATIONS = {"left_of": (-1, 0), "right_of": (1, 0), "above": (0, -1), "below": (0, 1)}


@dataclass(frozen=True)
class Score:
    """Each in 0…1: does the clip compose what the prompt says; are its objects there and clean; how far
    are they from their size and shape (of this, less is better)."""

    composition: float
    presence: float
    distortion: float


@dataclass(frozen=True)
class Track:
    """The lone blob of a noun's colour in each frame: centres [F, 2] and areas [F], NaN where not lone."""

    centres: np.ndarray
    areas: np.ndarray
    shaped: float  # share of the frames with a lone blob in which its shape is right

    @property
    def steady(self) -> bool:
        """Seen alone in four fifths of the frames, at the start and at the end, mostly in its shape."""
        seen = ~np.isnan(self.areas)
        return bool(seen.mean() >= 0.8 and seen[:5].any() and seen[-5:].any() and self.shaped >= 0.5)

    def displacement(self) -> np.ndarray:
        """Last position minus first [2], each the mean of the first and last quarter's ends."""
        return np.nanmean(self.centres[-3:], 0) - np.nanmean(self.centres[:3], 0)

    def filled(self) -> np.ndarray:
        """Centres with the gaps interpolated [F, 2]."""
        seen = ~np.isnan(self.areas)
        frames = np.arange(len(seen))
        return np.stack([np.interp(frames, frames[seen], self.centres[seen, axis]) for axis in range(2)], 1)


def _sane(blobs: list[Blob], colour: str) -> list[Blob]:
    return [b for b in blobs if b.colour == colour and SIZES[0] <= b.area <= SIZES[1]]


def _track(frames: list[list[Blob]], noun: dict[str, Any]) -> Track:
    centres = np.full((len(frames), 2), np.nan)
    areas = np.full(len(frames), np.nan)
    right = []
    for f, blobs in enumerate(frames):
        found = _sane(blobs, noun["colour"])
        if len(found) == 1:
            centres[f], areas[f] = (found[0].x, found[0].y), found[0].area
            right.append(found[0].shape == noun["shape"])
    return Track(centres, areas, float(np.mean(right)) if right else 0.0)


def _moves(track: Track, direction: str) -> bool:
    step = track.displacement()
    along = float(step @ np.array(DIRECTIONS[direction]))
    return along >= TRAVEL and along > 1.5 * (abs(step).sum() - abs(along))


def _rests(track: Track) -> bool:
    path = track.filled()
    return bool(np.ptp(path, axis=0).max() <= 2 * STILL and abs(track.displacement()).max() <= STILL)


def _reversals(values: np.ndarray, amplitude: float) -> int:
    """How often a signal turns round by at least `amplitude`."""
    turns, extreme, sign = 0, values[0], 0
    for value in values[1:]:
        if sign == 0 and abs(value - extreme) >= amplitude:
            sign, extreme = (1 if value > extreme else -1), value
        elif sign * (value - extreme) > 0:
            extreme = value
        elif sign and sign * (extreme - value) >= amplitude:
            turns, sign, extreme = turns + 1, -sign, value
    return turns


def _counted(frames: list[list[Blob]], spec: dict[str, Any]) -> float:
    """Share of frames whose blobs are exactly the named ones: colours, shapes and counts."""
    wanted = {(n["colour"], n["shape"]): n["count"] for n in spec["nouns"]}
    good = 0
    for blobs in frames:
        found: dict[tuple[str, str], int] = {}
        for blob in blobs:
            found[blob.colour, blob.shape] = found.get((blob.colour, blob.shape), 0) + 1
        good += found == wanted
    return good / len(frames)


def _spatial(frames: list[list[Blob]], spec: dict[str, Any]) -> float:
    sx, sy = RELATIONS[spec["expect"]["relation"]]
    first, second = (_track(frames, noun) for noun in spec["nouns"])
    if min(first.shaped, second.shaped) < 0.5:
        return 0.0
    dx, dy = (first.centres - second.centres).T
    along, across = dx * sx + dy * sy, abs(dx * sy) + abs(dy * sx)
    return float(np.mean(along > across))  # a NaN (not seen alone) compares false


def _motion(tracks: list[Track], spec: dict[str, Any]) -> bool:
    directions = spec["expect"]["directions"]
    return all(_moves(t, d) for t, d in zip(tracks, directions, strict=False)) and all(
        _rests(t) for t in tracks[len(directions) :]
    )


def _action(tracks: list[Track], spec: dict[str, Any]) -> bool:
    path = tracks[0].filled()
    width, height = np.ptp(path, axis=0)
    action = spec["expect"]["action"]
    if action == "bounces":
        done = height >= 0.2 and width <= 0.12 and _reversals(path[:, 1], 0.1) >= 2
    elif action == "circles":
        around = np.unwrap(np.arctan2(*(path - (path.max(0) + path.min(0)) / 2).T[::-1]))
        done = min(width, height) >= 0.2 and abs(around[-1] - around[0]) >= 1.5 * np.pi
    else:
        done = width >= 0.35 and _reversals(path[:, 1], 0.06) >= 2
    return bool(done) and all(_rests(t) for t in tracks[1:])


def _interaction(tracks: list[Track], spec: dict[str, Any]) -> bool:
    first, second = (t.filled() for t in tracks)
    expect = spec["expect"]
    if expect["interaction"] == "follows":
        sign = DIRECTIONS[expect["direction"]][0]
        behind = np.mean((second - first)[:, 0] * sign > 0.05) >= 0.8
        return bool(behind and all(_moves(t, expect["direction"]) for t in tracks))
    gap = np.linalg.norm(first - second, axis=1)
    closing = (gap[0] - gap[-1]) * (1 if expect["interaction"] == "towards" else -1)
    both = min(np.ptp(first, axis=0).max(), np.ptp(second, axis=0).max())
    return bool(closing >= 0.2 and both >= 0.08)


def _dynamic(frames: list[list[Blob]], tracks: list[Track], spec: dict[str, Any]) -> bool:
    noun, change = spec["nouns"][0], spec["expect"]["change"]
    if not all(t.steady and _rests(t) for t in tracks[1:]):
        return False
    if change == "turns":
        third = len(frames) // 3

        def share(part: list[list[Blob]], colour: str) -> float:
            hits = [len([b for b in _sane(bs, colour) if b.shape == noun["shape"]]) == 1 for bs in part]
            return float(np.mean(hits))

        return (
            share(frames[:third], noun["colour"]) >= 0.5 and share(frames[-third:], noun["end_colour"]) >= 0.5
        )
    if not tracks[0].steady:
        return False
    growth = np.nanmean(tracks[0].areas[-4:]) / np.nanmean(tracks[0].areas[:4])
    return bool(growth >= 1.6 if change == "grows" else growth <= 1 / 1.6)


_TRACKED: dict[str, Callable[[list[Track], dict[str, Any]], bool]] = {
    "motion": _motion,
    "action": _action,
    "interaction": _interaction,
}


def composition(blobs: list[list[Blob]], spec: dict[str, Any]) -> float:
    """Score in 0…1 of detected blobs per frame against one prompt's expectations."""
    category = spec["category"]
    if category in ("numeracy", "consistent_attribute", "single"):
        return _counted(blobs, spec)
    if category == "spatial":
        return _spatial(blobs, spec)
    tracks = [_track(blobs, noun) for noun in spec["nouns"]]
    if category == "dynamic_attribute":
        return float(_dynamic(blobs, tracks, spec))
    return float(all(t.steady for t in tracks) and _TRACKED[category](tracks, spec))


def presence(frames: np.ndarray, blobs: list[list[Blob]], spec: dict[str, Any]) -> float:
    """Share of the named objects that are there in their shape × share of the foreground that is theirs.

    Says nothing about where or how many: an object missing, deformed, grown out of size or drowned in
    debris lowers it. Mean over frames.
    """
    table = np.array([*PALETTE.values(), *BACKGROUNDS.values()], np.float32)
    nearest = np.linalg.norm(frames[..., None, :].astype(np.float32) - table, axis=-1).argmin(-1)
    foreground = (nearest < len(PALETTE)).mean((1, 2))
    values = []
    for found, area in zip(blobs, foreground, strict=True):
        there, own = [], 0.0
        for noun in spec["nouns"]:
            colours = {noun["colour"], noun["end_colour"]} - {None}
            # While a colour turns into another it is neither: any colour will do for that noun.
            good = [
                b
                for b in found
                if (b.colour in colours or noun["end_colour"])
                and b.shape == noun["shape"]
                and SIZES[0] <= b.area <= SIZES[1]
            ]
            there.append(bool(good))
            own += sum(b.area for b in good)
        values.append(np.mean(there) * min(1.0, own / max(area, 1e-9)))
    return float(np.mean(values))


def score(frames: np.ndarray, spec: dict[str, Any]) -> Score:
    """Score uint8 frames [F, H, W, 3] against one prompt's expectations."""
    blobs = [detect(frame) for frame in frames]
    return Score(composition(blobs, spec), presence(frames, blobs, spec), distortion(blobs, spec))
