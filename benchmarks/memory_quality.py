"""Does memory work? On the demo model: consolidated scenes, and the paper's memory beside them.

    python benchmarks/memory_quality.py          # consolidated scenes, 105 held-out prompts, every variant
    python benchmarks/memory_quality.py paper    # the paper's memory: its tables 3, 4 and 6
    python benchmarks/memory_quality.py fast     # its best use alone, for more prompts
    python benchmarks/memory_quality.py --limit 28 --only base tto memory_only memory_tto

Each memory is built from the 200 prompts of demo/prompts/memory.json: an adapter a scene, consolidated over
many clips, with what all scenes share (`python -m demo.memories`); and the paper's, an adapter a prompt,
optimised from scratch and averaged when read. Then every held-out prompt is made by every variant at the same
seed and scored: the base model, TTO alone, the memory read without optimising, and the memory as the start of
the optimisation, with fewer iterations too. Of the paper's memory its size and the number of fused entries
vary; of the scenes there are controls: the adapter of the mirrored scene (the wrong direction), random ones,
the scene's own as a start, and as large iterations without a memory.

On four cores the scenes take about 27 minutes, once, the solved prompts 17, and then a prompt 40 s by all
variants of either; on two cores twice that. Resumable: a scene or a solved prompt is an entry of a store, a
clip is a line in rows.jsonl, which benchmarks/evidence.py and ablations.py share. `--only` says what is made
now; the result tells of all variants that have their clips of the present model, settings and code, and
replaces one that tells of more only with --force. Writes results/memory_quality.json,
memory_paper.json or memory_fast.json.
"""

from __future__ import annotations

import argparse
import itertools
import random
import re
import sys
import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from demo.memories import fill_scenes, fill_solved, memory_specs, scenes_folder, solved_folder
from ttom_core.adapter import Adapter
from ttom_core.errors import TTOMError
from ttom_core.evaluation.evaluate import Clip, estimate, figures, load_prompts, make_clip
from ttom_core.evaluation.pool import (
    Row,
    backbone_of,
    code_of,
    digest,
    identity_of,
    progress,
    read_rows,
    rows_of,
)
from ttom_core.evaluation.results import insist_on_more, write_result
from ttom_core.fusion import fuse
from ttom_core.memory.embedding import PipelineEmbedder
from ttom_core.memory.recall import ANY_SCENE, Scene, insert, recall, scene_of
from ttom_core.memory.store import MemoryStore
from ttom_core.optimize import PRESETS, TTOSettings
from ttom_core.planner import plan

ROOT = Path(__file__).resolve().parent.parent
HELD_OUT = ROOT / "demo" / "prompts" / "held_out.json"
STEPS = 20
ITERATIONS = PRESETS["demo"].iterations
SIZES = (50, 100, 150, 200)
# The code that decides a row beside what every clip depends on and what the memory holds.
READING = ("fusion", "memory/index", "memory/recall", "memory/store", "scenes")
MIRROR = {"left": "right", "right": "left", "up": "down", "down": "up", "above": "below", "below": "above"}


@dataclass(frozen=True)
class Variant:
    """One way to make a clip. source: whose entries of which memory; size: the prompts it was built from."""

    iterations: int = ITERATIONS  # 0 does not optimise
    memory: str = ""  # scenes, solved or none
    size: int = 200
    top_k: int = 5
    source: str = ""  # what a generation takes; or the scene's own, the mirrored scene's, random ones
    until: float | None = None  # adapter_until_sigma, where it is not the preset's
    rate: float = 1.0  # of the preset's learning rate

    @property
    def settings(self) -> TTOSettings | None:
        """The demo preset with this variant's changes; None for the base model."""
        if not (self.iterations or self.memory):
            return None
        demo = PRESETS["demo"]
        changes = {"iterations": self.iterations, "learning_rate": self.rate * demo.learning_rate}
        if self.until is not None:
            changes["adapter_until_sigma"] = self.until
        return demo.model_copy(update=changes)


