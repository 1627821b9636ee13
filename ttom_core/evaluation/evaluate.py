"""Held-out evaluation: methods beside each other at the same prompts, plans and seeds, with intervals.

A method is the settings of its optimisation, or None for the base model. Every clip is one row under a
key of all that decides it, so runs with methods or prompts in common share their clips, and an
interrupted run continues.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import TTOMError
from .pool import Row, backbone_of, code_of, digest, identity_of, rows_of
from .scores import score

if TYPE_CHECKING:
    from ..adapter import Adapter
    from ..backbones import Source
    from ..backbones.base import Backbone
    from ..optimize import TTOSettings

QUALITIES = ("composition", "presence", "distortion")
# The code that decides a row beside model, prompt and settings. When it changes, rows of before count for
# nothing. Backbones are left out: they change with every new host, and tests hold the maps they give.
OPTIMISING = ("adapter", "attention", "generate", "latents", "masks", "objectives", "optimize")
SCORING = ("evaluation/blobs", "evaluation/distortion", "evaluation/scores")
Methods = Mapping[str, "TTOSettings | None"]


def load_prompts(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Read prompts with expectations; `limit` keeps the first ones, the categories being in turn."""
    try:
        rows = json.loads(path.read_text())
        for row in rows:
            assert {"category", "prompt", "nouns", "expect"} <= row.keys()
    except (OSError, ValueError, AssertionError, AttributeError, TypeError) as error:
        raise TTOMError(
            f"{path} is not a list of prompts with category, prompt, nouns and expect; "
            "make one with `python -m demo.prompts`."
        ) from error
    if limit is not None and limit < 1:
        raise TTOMError(f"The limit must be at least 1 prompt, not {limit}.")
    return rows[:limit]


# Clips --------------------------------------------------------------------------------------------


class Clip(NamedTuple):
    """One clip to make and score: a prompt with its expectations, by one method."""

    spec: dict[str, Any]
    settings: TTOSettings | None
    seed: int
    steps: int
    picture: str | None = None  # where its frames are kept

    def key(self, model: str) -> str:
        """What decides the row: the model (`identity_of`), the plan and the code included.

        The base model's is the same beside every method, and whatever becomes of the optimisation.
        """
        guided = None
        if self.settings:
            layout = _planned(self.spec["prompt"])
            guided = [self.settings.model_dump(mode="json"), layout, _code(*OPTIMISING)]
        return digest([_code(*SCORING), model, self.spec, guided, self.seed, self.steps])


_code = cache(code_of)


@cache
def _planned(prompt: str) -> str:
    from ..planner import plan

    return plan(prompt).to_json()


def make_clip(backbone: Backbone, clip: Clip, adapter: Adapter | None = None) -> Row:
    """Generate and score one clip, in a worker; `adapter` is where the optimisation starts."""
    from ..generate import generate
    from ..planner import plan

    prompt = clip.spec["prompt"]
    layout = plan(prompt) if clip.settings else None
    sampling = {"seed": clip.seed, "steps": clip.steps, **backbone.trained_clip.size}
    made = generate(backbone, prompt, layout, clip.settings, adapter=adapter, **sampling)  # type: ignore[arg-type]
    if clip.picture:
        save_frames(made.frames, Path(clip.picture))
    scored = score(made.frames, clip.spec)
    return {
        "prompt": prompt,
        "category": clip.spec["category"],
        "seed": clip.seed,
        **{quality: getattr(scored, quality) for quality in QUALITIES},
        "seconds": made.seconds,
        "first_loss": made.trace.first_loss if made.trace else None,
        "last_loss": made.trace.last_loss if made.trace else None,
    }


def evaluate(
    model: str | Source,
    prompts: list[dict[str, Any]],
    methods: Methods,
    rows_path: Path,
    *,
    seed: int = 0,
    steps: int = 20,
    workers: int | None = None,
    pictures: Path | None = None,
    on_row: Callable[[int, Row], None] | None = None,
) -> dict[str, list[Row]]:
    """The rows of each method, in the prompts' order, their noise being seed + the prompt's index.

    Continues `rows_path`. With `pictures`, each prompt's methods are kept there beside each other with
    their layout, and the frames of every clip (`frames_of`). `on_row(left, row)` is called for each new row.
    """
    if not methods:
        raise TTOMError("There is no method to evaluate; name at least one.")
    _code.cache_clear()  # the workers are new processes, with the code as it is now
    identity = identity_of(backbone_of(model))
    wanted: dict[str, list[str]] = {name: [] for name in methods}
    jobs: dict[str, Clip] = {}
    for name, settings in methods.items():
        for index, spec in enumerate(prompts):
            clip = Clip(spec, settings, seed + index, steps)
            key = clip.key(identity)
            wanted[name].append(key)
            jobs[key] = clip._replace(picture=str(_picture(pictures, key))) if pictures else clip
    unseen = {key for key, clip in jobs.items() if clip.picture and not Path(clip.picture).exists()}
    found = rows_of(make_clip, jobs, model, rows_path, again=unseen, workers=workers, on_row=on_row)
    rows = {name: [found[key] for key in keys] for name, keys in wanted.items()}
    if pictures:
        for index, spec in enumerate(prompts):
            _keep_strip(pictures, spec, {name: members[index] for name, members in rows.items()})
    return rows


