"""What a detector can say of an export folder: the benchmarks' formulas, with any vision.

A score is one line of scores.jsonl under a key of the video's bytes, of what was asked and of who looked, so
that an interrupted run goes on, and a video that was made again is looked at again.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import TTOMError
from . import compbench, vbench
from .detectors import DepthAnything, GroundingDino, Raft, Sam2, Vision, rendered_vision
from .evaluate import estimate
from .exports import COMPBENCH, WANTED
from .grounding import DETECTOR, GROUNDINGS, SEGMENTER
from .pool import Row, digest, read_rows

VERSION = 1  # raised when the same video is scored another way: scores of before then count for nothing
DEPTH = "LiheYoung/depth-anything-large-hf"  # the benchmark's own, depth_anything_vitl14, for transformers
TRACKER = "raft_large"
PARTS = {"segment": "segmenter", "track": "tracker", "depth": "depth estimator"}
PLACE = re.compile(r"video/\w+/\d{4}\.mp4|videos/[^/\\]+\.mp4")


def vision_of(
    choice: str,
    detector: str = DETECTOR,
    segmenter: str = SEGMENTER,
    depth: str = DEPTH,
    tracker: str = TRACKER,
    needed: Collection[str] = tuple(PARTS),
) -> Vision:
    """Who looks at the videos: "blobs" for the demo's coloured shapes, "detector" for all others.

    TTOMError for anything else, DetectorError when a package or weights are missing: the models of all
    `needed` parts are tried here, not only at the first video that needs them.
    """
    if choice == "blobs":
        return rendered_vision()
    if choice != "detector":
        raise TTOMError(f"There is no grounding {choice!r}; choose one of {', '.join(GROUNDINGS)}.")
    models = (detector, segmenter, depth, tracker)
    name = " + ".join(model.replace("\\", "/").rstrip("/").split("/")[-1] for model in models)
    vision = Vision(name, GroundingDino(detector), Sam2(segmenter), Raft(tracker), DepthAnything(depth))
    blank = np.zeros((64, 64, 3), np.uint8)
    vision.detect(blank, "nothing", 0.5, 0.5)
    if "segment" in needed:
        vision.segment(blank, [(0, 0, 1, 1)])
    if "depth" in needed:
        vision.depth(blank)
    if "track" in needed:
        vision.track(blank[None])
    return vision


# What is to be scored -----------------------------------------------------------------------------


class Question(NamedTuple):
    """One score to give: of the video at `place`, for a benchmark's `dimension`, by its metadata `row`."""

    place: str
    dimension: str
    row: Mapping[str, Any]


@dataclass(frozen=True)
class ExportFolder:
    """A folder that `ttom export` made, finished or not; `wanted` is the prompt of each video's place."""

    path: Path
    benchmark: str
    made_with: Mapping[str, Any]
    wanted: Mapping[str, str]

    @classmethod
    def open(cls, path: Path) -> ExportFolder:
        """TTOMError when there is no such folder, or it is none of `ttom export`'s."""
        if not path.is_dir():
            raise TTOMError(f"There is no folder {path}; make one with `ttom export`.")
        try:
            record = json.loads((path / "export.json").read_text(encoding="utf-8"))
            benchmark, made_with = record["benchmark"], record["made_with"]
            wanted = {place: row["prompt"] for place, row in read_rows(path / WANTED).items()}
            assert benchmark in BENCHMARKS and isinstance(made_with["seed"], int)
            assert all(PLACE.fullmatch(place) for place in wanted)
        except (OSError, ValueError, KeyError, TypeError, RecursionError, AssertionError) as error:
            raise TTOMError(
                f"{path} holds no export that can be read; give a `ttom export` --out."
            ) from error
        if not wanted:
            raise TTOMError(
                f"{path} does not say which videos it should hold; give its `ttom export` command once more."
            )
        return cls(path, benchmark, made_with, wanted)

    def questions(self) -> list[Question]:
        """Everything that a detector can be asked of the wanted videos, in their order."""
        return list(BENCHMARKS[self.benchmark].questions(self))

    def needed(self) -> set[str]:
        """The parts of a Vision that the questions take beside the detector."""
        needs = BENCHMARKS[self.benchmark].needs
        return {part for question in self.questions() for part in needs.get(question.dimension, ())}

    def rows(self, place: str) -> list[dict[str, Any]]:
        """The rows of a metadata file; TTOMError when it is none."""
        try:
            rows = json.loads((self.path / place).read_text(encoding="utf-8"))
            assert isinstance(rows, list) and all(isinstance(row, dict) for row in rows)
        except (OSError, ValueError, RecursionError, AssertionError) as error:
            raise TTOMError(
                f"{self.path / place} is no JSON list of rows; export to a new folder."
            ) from error
        return rows


def _compbench_questions(folder: ExportFolder) -> Iterator[Question]:
    metadata: dict[str, list[dict[str, Any]]] = {}
    for place in folder.wanted:
        category, number = place.split("/")[1], int(place[-8:-4])
        if category in COMPBENCH and category not in metadata:
            metadata[category] = folder.rows(COMPBENCH[category][1])
        if not 1 <= number <= len(metadata.get(category, ())):
            raise TTOMError(f"{folder.path / WANTED} wants {place}, which has no metadata; export anew.")
        row = metadata[category][number - 1]
        if asked := compbench.dimension(row):
            yield Question(place, asked, row)