VARIANTS: dict[str, Variant] = {
    "base": Variant(iterations=0),
    "tto": Variant(),
    "tto_half": Variant(iterations=ITERATIONS // 2),
    "tto_quarter": Variant(iterations=ITERATIONS // 4),
    "tto_quarter_fast": Variant(iterations=ITERATIONS // 4, rate=2),
    "memory_only": Variant(iterations=0, memory="scenes"),
    "memory_only_long": Variant(iterations=0, memory="scenes", until=0.5),
    "memory_tto": Variant(memory="scenes"),
    "memory_tto_half": Variant(iterations=ITERATIONS // 2, memory="scenes"),
    "memory_tto_quarter": Variant(iterations=ITERATIONS // 4, memory="scenes"),
    "memory_tto_quarter_fast": Variant(iterations=ITERATIONS // 4, memory="scenes", rate=2),
    "own_quarter_fast": Variant(iterations=ITERATIONS // 4, memory="scenes", source="own", rate=2),
    "wrong_direction_only": Variant(iterations=0, memory="scenes", source="mirrored"),
    "wrong_direction": Variant(memory="scenes", source="mirrored"),
    "random_only": Variant(iterations=0, memory="scenes", top_k=1, source="random"),
    "random": Variant(memory="scenes", top_k=1, source="random"),
    "random_quarter": Variant(iterations=ITERATIONS // 4, memory="scenes", top_k=1, source="random"),
}
PAPERS: dict[str, Variant] = {
    **{name: VARIANTS[name] for name in ("base", "tto", "tto_half")},
    "solved_only": Variant(iterations=0, memory="solved"),
    "solved_only_top1": Variant(iterations=0, memory="solved", top_k=1),
    "solved_only_top10": Variant(iterations=0, memory="solved", top_k=10),
    "solved_tto": Variant(memory="solved"),
    "solved_tto_half": Variant(iterations=ITERATIONS // 2, memory="solved"),
    "solved_tto_top1": Variant(memory="solved", top_k=1),
    "solved_tto_top10": Variant(memory="solved", top_k=10),
    **{f"solved_tto_of_{size}": Variant(memory="solved", size=size) for size in SIZES[:-1]},
}
FAST = {name: VARIANTS[name] for name in ("base", "tto", "tto_quarter_fast", "memory_tto_quarter_fast")}
# A result each: memory_quality.json, …
QUESTIONS = {"quality": VARIANTS, "paper": PAPERS, "fast": FAST}

# Told apart at the same prompts: what the paper claims, and more.
PAIRS = (
    ("tto", "base"),
    ("memory_tto", "tto"),
    ("memory_tto_half", "tto"),
    ("memory_tto_half", "tto_half"),
    ("memory_tto_quarter", "tto"),
    ("memory_tto_quarter", "tto_quarter"),
    ("memory_tto_quarter", "random_quarter"),
    ("memory_tto_quarter_fast", "tto"),
    ("memory_tto_quarter_fast", "tto_quarter_fast"),
    ("memory_only", "base"),
    ("memory_only", "tto"),
    ("memory_only", "random_only"),
    ("memory_tto", "memory_only"),
    ("random_only", "base"),
    ("random", "tto"),
    ("memory_tto", "random"),
    ("solved_only", "base"),
    ("solved_tto", "tto"),
    ("solved_tto_half", "tto"),
    ("solved_tto_half", "tto_half"),
    ("solved_tto", "solved_only"),
    ("solved_only", "solved_only_top10"),
    ("solved_tto", "solved_tto_top10"),
    *(("solved_tto", f"solved_tto_of_{size}") for size in SIZES[:-1]),
)
# Told apart at the prompts whose scene the memory knows.
KNOWN = (
    ("memory_only", "base"),
    ("memory_only", "tto"),
    ("memory_only", "random_only"),
    ("memory_tto", "tto"),
    ("memory_tto_half", "tto"),
    ("memory_tto_half", "tto_half"),
    ("memory_tto_quarter", "tto_quarter"),
    ("memory_tto_quarter", "random_quarter"),
    ("memory_tto_quarter_fast", "tto_quarter_fast"),
    ("memory_tto_quarter_fast", "own_quarter_fast"),
)
# What the wrong direction stands beside, on the prompts that have one.
DIRECTED = ("base", "tto", "memory_only", "memory_tto")


# The clips ----------------------------------------------------------------------------------------


class Job(NamedTuple):
    """A clip of a variant, and the store that it reads."""

    clip: Clip
    variant: Variant
    store: str

    def key(self, model: str) -> str:
        """What decides the row: without a memory what any method's clip depends on, so that it is shared."""
        key = self.clip.key(model)
        if not self.variant.memory:
            return key
        return digest([key, asdict(self.variant), Path(self.store).parent.name, _code(*READING)])


_code = cache(code_of)


def mirrored(prompt: str) -> str | None:
    """The prompt with every direction and relation turned round; None where it has none."""
    turned = re.sub(r"\b(left|right|up|down|above|below)\b", lambda m: MIRROR[m[0]], prompt)
    return None if turned == prompt else turned


@cache
def _store(folder: str) -> MemoryStore:
    return MemoryStore(folder, read_only=True)


def _start(
    backbone: Any, variant: Variant, prompt: str, seed: int, folder: str
) -> tuple[Adapter | None, int]:
    """The adapter that a variant starts from, and of how many entries of a scene it is."""
    if not variant.memory:
        return None, 0
    store = _store(folder)
    rank = PRESETS["demo"].rank
    if variant.source == "random":
        scenes = [entry for entry in store.entries() if entry.key != ANY_SCENE]
        chosen = random.Random(seed).sample(scenes, variant.top_k)
        return fuse([store.load(entry) for entry in chosen], rank=rank), len(chosen)
    text = mirrored(prompt) if variant.source == "mirrored" else prompt
    assert text is not None, "a prompt without a direction has no mirrored scene"
    scene = scene_of(text, plan(text), PipelineEmbedder(backbone.pipeline))
    known = recall(store, scene, backbone.fingerprint, top_k=variant.top_k, rank=rank)
    adapter = known.adapter if variant.source else known.start(variant.iterations)
    return adapter, len(known.hits)


def make(backbone: Any, job: Job) -> Row:
    """One clip of one variant, scored, in a worker; its seconds are with those of the reading."""
    clip, variant, folder = job
    begun = time.perf_counter()
    adapter, entries = _start(backbone, variant, clip.spec["prompt"], clip.seed, folder)
    reading = time.perf_counter() - begun
    row = make_clip(backbone, clip, adapter)
    return {**row, "seconds": row["seconds"] + reading, "entries": entries}


def jobs_of(
    variants: dict[str, Variant], prompts: list[dict[str, Any]], scenes: Path, solved: Path
) -> dict[str, dict[int, Job]]:
    """The clips of these variants by the prompt's number; the mirrored ones where there is a direction."""

    def store(variant: Variant) -> str:
        return str(solved.with_name(f"of_{variant.size}") if variant.memory == "solved" else scenes)

    return {
        name: {
            index: Job(Clip(spec, variant.settings, index, STEPS), variant, store(variant))
            for index, spec in enumerate(prompts)
            if variant.source != "mirrored" or mirrored(spec["prompt"])
        }
        for name, variant in variants.items()
    }


def build_solved(work: Path, model: str, workers: int | None) -> None:
    """The solved memories of every size, in the prompts' order, which decides between entries that tie."""
    solved = fill_solved(work, model, workers)
    prompts = [spec["prompt"] for spec in memory_specs()]
    with MemoryStore(solved, read_only=True) as store:
        entries = {entry.prompt: entry for entry in store.entries()}
        for size in SIZES:
            with MemoryStore(solved.with_name(f"of_{size}")) as part:
                known = {entry.prompt for entry in part.entries()}
                for entry in (entries[prompt] for prompt in prompts[:size] if prompt not in known):
                    scene = Scene(entry.prompt, entry.layout, entry.key, entry.embedding, entry.embedder)
                    insert(part, scene, store.load(entry))


# The table ----------------------------------------------------------------------------------------


def table_of(rows: dict[str, dict[int, Row]]) -> dict[str, dict[str, Any]]:
    """The figures of these variants' rows, by the prompt's number, and of the pairs among them."""
    every = VARIANTS | PAPERS
    whole = {name: [*found.values()] for name, found in rows.items() if every[name].source != "mirrored"}
    table: dict[str, dict[str, Any]] = {}
    if whole:
        table |= figures(whole, [pair for pair in PAIRS if whole.keys() >= {*pair}], by_category=False)
    for name in (name for name in rows if name not in whole):
        # Only where the memory knows the mirrored scene: elsewhere nothing was read.
        where = [index for index, row in rows[name].items() if row["entries"]]
        beside = {
            f"{other}_where_directed": [rows[other][index] for index in where]
            for other in DIRECTED
            if other in rows
        }
        if where:
            own = {name: [rows[name][index] for index in where]}
            pairs = [(name, other) for other in beside]
            table |= figures(own | beside, pairs, by_category=False)
    if "memory_tto" in whole:
        hits = [row["entries"] > 0 for row in whole["memory_tto"]]
        table["prompts_with_a_hit"] = estimate(hits, "share")
        known = {
            f"{name}_where_known": [row for row, hit in zip(rows, hits, strict=True) if hit]
            for name, rows in whole.items()
            if name in {*itertools.chain(*KNOWN)}
        }
        pairs = [(f"{one}_where_known", f"{other}_where_known") for one, other in KNOWN]
        if any(hits):
            table |= figures(known, [pair for pair in pairs if known.keys() >= {*pair}], by_category=False)
    return table


def run(options: argparse.Namespace) -> None:
    variants = QUESTIONS[options.question]
    only = options.only or list(variants)
    if foreign := [name for name in only if name not in variants]:
        raise TTOMError(
            f"{options.question!r} does not ask {', '.join(foreign)}; choose of {', '.join(variants)}."
        )
    identity = identity_of(backbone_of(options.model))
    scenes, solved = (find(options.work, options.model) for find in (scenes_folder, solved_folder))
    prompts = load_prompts(HELD_OUT, options.limit)
    jobs = {
        name: {index: (job.key(identity), job) for index, job in found.items()}
        for name, found in jobs_of(variants, prompts, scenes, solved).items()
    }
    path, known = options.out / "rows.jsonl", read_rows(options.out / "rows.jsonl")
    # A key knows the model, the settings and the code, so what is there belongs beside what is made now.
    told = [
        name
        for name, found in jobs.items()
        if found and (name in only or all(key in known for key, _ in found.values()))
    ]
    result = options.results / f"memory_{options.question}.json"
    if not options.force:
        insist_on_more(result, len(prompts), STEPS, told)
    needed = {variants[name].memory for name in only}
    if "scenes" in needed:
        fill_scenes(options.work, options.model, options.workers)
    if "solved" in needed:
        build_solved(options.work, options.model, options.workers)
    wanted = {key: job for name in told for key, job in jobs[name].values()}
    with progress("held-out clips") as on_row:
        rows = rows_of(make, wanted, options.model, path, workers=options.workers, on_row=on_row)
    table = table_of({name: {i: rows[key] for i, (key, _) in jobs[name].items()} for name in told})
    if not table:
        raise TTOMError("No memory was read for any of these prompts; raise --limit, or add to --only.")
    for name, value in table.items():
        print(f"{name:60} {value['value']:8.3f}  ({value['low']:.3f} to {value['high']:.3f}, n {value['n']})")
    asked = "" if options.question == "quality" else f" {options.question}"
    command = f"python benchmarks/memory_quality.py{asked} --limit {options.limit}"
    if len(told) < len(variants):
        command += f" --only {' '.join(told)}"
    facts = {
        "prompts": "held_out",
        "count": len(prompts),
        "model": identity,
        "memory": (solved if options.question == "paper" else scenes).parent.name,
        "steps": STEPS,
        "preset": PRESETS["demo"].model_dump(mode="json"),
        "variants": {name: asdict(variants[name]) for name in told},
    }
    write_result(result, command, 0, table, facts)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("question", nargs="?", choices=QUESTIONS, default="quality")
    parser.add_argument("--model", default=str(ROOT / "demo" / "model"))
    parser.add_argument("--limit", type=int, default=105, help="held-out prompts (default 105)")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=VARIANTS | PAPERS,
        metavar="NAME",
        help=f"the variants to make now: {', '.join(VARIANTS | PAPERS)}",
    )
    parser.add_argument("--workers", type=int, help="processes of one thread each (default: the cores)")
    parser.add_argument("--out", type=Path, default=Path("outputs/evidence"), help="of the rows")
    parser.add_argument("--work", type=Path, default=Path("outputs/memories"), help="of the memories")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--force", action="store_true", help="replace a result that tells of more")
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
