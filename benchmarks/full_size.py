"""What the optimisation costs at the published models' full size, as a share of plain 50-step sampling.

    python benchmarks/full_size.py           # writes benchmarks/results/full_size.json

Every model has random weights: cost does not depend on what they say. On a GPU a denoising step and the
iterations of every design are timed, warm, and their peak memory is put beside the forecast. Without one the
floating point operations of the same calls are counted on the meta device, and a scaled-down model is timed
on the CPU, so that a ratio of times stands beside the counted one. What needs a GPU is then left out.

Overhead is extrapolated from single calls: 5 of 50 steps are optimised with 8 iterations each, guidance takes
two forwards a step, and of an iteration's calls only the first in a step fills the prefix cache. An adapter
that is only read is counted as acting on all 50.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from ttom_core.attention import PrefixCache
from ttom_core.backbones.published import PUBLISHED
from ttom_core.evaluation.results import figure, write_result
from ttom_core.forecast import (
    GIB,
    Blueprint,
    Clip,
    Plan,
    count_iteration,
    forecast,
    fused_attention,
    iterations,
    published,
)
from ttom_core.optimize import TTOSettings

RESULT = Path(__file__).parent / "results" / "full_size.json"
STEPS, OPTIMISED, ITERATIONS = 50, 5, 8
# Three loss layers: as deep as LVD's on Wan 14B, the middle of the others.
LAYERS = {
    "Wan2.1-T2V-1.3B": (12, 13, 14),
    "Wan2.1-T2V-14B": (11, 12, 13),
    "CogVideoX-2b": (12, 13, 14),
    "CogVideoX-5b": (18, 19, 20),
}
SMALL = ("Wan2.1-T2V-1.3B", "CogVideoX-2b")  # one of each family is timed scaled down
RELEASED = (3,)  # the loss layer of the paper's released code, for Wan


class Design(NamedTuple):
    """What an iteration leaves out; the last is ours."""

    name: str
    early_exit: bool
    prefix_cache: bool


DESIGNS = (
    Design("whole_forward", False, False),
    Design("early_exit", True, False),
    Design("prefix_cache", True, True),
)
SCOPES = ("reachable", "selected")


class Case(NamedTuple):
    """One way to optimise one model."""

    name: str
    settings: TTOSettings


def cases(model: str) -> Iterator[Case]:
    for label, layers in {"deep": LAYERS[model], "released": RELEASED}.items():
        if label == "released" and not model.startswith("Wan"):
            continue
        for scope in SCOPES:
            for design in DESIGNS:
                settings = TTOSettings(
                    layers=layers,
                    scope=scope,
                    early_exit=design.early_exit,
                    prefix_cache=design.prefix_cache,
                )
                yield Case(f"{label}_{scope}_{design.name}", settings)


# ---- one measure for all: what a step and the iterations take ------------------------------------


Measure = Callable[[Callable[[], Any]], float]


def cost_of_step(backbone: Any, clip: Clip, like: torch.Tensor, measure: Measure) -> float:
    """What a guided denoising step takes: one call with two rows, or two with one."""
    rows = backbone.guided_rows
    call = backbone.blank_call(*clip, rows, like)

    def run() -> None:
        with torch.no_grad():
            backbone.transformer(**call, return_dict=False)

    return measure(run) * (2 // rows)


def overhead(
    backbone: Any, clip: Clip, settings: TTOSettings, like: torch.Tensor, measure: Measure, step: float
) -> float:
    """Percent of the plain sampling that all iterations take."""
    with iterations(backbone, clip, settings, like) as (parameters, loss, empty):
        filled: list[PrefixCache] = []

        def later() -> None:
            torch.autograd.grad(loss(filled[0] if filled else None), parameters)

        def first() -> None:
            filled[:] = [] if empty is None else [replace(empty)]
            later()

        begin = measure(first)
        rest = begin if empty is None else measure(later)
    return 100 * OPTIMISED * (begin + (ITERATIONS - 1) * rest) / (STEPS * step)


def read_only(
    backbone: Any, clip: Clip, settings: TTOSettings, like: torch.Tensor, measure: Measure, step: float
) -> float:
    """Percent that an adapter from a memory costs where nothing is optimised and it acts on every step."""
    with iterations(backbone, clip, settings, like):
        return 100 * (cost_of_step(backbone, clip, like, measure) / step - 1)


def operations(run: Callable[[], Any]) -> float:
    """Floating point operations, counted."""
    with fused_attention(), FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def seconds(repeats: int) -> Measure:
    """The median time of a warm call; on a CPU its own time, which others on the machine do not lengthen."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time

    def measure(run: Callable[[], Any]) -> float:
        took = []
        for _ in range(1 + repeats):
            _finish()
            started = clock()
            run()
            _finish()
            took.append(clock() - started)
        return sorted(took[1:])[repeats // 2]

    return measure


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


# ---- without a GPU -------------------------------------------------------------------------------


def counted(name: str) -> dict[str, Any]:
    """Overheads from operations, and what the forecast says each needs."""
    model = published(name)
    clip = clip_of(name)
    figures = {}
    like = torch.empty(0, dtype=model.dtype, device="meta")
    step = cost_of_step(model.backbone, clip, like, operations)
    figures["forward_counted"] = figure([step / 2e12], "TFLOP")
    for case in tqdm(list(cases(name)), desc=f"{name}, counted", leave=False):
        share = overhead(model.backbone, clip, case.settings, like, operations, step)
        figures[f"{case.name}_overhead_counted"] = figure([share], "% of 50 steps")
        if case.settings.prefix_cache:
            figures |= forecasts(model, clip, case)
            reading = case.name.replace("prefix_cache", "read_only")
            share = read_only(model.backbone, clip, case.settings, like, operations, step)
            figures[f"{reading}_overhead_counted"] = figure([share], "% of 50 steps")
    return figures


def forecasts(model: Blueprint, clip: Clip, case: Case) -> dict[str, Any]:
    """The fullest moment of an iteration, with and without checkpointing, text encoder and VAE away."""
    found = {}
    for checkpointing in (False, True):
        needed = forecast(model, clip, case.settings, Plan(offload=True, checkpointing=checkpointing))
        name = f"{case.name}{'_checkpointing' * checkpointing}_memory_forecast"
        found[name] = figure([sum(needed.phases["optimise"].values()) / GIB], "GiB")
    return found


def scaled(name: str, seed: int) -> Any:
    """A model of the same build, an eighth as wide, on the CPU with random weights."""
    import diffusers

    torch.manual_seed(seed)
    model = PUBLISHED[name]
    config = dict(model.transformer)
    heads = max(2, config["num_attention_heads"] // 8)
    config |= {"num_attention_heads": heads, "num_layers": config["num_layers"] // 2}
    if "ffn_dim" in config:
        width = heads * config["attention_head_dim"]
        full = model.transformer["num_attention_heads"] * config["attention_head_dim"]
        config["ffn_dim"] = config["ffn_dim"] * width // full
    wan = model.pipeline == "WanPipeline"
    kind = diffusers.WanTransformer3DModel if wan else diffusers.CogVideoXTransformer3DModel
    transformer = kind.from_config(config).requires_grad_(False).eval()
    return type(published(name).backbone).of_transformer(transformer, 4, 8)


def timed_small(name: str, repeats: int, seed: int) -> dict[str, Any]:
    """At a scaled-down width on the CPU: the overhead in time beside the one in operations."""
    backbone = scaled(name, seed)
    clip, twin = Clip(9, 128, 192), scaled_on_meta(backbone)
    real, meta = torch.zeros(0), torch.empty(0, device="meta")
    steps = [cost_of_step(backbone, clip, real, seconds(1)) for _ in range(repeats)]
    step = cost_of_step(twin, clip, meta, operations)
    figures = {}
    deep = backbone.num_layers // 3
    for scope in SCOPES:
        for design in DESIGNS:
            settings = TTOSettings(
                layers=(deep - 1, deep),
                scope=scope,
                early_exit=design.early_exit,
                prefix_cache=design.prefix_cache,
            )
            case = f"small_{scope}_{design.name}"
            took = [overhead(backbone, clip, settings, real, seconds(1), each) for each in steps]
            share = overhead(twin, clip, settings, meta, operations, step)
            figures[f"{case}_overhead_time"] = figure(took, "% of 50 steps")
            figures[f"{case}_overhead_counted"] = figure([share], "% of 50 steps")
    return figures


def scaled_on_meta(backbone: Any) -> Any:
    with torch.device("meta"):
        transformer = type(backbone.transformer).from_config(backbone.transformer.config)
    return type(backbone).of_transformer(transformer.requires_grad_(False).eval(), 4, 8)


# ---- with one ------------------------------------------------------------------------------------


def measured(name: str, repeats: int, seed: int) -> dict[str, Any]:
    """Overheads from times and peaks from the allocator, each beside what was counted."""
    torch.manual_seed(seed)
    model, clip = published(name), clip_of(name)
    transformer = model.backbone.transformer
    real = type(transformer).from_config(transformer.config)
    kept = set(getattr(real, "_keep_in_fp32_modules", None) or ())
    for part, parameter in real.named_parameters():
        kind = torch.float32 if kept & set(part.split(".")) else model.dtype
        parameter.data = torch.randn(parameter.shape, dtype=kind, device="cuda") * 0.02
    real = real.requires_grad_(False).eval().to("cuda")
    backbone = type(model.backbone).of_transformer(real, 4, 8)
    like = torch.zeros(0, dtype=model.dtype, device="cuda")
    step = cost_of_step(backbone, clip, like, seconds(repeats))
    figures = {"step_seconds": figure([step], "s")}
    for case in tqdm(list(cases(name)), desc=f"{name}, measured", leave=False):
        for checkpointing in (False, True):
            settings = case.settings.model_copy(update={"checkpointing": checkpointing})
            label = case.name + "_checkpointing" * checkpointing
            before = torch.cuda.memory_allocated()
            parts = count_iteration(model, clip, settings)
            if before + sum(parts.values()) > 0.95 * torch.cuda.mem_get_info()[1]:
                continue  # too large for this card: absent, not guessed
            gc.collect()
            torch.cuda.reset_peak_memory_stats()
            share = overhead(backbone, clip, settings, like, seconds(repeats), step)
            figures[f"{label}_overhead"] = figure([share], "% of 50 steps")
            peak = torch.cuda.max_memory_allocated()
            figures[f"{label}_memory"] = figure([peak / GIB], "GiB")
        if case.settings.prefix_cache:
            share = read_only(backbone, clip, case.settings, like, seconds(repeats), step)
            reading = case.name.replace("prefix_cache", "read_only")
            figures[f"{reading}_overhead"] = figure([share], "% of 50 steps")
    return figures


# ---- all -----------------------------------------------------------------------------------------


def clip_of(name: str) -> Clip:
    model = PUBLISHED[name]
    return Clip(model.num_frames, model.height, model.width)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=LAYERS, default=list(LAYERS))
    parser.add_argument("--repeats", type=int, default=3, help="timings of each, of which the median counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()

    figures: dict[str, Any] = {}
    gpu = torch.cuda.is_available()
    for name in options.models:
        found = counted(name)
        if gpu:
            found |= measured(name, options.repeats, options.seed)
        elif name in SMALL:
            found |= timed_small(name, options.repeats, options.seed)
        figures |= {f"{name}_{key}": value for key, value in found.items()}
    command = f"python benchmarks/full_size.py --seed {options.seed}"
    note = {
        "layers": {name: list(layers) for name, layers in LAYERS.items()},
        "steps": STEPS,
        "optimised_steps": OPTIMISED,
        "iterations": ITERATIONS,
        "clips": {name: list(clip_of(name)) for name in options.models},
    }
    write_result(options.out, command, options.seed, figures, note)
    for name, value in figures.items():
        print(f"{name:75} {value['value']:9.2f} {value['unit']}")


if __name__ == "__main__":
    main()
