"""Held-out evaluation: base against TTOM at the same prompts, layouts' text and seeds, with intervals.

Resumable: every finished prompt is one JSON line; a line counts only for the settings that made it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import TTOMError
from .scores import score

if TYPE_CHECKING:
    from ..optimize import TTOSettings


def load_prompts(path: Path, limit: int | None = None) -> list[dict[str, Any]]:
    """Read prompts with expectations; `limit` keeps the first ones, the categories being in turn."""
    try:
        rows = json.loads(path.read_text())
        for row in rows:
            assert {"category", "prompt", "nouns", "expect"} <= row.keys()
    except (OSError, ValueError, AssertionError, AttributeError, TypeError) as error:
        raise TTOMError(
            f"{path} is not a list of prompts with category, prompt, nouns and expect; "
            "make one with `python -m demo.prompts`."
        ) from error
    return rows[:limit]


def bootstrap(values: np.ndarray, seed: int = 0, draws: int = 2000) -> tuple[float, float, float]:
    """Mean with its 95 % percentile interval over prompts."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (draws, len(values)))].mean(1)
    return float(values.mean()), float(np.quantile(means, 0.025)), float(np.quantile(means, 0.975))


def estimate(values: Sequence[float] | np.ndarray, unit: str) -> dict[str, Any]:
    """A result file's figure: the mean with its 95 % interval."""
    mean, low, high = bootstrap(np.asarray(values, float))
    return {
        "value": round(mean, 4),
        "low": round(low, 4),
        "high": round(high, 4),
        "n": len(values),
        "unit": unit,
    }


def quartiles(seconds: Sequence[float] | np.ndarray, unit: str) -> dict[str, Any]:
    """A result file's figure: the median with the quartiles."""
    low, median, high = (round(float(x), 3) for x in np.quantile(seconds, (0.25, 0.5, 0.75)))
    return {"value": median, "low": low, "high": high, "n": len(seconds), "unit": unit}


def figures(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Composition and presence of base and TTOM, overall and by category, as result-file figures."""
    groups: dict[str, list[dict[str, Any]]] = {"": rows}
    for row in rows:
        groups.setdefault(f"_{row['category']}", []).append(row)
    table = {}
    for suffix, members in groups.items():
        for method in ("base", "ttom"):
            for quality in ("composition", "presence"):
                values = [row[f"{method}_{quality}"] for row in members]
                table[f"{method}_{quality}{suffix}"] = estimate(values, "score 0-1")
        difference = [row["ttom_composition"] - row["base_composition"] for row in members]
        table[f"gain_composition{suffix}"] = estimate(difference, "paired difference")
    for method in ("base", "ttom"):
        seconds = [row[f"{method}_seconds"] for row in rows]
        table[f"{method}_seconds"] = quartiles(seconds, "s a clip, one thread, median and quartiles")
    return table


def markdown(table: dict[str, dict[str, Any]]) -> str:
    """The figures as a table, one row a category."""
    names = [k.removeprefix("gain_composition") for k in table if k.startswith("gain_composition")]
    lines = [
        "| category | prompts | base composition | TTOM composition | base presence | TTOM presence |",
        "|---|---|---|---|---|---|",
    ]
    for suffix in names:
        cells = [
            suffix.lstrip("_").replace("_", " ") or "**all**",
            str(table[f"base_composition{suffix}"]["n"]),
        ]
        for key in ("base_composition", "ttom_composition", "base_presence", "ttom_presence"):
            f = table[key + suffix]
            cells.append(f"{f['value']:.2f} ({f['low']:.2f}–{f['high']:.2f})")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _key(model: str, fingerprint: str, settings: TTOSettings, seed: int, steps: int) -> str:
    text = json.dumps([model, fingerprint, settings.model_dump(mode="json"), seed, steps], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


_WORKER: dict[str, Any] = {}


def _start(model: str) -> None:
    import torch

    from ..backbones import load

    torch.set_num_threads(1)
    _WORKER["backbone"] = load(model)


def _run(job: tuple[dict[str, Any], TTOSettings, int, int, str | None]) -> dict[str, Any]:
    """Generate and score one prompt both ways, in a worker."""
    from ..generate import generate
    from ..planner import plan

    spec, settings, seed, steps, pictures = job
    backbone, prompt = _WORKER["backbone"], spec["prompt"]
    layout = plan(prompt)
    base = generate(backbone, prompt, seed=seed, steps=steps)
    ttom = generate(backbone, prompt, layout, settings, seed=seed, steps=steps)
    if pictures:
        from ..pictures import draw_layout, strip

        rows = {"base": draw_layout(base.frames, layout), "TTOM": draw_layout(ttom.frames, layout)}
        name = f"{spec['category']}_{seed}_{'_'.join(prompt.replace(',', '').split())[:80]}.png"
        strip(rows).save(Path(pictures) / name)
    row: dict[str, Any] = {"prompt": prompt, "category": spec["category"], "seed": seed}
    for name, result in (("base", base), ("ttom", ttom)):
        scored = score(result.frames, spec)
        row |= {
            f"{name}_composition": scored.composition,
            f"{name}_presence": scored.presence,
            f"{name}_seconds": result.seconds,
        }
    assert ttom.trace is not None
    return row | {"first_loss": ttom.trace.first_loss, "last_loss": ttom.trace.last_loss}


def evaluate(
    model: str,
    prompts: list[dict[str, Any]],
    settings: TTOSettings,
    rows_path: Path,
    *,
    seed: int = 0,
    steps: int = 20,
    workers: int | None = None,
    pictures: Path | None = None,
    on_row: Callable[[int, int, dict[str, Any]], None] | None = None,
) -> list[dict[str, Any]]:
    """Score base and TTOM on every prompt (seed + its index as the noise), continuing `rows_path`."""
    from ..backbones import load

    key = _key(model, load(model).fingerprint, settings, seed, steps)
    done: dict[tuple[str, int], dict[str, Any]] = {}
    if rows_path.exists():
        for line in rows_path.read_text().splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # the line that an interruption cut short
            if row.get("key") == key:
                done[row["prompt"], row["seed"]] = row
    if pictures:
        pictures.mkdir(parents=True, exist_ok=True)
    wanted = [(spec, seed + index) for index, spec in enumerate(prompts)]
    jobs = [
        (spec, settings, s, steps, str(pictures) if pictures else None)
        for spec, s in wanted
        if (spec["prompt"], s) not in done
    ]
    rows_path.parent.mkdir(parents=True, exist_ok=True)
    with rows_path.open("a") as file:
        for row in _in_workers(jobs, model, workers or os.cpu_count() or 1):
            done[row["prompt"], row["seed"]] = row
            file.write(json.dumps(row | {"key": key}) + "\n")
            file.flush()
            if on_row:
                on_row(len(done), len(wanted), row)
    return [done[spec["prompt"], s] for spec, s in wanted]


def _in_workers(jobs: list, model: str, workers: int) -> Iterable[dict[str, Any]]:
    """Run the jobs in processes of one thread each: for a model this small that is the faster split."""
    import multiprocessing

    if not jobs:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_start, initargs=(model,)) as pool:
        try:
            yield from pool.map(_run, jobs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
