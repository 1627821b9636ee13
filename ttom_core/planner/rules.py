"""The offline rule planner: plain English → Layout, without a model.

It reads noun phrases ("two red circles", "a vibrant balloon") and what stands between them: counts,
motions, relations, actions. What it cannot read it says in `Layout.unresolved` and leaves out.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..errors import TTOMError
from ..layout import Box, Keyframe, Layout, TrackedObject


class PlanError(TTOMError):
    """A prompt from which no layout can be planned."""


NUMBERS = {
    word: n
    for n, word in enumerate("zero one two three four five six seven eight nine ten eleven twelve".split())
} | {"a": 1, "an": 1, "the": 1, "another": 1, "single": 1}
MAX_COUNT = 12

# Unit steps, y down. Longer wordings first: "from left to right" must not be read as "left".
DIRECTIONS: list[tuple[str, tuple[int, int]]] = [
    (r"(?:from )?(?:the )?left to (?:the )?right", (1, 0)),
    (r"(?:from )?(?:the )?right to (?:the )?left", (-1, 0)),
    (r"(?:from )?(?:the )?top to (?:the )?bottom", (0, 1)),
    (r"(?:from )?(?:the )?bottom to (?:the )?top", (0, -1)),
    (r"(?:up(?:wards?)?|upper)[ -](?:and )?(?:to the )?right(?:wards?)?", (1, -1)),
    (r"(?:up(?:wards?)?|upper)[ -](?:and )?(?:to the )?left(?:wards?)?", (-1, -1)),
    (r"(?:down(?:wards?)?|lower)[ -](?:and )?(?:to the )?right(?:wards?)?", (1, 1)),
    (r"(?:down(?:wards?)?|lower)[ -](?:and )?(?:to the )?left(?:wards?)?", (-1, 1)),
    (r"(?:to(?:wards?)? the |on the )?right(?:wards?)?", (1, 0)),
    (r"(?:to(?:wards?)? the |on the )?left(?:wards?)?", (-1, 0)),
    (r"up(?:wards?)?|to the top", (0, -1)),
    (r"down(?:wards?)?|to the bottom", (0, 1)),
]
RELATIONS: list[tuple[str, tuple[int, int]]] = [
    (r"(?:to|on) the left (?:side )?of|left of", (-1, 0)),
    (r"(?:to|on) the right (?:side )?of|right of", (1, 0)),
    (r"above|over|on top of|atop", (0, -1)),
    (r"below|under|underneath|beneath", (0, 1)),
    (r"beside|next to|near|alongside|by", (-1, 0)),
    (r"in front of", (0, 1)),
    (r"behind", (0, -1)),
    (r"on", (0, -1)),
]
MOVES = (
    r"(?:move|drift|slide|fly|flie|run|walk|roll|float|travel|go|goe|glide|swim|drive|sail|race|jog|hop"
    r"|march|crawl|dash|cross|crosse)s?"
)
FALLS = r"(?:fall|drop|sink|descend|dive)s?"
RISES = r"(?:rise|climb|ascend|lift|soar)s?"
STILL = r"(?:stays?|stands?|rests?|remains?|sits?|lies?|waits?)(?: (?:still|there|in place|motionless))?"
BOUNCE = r"(?:bounces?|jumps?)(?: up and down)?"
CIRCLE = r"moves? in a circle|circle around|(?:circles|orbits?|spins?|revolves?)(?: around| in a circle)?"
ZIGZAG = r"zig-?zags?"
GROW = r"(?:grows?|expands?|swells?|inflates?)(?: (?:bigger|larger))?|gets? (?:bigger|larger)"
SHRINK = r"(?:shrinks?|contracts?|deflates?)|(?:gets?|grows?) smaller"
TOWARDS = (
    rf"(?:{MOVES} )?towards? (?:each other|one another)|approach(?:es)? (?:each other|one another)|meets?"
)
AWAY = rf"(?:{MOVES} )?(?:away from|apart from) (?:each other|one another)|{MOVES} apart|separates?"
FOLLOWS = r"follows?|chases?"
PUSHES = r"pushes|push"
TURNS = r"(?:turns?|becomes?|changes? (?:colou?r )?(?:from \w+ )?to) \w+"
VERBS = "|".join(
    (TOWARDS, AWAY, FOLLOWS, PUSHES, BOUNCE, CIRCLE, ZIGZAG, SHRINK, GROW, TURNS, STILL, FALLS, RISES, MOVES)
)
# Words that end a noun phrase though they name no verb of ours.
ENDS = set(
    "and while as with in on at to of from into onto over under above below beside next near between "
    "behind by is are was were has have then but that which who through across along around towards "
    "toward away up down left right below beneath underneath atop alongside when before after for".split()
)
FILLER = set(
    "and while as with is are the a an then slowly quickly gently steadily smoothly side by each other "
    "there in it scene video of screen frame across".split()
)
BACKGROUND = re.compile(r",? (?:on|against|in front of) (?:a|an|the) ([\w\- ]*?)background\b", re.I)
WORD = re.compile(r"[A-Za-z0-9][\w'\-]*|[,.;]")

Track = Callable[[float, float, float], list[tuple[float, float, float, float]]]


@dataclass
class _Noun:
    """A noun phrase and what was read about it."""

    phrase: str
    count: int
    direction: tuple[int, int] | None = None
    action: str | None = None  # bounce, circle, zigzag, grow, shrink
    relation: tuple[tuple[int, int], int] | None = None  # the step from noun [index] to this one
    centre: tuple[float, float] | None = None
    size: float = 0.27
    spread: list[tuple[float, float]] = field(default_factory=list)

    @property
    def moves(self) -> bool:
        return self.direction is not None or self.action in ("bounce", "circle", "zigzag")

    @property
    def name(self) -> str:
        plural = self.count > 1 and self.phrase.endswith("s") and not self.phrase.endswith("ss")
        return self.phrase[:-1] if plural else self.phrase


def plan_by_rules(prompt: str, seed: int = 0) -> Layout:
    """Plan a layout for a prompt; PlanError when it is empty or names no object."""
    if not prompt.strip():
        raise PlanError("The prompt is empty; describe what the video should show.")
    text = " ".join(prompt.split())
    found = BACKGROUND.search(text)
    background = found.group(1).strip() if found else ""
    body = BACKGROUND.sub("", text)
    nouns, gaps = _noun_phrases(body)
    if not nouns:
        raise PlanError(
            f"No object was found in {prompt!r}; name things with a, the or a number, as in 'a red ball'."
        )
    unresolved = [f"{n.count} × {n.phrase!r} is more than {MAX_COUNT}" for n in nouns if n.count > MAX_COUNT]
    if unresolved:
        raise PlanError(f"{unresolved[0]}, the most that can be laid out; ask for fewer.")
    unresolved = _read(nouns, gaps)
    _place(nouns)
    jitter = random.Random(seed) if seed else None
    objects = [item for noun in nouns for item in _objects(noun, jitter)]
    seen: dict[str, int] = {}
    named = []
    for item in objects:
        seen[item.name] = seen.get(item.name, 0) + 1
        named.append(item.model_copy(update={"id": f"{item.name} {seen[item.name]}"}))
    return Layout(
        prompt=prompt,
        objects=tuple(named),
        background=background,
        planner="rules",
        unresolved=tuple(unresolved),
    )


# Reading ------------------------------------------------------------------------------------------


def _noun_phrases(text: str) -> tuple[list[_Noun], list[str]]:
    """The noun phrases and the text after each of them, up to the next."""
    words = list(WORD.finditer(text))
    nouns: list[_Noun] = []
    gaps: list[str] = []
    index, gap_start = 0, 0
    while index < len(words):
        word = words[index].group().lower()
        count = int(word) if word.isdigit() else NUMBERS.get(word)
        if not count:
            index += 1
            continue
        end = index + 1
        while end < len(words) and _in_phrase(words, index, end, text):
            end += 1
        if end == index + 1 or _is_place(words, index):
            index += 1
            continue
        if nouns:
            gaps.append(text[gap_start : words[index].start()])
        phrase = text[words[index + 1].start() : words[end - 1].end()]
        nouns.append(_Noun(phrase, count))
        gap_start, index = words[end - 1].end(), end
    if nouns:
        gaps.append(text[gap_start:])
    return nouns, gaps


def _is_place(words: Sequence[re.Match[str]], index: int) -> bool:
    """Whether this article names a place or a manner, no object: the left, the screen, in a circle."""
    before = words[index - 1].group().lower() if index else ""
    following = words[index + 1].group().lower() if index + 1 < len(words) else ""
    if before == "in" and following in {"circle", "spiral", "row", "line", "hurry"}:
        return True
    return following in {"left", "right", "top", "bottom", "screen", "frame", "other", "way"}


def _in_phrase(words: Sequence[re.Match[str]], start: int, end: int, text: str) -> bool:
    """Whether the word at `end` still belongs to the noun phrase that starts at `start`."""
    word = words[end].group().lower()
    if not word[0].isalpha() or word in ENDS or word in NUMBERS or end - start > 5:
        return False
    first = end == start + 1
    if first:
        return word not in {"left", "right", "top", "bottom", "screen", "frame", "other"}
    singular = words[start].group().lower() in {"a", "an", "one", "1", "another", "the"}
    if re.match(rf"(?:{VERBS})\b", text[words[end].start() :], re.I):
        # "two red circles": a plural noun that is also a verb is a noun after a number.
        return not singular and word == "circles"
    # An unknown verb after a singular subject: "a dog barks". It is reported, not laid out.
    return not (singular and word.endswith("s") and not word.endswith(("ss", "us"))) and not word.endswith(
        "ing"
    )


def _read(nouns: list[_Noun], gaps: list[str]) -> list[str]:
    """Fill in what the text between the noun phrases says; returns what was not understood."""
    unresolved: list[str] = []
    group: list[int] = []
    for index, gap in enumerate(gaps):
        group.append(index)
        rest = f" {gap.strip().lower()} "
        if re.fullmatch(r"[ ,]*(?:and|,)?[ ,]*", rest) and index + 1 < len(nouns):
            continue  # a list of subjects: the predicate comes after the last
        members, group = [nouns[i] for i in group], []
        follower = index + 1 if index + 1 < len(nouns) else None

        def take(pattern: str) -> re.Match[str] | None:
            nonlocal rest
            match = re.search(rf"(?<!\w)(?:{pattern})(?!\w)", rest)
            if match:
                rest = rest[: match.start()] + " " + rest[match.end() :]
            return match

        joined = re.sub(r"[ ,.;]+(?:and|while|as|but)?[ ,.;]*$", "", rest)
        if follower is not None and rest.strip(" ,") and not rest.rstrip().endswith(("and", "while", ",")):
            for pattern, step in RELATIONS:
                if re.search(rf"(?<!\w)(?:{pattern})$", joined):
                    rest = re.sub(rf"(?<!\w)(?:{pattern})$", " ", joined)
                    for member in members:
                        member.relation = (step, follower)
                    break
        closing = take(TOWARDS) if len(members) > 1 else None
        if closing or (len(members) > 1 and take(AWAY)):
            sign = 1 if closing else -1
            for place, member in enumerate(members[:2]):
                member.direction = (sign * (1 if place == 0 else -1), 0)
                member.action = "meet" if sign > 0 else "part"
        elif follower is not None and take(f"{FOLLOWS}|{PUSHES}"):
            members[0].action, nouns[follower].action = "behind", "ahead"
            members[0].relation = ((0, 0), follower)
        elif take(ZIGZAG):
            _each(members, action="zigzag")
        elif take(BOUNCE):
            _each(members, action="bounce")
        elif take(CIRCLE):
            _each(members, action="circle")
        elif take(SHRINK):
            _each(members, action="shrink")
        elif take(GROW):
            _each(members, action="grow")
        elif take(TURNS) or take(STILL):
            pass
        else:
            verb = take(FALLS) or take(RISES) or take(MOVES)
            for pattern, step in DIRECTIONS:
                if take(pattern):
                    _each(members, direction=step)
                    break
            else:
                if verb:
                    down = re.fullmatch(FALLS, verb.group())
                    up = re.fullmatch(RISES, verb.group())
                    if down or up:
                        _each(members, direction=(0, 1 if down else -1))
                    else:
                        unresolved.append(f"{verb.group()!r} says no direction; it was left out.")
        left = [w for w in re.findall(r"[a-z'\-]+", rest) if w not in FILLER]
        if left:
            unresolved.append(f"{' '.join(left)!r} was not understood; it was left out.")
    _chase(nouns)
    return unresolved


def _each(members: list[_Noun], **values: object) -> None:
    for member in members:
        for name, value in values.items():
            setattr(member, name, value)


def _chase(nouns: list[_Noun]) -> None:
    """A follower and the followed share one direction, said after either; to the right if unsaid."""
    for noun in nouns:
        if noun.action == "behind" and noun.relation:
            other = nouns[noun.relation[1]]
            noun.direction = other.direction = other.direction or noun.direction or (1, 0)


# Placing ------------------------------------------------------------------------------------------


def _place(nouns: list[_Noun]) -> None:
    """Choose centres, sizes and, for counted nouns, one spot an instance."""
    total = sum(n.count for n in nouns)
    size = next(s for most, s in ((2, 0.27), (4, 0.23), (6, 0.19), (9, 0.16), (99, 0.13)) if total <= most)
    for noun in nouns:
        noun.size = size
    related = [n for n in nouns if n.relation and n.action != "behind"]
    movers = [n for n in nouns if n.moves]
    if any(n.action in ("meet", "part") for n in nouns):
        for noun in nouns:
            noun.centre = (0.5, 0.5) if noun.moves else (0.5, 0.85)
    elif any(n.action == "behind" for n in nouns):
        for noun in nouns:
            noun.centre = (0.5, 0.5)
    elif related:
        for noun in related:
            (sx, sy), other = noun.relation  # type: ignore[misc]
            noun.centre = (0.5 + 0.22 * sx, 0.5 + 0.22 * sy)
            nouns[other].centre = (0.5 - 0.22 * sx, 0.5 - 0.22 * sy)
    elif movers and len(nouns) > 1:
        _lanes(nouns)
    elif len(nouns) == 1 and (nouns[0].count == 1 or movers):
        nouns[0].centre = (0.5, 0.5)
    rows = [n for n in nouns if n.centre is None]
    if rows and all(n.count == 1 for n in rows):
        _row(rows, taken=[n.centre for n in nouns if n.centre])
    elif rows:
        _grid(rows)
    for noun in nouns:
        if noun.centre and noun.count > 1:
            x, y = noun.centre
            step = min(noun.size * 1.15, 0.9 / noun.count)
            along = [(k - (noun.count - 1) / 2) * step for k in range(noun.count)]
            sideways = noun.direction is not None and noun.direction[1] == 0
            noun.spread = [(x, y + a) if sideways else (x + a, y) for a in along]
            noun.size = min(noun.size, step / 1.1)
        elif noun.centre:
            noun.spread = [noun.centre]


def _axis(noun: _Noun) -> str:
    """The axis along which a noun needs room."""
    if noun.action in ("bounce",) or (noun.direction and noun.direction[0] == 0):
        return "y"
    return "x" if noun.moves else ""


def _lanes(nouns: list[_Noun]) -> None:
    """Give movers and still objects lanes that do not cross."""
    axes = [_axis(n) for n in nouns]
    if any(n.action == "circle" for n in nouns) or ("x" in axes and "y" in axes):
        circle = any(n.action == "circle" for n in nouns)
        spots = {"x": (0.34, 0.2), "y": (0.87, 0.58), "": (0.8, 0.8) if circle else (0.36, 0.8)}
        for noun, axis in zip(nouns, axes, strict=True):
            noun.size = min(noun.size, 0.23)
            noun.centre = (0.32, 0.32) if noun.action == "circle" else spots[axis]
        return
    places = [(k + 0.5) / len(nouns) for k in range(len(nouns))]
    for noun, place in zip(nouns, places, strict=True):
        noun.centre = (0.5, place) if "x" in axes else (place, 0.5)
    if len(nouns) > 2:
        for noun in nouns:
            noun.size = min(noun.size, 0.8 / len(nouns))


def _row(rows: list[_Noun], taken: list[tuple[float, float]]) -> None:
    """Single still objects side by side; in a row of their own when others have places."""
    y = 0.5 if not taken else 0.85
    for k, noun in enumerate(rows):
        noun.centre = ((k + 0.5) / len(rows), y)
        noun.size = min(noun.size, 0.8 / len(rows))


def _grid(rows: list[_Noun]) -> None:
    """Counted nouns: a row or more for each noun, every instance in a slot of its own."""
    alone = len(rows) == 1
    lines: list[tuple[_Noun, int]] = []
    for noun in rows:
        wide = math.ceil(math.sqrt(noun.count)) if alone and noun.count > 3 else min(noun.count, 4)
        left = noun.count
        while left > 0:
            lines.append((noun, min(wide, left)))
            left -= wide
    for line, (noun, count) in enumerate(lines):
        noun.spread += [((k + 0.5) / count, (line + 0.5) / len(lines)) for k in range(count)]
        for other in rows:
            other.size = min(other.size, 0.82 / max(count, len(lines)))


# Tracks -------------------------------------------------------------------------------------------


def _objects(noun: _Noun, jitter: random.Random | None) -> list[TrackedObject]:
    objects = []
    for x, y in noun.spread:
        if jitter:
            x, y = x + jitter.uniform(-0.04, 0.04), y + jitter.uniform(-0.04, 0.04)
        keyframes = tuple(
            Keyframe(time=t, box=Box.around(cx, cy, size)) for t, cx, cy, size in _track(noun, x, y)
        )
        objects.append(TrackedObject(id=noun.name, name=noun.name, phrase=noun.phrase, keyframes=keyframes))
    return objects


def _track(noun: _Noun, x: float, y: float) -> list[tuple[float, float, float, float]]:
    """Keyframes (time, centre x, centre y, size) of one instance around its place."""
    s, (dx, dy) = noun.size, noun.direction or (0, 0)
    if noun.action == "grow":
        return [(0.0, x, y, 0.16), (1.0, x, y, 0.4)]
    if noun.action == "shrink":
        return [(0.0, x, y, 0.4), (1.0, x, y, 0.16)]
    if noun.action == "bounce":
        floor, height = 0.95 - s / 2, 0.42
        return [(k / 16, x, floor - height * abs(math.sin(2 * math.pi * k / 16)), s) for k in range(17)]
    if noun.action == "circle":
        r = 0.2 if (x, y) == (0.5, 0.5) else 0.16
        turns = [2 * math.pi * k / 16 - math.pi / 2 for k in range(17)]
        cx, cy = (min(max(c, r + s / 2), 1 - r - s / 2) for c in (x, y))
        return [(k / 16, cx + r * math.cos(a), cy + r * math.sin(a), s) for k, a in enumerate(turns)]
    if noun.action == "zigzag":
        low = s / 2 + 0.02
        wave = [0, 1, 0, -1, 0, 1, 0, -1, 0]
        cy = min(max(y, low + 0.125), 1 - low - 0.125)
        return [(k / 8, low + (1 - 2 * low) * k / 8, cy + 0.125 * v, s) for k, v in enumerate(wave)]
    if noun.action in ("meet", "part"):
        outer, inner = 0.5 - dx * (0.48 - s / 2), 0.5 - dx * (s / 2 + 0.03)
        if noun.action == "part":
            outer, inner = 0.5 + dx * (s / 2 + 0.03), 0.5 + dx * (0.48 - s / 2)
        return [(0.0, outer, y, s), (1.0, inner, y, s)]
    if noun.action in ("behind", "ahead"):
        gap = s / 2 + 0.03
        reach = max(0.5 - gap - s / 2 - 0.02, 0.05)
        shift = gap if noun.action == "ahead" else -gap
        ends = [(-reach + shift, 0.0), (reach + shift, 1.0)]
        return [(t, x + dx * along, y + dy * along, s) for along, t in ends]
    if noun.direction:
        half = 0.25 if not (dx and dy) else 0.23
        x0, x1 = _run(x, dx, half, s)
        y0, y1 = _run(y, dy, half, s)
        return [(0.0, x0, y0, s), (1.0, x1, y1, s)]
    return [(0.0, x, y, s)]


def _run(centre: float, step: int, half: float, size: float) -> tuple[float, float]:
    """Start and end along one axis: a run around the centre, shifted inside the canvas."""
    if not step:
        return centre, centre
    middle = min(max(centre, half + size / 2), 1 - half - size / 2)
    return middle - step * half, middle + step * half
