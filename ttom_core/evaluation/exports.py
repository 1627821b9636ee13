"""Videos for public benchmarks: prompts from a clone of theirs, files named as their scripts read them.

A suite says which videos a benchmark wants; `export` makes those that are not there yet. Neither benchmark's
prompts or code are part of this repository.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TTOMError
from ..pictures import save_video
from .compbench import SAMPLED, tracked_count
from .pool import read_rows

VERSION = 1
MAX_BYTES = 20_000_000  # of a file in a clone
MAX_PROMPT = 2000  # characters
MAX_NAME = 255  # bytes of a file name
WANTED = "wanted.jsonl"

# Folder of videos → list of prompts, metadata (T2V-CompBench, version 2).
COMPBENCH = {
    "consistent_attr": ("prompts/1_consistent_attr.txt", "meta_data/consistent_attribute_binding.json"),
    "dynamic_attr": ("prompts/2_dynamic_attr.txt", "meta_data/dynamic_attribute_binding.json"),
    "spatial_relationships": ("prompts/3_spatial_relationship.txt", "meta_data/spatial_relationships.json"),
    "motion_binding": ("prompts/4_motion_binding.txt", "meta_data/motion_binding.json"),
    "action_binding": ("prompts/5_action_binding.txt", "meta_data/action_binding.json"),
    "interaction": ("prompts/6_interaction.txt", "meta_data/object_interactions.json"),
    "generative_numeracy": ("prompts/7_numeracy.txt", "meta_data/generative_numeracy.json"),
}
COMPBENCH_PROMPTS = 200  # a category

VBENCH_INFO = "vbench/VBench_full_info.json"
VBENCH_PROMPTS = 946
VBENCH_SAMPLES = 5
# Their static filter picks 5 of these.
VBENCH_FLICKERING_SAMPLES = 25
VBENCH_LONG = 5.0  # seconds from which VBench-Long is meant to be used

Facts = dict[str, Any]


@dataclass(frozen=True)
class Clip:
    """One video: its place in the export folder, its prompt, and what is added to the run's seed."""

    place: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Suite:
    """What a benchmark wants: the videos, and the files its scripts read beside them, by their place."""

    benchmark: str
    clips: tuple[Clip, ...]
    files: Mapping[str, bytes]

    @property
    def folders(self) -> tuple[str, ...]:
        """Where videos lie, in order."""
        return tuple(dict.fromkeys(clip.place.rpartition("/")[0] for clip in self.clips))


# The benchmarks -----------------------------------------------------------------------------------


def compbench_suite(
    clone: Path,
    categories: Collection[str] = (),
    limit: int | None = None,
    *,
    accept_changed: bool = False,
) -> Suite:
    """T2V-CompBench version 2: `video/CATEGORY/0001.mp4` and on, with prompts and metadata beside `video`.

    `categories` are names of COMPBENCH (default: all), `limit` keeps the first prompts of each: their
    scripts find the metadata by the number. TTOMError when the clone is none, or, unless `accept_changed`,
    when a category has not 200 prompts.
    """
    address = "https://github.com/KaiyueSun98/T2V-CompBench"
    chosen = _chosen(categories, COMPBENCH)
    _check_limit(limit)
    files = {}
    clips = []
    for category in chosen:
        prompts_place, metadata_place = COMPBENCH[category]
        for place in (prompts_place, metadata_place):
            files[place] = _read(clone, place, address)
        prompts = _lines(files[prompts_place], clone / prompts_place)
        rows = _rows(files[metadata_place], clone / metadata_place, "prompt")
        if len(prompts) != len(rows):
            raise TTOMError(
                f"{clone} has {len(prompts)} prompts in {prompts_place} and {len(rows)} rows in "
                f"{metadata_place}; update the clone until they are as many."
            )
        _check_count(len(prompts), COMPBENCH_PROMPTS, f"{clone / prompts_place}", accept_changed)
        if len(prompts) > 9999:
            raise TTOMError(f"{clone / prompts_place} has {len(prompts)} prompts; four digits name 9999.")
        clips += [
            Clip(f"video/{category}/{index + 1:04}.mp4", prompt, index)
            for index, prompt in enumerate(prompts[:limit])
        ]
    return Suite("T2V-CompBench v2", tuple(clips), files)


