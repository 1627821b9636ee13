"""Scenes with captions and exact ground truth: the world the demo model is taught.

One generator per T2V-CompBench category. A scene is flat coloured shapes on a plain background,
64×64 pixels, 21 frames at 8 fps. A quarter of the (colour, shape, role) combinations never appears
in training; prompts built around those are the held-out set.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from ttom_core.evaluation.blobs import BACKGROUNDS, PALETTE, SHAPES

SIZE, FRAMES, FPS = 64, 21, 8
# Pixels between objects, a token of the demo model: closer ones share tokens and melt into each other.
GAP = 8.0
COLOURS = tuple(PALETTE)
CATEGORIES = (
    "consistent_attribute",
    "dynamic_attribute",
    "spatial",
    "motion",
    "action",
    "interaction",
    "numeracy",
)
DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}
MOVES = {
    "right": "moves to the right",
    "left": "moves to the left",
    "up": "moves up",
    "down": "moves down",
}
RELATIONS = {
    "left_of": ("to the left of", (-1, 0)),
    "right_of": ("to the right of", (1, 0)),
    "above": ("above", (0, -1)),
    "below": ("below", (0, 1)),
}
ACTIONS = {"bounces": "bounces", "circles": "circles around", "zigzags": "zigzags"}
CHANGES = ("grows", "shrinks", "turns")
COUNTS = {"two": 2, "three": 3, "four": 4}
MEETINGS = {
    "towards": "move towards each other",
    "away": "move away from each other",
}
ROLES = (
    *DIRECTIONS,
    *RELATIONS,
    *ACTIONS,
    *CHANGES,
    *COUNTS,
    *MEETINGS,
    "follows",
    "pair",
)
TIME = np.linspace(0.0, 1.0, FRAMES)


@dataclass(frozen=True)
class Noun:
    """What the caption names: a colour and a shape, and how many of them."""

    colour: str
    shape: str
    count: int = 1
    end_colour: str | None = None

    def __str__(self) -> str:
        return f"{self.colour} {self.shape}"


@dataclass(frozen=True)
class Instance:
    """One drawn object: centres [F, 2] and sizes [F] in pixels, for one noun of the scene."""

    noun: int
    centres: np.ndarray
    sizes: np.ndarray


@dataclass(frozen=True)
class Scene:
    """A caption, what it says in machine-checkable form, and the truth that was drawn."""

    category: str
    caption: str
    nouns: tuple[Noun, ...]
    expect: dict[str, object]
    instances: tuple[Instance, ...] = field(repr=False)
    background: str = "dark"

    @property
    def moves(self) -> bool:
        """Whether anything in it is elsewhere, larger or of another colour at another time."""
        changing = any(np.ptp(i.centres, 0).any() or np.ptp(i.sizes) for i in self.instances)
        return bool(changing or any(noun.end_colour for noun in self.nouns))

    def boxes(self) -> np.ndarray:
        """Truth boxes [N, F, 4] as normalised x, y, w, h."""
        boxes = [
            np.concatenate([i.centres - i.sizes[:, None] / 2, np.repeat(i.sizes[:, None], 2, 1)], 1)
            for i in self.instances
        ]
        return np.stack(boxes) / SIZE

    def render(self, first: int = 0, frames: int = FRAMES) -> np.ndarray:
        """Draw the scene (or only `frames` of it), anti-aliased, as uint8 [frames, H, W, 3]."""
        grid = np.arange(SIZE) + 0.5
        xx, yy = np.meshgrid(grid, grid)
        video = np.empty((frames, SIZE, SIZE, 3), np.float32)
        video[:] = BACKGROUNDS[self.background]
        for instance in self.instances:
            noun = self.nouns[instance.noun]
            start = np.array(PALETTE[noun.colour], np.float32)
            end = np.array(PALETTE[noun.end_colour or noun.colour], np.float32)
            for f in range(first, first + frames):
                dx, dy = xx - instance.centres[f, 0], yy - instance.centres[f, 1]
                cover = np.clip(0.5 - _distance(noun.shape, dx, dy, instance.sizes[f] / 2), 0, 1)
                colour = start + (end - start) * TIME[f]
                video[f - first] += cover[..., None] * (colour - video[f - first])
        return video.round().astype(np.uint8)


def _distance(shape: str, dx: np.ndarray, dy: np.ndarray, r: float) -> np.ndarray:
    """Signed distance in pixels to a shape whose bounding box is 2r wide and 2r high."""
    if shape == "circle":
        return np.hypot(dx, dy) - r
    if shape == "square":
        return np.maximum(abs(dx), abs(dy)) - r
    slope = 1 / np.sqrt(5)  # the sides of an upright triangle, half as wide as high on each side
    return np.maximum(dy - r, (2 * abs(dx) - dy - r) * slope)


def held_out(colour: str, shape: str, role: str) -> bool:
    """Whether this combination is kept from training (a quarter of all, spread over every role)."""
    return (COLOURS.index(colour) + 2 * SHAPES.index(shape) + ROLES.index(role)) % 4 == 0


class SceneSampler:
    """Random scenes from one seed; with `held_out=True` the first noun is always a held-out one."""

    def __init__(self, seed: int, held_out: bool = False) -> None:
        self.rng = np.random.default_rng(seed)
        self.held_out = held_out

    def sample(self, category: str | None = None) -> Scene:
        """Draw one scene of a category (by default any, and three times as often one lone object)."""
        if category is None:
            options = (*CATEGORIES, *("single",) * 3)
            category = options[self.rng.integers(len(options))]
        scene = getattr(self, f"_{category}")()
        if self.rng.random() < 0.5:
            return scene
        suffix = f" on a {scene.background} background"
        return Scene(**{**scene.__dict__, "caption": scene.caption + suffix})

    # Choices ------------------------------------------------------------------------------------

    def _pick(self, options):
        options = tuple(options)
        return options[self.rng.integers(len(options))]

    def _noun(self, role: str, first: bool, avoid: tuple[Noun, ...] = (), count: int = 1) -> Noun:
        """A noun allowed in this role: never held out in training, always (when first) in testing."""
        while True:
            colour, shape = self._pick(COLOURS), self._pick(SHAPES)
            if role in ROLES and held_out(colour, shape, role) != (self.held_out and first):
                continue
            if all(colour not in (other.colour, other.end_colour) for other in avoid):
                return Noun(colour, shape, count)

    def _size(self) -> float:
        return float(self.rng.uniform(14, 20))

    def _scene(self, category, caption, nouns, expect, instances) -> Scene:
        background = self._pick(BACKGROUNDS)
        return Scene(category, caption, tuple(nouns), expect, tuple(instances), background)

    def _spot(self, size: float, taken: list[Instance]) -> np.ndarray | None:
        """A centre [2] at which an object of this size keeps clear of all others in every frame, if found."""
        for _ in range(200):
            spot = self.rng.uniform(size / 2 + 1, SIZE - size / 2 - 1, 2)
            if all(
                (abs(other.centres - spot).max(1) > (other.sizes + size) / 2 + GAP).all() for other in taken
            ):
                return spot
        return None

    def _still(self, noun: int, size: float, taken: list[Instance]) -> Instance | None:
        spot = self._spot(size, taken)
        return None if spot is None else Instance(noun, np.tile(spot, (FRAMES, 1)), np.full(FRAMES, size))

    def _travel(self, noun: int, direction: str, size: float) -> Instance:
        """A straight run of 24 to 34 pixels at constant speed."""
        step = np.array(DIRECTIONS[direction], float)
        length = self.rng.uniform(24, 34)
        low, high = size / 2 + 1, SIZE - size / 2 - 1
        start = self.rng.uniform(low, high, 2)
        for axis in range(2):
            if step[axis] > 0:
                start[axis] = self.rng.uniform(low, max(low, high - length))
            elif step[axis] < 0:
                start[axis] = self.rng.uniform(min(high, low + length), high)
        centres = np.clip(start + TIME[:, None] * step * length, low, high)
        return Instance(noun, centres, np.full(FRAMES, size))

    # One generator per category -----------------------------------------------------------------

    def _single(self) -> Scene:
        noun = Noun(self._pick(COLOURS), self._pick(SHAPES))
        instance = self._still(0, self._size(), [])
        return self._scene("single", f"a {noun}", [noun], {}, [instance])

    def _with_still(self, category, noun, mover, text, expect) -> Scene:
        """The mover alone, or beside an object that stays where it is."""
        if self.rng.random() < 0.5:
            other = self._noun("still", False, (noun,))
            still = self._still(1, self._size(), [mover])
            if still is not None:
                caption = f"a {noun} {text} while a {other} stays still"
                return self._scene(category, caption, [noun, other], expect | {"still": 1}, [mover, still])
        return self._scene(category, f"a {noun} {text}", [noun], expect, [mover])

    def _motion(self) -> Scene:
        direction = self._pick(DIRECTIONS)
        noun = self._noun(direction, True)
        mover = self._travel(0, direction, self._size())
        if self.rng.random() < 0.3:
            second = self._pick(DIRECTIONS)
            other = self._noun(second, False, (noun,))
            for _ in range(50):
                run = self._travel(1, second, self._size())
                apart = abs(run.centres - mover.centres).max(1) > (run.sizes + mover.sizes) / 2 + GAP
                if apart.all():
                    caption = f"a {noun} {MOVES[direction]} and a {other} {MOVES[second]}"
                    expect = {"directions": [direction, second]}
                    return self._scene("motion", caption, [noun, other], expect, [mover, run])
        return self._with_still("motion", noun, mover, MOVES[direction], {"directions": [direction]})

    def _spatial(self) -> Scene:
        relation = self._pick(RELATIONS)
        words, (sx, sy) = RELATIONS[relation]
        noun = self._noun(relation, True)
        other = self._noun("still", False, (noun,))
        sizes = [self._size(), self._size()]
        distance = self.rng.uniform(sum(sizes) / 2 + GAP, 40)
        offset = np.array([sx, sy]) * distance + np.array([sy, sx]) * self.rng.uniform(-4, 4)
        reach = max(sizes) / 2 + 1 + abs(offset) / 2
        middle = self.rng.uniform(reach, SIZE - reach)
        instances = [
            Instance(i, np.tile(middle + sign * offset / 2, (FRAMES, 1)), np.full(FRAMES, sizes[i]))
            for i, sign in enumerate((1, -1))
        ]
        return self._scene(
            "spatial",
            f"a {noun} {words} a {other}",
            [noun, other],
            {"relation": relation},
            instances,
        )

    def _numeracy(self) -> Scene:
        while True:
            word = self._pick(COUNTS)
            nouns = [self._noun(word, True, count=COUNTS[word])]
            if COUNTS[word] <= 3 and self.rng.random() < 0.3:
                second = self._pick(("two", "three"))
                nouns.append(self._noun(second, False, tuple(nouns), COUNTS[second]))
            total = sum(n.count for n in nouns)
            size = self.rng.uniform(13, 17) if total < 5 else self.rng.uniform(12, 14)
            instances: list[Instance] = []
            for index, noun in enumerate(nouns):
                for _ in range(noun.count):
                    instance = self._still(index, size, instances)
                    if instance is not None:
                        instances.append(instance)
            if len(instances) == total:
                words = {2: "two", 3: "three", 4: "four"}
                caption = " and ".join(f"{words[n.count]} {n}s" for n in nouns)
                return self._scene("numeracy", caption, nouns, {}, instances)

    def _consistent_attribute(self) -> Scene:
        while True:
            nouns = [self._noun("pair", True)]
            for _ in range(1 + int(self.rng.random() < 0.35)):
                nouns.append(self._noun("pair", False, tuple(nouns)))
            instances: list[Instance] = []
            for index in range(len(nouns)):
                instance = self._still(index, self._size(), instances)
                if instance is not None:
                    instances.append(instance)
            if len(instances) == len(nouns):
                texts = [f"a {n}" for n in nouns]
                caption = ", ".join(texts[:-1]) + f" and {texts[-1]}"
                return self._scene("consistent_attribute", caption, nouns, {}, instances)

    def _dynamic_attribute(self) -> Scene:
        change = self._pick(CHANGES)
        noun = self._noun(change, True)
        small, large = self.rng.uniform(9, 12), self.rng.uniform(22, 27)
        sizes = {"grows": (small, large), "shrinks": (large, small)}.get(change, (self._size(),) * 2)
        text = change
        if change == "turns":
            colour = self._pick(c for c in COLOURS if c != noun.colour)
            noun = Noun(noun.colour, noun.shape, end_colour=colour)
            text = f"turns {colour}"
        spot = self.rng.uniform(max(sizes) / 2 + 1, SIZE - max(sizes) / 2 - 1, 2)
        changing = Instance(0, np.tile(spot, (FRAMES, 1)), sizes[0] + (sizes[1] - sizes[0]) * TIME)
        caption, nouns, instances = f"a {noun} {text}", [noun], [changing]
        if self.rng.random() < 0.4:
            other = self._noun("still", False, (noun,))
            still = self._still(1, self._size(), [changing])
            if still is not None:
                caption += f" beside a {other}"
                nouns.append(other)
                instances.append(still)
        return self._scene("dynamic_attribute", caption, nouns, {"change": change}, instances)

    def _action(self) -> Scene:
        action = self._pick(ACTIONS)
        noun = self._noun(action, True)
        size = self._size() - 2
        low, high = size / 2 + 1, SIZE - size / 2 - 1
        if action == "bounces":
            x, floor = self.rng.uniform(low, high), self.rng.uniform(high - 8, high)
            height = self.rng.uniform(14, 20)
            centres = np.stack([np.full(FRAMES, x), floor - height * abs(np.sin(2 * np.pi * TIME))], 1)
        elif action == "circles":
            radius = self.rng.uniform(11, 16)
            middle = self.rng.uniform(low + radius, high - radius, 2)
            angle = 2 * np.pi * TIME - np.pi / 2
            centres = middle + radius * np.stack([np.cos(angle), np.sin(angle)], 1)
        else:
            y = self.rng.uniform(low + 8, high - 8)
            across = low + (high - low) * TIME
            centres = np.stack([across, y + 8 * (2 / np.pi) * np.arcsin(np.sin(4 * np.pi * TIME))], 1)
        mover = Instance(0, centres, np.full(FRAMES, size))
        return self._with_still("action", noun, mover, ACTIONS[action], {"action": action})

    def _interaction(self) -> Scene:
        kind = self._pick((*MEETINGS, "follows"))
        noun = self._noun(kind, True)
        other = self._noun("still", False, (noun,))
        sizes = [self._size() - 2, self._size() - 2]
        lane = self.rng.uniform(11, SIZE - 11)
        touch = sum(sizes) / 2 + GAP
        if kind == "follows":
            direction = self._pick(("right", "left"))
            sign = DIRECTIONS[direction][0]
            length = SIZE - 2 - touch - sum(sizes) / 2
            back = sizes[0] / 2 + 1 + length * TIME
            tracks = [back, back + touch]
            if sign < 0:
                tracks = [SIZE - t for t in tracks]
            caption = f"a {noun} follows a {other} to the {direction}"
            expect = {"interaction": kind, "direction": direction}
        else:
            sides = self.rng.permutation(2)
            outer = [sizes[0] / 2 + 1, SIZE - 1 - sizes[1] / 2]
            middle = SIZE / 2 + self.rng.uniform(-2, 2)
            inner = [middle - touch / 2, middle + touch / 2]
            tracks = [o + (i - o) * TIME for o, i in zip(outer, inner, strict=True)]
            if sides[0]:
                tracks = [SIZE - t for t in tracks]
            if kind == "away":
                tracks = [t[::-1] for t in tracks]
            caption = f"a {noun} and a {other} {MEETINGS[kind]}"
            expect = {"interaction": kind}
        instances = [
            Instance(i, np.stack([t, np.full(FRAMES, lane)], 1), np.full(FRAMES, sizes[i]))
            for i, t in enumerate(tracks)
        ]
        return self._scene("interaction", caption, [noun, other], expect, instances)