def _picture(folder: Path, key: str) -> Path:
    return folder / "clips" / f"{key}.png"


def frames_of(row: Row, pictures: Path) -> np.ndarray:
    """The frames of a row's clip, uint8 [F, H, W, 3], as an evaluation kept them in its `pictures`."""
    return load_frames(_picture(pictures, row["key"]))


def save_frames(frames: np.ndarray, path: Path) -> None:
    """Frames uint8 [F, H, W, 3] as one lossless picture, one under the other, whole or not at all."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    count, height, width, _ = frames.shape
    part = path.with_name(path.name + ".part")
    sheet = Image.fromarray(frames.reshape(count * height, width, 3))
    sheet.save(part, "PNG", optimize=True)
    part.replace(path)


def load_frames(path: Path) -> np.ndarray:
    """What `save_frames` kept, of a clip whose frames are square."""
    from PIL import Image

    with Image.open(path) as sheet:
        pixels = np.asarray(sheet.convert("RGB"))
    side = pixels.shape[1]
    return pixels.reshape(-1, side, side, 3)


def _keep_strip(folder: Path, spec: dict[str, Any], rows: Mapping[str, Row]) -> None:
    """One prompt's methods beside each other with their layout."""
    from ..pictures import draw_layout, strip
    from ..planner import plan

    layout = plan(spec["prompt"])
    clips = {name: draw_layout(frames_of(row, folder), layout) for name, row in rows.items()}
    words = "_".join(spec["prompt"].replace(",", "").split())[:80]
    seed = next(iter(rows.values()))["seed"]
    strip(clips).save(folder / f"{spec['category']}_{seed}_{words}.png")


# Figures ------------------------------------------------------------------------------------------


def bootstrap(values: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float, float]:
    """Mean with its 95 % percentile interval over prompts."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    return float(values.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def estimate(values: Sequence[float] | np.ndarray, unit: str) -> dict[str, Any]:
    """A result file's figure: the mean with its 95 % interval."""
    mean, low, high = bootstrap(np.asarray(values, float))
    return {
        "value": round(mean, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "n": len(values),
        "unit": unit,
    }


def quartiles(seconds: Sequence[float] | np.ndarray, unit: str) -> dict[str, Any]:
    """A result file's figure: the median with the quartiles."""
    low, median, high = (round(float(x), 3) for x in np.quantile(seconds, (0.25, 0.5, 0.75)))
    return {"value": median, "low": low, "high": high, "n": len(seconds), "unit": unit}


def figures(
    rows: Mapping[str, list[Row]], pairs: Iterable[tuple[str, str]] = (), by_category: bool = True
) -> dict[str, dict[str, Any]]:
    """A result file's figures: METHOD_QUALITY of each method, and QUALITY_of_A_over_B of each pair.

    Both overall and, with the category's name behind it, by category; of each method also its seconds a
    clip. A pair's is the mean of A − B at the same prompt and seed.
    """
    pairs = list(pairs)
    table = {}
    for suffix, chosen in _groups(rows, by_category).items():
        for method, members in rows.items():
            for quality in QUALITIES:
                values = [members[i][quality] for i in chosen]
                table[f"{method}_{quality}{suffix}"] = estimate(values, "score 0-1")
        for first, second in pairs:
            for quality in QUALITIES:
                gains = [rows[first][i][quality] - rows[second][i][quality] for i in chosen]
                name = f"{quality}_of_{first}_over_{second}{suffix}"
                table[name] = estimate(gains, "paired difference")
    for method, members in rows.items():
        seconds = [row["seconds"] for row in members]
        table[f"{method}_seconds"] = quartiles(seconds, "s a clip, one thread, median and quartiles")
    return table


def _groups(rows: Mapping[str, list[Row]], by_category: bool) -> dict[str, list[int]]:
    """The rows' indices of all, under "", and of each category, under _CATEGORY."""
    first = next(iter(rows.values()))
    groups: dict[str, list[int]] = {"": list(range(len(first)))}
    if by_category:
        for index, row in enumerate(first):
            groups.setdefault(f"_{row['category']}", []).append(index)
    return groups


def markdown(table: Mapping[str, dict[str, Any]]) -> str:
    """The figures as a table of composition and presence, one row a category."""
    methods = [name.removesuffix("_seconds") for name in table if name.endswith("_seconds")]
    start = f"{methods[0]}_composition"
    categories = [name.removeprefix(start) for name in table if name.startswith(start)]
    columns = [f"{method}_{quality}" for quality in QUALITIES[:2] for method in methods]
    lines = [
        "| category | prompts | " + " | ".join(column.replace("_", " ") for column in columns) + " |",
        "|---" * (len(columns) + 2) + "|",
    ]
    for suffix in categories:
        cells = [
            suffix.lstrip("_").replace("_", " ") or "**all**",
            str(table[start + suffix]["n"]),
        ]
        for column in columns:
            f = table[column + suffix]
            cells.append(f"{f['value']:.2f} ({f['low']:.2f}–{f['high']:.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)
