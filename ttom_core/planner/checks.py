"""What a plan must keep, checked in code: repaired where the repair is plain, else said in a sentence.

The expectations are read from the prompt by the rule planner's own reading. A sentence is written for
whoever can act on it: it goes back to the language model, and what remains goes to the user.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np

from ..layout import Layout, LayoutError
from .camera import GRID, MIN_SIDE, View, World, WorldKeyframe, WorldObject, project
from .placing import Actor, Bond
from .rules import PlanError, Reader, read_prompt
from .words import CAMERA, VERBS, Noun, Step, read_words

MAX_SPEED = 4.0  # canvas widths per clip: faster than crossing it in a quarter is a jump
MAX_RATIO = 1.5  # largest over smallest side of an object that is said to keep its size
WAY = 0.1  # of the canvas: what counts as moving; less than REST as resting
REST = 0.08
FAR = 1.5  # coordinates beyond this are no shares of the canvas, but pixels or percent
# Relations whose direction a frame can show: "beside" leaves the side open, "behind" is depth.
SEEN_RELATION = re.compile(r"\b(left|right|above|below|under\w*|beneath|over|atop|on)\b", re.IGNORECASE)


def check(plan: Layout | World, prompt: str, text: str | None = None) -> list[str]:
    """The sentences of all faults of a plan against its prompt; none: it obeys.

    `text` is what will be encoded, where that is not the prompt itself (enrichment). Motions, sizes and
    relations are checked in the world, counts and edges in the frame.
    """
    text = text if text is not None else plan.prompt or prompt if isinstance(plan, Layout) else prompt
    world = World.of(plan) if isinstance(plan, Layout) else plan
    try:
        _, lost = project(world, text)
    except LayoutError as error:
        return [str(error)]
    reading = _Reading(world, prompt)
    filmed = bool(CAMERA & set(re.findall(r"\w+", f"{prompt} {text}".lower())))
    faults = [*lost, *_phrases(world, text), *reading.counts(filmed or world.moving_camera)]
    faults += _jumps(world)
    if isinstance(plan, Layout) and filmed:
        return faults  # what a moving camera saw does not tell how things moved
    return [*faults, *_sizes(world, reading), *reading.broken()]


def retold(prompt: str, text: str) -> list[str]:
    """What a description has dropped of its prompt: the words of every object, and every number."""
    lost = [n.phrase for n in _nouns(prompt) if not n.absent and _found(n.phrase, text) is None]
    told = [(n.name.lower(), n.count) for n in _nouns(text)]
    miscounted = [
        n
        for n in _nouns(prompt)
        if n.phrase not in lost and n.count > 1 and (n.name.lower(), n.count) not in told
    ]
    faults = [f"The description lost {phrase!r}; keep the prompt's own words." for phrase in lost]
    return faults + [f"The description must say {n.count} of {n.phrase!r}." for n in miscounted]


def check_names(objects: Sequence[WorldObject], prompt: str, text: str) -> list[str]:
    """The faults of a list of objects before they have boxes: phrases, ids and counts."""
    world = World(reasoning="", objects=tuple(objects), camera=(), background="")
    return [*_phrases(world, text), *_Reading(world, prompt).counts(True)]


# Repairs ------------------------------------------------------------------------------------------


def repair(world: World, prompt: str, text: str) -> tuple[World, list[str]]:
    """The plan with everything mended that has one plain mending, and a sentence for each."""
    done: list[str] = []
    objects = own_words([_timed(o, done) for o in world.objects], text, done)
    camera = {min(max(v.time, 0.0), 1.0): v for v in world.camera}
    views = tuple(
        View(time=t, x=v.x, y=v.y, zoom=min(max(v.zoom, 0.1), 10.0)) for t, v in sorted(camera.items())
    )
    world = world.model_copy(update={"objects": tuple(objects), "camera": views})
    uneven = {index for index, _ in _uneven(world, _Reading(world, prompt))}
    kept = [_steady(o, done) if i in uneven else o for i, o in enumerate(world.objects)]
    if not world.moving_camera:
        kept = [_inside(o, done) for o in kept]
    return world.model_copy(update={"objects": tuple(_untangled(kept, done))}), done


def own_words(objects: Sequence[WorldObject], text: str, done: list[str]) -> list[WorldObject]:
    """The objects under ids of their own and the text's own phrases; `done` hears of every change."""
    return [_own_phrase(item, text, done) for item in _own_ids(objects, done)]


