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
    from .forecast import Blueprint, Clip

PACKAGES = ("torch", "diffusers", "transformers", "peft", "accelerate", "bitsandbytes", "torchao", "gguf")
# Beside each model's own size; Wan 14B is made for both.
LARGER = {"Wan2.1-T2V-14B": (81, 720, 1280), "Wan2.2-T2V-A14B": (81, 720, 1280)}
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
    the paper's.
    """
    from .backbones.published import PUBLISHED
    from .forecast import Clip, blueprint_in, published, with_weights_of

    rows = [_row(str(folder.name), {"full": blueprint_in(folder)}, Clip(21, 64, 64), (0,), memory_gib)]
    for name, model in PUBLISHED.items():
        own = Clip(model.num_frames, model.height, model.width)
        full = published(name)
        bases = {base: with_weights_of(full, published(name, base=base)) for base in ("full", "fp8", "nf4")}
        clips = [own] + ([Clip(*LARGER[name])] if name in LARGER else [])
        rows += [_row(name, bases, clip, model.layers, memory_gib) for clip in clips]
    return rows


def _row(
    name: str, bases: dict[str, Blueprint], clip: Clip, layers: tuple[int, ...], memory_gib: float
) -> dict[str, Any]:
    from .forecast import PLANS, RESERVE, forecast
    from .optimize import PRESETS

    settings = PRESETS["paper"].model_copy(update={"layers": layers})
    plans = []
    for plan in PLANS:
        if plan.base in bases:
            needed = forecast(bases[plan.base], clip, settings, plan)
            fits = needed.peak <= memory_gib * (1 - RESERVE) * GIB
            plans.append(
                {
                    "plan": str(plan),
                    "needed_gib": round(needed.peak / GIB, 1),
                    "fullest": needed.fullest,
                    "fits": fits,
                }
            )
    best = next((row["plan"] for row in plans if row["fits"]), None)
    return {"model": name, "clip": list(clip), "layers": list(layers), "runs_with": best, "plans": plans}


def _table(report: dict[str, Any]) -> str:
    found = report["machine"]
    versions = ", ".join(f"{name} {version or '–'}" for name, version in found["packages"].items())
    lines = [
        found["device"],
        f"{found['total_gib']} GiB of memory, {found['free_gib']} GiB free",
        f"Python {found['python']}, {versions}",
        "",
        f"GiB needed at the fullest moment, in bf16; * fits into {report['memory_gib']:g} GiB",
    ]
    names: list[str] = []
    for row in report["models"]:
        names += [plan["plan"] for plan in row["plans"] if plan["plan"] not in names]
    letters = dict(zip(names, "abcdefghij", strict=False))
    lines += [f"  {letter}  {name}" for name, letter in letters.items()]
    heads = "".join(f"{letter:>8}" for letter in letters.values())
    lines += ["", f"{'model':18} {'frames × size':>16}{heads}   runs with"]
    for row in report["models"]:
        cells = {plan["plan"]: f"{plan['needed_gib']}{'*' if plan['fits'] else ' '}" for plan in row["plans"]}
        frames, height, width = row["clip"]
        line = f"{row['model']:18} {f'{frames} × {width}×{height}':>16}"
        line += "".join(f"{cells.get(name, ''):>8}" for name in names)
        lines.append(f"{line}   {row['runs_with'] or 'nothing here'}")
    return "\n".join(lines)
