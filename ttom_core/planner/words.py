"""The words the rule planner knows, and the text cut into what they mean.

`read_words` turns a prompt into a list of `Word`: noun phrases with their counts, motions, directions,
relations, joints, and whatever it does not know, as such.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

Step = tuple[int, int]  # right is (1, 0), down is (0, 1)

LEFT, RIGHT, UP, DOWN, MIDDLE = (-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)
NUMBERS = {
    word: n
    for n, word in enumerate(
        "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen "
        "sixteen seventeen eighteen nineteen twenty".split(),
        1,
    )
} | {"both": 2}
SINGULAR = set("a an another this that each every single one".split())
DEFINITE = set("the this that these those both".split())
OWNED = set("his her its their my your our".split())
DETERMINERS = SINGULAR | DEFINITE | OWNED | set("some several many few all no".split())
VAGUE = set("some several many few all".split())
PRONOUNS = set("it he she they them itself themselves which who".split())

# kind: base forms; "+" marks a doubled last letter (run, running).
MOTIONS = {
    "go": "move drift slide fly run+ walk roll float travel go glide swim+ drive sail race jog+ march "
    "crawl dash cross gallop hover stroll hurry rush zoom come head wander skate ski pass ride cycle "
    "speed creep waddle scuttle scurry slither trot sprint stride sneak cruise dart tiptoe stagger",
    "fall": "fall drop+ sink descend dive plunge tumble swoop land alight",
    "rise": "rise climb ascend soar lift",
    "still": "stay stand rest remain sit+ lie wait park stop+ sleep hang pause",
    "bounce": "bounce jump hop+ leap",
    "circle": "circle orbit revolve",
    "zigzag": "zigzag+",
    "sway": "sway swing rock wobble",
    "grow": "grow expand swell inflate enlarge",
    "shrink": "shrink contract deflate",
    "meet": "meet collide",
    "part": "separate",
    "follow": "follow chase pursue",
    "push": "push",
    "pull": "pull drag+ tow haul",
    "send": "throw kick toss fling hurl",
    "approach": "approach near",
    "enter": "appear enter arrive emerge",
    "leave": "disappear vanish leave exit burst pop+ dissolve evaporate",
}
COLOURS = set(
    "red green blue yellow purple cyan pink white black brown grey gray golden silver magenta "
    "turquoise beige".split()
)
ADJECTIVES = (
    set(
        "orange dark light bright big small large little tiny huge giant tall short long "
        "old young new flat wooden metal glass plastic shiny colorful colourful beautiful "
        "sports vibrant grand majestic fluffy cute lone single solid wild happy sleepy striped spotted "
        "fast slow heavy bald electric modern vintage rusty wet fresh ripe hot cold".split()
    )
    | COLOURS
)
SCENERY = set(
    "forest jungle beach shore sky city town village street road highway path park field meadow garden "
    "ocean sea river lake water desert valley room kitchen office studio stadium stage space pool snow "
    "rain fog grass ground floor night day sunset sunrise dawn dusk background horizon landscape air "
    "countryside farm lawn sand savanna savannah universe pond".split()
)
FRAME = r"(?:screen|frame|canvas|scene|video|picture|image|view|shot|clip)"
CAMERA = set("camera lens".split())
STYLE = set(
    "cinematic realistic photorealistic hyperrealistic detailed 4k 8k hd uhd hdr 3d 2d cartoon anime "
    "slow-motion timelapse".split()
)
PREPOSITIONS = set(
    "in inside into at through across along past during off out against with without for among from of "
    "to toward towards around onto up down about via within upon outside".split()
)
JOINTS = {
    **dict.fromkeys("and , &".split(), "and"),
    **dict.fromkeys("while as whilst but when whereas . ; : ! ?".split(), "clause"),
    **dict.fromkeys("then afterwards before finally later".split(), "then"),
}
FILLER = set(
    "is are was were be been being there here very quite both together fast quickly slow high low still "
    "again side also just only motion bigger larger wider once color colour has have it's "
    "motionless steady".split()
) | set("( ) \" '".split())
IRREGULAR = {
    "people": "person", "children": "child", "men": "man", "women": "woman", "mice": "mouse",
    "geese": "goose", "feet": "foot", "teeth": "tooth", "sheep": "sheep", "fish": "fish",
    "deer": "deer", "oxen": "ox", "leaves": "leaf", "wolves": "wolf", "knives": "knife",
    "loaves": "loaf", "shelves": "shelf", "cookies": "cookie", "buses": "bus", "horses": "horse",
    "houses": "house", "vases": "vase", "roses": "rose", "movies": "movie", "aircraft": "aircraft",
    "shoes": "shoe", "toes": "toe", "canoes": "canoe",
}  # fmt: skip
NO_THINGS = set(  # what "at", "from" and their like introduce without its being seen
    "time moment end beginning start finish first last once speed pace rate distance angle direction way "
    "side corner edge top bottom left right middle center centre other music sound rhythm day night".split()
)
PARTS = set(
    "hand arm leg head tail wing eye ear face hair mouth nose paw foot finger fur back feather "
    "beak fin trunk neck tongue lip shoulder knee".split()
)
ING_NOUNS = set("building king ring wing string spring thing painting ceiling earring duckling".split())
LY_NOUNS = set("butterfly dragonfly firefly jelly family lily belly lovely friendly curly bully".split())


@dataclass
class Noun:
    """A noun phrase: `phrase` is cut from the prompt as it stands there."""

    phrase: str
    name: str
    head: str
    count: int
    vague: bool = False  # a plural without a number: one box stands for all
    absent: bool = False  # "no dogs"
    definite: bool = False
    owned: bool = False
    motion: str | None = None  # "a bouncing ball"


@dataclass(frozen=True)
class Word:
    """One meaning found in the text.

    kind and value: noun (Noun), another (one like the last), motion (its kind), passive (the motion's kind,
    by what comes), direction (Step, or the end of "from the left"), place (Step from the middle), relation
    (Step), between, meet, part, row, joint (its kind), preposition (itself), pronoun, turn, background
    (text), camera, filler, unknown.
    """

    kind: str
    value: Any
    text: str


def _forms() -> dict[str, tuple[str, str]]:
    """Every form of every motion verb: its kind, and which form it is (bare, s, ing)."""
    forms: dict[str, tuple[str, str]] = {}
    for kind, bases in MOTIONS.items():
        for entry in bases.split():
            base = entry.rstrip("+")
            if base.endswith("y") and base[-2] not in "aeo":
                third = base[:-1] + "ies"
            else:
                third = base + ("es" if base.endswith(("s", "sh", "ch", "x", "o")) else "s")
            ing = base + base[-1] if entry.endswith("+") else base
            if base.endswith("ie"):
                ing = base[:-2] + "y"
            elif base.endswith("e"):
                ing = base[:-1]
            forms |= {base: (kind, "bare"), third: (kind, "s"), ing + "ing": (kind, "ing")}
    return forms


VERBS = _forms()
AMBIGUOUS = {
    "near",
    "rock",
    "head",
    "park",
    "ski",
    "land",
    "speed",
    "pop",
    "burst",
}  # in bare form hardly ever our verb


def _patterns() -> list[tuple[str, Any, re.Pattern[str]]]:
    """Wordings of several words, the longer meanings first."""
    rows: list[tuple[str, Any, str]] = []
    the, to = "(?:the )?", "(?:to(?:wards?)? )?(?:the )?"
    of_frame = rf"(?: of {the}{FRAME})?"
    not_frame = rf"(?! (?:the )?{FRAME}\b)"
    look = r"(?:(?!(?:an?|the|on|against|in|with|and|of)\b)[^\s,.;]+ ){0,4}?"
    rows.append(("background", None, rf"(?:on|against|in front of|with|over) (?:an?|the) ({look})background"))
    rows.append(
        (
            "filler",
            None,
            r"(?:an? |the )?(?:[a-z]+ )?(?:video|clip|shot|animation|footage|scene|photo|"
            r"picture|image|close up|view) (?:of|showing|shows|where|in which)",
        )
    )
    rows.append(("unknown", None, r"(?:one|two|three|some|each|none) of (?:them|these|those)"))
    rows.append(("another", None, r"another one|the other one"))
    rows.append(("passive", "follow", r"(?:pulled|dragged|towed|hauled) by"))
    rows.append(("passive", "lead", r"(?:followed|chased|pursued|pushed) by"))
    rows.append(("row", None, r"(?:next to|beside|alongside) (?:each other|one another)|side by side"))
    rows.append(("row", None, r"in (?:a |one )?(?:row|line)(?: from left to right)?"))
    rows.append(("meet", None, r"(?:approach(?:es|ing)?|meets?) (?:each other|one another)"))
    rows.append(("meet", None, r"(?:towards?|to|into|at) (?:each other|one another)"))
    rows.append(
        ("part", None, r"(?:away |apart )?from (?:each other|one another)|apart|in opposite directions")
    )
    rows.append(("away", None, rf"away from{not_frame}"))
    rows.append(("filler", None, r"right (?=next|behind|beside|above|below|in front)"))
    big = r"(?:bigger|larger|taller|(?:(?:\w+ times|twice) )?as (?:big|large|tall))"
    rows.append(("grow", None, rf"(?:gets?|getting|becomes?|becoming) {big}"))
    rows.append(("shrink", None, r"(?:gets?|getting|grows?|growing|becomes?) smaller"))
    rows.append(("turn", None, r"(?:turns?|turning|becomes?|becoming) (?!left|right|around|to|the)[a-z]+"))
    rows.append(("turn", None, r"chang(?:es?|ing)(?: colou?r)?(?: from [a-z]+)? (?:in)?to [a-z]+"))
    rows.append(("go", None, r"(?:turns?|turning)"))
    rows.append(("sway", DOWN, r"up and down"))
    rows.append(("sway", RIGHT, r"back and forth|(?:from )?side to side|left and right"))
    rows.append(("circle", None, r"in (?:a )?circles?|(?:around|round) in circles|in an? (?:full )?circle"))
    rows.append(("zigzag", None, r"(?:in (?:a |an )?)?zig ?zag(?:s|ging)?(?: (?:pattern|path|line))?"))
    for words, step in (("left", LEFT), ("right", RIGHT)):
        rows.append(("relation", step, rf"(?:(?:to|on|at) the )?{words}(?: (?:hand )?side)? of{not_frame}"))
    # "on" comes after "on the left": these follow the places and precede the bare directions.
    relations: list[tuple[str, Any, str]] = []
    relations.append(
        ("preposition", None, r"(?:up|down)(?= (?:the|a) (?:road|street|path|stairs|hill|river|hall))")
    )
    relations.append(("relation", UP, r"on top of|above|over|atop|on|onto"))
    relations.append(("relation", DOWN, r"in front of|below|under(?:neath)?|beneath"))
    relations.append(("relation", UP, "behind"))
    relations.append(("relation", RIGHT, r"beside|next to|near|alongside|by|close to"))
    relations.append(("between", None, r"(?:in )?between"))
    sides = {
        "left": ("left(?:wards?)?", LEFT), "right": ("right(?:wards?)?", RIGHT),
        "up": ("(?:up(?:wards?)?|upper|top)", UP), "down": ("(?:down(?:wards?)?|lower|bottom)", DOWN),
    }  # fmt: skip
    edge = "(?: (?:hand )?(?:side|edge|corner|half|part|end))?"
    joint = "(?: and)?(?: diagonally)?(?: to(?:wards?)? the)? "
    corners: list[tuple[str, Step]] = []
    for a, (vertical, (_, dy)) in sides.items():
        for b, (level, (dx, _)) in sides.items():
            if a in ("up", "down") and b in ("left", "right"):
                corners.append((f"{vertical}{joint}{level}", (dx, dy)))
                corners.append((f"{level} and (?:to the )?{vertical}", (dx, dy)))
    places = [*corners, *sides.values()]
    on = r"(?:on|in|at) the (?:far |very )?"
    ends = rf"{edge}{of_frame}"
    starts: list[tuple[str, Any, str]] = []
    for words, (dx, dy) in places:
        for others, there in places:
            if there == (-dx, -dy):
                starts.append(
                    ("direction", there, rf"(?:from )?{the}{words}{edge} to(?:wards?)? {the}{others}{ends}")
                )
        starts.append(("direction", (-dx, -dy), rf"(?:in )?from {the}{words}{ends}"))
    rows += starts
    rows += [("direction", DOWN, "from above"), ("direction", UP, "from below")]
    rows += [("place", step, f"{on}{words}{ends}") for words, step in places]
    rows.append(("place", MIDDLE, rf"(?:on|in|at) the (?:cent(?:er|re)|middle){of_frame}"))
    by = "across|through|over|along|around|in|into|on|of|out of|from"
    rows.append(("frame", None, rf"(?:{by}) (?:the |this )?(?:whole |entire )?{FRAME}|the {FRAME}"))
    rows += relations
    rows += [("direction", step, rf"(?:diagonally )?{to}{words}{edge}{of_frame}") for words, step in places]
    rows.append(("direction", DOWN, r"to the (?:ground|floor)"))
    return [(kind, value, re.compile(rf"(?:{text})(?!\S)")) for kind, value, text in rows]


PATTERNS = _patterns()
_TOKEN = re.compile(r"\w+(?:['’]\w+)*|[,.;:!?()&]")


def read_words(prompt: str) -> Iterator[Word]:
    """Cut a prompt into its meanings, in order."""
    yield from _Lexer(prompt)


class _Lexer:
    """Walks over the tokens of a prompt; positions are kept so that phrases are the prompt's own."""

    def __init__(self, prompt: str) -> None:
        self.prompt = prompt
        self.tokens = list(_TOKEN.finditer(prompt))
        self.words = [t.group().lower().replace("’", "'") for t in self.tokens]
        self.collective = False  # "a pair of swans" takes the verb of one or of two
        self.bare = False  # the last noun phrase had no determiner
        self.listed = False  # after "a cat and": whoever comes next makes the subject a plural

    def __iter__(self) -> Iterator[Word]:
        index, before = 0, "start"
        while index < len(self.words):
            word, end = self._at(index, before)
            yield word
            self.listed = before == "noun" and word.value == "and"
            before = word.kind if word.kind != "filler" else before
            index = end

    def text(self, start: int, end: int) -> str:
        return self.prompt[self.tokens[start].start() : self.tokens[end - 1].end()]

    def _at(self, i: int, before: str) -> tuple[Word, int]:
        """The meaning that starts at token i, and the token after it."""
        word = self.words[i]
        ahead = " ".join(self.words[i : i + 12])
        for kind, value, pattern in PATTERNS:
            if match := pattern.match(ahead):
                if kind == "relation" and before in ("preposition", "relation"):
                    continue
                end = i + len(match.group().split())
                if kind == "background":
                    return Word(kind, match.group(1).strip(), self.text(i, end)), end
                if kind in MOTIONS and kind not in ("meet", "part"):
                    return Word("motion", (kind, value), self.text(i, end)), end
                return Word(kind, value, self.text(i, end)), end
        if word in JOINTS:
            return Word("joint", JOINTS[word], word), i + 1
        if word in STYLE:
            return Word("filler", None, word), i + 1
        if word in VERBS and not self._starts_noun(i, before):
            kind, _ = VERBS[word]
            return Word("motion", (kind, None), self.text(i, i + 1)), i + 1
        follower = self.words[i + 1] if i + 1 < len(self.words) else ""
        if word == "that" and before == "noun" and (follower in VERBS or follower in ("is", "are")):
            return Word("pronoun", word, word), i + 1  # "a ball that rolls"
        if found := self._noun(i, before):
            return found
        for kind, words in (("pronoun", PRONOUNS), ("filler", FILLER), ("preposition", PREPOSITIONS)):
            if word in words:
                return Word(kind, word, word), i + 1
        if word in DETERMINERS or (word.endswith("ly") and word not in LY_NOUNS):
            return Word("filler", None, word), i + 1
        if word == "that":
            return Word("pronoun", word, word), i + 1
        return Word("unknown", word, self.text(i, i + 1)), i + 1

    def _starts_noun(self, i: int, before: str) -> bool:
        """Whether a verb's form stands where only a noun can: "near rocks", "drops fall"."""
        follower = self.words[i + 1] if i + 1 < len(self.words) else ""
        if self.words[i] in AMBIGUOUS:
            return True
        if before == "start" and follower in VERBS and VERBS[self.words[i]][1] == "s":
            return VERBS[follower][1] == "bare"
        return False

    def _noun(self, i: int, before: str) -> tuple[Word, int] | None:
        """The noun phrase at token i, with or without a determiner."""
        start, j = i, i
        number: int | None = None
        vague = absent = definite = owned = singular = False
        ahead = " ".join(self.words[i : i + 5]) + " "
        self.collective = True
        if match := re.match(r"(?:an? |the )?(?:pair|couple) of ", ahead):
            number, j = 2, i + len(match.group().split())
        elif (match := re.match(r"(\w+) (?:pairs|couples) of ", ahead)) and self._is_number(i):
            number, j = 2 * self._number(i), i + 3
        elif match := re.match(r"half a dozen |a dozen ", ahead):
            number, j = (6 if "half" in match.group() else 12), i + len(match.group().split())
        elif match := re.match(
            r"(?:an? |the )?(?:group|flock|bunch|crowd|herd|swarm|school|family|pack|team|colony|lot|lots|"
            r"number|handful|few) "
            r"(?:of )?(?!of )",
            ahead,
        ):
            vague, j = True, i + len(match.group().split())
        else:
            self.collective = False
        while j < len(self.words) and (self._is_number(j) or self.words[j] in DETERMINERS):
            word = self.words[j]
            if self._is_number(j):
                number = self._number(j)
            vague |= word in VAGUE
            absent |= word == "no"
            definite |= word in DEFINITE | OWNED
            owned |= word in OWNED
            singular |= word in SINGULAR
            j += 1
        determined = j > i
        if number == 0:
            absent = True
        singular = (singular or number == 1) and (number or 1) == 1
        plural = vague or (number or 1) > 1
        thing = before in ("relation", "between", "preposition") and not singular
        end, motion = self._head(j, singular, plural or thing)
        if end == j:
            return None
        if not determined and not self._bare(j, end, before):
            return None
        self.bare = not determined
        head = self.words[end - 1]
        if end + 1 < len(self.words) and self.words[end] == "of":
            skip = end + 1 + (self.words[end + 1] in DETERMINERS)
            more, _ = self._head(skip, False, False)
            if more > skip:
                end = more
        phrase = self.text(j, end)
        if number is None and not singular and plural_looking(head):
            vague = True
        noun = Noun(
            phrase=phrase,
            name=_singular(phrase) if (number or 1) > 1 else phrase,
            head=_singular(head),
            count=number or 1,
            vague=vague and number is None,
            absent=absent,
            definite=definite,
            owned=owned,
            motion=motion,
        )
        return Word("noun", noun, self.text(start, end)), end

    def _is_number(self, i: int) -> bool:
        word = self.words[i]
        return word in NUMBERS or (word.isascii() and word.isdigit() and len(word) < 7)

    def _number(self, i: int) -> int:
        word = self.words[i]
        return int(word) if word.isdigit() else NUMBERS[word]

    def _head(self, j: int, singular: bool, plural: bool) -> tuple[int, str | None]:
        """Where the adjectives and nouns that start at j end, and a motion among the adjectives."""
        end, motion = j, None
        while end < len(self.words) and end - j < 6:
            word = self.words[end]
            last = self.words[end - 1] if end > j else ""
            if not word[0].isalnum() or word in JOINTS or word in PREPOSITIONS or word in FILLER:
                break
            if word in DETERMINERS or word in PRONOUNS or self._is_number(end):
                break
            if word in ("left", "right", "up", "down", "together", "apart", "diagonally"):
                break
            if last and self._wording(end):
                break
            if word in VERBS:
                kind, form = VERBS[word]
                if form == "ing":
                    if last and last not in ADJECTIVES:
                        break
                    motion = kind if word not in ING_NOUNS else None
                elif last and self._is_verb(end, form, singular, plural):
                    break
            elif last:
                if word.endswith("ly") and word not in LY_NOUNS:
                    break
                if plural_looking(word) and not plural and word not in IRREGULAR:
                    # Nothing is known of "barks" in "a dog barks", but that it is a verb.
                    follower = VERBS.get(self.words[end + 1], "")[1:] if end + 1 < len(self.words) else ()
                    if last not in ADJECTIVES and (singular or follower != ("bare",)):
                        break
                if not singular and plural_looking(last) and last not in ADJECTIVES:
                    break  # a plural ends its phrase: "two dogs bark"
                if len(word) > 5 and word.endswith("ing") and word not in ING_NOUNS:
                    break
            elif self._wording(end) and word not in ("turn", "top", "upper", "lower"):
                break
            end += 1
        if motion and end == j + 1:
            return j, None  # "the rolling" alone names nothing
        return end, motion

    def _is_verb(self, i: int, form: str, singular: bool, plural: bool) -> bool:
        """Whether a verb's form (bare, s) after a noun is the verb, and no noun like "drops"."""
        last = self.words[i - 1]
        if (self.listed or self.collective) and last not in ADJECTIVES:
            return True
        if plural or (not singular and plural_looking(last)):
            return form == "bare" and last not in ADJECTIVES
        if not singular and last in COLOURS:  # "the red circles"
            return False
        return form == "s"

    def _wording(self, i: int) -> bool:
        ahead = " ".join(self.words[i : i + 12])
        return any(pattern.match(ahead) for _, _, pattern in PATTERNS)

    def _bare(self, j: int, end: int, before: str) -> bool:
        """Whether words without a determiner may name an object here."""
        if self.words[end - 1] in ADJECTIVES:
            return False  # "beautiful light"
        if before in ("start", "relation", "between", "preposition"):
            return True
        if before != "joint":
            return False
        follower = self.words[end] if end < len(self.words) else ""
        coloured = end - j > 1 and self.words[j] in ADJECTIVES
        agrees = follower in VERBS and (VERBS[follower][1] == "bare") == plural_looking(self.words[end - 1])
        return coloured or agrees or (self.listed and self.bare)


def plural_looking(word: str) -> bool:
    """Whether a word looks like a plural, or like a verb's third person."""
    return word in IRREGULAR or (word.endswith("s") and not word.endswith(("ss", "us", "is")))


def _singular(phrase: str) -> str:
    """The phrase with its head noun (before "of") in the singular."""
    first, of, rest = phrase.partition(" of ")
    stem, _, word = first.rpartition(" ")
    low = word.lower()
    if low in IRREGULAR:
        word = IRREGULAR[low]
    elif low.endswith("ies") and len(low) > 4:
        word = word[:-3] + "y"
    elif low.endswith(("shes", "ches", "xes", "sses", "zes", "oes")):
        word = word[:-2]
    elif plural_looking(low) and len(low) > 1:
        word = word[:-1]
    return f"{stem} {word}".strip() + of + rest
