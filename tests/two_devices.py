"""What a device of two finds when they share a toy Wan: run as a process each, on the CPU, through gloo.

`python two_devices.py RANK FOLDER` leaves RANK.safetensors in the folder; `measure` is what it measures.
"""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

import torch
from conftest import PHRASES, PROMPT, SIZE, STEPS, build_tiny
from safetensors.torch import save_file

from ttom_core.adapter import Adapter, attach, init_adapter
from ttom_core.attention import PrefixCache
from ttom_core.backbones.folder import TrainedClip
from ttom_core.backbones.parallel import context_parallel
from ttom_core.backbones.wan import WanBackbone
from ttom_core.errors import TTOMError
from ttom_core.generate import generate
from ttom_core.layout import Box, Keyframe, Layout, TrackedObject
from ttom_core.objectives import alignment_loss
from ttom_core.optimize import TTOSettings

LAYERS = (1, 2)
SETTINGS = TTOSettings(layers=LAYERS, rank=4, alpha=4.0, learning_rate=1e-2, iterations=3, sigma_end=0.7)
LATENTS = {"step_size": 0.05, "iterations": 2, "sigma_end": 0.9, "candidates": 2}
# How the maps are made, and the first block that an adapter sits on.
WAYS = {
    "whole": ({"early_exit": False}, 0),
    "early exit": ({}, 0),
    "by head": ({"keep_heads": True}, 0),
    "cached from the first block": ({"prefix": True}, 0),
    "cached up to the adapter": ({"prefix": True}, 1),
    "checkpointing": ({"checkpointing": True}, 0),
    "checkpointing, cached": ({"checkpointing": True, "prefix": True}, 1),
}
Found = dict[str, torch.Tensor]


def gradients(backbone: WanBackbone) -> Found:
    """Losses and gradients of one denoiser call, made in each of the ways."""
    noise = torch.Generator().manual_seed(3)
    call = backbone.blank_call(*SIZE.values(), 1, torch.empty(0))
    call["hidden_states"] = torch.randn(call["hidden_states"].shape, generator=noise)
    call["encoder_hidden_states"] = torch.randn(call["encoder_hidden_states"].shape, generator=noise)
    masks = torch.rand(2, *backbone.token_grid(*SIZE.values()), generator=noise)
    found = {}
    for way, (options, first) in WAYS.items():
        options, cached = dict(options), options.get("prefix")
        modules = backbone.adapter_modules(LAYERS, "selected" if first else "reachable")
        fresh = init_adapter(modules, 4, 4.0, 0, backbone.fingerprint)
        # B is zero at first, and with it the gradient of A.
        weights = {n: (a, torch.randn(b.shape, generator=noise) / 4) for n, (a, b) in fresh.weights.items()}
        adapter = Adapter(weights, 4, 4.0, backbone.fingerprint)
        with attach(backbone.transformer, adapter) as attached:
            cache = PrefixCache(first) if cached else None
            for turn in ("first", "second") if cached else ("first",):
                maps = backbone.maps(call, [0], [(2, 3), (9,)], LAYERS, **options | {"prefix": cache})
                maps = {i: m.mean(0) if m.ndim == 5 else m for i, m in maps.items()}
                loss = alignment_loss(maps, masks, "jsd", "frame")
                own = torch.autograd.grad(loss, attached.parameters())
                found[f"loss, {way}, {turn}"] = loss.detach()
                found[f"own, {way}, {turn}"] = torch.cat([g.flatten() for g in own])
                found[f"gradient, {way}, {turn}"] = torch.cat([g.flatten() for g in backbone.summed(own)])
    latents = call["hidden_states"].clone().requires_grad_()
    maps = backbone.maps(call | {"hidden_states": latents}, [0], [(2, 3), (9,)], LAYERS)
    loss = alignment_loss(maps, masks, "jsd", "frame")
    (found["gradient of the latents"],) = torch.autograd.grad(loss, latents)
    return found


