"""`ttom doctor`: what this machine has, and which models fit into its memory in which way."""

from __future__ import annotations

import argparse
import json
import math
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import TTOMError

if TYPE_CHECKING:
    from .forecast import Blueprint, Clip, Packing

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "torchao", "gguf")
# Beside each model's own size; Wan 14B is made for both.
LARGER = {"Wan2.1-T2V-14B": (81, 720, 1280), "Wan2.2-T2V-A14B": (81, 720, 1280)}
GGUF_NOTE = (
    "GGUF files in place of the transformer (--transformer FILE), with offload and checkpointing",
    "  Counted: the blocks' matrices in the file's type, all else in bf16, one matrix unpacked at a time.",
    "  Q5_0 and Q4_0 are as Q5_K and Q4_K; a file that ends in _M or _L takes a little more.",
    "  CogVideoX takes no such file, and of Wan2.2's two experts one stays in bf16.",
)
GIB = 2**30


def add_doctor(commands: Any, model: Path) -> argparse.ArgumentParser:
    """Add `doctor` to the subcommands of a parser; `model` is looked at beside the published ones."""
    doctor: argparse.ArgumentParser = commands.add_parser(
        "doctor", help="what this machine has, and which models it can run"
    )
    doctor.add_argument("--memory-gb", type=float, metavar="GB", help="ask about a card of this size")
    doctor.add_argument("--model", type=Path, default=model, help="a diffusers folder to ask about too")
    doctor.add_argument("--json", action="store_true", help="print JSON")
    return doctor


def run_doctor(options: argparse.Namespace) -> str:
    """The answer, as a table or as JSON."""
    size = options.memory_gb
    if size is not None and not (math.isfinite(size) and size > 0):
        raise TTOMError(f"A card cannot have {size:g} GB of memory; give a number above 0, such as 24.")
    found = machine()
    memory = found["free_gib"] if size is None else size
    report = {"machine": found, "memory_gib": memory, "models": diagnosis(memory, options.model)}
    return json.dumps(report, indent=1) if options.json else _table(report)


def machine() -> dict[str, Any]:
    """The device that a model would run on, its memory in GiB, and the versions of what matters."""
    import torch

    from .forecast import free_memory

    gpu = torch.cuda.is_available()
    device = torch.device("cuda" if gpu else "cpu")
    if gpu:
        name, total = torch.cuda.get_device_name(device), torch.cuda.mem_get_info(device)[1]
    else:
        import psutil  # type: ignore[import-untyped]

        name = f"{platform.machine()} CPU, {psutil.cpu_count()} cores, no GPU"
        total = psutil.virtual_memory().total
    return {
        "device": name,
        "total_gib": round(total / GIB, 1),
        "free_gib": round(free_memory(device) / GIB, 1),
        "python": platform.python_version(),
        "packages": {package: _version(package) for package in PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def diagnosis(memory_gib: float, folder: Path) -> list[dict[str, Any]]:
    """A row a model and clip size: what each plan needs at its fullest, and the first that fits.

    Weights and activations are bf16, the loss layers those that the model begins with, all other settings
    the paper's. `gguf` is the same with a GGUF file in place of the transformer, by the type of its matrices,
    where the family takes such files; `gguf_fits` is the finest type that fits.
    """
    from .backbones.published import PUBLISHED
    from .forecast import GGUF_BYTES, Clip, blueprint_in, published, with_weights_of

    rows = [_row(folder.name, {"full": blueprint_in(folder)}, Clip(21, 64, 64), (0,), memory_gib)]
    for name, model in PUBLISHED.items():
        own = Clip(model.num_frames, model.height, model.width)
        full = published(name)
        kinds = ("full", "fp8", "nf4", *(GGUF_BYTES if full.backbone.takes_single_file else ()))
        bases = {base: with_weights_of(full, published(name, base=base)) for base in kinds}
        clips = [own] + ([Clip(*LARGER[name])] if name in LARGER else [])
        rows += [_row(name, bases, clip, model.layers, memory_gib) for clip in clips]
    return rows


def _row(
    name: str, bases: dict[Packing, Blueprint], clip: Clip, layers: tuple[int, ...], memory_gib: float
) -> dict[str, Any]:
    from .forecast import GGUF_BYTES, PLANS, RESERVE, Plan, forecast
    from .optimize import PRESETS

    settings = PRESETS["paper"].model_copy(update={"layers": layers})

    def told(plan: Plan) -> dict[str, Any]:
        needed = forecast(bases[plan.base], clip, settings, plan)
        fits = needed.peak <= memory_gib * (1 - RESERVE) * GIB
        return {"needed_gib": round(needed.peak / GIB, 1), "fullest": needed.fullest, "fits": fits}

    plans = [{"plan": str(plan)} | told(plan) for plan in PLANS if plan.base in bases]
    packed = [base for base in GGUF_BYTES if base in bases]
    gguf = [{"type": base} | told(Plan(offload=True, checkpointing=True, base=base)) for base in packed]
    return {
        "model": name,
        "clip": list(clip),
        "layers": list(layers),
        "runs_with": next((row["plan"] for row in plans if row["fits"]), None),
        "plans": plans,
        "gguf_fits": next((row["type"] for row in gguf if row["fits"]), None),
        "gguf": gguf,
    }


def _table(report: dict[str, Any]) -> str:
    found = report["machine"]
    versions = ", ".join(f"{name} {version or '–'}" for name, version in found["packages"].items())
    names: list[str] = []
    for row in report["models"]:
        names += [plan["plan"] for plan in row["plans"] if plan["plan"] not in names]
    letters = dict(zip(names, "abcdefghij", strict=False))
    cells = [{letters[plan["plan"]]: plan for plan in row["plans"]} for row in report["models"]]
    gguf = [row for row in report["models"] if row["gguf"]]
    lines = [
        found["device"],
        f"{found['total_gib']} GiB of memory, {found['free_gib']} GiB free",
        f"Python {found['python']}, {versions}",
        "",
        f"GiB needed at the fullest moment, in bf16; * fits into {report['memory_gib']:g} GiB",
        *(f"  {letter}  {name}" for name, letter in letters.items()),
        "",
        *_grid(report["models"], cells, "runs with", "runs_with"),
    ]
    if gguf:
        packed = [{plan["type"]: plan for plan in row["gguf"]} for row in gguf]
        lines += ["", *GGUF_NOTE, "", *_grid(gguf, packed, "finest that fits", "gguf_fits")]
    return "\n".join(lines)


def _grid(
    rows: list[dict[str, Any]], cells: list[dict[str, dict[str, Any]]], last: str, answer: str
) -> list[str]:
    """A line a model and clip size under a heading: its cells by column, and its answer at the end."""
    columns = list(dict.fromkeys(column for row in cells for column in row))
    heads = "".join(f"{column:>8}" for column in columns)
    lines = [f"{'model':18} {'frames × size':>16}{heads}   {last}"]
    for row, mine in zip(rows, cells, strict=True):
        frames, height, width = row["clip"]
        line = f"{row['model']:18} {f'{frames} × {width}×{height}':>16}"
        for column in columns:
            cell = mine.get(column)
            line += f"{cell['needed_gib']}{'*' if cell['fits'] else ' '}".rjust(8) if cell else " " * 8
        lines.append(f"{line}   {row[answer] or 'nothing here'}")
    return lines