def _timed(item: WorldObject, done: list[str]) -> WorldObject:
    """Times within the clip and rising, boxes with sides above 0."""
    frames: dict[float, WorldKeyframe] = {}
    for k in sorted(item.keyframes, key=lambda k: k.time):
        time = min(max(k.time, 0.0), 1.0)
        x, y = min(k.x, k.x + k.w), min(k.y, k.y + k.h)
        w, h = max(abs(k.w), MIN_SIDE), max(abs(k.h), MIN_SIDE)
        frames[time] = WorldKeyframe(time=time, x=x, y=y, w=w, h=h)
    enter, leave = min(max(item.enter, 0.0), 1.0), min(max(item.leave, 0.0), 1.0)
    if enter >= leave:
        enter, leave = 0.0, 1.0
    mended = item.model_copy(update={"keyframes": tuple(frames.values()), "enter": enter, "leave": leave})
    if mended != item:
        done.append(f"{item.id!r}: times put in order, boxes given positive sides.")
    return mended


def _own_ids(objects: Sequence[WorldObject], done: list[str]) -> list[WorldObject]:
    taken: set[str] = set()
    result = []
    for item in objects:
        name, number = item.id.strip() or item.name, 2
        while name in taken or not name:
            name, number = f"{item.id or 'object'} {number}", number + 1
        if name != item.id:
            done.append(f"The id {item.id!r} was empty or taken; it became {name!r}.")
        taken.add(name)
        result.append(item.model_copy(update={"id": name}))
    return result


def _own_phrase(item: WorldObject, text: str, done: list[str]) -> WorldObject:
    """The text's own words for an object, where its phrase differs only in case, article or number."""
    if _found(item.phrase, text) == item.phrase:
        return item
    wanted = {s.lower() for s in (item.phrase, item.name)} | {
        s.lower() for n in _nouns(f"{item.phrase}. {item.name}.") for s in (n.name, n.phrase)
    }
    near = [n.phrase for n in _nouns(text) if {n.phrase.lower(), n.name.lower()} & wanted]
    phrase = _found(item.phrase, text) or next(iter(near), None)
    if phrase is None:
        return item
    done.append(f"{item.id!r}: the phrase {item.phrase!r} became the text's own {phrase!r}.")
    return item.model_copy(update={"phrase": phrase})


def _steady(item: WorldObject, done: list[str]) -> WorldObject:
    """The median size, about the same centres."""
    w, h = (float(np.median([getattr(k, side) for k in item.keyframes])) for side in "wh")
    frames = [
        WorldKeyframe(time=k.time, x=k.x + (k.w - w) / 2, y=k.y + (k.h - h) / 2, w=w, h=h)
        for k in item.keyframes
    ]
    done.append(f"{item.id!r} changed its size without a reason; it keeps its median size.")
    return item.model_copy(update={"keyframes": tuple(frames)})


def _inside(item: WorldObject, done: list[str]) -> WorldObject:
    """Boxes that reach over an edge, moved inside; far ones are not shares and stay as they are."""
    sides = np.array([[k.x, k.y, k.w, k.h] for k in item.keyframes])
    if np.abs(sides).max() > FAR:
        return item
    sides[:, 2:] = np.minimum(sides[:, 2:], 1)
    moved = np.clip(sides[:, :2], 0, 1 - sides[:, 2:])
    if np.abs(moved - sides[:, :2]).max() > 1e-6:
        done.append(f"{item.id!r} reached outside the canvas; it was moved inside.")
    frames = [
        WorldKeyframe(time=k.time, x=x, y=y, w=w, h=h)
        for k, (x, y), (w, h) in zip(item.keyframes, moved.tolist(), sides[:, 2:].tolist(), strict=True)
    ]
    return item.model_copy(update={"keyframes": tuple(frames)})


