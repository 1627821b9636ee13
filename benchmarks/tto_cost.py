"""What one optimisation iteration costs, naive against ours, in units of one plain forward.

    python benchmarks/tto_cost.py            # writes benchmarks/results/tto_cost.json

The model has the demo's text; it is deeper, wider and its clip larger (`--layers`, `--heads`, `--latents`),
with random weights: cost does not depend on what the weights say. Every way runs in a process of its own,
one after another; times are medians of `--repeats` after a warm-up, and a ratio is taken within one round.
Memory is the peak of what tensors hold above the loaded model, counted by torch's profiler: the process's
own peak would differ from run to run by more than some ways do. The prefix is paid once in a step of 8
iterations.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "tto_cost.json"
PROMPT = "a red circle moves to the right while a blue square stays still"
PHRASES = ("red circle", "blue square")
LAYERS = (1, 2)
ITERATIONS = 8
# What each way leaves out of the naive computation; the last one is ours.
WAYS = ("plain_forward", "naive", "fused_maps", "early_exit", "prefix_cache")


def allocated_peak(run: Callable[[], None]) -> int:
    """The most bytes that tensors hold while this runs, above what they held before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    changes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(changes))


def measure(way: str, heads: int, layers: int, latents: tuple[int, int, int], repeats: int) -> dict:
    """Seconds per run and peak memory above the loaded model, of one way, in this process."""
    import torch
    from diffusers import WanTransformer3DModel

    from demo.train import build_pipeline
    from ttom_core.adapter import attach, init_adapter
    from ttom_core.attention import PrefixCache
    from ttom_core.backbones.wan import WanBackbone
    from ttom_core.objectives import alignment_loss

    torch.set_num_threads(2)
    pipe = build_pipeline()
    torch.manual_seed(0)
    pipe.transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=heads,
        attention_head_dim=128,
        in_channels=16,
        out_channels=16,
        text_dim=4096,
        freq_dim=256,
        ffn_dim=heads * 384,
        num_layers=layers,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    ).requires_grad_(False)
    backbone = WanBackbone(pipe)
    transformer = pipe.transformer
    t, h, w = latents
    call = {
        "hidden_states": torch.randn(1, 16, t, h, w),
        "timestep": torch.tensor([900.0]),
        "encoder_hidden_states": backbone.encode(PROMPT),
    }
    tokens = list(backbone.phrase_tokens(PROMPT, PHRASES).values())
    masks = torch.rand(len(PHRASES), t, h // 2, w // 2)

    def naive_maps() -> dict[int, torch.Tensor]:
        """The whole model with every query-key weight of the chosen layers held."""
        held: dict[tuple[int, str], torch.Tensor] = {}
        handles = []
        for layer in LAYERS:
            for name in ("norm_q", "norm_k"):

                def keep(module: Any, inputs: Any, output: Any, where: Any = (layer, name)) -> None:
                    held[where] = output.unflatten(2, (heads, -1)).transpose(1, 2)

                module = getattr(transformer.blocks[layer].attn2, name)
                handles.append(module.register_forward_hook(keep))
        transformer.forward(**call, return_dict=False)
        for handle in handles:
            handle.remove()
        maps = {}
        for layer in LAYERS:
            q, k = held[layer, "norm_q"], held[layer, "norm_k"]
            weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1).mean(1)[0]
            columns = torch.stack([weights[:, list(p)].mean(-1) for p in tokens])
            maps[layer] = columns.unflatten(1, (t, h // 2, w // 2))
        return maps

    prefix = PrefixCache(0)
    ways = {
        "naive": naive_maps,
        "fused_maps": lambda: backbone.maps(call, [0], tokens, LAYERS, early_exit=False),
        "early_exit": lambda: backbone.maps(call, [0], tokens, LAYERS),
        "prefix_cache": lambda: backbone.maps(call, [0], tokens, LAYERS, prefix=prefix),
    }
    # The naive way adapts every block; ours only those that a gradient can reach.
    everywhere = tuple(range(layers)) if way in ("naive", "fused_maps") else LAYERS
    modules = backbone.adapter_modules(everywhere, "reachable")
    adapter = init_adapter(modules, 32, 32.0, 0, backbone.fingerprint)

    def run() -> None:
        if way == "plain_forward":
            with torch.no_grad():
                transformer.forward(**call, return_dict=False)
            return
        with attach(transformer, adapter) as attached:
            loss = alignment_loss(ways[way](), masks, "jsd", "volume")
            torch.autograd.grad(loss, attached.parameters(), allow_unused=True)

    def timed() -> float:
        started = time.perf_counter()
        run()
        return time.perf_counter() - started

    peak = allocated_peak(run)
    seconds = []
    for _ in range(repeats):
        prefix.state = prefix.self_attention = None
        first = timed()
        # Only the prefix cache makes later iterations of a step cheaper than the first.
        seconds.append((first + (ITERATIONS - 1) * timed()) / ITERATIONS if way == "prefix_cache" else first)
    return {"seconds": seconds, "mib": peak / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--heads", type=int, default=4, help="of 128 channels each")
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--latents", type=int, nargs=3, default=(6, 40, 40), metavar=("T", "H", "W"))
    parser.add_argument("--repeats", type=int, default=3, help="runs in a process")
    parser.add_argument("--rounds", type=int, default=3, help="processes per way, the ways in turn")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        latents = tuple(options.latents)
        print(json.dumps(measure(options.way, options.heads, options.layers, latents, options.repeats)))
        return

    from statistics import median

    from tqdm import tqdm

    from ttom_core.evaluation.results import figure, write_result

    rounds = []
    for _ in tqdm(range(options.rounds), desc="rounds"):
        measured = {}
        for way in WAYS:
            arguments = [sys.executable, __file__, *sys.argv[1:], "--way", way]
            run = subprocess.run(arguments, check=True, capture_output=True, text=True)
            measured[way] = json.loads(run.stdout.splitlines()[-1])
        rounds.append(measured)
    plain = [median(r["plain_forward"]["seconds"]) for r in rounds]
    figures = {}
    for way in WAYS[1:]:
        seconds = [median(r[way]["seconds"]) for r in rounds]
        time_ratio = [s / p for s, p in zip(seconds, plain, strict=True)]
        memory = [r[way]["mib"] / r["plain_forward"]["mib"] for r in rounds]
        figures[f"{way}_time"] = figure(time_ratio, "× one plain forward")
        figures[f"{way}_memory"] = figure(memory, "× one plain forward's peak")
    ours, naive = (f"{WAYS[-1]}", "naive")
    for quality in ("time", "memory"):
        a, b = (figures[f"{way}_{quality}"]["value"] for way in (naive, ours))
        figures[f"naive_over_ours_{quality}"] = figure([a / b], "× (ratio of the medians)")
    command = " ".join(["python benchmarks/tto_cost.py", *sys.argv[1:]])
    write_result(RESULT, command, 0, figures)
    for name, f in figures.items():
        print(f"{name:28} {f['value']:.2f}  ({f['low']:.2f}–{f['high']:.2f}) {f['unit']}")


if __name__ == "__main__":
    main()
