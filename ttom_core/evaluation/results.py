"""Result files: every figure that is quoted, with the command, commit, machine and seed that made it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import numpy as np


def figure(values: Any, unit: str) -> dict[str, Any]:
    """The median of repeated measurements with their range."""
    samples = np.asarray(values, float)
    return {
        "value": round(float(np.median(samples)), 4),
        "low": round(float(samples.min()), 4),
        "high": round(float(samples.max()), 4),
        "n": len(samples),
        "unit": unit,
    }


def write_result(
    path: Path,
    command: str,
    seed: int,
    figures: dict[str, dict[str, Any]],
    settings: dict[str, Any] | None = None,
) -> None:
    """Write {command, commit, machine, seed, settings, figures} as JSON, whole or not at all."""
    result = {
        "command": command,
        "commit": _commit(),
        "machine": _machine(),
        "seed": seed,
        **({"settings": settings} if settings else {}),
        "figures": figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)


def _commit() -> str:
    """The commit of the code that ran, marked when it was changed since; "unknown" outside a clone."""
    root = Path(__file__).resolve().parents[2]
    try:
        run = ["git", "-C", str(root), "describe", "--always", "--abbrev=12", "--dirty"]
        return subprocess.run(run, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _machine() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, torch {torch.__version__}"