def _untangled(objects: list[WorldObject], done: list[str]) -> list[WorldObject]:
    """Same-named objects whose ids changed hands between keyframes get their own boxes back."""
    from scipy.optimize import linear_sum_assignment

    for name in dict.fromkeys(o.name for o in objects):
        group = [i for i, o in enumerate(objects) if o.name == name]
        times = {tuple(k.time for k in objects[i].keyframes) for i in group}
        if len(group) < 2 or len(times) > 1:
            continue
        columns = [list(c) for c in zip(*(objects[i].keyframes for i in group), strict=True)]
        for place, (before, after) in enumerate(pairwise(columns), 1):
            way = np.array([[np.hypot(b.x - a.x, b.y - a.y) for b in after] for a in before])
            if way.diagonal().max() <= MAX_SPEED * (after[0].time - before[0].time):
                continue
            _, order = linear_sum_assignment(way)
            for column in columns[place:]:
                column[:] = [column[j] for j in order]
        for row, i in enumerate(group):
            frames = tuple(column[row] for column in columns)
            if frames != objects[i].keyframes:
                done.append(f"{objects[i].id!r} had changed places with its like; it follows its own way.")
                objects[i] = objects[i].model_copy(update={"keyframes": frames})
    return objects


# Checks that need no reading ----------------------------------------------------------------------


def _nouns(text: str) -> list[Noun]:
    return [word.value for word in read_words(text) if word.kind == "noun"]


def _found(phrase: str, text: str) -> str | None:
    """The phrase as the text spells it, whole words only; the text encoder looks no further."""
    match = re.search(rf"(?<!\w){re.escape(phrase.strip())}(?!\w)", text, re.IGNORECASE)
    return match.group() if match and phrase.strip() else None


def _phrases(world: World, text: str) -> Iterator[str]:
    for item in world.objects:
        if _found(item.phrase, text) is None:
            yield f"The phrase {item.phrase!r} of {item.id!r} is not in the text; use words that stand there."


def _jumps(world: World) -> Iterator[str]:
    times = np.array(sorted({*GRID, *(k.time for o in world.objects for k in o.keyframes)}))
    boxes = world.boxes(times)
    centres = boxes[..., :2] + boxes[..., 2:] / 2
    ways = np.linalg.norm(np.diff(centres, axis=1), axis=-1)
    for item, way in zip(world.objects, ways, strict=True):
        too_far = np.flatnonzero(np.nan_to_num(way) > MAX_SPEED * np.diff(times) + 1e-6)
        if len(too_far):
            yield f"{item.id!r} jumps at {times[too_far[0]]:.2f} of the clip; let it move steadily."


def _uneven(world: World, reading: _Reading) -> Iterator[tuple[int, float]]:
    """Objects whose size changes without a reason, and by what factor."""
    for index, item in enumerate(world.objects):
        sides = np.array([(k.w, k.h) for k in item.keyframes])
        ratio = float((sides.max(0) / sides.min(0)).max())
        if ratio > MAX_RATIO and not item.resizes.strip() and index not in reading.resized:
            yield index, ratio


def _sizes(world: World, reading: _Reading) -> Iterator[str]:
    for index, ratio in _uneven(world, reading):
        item = world.objects[index]
        yield f"{item.id!r} changes its size {ratio:.1f} times without a reason; keep it or say why."


# Checks against what the prompt says --------------------------------------------------------------


