"""Layout → soft masks on the latent token grid (TTOM 3.2)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .errors import TTOMError
from .layout import Layout, frame_times

MASK_KINDS = ("gaussian", "blurred_box", "hard_box")


@dataclass(frozen=True)
class SoftMasks:
    """One mask per distinct phrase: values [N, τ, h, w] in float32, each object's peak at most 1.

    Objects named by the same phrase share their tokens, so their masks are summed: separate targets
    for the same tokens would fight.
    """

    phrases: tuple[str, ...]
    values: Tensor


def soft_masks(
    layout: Layout, grid: tuple[int, int, int], kind: str = "gaussian", softness: float = 0.25
) -> SoftMasks:
    """Draw a layout's boxes on a token grid (τ, h, w).

    kind: "gaussian" (σ = softness × box side around the centre; the released code's is 1/4),
    "blurred_box" (the box convolved with that Gaussian; the paper's words) or "hard_box" (the share of
    each cell that the box covers). Latent frame k is at time k/(τ−1).
    """
    if kind not in MASK_KINDS:
        raise TTOMError(f"There is no mask kind {kind!r}; choose one of {', '.join(MASK_KINDS)}.")
    if not softness > 0:
        raise TTOMError(f"Mask softness must be above 0, not {softness}.")
    if not layout.objects:
        raise TTOMError("The layout has no objects; add at least one.")
    frames, h, w = grid
    if len(layout.objects) > h * w:
        raise TTOMError(
            f"The layout has {len(layout.objects)} objects, but a frame of this clip has only "
            f"{h}×{w} = {h * w} tokens to tell them apart; use fewer objects or a larger clip."
        )
    boxes = layout.boxes(frame_times(frames))
    by_phrase: dict[str, np.ndarray] = {}
    for index, item in enumerate(layout.objects):
        volume = np.stack([_mask(box, h, w, kind, softness) for box in boxes[index]])
        if not volume.any():
            raise TTOMError(
                f"Object {item.id!r} is on none of the {frames} latent frames; "
                "let it enter earlier or leave later."
            )
        by_phrase[item.phrase] = by_phrase.get(item.phrase, 0) + volume
    values = torch.from_numpy(np.stack(list(by_phrase.values()))).float()
    return SoftMasks(tuple(by_phrase), values)


def _mask(box: np.ndarray, h: int, w: int, kind: str, softness: float) -> np.ndarray:
    """One box's mask [h, w]; zeros where the box is absent (NaN). Separable in every kind."""
    if np.isnan(box).any():
        return np.zeros((h, w))
    x, y, width, height = box
    return np.outer(_profile(y, height, h, kind, softness), _profile(x, width, w, kind, softness))


def _profile(start: float, length: float, cells: int, kind: str, softness: float) -> np.ndarray:
    """A box side's mask along one axis [cells]."""
    edges = np.linspace(0, 1, cells + 1)
    if kind == "hard_box":
        cover = np.minimum(edges[1:], start + length) - np.maximum(edges[:-1], start)
        return np.clip(cover, 0, None) * cells
    sigma = softness * length
    centres = (edges[1:] + edges[:-1]) / 2
    if kind == "gaussian":
        return np.exp(-0.5 * ((centres - start - length / 2) / sigma) ** 2)
    from scipy.special import ndtr

    return ndtr((centres - start) / sigma) - ndtr((centres - start - length) / sigma)
