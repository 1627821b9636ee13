"""Muon in fp32. torch's own iterates in bf16, which a CPU without bf16 units does a hundred times slower."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def orthogonalize(gradients: Tensor, steps: int = 5) -> Tensor:
    """The nearest semi-orthogonal matrices [N, out, in], by Newton–Schulz as in Jordan et al. (2024)."""
    tall = gradients.shape[1] > gradients.shape[2]
    x = gradients.mT if tall else gradients
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + torch.baddbmm(gram, gram, gram, beta=-4.7750, alpha=2.0315) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per matrix; the learning rate is AdamW's (update RMS 0.2).

    Without the decay, weights grow until an update is nothing beside them, and the norms behind them hide it.
    Matrices of one shape are iterated together: three times faster on four cores.
    """

    def __init__(
        self, parameters: Iterable[Tensor], lr: float, momentum: float = 0.95, decay: float = 0.1
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "decay": decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update every matrix that has a gradient."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.state[parameter].setdefault("momentum", torch.zeros_like(parameter))
                    alike.setdefault(parameter.shape, []).append(parameter)
            for shape, matrices in alike.items():
                slopes = torch.stack([matrix.grad for matrix in matrices if matrix.grad is not None])
                momenta = [self.state[matrix]["momentum"] for matrix in matrices]
                torch._foreach_lerp_(momenta, list(slopes), 1 - group["momentum"])
                updates = orthogonalize(slopes.lerp(torch.stack(momenta), group["momentum"]))
                rate = group["lr"] * 0.2 * max(shape) ** 0.5
                torch._foreach_mul_(matrices, 1 - group["lr"] * group["decay"])
                torch._foreach_add_(matrices, list(updates), alpha=-rate)