class _Reading:
    """What the prompt says about the objects of a plan."""

    def __init__(self, world: World, prompt: str) -> None:
        try:
            self.reader = read_prompt(prompt)
        except PlanError:
            self.reader = Reader()  # more than the rules lay out: nothing is claimed
        self.world = world
        words = re.findall(r"\w+", prompt.lower())
        self.leaving = any(VERBS.get(w, ("",))[0] in ("enter", "leave") for w in words)
        boxes = world.boxes(GRID)
        self.centres = boxes[..., :2] + boxes[..., 2:] / 2
        self.boxes = boxes
        self.actors = self.reader.actors
        self.members = self._match()
        names = [a.noun.name.lower() for a in self.actors]
        self.certain = [bool(m) and names.count(n) == 1 for m, n in zip(self.members, names, strict=True)]
        self.resized = {
            i for a, m in zip(self.actors, self.members, strict=True) if a.resize for i in m
        }  # fmt: skip

    def _match(self) -> list[list[int]]:
        """The objects that each actor stands for: by its words, else by its head noun alone."""
        members: list[list[int]] = [[] for _ in self.actors]
        for index, item in enumerate(self.world.objects):
            nouns = [n for t in (item.phrase, item.name) for n in _nouns(t)[:1]]
            words = {s.lower() for n in nouns for s in (n.name, n.phrase)} | {item.name.lower()}
            heads = {n.head for n in nouns}
            exact = [
                a
                for a, actor in enumerate(self.actors)
                if {actor.noun.name.lower(), actor.noun.phrase.lower()} & words
            ]
            near = [a for a, actor in enumerate(self.actors) if actor.noun.head in heads]
            if exact:  # of several with the same words, the first that still lacks one
                free = [a for a in exact if len(members[a]) < self.actors[a].noun.count]
                members[(free or exact)[0]].append(index)
            elif len(near) == 1:
                members[near[0]].append(index)
        return members

    def counts(self, comings: bool) -> Iterator[str]:
        """Numbers per name, in every frame unless things may come and go."""
        for actor, members in zip(self.actors, self.members, strict=True):
            noun, found = actor.noun, len(members)
            if not found:
                yield f"The prompt names {noun.phrase!r}, and no object of the plan is one; add it."
            elif found != noun.count and not noun.vague:
                yield f"The prompt asks for {noun.count} of {noun.phrase!r}, the plan has {found}."
            elif not (comings or self.leaving):
                there = (~np.isnan(self.boxes[members, :, 0])).sum(0)
                if there.min() < found:
                    at = GRID[int(there.argmin())]
                    yield (
                        f"Of {found} {noun.phrase!r} only {there.min()} are there at {at:.2f} of the clip; "
                        "let them stay from 0 to 1."
                    )

    def broken(self) -> Iterator[str]:
        """Motions, places, relations and meetings that the prompt states and the boxes do not show."""
        bonded = {i for bond in self.reader.bonds for i in (bond.a, bond.b)}
        for index, (actor, members) in enumerate(zip(self.actors, self.members, strict=True)):
            for i in members if self.certain[index] else ():
                path = self.centres[i][~np.isnan(self.centres[i][:, 0])]
                sides = self.boxes[i][~np.isnan(self.boxes[i][:, 0])][:, 2]
                if len(path) < 2:
                    continue
                if fault := _told(actor, path, sides, index in bonded):
                    yield f"{self.world.objects[i].id!r} {fault}."
        for bond in self.reader.bonds:
            if fault := self._bond(bond):
                yield fault
        yield from self._relations()

    def _bond(self, bond: Bond) -> str | None:
        if not (self.certain[bond.a] and self.certain[bond.b]):
            return None
        one, other = self.members[bond.a][0], self.members[bond.b][-1]
        if one == other:
            return None
        a, b = self.centres[one], self.centres[other]
        both = ~np.isnan(a[:, 0]) & ~np.isnan(b[:, 0])
        if both.sum() < 2:
            return None
        a, b = a[both], b[both]
        gap = np.linalg.norm(a - b, axis=1)
        who = f"{self.world.objects[one].id!r} and {self.world.objects[other].id!r}"
        if bond.kind in ("meet", "approach") and gap[0] - gap[-1] < WAY / 2:
            return f"{who} should come nearer to each other by the end of the clip."
        if bond.kind in ("part", "depart") and gap[-1] - gap[0] < WAY / 2:
            return f"{who} should be farther apart at the end of the clip than at its start."
        if bond.kind == "follow" and (a[-1] - a[0]) @ (b[-1] - b[0]) <= 0:
            return f"{who} should move in the same direction, the first behind the second."
        if bond.kind == "leap":
            over = a[np.abs((a - b)[:, 0]).argmin(), 1] < b[0, 1] - REST / 2
            if not over or (a - b)[0, 0] * (a - b)[-1, 0] >= 0:
                return f"{who}: the first should go over the other, from one side to the other."
        if bond.kind == "orbit" and _turns(a - b) < 0.5:
            return f"{self.world.objects[one].id!r} should go around {self.world.objects[other].id!r}."
        return None

    def _relations(self) -> Iterator[str]:
        objects, relations = self.world.objects, self.reader.relations
        for r in relations:
            if not (self.certain[r.a] and self.certain[r.b]) or not SEEN_RELATION.search(r.text):
                continue
            moving = self.actors[r.a].axis + self.actors[r.b].axis
            for i in self.members[r.a]:
                for j in self.members[r.b]:
                    if i != j and not self._stands(i, j, r.step, moving):
                        yield f"{objects[i].id!r} should be {r.text} {objects[j].id!r}."
        for first, second in pairwise(relations):
            if first.text != second.text or "between" not in first.text or first.a != second.a:
                continue
            ends = [*self.members[first.b][:1], *self.members[second.b][-1:]]
            for i in (
                self.members[first.a] if all(self.certain[k] for k in (first.a, first.b, second.b)) else ()
            ):
                low, high = np.sort(self.centres[ends], axis=0) if len(ends) == 2 else (None, None)
                if low is not None and not ((low < self.centres[i]) & (self.centres[i] < high)).any():
                    names = " and ".join(repr(objects[k].id) for k in ends)
                    yield f"{objects[i].id!r} should be between {names}."

    def _stands(self, i: int, j: int, step: Step, moving: str) -> bool:
        """Whether i is by this step from j: in all shared frames, or once where they move past."""
        apart = self.centres[i] - self.centres[j]
        apart = apart[~np.isnan(apart[:, 0])]
        for axis, sign in enumerate(step):
            holds = apart[:, axis] * sign > 0.01
            if sign and len(holds) and not (holds.any() if "xy"[axis] in moving else holds.all()):
                return False
        return True


