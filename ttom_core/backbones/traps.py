"""What would keep an adapter from learning, often silently: refused in one sentence before any long work."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..errors import TTOMError
from .parallel import devices_of, refuse_inexact_sharing

_OFFLOADED = (
    "The model's weights are loaded piece by piece while it runs ({} offloading), which leaves nothing to "
    "optimise; use enable_model_cpu_offload() instead."
)


def refuse_untrainable(transformer: nn.Module, attentions: Iterable[Any], device: torch.device) -> None:
    """TTOMError for a model on which an adapter on these attentions would not learn what it should.

    `device` is where the model will run, which under offloading is not where its weights are.
    """
    if any(parameter.is_meta for parameter in transformer.parameters()):
        raise TTOMError(_OFFLOADED.format("sequential"))
    for hook in _diffusers_hooks(transformer):
        technique = type(hook).__module__.rpartition(".")[2]
        if technique == "group_offloading":
            raise TTOMError(_OFFLOADED.format("group"))
        if technique.endswith("_cache") or technique == "pyramid_attention_broadcast":
            raise TTOMError(
                f"A cache ({technique}) reuses what the model gave at one denoising step in the next, and an "
                "optimisation changes just that; call transformer.disable_cache() first."
            )
    if transformer._compiled_call_impl is not None or hasattr(transformer, "_orig_mod"):
        raise TTOMError(
            "The transformer is compiled as a whole, so that nothing can be done between its steps; load it "
            "anew and compile its blocks instead, each with block.compile()."
        )
    if any(_is_fused(attention) for attention in attentions):
        raise TTOMError(
            "The model's attention projections are fused, so an adapter on k and v would do nothing; call "
            "transformer.unfuse_qkv_projections() first."
        )
    refuse_inexact_sharing(transformer)
    _refuse_kernels_without_backward(transformer)
    _refuse_attention_without_backward(transformer, device)


def _diffusers_hooks(module: nn.Module) -> Iterable[Any]:
    for part in module.modules():
        registry = getattr(part, "_diffusers_hook", None)
        if registry is not None:
            yield from registry.hooks.values()


def _is_fused(attention: Any) -> bool:
    from diffusers.models.attention_processor import Attention

    if isinstance(attention, Attention):  # its own flag stays set after unfusing
        return type(attention.processor).__name__.startswith("Fused")
    return bool(getattr(attention, "fused_projections", False))


def _refuse_kernels_without_backward(transformer: nn.Module) -> None:
    if not any(type(module).__name__ == "GGUFLinear" for module in transformer.modules()):
        return
    from diffusers.quantizers.gguf.utils import can_use_cuda_kernels

    if can_use_cuda_kernels:
        raise TTOMError(
            "The GGUF model runs on CUDA kernels that have no backward pass; set "
            "DIFFUSERS_GGUF_CUDA_KERNELS=false and start again."
        )


def _refuse_attention_without_backward(transformer: Any, device: torch.device) -> None:
    """Whether gradients pass is tried, not looked up: hosts replace attention in more ways than one.

    Besides the processors' backends that is torch's own function, by which the maps are made.
    """
    from diffusers.models.attention_dispatch import dispatch_attention_fn

    width, dtype = transformer.config.attention_head_dim, transformer.dtype
    if dtype not in (torch.float64, torch.float32, torch.float16):
        dtype = torch.bfloat16  # what quantised weights compute in
    restore = "call transformer.set_attention_backend('native')"
    processors = transformer.attn_processors.values()
    backends = {p._attention_backend for p in processors if hasattr(p, "_attention_backend")}
    own = F.scaled_dot_product_attention
    ways: list[tuple[str, str, Any]] = [
        ("scaled_dot_product_attention", "give torch its own function back", own)
    ]
    shared = getattr(transformer, "_parallel_config", None)  # has a backward pass of its own
    attend = partial(dispatch_attention_fn, parallel_config=shared)
    ways += [(_name_of(b), restore, partial(attend, backend=b)) for b in backends]
    with torch.inference_mode(False), torch.enable_grad():
        # As many heads as tokens: backends differ in which comes first. Devices have equal shares of them.
        count = devices_of(transformer).count
        size = -(-64 // count) * count
        ones = torch.ones(3, 1, size, size, width, dtype=dtype, device=device)
        q, k, v = (x.clone().requires_grad_() for x in ones)
        for name, cure, way in ways:
            try:
                torch.autograd.grad(way(q, k, v).sum(), (q, k, v))
            except Exception as error:  # whatever a kernel without backward raises
                raise TTOMError(
                    f"The attention backend {name!r} has no backward pass here, so nothing could be "
                    f"optimised; {cure}."
                ) from error


def _name_of(backend: Any) -> str:
    from diffusers.models.attention_dispatch import _AttentionBackendRegistry

    chosen = backend if backend is not None else _AttentionBackendRegistry.get_active_backend()[0]
    return str(getattr(chosen, "value", chosen))
