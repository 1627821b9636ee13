"""The sockets between our nodes: a type of our own only where ComfyUI has none.

Frames, masks, adapters and losses travel as the stock IMAGE, MASK, LORA_MODEL and LOSS_MAP.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from comfy_api.latest import io

from ..ttom_core.layout import Layout

if TYPE_CHECKING:
    from ..ttom_core.adapter import Adapter
    from ..ttom_core.optimize import Trace, TTOSettings

BackboneSocket = io.Custom("TTOM_BACKBONE")
LLMSocket = io.Custom("TTOM_LLM")
LayoutSocket = io.Custom("TTOM_LAYOUT")
MasksSocket = io.Custom("TTOM_MASKS")
MemorySocket = io.Custom("TTOM_MEMORY")
RecallSocket = io.Custom("TTOM_RECALL")
SolvedSocket = io.Custom("TTOM_SOLVED")
TraceSocket = io.Custom("TTOM_TRACE")
# Stock in newer ComfyUI, and unknown to the io of 0.3.64: by its name it is the same type in both.
BoundingBoxSocket = io.Custom("BOUNDING_BOX")


@dataclass(frozen=True)
class LayoutMasks:
    """What travels on TTOM_MASKS: a layout and how its boxes are softened.

    Resolution-free, so that the masks fit whatever size the sampler is set to: the core draws them
    on the token grid of the video it makes.
    """

    layout: Layout
    kind: str
    softness: float


@dataclass(frozen=True)
class Solved:
    """What travels on TTOM_SOLVED: an optimised adapter and all that a memory files it under."""

    prompt: str
    layout: Layout
    adapter: Adapter
    trace: Trace
    settings: TTOSettings


def to_image(frames: np.ndarray) -> torch.Tensor:
    """uint8 [F, H, W, 3] to ComfyUI's IMAGE, float [F, H, W, 3] in 0–1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).float() / 255


def to_frames(image: torch.Tensor) -> np.ndarray:
    """ComfyUI's IMAGE to uint8 [F, H, W, 3]; an alpha channel is dropped."""
    return (image[..., :3].clamp(0, 1) * 255).round().to("cpu", torch.uint8).numpy()
