"""Scenes with captions and exact ground truth: the world the demo model is taught.

One generator per T2V-CompBench category. A scene is flat coloured shapes on a plain background,
64×64 pixels, 21 frames at 8 fps. Objects are of one size and stand, start and stop on a grid: a world
whose pictures are few enough for a small model to learn, on few enough clips. A quarter of the (colour,
shape, role) combinations never appears in training; prompts built around those are the held-out set.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from ttom_core.evaluation.blobs import BACKGROUNDS, PALETTE, SHAPES

SIZE, FRAMES, FPS = 64, 21, 8
# Pixels: a token of the demo model, from whose corners objects are measured and which they keep between them
# (closer ones share tokens and melt into each other), and an object's own width and height.
GRID, OBJECT = 8, 16
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

    def __len__(self) -> int:
        """How many frames it has."""
        return len(self.instances[0].sizes)

    def in_frames(self, frames: int) -> Scene:
        """The same scene in so many frames, evenly spread over its time."""
        old, new = np.linspace(0, 1, len(self)), np.linspace(0, 1, frames)

        def spread(track: np.ndarray) -> np.ndarray:
            return np.interp(new, old, track)

        instances = tuple(
            replace(i, centres=np.stack([*map(spread, i.centres.T)], 1), sizes=spread(i.sizes))
            for i in self.instances
        )
        return replace(self, instances=instances)

    def render(self, first: int = 0, frames: int | None = None) -> np.ndarray:
        """Draw the scene (or only `frames` of it), anti-aliased, as uint8 [frames, H, W, 3]."""
        time = np.linspace(0, 1, len(self))
        frames = len(self) if frames is None else frames
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
                colour = start + (end - start) * time[f]
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

    def __init__(self, seed: int, held_out: bool = False, frames: int = FRAMES) -> None:
        self.rng = np.random.default_rng(seed)
        self.held_out, self.frames = held_out, frames

    def sample(self, category: str | None = None) -> Scene:
        """Draw one scene of a category (by default any, or one lone object)."""
        if category is None:
            options = (*CATEGORIES, "single")
            category = options[self.rng.integers(len(options))]
        scene: Scene = getattr(self, f"_{category}")()
        if self.rng.random() >= 0.5:
            scene = replace(scene, caption=f"{scene.caption} on a {scene.background} background")
        return scene if self.frames == FRAMES else scene.in_frames(self.frames)

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

    def _on_grid(self, low: float, high: float) -> float:
        """A random multiple of GRID from low to high."""
        return float(GRID * self.rng.integers(int(np.ceil(low / GRID)), int(high // GRID) + 1))

    def _scene(self, category, caption, nouns, expect, instances) -> Scene:
        background = self._pick(BACKGROUNDS)
        return Scene(category, caption, tuple(nouns), expect, tuple(instances), background)

    def _still(self, noun: int, taken: list[Instance]) -> Instance | None:
        """One that keeps clear of all others in every frame, if there is room."""
        places = np.arange(OBJECT / 2, SIZE - OBJECT / 2 + 1, GRID)
        spots = np.stack(np.meshgrid(places, places), -1).reshape(-1, 2)
        for other in taken:
            apart = abs(other.centres[:, None] - spots).max(2) >= (other.sizes[:, None] + OBJECT) / 2 + GRID
            spots = spots[apart.all(0)]
        if not len(spots):
            return None
        spot = spots[self.rng.integers(len(spots))]
        return Instance(noun, np.tile(spot, (FRAMES, 1)), np.full(FRAMES, float(OBJECT)))

    def _travel(self, noun: int, direction: str) -> Instance:
        """A straight run of 24 or 32 pixels at constant speed."""
        step = np.array(DIRECTIONS[direction], float)
        length = self._on_grid(24, 32)
        low, high = np.full(2, OBJECT / 2), np.full(2, SIZE - OBJECT / 2)
        low, high = np.where(step < 0, low + length, low), np.where(step > 0, high - length, high)
        start = np.array([self._on_grid(*ends) for ends in zip(low, high, strict=True)])
        return Instance(noun, start + TIME[:, None] * step * length, np.full(FRAMES, float(OBJECT)))

    # One generator per category -----------------------------------------------------------------

    def _single(self) -> Scene:
        noun = Noun(self._pick(COLOURS), self._pick(SHAPES))
        instance = self._still(0, [])
        return self._scene("single", f"a {noun}", [noun], {}, [instance])

    def _with_still(self, category, noun, mover, text, expect) -> Scene:
        """The mover alone, or beside an object that stays where it is."""
        if self.rng.random() < 0.5:
            other = self._noun("still", False, (noun,))
            still = self._still(1, [mover])
            if still is not None:
                caption = f"a {noun} {text} while a {other} stays still"
                return self._scene(category, caption, [noun, other], expect | {"still": 1}, [mover, still])
        return self._scene(category, f"a {noun} {text}", [noun], expect, [mover])

    def _motion(self) -> Scene:
        direction = self._pick(DIRECTIONS)
        noun = self._noun(direction, True)
        mover = self._travel(0, direction)
        if self.rng.random() < 0.3:
            second = self._pick(DIRECTIONS)
            other = self._noun(second, False, (noun,))
            for _ in range(50):
                run = self._travel(1, second)
                if (abs(run.centres - mover.centres).max(1) >= OBJECT + GRID).all():
                    caption = f"a {noun} {MOVES[direction]} and a {other} {MOVES[second]}"
                    expect = {"directions": [direction, second]}
                    return self._scene("motion", caption, [noun, other], expect, [mover, run])
        return self._with_still("motion", noun, mover, MOVES[direction], {"directions": [direction]})

    def _spatial(self) -> Scene:
        relation = self._pick(RELATIONS)
        words, (sx, sy) = RELATIONS[relation]
        noun = self._noun(relation, True)
        other = self._noun("still", False, (noun,))
        offset = np.array([sx, sy]) * self._on_grid(OBJECT + GRID, 40)
        offset += np.array([abs(sy), abs(sx)]) * self._on_grid(-GRID, GRID)
        edge = np.full(2, OBJECT / 2)
        low, high = np.maximum(edge, edge - offset), np.minimum(SIZE - edge, SIZE - edge - offset)
        second = np.array([self._on_grid(*ends) for ends in zip(low, high, strict=True)])
        instances = [
            Instance(i, np.tile(centre, (FRAMES, 1)), np.full(FRAMES, float(OBJECT)))
            for i, centre in enumerate((second + offset, second))
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
            instances: list[Instance] = []
            for index, noun in enumerate(nouns):
                for _ in range(noun.count):
                    instance = self._still(index, instances)
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
                instance = self._still(index, instances)
                if instance is not None:
                    instances.append(instance)
            if len(instances) == len(nouns):
                texts = [f"a {n}" for n in nouns]
                caption = ", ".join(texts[:-1]) + f" and {texts[-1]}"
                return self._scene("consistent_attribute", caption, nouns, {}, instances)

    def _dynamic_attribute(self) -> Scene:
        change = self._pick(CHANGES)
        noun = self._noun(change, True)
        small, large = 10, OBJECT + GRID
        sizes = {"grows": (small, large), "shrinks": (large, small)}.get(change, (OBJECT, OBJECT))
        text = change
        if change == "turns":
            colour = self._pick(c for c in COLOURS if c != noun.colour)
            noun = Noun(noun.colour, noun.shape, end_colour=colour)
            text = f"turns {colour}"
        spot = np.array([self._on_grid(max(sizes) / 2, SIZE - max(sizes) / 2) for _ in range(2)])
        changing = Instance(0, np.tile(spot, (FRAMES, 1)), sizes[0] + (sizes[1] - sizes[0]) * TIME)
        caption, nouns, instances = f"a {noun} {text}", [noun], [changing]
        if self.rng.random() < 0.4:
            other = self._noun("still", False, (noun,))
            still = self._still(1, [changing])
            if still is not None:
                caption += f" beside a {other}"
                nouns.append(other)
                instances.append(still)
        return self._scene("dynamic_attribute", caption, nouns, {"change": change}, instances)

    def _action(self) -> Scene:
        action = self._pick(ACTIONS)
        noun = self._noun(action, True)
        low, high = OBJECT / 2, SIZE - OBJECT / 2
        if action == "bounces":
            x, floor = self._on_grid(low, high), self._on_grid(high - GRID, high)
            centres = np.stack([np.full(FRAMES, x), floor - 2 * GRID * abs(np.sin(2 * np.pi * TIME))], 1)
        elif action == "circles":
            middle = np.array([self._on_grid(low + 2 * GRID, high - 2 * GRID) for _ in range(2)])
            angle = 2 * np.pi * TIME - np.pi / 2
            centres = middle + 2 * GRID * np.stack([np.cos(angle), np.sin(angle)], 1)
        else:
            y = self._on_grid(low + GRID, high - GRID)
            across = low + (high - low) * TIME
            centres = np.stack([across, y + GRID * (2 / np.pi) * np.arcsin(np.sin(4 * np.pi * TIME))], 1)
        mover = Instance(0, centres, np.full(FRAMES, float(OBJECT)))
        return self._with_still("action", noun, mover, ACTIONS[action], {"action": action})

    def _interaction(self) -> Scene:
        kind = self._pick((*MEETINGS, "follows"))
        noun = self._noun(kind, True)
        other = self._noun("still", False, (noun,))
        low, high, touch = OBJECT / 2, SIZE - OBJECT / 2, OBJECT + GRID
        lane = self._on_grid(low, high)
        if kind == "follows":
            direction = self._pick(("right", "left"))
            back = low + (high - low - touch) * TIME
            tracks = [back, back + touch]
            if DIRECTIONS[direction][0] < 0:
                tracks = [SIZE - t for t in tracks]
            caption = f"a {noun} follows a {other} to the {direction}"
            expect = {"interaction": kind, "direction": direction}
        else:
            tracks = [low + ((SIZE - touch) / 2 - low) * TIME, high + ((SIZE + touch) / 2 - high) * TIME]
            if self.rng.random() < 0.5:
                tracks = [SIZE - t for t in tracks]
            if kind == "away":
                tracks = [t[::-1] for t in tracks]
            caption = f"a {noun} and a {other} {MEETINGS[kind]}"
            expect = {"interaction": kind}
        instances = [
            Instance(i, np.stack([t, np.full(FRAMES, lane)], 1), np.full(FRAMES, float(OBJECT)))
            for i, t in enumerate(tracks)
        ]
        return self._scene("interaction", caption, [noun, other], expect, instances)
