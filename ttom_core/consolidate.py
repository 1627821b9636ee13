"""One adapter for a whole scene, learnt over many clips: what they share, and not what one noise asks for.

An adapter that was optimised on one clip fits that clip's noise and prompt, and does little for the next one.
Consolidation goes on with one adapter from clip to clip, each of another prompt of the scene and of fresh
noise, and of each clip samples only the steps that are optimised, one small change a step. What is left can
be read from a memory without optimising. The loss is TTOM's (eq. 2); the procedure is this project's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from .adapter import Adapter
from .attention import EarlyExit
from .backbones.base import Backbone
from .errors import TTOMError
from .forecast import Clip, fitted
from .layout import Layout
from .masks import soft_masks
from .optimize import TTO, Moments, TTOSettings

WARM_UP, FLOOR = 0.05, 0.05  # shares of the clips, and of the learning rate


def consolidate(
    backbone: Backbone,
    lessons: Sequence[tuple[str, Layout]],
    settings: TTOSettings,
    *,
    clips: int = 32,
    seed: int = 0,
    steps: int = 20,
    guidance_scale: float = 4.0,
    num_frames: int = 21,
    height: int = 64,
    width: int = 64,
    negative_prompt: str = "",
    adapter: Adapter | None = None,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Adapter, list[float]]:
    """Learn one adapter for these prompts and layouts, and return it with each clip's mean loss.

    The prompts take turns; clip i has the noise of `seed` + i. The learning rate is that of `settings`, with
    a short warm-up and a cosine's end; `adapter` is where to start. on_progress(done, total, loss) may raise
    to interrupt, and the model is left as it was found.
    """
    if not lessons:
        raise TTOMError("There is nothing to consolidate; give at least one prompt and its layout.")
    if clips < 1:
        raise TTOMError(f"Consolidation needs at least 1 clip to learn from, not {clips}.")
    if not settings.iterations:
        raise TTOMError("Consolidation optimises an adapter; choose settings with iterations.")
    once = settings.model_copy(update={"iterations": 1, "stop_loss": None, "latents": None})
    settings = fitted(backbone, Clip(num_frames, height, width), once).settings or once
    grid = backbone.token_grid(num_frames, height, width)
    moments: Moments | None = None
    losses = []
    for number in range(clips):
        prompt, layout = lessons[number % len(lessons)]
        rate = settings.learning_rate * _schedule(number, clips)
        tto = TTO(
            backbone,
            soft_masks(layout, grid, settings.mask_kind, settings.softness),
            prompt,
            settings.model_copy(update={"learning_rate": rate}),
            steps=steps,
            adapter=adapter,
            moments=moments,
        )
        last = max(step for step, iterations in enumerate(tto.planned_iterations) if iterations)

        def stop(step: int, last: int = last) -> None:
            if step == last:
                raise EarlyExit

        with suppress(EarlyExit), tto:
            backbone.sample(
                prompt,
                negative_prompt=negative_prompt,
                num_frames=num_frames,
                height=height,
                width=width,
                steps=steps,
                guidance_scale=guidance_scale,
                generator=torch.Generator("cpu").manual_seed(seed + number),
                on_step=stop,
            )
        adapter, moments = tto.adapter, tto.moments
        losses.append(sum(row.loss for row in tto.trace.rows) / len(tto.trace.rows))
        if on_progress is not None:
            on_progress(number + 1, clips, losses[-1])
    assert adapter is not None
    return adapter, losses


def _schedule(number: int, clips: int) -> float:
    """The learning rate's share at a clip: up in a straight line, and down as a cosine."""
    warm = max(1, round(WARM_UP * clips))
    if number < warm:
        return (number + 1) / warm
    done = (number - warm) / max(1, clips - warm)
    return FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * done)) / 2
