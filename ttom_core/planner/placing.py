"""Where the objects of a read prompt go: regions that do not overlap, and the tracks inside them.

Nothing leaves its region, so objects in different regions never touch, whatever they do there.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field

from ..layout import Box, Keyframe
from .words import Noun, Step

Region = tuple[float, float, float, float]  # left, top, right, bottom
Point = tuple[float, float, float, float]  # time, centre x, centre y, size
CANVAS: Region = (0.0, 0.0, 1.0, 1.0)

SIZES = ((2, 0.28), (4, 0.24), (6, 0.2), (9, 0.18), (99, 0.15))  # box side by number of objects
TRAVEL, SLANTED, RADIUS, JUMP, WAVE = 0.5, 0.42, 0.22, 0.42, 0.125
SMALL, LARGE = 0.16, 0.4  # growing goes from one to the other
GAP, FLOOR, EDGE, JITTER = 0.07, 0.05, 0.01, 0.04


@dataclass
class Actor:
    """A noun with what the prompt says about it."""

    noun: Noun
    moves: list[tuple[str, Step | None]] = field(default_factory=list)  # one after the other
    resize: str | None = None
    turns: bool = False  # into another colour
    place: Step | None = None
    row: bool = False  # its number stands side by side
    enter: float = 0.0
    leave: float = 1.0
    falls: bool = False

    @property
    def axis(self) -> str:
        """The axes along which it needs room: "", "x", "y" or "xy"."""
        return "".join(sorted(set("".join(_axis(kind, step) for kind, step in self.moves))))


@dataclass(frozen=True)
class Bond:
    """Actors a and b that act on each other: meet, part, follow, approach, depart, orbit, leap (over)."""

    kind: str
    a: int
    b: int
    step: Step | None = None


@dataclass(frozen=True)
class Relation:
    """Actor a stands by this step from actor b; `text` is how the prompt says it."""

    a: int
    b: int
    step: Step
    text: str = ""


@dataclass
class _Unit:
    """What shares one region: an actor, part of a counted one, or a bonded pair."""

    actors: list[int]
    bond: Bond | None
    count: int
    axis: str
    place: Step | None = None


def _axis(kind: str, step: Step | None) -> str:
    if kind in ("go", "zigzag", "sway"):
        dx, dy = step or (1 if kind != "go" else 0, 0)
        return ("x" if dx else "") + ("y" if dy else "")
    if kind == "bounce":
        return "xy" if step and step[0] else "y"
    return "xy" if kind == "circle" else ""


def place(
    actors: list[Actor], bonds: list[Bond], relations: list[Relation], seed: int = 0
) -> tuple[list[list[tuple[Keyframe, ...]]], list[Relation]]:
    """Keyframes for every instance of every actor, and the relations that could not be kept.

    A nonzero seed shifts each region's contents a little, never out of the region.
    """
    total = sum(actor.noun.count for actor in actors)
    size = next(side for most, side in SIZES if total <= most)
    units, joints = _units(actors, bonds, relations)
    groups, broken = _groups(units, joints)
    jitter = random.Random(seed) if seed else None
    tracks: list[list[tuple[Keyframe, ...]]] = [[] for _ in actors]
    for unit, region in _regions(units, groups):
        for index, points in _fill(actors, unit, region, size, jitter):
            tracks[index].append(_keyframes(points))
    return tracks, [relations[k] for k in broken]


# Units and groups ---------------------------------------------------------------------------------


def _units(
    actors: list[Actor], bonds: list[Bond], relations: list[Relation]
) -> tuple[list[_Unit], list[tuple[int, int, Step, int]]]:
    """Units, and the relations between them as (unit a, unit b, step, index of the relation)."""
    units: list[_Unit] = []
    of: dict[int, list[int]] = {}
    for bond in bonds:
        if bond.a in of or bond.b in of:
            continue
        pair = [bond.a] if bond.a == bond.b else [bond.a, bond.b]
        axis = "xy" if bond.kind == "orbit" or (bond.step and all(bond.step)) else "x"
        if bond.step and not bond.step[0]:
            axis = "y"
        count = sum(actors[i].noun.count for i in pair)
        spot = next((actors[i].place for i in pair if actors[i].place), None)
        of |= {i: [len(units)] for i in pair}
        units.append(_Unit(pair, bond, count, axis, spot))
    # A counted noun that stands on two sides of something ("between two oranges") is cut in two.
    sides: dict[int, set[Step]] = {}
    for relation in relations:
        sides.setdefault(relation.b, set()).add(relation.step)
    for i, actor in enumerate(actors):
        if i in of:
            continue
        count = actor.noun.count
        split = count > 1 and any((-dx, -dy) in sides.get(i, ()) for dx, dy in sides.get(i, ()))
        parts = [(count + 1) // 2, count // 2] if split else [count]
        of[i] = []
        for part in parts:
            of[i].append(len(units))
            units.append(_Unit([i], None, part, actor.axis, actor.place))
    joints = []
    for k, relation in enumerate(relations):
        a, b = of[relation.a][0], of[relation.b]
        joints.append((a, b[0] if relation.step <= (0, 0) else b[-1], relation.step, k))
    return units, joints


def _groups(
    units: list[_Unit], joints: list[tuple[int, int, Step, int]]
) -> tuple[list[dict[int, Step]], list[int]]:
    """Related units as cells (column, row) of one grid each; and the relations that contradict."""
    cells: dict[int, Step] = {i: u.place for i, u in enumerate(units) if u.place is not None}
    staged = set(cells)
    groups = [dict(cells)] if cells else []
    near: dict[int, list[tuple[int, Step]]] = {}
    for a, b, (dx, dy), _ in joints:
        near.setdefault(b, []).append((a, (dx, dy)))
        near.setdefault(a, []).append((b, (-dx, -dy)))
    if staged:
        _spread(groups[0], near)
        cells = dict(groups[0])
    for i in range(len(units)):
        if i not in cells:
            group = {i: (0, 0)}
            _spread(group, near)
            groups.append(group)
            cells |= group
    broken = []
    for a, b, (dx, dy), k in joints:
        x, y = cells[a][0] - cells[b][0], cells[a][1] - cells[b][1]
        if a == b or x * dx < 0 or y * dy < 0 or (dx and not x) or (dy and not y):
            broken.append(k)
    return groups, broken


def _spread(group: dict[int, Step], near: dict[int, list[tuple[int, Step]]]) -> None:
    """Give every unit that hangs on the group a cell, the next free one in its direction."""
    front = list(group)
    while front:
        b = front.pop(0)
        for a, (dx, dy) in near.get(b, ()):
            if a in group:
                continue
            x, y = group[b][0] + dx, group[b][1] + dy
            while (x, y) in group.values():
                x, y = x + dx, y + dy
            group[a] = (x, y)
            front.append(a)


# Regions ------------------------------------------------------------------------------------------


def _regions(units: list[_Unit], groups: list[dict[int, Step]]) -> list[tuple[_Unit, Region]]:
    """A region for every unit: groups get parts of the canvas, and units cells of them."""
    if any(u.place is not None for u in units):
        return _stage(units, groups)
    axes = ["".join(sorted(set("".join(units[i].axis for i in g)))) for g in groups]
    weights = [max(_weight(units, g), 1) for g in groups]
    for k, axis in enumerate(axes):
        if axis == "y":  # side by side
            weights[k] = max(units[i].count for i in groups[k])
    tall = [k for k, axis in enumerate(axes) if "y" in axis]
    rest = [k for k in range(len(groups)) if k not in tall]
    level = [k for k in rest if axes[k]]
    still = [k for k in rest if not axes[k]]
    shares = [2.2 if axes[k] == "xy" else float(min(weights[k], 3)) for k in tall]
    if rest:
        shares.append(2.0 if level else 1.0)
    columns = _cut(CANVAS, shares, "x")
    parts: dict[int, Region] = dict(zip(tall, columns, strict=False))
    if rest:
        lanes = [float(weights[k]) for k in level]
        if still:
            lanes.append(max(1.0, *(weights[k] for k in still)))
        bands = _cut(columns[-1], lanes, "y")
        parts |= dict(zip(level, bands, strict=False))
        if still:
            counts = [_count(units, groups[k]) for k in still]
            cells = _cells_for(bands[-1], [weights[k] for k in still], counts)
            parts |= dict(zip(still, cells, strict=True))
    return [pair for k, group in enumerate(groups) for pair in _grid(units, group, parts[k])]


def _stage(units: list[_Unit], groups: list[dict[int, Step]]) -> list[tuple[_Unit, Region]]:
    """Where the prompt names places ("on the left"): thirds of the canvas, the rest in free ones."""
    cells = dict(groups[0])
    free = [(x, y) for y in (0, 1, -1) for x in (0, -1, 1)]
    for group in groups[1:]:
        for unit in group:
            spots = [c for c in free if c not in cells.values()]
            cells[unit] = spots[0] if spots else (0, 2 + len(cells))
    corners = {(-1, -1), (1, 1)}
    return _grid(units, cells, CANVAS, corners)


def _count(units: list[_Unit], group: dict[int, Step]) -> int:
    return sum(units[i].count for i in group)


def _weight(units: list[_Unit], group: dict[int, Step]) -> int:
    """How much height a group wants, in rows of about four objects."""
    rows = len({y for _, y in group.values()})
    return max(rows, math.ceil(_count(units, group) / 4))


def _cells_for(region: Region, weights: list[int], counts: list[int]) -> list[Region]:
    """Still groups: single objects in a grid, counted ones in bands of their own."""
    if max(counts) == 1:
        return _slots(region, len(counts), row=len(counts) <= 3)
    return _cut(region, [float(w) for w in weights], "y")


def _cut(region: Region, shares: list[float], axis: str) -> list[Region]:
    """Cut a region along an axis into parts of these relative lengths."""
    left, top, right, bottom = region
    parts, done, whole = [], 0.0, sum(shares)
    for share in shares:
        a, b = done / whole, (done + share) / whole
        done += share
        if axis == "x":
            parts.append((left + a * (right - left), top, left + b * (right - left), bottom))
        else:
            parts.append((left, top + a * (bottom - top), right, top + b * (bottom - top)))
    return parts


def _slots(region: Region, count: int, row: bool = False) -> list[Region]:
    """As many slots in rows, as square as the region allows; a short last row is centred."""
    left, top, right, bottom = region
    width, height = right - left, bottom - top
    options = [1] if row else range(1, count + 1)
    rows = max(options, key=lambda r: (round(min(width / -(-count // r), height / r), 6), -r))
    columns = -(-count // rows)
    slots: list[Region] = []
    for band in _cut(region, [1.0] * rows, "y"):
        inside = min(columns, count - len(slots))
        if inside > 0:
            slots += _cut(band, [1.0] * inside, "x")
    return slots


def _grid(
    units: list[_Unit], group: dict[int, Step], region: Region, corners: set[Step] | None = None
) -> list[tuple[_Unit, Region]]:
    """Cells for related units; who moves along an empty row or column gets all of it."""
    places = [*group.values(), *(corners or ())]
    xs = list(range(min(x for x, _ in places), max(x for x, _ in places) + 1))
    ys = list(range(min(y for _, y in places), max(y for _, y in places) + 1))
    left, top, right, bottom = region
    # Two of a pair stand closer to the middle than the halves' centres.
    pad_x = 0.1 * (right - left) if len(xs) == 2 else 0.0
    pad_y = 0.1 * (bottom - top) if len(ys) == 2 else 0.0
    columns = _cut((left + pad_x, top, right - pad_x, bottom), [1.0] * len(xs), "x")
    rows = _cut((left, top + pad_y, right, bottom - pad_y), [1.0] * len(ys), "y")
    regions = []
    for i, (x, y) in group.items():
        a, b = columns[xs.index(x)], rows[ys.index(y)]
        x0, x1, y0, y1 = a[0], a[2], b[1], b[3]
        if "x" in units[i].axis and sum(other == y for _, other in group.values()) == 1:
            x0, x1 = left, right
        elif "y" in units[i].axis and sum(other == x for other, _ in group.values()) == 1:
            y0, y1 = top, bottom
        regions.append((units[i], (x0, y0, x1, y1)))
    return regions


# Tracks -------------------------------------------------------------------------------------------


def _fill(
    actors: list[Actor], unit: _Unit, region: Region, size: float, jitter: random.Random | None
) -> list[tuple[int, list[Point]]]:
    """The tracks of a unit's instances inside its region, with the actor each belongs to."""
    if unit.bond:
        return _bonded(actors, unit, region, size, jitter)
    (index,) = unit.actors
    actor, count = actors[index], unit.count
    if actor.axis == "x":
        slots = _cut(region, [1.0] * count, "y")
    elif actor.axis == "y":
        slots = _cut(region, [1.0] * count, "x")
    else:
        slots = _slots(region, count, actor.row)
    return [(index, _track(actor, slot, size, jitter)) for slot in slots]


