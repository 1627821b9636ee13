"""A question, the methods that answer it, and its table: result file and chart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..pictures import beside, interval_chart, save_video
from .evaluate import QUALITIES, Methods, evaluate, figures, frames_of
from .pool import Row, backbone_of, identity_of
from .results import write_result


@dataclass(frozen=True)
class Comparison:
    """Methods by name, the settings of each (None: the base model), and which pairs are told apart.

    `split` names the prompts: "tuning" where settings are chosen, "held_out" where figures are quoted.
    """

    question: str
    methods: Methods
    pairs: tuple[tuple[str, str], ...]
    split: str
    by_category: bool = False
    extra: Callable[[dict[str, list[Row]]], dict[str, dict[str, Any]]] | None = field(
        default=None, repr=False
    )

    @property
    def reference(self) -> str:
        """What the others are compared with: the second of the first pair."""
        return self.pairs[0][1]


def against(reference: str, methods: Methods) -> tuple[tuple[str, str], ...]:
    """Every other method beside one."""
    return tuple((name, reference) for name in methods if name != reference)


def compare(
    name: str,
    comparison: Comparison,
    model: str,
    prompts: list[dict[str, Any]],
    rows_path: Path,
    results: Path,
    *,
    command: str,
    seed: int = 0,
    steps: int = 20,
    workers: int | None = None,
    pictures: Path | None = None,
    on_row: Callable[[int, Row], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Make what is missing of a comparison, and write results/NAME.json and results/NAME.png.

    With `pictures`, where all clips' frames are kept, also results/NAME/CATEGORY.mp4: the methods beside
    each other at the first prompt of each category.
    """
    rows = evaluate(
        model,
        prompts,
        comparison.methods,
        rows_path,
        seed=seed,
        steps=steps,
        workers=workers,
        pictures=pictures,
        on_row=on_row,
    )
    table = figures(rows, comparison.pairs, comparison.by_category)
    if comparison.extra:
        table |= comparison.extra(rows)
    settings: dict[str, Any] = {
        "question": comparison.question,
        "prompts": comparison.split,
        "model": identity_of(backbone_of(model)),
        "steps": steps,
        "methods": {
            method: chosen.model_dump(mode="json") if chosen else None
            for method, chosen in comparison.methods.items()
        },
        "pairs": [list(pair) for pair in comparison.pairs],
    }
    if pictures:
        fps = backbone_of(model).fps
        settings["videos"] = _videos(rows, pictures, results / name, fps)
    write_result(results / f"{name}.json", command, seed, table, settings)
    panels = {}
    for quality in QUALITIES:
        found = {method: table[f"{method}_{quality}"] for method in comparison.methods}
        panels[quality] = {method: (f["value"], f["low"], f["high"]) for method, f in found.items()}
    interval_chart(panels, results / f"{name}.png", comparison.reference)
    return table


def _videos(rows: dict[str, list[Row]], pictures: Path, folder: Path, fps: int) -> list[dict[str, Any]]:
    """A video a category: its first prompt by every method."""
    folder.mkdir(parents=True, exist_ok=True)
    told: dict[str, dict[str, Any]] = {}
    for members in zip(*rows.values(), strict=True):
        first = members[0]
        if first["category"] in told:
            continue
        clips = {method: frames_of(row, pictures) for method, row in zip(rows, members, strict=True)}
        file = f"{first['category']}.mp4"
        save_video(beside(clips), folder / file, fps)
        told[first["category"]] = {
            "file": f"{folder.name}/{file}",
            "prompt": first["prompt"],
            "category": first["category"],
            "seed": first["seed"],
        }
    return list(told.values())
