"""Gradients through a model whose weights autograd may not keep.

Hosts hold weights as inference tensors, in fp8, in GGUF blocks or in another memory, and cast them for each
use. What a frozen linear layer passes on to its input needs the weight and nothing else, so it is asked for
again in backward: the graph keeps no weight, and no copy of the model is made.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# The weight [out, in] of a linear layer as its host computes with it, in the type and place of a tensor.
WeightOf = Callable[[nn.Module, Tensor], Tensor]


class _FrozenLinear(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, linear: nn.Module, run: Callable[[Tensor], Tensor], weight_of: WeightOf
    ) -> Tensor:
        ctx.linear, ctx.weight_of = linear, weight_of
        return run(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        return gradient @ ctx.weight_of(ctx.linear, gradient), None, None, None


@contextmanager
def differentiable(module: nn.Module, weight_of: WeightOf) -> Iterator[None]:
    """Let gradients pass through a module, none of its weights being kept, for the length of a `with` block.

    Its linear layers compute as they always do. Its other weights, which are small, are cloned for as long.
    """
    with ExitStack() as stack:
        for part in module.modules():
            if isinstance(part, nn.Linear):
                stack.enter_context(_frozen_linear(part, weight_of))
            else:
                stack.enter_context(_cloned_weights(part))
        yield


@contextmanager
def _frozen_linear(linear: nn.Linear, weight_of: WeightOf) -> Iterator[None]:
    run, own = linear.forward, "forward" in vars(linear)
    setattr(linear, "forward", lambda x: _FrozenLinear.apply(x, linear, run, weight_of))  # noqa: B010
    try:
        yield
    finally:
        if own:
            setattr(linear, "forward", run)  # noqa: B010
        else:
            del linear.forward


@contextmanager
def _cloned_weights(module: nn.Module) -> Iterator[None]:
    originals = {name: p for name, p in module._parameters.items() if p is not None and p.is_inference()}
    try:
        for name, parameter in originals.items():
            module._parameters[name] = nn.Parameter(parameter.clone(), requires_grad=False)
        yield
    finally:
        module._parameters.update(originals)
