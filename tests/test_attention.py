"""The fast maps are the naive maps: values, gradients, early exit, prefix cache, checkpointing."""

import pytest
import torch
from conftest import PHRASES, PROMPT

from ttom_core.adapter import attach, init_adapter
from ttom_core.attention import PrefixCache, phrase_maps
from ttom_core.errors import TTOMError
from ttom_core.objectives import alignment_loss

TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}


def naive_maps(query, key, tokens):
    """softmax(QKᵀ/√d), all of it, then the phrases' columns."""
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1).mean(1)
    return torch.stack([weights[..., list(t)].mean(-1) for t in tokens], 1)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_fused_maps_equal_the_naive_softmax_in_value_and_gradient(dtype):
    torch.manual_seed(0)
    tokens = [(1, 2), (4,), (2, 5, 6)]
    results = []
    for function in (naive_maps, phrase_maps):
        torch.manual_seed(0)
        q = torch.randn(1, 3, 40, 8, dtype=dtype, requires_grad=True)
        k = torch.randn(1, 3, 12, 8, dtype=dtype, requires_grad=True)
        maps = function(q, k, tokens)
        weights = torch.linspace(-1, 1, maps.numel(), dtype=dtype).view_as(maps)
        gradients = torch.autograd.grad((maps * weights).sum(), (q, k))
        results.append((maps, *gradients))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


def test_kept_heads_average_to_the_map_of_the_layer(backbone):
    tokens = list(backbone.phrase_tokens(PROMPT, PHRASES).values())
    call = call_of(backbone, torch.float32)
    mean = backbone.maps(call, [0], tokens, (1, 2))
    heads = backbone.maps(call, [0], tokens, (1, 2), keep_heads=True)
    for layer in (1, 2):
        assert heads[layer].shape == (2, *mean[layer].shape)
        torch.testing.assert_close(heads[layer].mean(0), mean[layer])


def test_more_phrases_than_fit_are_refused():
    q = torch.randn(1, 1, 4, 8)
    with pytest.raises(TTOMError, match="At most 8 phrases"):
        phrase_maps(q, q, [(0,)] * 9)


def call_of(backbone, dtype):
    generator = torch.Generator().manual_seed(3)
    return {
        "hidden_states": torch.randn(1, 16, 2, 4, 4, generator=generator).to(dtype),
        "timestep": torch.tensor([900.0]),
        "encoder_hidden_states": backbone.encode(PROMPT).to(dtype),
    }


def loss_and_gradients(backbone, masks, dtype, **how):
    """One loss with a disturbed adapter, by one way of computing it."""
    layers = (1, 2)
    modules = backbone.adapter_modules(layers, how.pop("scope", "reachable"))
    adapter = init_adapter(modules, 4, 4.0, 0, backbone.fingerprint)
    generator = torch.Generator().manual_seed(4)
    for _, b in adapter.weights.values():
        b.normal_(0, 0.3, generator=generator)
    tokens = list(backbone.phrase_tokens(PROMPT, PHRASES).values())
    backbone.transformer.requires_grad_(False)
    with attach(backbone.transformer, adapter) as attached:
        if "cached" in how:
            how["prefix"] = PrefixCache(how.pop("cached"))
            backbone.maps(call_of(backbone, dtype), [0], tokens, layers, **how)  # fills the cache
        if how.pop("naive", False):
            maps = naive_forward(backbone, call_of(backbone, dtype), tokens, layers)
        else:
            maps = backbone.maps(call_of(backbone, dtype), [0], tokens, layers, **how)
        loss = alignment_loss(maps, masks.values.to(dtype), "jsd", "frame")
        gradients = torch.autograd.grad(loss, attached.parameters(), allow_unused=True)
    names = [f"{name}.{x}" for name in adapter.weights for x in "AB"]
    return loss, dict(zip(names, gradients, strict=True))


def naive_forward(backbone, call, tokens, layers):
    """The whole model, then the whole softmax of the chosen layers."""
    held, handles = {}, []
    for layer in layers:
        for name in ("norm_q", "norm_k"):
            module = getattr(backbone.transformer.blocks[layer].attn2, name)

            def keep(module, inputs, output, where=(layer, name)):
                held[where] = output.unflatten(2, (2, -1)).transpose(1, 2)

            handles.append(module.register_forward_hook(keep))
    backbone.transformer.forward(**call, return_dict=False)
    for handle in handles:
        handle.remove()
    maps = {i: naive_maps(held[i, "norm_q"], held[i, "norm_k"], tokens) for i in layers}
    return {i: m[0].unflatten(1, (2, 2, 2)) for i, m in maps.items()}


WAYS = {
    "whole forward": {"early_exit": False},
    "early exit": {},
    "prefix cache": {"cached": 0},
    "prefix cache, whole forward": {"cached": 0, "early_exit": False},
    "checkpointing": {"checkpointing": True},
    "prefix cache, checkpointing": {"cached": 0, "checkpointing": True},
    "selected layers": {"scope": "selected"},
    "selected layers, prefix cache": {"scope": "selected", "cached": 1},
    "queries and keys": {"scope": "maps"},
    "queries and keys, prefix cache": {"scope": "maps", "cached": 1},
    "features": {"scope": "features"},
    "features, prefix cache": {"scope": "features", "cached": 0},
    "features, checkpointing": {"scope": "features", "checkpointing": True},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_way_gives_the_naive_loss_and_gradients(backbone, backbone64, masks, way, dtype):
    model = backbone64 if dtype == torch.float64 else backbone
    scope = WAYS[way].get("scope", "reachable")
    loss, gradients = loss_and_gradients(model, masks, dtype, naive=True, scope=scope)
    ours, our_gradients = loss_and_gradients(model, masks, dtype, **WAYS[way])
    torch.testing.assert_close(ours, loss, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    smallest = 1e-12 if dtype == torch.float64 else 1e-7
    for name, expected in gradients.items():
        assert expected is not None and our_gradients[name] is not None, name
        torch.testing.assert_close(our_gradients[name], expected, rtol=TOLERANCE[dtype], atol=smallest)


@pytest.mark.parametrize("scope", ["reachable", "selected", "maps", "features"])
def test_every_adapter_parameter_is_reached(backbone, masks, scope):
    _, gradients = loss_and_gradients(backbone, masks, torch.float32, scope=scope)
    assert all(g is not None and g.abs().sum() > 0 for g in gradients.values())


def test_the_prefix_is_computed_once(backbone, masks):
    """Up to and with the self-attention of the first adapted block; only what follows runs again."""
    calls = {
        "patch_embedding": 0,
        "blocks.0.attn1.norm_q": 0,
        "blocks.1.attn1.norm_q": 0,
        "blocks.2.attn1.norm_q": 0,
    }
    handles = []
    for name in calls:

        def count(module, inputs, output, name=name):
            calls[name] += 1

        handles.append(backbone.transformer.get_submodule(name).register_forward_hook(count))
    prefix = PrefixCache(1)
    processors = list(backbone.transformer.attn_processors.values())
    tokens = list(backbone.phrase_tokens(PROMPT, PHRASES).values())
    for _ in range(3):
        backbone.maps(call_of(backbone, torch.float32), [0], tokens, (1, 2), prefix=prefix)
    for handle in handles:
        handle.remove()
    assert list(calls.values()) == [1, 1, 1, 3]
    kept = list(backbone.transformer.attn_processors.values())
    assert all(a is b for a, b in zip(kept, processors, strict=True))
