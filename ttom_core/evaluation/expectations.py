"""What a person expects of a planned layout, stated by hand and checked in its boxes.

A row names the things that must be there, ``{"red ball": 2}``, by words that their phrases hold, and
what they do, ``["moves", "red ball", "left"]``. Nothing here reads a prompt: a planner is not judged
by its own understanding. x grows to the right, y downwards, both in shares of the canvas.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..layout import Layout, frame_times

WAY, REST, NEAR, SAME, TURN = 0.15, 0.1, 0.25, 0.2, 0.75
WAYS = {"left": (0, -1), "right": (0, 1), "up": (1, -1), "down": (1, 1)}
PLACES = {"left": (0, -1), "right": (0, 1), "top": (1, -1), "bottom": (1, 1)}
PLURALS = {
    "children": "child", "men": "man", "women": "woman", "mice": "mouse", "fish": "fish", "knives": "knife"
}  # fmt: skip

Boxes = np.ndarray  # [T, 4] as x, y, w, h; NaN while off stage


def held(layout: Layout, row: Mapping[str, Any]) -> dict[str, bool]:
    """Each expectation of a row in words, and whether the layout fulfils it.

    Beside what the row states: each thing in its number, and no object that it neither names nor allows
    by a word of `optional`.
    """
    times = frame_times(21)
    boxes = layout.boxes(times)
    things: dict[str, list[Boxes]] = {key: [] for key in row["things"]}
    extra = False
    for item, track in zip(layout.objects, boxes, strict=True):
        words = _words(item.phrase) | _words(item.name)
        fitting = [key for key in things if _words(key) <= words]
        if fitting:
            things[max(fitting, key=len)].append(track)
        else:
            extra |= not words & {_stem(word) for word in row.get("optional", ())}
    results = {f"count {key} {n}": len(things[key]) == n for key, n in row["things"].items()}
    results["nothing else"] = not extra
    for kind, *rest in row["expect"]:
        results[" ".join([kind, *rest])] = _holds(kind, rest, things)
    return results


def _holds(kind: str, rest: Sequence[str], things: Mapping[str, list[Boxes]]) -> bool:
    """One expectation: of every thing of that name, or of every two."""
    if kind in ALONE:
        tracks = things[rest[0]]
        return bool(tracks) and all(ALONE[kind](track, *rest[1:]) for track in tracks)
    if kind == "between":
        middle, ends = things[rest[0]], [t for key in rest[1:] for t in things[key]]
        return bool(middle) and len(ends) == 2 and all(_between(m, *ends) for m in middle)
    one, other = things[rest[0]], things[rest[1]]
    pairs = [(a, b) for i, a in enumerate(one) for j, b in enumerate(other) if one is not other or i < j]
    return bool(pairs) and all(PAIRED[kind](a, b) for a, b in pairs)


def _words(text: str) -> set[str]:
    return {_stem(word) for word in re.findall(r"\w+", text.lower())}


def _stem(word: str) -> str:
    """A noun without its plural; what else it cuts, it cuts on both sides."""
    if word in PLURALS:
        return PLURALS[word]
    for end, stem in (("ies", "y"), ("xes", "x"), ("sses", "ss"), ("ches", "ch"), ("shes", "sh")):
        if word.endswith(end):
            return word.removesuffix(end) + stem
    return word.removesuffix("s") if not word.endswith("ss") else word


# One thing ----------------------------------------------------------------------------------------


def _path(track: Boxes) -> np.ndarray:
    """The centres [T, 2] while on stage."""
    there = track[~np.isnan(track[:, 0])]
    return there[:, :2] + there[:, 2:] / 2


def _area(track: Boxes) -> np.ndarray:
    there = track[~np.isnan(track[:, 0])]
    return there[:, 2] * there[:, 3]


def _moves(track: Boxes, way: str) -> bool:
    path = _path(track)
    step = path[-1] - path[0]
    if way == "any":
        return bool(np.ptp(path, axis=0).max() >= WAY)
    axis, sign = WAYS[way]
    return bool(step[axis] * sign >= WAY)


def _rests(track: Boxes) -> bool:
    return bool(np.ptp(_path(track), axis=0).max() <= REST)


def _then(track: Boxes, first: str, second: str) -> bool:
    """One way in an earlier part of the clip, the other in a later one."""
    (a, plus), (b, minus) = WAYS[first], WAYS[second]
    path = _path(track)
    return any(
        (path[k, a] - path[0, a]) * plus >= WAY and (path[-1, b] - path[k, b]) * minus >= WAY
        for k in range(1, len(path) - 1)
    )


def _starts(track: Boxes, place: str) -> bool:
    start = _path(track)[0] - 0.5
    if place == "middle":
        return bool(np.abs(start).max() <= SAME)
    axis, sign = PLACES[place]
    return bool(start[axis] * sign > 0.05)


def _falls(track: Boxes) -> bool:
    heights = _path(track)[:, 1]
    return bool(heights[-1] - heights[0] >= WAY and np.diff(heights).min() >= -0.01)


def _reversals(values: np.ndarray) -> int:
    steps = np.diff(values)
    signs = np.sign(steps[np.abs(steps) > 0.005])
    return int((signs[1:] != signs[:-1]).sum())


def _turn(arms: np.ndarray) -> float:
    """How much of a full turn the direction of [T, 2] goes through."""
    return float(np.ptp(np.unwrap(np.arctan2(arms[:, 1], arms[:, 0]))) / (2 * np.pi))


ALONE: dict[str, Callable[..., bool]] = {
    "moves": _moves,
    "rests": _rests,
    "then": _then,
    "starts": _starts,
    "falls": _falls,
    "bounces": lambda track: _reversals(_path(track)[:, 1]) >= 1 and np.ptp(_path(track)[:, 1]) >= 0.1,
    "back_and_forth": lambda track: max(map(_reversals, _path(track).T)) >= 1,
    "circles": lambda track: not _rests(track) and _turn(_path(track) - _path(track).mean(0)) >= TURN,
    "grows": lambda track: bool(_area(track)[-1] >= 1.4 * _area(track)[0]),
    "shrinks": lambda track: bool(_area(track)[0] >= 1.4 * _area(track)[-1]),
    "steady": lambda track: bool(_area(track).max() <= 1.5 * _area(track).min()),
    "stays": lambda track: not np.isnan(track).any(),
    "enters": lambda track: bool(np.isnan(track[0, 0]) and not np.isnan(track[-1, 0])),
    "leaves": lambda track: bool(np.isnan(track[-1, 0]) and not np.isnan(track[0, 0])),
}

# Two things ---------------------------------------------------------------------------------------


def _both(a: Boxes, b: Boxes) -> tuple[Boxes, Boxes]:
    """The frames in which both are on stage."""
    there = ~np.isnan(a[:, 0]) & ~np.isnan(b[:, 0])
    return a[there], b[there]


def _offset(a: Boxes, b: Boxes) -> np.ndarray:
    """From b's centre to a's, [T, 2]."""
    a, b = _both(a, b)
    return a[:, :2] + a[:, 2:] / 2 - b[:, :2] - b[:, 2:] / 2


def _gap(a: Boxes, b: Boxes) -> np.ndarray:
    """The empty space between two boxes along x and y, [T, 2]; negative where they overlap."""
    a, b = _both(a, b)
    return np.maximum(a[:, :2], b[:, :2]) - np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])


def _side(axis: int, sign: int) -> Callable[[Boxes, Boxes], bool]:
    return lambda a, b: bool((_offset(a, b)[:, axis] * sign > 0.02).all() and len(_offset(a, b)))


def _on(a: Boxes, b: Boxes) -> bool:
    gap = _gap(a, b)
    return bool((gap[:, 0] < 0).all() and (gap[:, 1] <= SAME).all() and (_offset(a, b)[:, 1] < -0.02).all())


def _beside(a: Boxes, b: Boxes) -> bool:
    offset = np.abs(_offset(a, b))
    return bool((offset[:, 0] >= 0.1).all() and (offset[:, 1] <= SAME).all())


def _near(a: Boxes, b: Boxes) -> bool:
    return bool((_gap(a, b).max(1) <= NEAR).any())


def _distance(a: Boxes, b: Boxes) -> np.ndarray:
    return np.linalg.norm(_offset(a, b), axis=1)


def _over(a: Boxes, b: Boxes) -> bool:
    """From one side of b to the other, and higher than b when it is there."""
    offset = _offset(a, b)
    across = np.abs(offset[:, 0]).argmin()
    return bool(offset[0, 0] * offset[-1, 0] < 0 and offset[across, 1] < -0.05)


def _between(a: Boxes, b: Boxes, c: Boxes) -> bool:
    one, other = _offset(a, b), _offset(a, c)
    return bool(((one * other < 0).any(1)).all())


PAIRED: dict[str, Callable[[Boxes, Boxes], bool]] = {
    "left_of": _side(0, -1),
    "right_of": _side(0, 1),
    "above": _side(1, -1),
    "below": _side(1, 1),
    "on": _on,
    "beside": _beside,
    "near": _near,
    "nearer": lambda a, b: bool(_distance(a, b)[0] - _distance(a, b)[-1] >= REST),
    "apart": lambda a, b: bool(_distance(a, b)[-1] - _distance(a, b)[0] >= REST),
    "around": lambda a, b: _turn(_offset(a, b)) >= TURN,
    "over": _over,
}
