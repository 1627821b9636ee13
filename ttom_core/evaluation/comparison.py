"""A question, the methods that answer it, and its table: result file and chart."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..pictures import interval_chart
from .evaluate import QUALITIES, Methods, evaluate, figures
from .pool import Row
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
    """Make what is missing of a comparison, and write results/NAME.json and results/NAME.png."""
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
    settings = {
        "question": comparison.question,
        "prompts": comparison.split,
        "steps": steps,
        "methods": {
            method: chosen.model_dump(mode="json") if chosen else None
            for method, chosen in comparison.methods.items()
        },
        "pairs": [list(pair) for pair in comparison.pairs],
    }
    write_result(results / f"{name}.json", command, seed, table, settings)
    panels = {}
    for quality in QUALITIES:
        found = {method: table[f"{method}_{quality}"] for method in comparison.methods}
        panels[quality] = {method: (f["value"], f["low"], f["high"]) for method, f in found.items()}
    interval_chart(panels, results / f"{name}.png", comparison.reference)
    return table