def _vbench_questions(folder: ExportFolder) -> Iterator[Question]:
    about: dict[str, list[tuple[str, dict[str, Any]]]] = {}
    for row in folder.rows("VBench_full_info.json"):
        if asked := vbench.dimension(row):
            about.setdefault(row.get("prompt_en", ""), []).append((asked, row))
    for place, prompt in folder.wanted.items():
        for asked, row in about.get(prompt, ()):
            yield Question(place, asked, row)


class Benchmark(NamedTuple):
    """How a benchmark's folder is read and its videos are judged."""

    formula: str  # what its results may be called: never the benchmark's own score
    questions: Callable[[ExportFolder], Iterator[Question]]
    score: Callable[[np.ndarray, float, Mapping[str, Any], Vision], float]
    needs: Mapping[str, tuple[str, ...]]  # dimension → parts of a Vision beside the detector


BENCHMARKS = {
    "T2V-CompBench v2": Benchmark(
        "CompBench formula", _compbench_questions, compbench.score, compbench.NEEDS
    ),
    "VBench": Benchmark(
        "VBench formula",
        _vbench_questions,
        lambda frames, fps, row, vision: vbench.score(frames, row, vision.detect),
        {},
    ),
}


def answerable(
    folder: ExportFolder, vision: Vision, accept_missing: bool = False
) -> tuple[list[Question], dict[str, str], int]:
    """What can be asked of whom: questions, why other dimensions are left out, and how many videos lack.

    TTOMError when nothing is left, or, unless `accept_missing`, when a video is not there yet.
    """
    needs = BENCHMARKS[folder.benchmark].needs
    left_out, questions = {}, []
    for question in folder.questions():
        if lacking := vision.lacking(needs.get(question.dimension, ())):
            left_out[question.dimension] = f"needs a {' and a '.join(PARTS[part] for part in lacking)}"
        else:
            questions.append(question)
    if not questions:
        why = "; ".join(f"{name} {reason}" for name, reason in left_out.items())
        raise TTOMError(
            f"Nothing in {folder.path} can be scored with {vision.name}: "
            f"{why or 'what it holds takes other judges than a detector'}; export other categories."
        )
    places = dict.fromkeys(question.place for question in questions)
    missing = [place for place in places if not (folder.path / place).is_file()]
    if missing and (not accept_missing or len(missing) == len(places)):
        way = "" if len(missing) == len(places) else ", or say --accept-missing to score what is there"
        raise TTOMError(
            f"{folder.path} lacks {len(missing)} of its {len(places)} videos to score, {missing[0]} first; "
            f"finish it with its `ttom export` command{way}."
        )
    lost = set(missing)
    return [question for question in questions if question.place not in lost], left_out, len(missing)


# Scoring ------------------------------------------------------------------------------------------


def answers(folder: ExportFolder, questions: Sequence[Question], vision: Vision) -> Iterator[Row]:
    """The row of every question, {key, place, dimension, score}; what scores.jsonl holds is not asked again.

    TTOMError with the video's name where it cannot be read or scored.
    """
    path = folder.path / "scores.jsonl"
    known = read_rows(path)
    with path.open("a", encoding="utf-8") as file:
        for question in questions:
            video = folder.path / question.place
            content = hashlib.sha256(video.read_bytes()).hexdigest()
            key = digest([VERSION, vision.name, question.dimension, question.row, content])
            if key not in known:
                frames, fps = read_video(video)
                try:
                    value = BENCHMARKS[folder.benchmark].score(frames, fps, question.row, vision)
                except TTOMError as error:
                    raise TTOMError(f"{question.place}: {error}") from error
                row = {"place": question.place, "dimension": question.dimension, "score": value}
                known[key] = {"key": key, **row}
                file.write(json.dumps(known[key]) + "\n")
                file.flush()
            yield known[key]


def read_video(path: Path) -> tuple[np.ndarray, float]:
    """Frames uint8 [F, H, W, 3] and frames a second; TTOMError for what is no video."""
    import imageio.v3 as imageio

    try:
        frames = imageio.imread(path, plugin="FFMPEG")
        return frames, float(imageio.immeta(path, plugin="FFMPEG")["fps"])
    except (OSError, ValueError, RuntimeError, KeyError, IndexError) as error:
        raise TTOMError(
            f"{path} cannot be read as a video; delete it, and export again with the same command."
        ) from error


def figures(folder: ExportFolder, rows: Sequence[Row], vision: Vision) -> dict[str, dict[str, Any]]:
    """A result file's figures: the mean of each dimension, with its 95 % interval over videos.

    CompBench's spatial relationships also as one, where both halves could be judged.
    """
    unit = f"{BENCHMARKS[folder.benchmark].formula}, detector {vision.name}"
    scores: dict[str, list[float]] = {}
    for row in rows:
        scores.setdefault(row["dimension"], []).append(row["score"])
    halves = [scores[name] for name in compbench.SPATIAL if name in scores]
    if len(halves) == len(compbench.SPATIAL):
        scores["spatial_relationships"] = [value for half in halves for value in half]
    return {name: estimate(values, unit) for name, values in scores.items()}
