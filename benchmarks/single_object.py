"""Does the demo model draw what it was taught? One object per clip: present, single, in its shape.

    python benchmarks/single_object.py [--seeds 6] [--workers 4]

A clip counts when at least four fifths of its frames show exactly the named object and nothing else.
Writes results/single_object.json.
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ttom_core.evaluation.blobs import PALETTE, SHAPES
from ttom_core.evaluation.evaluate import estimate
from ttom_core.evaluation.pool import backbone_of, identity_of, in_workers
from ttom_core.evaluation.results import write_result
from ttom_core.evaluation.scores import score

RESULT = Path(__file__).parent / "results" / "single_object.json"


def shown(backbone: Any, job: tuple[str, str, str, int]) -> float:
    """1 if the clip of one caption and seed shows its object, alone, else 0."""
    from ttom_core.generate import generate

    colour, shape, text, seed = job
    noun = {"colour": colour, "shape": shape, "count": 1, "end_colour": None}
    clip = generate(backbone, f"a {colour} {shape}{text}", seed=seed)
    spec = {"category": "single", "nouns": [noun], "expect": {}}
    return float(score(clip.frames, spec).composition >= 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    figures = {}
    for name, text in (("still", ""), ("moving", " moves to the right")):
        nouns = list(itertools.product(PALETTE, SHAPES)) * options.seeds
        jobs = {str(seed): (colour, shape, text, seed) for seed, (colour, shape) in enumerate(nouns)}
        made = in_workers(shown, jobs, options.model, options.workers)
        good = [value for _, value in tqdm(made, total=len(jobs), desc=name)]
        figures[name] = estimate(sorted(good), "share of clips")
        value, low, high = (figures[name][key] for key in ("value", "low", "high"))
        print(f"{name}: {value:.3f} ({low:.3f}–{high:.3f}) of {len(good)} clips")
    command = f"python benchmarks/single_object.py --seeds {options.seeds}"
    write_result(RESULT, command, 0, figures, {"model": identity_of(backbone_of(options.model))})


if __name__ == "__main__":
    main()