def video(backbone: WanBackbone, name: str, settings: TTOSettings | None) -> Found:
    """A whole generation: its losses, its adapter and its frames."""
    made = generate(
        backbone, PROMPT, layout(), settings, steps=STEPS, guidance_scale=3.0, seed=5, **SIZE
    )  # fmt: skip
    found = {f"frames, {name}": torch.from_numpy(made.frames).float().contiguous() / 255}
    if made.adapter is not None and made.trace is not None:
        rows = [*made.trace.latent_rows, *made.trace.rows]
        found[f"losses, {name}"] = torch.tensor([row.loss for row in rows])
        weights = [w.flatten() for pair in made.adapter.weights.values() for w in pair]
        found[f"adapter, {name}"] = torch.cat(weights)
    return found


def layout(size: float = 0.4) -> Layout:
    def tracked(phrase: str, x: float) -> TrackedObject:
        keyframe = Keyframe(time=0.0, box=Box.around(x, 0.5, size))
        return TrackedObject(id=phrase, name=phrase, phrase=phrase, keyframes=(keyframe,))

    return Layout(objects=(tracked(PHRASES[0], 0.25), tracked(PHRASES[1], 0.75)))


def measure(backbone: WanBackbone) -> Found:
    latents = SETTINGS.model_validate(SETTINGS.model_dump() | {"latents": LATENTS})
    found = gradients(backbone) | video(backbone, "plain", None) | video(backbone, "adapter", SETTINGS)
    found |= video(backbone, "both", latents)
    # Between the losses that were seen, so that it ends the iterations in their midst.
    stop = found["losses, adapter"][1:3].mean().item()
    return found | video(backbone, "stopped", SETTINGS.model_copy(update={"stop_loss": stop}))


def build() -> WanBackbone:
    torch.set_num_threads(1)
    pipe = build_tiny()
    pipe.transformer.requires_grad_(False)
    return WanBackbone(pipe, clip=TrainedClip(fps=8))


def refusals(backbone: WanBackbone, rank: int) -> dict[str, str]:
    """The sentence of each thing that two devices cannot do."""
    said = {}

    def refused(name: str, action: object) -> None:
        try:
            action()  # type: ignore[operator]
        except TTOMError as error:
            said[name] = str(error)

    def enter() -> None:
        with context_parallel(backbone):
            pass

    with context_parallel(backbone):
        refused("twice", enter)
        refused("tokens", lambda: backbone.token_grid(1, 8, 8))
        run = partial(generate, backbone, PROMPT, settings=SETTINGS, steps=STEPS, **SIZE)
        refused("seeds", lambda: run(layout(), seed=rank))
        refused("layouts", lambda: run(layout(0.3 + 0.2 * rank)))
        modules = backbone.adapter_modules(LAYERS, "reachable")
        own = init_adapter(modules, 4, 4.0, rank, backbone.fingerprint)
        refused("adapters", lambda: run(layout(), adapter=own))
    for backend in ("_native_math", "_native_flash"):
        backbone.transformer.set_attention_backend(backend)
        refused(backend, enter)
    backbone.transformer.set_attention_backend("native")
    return said


def main(rank: int, folder: Path) -> None:
    # On a machine without accelerators torch counts none, and diffusers takes the rank modulo the count.
    torch.accelerator.device_count = lambda: 1
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2
    )
    backbone = build()
    before = video(backbone, "plain", None)["frames, plain"]
    with context_parallel(backbone):
        found = measure(backbone)

    class Interrupted(Exception):
        pass

    def interrupt(progress: object) -> None:
        if getattr(progress, "loss", None) is not None:
            raise Interrupted

    try:
        with context_parallel(backbone):
            generate(backbone, PROMPT, layout(), SETTINGS, steps=STEPS, on_progress=interrupt, **SIZE)
    except Interrupted:
        said = refusals(backbone, rank)
    after = video(backbone, "plain", None)["frames, plain"]
    save_file(
        found | {"before": before, "after": after}, folder / f"{rank}.safetensors", {"said": json.dumps(said)}
    )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