def _track(actor: Actor, region: Region, size: float, jitter: random.Random | None) -> list[Point]:
    """One instance's keyframes: its path at its natural length, shortened where the region ends."""
    width, height = region[2] - region[0], region[3] - region[1]
    side = min(width, height)
    moves = [move for move in actor.moves if move[0] != "still"]
    axis = actor.axis
    if "x" in axis:
        size = min(size, max(0.36 * width, min(0.2, 0.5 * width)))
    if "y" in axis:
        size = min(size, max(0.36 * height, min(0.2, 0.5 * height)))
    size = min(size * (1.3 if actor.noun.vague else 1.0), 0.85 * side)
    low, high = min(SMALL, 0.4 * side), min(LARGE, side - 2 * EDGE)
    scales = {"grow": (low, high), "shrink": (high, low)}.get(actor.resize or "", (size, size))
    if actor.resize and axis:
        scales = (scales[0] * 0.75, scales[1] * 0.75)  # leaves room to travel
    path = _path(actor.moves) if moves else [(0.0, 0.0, 0.0)]
    if actor.resize and len(path) == 1:
        path = [(0.0, 0.0, 0.0), (1.0, 0.0, 0.0)]
    sizes = [scales[0] + (scales[1] - scales[0]) * t for t, _, _ in path]
    bottom = any(kind == "bounce" for kind, _ in moves)
    xs = _fit([x for _, x, _ in path], max(sizes), region[0], region[2], jitter)
    ys = _fit([y for _, _, y in path], max(sizes), region[1], region[3], jitter, bottom)
    return [(t, x, y, s) for (t, _, _), x, y, s in zip(path, xs, ys, sizes, strict=True)]


