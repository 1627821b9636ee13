"""Does the probe predict which layers are good to optimise? (the claim behind the paper's Fig. 3)

    python benchmarks/probe.py                # all 84 tuning prompts
    python benchmarks/probe.py --limit 2

Every tuning prompt is probed, and optimised in each single layer at the same seed: by an adapter on all
blocks that the layer's loss reaches, as presets have it, and by one on the layer's own queries and keys
alone, which is as large in every layer. The rank correlation of a layer's soft IoU with its gain over the
base model, in composition and in presence, has an interval over prompts; that of its depth stands beside it
as a control. Resumable: a clip is a line in rows.jsonl. Writes results/probe.json, results/probe.png (a row a
layer) and results/probe_relevance.png (layers and heads). A prompt takes about 3 minutes of one core with six
layers: all of them an hour on four cores.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ttom_core.backbones.base import Backbone
from ttom_core.errors import TTOMError
from ttom_core.evaluation.evaluate import estimate, evaluate, figures, load_prompts
from ttom_core.evaluation.grounding import BlobGrounding
from ttom_core.evaluation.pool import Row, backbone_of, code_of, digest, identity_of, progress, rows_of
from ttom_core.evaluation.results import insist_on_more, write_result
from ttom_core.optimize import PRESETS, TTOSettings
from ttom_core.pictures import interval_chart, relevance_chart
from ttom_core.planner import plan
from ttom_core.probe import ProbeSettings, Relevance, probe_clip, recommend

ROOT = Path(__file__).resolve().parent.parent
DRAWS = 2000
PROBE = ProbeSettings()
QUALITIES = ("composition", "presence")
SCOPES = {"layer": "reachable", "lone_layer": "selected"}  # what a method's name says of its adapter


class Job(NamedTuple):
    """A prompt to probe."""

    prompt: str
    seed: int


def probe_prompt(backbone: Backbone, job: Job) -> Row:
    """One prompt's relevance, in a worker."""
    phrases = plan(job.prompt).phrases
    found = probe_clip(backbone, job.prompt, phrases, BlobGrounding(), PROBE, seed=job.seed).relevance
    return {"prompt": job.prompt, "relevance": found.model_dump(mode="json")}


def methods_of(layers: int) -> dict[str, TTOSettings | None]:
    """The base model, and the demo preset at each single layer with both kinds of adapter."""
    preset = PRESETS["demo"].model_dump()
    single = {
        f"{kind}_{layer}": TTOSettings.model_validate(preset | {"layers": (layer,), "scope": scope})
        for kind, scope in SCOPES.items()
        for layer in range(layers)
    }
    return {"base": None, **single}


