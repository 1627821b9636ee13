"""Does the demo model draw what it was taught? One object per clip: present, single, in its shape.

    python benchmarks/single_object.py [--seeds 6] [--workers 4]

A clip counts when at least four fifths of its frames show exactly the named object and nothing else.
Writes results/single_object.json.
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import cache, partial
from pathlib import Path

from ttom_core.backbones import load
from ttom_core.evaluation.blobs import PALETTE, SHAPES
from ttom_core.evaluation.evaluate import estimate
from ttom_core.evaluation.results import write_result
from ttom_core.evaluation.scores import score

RESULT = Path(__file__).parent / "results" / "single_object.json"


_load = cache(load)


def shown(job: tuple[str, str, str, int], model: str) -> float:
    """1 if the clip of one caption and seed shows its object, alone, else 0."""
    import torch

    from ttom_core.generate import generate

    torch.set_num_threads(1)
    colour, shape, text, seed = job
    noun = {"colour": colour, "shape": shape, "count": 1, "end_colour": None}
    clip = generate(_load(model), f"a {colour} {shape}{text}", seed=seed)
    spec = {"category": "single", "nouns": [noun], "expect": {}}
    return float(score(clip.frames, spec).composition >= 0.8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default="demo/model")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--workers", type=int, default=None)
    options = parser.parse_args()
    figures = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(options.workers, context) as pool:
        for name, text in (("still", ""), ("moving", " moves to the right")):
            nouns = list(itertools.product(PALETTE, SHAPES)) * options.seeds
            jobs = [(colour, shape, text, seed) for seed, (colour, shape) in enumerate(nouns)]
            good = list(pool.map(partial(shown, model=options.model), jobs, chunksize=4))
            figures[name] = estimate(good, "share of clips")
            value, low, high = (figures[name][key] for key in ("value", "low", "high"))
            print(f"{name}: {value:.3f} ({low:.3f}–{high:.3f}) of {len(good)} clips")
    command = f"python benchmarks/single_object.py --seeds {options.seeds}"
    write_result(RESULT, command, 0, figures)


if __name__ == "__main__":
    main()
