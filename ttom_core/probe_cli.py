"""`ttom probe`: which layers of a model see the objects, and so are worth optimising."""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import TTOMError
from .model_cli import add_model, clip_size, loaded

if TYPE_CHECKING:
    from .probe import ProbedClip, Relevance


def add_probe(commands: Any, model: Path) -> argparse.ArgumentParser:
    """Add `probe`, by default of this model, to the subcommands of a parser."""
    probe: argparse.ArgumentParser = commands.add_parser("probe", help="find the layers worth optimising")
    probe.add_argument("file", type=Path, nargs="?", help="one prompt a line")
    probe.add_argument("--prompt", help="a single prompt instead of a file")
    probe.add_argument(
        "--out", type=Path, default=Path("outputs/probe"), help="where an earlier run is continued"
    )
    add_model(probe, model)
    probe.add_argument("--seed", type=int, default=0)
    probe.add_argument("--steps", type=int, default=20, help="denoising steps (default 20)")
    probe.add_argument(
        "--sigma",
        type=float,
        nargs=2,
        default=(0.37, 0.0),
        metavar=("START", "END"),
        help="take the maps at noise levels from here down to here (default: 0.37 0)",
    )
    probe.add_argument(
        "--grounding",
        default="blobs",
        help="what finds the objects in the clips: blobs for the demo's coloured shapes, detector for "
        "all others (default: blobs)",
    )
    probe.add_argument("--detector", metavar="MODEL", help="a GroundingDINO: a folder or a name on the Hub")
    probe.add_argument("--segmenter", metavar="MODEL", help="a SAM 2: a folder or a name on the Hub")
    return probe


def read_prompts(file: Path) -> list[str]:
    """The prompts of a text file, one a line; TTOMError when it cannot be read or holds none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TTOMError(f"{file} cannot be read as text; give a file of one prompt a line.") from error
    prompts = [line.strip() for line in lines if line.strip()]
    if not prompts:
        raise TTOMError(f"{file} holds no prompt; write one a line.")
    return prompts


def run_probe(options: argparse.Namespace) -> None:
    """Probe every prompt, print and draw what was found, and keep it for `--set layers=probed`."""
    from tqdm import tqdm

    from .evaluation.grounding import DETECTOR, SEGMENTER, grounding_of
    from .generate import Progress
    from .pictures import relevance_chart
    from .planner import plan
    from .probe import ProbeSettings, Relevance, probe_prompts, recommend, relevance_file

    if bool(options.file) == bool(options.prompt):
        raise TTOMError("Give a file of prompts, or one with --prompt.")
    texts = read_prompts(options.file) if options.file else [options.prompt]
    prompts = [(text, plan(text).phrases) for text in texts]
    start, end = options.sigma
    settings = ProbeSettings.checked(
        sigma_start=start,
        sigma_end=end,
        steps=options.steps,
        guidance_scale=options.guidance,
        negative_prompt=options.negative,
        **clip_size(options),
    )
    grounding = grounding_of(options.grounding, options.detector or DETECTOR, options.segmenter or SEGMENTER)
    backbone = loaded(options)

    with tqdm(total=len(prompts) * options.steps, desc="probe") as bar:

        def advance(progress: Progress) -> None:
            bar.update(1)
            bar.set_postfix_str(progress.message)

        parts = []
        for part in probe_prompts(
            backbone, prompts, grounding, settings, options.out / "clips",
            seed=options.seed, on_progress=advance, on_clip=partial(_draw, options.out),
        ):  # fmt: skip
            parts.append(part)
            bar.n = len(parts) * options.steps
            bar.refresh()

    found = Relevance.pooled(parts)
    layers = recommend(found)
    found.save(options.out / "relevance.json")
    relevance_chart(found.layers, found.heads, layers).save(options.out / "relevance.png")
    found.save(relevance_file(backbone.fingerprint))
    _tell(found, layers)
    print(f"wrote {options.out}/; `--set layers=probed` now stands for {list(layers)}")


def _draw(out: Path, index: int, clip: ProbedClip) -> None:
    """The maps of every phrase over its clip."""
    from .pictures import relevance_strip

    out.mkdir(parents=True, exist_ok=True)
    for n, phrase in enumerate(clip.phrases):
        maps = clip.maps[:, n]
        picture = relevance_strip(clip.frames, phrase, clip.masks[n], maps, clip.relevance.layers)
        name = re.sub(r"\W+", "_", phrase)[:60]
        picture.save(out / f"{index:05}_{name}.png")


def _tell(found: Relevance, layers: tuple[int, ...]) -> None:
    print("layer  soft IoU  best head")
    for layer, (iou, heads) in enumerate(zip(found.layers, found.heads, strict=True)):
        best = max(range(len(heads)), key=heads.__getitem__)
        mark = "  recommended" if layer in layers else ""
        print(f"{layer:5}  {iou:8.3f}  {heads[best]:.3f} (head {best}){mark}")
    print(f"{found.n} objects found by {found.grounding} in clips of {found.fingerprint}")
