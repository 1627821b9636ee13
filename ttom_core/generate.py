"""The whole story in one function: a prompt and its layout become a composed video.

layout → soft masks → the pipeline's own sampling loop with test-time optimisation → frames

What is optimised is an adapter (`optimize.TTO`), the latents (`latents.LatentGuidance`) or both.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch

from .adapter import Adapter
from .backbones.base import Backbone
from .errors import TTOMError
from .forecast import Clip, fitted
from .latents import LatentGuidance
from .layout import Layout
from .masks import soft_masks
from .optimize import TTO, Trace, TTOSettings


@dataclass(frozen=True)
class Progress:
    """One tick of the one combined count of optimisation iterations and denoising steps."""

    phase: str  # "optimise" or "denoise"
    done: int
    total: int
    loss: float | None
    message: str


@dataclass(frozen=True)
class Generation:
    """Frames uint8 [F, H, W, 3], what was optimised on the way, and everything needed to remake it."""

    frames: np.ndarray
    adapter: Adapter | None
    trace: Trace | None
    settings: dict[str, object]
    seconds: float


def generate(
    backbone: Backbone,
    prompt: str,
    layout: Layout | None = None,
    settings: TTOSettings | None = None,
    *,
    seed: int = 0,
    steps: int = 20,
    guidance_scale: float = 4.0,
    num_frames: int = 21,
    height: int = 64,
    width: int = 64,
    negative_prompt: str = "",
    adapter: Adapter | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    keep_maps: bool = False,
) -> Generation:
    """Sample a clip; with `settings`, follow `layout` during the first steps by what they optimise.

    `settings=None` is the plain base model. `adapter` is where the optimisation starts (from a memory).
    Raising inside `on_progress` interrupts the run; whatever happens, the model is left as it was found.
    Checkpointing is turned on where the memory is too little without it, and NotEnoughMemory raised at once
    where it is too little with it. The same seed gives the same noise with and without optimisation, unless
    `settings.latents` choose among several.
    """
    if not prompt.strip():
        raise TTOMError("The prompt is empty; describe what the video should show.")
    backbone.check_size(num_frames, height, width)
    if settings is not None and layout is None:
        raise TTOMError("Test-time optimisation needs a layout; plan one or draw one.")
    settings = fitted(backbone, Clip(num_frames, height, width), settings).settings
    started = time.perf_counter()
    report = Reporter(steps, on_progress)

    def sample(seed: int) -> np.ndarray:
        return backbone.sample(
            prompt,
            negative_prompt=negative_prompt,
            num_frames=num_frames,
            height=height,
            width=width,
            steps=steps,
            guidance_scale=guidance_scale,
            generator=torch.Generator("cpu").manual_seed(seed),
            on_step=report.step,
        )

    tto: TTO | None = None
    noise_seed = seed
    with ExitStack() as stack:
        if settings is not None:
            assert layout is not None
            if settings.guidance_until_sigma:
                stack.enter_context(backbone.guided_until(prompt, settings.guidance_until_sigma))
            grid = backbone.token_grid(num_frames, height, width)
            masks = soft_masks(layout, grid, settings.mask_kind, settings.softness)
            tto = TTO(
                backbone,
                masks,
                prompt,
                settings,
                steps=steps,
                adapter=adapter,
                on_progress=report.iteration,
                keep_maps=keep_maps,
            )
            report.plan(tto.planned_iterations)
            if settings.latents is not None:
                if settings.latents.energy == "lvd":
                    masks = soft_masks(layout, grid, "hard_box")
                guidance = LatentGuidance(
                    backbone,
                    masks,
                    prompt,
                    settings,
                    steps=steps,
                    trace=tto.trace,
                    on_progress=report.latent_iteration,
                    keep_maps=keep_maps,
                )
                report.plan(tto.planned_iterations, guidance.planned_iterations)
                noise_seed = guidance.best_seed(seed, sample)
                stack.enter_context(guidance)  # before the adapter, which is optimised on what it moves
            stack.enter_context(tto)
        frames = sample(noise_seed)
    return Generation(
        frames=frames,
        adapter=tto.adapter if tto else None,
        trace=tto.trace if tto else None,
        settings={
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "seed": seed,
            "noise_seed": noise_seed,
            "steps": steps,
            "guidance_scale": guidance_scale,
            "num_frames": num_frames,
            "height": height,
            "width": width,
            "backbone": backbone.fingerprint,
            "tto": settings.model_dump(mode="json") if settings else None,
        },
        seconds=time.perf_counter() - started,
    )


class Reporter:
    """Counts both kinds of work into one total, so that a host shows one bar.

    Every optimised step has its share whether or not it stops early, so the bar always ends full.
    """

    def __init__(self, steps: int, callback: Callable[[Progress], None] | None) -> None:
        self.steps, self.callback = steps, callback
        self.plan([0] * steps)

    def plan(self, adapter: Sequence[int], latents: Sequence[int] | None = None) -> None:
        """Take the planned iterations of every step; the latents' come first."""
        self.latents = latents or [0] * self.steps
        self.begin = [sum(adapter[:k]) + sum(self.latents[:k]) + k for k in range(self.steps + 1)]

    def latent_iteration(self, step: int, iteration: int, loss: float | None) -> None:
        done = self.begin[step] + iteration + 1
        self._send(
            "optimise", done, loss, f"moving the latents of step {step + 1}, iteration {iteration + 1}"
        )

    def iteration(self, step: int, iteration: int, loss: float | None) -> None:
        done = self.begin[step] + self.latents[step] + iteration + 1
        self._send("optimise", done, loss, f"optimising step {step + 1}, iteration {iteration + 1}")

    def step(self, index: int) -> None:
        self._send("denoise", self.begin[index + 1], None, f"denoising step {index + 1} of {self.steps}")

    def _send(self, phase: str, done: int, loss: float | None, message: str) -> None:
        if self.callback is not None:
            self.callback(Progress(phase, done, self.begin[-1], loss, message))
