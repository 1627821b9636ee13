"""Scene abstraction g(C): what two prompts must share before one's adapter may start the other's (TTOM 3.3).

Objects become slots in the order of their mention; what only describes them (colour, shape) vanishes. What
happens to them stays, as facts from two sources: what the boxes show, and what the prompt says. A prompt
in words nobody knows so has a sound key, and where the words and the boxes differ, both are kept. Keys
with the same facts share a digest, the bucket in which a memory looks; a fact more or another one
(a direction, a relation, a count) is another bucket, so a wrong hit cannot happen, however near the
sentences lie to each other.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from string import ascii_uppercase
from typing import Annotated, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, field_validator

from ..errors import TTOMError
from ..layout import Layout, frame_times
from ..planner.placing import Actor, Bond
from ..planner.rules import MAX_LENGTH, PlanError, Reader
from ..planner.words import NUMBERS, Step, read_words

MOVED = 0.08  # least way along an axis that counts as motion, as a share of the canvas
CLEAR = 0.1  # centres closer than this along an axis are neither left nor right, above nor below
GROWN = math.log(1.6)  # least change of the area's logarithm
TOGETHER = 0.06  # motions along x and y whose middles are this close in time are one slanted motion
MOMENTS = frame_times(65)
MAX_UNKNOWN = 40  # words of the prompt that no rule reads and the sentence repeats

DIRECTIONS: dict[Step, str] = {
    (-1, 0): "left", (1, 0): "right", (0, -1): "up", (0, 1): "down",
    (-1, -1): "up_left", (1, -1): "up_right", (-1, 1): "down_left", (1, 1): "down_right",
    (0, 0): "middle",
}  # fmt: skip
RELATIONS: dict[Step, str] = {(-1, 0): "left_of", (1, 0): "right_of", (0, -1): "above", (0, 1): "below"}
SIZES = {1: "grow", -1: "shrink"}
SYMMETRIC = ("meet", "part")

Fact = Annotated[str, Field(min_length=1, max_length=2 * MAX_LENGTH)]


class SceneKey(BaseModel):
    """What a memory finds an entry by.

    structure: sorted facts "kind:slot:…", such as "count:A:3", "motion:A:right", "relation:A:left_of:B";
    "said:…" marks what the prompt says and the boxes do not show. sentence: the scene in words, for
    an embedding. layout: for each object in the order of the slots the centre at its start and its end
    (x, y, x, y), rounded, to rank scenes of one bucket.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    version: Literal[1] = 1
    structure: tuple[Fact, ...] = Field(max_length=100_000)
    sentence: str = Field(max_length=20_000)
    layout: tuple[float, ...] = Field((), max_length=800)

    @field_validator("structure")
    @classmethod
    def _canonical(cls, structure: tuple[str, ...]) -> tuple[str, ...]:
        if list(structure) != sorted(set(structure)):
            raise ValueError("The facts of a scene key must be sorted and distinct")
        return structure

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the facts: entries may match only where it is the same."""
        return hashlib.sha256(json.dumps([self.version, *self.structure]).encode()).hexdigest()


def scene_key(prompt: str, layout: Layout) -> SceneKey:
    """The key of a prompt with its layout; TTOMError when the layout has no objects.

    >>> from ttom_core.planner import plan
    >>> prompt = "a red circle moves to the right"
    >>> scene_key(prompt, plan(prompt)).structure
    ('count:A:1', 'motion:A:right')
    """
    if not layout.objects:
        raise TTOMError("The layout has no objects, so there is nothing to remember; add a box for each.")
    scene = _Scene(prompt, layout)
    drawn = set(scene.drawn())
    structure = drawn | {f"said:{fact}" for fact in set(scene.said()) - drawn}
    return SceneKey(structure=tuple(sorted(structure)), sentence=scene.sentence(), layout=scene.places())


def layout_distance(a: SceneKey, b: SceneKey) -> float:
    """How far apart the objects of two scenes start and end: root mean square, in shares of the canvas.

    Infinite for scenes with different numbers of objects.
    """
    if len(a.layout) != len(b.layout):
        return math.inf
    return math.dist(a.layout, b.layout) / math.sqrt(max(len(a.layout) / 2, 1))


@dataclass
class _Slot:
    """All that one phrase names: one soft mask, so one object as far as an adapter can tell."""

    phrase: str
    objects: list[int] = field(default_factory=list)  # indices into layout.objects
    actors: list[Actor] = field(default_factory=list)  # what the prompt says about it
    label: str = ""

    @property
    def count(self) -> int:
        return len(self.objects) or sum(actor.noun.count for actor in self.actors)

    def __str__(self) -> str:
        words = {n: word for word, n in NUMBERS.items() if word != "both"}
        number = "" if self.count == 1 else f"{words.get(self.count, self.count)} "
        return f"{number}<object {self.label}>"


class _Scene:
    """A prompt's reading and a layout, brought together in slots."""

    def __init__(self, prompt: str, layout: Layout) -> None:
        self.layout = layout
        self.unknown: list[str] = []  # words no rule reads
        self.camera: list[str] = []  # what is said about the camera, which no box shows
        whole = len(prompt) <= MAX_LENGTH
        reader = Reader()
        try:
            for word in read_words(prompt[:MAX_LENGTH]):
                reader.read(word)
                if reader.camera:
                    self.camera.append(word.text.lower())
                elif word.kind == "unknown":
                    self.unknown.append(word.text.lower())
            reader.finish()
        except PlanError:
            whole = False
        # What cannot be read to its end is like nothing but itself.
        self.unread = "" if whole else hashlib.sha256(prompt.encode()).hexdigest()
        self.actors, self.bonds, self.relations = reader.actors, reader.bonds, reader.relations
        self.slots, self.slot_of = self._fill(prompt)
        self.times = np.unique([*MOMENTS, *(t for o in layout.objects for t in (o.enter, o.leave))])
        boxes = layout.boxes(self.times)
        self.centres = boxes[..., :2] + boxes[..., 2:] / 2  # [N, T, 2], NaN while off stage
        self.areas = boxes[..., 2] * boxes[..., 3]

    def _fill(self, prompt: str) -> tuple[list[_Slot], list[_Slot]]:
        """The slots in order of mention, and the slot of every actor."""
        slots: dict[str, _Slot] = {}
        for index, item in enumerate(self.layout.objects):
            slots.setdefault(item.phrase.casefold(), _Slot(item.phrase)).objects.append(index)
        spans = {phrase: _span(phrase, prompt) for phrase in slots}
        slot_of = []
        for actor in self.actors:
            phrase = actor.noun.phrase.casefold()
            start, end = spans.setdefault(phrase, _span(phrase, prompt))
            # A layout by another planner may say "dog" where the reading says "brown dog".
            near = (p for p in slots if spans[p][0] < end and start < spans[p][1])
            slot = slots[phrase] if phrase in slots else slots.get(next(near, ""))
            if slot is None:
                slot = slots[phrase] = _Slot(actor.noun.phrase)
            slot.actors.append(actor)
            slot_of.append(slot)
        ordered = sorted(slots.values(), key=lambda s: (spans[s.phrase.casefold()][0], -len(s.phrase)))
        for n, slot in enumerate(ordered):
            slot.label = ascii_uppercase[n % 26] + (str(n // 26) if n >= 26 else "")
        return ordered, slot_of

    # What the boxes show ---------------------------------------------------------------------------

    def drawn(self) -> Iterator[str]:
        """The facts of the boxes: counts, motions, sizes, who enters and leaves, lasting relations."""
        for slot in self.slots:
            if not slot.objects:
                continue
            items = [self.layout.objects[i] for i in slot.objects]
            yield f"count:{slot.label}:{len(items)}"
            yield from _tally(f"motion:{slot.label}", [self._motion(i) for i in slot.objects])
            yield from _tally(f"change:{slot.label}", [self._change(i) for i in slot.objects])
            yield from _tally(f"stage:{slot.label}", ["enters" if o.enter > 0 else "" for o in items])
            yield from _tally(f"stage:{slot.label}", ["leaves" if o.leave < 1 else "" for o in items])
        for k, a in enumerate(self.slots):
            for b in self.slots[k + 1 :]:
                yield from self._lasting(a, b)

    def _motion(self, index: int) -> str:
        """An object's way, its turns included: "right", "right,up", "up,down,up,down", "still"."""
        on = ~np.isnan(self.areas[index])
        runs = [
            (moment, axis, sign)
            for axis in range(2)
            for moment, sign in _runs(self.times[on], self.centres[index, on, axis], MOVED)
        ]
        steps: list[tuple[float, list[int]]] = []
        for moment, axis, sign in sorted(runs):
            if steps and not steps[-1][1][axis] and moment - steps[-1][0] <= TOGETHER:
                steps[-1][1][axis] = sign
            else:
                steps.append((moment, [sign, 0] if axis == 0 else [0, sign]))
        return ",".join(DIRECTIONS[dx, dy] for _, (dx, dy) in steps) or "still"

    def _change(self, index: int) -> str:
        on = ~np.isnan(self.areas[index])
        return ",".join(SIZES[s] for _, s in _runs(self.times[on], np.log(self.areas[index, on]), GROWN))

    def _lasting(self, a: _Slot, b: _Slot) -> Iterator[str]:
        """The relations that every pair keeps for as long as both are on stage."""
        apart = self.centres[a.objects][:, None] - self.centres[b.objects][None]  # [a, b, T, 2]
        apart = apart.reshape(-1, len(self.times), 2)
        unseen = np.isnan(apart)
        after = np.all((apart > CLEAR) | unseen, axis=1)  # [pairs, 2]
        before = np.all((apart < -CLEAR) | unseen, axis=1)
        for axis, (dx, dy) in enumerate(((1, 0), (0, 1))):
            if (after[:, axis] ^ before[:, axis]).all():
                signs = [1 if positive else -1 for positive in after[:, axis]]
                names = [f"{RELATIONS[dx * sign, dy * sign]}:{b.label}" for sign in signs]
                yield from _tally(f"relation:{a.label}", names)

    def places(self) -> tuple[float, ...]:
        """Where every object starts and ends, slot by slot, inside a slot in the order of reading."""
        numbers: list[float] = []
        for slot in self.slots:
            paths = [self.centres[i, ~np.isnan(self.areas[i])] for i in slot.objects]
            ends = [[round(float(v), 2) for v in (*path[0], *path[-1])] for path in paths]
            for end in sorted(ends, key=lambda end: (round(end[1] * 4), end)):
                numbers += end
        return tuple(numbers)

    # What the prompt says --------------------------------------------------------------------------

    def said(self) -> Iterator[str]:
        """The facts of the words, in the same terms."""
        if self.unread:
            yield f"prompt:{self.unread}"
        if self.camera:
            yield "camera:" + " ".join(self.camera)
        for slot in self.slots:
            label, actors = slot.label, slot.actors
            if not actors:
                continue
            vague = any(actor.noun.vague for actor in actors)
            yield f"count:{label}:{'many' if vague else sum(actor.noun.count for actor in actors)}"
            told = [actor for actor in actors for _ in range(actor.noun.count)]
            yield from _tally(f"motion:{label}", [_way(actor) for actor in told])
            yield from _tally(f"action:{label}", [_action(actor) for actor in told])
            yield from _tally(f"change:{label}", [actor.resize or "" for actor in told])
            yield from _tally(f"change:{label}", ["turn" if actor.turns else "" for actor in told])
            yield from _tally(f"place:{label}", [DIRECTIONS[a.place] if a.place else "" for a in told])
            yield from _tally(f"stage:{label}", ["enters" if actor.enter > 0 else "" for actor in told])
            yield from _tally(f"stage:{label}", ["leaves" if actor.leave < 1 else "" for actor in told])
        for bond in self.bonds:
            a, b = self._pair(bond.a, bond.b, bond.kind in SYMMETRIC)
            yield f"action:{a.label}:{bond.kind}:{b.label}" + (
                f":{DIRECTIONS[bond.step]}" if bond.step else ""
            )
        for relation in self.relations:
            a, b = self._pair(relation.a, relation.b, True)
            turned = a is not self.slot_of[relation.a]
            dx, dy = relation.step
            if a is not b:
                yield f"relation:{a.label}:{RELATIONS[(-dx, -dy) if turned else (dx, dy)]}:{b.label}"

    def _pair(self, a: int, b: int, ordered: bool) -> tuple[_Slot, _Slot]:
        """The slots of two actors, in the order of mention where either order says the same."""
        first, second = self.slot_of[a], self.slot_of[b]
        if ordered and self.slots.index(first) > self.slots.index(second):
            return second, first
        return first, second

    # In words --------------------------------------------------------------------------------------

    def sentence(self) -> str:
        """The scene in the plainest words, most of which any tokenizer knows."""
        moves = {s.label: [self._motion(i) for i in s.objects] for s in self.slots}
        anything = any(way != "still" for ways in moves.values() for way in ways)
        clauses, named, bare = [], set(), True
        for bond in self.bonds:
            a, b = self._pair(bond.a, bond.b, False)
            clauses.append(_bond_words(bond, a, b))
            named |= {a.label, b.label}
            bare = False
        for slot in self.slots:
            predicates = [] if slot.label in named else self._doing(slot, moves[slot.label], anything)
            predicates += [_change_words(change) for change in self._changes(slot)]
            predicates += [f"on the {DIRECTIONS[a.place]}" for a in slot.actors if a.place]
            for relation in self.relations:
                other = self.slot_of[relation.b]
                if self.slot_of[relation.a] is slot and other is not slot:
                    predicates.append(f"{RELATION_WORDS[RELATIONS[relation.step]]} {other}")
                    named.add(other.label)
            if predicates or slot.label not in named:
                clauses.append(" ".join([str(slot), *dict.fromkeys(_agree(p, slot) for p in predicates)]))
            bare &= not predicates
        unknown = self.unknown[:MAX_UNKNOWN]
        return (" and " if bare else " while ").join(clauses) + (", " + " ".join(unknown) if unknown else "")

    def _doing(self, slot: _Slot, ways: list[str], anything: bool) -> list[str]:
        actions = [
            words for actor in slot.actors if (words := ACTION_WORDS.get(_action(actor).split(":")[0]))
        ]
        if actions:
            return actions
        ways = [way for way in dict.fromkeys(ways) if anything or way != "still"]
        return [
            "stays still"
            if way == "still"
            else "moves " + ", then ".join(map(_direction_words, way.split(",")))
            for way in ways
        ]

    def _changes(self, slot: _Slot) -> list[str]:
        drawn = [change for i in slot.objects for change in self._change(i).split(",") if change]
        items = [self.layout.objects[i] for i in slot.objects]
        drawn += ["appear"] * any(o.enter > 0 for o in items) + ["vanish"] * any(o.leave < 1 for o in items)
        return list(dict.fromkeys(drawn + ["turn"] * any(actor.turns for actor in slot.actors)))


def _span(phrase: str, prompt: str) -> tuple[int, int]:
    """Where a phrase first stands in the prompt; past its end when it does not."""
    match = re.search(rf"(?<!\w){re.escape(phrase)}(?!\w)", prompt, re.IGNORECASE)
    return match.span() if match else (len(prompt), len(prompt))


def _tally(kind: str, values: Sequence[str]) -> Iterator[str]:
    """One fact for what all of them do, or one with a number for what only some do."""
    for value, count in Counter(value for value in values if value).items():
        yield f"{kind}:{value}" + ("" if count == len(values) else f":{count}")


def _runs(times: np.ndarray, values: np.ndarray, least: float) -> list[tuple[float, int]]:
    """The rises (+1) and falls (-1) of at least `least`, each with the time when half of it is done."""
    turns, sign = [0], 0
    for i, value in enumerate(values):
        step = value - values[turns[-1]]
        if sign * step > 0:
            turns[-1] = i
        elif abs(step) >= least:
            turns.append(i)
            sign = 1 if step > 0 else -1
    runs = []
    for a, b in pairwise(turns):
        sign = 1 if values[b] > values[a] else -1
        half = (values[a] + values[b]) / 2
        runs.append((float(times[a + int(np.argmax(sign * (values[a : b + 1] - half) >= 0))]), sign))
    return runs


def _way(actor: Actor) -> str:
    """The straight motions of an actor as said: "right", "right,up", "still", or nothing."""
    steps = [DIRECTIONS[step] for kind, step in actor.moves if kind == "go" and step]
    if steps or not actor.moves:
        return ",".join(steps)
    return "still" if actor.moves[0][0] == "still" else ""


def _action(actor: Actor) -> str:
    """A motion with a name of its own, and where it goes if that was said: "bounce:right"."""
    for kind, step in actor.moves:
        if kind not in ("go", "still"):
            return kind + (f":{DIRECTIONS[step]}" if step else "")
    return ""


ACTION_WORDS = {"bounce": "bounces", "circle": "circles around", "zigzag": "zigzags", "sway": "sways"}
BOND_WORDS = {
    "meet": "move towards each other", "part": "move away from each other", "follow": "follows",
    "approach": "moves towards", "depart": "moves away from", "orbit": "circles around",
    "leap": "jumps over",
}  # fmt: skip
CHANGE_WORDS = {"grow": "grows", "shrink": "shrinks", "turn": "turns", "appear": "appears"}
RELATION_WORDS = {
    "left_of": "to the left of",
    "right_of": "to the right of",
    "above": "above",
    "below": "below",
}


def _direction_words(direction: str) -> str:
    return " and ".join(f"to the {d}" if d in ("left", "right") else d for d in direction.split("_"))


def _change_words(change: str) -> str:
    return CHANGE_WORDS.get(change, "vanishes")


def _bond_words(bond: Bond, a: _Slot, b: _Slot) -> str:
    words = BOND_WORDS[bond.kind]
    if bond.kind in SYMMETRIC:
        return f"{a} {words}" if a is b else f"{a} and {b} {words}"
    where = f" {_direction_words(DIRECTIONS[bond.step])}" if bond.step else ""
    return f"{a} {_agree(words, a)} {b}{where}"


def _agree(predicate: str, slot: _Slot) -> str:
    """The verb at a predicate's start in the plural where its subject is one."""
    verb, space, rest = predicate.partition(" ")
    if slot.count > 1 and verb.endswith("s"):
        verb = verb.removesuffix("es") if verb == "vanishes" else verb.removesuffix("s")
    return verb + space + rest