def vbench_suite(
    clone: Path,
    dimensions: Collection[str] = (),
    limit: int | None = None,
    *,
    samples: int | None = None,
    accept_changed: bool = False,
) -> Suite:
    """VBench: `videos/PROMPT-0.mp4` and on, for its standard mode; 5 samples a prompt, 25 for flickering.

    `dimensions` are those of its prompt list (default: all), `limit` keeps the first prompts of them.
    TTOMError when the clone is none, when a prompt makes no file name, or, unless `accept_changed`, when
    there are not 946 prompts.
    """
    address = "https://github.com/Vchitect/VBench"
    content = _read(clone, VBENCH_INFO, address)
    rows = _rows(content, clone / VBENCH_INFO, "prompt_en")
    if not all(isinstance(row.get("dimension"), list) for row in rows):
        raise TTOMError(f"{clone / VBENCH_INFO} has a row without its list of dimensions; update the clone.")
    _check_count(len(rows), VBENCH_PROMPTS, f"{clone / VBENCH_INFO}", accept_changed)
    _check_limit(limit)
    if samples is not None and not 1 <= samples <= 100:
        raise TTOMError(f"Between 1 and 100 samples a prompt can be made, not {samples}.")
    known = dict.fromkeys(str(name) for row in rows for name in row["dimension"])
    chosen = set(_chosen(dimensions, known))
    wanted = [(k, row) for k, row in enumerate(rows) if chosen & set(map(str, row["dimension"]))]
    clips: dict[str, Clip] = {}
    for index, row in wanted[:limit]:
        usual = VBENCH_FLICKERING_SAMPLES if "temporal_flickering" in row["dimension"] else VBENCH_SAMPLES
        for sample in range(samples or usual):
            place = f"videos/{_file_name(row['prompt_en'], sample)}"
            # The list has a few prompts twice, for other dimensions: one video serves both.
            clips.setdefault(place, Clip(place, row["prompt_en"], 100 * index + sample))
    return Suite("VBench", tuple(clips.values()), {"VBench_full_info.json": content})


def check_length(suite: Suite, frames: int, fps: float) -> list[str]:
    """TTOMError when clips are too short for a benchmark's scripts; else what is to be known about them."""
    if frames < SAMPLED:
        raise TTOMError(
            f"{suite.benchmark} looks at {SAMPLED} frames of a video, and these have {frames}; "
            f"set --frames to {SAMPLED} or more."
        )
    if "video/motion_binding" in suite.folders:
        tracked_count(frames, fps)
    if suite.benchmark == "VBench" and frames / fps >= VBENCH_LONG:
        return [f"clips of {frames / fps:.2f} s are VBench-Long's; VBench itself is for those under 5 s"]
    return []


def _file_name(prompt: str, sample: int) -> str:
    """PROMPT-SAMPLE.mp4; TTOMError when no file can have that name, for VBench finds no other."""
    name = f"{prompt}-{sample}.mp4"
    fault = ""
    if not prompt.strip():
        fault = "is empty"
    elif any(unicodedata.category(sign) in ("Cc", "Cs", "Zl", "Zp") for sign in prompt):
        fault = "has a line break or another control character"
    elif "/" in prompt or (os.name == "nt" and re.search(r'[<>:"\\|?*]', prompt)):
        fault = "has a character that no file name can hold"
    elif len(name.encode()) > MAX_NAME:
        fault = f"makes a file name of {len(name.encode())} bytes, and {MAX_NAME} is the most"
    if fault:
        raise TTOMError(
            f"The prompt {_short(prompt)} {fault}, and VBench finds a video by its prompt; mend the clone."
        )
    return name


# Reading a clone ----------------------------------------------------------------------------------


def _read(clone: Path, place: str, address: str) -> bytes:
    if not clone.is_dir():
        raise TTOMError(f"There is no folder {clone}; clone {address} and give its folder.")
    try:
        if (clone / place).stat().st_size > MAX_BYTES:
            raise TTOMError(f"{clone / place} is larger than {MAX_BYTES} bytes; clone {address} again.")
        return (clone / place).read_bytes()
    except OSError as error:
        raise TTOMError(f"{clone} has no readable {place}; give a clone of {address}.") from error


def _lines(content: bytes, path: Path) -> list[str]:
    """The prompts of a text file, one a line, and none of them empty."""
    try:
        # Only \n ends a line: other signs that Python takes for line ends would shift the numbers.
        lines = content.decode("utf-8").replace("\r\n", "\n").rstrip().split("\n")
    except UnicodeDecodeError as error:
        raise TTOMError(f"{path} is no UTF-8 text; update the clone.") from error
    prompts = [line.strip() for line in lines]
    for number, prompt in enumerate(prompts, start=1):
        _check_prompt(prompt, f"Line {number} of {path}")
    return prompts


def _rows(content: bytes, path: Path, key: str) -> list[dict[str, Any]]:
    """The rows of a metadata file, each with its prompt under `key`."""
    try:
        rows = json.loads(content)
        prompts = [row[key] for row in rows]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise TTOMError(f"{path} is no JSON list of rows with {key!r}; update the clone.") from error
    for number, prompt in enumerate(prompts, start=1):
        _check_prompt(prompt, f"Row {number} of {path}")
    return list(rows)


def _check_prompt(prompt: Any, where: str) -> None:
    if not isinstance(prompt, str) or not prompt.strip() or len(prompt) > MAX_PROMPT:
        raise TTOMError(f"{where} holds no prompt of 1 to {MAX_PROMPT} characters; update the clone.")


