"""A memory of the scenes of 200 prompts, and the starter pack made from it: `python -m demo.memories`.

The prompts of prompts/memory.json are taken scene by scene, and one adapter a scene is consolidated: learnt
over many clips of the scene's prompts on fresh noise. Then it has to earn its place. The scene's own prompts
are made with and without it, nothing being optimised, and it is kept only where the scorer finds their
composition no lower and their presence no lower by more than 0.03. The average of those that are kept goes in
as well, for an optimisation to start from. No held-out prompt is seen.

39 scenes of about 165 s on a core: 27 minutes on four cores. Interrupted, the same command goes on from the
last scene; another model, other settings or other code begin a memory of their own.

Beside it the paper's memory can be made, which benchmarks/memory_quality.py compares it with: every prompt
optimised from scratch, an entry a prompt, averaged when they are read.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ttom_core.consolidate import consolidate
from ttom_core.errors import TTOMError
from ttom_core.evaluation.evaluate import OPTIMISING, SCORING, Clip, load_prompts, make_clip
from ttom_core.evaluation.pool import (
    Row,
    backbone_of,
    code_of,
    digest,
    identity_of,
    in_workers,
    read_rows,
    rows_of,
)
from ttom_core.generate import generate
from ttom_core.memory.embedding import PipelineEmbedder
from ttom_core.memory.key import scene_key
from ttom_core.memory.pack import export_pack
from ttom_core.memory.recall import insert, scene_of
from ttom_core.memory.store import MemoryStore
from ttom_core.optimize import PRESETS
from ttom_core.pictures import draw_layout, strip
from ttom_core.planner import plan
from ttom_core.scenes import share

from .prompts import FOLDER
from .train import MODEL

PACK = Path(__file__).resolve().parent.parent / "memory_store" / "starter" / "demo.ttompack"
STEPS = 20
CLIPS = 32  # that a scene is consolidated over
CHECKS = 8  # clips with its adapter, and as many without
LOST_PRESENCE = 0.03
# Far from any seed that a prompt is evaluated with.
FIRST_SOLVED, FIRST_CLIP, FIRST_CHECK = 100_000, 200_000, 300_000
FILING = ("memory/embedding", "memory/key")  # the code that says what an adapter is found by


def memory_specs() -> list[dict[str, Any]]:
    """What a memory of the demo model is built from, in order, with what the scorer expects."""
    return load_prompts(FOLDER / "memory.json")


def _name(*more: Any) -> str:
    """A key of all that decides what a memory holds."""
    layouts = [plan(spec["prompt"]).to_json() for spec in memory_specs()]
    return digest([PRESETS["demo"].model_dump(mode="json"), layouts, *more])


# Consolidated scenes ------------------------------------------------------------------------------


class SceneJob(NamedTuple):
    """The prompts of one scene with what is expected of them, and the store that it goes into."""

    specs: list[dict[str, Any]]
    folder: str


def learn(backbone: Any, job: SceneJob) -> Row:
    """Consolidate one scene, check it, and keep it where it earns its place; in a worker."""
    settings = PRESETS["demo"]
    reading = settings.model_copy(update={"iterations": 0})
    lessons = [(spec["prompt"], plan(spec["prompt"])) for spec in job.specs]
    adapter, losses = consolidate(backbone, lessons, settings, clips=CLIPS, seed=FIRST_CLIP, steps=STEPS)
    found: Row = {"scene": scene_key(*lessons[0]).sentence, "prompts": len(lessons)}
    found |= {"first_loss": float(np.mean(losses[:4])), "last_loss": float(np.mean(losses[-4:]))}
    # Half the pack's size, and nothing lost that a check would see.
    halved = {name: (a.bfloat16(), b.bfloat16()) for name, (a, b) in adapter.weights.items()}
    adapter = replace(adapter, weights=halved)
    for name in ("without", "with"):
        rows = []
        for index in range(CHECKS):
            chosen, read = (reading, adapter) if name == "with" else (None, None)
            clip = Clip(job.specs[index % len(lessons)], chosen, FIRST_CHECK + index, STEPS)
            rows.append(make_clip(backbone, clip, read))
        for quality in ("composition", "presence"):
            found[f"{quality}_{name}"] = float(np.mean([row[quality] for row in rows]))
    earned = found["composition_with"] >= found["composition_without"]
    found["kept"] = earned and found["presence_with"] >= found["presence_without"] - LOST_PRESENCE
    if found["kept"]:
        with MemoryStore(job.folder) as store:
            insert(
                store,
                scene_of(*lessons[0], PipelineEmbedder(backbone.pipeline)),
                adapter,
                settings=settings.model_dump(mode="json"),
                lora_seed=settings.lora_seed,
                loss_first=found["first_loss"],
                loss_last=found["last_loss"],
                note=f"consolidated over {CLIPS} clips of {len(lessons)} prompts",
            )
    return found


def scenes_folder(work: Path, model: str) -> Path:
    """The folder in `work` of this model's consolidated scenes."""
    how = [CLIPS, CHECKS, LOST_PRESENCE, STEPS, FIRST_CLIP, FIRST_CHECK, memory_specs()]
    code = code_of("consolidate", *OPTIMISING, *SCORING, *FILING)
    return work / _name(identity_of(backbone_of(model)), code, how) / "scenes"


