"""A memory of 200 solved prompts, and the starter pack made from it: `python -m demo.memories`.

Every prompt of prompts/memory.json is optimised from scratch, on noise of its own. The pack then holds one
entry for each scene among them: the exact average of its adapters, cut to their rank.

200 clips of about 20 s on a core: 17 minutes on four cores, 34 on two. Interrupted, the same command goes on
from the last prompt that was solved; another model, other settings or other code begin a memory of their own.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ttom_core.errors import TTOMError
from ttom_core.evaluation.evaluate import OPTIMISING, load_prompts
from ttom_core.evaluation.pool import backbone_of, code_of, digest, identity_of, in_workers
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
FILING = ("memory/embedding", "memory/key")  # the code that says what an adapter is found by


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


def memory_prompts() -> list[str]:
    """What a memory of the demo model has solved before, in order."""
    return [str(row["prompt"]) for row in load_prompts(FOLDER / "memory.json")]


def folder_of(work: Path, model: str) -> Path:
    """The folder in `work` of this model's memory; its name is a key of all that decides what is in there."""
    settings = PRESETS["demo"].model_dump(mode="json")
    layouts = {prompt: plan(prompt).to_json() for prompt in memory_prompts()}
    identity = identity_of(backbone_of(model))
    return work / digest([code_of(*OPTIMISING, *FILING), identity, settings, layouts, FIRST_SEED])


def fill(work: Path, model: str, workers: int | None) -> Path:
    """Solve what is missing of the prompts, and return the store of all of them.

    Its entries are in the order in which the workers came to their ends.
    """
    folder = folder_of(work, model) / "solved"
    with MemoryStore(folder) as store:
        there = {entry.prompt for entry in store.entries()}
    jobs = {
        prompt: (prompt, FIRST_SEED + index, str(folder))
        for index, prompt in enumerate(memory_prompts())
        if prompt not in there
    }
    for _ in tqdm(in_workers(remember, jobs, model, workers), total=len(jobs), desc="remember"):
        pass
    return folder


def consolidate(store: MemoryStore, into: MemoryStore) -> list[MemoryEntry]:
    """One entry for each scene of a memory: the average of its adapters under the first one's prompt."""
    scenes: dict[str, list[MemoryEntry]] = {}
    # Not as they came, or the number of workers would decide whose prompt and whose A an average has.
    for entry in sorted(store.entries(), key=lambda entry: entry.prompt):
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


def write_pack(solved: Path, path: Path) -> None:
    """Consolidate the store at `solved` into a pack of its scenes with previews."""
    with (
        tempfile.TemporaryDirectory() as folder,
        MemoryStore(solved, read_only=True) as store,
        MemoryStore(Path(folder) / "starter") as starter,
    ):
        entries = consolidate(store, starter)
        previews = {}
        for entry in entries:
            assert entry.layout is not None
            canvas = np.full((21, 64, 64, 3), 245, np.uint8)
            previews[entry.id] = Path(folder) / f"{entry.id}.png"
            strip({"layout": draw_layout(canvas, entry.layout)}).save(previews[entry.id])
        path.parent.mkdir(parents=True, exist_ok=True)
        export_pack(starter, entries, path, licence="Apache-2.0", previews=previews)
    print(f"wrote {path}: {len(entries)} scenes, {path.stat().st_size / 1e6:.1f} MB")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--work", type=Path, default=Path("outputs/memories"), help="of what was solved")
    parser.add_argument("--out", type=Path, default=PACK)
    parser.add_argument("--workers", type=int, help="processes of one thread each (default: the cores)")
    options = parser.parse_args(arguments)
    try:
        write_pack(fill(options.work, options.model, options.workers), options.out)
    except TTOMError as error:
        print(f"memories: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("memories: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
