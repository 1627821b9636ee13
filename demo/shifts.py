"""A memory of noise shifts of the demo model: `python -m demo.shifts`.

The prompts of prompts/memory.json are taken scene by scene. A scene's shift is learnt on them and on prompts
like them with the other objects of that file, on fresh noises; then it has to earn its place. The scene's own
prompts are made with and without it, nothing being optimised, and it is kept only where the scorer finds
their composition no lower and their presence no lower by more than 0.03. No held-out prompt is seen.

40 scenes of about 100 s on a core: 17 minutes on four cores. Interrupted, the same command goes on from
the last scene; another model, other settings or other code begin a memory of their own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ttom_core.errors import TTOMError
from ttom_core.evaluation.evaluate import OPTIMISING, SCORING, Clip, load_prompts, make_clip
from ttom_core.evaluation.pool import Row, backbone_of, code_of, digest, identity_of, read_rows, rows_of
from ttom_core.memory.embedding import PipelineEmbedder
from ttom_core.memory.key import scene_key
from ttom_core.memory.recall import insert, scene_of
from ttom_core.memory.rehearsal import rehearsals
from ttom_core.memory.store import MemoryStore
from ttom_core.noise import ShiftSettings, learn_shift, shifted
from ttom_core.optimize import PRESETS
from ttom_core.planner import plan

from .prompts import FOLDER
from .train import MODEL

HOW = ShiftSettings()
LESSONS = 64
CHECKS = 8  # clips with the shift, and as many without
LOST_PRESENCE = 0.03
STEPS = 20
FIRST_SEED, FIRST_CHECK = 200_000, 300_000  # far from any seed that a prompt is evaluated with
LEARNING = ("noise", "memory/rehearsal", "memory/embedding", "memory/key")


class Scene(NamedTuple):
    """The prompts of one scene with what is expected of them, and all prompts that the memory knows."""

    specs: list[dict[str, Any]]
    known: list[str]
    folder: str

    def key(self, model: str) -> str:
        """What decides the scene's entry and its row."""
        how = [HOW.model_dump(mode="json"), LESSONS, CHECKS, LOST_PRESENCE, STEPS, FIRST_SEED, FIRST_CHECK]
        preset = PRESETS["demo"].model_dump(mode="json")
        layouts = [plan(prompt).to_json() for prompt in self.known]
        return digest([model, how, preset, layouts, self.specs, code_of(*LEARNING, *OPTIMISING, *SCORING)])


def learn_scene(backbone: Any, scene: Scene) -> Row:
    """Learn one scene's shift, check it, and keep it where it earns its place; in a worker."""
    settings = PRESETS["demo"]
    solved = [(spec["prompt"], plan(spec["prompt"])) for spec in scene.specs]
    lessons = rehearsals(solved, [plan(prompt) for prompt in scene.known], LESSONS, FIRST_SEED)
    how = HOW.model_copy(update={"seed": FIRST_SEED})
    shift, losses = learn_shift(backbone, lessons, settings, how, steps=STEPS)
    found: Row = {"scene": scene_key(*solved[0]).sentence, "prompts": len(solved)}
    found |= {"first_loss": float(np.mean(losses[:8])), "last_loss": float(np.mean(losses[-8:]))}
    for name, adapter in (("without", None), ("with", shift)):
        rows = []
        for index in range(CHECKS):
            clip = Clip(scene.specs[index % len(solved)], None, FIRST_CHECK + index, STEPS)
            with shifted(backbone, adapter):
                rows.append(make_clip(backbone, clip))
        for quality in ("composition", "presence"):
            found[f"{quality}_{name}"] = float(np.mean([row[quality] for row in rows]))
    earned = found["composition_with"] >= found["composition_without"]
    found["kept"] = earned and found["presence_with"] >= found["presence_without"] - LOST_PRESENCE
    if found["kept"]:
        with MemoryStore(scene.folder) as store:
            insert(
                store,
                scene_of(*solved[0], PipelineEmbedder(backbone.pipeline)),
                shift,
                settings={**settings.model_dump(mode="json"), "shift": how.model_dump(mode="json")},
                loss_first=found["first_loss"],
                loss_last=found["last_loss"],
                note=f"shift of the noise, learnt from {len(solved)} prompts",
            )
    return found


def scenes(size: int, folder: Path) -> list[Scene]:
    """The first `size` memory prompts by scene."""
    specs = load_prompts(FOLDER / "memory.json", size)
    known = [str(spec["prompt"]) for spec in specs]
    groups: dict[str, list[dict[str, Any]]] = {}
    for spec in specs:
        groups.setdefault(scene_key(spec["prompt"], plan(spec["prompt"])).digest, []).append(spec)
    return [Scene(group, known, str(folder)) for group in groups.values()]


def folder_of(work: Path, model: str, size: int = 200) -> Path:
    """The folder in `work` of this model's memory of shifts; its name is a key of what decides it."""
    identity = identity_of(backbone_of(model))
    return work / digest([scene.key(identity) for scene in scenes(size, Path())]) / "shifts"


def fill(work: Path, model: str, workers: int | None, size: int = 200) -> Path:
    """Learn what is missing of the scenes, and return the store of those that earned their place."""
    folder = folder_of(work, model, size)
    identity = identity_of(backbone_of(model))
    MemoryStore(folder).close()  # there even if nothing is worth keeping
    jobs = {scene.key(identity): scene for scene in scenes(size, folder)}
    with tqdm(desc="scenes", total=len(jobs)) as bar:

        def on_row(left: int, row: Row) -> None:
            bar.n = len(jobs) - left
            bar.refresh()

        rows_of(learn_scene, jobs, model, folder.parent / "scenes.jsonl", workers=workers, on_row=on_row)
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--work", type=Path, default=Path("outputs/memories"))
    parser.add_argument("--workers", type=int, help="processes of one thread each (default: the cores)")
    options = parser.parse_args(arguments)
    try:
        folder = fill(options.work, options.model, options.workers)
        rows = [*read_rows(folder.parent / "scenes.jsonl").values()]
        print(told(rows))
        print(f"{sum(row['kept'] for row in rows)} of {len(rows)} scenes, in {folder}")
    except TTOMError as error:
        print(f"shifts: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("shifts: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