def fill_scenes(work: Path, model: str, workers: int | None) -> Path:
    """Consolidate what is missing of the scenes, and return the store of those that earned their place."""
    folder = scenes_folder(work, model)
    MemoryStore(folder).close()  # there even if nothing is worth keeping
    scenes: dict[str, list[dict[str, Any]]] = {}
    for spec in memory_specs():
        scenes.setdefault(scene_key(spec["prompt"], plan(spec["prompt"])).digest, []).append(spec)
    jobs = {key: SceneJob(specs, str(folder)) for key, specs in scenes.items()}
    with tqdm(desc="scenes", total=len(jobs)) as bar:

        def on_row(left: int, row: Row) -> None:
            bar.n = len(jobs) - left
            bar.refresh()

        rows_of(learn, jobs, model, folder.parent / "scenes.jsonl", workers=workers, on_row=on_row)
    with MemoryStore(folder) as store:
        share(store, backbone_of(model).fingerprint)
    return folder


def told(rows: Sequence[Row]) -> str:
    """A table of the scenes, a line each."""
    lines = ["kept  loss             composition    presence       scene"]
    for row in rows:
        cells = [
            f"{row[f'{quality}_without']:.2f} → {row[f'{quality}_with']:.2f}"
            for quality in ("composition", "presence")
        ]
        kept = "yes" if row["kept"] else "no"
        loss = f"{row['first_loss']:.3f} → {row['last_loss']:.3f}"
        lines.append(f"{kept:4}  {loss}    {cells[0]}    {cells[1]}    {row['scene']}")
    return "\n".join(lines)


def write_pack(scenes: Path, path: Path) -> None:
    """Write the store of scenes as a pack with previews."""
    with tempfile.TemporaryDirectory() as folder, MemoryStore(scenes, read_only=True) as store:
        entries, previews = list(store.entries()), {}
        for entry in entries:
            if entry.layout is None:  # what all scenes share
                continue
            canvas = np.full((21, 64, 64, 3), 245, np.uint8)
            previews[entry.id] = Path(folder) / f"{entry.id}.png"
            strip({"layout": draw_layout(canvas, entry.layout)}).save(previews[entry.id])
        path.parent.mkdir(parents=True, exist_ok=True)
        export_pack(store, entries, path, licence="Apache-2.0", previews=previews)
    print(f"wrote {path}: {len(previews)} scenes and what they share, {path.stat().st_size / 1e6:.1f} MB")


# Solved prompts -----------------------------------------------------------------------------------


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


def solved_folder(work: Path, model: str) -> Path:
    """The folder in `work` of this model's solved prompts."""
    code = code_of(*OPTIMISING, *FILING)
    return work / _name(identity_of(backbone_of(model)), code, FIRST_SOLVED) / "solved"


def fill_solved(work: Path, model: str, workers: int | None) -> Path:
    """Solve what is missing of the prompts, and return the store of all of them.

    Its entries are in the order in which the workers came to their ends.
    """
    folder = solved_folder(work, model)
    with MemoryStore(folder) as store:
        there = {entry.prompt for entry in store.entries()}
    prompts = [str(spec["prompt"]) for spec in memory_specs()]
    jobs = {
        prompt: (prompt, FIRST_SOLVED + index, str(folder))
        for index, prompt in enumerate(prompts)
        if prompt not in there
    }
    for _ in tqdm(in_workers(remember, jobs, model, workers), total=len(jobs), desc="remember"):
        pass
    return folder


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--work", type=Path, default=Path("outputs/memories"), help="of what was learnt")
    parser.add_argument("--out", type=Path, default=PACK)
    parser.add_argument("--workers", type=int, help="processes of one thread each (default: the cores)")
    options = parser.parse_args(arguments)
    try:
        folder = fill_scenes(options.work, options.model, options.workers)
        print(told([*read_rows(folder.parent / "scenes.jsonl").values()]))
        write_pack(folder, options.out)
    except TTOMError as error:
        print(f"memories: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("memories: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
