"""Gradients through weights that autograd may not keep."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ttom_core.backbones.frozen import differentiable


def build() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(6, 8), nn.LayerNorm(8), nn.GELU(), nn.Linear(8, 8, bias=False), nn.RMSNorm(8)
    )


def plain(linear: nn.Module, like: torch.Tensor) -> torch.Tensor:
    return linear.weight.to(like)


def gradient(run, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    y = run(x)
    return y.detach(), torch.autograd.grad(y.square().sum(), x)[0]


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("checkpointing", [False, True])
def test_inference_weights_give_the_gradients_of_cloned_ones(x: torch.Tensor, checkpointing: bool) -> None:
    with torch.inference_mode():
        model = build()
    clone = copy.deepcopy(build())
    with pytest.raises(RuntimeError, match=r"[Ii]nference"):
        gradient(model, x)

    def run(x: torch.Tensor) -> torch.Tensor:
        with differentiable(model, plain):
            return model(x)

    for ours, theirs in zip(
        gradient((lambda x: checkpoint(run, x, use_reentrant=False)) if checkpointing else run, x),
        gradient(clone, x),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_a_stored_form_is_cast_for_use_and_again_in_backward(x: torch.Tensor) -> None:
    """fp8 in store: the gradient is that of the weight that was computed with."""

    class Stored(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.weight.to(x.dtype), self.bias)

    reference = nn.Linear(6, 8)
    stored = Stored(6, 8)
    stored.load_state_dict(reference.state_dict())
    stored.weight = nn.Parameter(stored.weight.to(torch.float8_e4m3fn), requires_grad=False)
    reference.weight.data = stored.weight.float()
    kept: list[torch.Tensor] = []
    watch = torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t)
    with watch, differentiable(stored, plain):
        ours = gradient(stored, x)
    assert all(torch.equal(a, b) for a, b in zip(ours, gradient(reference, x), strict=True))
    assert not any(t.shape == stored.weight.shape for t in kept), "a weight was kept"


def test_all_is_as_before_whatever_happens(x: torch.Tensor) -> None:
    with torch.inference_mode():
        model = build()
    model[0].forward = own = lambda x: nn.Linear.forward(model[0], x)  # another pack's
    weights = dict(model.named_parameters())
    interrupt = pytest.raises(KeyboardInterrupt)
    with interrupt, differentiable(model, plain):
        assert model[1].weight is not weights["1.weight"]
        raise KeyboardInterrupt
    assert model[0].forward is own
    assert "forward" not in vars(model[3])
    assert all(p is weights[name] for name, p in model.named_parameters())
