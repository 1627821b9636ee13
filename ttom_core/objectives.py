"""Alignment objectives: cross-attention maps against soft masks, both [N, τ, h, w], to a scalar.

Tensors only: nothing here knows a model. Sources: TTOM (arXiv 2510.07940) 3.2 and table 5; LVD.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

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