def _told(actor: Actor, path: np.ndarray, sides: np.ndarray, bonded: bool) -> str | None:
    """What the path [T, 2] and the widths [T] of an object owe to the words about it."""
    way = path[-1] - path[0]
    kinds = [kind for kind, _ in actor.moves]
    if actor.resize == "grow" and sides[-1] < 1.2 * sides[0]:
        return "should grow, and its box does not"
    if actor.resize == "shrink" and sides[0] < 1.2 * sides[-1]:
        return "should shrink, and its box does not"
    if actor.falls and (np.diff(path[:, 1]) < -0.01).any():
        return "falls, so it must never rise on its way down"
    if actor.falls and _pauses(path[:, 1]):
        return "falls, so it must not hang in the air before it lands"
    if bonded:
        return None
    if not set(kinds) - {"still"} and actor.place is not None:
        for axis, sign in enumerate(actor.place):
            off = path[0, axis] - 0.5
            if off * sign <= 0 if sign else actor.place == (0, 0) and abs(off) > 0.2:
                return f"should be {_side(actor.place)}"
    if kinds and set(kinds) == {"still"} and np.ptp(path, axis=0).max() > REST:
        return "should stay where it is"
    for kind, step in actor.moves:
        if kind == "go" and step:
            main = [way[axis] * sign for axis, sign in enumerate(step) if sign]
            if len(actor.moves) > 1:
                main = [_reach(path[:, axis] * sign) for axis, sign in enumerate(step) if sign]
            elif 0 in step and abs(way[step.index(0)]) > max(main[0], WAY):
                return f"should move {_way(step)}, and moves more across than along"
            if min(main) < WAY:
                return f"should move {_way(step)} by at least {WAY:g} of the canvas, and does not"
        elif kind == "bounce" and not _reversals(path[:, 1]):
            return "should bounce: go up and come down again"
        elif kind == "zigzag" and max(_reversals(path[:, 0]), _reversals(path[:, 1])) < 2:
            return "should zigzag: change sides at least twice"
        elif kind == "sway" and step and not _reversals(path[:, 0 if step[0] else 1]):
            return "should go back and forth"
        elif kind == "circle" and _turns(path - path.mean(0)) < 0.6:
            return "should go round in a circle"
    return None


def _reach(values: np.ndarray) -> float:
    """The longest way up that a sequence goes, from any low to a later high."""
    return float((values - np.minimum.accumulate(values)).max())


def _reversals(values: np.ndarray) -> int:
    signs = np.sign(np.diff(values)[np.abs(np.diff(values)) > 1e-3])
    return int((np.diff(signs) != 0).sum())


def _pauses(heights: np.ndarray) -> bool:
    """Whether a fall stops and goes on: it may wait before it and rest after it."""
    falling = np.flatnonzero(np.diff(heights) > 1e-3)
    return len(falling) > 0 and falling[-1] - falling[0] + 1 > len(falling) + 1


def _turns(arms: np.ndarray) -> float:
    """How many turns a direction [T, 2] makes."""
    angles = np.unwrap(np.arctan2(arms[:, 1], arms[:, 0]))
    return float(np.ptp(angles) / (2 * np.pi))


def _way(step: Step) -> str:
    return " and ".join(
        filter(None, [{-1: "up", 1: "down"}.get(step[1]), {-1: "left", 1: "right"}.get(step[0])])
    )


def _side(step: Step) -> str:
    return f"on the side {_way(step)} of the middle" if any(step) else "in the middle"
