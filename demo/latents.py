"""The latent space of the demo VAE: principal components of what a scene shows in 4×4 pixels and 4 frames.

A latent space that is linear in the pixels is easy on a small denoiser (a shape that moves by a pixel moves
its latents a little) and needs no training to be had: the encoder is taught to give it, the decoder to
undo it. The first latent frame is one frame, taken as standing still.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file

CHANNELS, STRIDE = 16, 4
MOVING, STILL, FLAT = 3.0, 1.0, 0.1  # how much a block counts by what it shows: motion, an edge, neither


class Basis(NamedTuple):
    """A block's latents are (block − mean) @ analysis: mean [192], analysis [192, 16]."""

    mean: torch.Tensor
    analysis: torch.Tensor


def load_basis() -> Basis:
    """The basis the demo VAE was taught: `principal_components` of 512 scenes of an earlier, freer world."""
    return Basis(**load_file(Path(__file__).parent / "basis.safetensors"))


def blocks(video: torch.Tensor) -> torch.Tensor:
    """Cut [B, 3, 1 + 4 (T − 1), H, W] into rows of (frame, y, x, colour): [B, T, H / 4, W / 4, 192]."""
    video = torch.cat([video[:, :, :1].expand(-1, -1, STRIDE - 1, -1, -1), video], 2)
    for axis in (2, 4, 6):
        video = video.unflatten(axis, (-1, STRIDE))
    return video.permute(0, 2, 4, 6, 3, 5, 7, 1).flatten(4)


def principal_components(video: torch.Tensor) -> Basis:
    """The basis of these clips [B, 3, F, H, W].

    Components are scaled half-way to unit variance: what is large in the pictures stays larger than what
    is small, so that noise hides the small first, and the denoiser goes from coarse to fine.
    """
    rows = blocks(video).flatten(0, 3).double()
    frames = rows.unflatten(1, (STRIDE, -1))
    moving = (frames - frames[:, :1]).abs().amax((1, 2)) > 0.1
    pixels = frames.unflatten(2, (-1, 3))
    edge = (pixels - pixels[:, :, :1]).abs().amax((1, 2, 3)) > 1e-3
    weight = torch.where(moving, MOVING, torch.where(edge, STILL, FLAT)).double()
    weight = (weight / weight.sum())[:, None]
    mean = (weight * rows).sum(0)
    centred = rows - mean
    values, vectors = torch.linalg.eigh(centred.T @ (weight * centred))
    values, vectors = values[-CHANNELS:].flip(0), vectors[:, -CHANNELS:].flip(1)
    vectors = vectors * vectors.sum(0).sign()  # which of the two directions is otherwise left to chance
    scale = values.sqrt().sqrt()
    return Basis(mean.float(), (vectors / scale * (scale.square().mean() ** -0.5)).float())


def project(video: torch.Tensor, basis: Basis) -> torch.Tensor:
    """Latents [B, 16, T, H / 4, W / 4] of clips [B, 3, F, H, W] in −1…1."""
    return ((blocks(video) - basis.mean) @ basis.analysis).permute(0, 4, 1, 2, 3)
