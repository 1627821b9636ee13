"""Result files: every figure that is quoted, with the command, commit, machine and seed that made it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import TTOMError


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
        "commit": commit_of(Path(__file__).resolve().parents[2]),
        "machine": _machine(),
        "seed": seed,
        **({"settings": settings} if settings else {}),
        "figures": figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(result, indent=1) + "\n")
    part.replace(path)


def insist_on_more(path: Path, count: int, steps: int, variants: Collection[str] = ()) -> None:
    """TTOMError where a result file tells of more prompts, steps or variants than a new one would.

    To be asked before the work: what it would have replaced stays, and nothing was made in vain.
    """
    if not path.exists():
        return
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        lost = [name for name in result["settings"].get("variants", ()) if name not in variants]
        prompts = max((known["n"] for known in result["figures"].values()), default=0)
        finer = result["settings"].get("steps", steps)
        more = [", ".join(lost[:3]) + (" and more" if len(lost) > 3 else "")] if lost else []
        more += [f"{prompts} prompts"] if prompts > count else []
        more += [f"{finer} steps"] if finer > steps else []
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise TTOMError(f"{path} is not a result of this version; move it away.") from error
    if more:
        raise TTOMError(
            f"{path} tells of {' and '.join(more)}, which would be lost; make as much, name another folder "
            "with --results, or replace it with --force."
        )


def commit_of(root: Path) -> str:
    """The commit of the code in a clone, marked when it was changed since; "unknown" outside a clone.

    Other results do not count: a command that writes several would mark all but its first.
    """

    def git(*words: str) -> str:
        run = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
        return run.stdout.strip()

    try:
        commit = git("describe", "--always", "--abbrev=12")
        changed = git("status", "--porcelain", "-uno", "--", ".", ":(exclude)benchmarks/results")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


def _machine() -> str:
    import torch

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"{platform.machine()} CPU, {os.cpu_count()} cores, torch {torch.__version__}"
