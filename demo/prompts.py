"""Write the held-out, tuning and memory prompts with their expectations: `python -m demo.prompts`.

The first two are built around combinations that training never sees: settings are chosen on
`tuning.json`, figures are quoted on `held_out.json`, and they share no prompt. What a memory has
solved before (`memory.json`, 200 prompts) is built around the others, so it holds no held-out scene.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

from .scenes import CATEGORIES, Scene, SceneSampler

FOLDER = Path(__file__).parent / "prompts"


def spec(scene: Scene) -> dict[str, object]:
    """What a prompt says, in the form `ttom_core.evaluation.scores` checks."""
    nouns = [asdict(noun) for noun in scene.nouns]
    return {
        "category": scene.category,
        "prompt": scene.caption,
        "nouns": nouns,
        "expect": scene.expect,
    }


def collect(
    seed: int, per_category: int, exclude: set[str], held_out: bool = True
) -> list[dict[str, object]]:
    """Distinct prompts, the categories in turn."""
    sampler, rows, seen = SceneSampler(seed, held_out), [], set(exclude)
    for _ in range(per_category):
        for category in CATEGORIES:
            while (scene := sampler.sample(category)).caption in seen:
                pass
            seen.add(scene.caption)
            rows.append(spec(scene))
    return rows


def main() -> None:
    held_out = collect(seed=7001, per_category=30, exclude=set())
    tuning = collect(seed=7002, per_category=12, exclude={str(row["prompt"]) for row in held_out})
    memory = collect(seed=7003, per_category=29, exclude=set(), held_out=False)[:200]
    FOLDER.mkdir(exist_ok=True)
    for name, rows in (("held_out", held_out), ("tuning", tuning), ("memory", memory)):
        text = ",\n".join(json.dumps(row) for row in rows)
        (FOLDER / f"{name}.json").write_text(f"[\n{text}\n]\n")


if __name__ == "__main__":
    main()
