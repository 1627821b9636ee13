"""Exact fusion: one adapter whose ΔW is the weighted average of others' ΔW = alpha/rank · B·A.

Averaging A and B on their own is not that: the product of averages is not the average of products. Ranks
are concatenated instead, which is exact, and cut back to a working rank by a thin QR and an SVD, which
is the nearest there is (Eckart & Young 1936). No out×in matrix is ever formed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .adapter import Adapter, AdapterError


def fuse(
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None = None,
    rank: int | None = None,
    *,
    normalise: bool = True,
) -> Adapter:
    """The adapter with ΔW = Σ w_i·ΔW_i of these, best match first.

    weights: equal by default; scaled to sum to 1 if `normalise`. rank: the most the result may have.
    Up to it, and always with None, the result is exact: adapters with the same A share it, so equal
    ones fuse to themselves; the ranks of others add up. Beyond it every module gets the best
    approximation of that rank in the Frobenius norm.

    A cut result is meant to be optimised further, so its A looks like the first adapter's A: rows of
    the mean length they have there, turned as near to them as the best row space allows. Balanced
    factors (√S on both sides) would shrink A with ΔW and leave an optimiser hardly anything to grip;
    concatenated ranks would move ΔW once for every copy of nearly the same A. The result does not
    depend on the signs an SVD happens to choose.

    alpha is set so that alpha/rank stays the first adapter's. Arithmetic in fp64, result in fp32.
    AdapterError when the adapters do not fit each other, or a weight or tensor is not finite.
    """
    _check(adapters, weights, rank)
    shares = [1.0] * len(adapters) if weights is None else [float(w) for w in weights]
    total = math.fsum(shares)
    if normalise:
        if not total > 0:
            raise AdapterError(f"The weights {shares} do not sum to more than 0; raise one of them.")
        shares = [share / total for share in shares]
    scaling = adapters[0].scaling
    factors = [share * a.scaling / scaling for share, a in zip(shares, adapters, strict=True)]

    groups: list[list[int]] = []  # adapters with the same A everywhere
    for index, adapter in enumerate(adapters):
        mine = next((g for g in groups if _same_a(adapters[g[0]], adapter)), None)
        if mine is None:
            groups.append([index])
        else:
            mine.append(index)
    fused_rank = sum(adapters[group[0]].rank for group in groups)
    if rank is not None:
        fused_rank = min(rank, fused_rank)
    fused = {}
    for name in adapters[0].weights:
        a = torch.cat([adapters[group[0]].weights[name][0].double() for group in groups])
        columns = [
            torch.stack([factors[i] * adapters[i].weights[name][1].double() for i in group]).sum(0)
            for group in groups
        ]
        b = torch.cat(columns, 1)
        if len(a) > fused_rank:
            a, b = _cut(a, b, fused_rank)
        fused[name] = (a.float(), b.float())
    return Adapter(fused, fused_rank, scaling * fused_rank, adapters[0].fingerprint)


def _cut(a: Tensor, b: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best A [rank, in] and B [out, rank] for A [K, in] and B [out, K], A near its first rows."""
    q_b, r_b = torch.linalg.qr(b)
    q_a, r_a = torch.linalg.qr(a.T)
    u, s, vh = torch.linalg.svd(r_b @ r_a.T, full_matrices=False)
    left = q_b @ (u[:, :rank] * s[:rank])
    rows = vh[:rank] @ q_a.T  # orthonormal: the best row space
    wanted = a[:rank]
    length = float(wanted.norm()) / math.sqrt(rank) or 1.0
    # Orthogonal Procrustes: the turn that brings these rows nearest to the wanted ones.
    p, _, qh = torch.linalg.svd(wanted @ rows.T, full_matrices=False)
    turn = p @ qh
    return length * turn @ rows, left @ turn.T / length


def _same_a(first: Adapter, second: Adapter) -> bool:
    return first.rank == second.rank and all(
        torch.equal(a, second.weights[name][0]) for name, (a, _) in first.weights.items()
    )


def _check(adapters: Sequence[Adapter], weights: Sequence[float] | None, rank: int | None) -> None:
    if not adapters:
        raise AdapterError("There is no adapter to fuse; give at least one.")
    if rank is not None and rank < 1:
        raise AdapterError(f"The rank of a fused adapter must be at least 1, not {rank}.")
    if weights is not None and len(weights) != len(adapters):
        raise AdapterError(f"{len(adapters)} adapters need as many weights, not {len(weights)}.")
    if weights is not None and not all(math.isfinite(w) for w in weights):
        raise AdapterError(f"The weights {list(weights)} are not all finite numbers; correct them.")
    first = adapters[0]
    for other in adapters:
        if other.fingerprint != first.fingerprint:
            raise AdapterError(
                f"Adapters of different models do not fuse: one is for {first.fingerprint}, "
                f"one for {other.fingerprint}; choose entries of one model."
            )
        if other.weights.keys() != first.weights.keys():
            odd = min(other.weights.keys() ^ first.weights.keys())
            raise AdapterError(
                f"Only some of the adapters reach {odd}; fuse entries made with the same layers and scope."
            )
        for name, (a, b) in other.weights.items():
            shape, wanted = [(y.shape[0], x.shape[1]) for x, y in ((a, b), first.weights[name])]
            if shape != wanted:
                raise AdapterError(
                    f"The adapters' sizes for {name} differ, {shape[0]}×{shape[1]} and "
                    f"{wanted[0]}×{wanted[1]}; fuse entries of one model."
                )
            if not (a.isfinite().all() and b.isfinite().all()):
                raise AdapterError(f"An adapter holds values for {name} that are not finite; leave it out.")