def spearman(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rank correlation; 0 where one of them is constant, and nothing can be ranked."""
    from scipy.stats import spearmanr

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant input
        value = float(spearmanr(first, second).statistic)
    return 0.0 if np.isnan(value) else value


def over_prompts(statistic: Callable[[np.ndarray], float], count: int, unit: str) -> dict[str, Any]:
    """A result file's figure: a statistic of the prompts' indices, with its 95 % interval over prompts."""
    rng = np.random.default_rng(0)
    draws = [statistic(rng.integers(0, count, count)) for _ in range(DRAWS)]
    value = statistic(np.arange(count))
    low, high = np.quantile(draws, (0.025, 0.975))
    # The percentile interval of so coarse a statistic may leave out the value itself.
    low, high = min(low, value), max(high, value)
    bounds = {name: round(float(x), 4) for name, x in (("value", value), ("low", low), ("high", high))}
    return {**bounds, "n": count, "unit": unit}


def correlations(parts: list[Relevance], rows: dict[str, list[Row]]) -> dict[str, dict[str, Any]]:
    """How well relevance, and depth as a control, rank the layers by their gains over the base model."""
    weights = np.array([part.n for part in parts], float)
    iou = np.array([part.layers for part in parts])  # [prompts, layers]
    count, layers = iou.shape

    def relevance(chosen: np.ndarray) -> np.ndarray:
        """The mean soft IoU of each layer over the chosen prompts' objects."""
        total: np.ndarray = weights[chosen] @ iou[chosen]
        return total / max(weights[chosen].sum(), 1.0)

    def by_relevance(chosen: np.ndarray, gains: np.ndarray) -> float:
        return spearman(relevance(chosen), gains[chosen].mean(0))

    def by_depth(chosen: np.ndarray, gains: np.ndarray) -> float:
        return spearman(np.arange(layers), gains[chosen].mean(0))

    best = int(relevance(np.arange(count)).argmax())
    unit = f"Spearman's rank correlation over {layers} layers"
    table = {}
    for kind, quality in itertools.product(SCOPES, QUALITIES):
        scores = [[row[quality] for row in rows[f"{kind}_{layer}"]] for layer in range(layers)]
        gains = np.array(scores).T - np.array([[row[quality]] for row in rows["base"]])  # [prompts, layers]
        for predictor, statistic in (("relevance", by_relevance), ("depth", by_depth)):
            figure = over_prompts(partial(statistic, gains=gains), count, unit)
            table[f"{kind}_spearman_of_{predictor}_and_{quality}"] = figure
        ahead = gains[:, best] - gains.mean(1)
        unit_ahead = f"{quality}, over the mean of all layers"
        table[f"{kind}_{quality}_of_most_relevant"] = estimate(ahead, unit_ahead)
    return table


def run(options: argparse.Namespace) -> None:
    backbone = backbone_of(options.model)
    prompts = load_prompts(ROOT / "demo" / "prompts" / "tuning.json", options.limit)
    if not options.force:
        insist_on_more(options.results / "probe.json", len(prompts), PROBE.steps)
    texts = [str(spec["prompt"]) for spec in prompts]
    code = code_of("attention", "probe", "evaluation/blobs", "evaluation/grounding")
    jobs = {
        digest([code, identity_of(backbone), PROBE.model_dump(mode="json"), text, seed]): Job(text, seed)
        for seed, text in enumerate(texts)
    }
    with progress("probe") as on_row:
        probed = rows_of(
            probe_prompt,
            jobs,
            options.model,
            options.out / "probe.jsonl",
            workers=options.workers,
            on_row=on_row,
        )
    parts = [Relevance.model_validate(row["relevance"]) for row in probed.values()]
    found = Relevance.pooled(parts)
    layers = range(len(found.layers))
    recommended = recommend(found) if found.n else ()  # a model that draws nothing still has its gains

    methods = methods_of(len(layers))
    with progress("optimise") as on_row:
        rows = evaluate(
            options.model,
            prompts,
            methods,
            options.out / "rows.jsonl",
            steps=PROBE.steps,
            workers=options.workers,
            on_row=on_row,
        )
    pairs = [(name, "base") for name in methods if name != "base"]
    table = figures(rows, pairs, by_category=False)
    table["objects_found"] = estimate([part.n for part in parts], "objects a clip")
    if found.n:
        for i in layers:
            seen = [part.layers[i] for part in parts if part.n]
            table[f"relevance_{i}"] = estimate(seen, "soft IoU, mean over prompts with an object found")
        table |= correlations(parts, rows)

    command = f"python benchmarks/probe.py --limit {options.limit}"
    facts = {
        "prompts": "tuning",
        "model": identity_of(backbone),
        "probe": PROBE.model_dump(mode="json"),
        "recommended": list(recommended),
    }
    write_result(options.results / "probe.json", command, 0, table, facts)

    def panel(name: str) -> dict[str, tuple[float, float, float]]:
        chosen = {f"layer {i}": table[name.format(i)] for i in layers}
        return {label: (f["value"], f["low"], f["high"]) for label, f in chosen.items()}

    panels = {"soft IoU": panel("relevance_{}")} if found.n else {}
    panels |= {
        "gain, all it reaches": panel("composition_of_layer_{}_over_base"),
        "gain, itself alone": panel("composition_of_lone_layer_{}_over_base"),
    }
    interval_chart(panels, options.results / "probe.png")
    relevance_chart(found.layers, found.heads, recommended).save(options.results / "probe_relevance.png")
    for name in table:
        if "relevan" in name or "depth" in name or name.startswith("composition_of"):
            f = table[name]
            print(f"{name:50} {f['value']:7.3f}  ({f['low']:.3f} to {f['high']:.3f}, n {f['n']})")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "demo" / "model"))
    parser.add_argument("--limit", type=int, default=84, help="tuning prompts (default 84: all)")
    parser.add_argument("--workers", type=int, help="processes of one thread each (default: the cores)")
    parser.add_argument("--out", type=Path, default=Path("outputs/evidence"), help="of the rows")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--force", action="store_true", help="replace a result that tells of more")
    try:
        run(parser.parse_args(arguments))
    except TTOMError as error:
        print(f"probe: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("probe: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
