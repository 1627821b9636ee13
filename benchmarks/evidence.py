"""Where the method stands on held-out prompts: on the demo model, and on its CogVideoX sibling.

    python benchmarks/evidence.py                # all 210 held-out prompts
    python benchmarks/evidence.py --limit 14
    python benchmarks/evidence.py cogvideox      # text and video share one attention there

Every method has the same prompts, plans, seeds and steps. Composition, presence and distortion, overall
and by category (the paper's table 1), with paired differences. Resumable: a clip is a line in rows.jsonl;
its frames are kept beside it, for benchmarks/report.py. Writes results/evidence.json or cogvideox.json and
their .png, which fewer prompts or steps replace only with --force.

On the demo model it is base, TTO, its rivals and our best preset, then base and the moved latents with the
best preset's early end of guidance, a prompt taking about 95 s of one core: all of them 85 minutes on four
cores, 49 of them 20. On the sibling it is base, TTO, moved latents, our best preset there and the demo
model's; then the adapter on the features, and the paper's on all that the loss depends on: at all loss
layers, at four, on these four alone, and with the other two kinds of map; 135 s a prompt.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ttom_core.errors import TTOMError
from ttom_core.evaluation.comparison import Comparison, against, compare
from ttom_core.evaluation.evaluate import estimate, load_prompts, markdown
from ttom_core.evaluation.pool import Row, progress
from ttom_core.evaluation.results import insist_on_more
from ttom_core.optimize import PRESETS

ROOT = Path(__file__).resolve().parent.parent
END = {"guidance_until_sigma": PRESETS["best"].guidance_until_sigma}
METHODS = {"base": None, "tto": PRESETS["demo"]} | {
    name: PRESETS[name] for name in ("lvd", "latent", "noise", "best")
}
# What of the best preset is its guidance that ends early: the others with that alone changed.
METHODS |= {
    "base_early_guidance": PRESETS["demo"].model_copy(update=END | {"iterations": 0}),
    "latent_early_guidance": PRESETS["latent"].model_copy(update=END),
}
REACHABLE = PRESETS["demo"].model_copy(update={"scope": "reachable", "learning_rate": 1e-3})
DEEP = REACHABLE.model_copy(update={"layers": (3, 4, 5, 6)})  # at all layers `selected` would be `reachable`
JOINT = {
    "base": None,
    "tto": PRESETS["demo_cogvideox"],
    "latent": PRESETS["latent"],
    "best": PRESETS["best_cogvideox"],
    "early_guidance": PRESETS["best"],
    "features": PRESETS["demo"],
    "reachable": REACHABLE,
    "deep": DEEP,
    "deep_selected": DEEP.model_copy(update={"scope": "selected"}),
    "text_to_video": REACHABLE.model_copy(update={"joint_map": "text_to_video"}),
    "renormalized": REACHABLE.model_copy(update={"joint_map": "renormalized"}),
}
PAIRS = (
    *((name, "base") for name in METHODS if name != "base"),
    ("tto", "lvd"),
    *(("best", name) for name in ("tto", "lvd", "latent", "noise")),
    ("latent_early_guidance", "latent"),
    ("best", "latent_early_guidance"),
)


def goals(
    rows: dict[str, list[Row]], times: float, percent: int, methods: Sequence[str] = ("tto",)
) -> dict[str, dict[str, Any]]:
    """Each goal as a mean that is above 0 where it is reached: so many times the base model's score, and so
    many percent of its gap to 1."""
    found = {}
    for name in methods:
        pairs = [(t["composition"], b["composition"]) for t, b in zip(rows[name], rows["base"], strict=True)]
        found[f"{name}_above_{times}_base"] = estimate(
            [t - times * b for t, b in pairs], f"{name} − {times} × base, composition"
        )
        found[f"{name}_above_{percent}_percent_of_gap"] = estimate(
            [t - b - percent / 100 * (1 - b) for t, b in pairs],
            f"gain − {percent} % of the base model's gap to 1, composition",
        )
    return found


class Question(NamedTuple):
    """A comparison, the demo model that it asks, and how many prompts."""

    comparison: Comparison
    model: Path
    limit: int


QUESTIONS = {
    "evidence": Question(
        Comparison(
            "Table 1: where do the methods stand?",
            METHODS,
            PAIRS,
            "held_out",
            by_category=True,
            extra=partial(goals, times=2.5, percent=60),
        ),
        ROOT / "demo" / "model",
        210,
    ),
    "cogvideox": Question(
        Comparison(
            "Does it work where text and video share one attention?",
            JOINT,
            (
                *against("base", JOINT),
                ("best", "tto"),
                ("best", "latent"),
                ("best", "early_guidance"),
                *(("reachable", name) for name in ("deep", "text_to_video", "renormalized")),
                ("deep_selected", "deep"),
            ),
            "held_out",
            by_category=True,
            extra=partial(goals, times=1.7, percent=50, methods=("tto", "best")),
        ),
        ROOT / "demo" / "cogvideox",
        105,
    ),
}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("name", nargs="?", choices=QUESTIONS, default="evidence", help="(default: evidence)")
    parser.add_argument("--model", help="a diffusers folder (default: the demo model, or its sibling)")
    parser.add_argument("--limit", type=int, help="held-out prompts (default: all 210, or 105)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default 20)")
    parser.add_argument("--workers", type=int, help="processes of one thread each (default: the cores)")
    parser.add_argument("--out", type=Path, default=Path("outputs/evidence"), help="of rows and frames")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--force", action="store_true", help="replace a result that tells of more")
    options = parser.parse_args(arguments)
    name, (comparison, model, limit) = options.name, QUESTIONS[options.name]
    limit = limit if options.limit is None else options.limit
    which = "" if name == "evidence" else f" {name}"
    try:
        prompts = load_prompts(ROOT / "demo" / "prompts" / "held_out.json", limit)
        if not options.force:
            insist_on_more(options.results / f"{name}.json", len(prompts), options.steps)
        with progress(name) as on_row:
            figures = compare(
                name,
                comparison,
                options.model or str(model),
                prompts,
                options.out / "rows.jsonl",
                options.results,
                command=f"python benchmarks/evidence.py{which} --limit {limit} --steps {options.steps}",
                steps=options.steps,
                workers=options.workers,
                pictures=options.out / "strips",
                on_row=on_row,
            )
    except TTOMError as error:
        print(f"evidence: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("evidence: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    print(markdown(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