def _fit(
    values: list[float], size: float, low: float, high: float, jitter: random.Random | None,
    at_end: bool = False,
) -> list[float]:  # fmt: skip
    """Shift a path's coordinate into the middle of low…high (or to its end), shrunk if too long."""
    room = max(high - low - size - 2 * EDGE, 0.0)
    extent = max(values) - min(values)
    scale = min(1.0, room / extent) if extent else 1.0
    slack = room - extent * scale
    shift = 0.5 * slack
    if at_end:
        shift = slack - min(FLOOR, slack / 2)
    if jitter:
        most = min(JITTER, shift, slack - shift)
        shift += jitter.uniform(-most, most)
    start = low + size / 2 + EDGE + shift
    if room == 0.0:
        start = (low + high) / 2
    return [start + (value - min(values)) * scale for value in values]


def _path(moves: list[tuple[str, Step | None]]) -> list[tuple[float, float, float]]:
    """Keyframes (time, x, y) of one move, or of straight moves one after the other."""
    if len(moves) > 1:
        points, x, y = [(0.0, 0.0, 0.0)], 0.0, 0.0
        for k, (_, step) in enumerate(moves, 1):
            dx, dy = step or (0, 0)
            x, y = x + TRAVEL * dx, y + TRAVEL * dy
            points.append((k / len(moves), x, y))
        return points
    ((kind, step),) = moves
    dx, dy = step or (0, 0)
    ticks = [k / 16 for k in range(17)]
    if kind == "bounce":
        return [(t, TRAVEL * dx * t, -JUMP * abs(math.sin(2 * math.pi * t))) for t in ticks]
    if kind == "circle":  # clockwise from the top
        turn = [2 * math.pi * t for t in ticks]
        return [(t, RADIUS * math.sin(a), -RADIUS * math.cos(a)) for t, a in zip(ticks, turn, strict=True)]
    if kind == "zigzag":
        dx, dy = step or (1, 0)
        wave = [0, 1, 0, -1, 0, 1, 0, -1, 0]
        run = 0.7
        return [
            (k / 8, run * dx * k / 8 + WAVE * v * abs(dy), run * dy * k / 8 + WAVE * v * abs(dx))
            for k, v in enumerate(wave)
        ]
    if kind == "sway":
        dx, dy = step or (1, 0)
        swing = [0.2 * math.sin(4 * math.pi * t) for t in ticks]
        return [(t, dx * v, dy * v) for t, v in zip(ticks, swing, strict=True)]
    length = SLANTED if dx and dy else TRAVEL
    return [(0.0, 0.0, 0.0), (1.0, length * dx, length * dy)]


