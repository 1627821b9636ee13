"""Cross-attention maps of chosen phrases, without ever holding [heads, queries, keys].

The map of a phrase is softmax(QKᵀ/√d) summed over the phrase's key columns: attention whose values are
the phrase's 0/1 indicator. One fused attention call gives all phrases, normalised over all keys, with
gradients to Q and K (TTOM 3.2; the identity is `attention(Q, K, M) = softmax(QKᵀ/√d)·M`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import TTOMError

PhraseTokens = Sequence[Sequence[int]]
JointMap = Literal["video_to_text", "text_to_video", "renormalized"]


def phrase_maps(query: Tensor, key: Tensor, tokens: PhraseTokens, keep_heads: bool = False) -> Tensor:
    """Attention from every query to each phrase, mean over heads and the phrase's tokens: [B, N, S].

    query [B, heads, S, d] and key [B, heads, K, d]; tokens are key positions per phrase. With
    `keep_heads` the mean is over the tokens alone: [B, heads, N, S].
    """
    batch, heads, keys, width = key.shape
    if len(tokens) > width:
        raise TTOMError(f"At most {width} phrases fit into one attention call, not {len(tokens)}.")
    # As wide as a head: the fused kernels want values of the keys' width and fall back otherwise.
    indicator = key.new_zeros(keys, width)
    for column, positions in enumerate(tokens):
        indicator[list(positions), column] = 1
    values = indicator.expand(batch, heads, keys, width)
    attended = F.scaled_dot_product_attention(query, key, values)[..., : len(tokens)]
    counts = torch.tensor([len(positions) for positions in tokens], device=key.device)
    attended = attended.float() if attended.dtype != torch.float64 else attended
    if not keep_heads:
        attended = attended.mean(1)
    return attended.transpose(-1, -2) / counts.view(-1, 1)


def joint_phrase_maps(
    query: Tensor,
    key: Tensor,
    tokens: PhraseTokens,
    text: int,
    kind: JointMap = "video_to_text",
    keep_heads: bool = False,
) -> Tensor:
    """As `phrase_maps`, of a joint attention over `text` text tokens and S video tokens after them.

    `video_to_text` is the phrase's columns of the video's rows; `text_to_video` the phrase's rows, nearly
    free; both are shares of the whole softmax. `renormalized` is the first as shares of the text alone: a
    different objective, with different gradients.
    """
    if kind == "video_to_text":
        return phrase_maps(query[:, :, text:], key, tokens, keep_heads)
    if kind == "renormalized":
        return phrase_maps(query[:, :, text:], key[:, :, :text], tokens, keep_heads)
    rows = [position for positions in tokens for position in positions]
    weights = (query[:, :, rows] @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).softmax(-1)
    weights = weights[..., text:] if weights.dtype == torch.float64 else weights[..., text:].float()
    if not keep_heads:
        weights = weights.mean(1)
    parts = weights.split([len(positions) for positions in tokens], -2)
    return torch.stack([part.mean(-2) for part in parts], -2)


class EarlyExit(Exception):
    """Leaves a forward pass once everything wanted of it is known; never seen outside the core."""


@dataclass
class PrefixCache:
    """What comes before the first adapted cross-attention, the same in all iterations of a denoising step.

    That is the arguments of its block and, where no adapter acts on it, the output of the block's
    self-attention. Valid for one (latents, timestep, conditioning); make a new one for every step.
    """

    first_block: int
    state: tuple[object, ...] | None = None
    self_attention: Tensor | None = None


@dataclass
class MapProbe:
    """Collects the maps of some layers while their blocks run.

    `read(query, key)` makes maps [B, …, N, S] of what a layer's query and key modules gave; a layer's maps
    are then […, N, τ, h, w].
    """

    layers: Sequence[int]
    grid: tuple[int, int, int]
    read: Callable[[Tensor, Tensor], Tensor]
    exit_early: bool = True
    maps: dict[int, Tensor] = field(default_factory=dict)

    def tap(self, layer: int, query: Tensor, key: Tensor) -> None:
        maps = self.read(query, key)
        if layer in self.maps:
            return  # checkpointing runs the block again in backward; the first map is in the graph
        self.maps[layer] = maps[0].unflatten(-1, self.grid)
        if self.exit_early and len(self.maps) == len(self.layers):
            raise EarlyExit


@contextmanager
def tapped(probe: MapProbe, projections: Mapping[int, tuple[nn.Module, nn.Module]]) -> Iterator[MapProbe]:
    """Let a probe see the outputs of these layers' query and key modules; hooks leave with the block."""
    handles = []
    held: dict[int, Tensor] = {}

    def on_query(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            held[layer] = output

        return hook

    def on_key(layer: int) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            probe.tap(layer, held.pop(layer), output)

        return hook

    try:
        for layer, (query, key) in projections.items():
            handles.append(query.register_forward_hook(on_query(layer)))
            handles.append(key.register_forward_hook(on_key(layer)))
        yield probe
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def captured(prefix: PrefixCache, block: nn.Module, self_attention: nn.Module | None) -> Iterator[None]:
    """Fill a prefix cache from the forward pass inside, which ends after the block's self-attention.

    Where the block has none that is free of adapters, it ends before the block.
    """

    def enter(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        prefix.state = (*args, *kwargs.values())
        if self_attention is None:
            raise EarlyExit

    def leave(module: nn.Module, inputs: object, output: Tensor) -> None:
        prefix.self_attention = output
        raise EarlyExit

    handles = [block.register_forward_pre_hook(enter, with_kwargs=True)]
    if self_attention is not None:
        handles.append(self_attention.register_forward_hook(leave))
    try:
        yield
    except EarlyExit:
        pass
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def recalled(self_attention: Any, output: Tensor) -> Iterator[None]:
    """Let a diffusers attention answer with what it answered before; its processor is back afterwards."""
    processor = self_attention.processor
    self_attention.processor = lambda *args, **kwargs: output
    try:
        yield
    finally:
        self_attention.processor = processor
