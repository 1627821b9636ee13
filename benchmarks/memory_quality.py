"""Does memory work? The analogues of the paper's tables 3, 4 and 6 on the demo model, with two controls.

    python benchmarks/memory_quality.py [--limit 105] [--workers 4] [--only NAME ...]

A memory is built from the first 200 prompts of demo/prompts/memory.json, each optimised from scratch.
Then every held-out prompt is made by every variant at the same seed and scored: the base model, TTO
alone, the memory read without optimising, and the memory as the start of the optimisation, with its
size, the number of fused entries and the iterations varied. Controls: entries of the mirrored scene
(the wrong direction) and random entries. Resumable: every finished clip is a line in rows.jsonl.
Writes results/memory_quality.json.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from demo.memories import fill
from ttom_core.adapter import Adapter
from ttom_core.errors import TTOMError
from ttom_core.evaluation.evaluate import OPTIMISING, SCORING, estimate, load_prompts, quartiles
from ttom_core.evaluation.pool import backbone_of, code_of, digest, progress, rows_of
from ttom_core.evaluation.results import write_result
from ttom_core.evaluation.scores import score
from ttom_core.fusion import fuse
from ttom_core.memory.embedding import PipelineEmbedder
from ttom_core.memory.recall import Scene, insert, recall, scene_of
from ttom_core.memory.store import MemoryStore
from ttom_core.optimize import PRESETS
from ttom_core.planner import plan

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = ROOT / "demo" / "prompts"
SIZES = (50, 100, 150, 200)
MIRROR = {"left": "right", "right": "left", "up": "down", "down": "up", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Variant:
    """One way to make a clip. memory: entries it was built from, 0 for none; source: whose entries."""

    iterations: int = 8  # 0 does not optimise
    memory: int = 0
    top_k: int = 5
    source: str = "own"  # own, mirrored or random
    until: float | None = None  # adapter_until_sigma, where it is not the preset's

    @property
    def base(self) -> bool:
        return not (self.iterations or self.memory)


VARIANTS: dict[str, Variant] = {
    "base": Variant(iterations=0),
    "tto": Variant(),
    "tto_4": Variant(iterations=4),
    "tto_2": Variant(iterations=2),
    "memory_only": Variant(iterations=0, memory=200),
    "memory_only_top1": Variant(iterations=0, memory=200, top_k=1),
    "memory_only_top10": Variant(iterations=0, memory=200, top_k=10),
    "memory_only_long": Variant(iterations=0, memory=200, until=0.5),
    "memory_tto": Variant(memory=200),
    "memory_tto_4": Variant(iterations=4, memory=200),
    "memory_tto_2": Variant(iterations=2, memory=200),
    "memory_tto_top1": Variant(memory=200, top_k=1),
    "memory_tto_top10": Variant(memory=200, top_k=10),
    **{f"memory_tto_of_{size}": Variant(memory=size) for size in SIZES[:-1]},
    "wrong_direction_only": Variant(iterations=0, memory=200, source="mirrored"),
    "wrong_direction": Variant(memory=200, source="mirrored"),
    "random_only": Variant(iterations=0, memory=200, source="random"),
    "random": Variant(memory=200, source="random"),
}


# Composition of the first less that of the second, at the same prompts: what the paper claims, and more.
PAIRS = (
    ("tto", "base"),
    ("memory_tto", "tto"),
    ("memory_tto_4", "tto"),
    ("memory_only", "base"),
    ("memory_tto", "memory_only"),
    ("memory_only", "memory_only_top10"),
    ("memory_tto", "memory_tto_top10"),
    *(("memory_tto", f"memory_tto_of_{size}") for size in SIZES[:-1]),
)


def mirrored(prompt: str) -> str | None:
    """The prompt with every direction and relation turned round; None where it has none."""
    turned = re.sub(r"\b(left|right|up|down|above|below)\b", lambda m: MIRROR[m[0]], prompt)
    return None if turned == prompt else turned


@cache
def _store(folder: str) -> MemoryStore:
    return MemoryStore(folder, read_only=True)


Start = tuple[Adapter | None, int]


def _start(backbone: Any, variant: Variant, prompt: str, seed: int, stores: str) -> Start:
    """The adapter that a variant starts from, and of how many entries it is."""
    if not variant.memory:
        return None, 0
    store = _store(f"{stores}/{variant.memory}")
    rank = PRESETS["demo"].rank
    if variant.source == "random":
        entries = list(store.entries())
        chosen = random.Random(seed).sample(entries, variant.top_k)
        return fuse([store.load(e) for e in chosen], rank=rank), len(chosen)
    text = prompt if variant.source == "own" else mirrored(prompt)
    if text is None:
        return None, 0
    scene = scene_of(text, plan(text), PipelineEmbedder(backbone.pipeline))
    known = recall(store, scene, backbone.fingerprint, top_k=variant.top_k, rank=rank)
    return known.adapter, len(known.hits)


def make(backbone: Any, job: tuple[str, dict[str, Any], int, str]) -> dict[str, Any]:
    """One clip of one variant, scored."""
    from ttom_core.generate import generate

    name, spec, seed, stores = job
    variant, prompt = VARIANTS[name], spec["prompt"]
    adapter, entries = _start(backbone, variant, prompt, seed, stores)
    settings = PRESETS["demo"].model_copy(update={"iterations": variant.iterations})
    if variant.until is not None:
        settings = settings.model_copy(update={"adapter_until_sigma": variant.until})
    if variant.base:
        made = generate(backbone, prompt, seed=seed)
    else:
        made = generate(backbone, prompt, plan(prompt), settings, seed=seed, adapter=adapter)
    scored, trace = score(made.frames, spec), made.trace
    return {
        "variant": name,
        "prompt": prompt,
        "category": spec["category"],
        "seed": seed,
        "entries": entries,
        "composition": scored.composition,
        "presence": scored.presence,
        "seconds": made.seconds,
        "first_loss": trace.first_loss if trace else None,
        "last_loss": trace.last_loss if trace else None,
    }


def build(folder: Path, model: str, workers: int) -> None:
    """The memories of every size: the largest is optimised, the others are copied from it."""
    full = folder / str(SIZES[-1])
    prompts = fill(full, model, workers)
    with MemoryStore(full, read_only=True) as store:
        entries = {entry.prompt: entry for entry in store.entries()}
        for size in SIZES[:-1]:
            with MemoryStore(folder / str(size)) as smaller:
                known = {entry.prompt for entry in smaller.entries()}
                for entry in (entries[p] for p in prompts[:size] if p not in known):
                    scene = Scene(entry.prompt, entry.layout, entry.key, entry.embedding, entry.embedder)
                    insert(smaller, scene, store.load(entry))


def figures(rows: list[dict[str, Any]], names: list[str]) -> dict[str, dict[str, Any]]:
    """Composition, presence and seconds of each variant; controls only where they had entries."""
    table: dict[str, dict[str, Any]] = {}
    by_name = {name: [row for row in rows if row["variant"] == name] for name in names}
    for name in list(by_name):
        # A mirrored scene exists only for prompts with a direction: compare on those alone.
        if VARIANTS[name].source == "mirrored":
            by_name[name] = [row for row in by_name[name] if row["entries"]]
            prompts = {row["prompt"] for row in by_name[name]}
            for other in ("base", "tto", "memory_only", "memory_tto"):
                own = [row for row in by_name.get(other, []) if row["prompt"] in prompts]
                by_name[f"{other}_where_directed"] = own
    for name, members in by_name.items():
        if not members:
            continue
        for quantity in ("composition", "presence"):
            table[f"{name}_{quantity}"] = estimate([row[quantity] for row in members], "score 0-1")
        seconds = [row["seconds"] for row in members]
        table[f"{name}_seconds"] = quartiles(seconds, "s a clip, one thread, median and quartiles")
    for first, second in PAIRS:
        if by_name.get(first) and by_name.get(second):
            alone = {row["prompt"]: row["composition"] for row in by_name[second]}
            gains = [row["composition"] - alone[row["prompt"]] for row in by_name[first]]
            table[f"{first}_over_{second}"] = estimate(gains, "paired difference")
    if used := [row["entries"] > 0 for row in by_name.get("memory_tto", [])]:
        table["prompts_with_a_hit"] = estimate(used, "share")
    return table


def run(options: argparse.Namespace) -> None:
    fingerprint = backbone_of(options.model).fingerprint
    settings = PRESETS["demo"].model_dump(mode="json")
    # What decides the memories: with other code, settings or another model they are built anew.
    made_with = digest([code_of(*OPTIMISING), code_of(*SCORING), fingerprint, settings])
    stores = options.out / "stores" / made_with
    build(stores, options.model, options.workers)
    prompts = load_prompts(PROMPTS / "held_out.json", options.limit)
    jobs = {}
    for name in options.only:
        for seed, spec in enumerate(prompts):
            facts = [made_with, asdict(VARIANTS[name]), spec, seed]
            jobs[digest(facts)] = (name, spec, seed, str(stores))
    path = options.out / "rows.jsonl"
    with progress("held-out clips") as on_row:
        rows = rows_of(make, jobs, options.model, path, workers=options.workers, on_row=on_row)
    table = figures(list(rows.values()), options.only)
    for name, value in table.items():
        print(f"{name:45} {value['value']:8.3f}  ({value['low']:.3f} to {value['high']:.3f}, n {value['n']})")
    command = f"python benchmarks/memory_quality.py --limit {options.limit}"
    told = {"prompts": "held_out", "model": fingerprint}
    write_result(options.results / "memory_quality.json", command, 0, table, told)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=str(ROOT / "demo" / "model"))
    parser.add_argument("--out", type=Path, default=Path("outputs/memory_quality"))
    parser.add_argument("--limit", type=int, default=105, help="held-out prompts")
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    parser.add_argument("--only", nargs="+", choices=VARIANTS, default=list(VARIANTS), metavar="NAME")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    try:
        run(parser.parse_args(arguments))
    except TTOMError as error:
        print(f"memory_quality: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("memory_quality: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