def _bonded(
    actors: list[Actor], unit: _Unit, region: Region, size: float, jitter: random.Random | None
) -> list[tuple[int, list[Point]]]:
    """Tracks of a pair that meets, parts, follows, approaches, departs, orbits or leaps."""
    bond = unit.bond
    assert bond is not None
    if bond.a == bond.b:
        count = actors[bond.a].noun.count
        first, second = [bond.a] * ((count + 1) // 2), [bond.b] * (count // 2)
    else:
        first, second = [bond.a] * actors[bond.a].noun.count, [bond.b] * actors[bond.b].noun.count
    dx, dy = bond.step or (1, 0)
    left, top, right, bottom = region
    lanes = max(len(first), len(second))
    upright = dy != 0 and dx == 0
    length = (bottom - top) if upright else (right - left)
    across = ((right - left) if upright else (bottom - top)) / lanes
    if bond.kind == "leap":
        return _leap(bond, region, size)
    size = min(size, 0.28 * length, 0.8 * across)
    if bond.kind == "orbit":
        return _orbit(first, second, region, size)
    shift = jitter.uniform(-1, 1) * min(JITTER, (across - size) / 2) if jitter else 0.0
    if dx and dy:  # a slanted lane needs room on both sides
        length = min(length, bottom - top)
    result = []
    for role, members in enumerate((first, second)):
        ends = _ends(bond.kind, role, length, size)
        for lane, index in enumerate(members):
            offset = (lane - (len(members) - 1) / 2) * across + shift
            points: list[Point] = []
            for t, along in enumerate(ends):
                x = (left + right) / 2 + along * dx + (offset if upright else 0.0)
                y = (top + bottom) / 2 + along * dy + (0.0 if upright else offset)
                points.append((float(t), x, y, size))
            result.append((index, points if ends[0] != ends[1] else points[:1]))
    return result


def _ends(kind: str, role: int, length: float, size: float) -> tuple[float, float]:
    """Where a partner's centre starts and ends along the lane, from the lane's middle."""
    outer, inner = length / 2 - size / 2 - 0.02, size / 2 + GAP / 2
    side = -1 if role == 0 else 1
    if kind in ("meet", "part"):
        ends = (side * outer, side * inner)
        return ends if kind == "meet" else ends[::-1]
    if kind == "follow":
        gap = size + GAP
        back = -outer, outer - gap
        return back if role == 0 else (back[0] + gap, back[1] + gap)
    target = outer  # approach and depart: the other one stays
    if role == 1:
        return target, target
    near = target - size - GAP
    return (-outer, near) if kind == "approach" else (near, -outer)


def _orbit(first: list[int], second: list[int], region: Region, size: float) -> list[tuple[int, list[Point]]]:
    """The first go around the second, which share the middle."""
    left, top, right, bottom = region
    x, y, side = (left + right) / 2, (top + bottom) / 2, min(right - left, bottom - top)
    size = min(size, 0.22 * side)
    radius = side / 2 - size / 2 - EDGE
    result: list[tuple[int, list[Point]]] = []
    for k, index in enumerate(first):
        turn = [2 * math.pi * (t / 16 + k / len(first)) for t in range(17)]
        path = [(t / 16, x + radius * math.sin(a), y - radius * math.cos(a), size)
                for t, a in enumerate(turn)]  # fmt: skip
        result.append((index, path))
    half = size / 2 if len(second) == 1 else size / 2 + 0.02
    slots = _slots((x - half, y - half, x + half, y + half), len(second))
    for index, (a, b, c, d) in zip(second, slots, strict=True):
        result.append((index, [(0.0, (a + c) / 2, (b + d) / 2, min(c - a, d - b))]))
    return result


def _leap(bond: Bond, region: Region, size: float) -> list[tuple[int, list[Point]]]:
    """The first jumps over the second, high enough to clear it; they share the ground."""
    left, top, right, bottom = region
    size = min(size, 0.24 * (right - left), 0.3 * (bottom - top))
    height = 2.2 * size
    x, ground = (left + right) / 2, (top + bottom + height) / 2
    reach = (right - left - size) / 2 - EDGE
    way = (bond.step or (1, 0))[0] or 1
    path = [
        (t / 16, x + way * reach * (t / 8 - 1), ground - height * math.sin(math.pi * t / 16), size)
        for t in range(17)
    ]
    return [(bond.a, path), (bond.b, [(0.0, x, ground, size)])]


def _keyframes(points: list[Point]) -> tuple[Keyframe, ...]:
    return tuple(Keyframe(time=t, box=Box.around(x, y, size)) for t, x, y, size in points)
