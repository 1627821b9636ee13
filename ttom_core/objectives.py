"""Alignment objectives: cross-attention maps against soft masks, both [N, τ, h, w], to a scalar.

Tensors only: nothing here knows a model. Sources: TTOM (arXiv 2510.07940) 3.2 and table 5; LVD.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from .errors import TTOMError

EPS = 1e-12


def normalize(x: Tensor, over: str) -> Tensor:
    """Scale to sum 1 over each latent frame ("frame") or each whole volume ("volume").

    Returns [N, groups, positions]: groups is τ for "frame" and 1 for "volume". A group of zeros stays
    zeros.
    """
    if over == "frame":
        groups = x.flatten(2)
    elif over == "volume":
        groups = x.flatten(1).unsqueeze(1)
    else:
        raise TTOMError(f"Cannot normalise over {over!r}; choose 'frame' or 'volume'.")
    return groups / groups.sum(-1, keepdim=True).clamp_min(EPS)


def _mean_where_present(values: Tensor, masks: Tensor) -> Tensor:
    """Mean of [N, groups] over the groups in which the object is there, then over objects."""
    there = (masks.sum(-1) > 0).to(values.dtype)
    return ((values * there).sum(-1) / there.sum(-1).clamp_min(1)).mean()


def jsd(maps: Tensor, masks: Tensor, over: str = "volume") -> Tensor:
    """Jensen–Shannon divergence, natural log, in 0…ln 2 (TTOM eq. 2).

    Frames in which an object has no mask drop out, so a late entry is no target of its own.
    """
    p, q = normalize(maps, over), normalize(masks, over)
    log_m = ((p + q) / 2).clamp_min(EPS).log()
    kl_p = (p * (p.clamp_min(EPS).log() - log_m)).sum(-1)
    kl_q = (q * (q.clamp_min(EPS).log() - log_m)).sum(-1)
    return _mean_where_present((kl_p + kl_q) / 2, q)


def bce(maps: Tensor, masks: Tensor, over: str = "volume") -> Tensor:
    """Binary cross-entropy of maps scaled to peak 1 against masks scaled to peak 1 (table 5, "CE")."""
    p, q = (_groups(x, over) for x in (maps, masks))
    p = p / p.amax(-1, keepdim=True).clamp_min(EPS)
    q = q / q.amax(-1, keepdim=True).clamp_min(EPS)
    p = p.clamp(1e-6, 1 - 1e-6)
    return _mean_where_present(-(q * p.log() + (1 - q) * (1 - p).log()).mean(-1), q)


def center_of_mass(maps: Tensor, masks: Tensor, over: str = "frame") -> Tensor:
    """Squared distance of the centres of mass per frame, in shares of the canvas (table 5, "CoM").

    A centre belongs to a frame, so `over` changes nothing.
    """
    _, _, h, w = maps.shape
    y = (torch.arange(h, device=maps.device, dtype=maps.dtype) + 0.5) / h
    x = (torch.arange(w, device=maps.device, dtype=maps.dtype) + 0.5) / w

    def centre(volume: Tensor) -> Tensor:
        p = normalize(volume, "frame").view_as(volume)
        return torch.stack([(p.sum(-1) * y).sum(-1), (p.sum(-2) * x).sum(-1)], -1)

    distance = (centre(maps) - centre(masks)).square().sum(-1)
    return _mean_where_present(distance, masks.flatten(2))


def lvd(
    maps: Tensor,
    masks: Tensor,
    tokens: Sequence[int],
    *,
    top_share: float = 0.75,
    foreground: float = 1.0,
    background: float = 4.0,
    center: float = 0.0,
) -> Tensor:
    """The energy of LLM-grounded Video Diffusion (Lian et al. 2023), a sum and not a mean.

    maps [heads, T, τ, h, w] has a column for each token, masks [N, τ, h, w] lie in 0…1, tokens[i] columns
    in turn belong to phrase i. In every head and frame the highest `top_share` of the attention inside the
    box should be 1 and outside 0; in a frame without a box only the outside counts. Summed over heads and
    frames, mean over a phrase's tokens and over phrases. `center` weighs the squared distance, in tokens,
    of the centres of mass and of their way to the next frame, mean over heads and summed over frames.
    """
    counts = torch.tensor(tokens, device=maps.device)
    inside = masks.clamp(max=1).to(maps.dtype).repeat_interleave(counts, 0)
    outside = 1 - inside
    near = 1 - _mean_of_top(maps * inside, inside, top_share)
    far = _mean_of_top(maps * outside, outside, top_share)
    energy = (foreground * near + background * far).sum((0, 2))
    if center:
        there = inside.flatten(2).sum(-1) > 0
        off = _centre(maps) - _centre(inside)
        way = off.diff(dim=-2)
        position = off.square().sum(-1).mean(0) * there
        velocity = way.square().sum(-1).mean(0) * (there[:, 1:] & there[:, :-1])
        energy = energy + center * (position.sum(-1) + velocity.sum(-1))
    return (energy / counts.repeat_interleave(counts)).sum() / len(tokens)


def _mean_of_top(x: Tensor, masks: Tensor, share: float) -> Tensor:
    """Mean of a frame's highest values, at least one: as many as `share` of its mask. [heads, T, τ]"""
    counts = (masks.flatten(2).sum(-1, keepdim=True) * share).floor().clamp_min(1)
    ranked = x.flatten(3).sort(-1, descending=True).values
    return (ranked * (torch.arange(ranked.shape[-1], device=x.device) < counts)).sum(-1) / counts.squeeze(-1)


def _centre(x: Tensor) -> Tensor:
    """Centre of mass of every frame in tokens, (row, column): [..., τ, 2]; a frame of zeros has 0, 0."""
    rows, columns = (torch.arange(n, device=x.device, dtype=x.dtype) for n in x.shape[-2:])
    mass = x.sum((-1, -2)).clamp_min(EPS)
    return torch.stack([(x.sum(-1) * rows).sum(-1), (x.sum(-2) * columns).sum(-1)], -1) / mass.unsqueeze(-1)


def _groups(x: Tensor, over: str) -> Tensor:
    return x.flatten(2) if over == "frame" else x.flatten(1).unsqueeze(1)


OBJECTIVES: Mapping[str, Callable[[Tensor, Tensor, str], Tensor]] = {
    "jsd": jsd,
    "bce": bce,
    "center_of_mass": center_of_mass,
}


def alignment_loss(maps: Mapping[int, Tensor], masks: Tensor, objective: str, over: str) -> Tensor:
    """Mean of an objective over the selected layers (TTOM 3.2)."""
    measure = OBJECTIVES[objective]
    return torch.stack([measure(layer, masks, over) for layer in maps.values()]).mean()