def _check_count(count: int, expected: int, where: str, accept_changed: bool) -> None:
    if count != expected and not accept_changed:
        raise TTOMError(
            f"{where} has {count} prompts and not the {expected} that are published; check the clone's "
            "version, or say --accept-changed to export what is there."
        )


def _check_limit(limit: int | None) -> None:
    if limit is not None and limit < 1:
        raise TTOMError(f"The limit keeps at least 1 prompt, not {limit}.")


def _chosen(names: Collection[str], known: Collection[str]) -> tuple[str, ...]:
    """The names that were asked for, in their own order; all when none was."""
    for name in names:
        if name not in known:
            raise TTOMError(f"There is no category {name!r}; choose from {', '.join(known)}.")
    return tuple(name for name in known if not names or name in names)


# Making the videos --------------------------------------------------------------------------------


def export(
    suite: Suite,
    out: Path,
    make: Callable[[Clip], tuple[np.ndarray, Facts]],
    made_with: Facts,
    fps: float,
) -> Iterator[tuple[Clip, Facts | None]]:
    """Make every video of a suite that is not in `out`; yield each clip with its facts, None if it was there.

    `make` gives frames uint8 [F, H, W, 3] and facts for rows.jsonl. A video gets its name when it is whole,
    so whatever ends a run, the same command goes on from there. `made_with`, JSON of everything that decides
    how a video looks, is kept in export.json: TTOMError when the folder was begun with another, or with other
    prompts, or holds what is not ours. Nothing that is there is written over. wanted.jsonl holds every video
    that was ever asked for, so that whoever reads the folder knows what it lacks.
    """
    _begin(suite, out, made_with)
    for clip in suite.clips:
        path = out / clip.place
        if path.exists():
            yield clip, None
            continue
        frames, facts = make(clip)
        # Beside the folders of videos: their scripts take every file in those for a video.
        unfinished = out / f"unfinished-{os.getpid()}.mp4"
        save_video(frames, unfinished, fps)
        with (out / "rows.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps({"place": clip.place, "prompt": clip.prompt, **facts}) + "\n")
        if path.exists():  # another run was faster
            unfinished.unlink()
        else:
            unfinished.rename(path)
        yield clip, facts


def _begin(suite: Suite, out: Path, made_with: Facts) -> None:
    """Check or begin the export folder."""
    record = {"version": VERSION, "benchmark": suite.benchmark, "made_with": made_with}
    path = out / "export.json"
    if path.exists():
        _check_same(record, path)
    elif out.exists() and (not out.is_dir() or {p.name for p in out.iterdir()} - {"export.json.part"}):
        raise TTOMError(f"{out} holds files and no export.json; give a new folder, or an earlier export's.")
    for place, content in suite.files.items():
        if (out / place).exists() and (out / place).read_bytes() != content:
            raise TTOMError(
                f"{out / place} is not the clone's: the export was begun with other prompts; choose another "
                "folder, or the clone it was begun with."
            )
    out.mkdir(parents=True, exist_ok=True)
    for place, content in {"export.json": json.dumps(record, indent=1).encode(), **suite.files}.items():
        if not (out / place).exists():
            _write(out / place, content)
    _check_folders(suite, out)
    known = read_rows(out / WANTED)
    with (out / WANTED).open("a", encoding="utf-8") as file:
        for clip in suite.clips:
            if clip.place not in known:
                file.write(json.dumps({"key": clip.place, "prompt": clip.prompt}) + "\n")


def _check_same(record: Facts, path: Path) -> None:
    """TTOMError with the first thing in which a new run differs from the one that began the folder."""
    try:
        known = dict(_flat(json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise TTOMError(f"{path} cannot be read; choose another folder.") from error
    wanted = dict(_flat(json.loads(json.dumps(record))))
    for name in known | wanted:
        old, new = known.get(name), wanted.get(name)
        if old != new:
            raise TTOMError(
                f"{path.parent} was begun with {name.removeprefix('made_with.')} {_short(old)} and not "
                f"{_short(new)}; choose another folder, or the settings it was begun with."
            )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:59] + "…"


def _flat(facts: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Nested facts by dotted names."""
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + name, value


def _check_folders(suite: Suite, out: Path) -> None:
    """Make the folders of videos; TTOMError when one holds what their scripts would take for a video."""
    for folder in suite.folders:
        (out / folder).mkdir(parents=True, exist_ok=True)
        strangers = sorted(p.name for p in (out / folder).iterdir() if p.suffix != ".mp4")
        if strangers:
            raise TTOMError(
                f"{out / folder} holds {strangers[0]!r}, which the benchmark's scripts would take for a "
                "video; move it away."
            )
    places = [clip.place for clip in suite.clips]
    if len({place.casefold() for place in places}) < len(places) and (out / "EXPORT.JSON").exists():
        raise TTOMError(
            f"The disk of {out} takes capitals for small letters, and two prompts differ by them."
        )


def _write(path: Path, content: bytes) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(content)
    part.replace(path)
