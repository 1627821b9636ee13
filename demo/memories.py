"""A memory of 200 solved prompts, and the starter pack made from it: `python -m demo.memories`.

Every prompt of prompts/memory.json is optimised from scratch, on noise of its own. The pack then holds one
entry for each scene among them: the exact average of its adapters, cut to their rank. Resumable.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ttom_core.evaluation.evaluate import load_prompts
from ttom_core.evaluation.pool import in_workers
from ttom_core.fusion import fuse
from ttom_core.generate import generate
from ttom_core.memory.embedding import PipelineEmbedder
from ttom_core.memory.pack import export_pack
from ttom_core.memory.recall import Scene, insert, scene_of
from ttom_core.memory.store import MemoryEntry, MemoryStore
from ttom_core.optimize import PRESETS
from ttom_core.pictures import draw_layout, strip
from ttom_core.planner import plan

from .prompts import FOLDER
from .train import MODEL

PACK = Path(__file__).resolve().parent.parent / "memory_store" / "starter" / "demo.ttompack"
FIRST_SEED = 100_000  # far from any seed that a prompt is evaluated with


def remember(backbone: Any, job: tuple[str, int, str]) -> None:
    """Optimise one prompt from scratch and keep what was found."""
    prompt, seed, folder = job
    settings, layout = PRESETS["demo"], plan(prompt)
    made = generate(backbone, prompt, layout, settings, seed=seed)
    assert made.adapter is not None and made.trace is not None
    with MemoryStore(folder) as store:
        insert(
            store,
            scene_of(prompt, layout, PipelineEmbedder(backbone.pipeline)),
            made.adapter,
            settings=settings.model_dump(mode="json"),
            lora_seed=settings.lora_seed,
            loss_first=made.trace.first_loss,
            loss_last=made.trace.last_loss,
        )


def fill(folder: Path, model: str, workers: int) -> list[str]:
    """Remember what is missing of the 200 prompts, and return all of them in their order."""
    prompts = [str(row["prompt"]) for row in load_prompts(FOLDER / "memory.json")]
    with MemoryStore(folder) as store:
        there = {entry.prompt for entry in store.entries()}
    jobs = {
        prompt: (prompt, FIRST_SEED + index, str(folder))
        for index, prompt in enumerate(prompts)
        if prompt not in there
    }
    for _ in tqdm(in_workers(remember, jobs, model, workers), total=len(jobs), desc="remember"):
        pass
    return prompts


def consolidate(store: MemoryStore, into: MemoryStore) -> list[MemoryEntry]:
    """One entry for each scene of a memory: the average of its adapters under the first one's prompt."""
    scenes: dict[str, list[MemoryEntry]] = {}
    for entry in store.entries():
        scenes.setdefault(entry.key.digest, []).append(entry)
    kept = []
    for entries in scenes.values():
        first = entries[0]
        adapter = fuse([store.load(entry) for entry in entries], rank=first.rank)
        scene = Scene(first.prompt, first.layout, first.key, first.embedding, first.embedder)
        count = len(entries)
        kept.append(
            insert(
                into,
                scene,
                adapter,
                settings=first.settings,
                lora_seed=first.lora_seed,
                note=f"average of {count} {'prompt' if count == 1 else 'prompts'}",
            )
        )
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--work", type=Path, default=Path("outputs/memories"))
    parser.add_argument("--out", type=Path, default=PACK)
    parser.add_argument("--workers", type=int, default=os.cpu_count())
    options = parser.parse_args()
    fill(options.work, options.model, options.workers)
    with (
        tempfile.TemporaryDirectory() as folder,
        MemoryStore(options.work) as store,
        MemoryStore(Path(folder) / "starter") as starter,
    ):
        entries = consolidate(store, starter)
        previews = {}
        for entry in entries:
            assert entry.layout is not None
            canvas = np.full((21, 64, 64, 3), 245, np.uint8)
            previews[entry.id] = Path(folder) / f"{entry.id}.png"
            strip({"layout": draw_layout(canvas, entry.layout)}).save(previews[entry.id])
        options.out.parent.mkdir(parents=True, exist_ok=True)
        export_pack(starter, entries, options.out, licence="Apache-2.0", previews=previews)
    print(f"wrote {options.out}: {len(entries)} scenes, {options.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
