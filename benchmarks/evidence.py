"""Where the method stands: base, TTO, its rivals and our best preset on held-out prompts.

    python benchmarks/evidence.py                # all 210 held-out prompts
    python benchmarks/evidence.py --limit 14

Every method has the same prompts, plans, seeds and steps. Composition, presence and distortion, overall
and by category (the paper's table 1), with paired differences. Resumable: a clip is a line in rows.jsonl;
its frames are kept beside it, for benchmarks/report.py. Writes results/evidence.json and .png, which fewer
prompts or steps replace only with --force.

A prompt takes about 85 s of one core, by six methods: all of them 75 minutes on four cores, 49 of them 17.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from ttom_core.errors import TTOMError
from ttom_core.evaluation.comparison import Comparison, compare
from ttom_core.evaluation.evaluate import estimate, load_prompts, markdown
from ttom_core.evaluation.pool import Row, progress
from ttom_core.evaluation.results import insist_on_more
from ttom_core.optimize import PRESETS

ROOT = Path(__file__).resolve().parent.parent
METHODS = {"base": None, "tto": PRESETS["demo"]} | {
    name: PRESETS[name] for name in ("lvd", "latent", "noise", "best")
}
PAIRS = (
    *((name, "base") for name in METHODS if name != "base"),
    ("tto", "lvd"),
    *(("best", name) for name in ("tto", "lvd", "latent", "noise")),
)


def goals(rows: dict[str, list[Row]]) -> dict[str, dict[str, Any]]:
    """Each goal for TTO alone as a mean that is above 0 where it is reached."""
    pairs = [(t["composition"], b["composition"]) for t, b in zip(rows["tto"], rows["base"], strict=True)]
    return {
        "tto_above_2.5_base": estimate([t - 2.5 * b for t, b in pairs], "TTO − 2.5 × base, composition"),
        "tto_above_60_percent_of_gap": estimate(
            [t - b - 0.6 * (1 - b) for t, b in pairs], "gain − 60 % of the base model's gap to 1, composition"
        ),
    }


EVIDENCE = Comparison(
    "Table 1: where do the methods stand?", METHODS, PAIRS, "held_out", by_category=True, extra=goals
)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "demo" / "model"))
    parser.add_argument("--limit", type=int, default=210, help="held-out prompts (default 210: all)")
    parser.add_argument("--steps", type=int, default=20, help="denoising steps (default 20)")
    parser.add_argument("--workers", type=int, help="processes of one thread each (default: the cores)")
    parser.add_argument("--out", type=Path, default=Path("outputs/evidence"), help="of rows and frames")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--force", action="store_true", help="replace a result that tells of more")
    options = parser.parse_args(arguments)
    try:
        prompts = load_prompts(ROOT / "demo" / "prompts" / "held_out.json", options.limit)
        if not options.force:
            insist_on_more(options.results / "evidence.json", len(prompts), options.steps)
        with progress("evidence") as on_row:
            figures = compare(
                "evidence",
                EVIDENCE,
                options.model,
                prompts,
                options.out / "rows.jsonl",
                options.results,
                command=f"python benchmarks/evidence.py --limit {options.limit} --steps {options.steps}",
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
