"""`ttom export` and `ttom score`: videos for a public benchmark, and what a detector says of them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TTOMError

if TYPE_CHECKING:
    import numpy as np

    from ..backbones.base import Backbone
    from ..layout import Layout
    from ..optimize import TTOSettings
    from .exports import Clip, Facts, Suite


def add_export(commands: Any) -> list[argparse.ArgumentParser]:
    """Add `export` with a verb for each benchmark to the subcommands of a parser; the verbs' parsers."""
    export = commands.add_parser("export", help="make the videos that a public benchmark scores")
    verbs = export.add_subparsers(required=True, metavar="BENCHMARK")
    compbench = verbs.add_parser("compbench", help="T2V-CompBench, version 2")
    vbench = verbs.add_parser("vbench", help="VBench, in its standard mode")
    vbench.add_argument("--samples", type=int, help="videos a prompt (default: 5, and 25 for flickering)")
    for name, parser in (("categories", compbench), ("dimensions", vbench)):
        parser.add_argument("--clone", type=Path, required=True, metavar="FOLDER", help="a clone of it")
        parser.add_argument(
            "--out", type=Path, required=True, metavar="FOLDER", help="where an earlier run is continued"
        )
        parser.add_argument(
            "--categories", nargs="+", default=(), metavar="NAME", help=f"its {name} (default: all)"
        )
        parser.add_argument("--limit", type=int, metavar="N", help="only the first N prompts")
        parser.add_argument("--base", action="store_true", help="the plain model, to compare with")
        parser.add_argument("--accept-changed", action="store_true", help="whatever the number of prompts")
    compbench.set_defaults(suite=_compbench)
    vbench.set_defaults(suite=_vbench)
    return [compbench, vbench]


def run_export(
    options: argparse.Namespace,
    load: Callable[[str], Backbone],
    settings: TTOSettings | None,
    sampling: dict[str, Any],
    plan: Callable[[str], Layout],
    planner: Facts,
) -> None:
    """Make the videos; `settings` None is the plain model, `planner` says how `plan` makes layouts."""
    from tqdm import tqdm

    from ..generate import generate
    from ..planner import PlanError
    from .exports import check_length, export

    suite: Suite = options.suite(options)
    backbone = load(options.model)
    for note in check_length(suite, sampling["num_frames"], backbone.fps):
        tqdm.write(f"note: {note}")
    rewritten = planner.get("model") is not None  # a language model writes what both videos are made from

    @cache
    def planned(prompt: str) -> Layout | None:
        """The layout of a prompt; None where it names no object, and nothing can be laid out."""
        if settings is None and not rewritten:
            return None
        try:
            return plan(prompt)
        except PlanError:
            return None

    def make(clip: Clip) -> tuple[np.ndarray, Facts]:
        layout = planned(clip.prompt)
        prompt = (layout.prompt if layout and rewritten else "") or clip.prompt
        seed = options.seed + clip.seed
        use = settings if layout else None
        try:
            made = generate(backbone, prompt, layout if use else None, use, seed=seed, **sampling)
        except TTOMError as error:
            raise TTOMError(f"{clip.place}, {prompt!r}: {error}") from error
        trace = made.trace
        return made.frames, {
            "encoded": prompt,
            "seed": seed,
            "planner": layout.planner if layout and use else None,
            "loss_first": trace.first_loss if trace else None,
            "loss_last": trace.last_loss if trace else None,
            "seconds": made.seconds,
        }

    made_with = {
        "backbone": backbone.video_fingerprint,
        "seed": options.seed,
        "sampling": sampling,
        "planner": planner if settings is not None or rewritten else None,
        "tto": settings.model_dump(mode="json") if settings is not None else None,
    }
    made, plain = 0, 0
    clips = export(suite, options.out, make, made_with, backbone.fps)
    for _, facts in tqdm(clips, total=len(suite.clips), desc=suite.benchmark, unit="video"):
        made += facts is not None
        plain += facts is not None and settings is not None and facts["planner"] is None
    tqdm.write(f"{options.out}: {made} videos made, {len(suite.clips) - made} were there")
    if plain:
        tqdm.write(
            f"  {plain} of them are the plain model's: their prompts name nothing that can be laid out"
        )


def _compbench(options: argparse.Namespace) -> Suite:
    from .exports import compbench_suite

    return compbench_suite(
        options.clone, options.categories, options.limit, accept_changed=options.accept_changed
    )


def _vbench(options: argparse.Namespace) -> Suite:
    from .exports import vbench_suite

    return vbench_suite(
        options.clone,
        options.categories,
        options.limit,
        samples=options.samples,
        accept_changed=options.accept_changed,
    )


def add_score(commands: Any) -> None:
    """Add `score` to the subcommands of a parser."""
    score = commands.add_parser("score", help="score an export by a benchmark's formulas, with a detector")
    score.add_argument("folder", type=Path, help="what `ttom export` made; an earlier run is continued")
    score.add_argument(
        "--grounding",
        default="blobs",
        help="what finds the objects in the videos: blobs for the demo's coloured shapes, detector for all "
        "others (default: blobs)",
    )
    score.add_argument("--detector", metavar="MODEL", help="a GroundingDINO: a folder or a name on the Hub")
    score.add_argument("--segmenter", metavar="MODEL", help="a SAM 2: a folder or a name on the Hub")
    score.add_argument("--depth", metavar="MODEL", help="a Depth Anything: a folder or a name on the Hub")
    score.add_argument(
        "--tracker", metavar="MODEL", help="torchvision's raft_large or raft_small; slow without a GPU"
    )
    score.add_argument("--accept-missing", action="store_true", help="score what is there of the videos")
    score.add_argument("--result", type=Path, metavar="JSON", help="default: scores.json in the folder")
    score.set_defaults(run=run_score)


def run_score(options: argparse.Namespace) -> None:
    """Score what a detector can judge of an export folder, print it, and write the result file."""
    from tqdm import tqdm

    from .export_scores import (
        BENCHMARKS,
        DEPTH,
        TRACKER,
        ExportFolder,
        answerable,
        answers,
        figures,
        vision_of,
    )
    from .grounding import DETECTOR, SEGMENTER
    from .results import write_result

    folder = ExportFolder.open(options.folder)
    models = (
        options.detector or DETECTOR,
        options.segmenter or SEGMENTER,
        options.depth or DEPTH,
        options.tracker or TRACKER,
    )
    vision = vision_of(options.grounding, *models, needed=folder.needed())
    questions, left_out, missing = answerable(folder, vision, options.accept_missing)
    found = tqdm(answers(folder, questions, vision), total=len(questions), desc="score", unit="video")
    table = figures(folder, list(found), vision)
    settings = {
        "benchmark": folder.benchmark,
        "formula": BENCHMARKS[folder.benchmark].formula,
        "detector": vision.name,
        "made_with": folder.made_with,
        "left_out": left_out,
        "missing_videos": missing,
    }
    command = f"ttom score {folder.path.resolve().name} --grounding {options.grounding}"
    result = options.result or folder.path / "scores.json"
    write_result(result, command, folder.made_with["seed"], table, settings)
    for name, f in table.items():
        tqdm.write(
            f"{name:28} {f['value']:.3f} ({f['low']:.3f}–{f['high']:.3f}), {f['n']} videos, {f['unit']}"
        )
    for name, reason in left_out.items():
        tqdm.write(f"{name:28} not scored: {reason}")
    if missing:
        tqdm.write(f"{missing} videos were not there")
    tqdm.write(f"wrote {result}")
