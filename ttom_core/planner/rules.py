"""The offline rule planner: plain English → Layout, without a model.

It reads noun phrases with their counts, and the motions, directions, relations and meetings that
stand between them. What it cannot read it says in `Layout.unresolved` and leaves out; where the
prompt leaves a choice (which lane, which side), it chooses.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from itertools import pairwise

from ..errors import TTOMError
from ..layout import Layout, TrackedObject
from .placing import Actor, Bond, Relation, place
from .words import CAMERA, COLOURS, DOWN, LEFT, NO_THINGS, PARTS, SCENERY, Noun, Step, Word, read_words

MAX_COUNT, MAX_OBJECTS = 12, 24  # of one kind, and in all
MAX_LENGTH = 5000  # characters; longer than any text encoder reads
IMPLIED: dict[str, Step] = {"fall": (0, 1), "rise": (0, -1)}
SWAYING = ("go", "bounce", "sway")  # what "back and forth" and "up and down" say the manner of
PAIRS = {"follow": "follow", "push": "follow", "pull": "lead", "approach": "approach", "send": "send"}
PREPOSED = {
    "towards": "approach",
    "toward": "approach",
    "to": "approach",
    "around": "orbit",
    "round": "orbit",
}
BYSTANDERS = set("past from off at against around round to towards toward".split())


class PlanError(TTOMError):
    """A prompt from which no layout can be planned."""


def plan_by_rules(prompt: str, seed: int = 0) -> Layout:
    """Plan a layout for a prompt; PlanError when it is empty or names no object.

    >>> [o.id for o in plan_by_rules("two red circles above a cube").objects]
    ['red circle 1', 'red circle 2', 'cube 1']
    """
    if not prompt.strip():
        raise PlanError("The prompt is empty; describe what the video should show.")
    if len(prompt) > MAX_LENGTH:
        raise PlanError(f"The prompt has {len(prompt)} characters; shorten it to {MAX_LENGTH}.")
    reader = read_prompt(prompt)
    if not reader.actors:
        shown = prompt if len(prompt) <= 80 else prompt[:77] + "..."
        raise PlanError(f"No object was found in {shown!r}; name what should be seen, as in 'a red ball'.")
    tracks, broken = place(reader.actors, reader.bonds, reader.relations, seed)
    for relation in broken:
        a, b = (reader.actors[i].noun.phrase for i in (relation.a, relation.b))
        reader.note(f"Where {a!r} is from {b!r} contradicts the rest; it was left out.")
    objects: list[TrackedObject] = []
    seen: dict[str, int] = {}
    for actor, instances in zip(reader.actors, tracks, strict=True):
        name = actor.noun.name
        for keyframes in instances:
            seen[name] = seen.get(name, 0) + 1
            objects.append(
                TrackedObject(
                    id=f"{name} {seen[name]}",
                    name=name,
                    phrase=actor.noun.phrase,
                    keyframes=keyframes,
                    enter=actor.enter,
                    leave=actor.leave,
                )
            )
    return Layout(
        prompt=prompt,
        objects=tuple(objects),
        background=", ".join(dict.fromkeys(reader.background)),
        planner="rules",
        unresolved=tuple(dict.fromkeys(reader.unresolved)),
    )


def read_prompt(prompt: str) -> Reader:
    """What a prompt says, and nothing chosen yet: actors, bonds, relations, and what is not understood.

    PlanError when it asks for more of a kind than can be laid out.
    """
    reader = Reader()
    for word in read_words(prompt):
        reader.read(word)
    reader.finish()
    return reader


@dataclass
class _Motion:
    """The motion that is being read: whose it is, and whether its direction was said."""

    kind: str
    text: str
    actors: list[int]
    step: Step | None = None
    said: bool = False
    noted: bool = False  # it is in the list of what was not understood


@dataclass
class _Waiting:
    """A relation, bond or preposition that waits for the noun it is about."""

    kind: str
    text: str
    actors: list[int]
    step: Step | None = None
    found: int | None = None  # the first of two nouns something is between


def _scenery(noun: Noun) -> bool:
    return noun.head in SCENERY or noun.head.rstrip("s") in SCENERY


class Reader:
    """Reads one meaning after the other and remembers who is being talked about."""

    def __init__(self) -> None:
        self.actors: list[Actor] = []
        self.bonds: list[Bond] = []
        self.relations: list[Relation] = []
        self.background: list[str] = []
        self.unresolved: list[str] = []
        self.subjects: list[int] = []
        self.motion: _Motion | None = None
        self.waiting: _Waiting | None = None
        self.fronted: tuple[_Waiting, int] | None = None  # "above a statue, a balloon …"
        self.stage: Word | None = None  # "on the left there is a tree"
        self.ahead: int | None = None  # "coming from the left, a tram …": the tram
        self.joiner = ""
        self.told = False  # the subjects have a predicate: the next noun is a new subject
        self.joint = "clause"
        self.camera = False
        self.unknown: list[str] = []
        self.last: int | None = None

    def note(self, sentence: str) -> None:
        self.unresolved.append(sentence)

    def left_out(self, text: str) -> None:
        self.note(f"{text!r} was not understood; it was left out.")

    # One method a kind of word ---------------------------------------------------------------------

    def read(self, word: Word) -> None:
        if self.camera:
            if word.kind == "joint" and word.value == "clause":
                self.camera = False
            elif word.kind == "noun" and not _scenery(word.value) and word.value.head not in CAMERA:
                seen = self._add(word.value, word)  # "the camera follows a car"
                self.subjects = [] if seen is None else [seen]
                self.last, self.told = seen, True
            return
        if word.kind == "unknown":
            self.unknown.append(word.text)
            self.told = True
            return
        if word.kind not in ("filler", "frame"):
            self._flush()
        getattr(self, f"on_{word.kind}")(word)

    def finish(self) -> None:
        self._flush()
        self._end_motion()
        self._drop_waiting()
        if self.fronted:
            self.left_out(self.fronted[0].text)
        if self.stage:
            self.left_out(self.stage.text)
        for index, actor in enumerate(self.actors):
            if not actor.noun.motion or actor.moves or actor.resize or self._bonded(index):
                continue
            self._act(actor.noun.motion, actor.noun.motion, [index])  # "a bouncing ball"
            self._end_motion()

    def _flush(self) -> None:
        if self.unknown:
            self.left_out(" ".join(self.unknown))
            self.unknown = []

    def on_filler(self, word: Word) -> None:
        pass

    def on_frame(self, word: Word) -> None:
        self.waiting = None if self.waiting and self.waiting.kind == "preposition" else self.waiting

    def on_background(self, word: Word) -> None:
        self._drop_waiting()
        if word.value:
            self.background.append(word.value)

    def on_joint(self, word: Word) -> None:
        if self.waiting and self.waiting.found is None:
            self._drop_waiting()
        self.joint, self.joiner = word.value, word.text
        if word.value == "clause":
            self.told = True
            self._end_motion()
            self.ahead = None
        elif word.value == "then":
            self._end_motion()

    def on_pronoun(self, word: Word) -> None:
        waiting = self.waiting
        others = [i for i in range(len(self.actors)) if waiting and i not in waiting.actors]
        if waiting and others and word.text in ("it", "him", "them"):  # "a drone circles around it"
            if waiting.kind == "preposition":
                self.waiting = self._pairing(waiting, f"{waiting.text} {word.text}")
            if self.waiting:
                self._resolve(others[-1])
            else:
                self.left_out(f"{waiting.text} {word.text}")
            return
        if word.text in ("they", "them") and len(self.actors) > 1:
            self.subjects = list(range(len(self.actors)))
        elif word.text in ("which", "who", "that") and self.last is not None:
            self.subjects = [self.last]
        self._end_motion()
        self.told = True

    def on_noun(self, word: Word) -> None:
        noun: Noun = word.value
        if noun.head in CAMERA and self.waiting:
            self.left_out(f"{self.waiting.text} {word.text}")
            self.waiting = None
            return
        if noun.head in CAMERA:
            self.camera = True
            self.note(f"{word.text!r}: how the camera moves is not laid out.")
            return
        if noun.head in COLOURS or (noun.owned and noun.head in PARTS):
            self.left_out(word.text)  # "one black and one white", "its tail"
            self.waiting = None
            return
        waiting = self.waiting
        scenery = _scenery(noun)
        if scenery and waiting and (waiting.kind in ("preposition", "relation") or waiting.step):
            around = waiting.text.lower() not in ("to", "towards", "toward")
        else:  # "a cat at night", "a dog, sunset"
            bare = noun.phrase.lower() == noun.head and not noun.definite and not waiting
            around = scenery and bare and (self.joint != "clause" or bool(self.actors))
        if around:
            self.background.append(noun.phrase)
            self.waiting = None
            return
        if waiting and waiting.kind == "preposition" and not self._preposed(waiting, noun, word):
            return
        index = self._add(noun, word)
        if index is None:
            self.waiting = None
            return
        if self.waiting:
            self._resolve(index)
        else:
            self._introduce(index, word)
        if self.fronted and index != self.fronted[1]:
            waiting, other = self.fronted
            self.fronted = None
            if waiting.step:
                self.relations.append(Relation(index, other, waiting.step, waiting.text))
        self.last = index
        self.joint = ""

    def _introduce(self, index: int, word: Word) -> None:
        """Who a noun is that nothing waits for: whoever comes next, one more subject, or a verb's object."""
        if self.stage:
            self._end_motion()
            self.actors[index].place, self.stage = self.stage.value, None
            self.subjects, self.told = [index], True
        elif self.motion and not self.motion.actors:
            self.motion.actors, self.subjects = [index], [index]
            self.ahead, self.told = index, True
        elif self.motion and self.joint == "" and self.motion.kind not in ("still",):
            if self.motion.kind == "circle":  # "orbits a planet"
                self._bind(_Waiting("orbit", self.motion.text, self.motion.actors), index)
            else:
                self.left_out(f"{self.motion.text} {word.text}")
                self.motion.noted = True
        elif self.told or self.fronted:
            self._end_motion()
            self.subjects, self.told = [index], False
        else:
            self.subjects.append(index)

    def _preposed(self, waiting: _Waiting, noun: Noun, word: Word) -> bool:
        """Read "towards a cat" and its like; whether the noun is an object of its own."""
        text, whole = waiting.text.lower(), f"{waiting.text} {word.text}"
        self.waiting = self._pairing(waiting, whole)
        if self.waiting:
            return True
        if text in BYSTANDERS and word.text != noun.phrase and noun.head not in NO_THINGS:
            self.waiting = _Waiting("bystander", whole, waiting.actors)
            return True
        if text in ("in", "inside", "at", "into", "within", "with", "without", "of"):
            self.note(f"{whole!r} is not laid out on its own.")
        else:
            self.left_out(whole)
        return False

    def _pairing(self, waiting: _Waiting, whole: str) -> _Waiting | None:
        """What "towards" and "around" mean after a motion: something between two."""
        moving = self.motion and self.motion.kind in ("go", "circle", "fall", "rise")
        kind = PREPOSED.get(waiting.text.lower())
        return _Waiting(kind, whole, waiting.actors) if moving and kind else None

    def on_another(self, word: Word) -> None:
        """ "a cat sits while another one …": one more of what was named last."""
        last = self.actors[self.last].noun if self.last is not None else None
        if last is None or last.count > 1:
            self.left_out(word.text)
        else:
            self.on_noun(Word("noun", replace(last, definite=False, motion=None), word.text))

    def on_motion(self, word: Word) -> None:
        kind, step = word.value
        self._fix_direction(kind)
        if kind == "sway" and self.motion and self.motion.kind in SWAYING and step:
            if self.motion.kind != "bounce":
                self.motion.kind, self.motion.step, self.motion.said = kind, step, True
            return
        plain = self.motion if self.motion and self.motion.kind == "go" else None
        if plain and not plain.said and kind in ("circle", "zigzag"):  # "moves in a circle"
            plain.kind = kind
            return
        if not self.subjects:
            if kind in ("go", "fall", "rise", "bounce", "circle", "zigzag", "sway", "still"):
                self._act(kind, word.text, [], step)  # "coming from the left, a tram …"
            else:
                self.left_out(word.text)
            return
        if kind in ("meet", "part"):
            self._meet(kind, word.text)
        elif kind in PAIRS:
            self._end_motion()
            self.waiting = _Waiting(PAIRS[kind], word.text, list(self.subjects))
        else:
            self._act(kind, word.text, list(self.subjects), step)
        self.told, self.joint = True, ""

    def _fix_direction(self, kind: str) -> None:
        """A new verb ends the motion before it, except where it only says how."""
        if kind in ("circle", "zigzag") and self.motion and self.motion.kind == "go":
            return
        if not (kind == "sway" and self.motion and self.motion.kind in SWAYING):
            self._end_motion()

    def _act(self, kind: str, text: str, actors: list[int], step: Step | None = None) -> None:
        if kind in ("enter", "leave"):
            for i in actors:
                if kind == "enter" and text.lower().startswith("enter"):
                    continue  # it comes in from somewhere; the clip starts with it
                self.actors[i].enter = 0.5 if kind == "enter" else self.actors[i].enter
                self.actors[i].leave = 0.5 if kind == "leave" else self.actors[i].leave
            if text.lower().startswith("enter"):
                self.motion = _Motion("go", text, actors)
            return
        if kind in ("grow", "shrink"):
            for i in actors:
                if self.actors[i].resize not in (None, kind):
                    self.left_out(text)
                self.actors[i].resize = self.actors[i].resize or kind
            return
        for i in actors if kind == "fall" else ():
            self.actors[i].falls = True
        implied = IMPLIED.get(kind)
        self.motion = _Motion("go" if implied else kind, text, actors, step or implied, bool(step))

    def on_direction(self, word: Word) -> None:
        step: Step = word.value
        motion = self.motion
        if motion and motion.kind == "still":
            self.on_place(word)
        elif motion and motion.step is None:
            motion.step, motion.said = step, True
        elif motion and not motion.said and motion.step:
            combined = (motion.step[0] or step[0], motion.step[1] or step[1])
            if motion.step[1] * step[1] < 0:
                self.left_out(word.text)
            motion.step, motion.said = combined, True
        elif motion and self.joint in ("then", "and"):  # "moves right, then up"
            actors = motion.actors
            self._end_motion()
            self.motion = _Motion("go", word.text, actors, step, True)
        elif motion and motion.step == step:
            pass
        elif not motion and self.joint == "then" and self.subjects and self.told:
            self.motion = _Motion("go", word.text, list(self.subjects), step, True)
        elif not motion and (bond := self._open_bond()) is not None:
            self.bonds[bond] = Bond(self.bonds[bond].kind, self.bonds[bond].a, self.bonds[bond].b, step)
        elif not motion and not self.subjects and not self.fronted:
            self.motion = _Motion("go", word.text, [], step, True)  # "from the left, a tram …"
        elif motion or not self.subjects:
            self.left_out(word.text)
        elif (
            " to " in f" {word.text.lower()} "
            and word.text.lower().count(" ") > 1
            and (re.search(r"\b(?:from|left to|right to|top to|bottom to)\b", word.text.lower()))
        ):
            self.motion = _Motion("go", word.text, list(self.subjects), step, True)
            self.told = True
        else:
            self.on_place(word)
        self.joint = ""

    def _open_bond(self) -> int | None:
        """The subjects' last bond whose direction was not said."""
        for k in range(len(self.bonds) - 1, -1, -1):
            bond = self.bonds[k]
            named = bond.a in self.subjects or bond.b in self.subjects
            if named and bond.kind in ("follow", "leap") and bond.step is None:
                return k
        return None

    def on_place(self, word: Word) -> None:
        placed = all(self.actors[i].place for i in self.subjects)
        listed = self.joint == "and" and (placed or self.joiner == "and")
        if not self.subjects or self.joint == "clause" or listed:
            self.fronted, self.stage = None, word
            return
        for i in self.subjects if self.told or len(self.subjects) == 1 else self.subjects[-1:]:
            if self.actors[i].place is not None:
                self.left_out(word.text)
            self.actors[i].place = self.actors[i].place or word.value
        self.told = True

    def on_relation(self, word: Word) -> None:
        motion, text = self.motion, word.text.lower()
        if motion and motion.kind == "bounce" and text in ("over", "above"):
            self._wait("leap", f"{motion.text} {word.text}")
        elif motion and self._lands(motion, text):
            self._wait("approach", f"{motion.text} {word.text}", DOWN)
        else:
            self._wait("relation", word.text, word.value)

    @staticmethod
    def _lands(motion: _Motion, text: str) -> bool:
        """ "falls on a table", "jumps onto a table": it comes down there, and did not stand there before."""
        if motion.kind == "bounce":
            return text == "onto"
        return (motion.kind, motion.step) == ("go", DOWN) and text in ("on", "onto", "on top of")

    def on_passive(self, word: Word) -> None:
        self._wait(word.value, word.text)

    def on_between(self, word: Word) -> None:
        self._wait("between", word.text)

    def on_away(self, word: Word) -> None:
        self._wait("depart", word.text)

    def on_preposition(self, word: Word) -> None:
        self._wait("preposition", word.text)

    def _wait(self, kind: str, text: str, step: Step | None = None) -> None:
        self._drop_waiting()
        fronted = self.joint == "clause" and not self.motion
        # "kicks a ball to a dog": it is the ball that comes to the dog.
        who = self.motion.actors if self.motion else self.subjects
        actors = [] if fronted else list(who)
        # "a cat beside a dog above a tree": the second relation is the dog's.
        direct = kind == "relation" and self.joint == "" and not self.motion
        if direct and self.relations and self.last is not None and self.last not in self.subjects:
            actors = [self.last]
        self.waiting = _Waiting(kind, text, actors, step)
        self.told = True

    def _drop_waiting(self) -> None:
        if self.waiting:
            if self.waiting.text.lower() not in ("over", "by", "on", "up", "down", "around", "of"):
                self.left_out(self.waiting.text)
            self.waiting = None

    def on_meet(self, word: Word) -> None:
        self._meeting(word)

    def on_part(self, word: Word) -> None:
        self._meeting(word)

    def _meeting(self, word: Word) -> None:
        """ "… towards each other": the verb before it needs no direction of its own."""
        self.motion = None
        if self.subjects:
            self._meet(word.kind, word.text)
        else:
            self.left_out(word.text)

    def _meet(self, kind: str, text: str) -> None:
        self._end_motion()
        who = self.subjects
        if len(who) == 1 and self.actors[who[0]].noun.count > 1:
            who = [who[0], who[0]]
        if len(who) != 2:
            self.note(f"{text!r} is laid out for two, not for {len(who)}; it was left out.")
        elif not self._bonded(who[0]) and not self._bonded(who[1]):
            self.bonds.append(Bond(kind, who[0], who[1]))
        elif not any({b.a, b.b} == set(who) and b.kind == kind for b in self.bonds):
            self.left_out(text)
        self.told, self.joint = True, ""

    def on_row(self, word: Word) -> None:
        if len(self.subjects) > 1 and (not self.motion or self.motion.kind == "still"):
            self.relations += [Relation(a, b, LEFT) for a, b in pairwise(self.subjects)]
        for i in self.subjects:
            self.actors[i].row = True
        self.told = True

    def on_turn(self, word: Word) -> None:
        """A change of colour moves nothing."""
        if not self.subjects:
            self.left_out(word.text)
        for i in self.subjects:
            self.actors[i].turns = True
        self.told = True

    # Who and what ----------------------------------------------------------------------------------

    def _add(self, noun: Noun, word: Word) -> int | None:
        """The actor of a noun phrase: a new one, or the one that was named before."""
        same = [
            i
            for i, actor in enumerate(self.actors)
            if actor.noun.phrase.lower() == noun.phrase.lower()
            or (noun.phrase.lower() == noun.head and actor.noun.head == noun.head)
        ]
        if noun.definite and not noun.owned and len(same) == 1:
            return same[0]
        if noun.count > MAX_COUNT:
            raise PlanError(
                f"{word.text!r} is more than {MAX_COUNT}, the most of a kind that can be laid out; "
                "ask for fewer, or for one group of them."
            )
        if noun.absent:
            self.note(f"{word.text!r}: what is absent cannot be laid out.")
            return None
        if sum(a.noun.count for a in self.actors) + noun.count > MAX_OBJECTS:
            self.note(f"{word.text!r} is more than the {MAX_OBJECTS} objects that can be laid out.")
            return None
        if len(noun.phrase) > 150:
            self.left_out(noun.phrase[:60] + "...")
            return None
        if noun.vague:
            self.note(f"{word.text!r} says no number; one box stands for all of them.")
        self.actors.append(Actor(noun))
        return len(self.actors) - 1

    def _resolve(self, index: int) -> None:
        """Close what waits for a noun."""
        waiting = self.waiting
        assert waiting is not None
        self.waiting = None
        if waiting.kind == "between":
            if waiting.found is None and self.actors[index].noun.count < 2:
                waiting.found, self.waiting = index, waiting
                return
            first = index if waiting.found is None else waiting.found
            for i in waiting.actors:
                self.relations += [
                    Relation(i, first, (1, 0), waiting.text),
                    Relation(i, index, (-1, 0), waiting.text),
                ]
            if not waiting.actors:
                self.left_out(waiting.text)
        elif waiting.kind == "relation":
            if not waiting.actors:
                self.fronted = (waiting, index)
            for i in waiting.actors:
                if i == index:
                    self.left_out(f"{waiting.text} {self.actors[i].noun.phrase}")
                elif waiting.step:
                    self.relations.append(Relation(i, index, waiting.step, waiting.text))
        elif waiting.kind == "bystander":
            if not waiting.text.lower().startswith("past"):
                self.note(f"{waiting.text!r} is laid out as a thing of its own, wherever there is room.")
        elif waiting.kind == "send":  # "kicks a ball to the right"
            self.motion = _Motion("go", waiting.text, [index])
        else:
            self._bind(waiting, index)

    def _bind(self, waiting: _Waiting, index: int) -> None:
        motion, self.motion = self.motion, None
        step = motion.step if motion and motion.said else waiting.step
        if len(waiting.actors) != 1 or waiting.actors[0] == index:
            self.left_out(waiting.text)
            return
        if self._bonded(waiting.actors[0]) or self._bonded(index):
            self.left_out(f"{waiting.text} {self.actors[index].noun.phrase}")
            return
        first, second = waiting.actors[0], index
        if waiting.kind == "leap" and self.actors[first].noun.count + self.actors[second].noun.count > 2:
            self.left_out(waiting.text)
            return
        if waiting.kind == "lead":  # "pulls a cart", "is followed by a dog": who follows comes second
            self.bonds.append(Bond("follow", second, first, step))
        else:
            self.bonds.append(Bond(waiting.kind, first, second, step))

    def _bonded(self, index: int) -> bool:
        return any(index in (bond.a, bond.b) for bond in self.bonds)

    def _end_motion(self) -> None:
        """Give the motion that was read to its subjects, now that all of it is known."""
        motion, self.motion = self.motion, None
        if motion is None:
            return
        if not motion.actors:
            self.left_out(motion.text)
            return
        if motion.kind == "go" and motion.step is None:
            led = self.ahead is not None and motion.actors == [self.ahead]
            if not motion.noted and not led:
                self.note(f"{motion.text!r} says no direction; it was left out.")
            return
        for i in motion.actors:
            actor = self.actors[i]
            move = (motion.kind, motion.step)
            chained = bool(actor.moves) and {kind for kind, _ in [*actor.moves, move]} - {"go", "still"}
            if self._bonded(i) and motion.kind != "still":
                for k, bond in enumerate(self.bonds):  # "a cat is chased …; the dog runs left"
                    if i in (bond.a, bond.b) and bond.step is None and motion.kind == "go":
                        self.bonds[k] = Bond(bond.kind, bond.a, bond.b, motion.step)
            elif actor.moves == [("go", None)]:
                actor.moves = [move]
            elif (bounce := self._bounce(actor, move)) is not None:
                actor.moves = [bounce]
            elif chained:
                self.left_out(motion.text)
            else:
                actor.moves.append(move)

    @staticmethod
    def _bounce(actor: Actor, move: tuple[str, Step | None]) -> tuple[str, Step] | None:
        """ "bounces and moves to the right" is one motion."""
        if [kind for kind, _ in actor.moves] == ["bounce"] and move[0] == "go" and move[1]:
            return ("bounce", (move[1][0], 0))
        return None
