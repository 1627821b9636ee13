"""Wan and CogVideoX as ComfyUI samples with them: the artist's own MODEL, during one run of a sampler.

The host's own call of the model is made for every iteration, with its patches, casts and offloading; it is
left as soon as the deepest map is known. What only the host can do comes as two functions, so that nothing
here depends on it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from ..attention import (
    EarlyExit,
    JointMap,
    MapProbe,
    PhraseTokens,
    PrefixCache,
    joint_phrase_maps,
    phrase_maps,
    tapped,
)
from ..errors import TTOMError
from .fingerprint import fingerprint
from .frozen import WeightOf, differentiable
from .names import WAN, Names, adapted, diffusers_name, names_of, native_name
from .phrases import EncodedPrompt

if TYPE_CHECKING:
    from .pipeline import PipelineBackbone

# What comes to a block and is changed by it: Wan's video tokens [B, S, d], CogVideoX's (video tokens, text
# tokens, rotation of the video tokens or None).
State = Any
# A block's turn: (its number, its run, the state that comes to it) → the state that it passes on.
BlockTurn = Callable[[int, Callable[[State], State], State], State]
# Call the model on (latents [1, C, τ, h, w], noise level [1], the denoiser call), its blocks by these turns.
Denoise = Callable[[Tensor, Tensor, Mapping[str, Any], BlockTurn], object]


class NativeDenoiser:
    """A host's transformer as the optimisation sees one: diffusers' names, and hooks before each step."""

    def __init__(self, model: Any, names: Names) -> None:
        self.model, self.names = model, names
        self._hooks: OrderedDict[int, Callable[..., None]] = OrderedDict()

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.model.parameters()

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The linear layers, by diffusers' names."""
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear):
                yield diffusers_name(name, self.names), module

    def register_forward_pre_hook(self, hook: Callable[..., None], *, with_kwargs: bool) -> RemovableHandle:
        handle = RemovableHandle(self._hooks)
        self._hooks[handle.id] = hook
        return handle

    def before_step(self, latents: Tensor, sigma: Tensor, **more: Any) -> None:
        """Tell the hooks of the denoising step that is about to run; `more` comes back to `Denoise`."""
        call = {"hidden_states": latents, "timestep": sigma, "encoder_hidden_states": latents, **more}
        for hook in list(self._hooks.values()):
            hook(self, (), call)


class NativeModel:
    """ComfyUI's own model as a memory sees it (`base.Adaptable`), by diffusers' names.

    `weights` are the model's tensors by native name without a user's LoRAs, from which the fingerprint comes;
    it is the one of the same weights in diffusers' format.
    """

    def __init__(self, model: Any, weights: Mapping[str, Tensor]) -> None:
        self.names = names_of(weights)
        self.transformer = NativeDenoiser(model, self.names)
        self.num_layers = len(model.blocks)
        self.fingerprint = native_fingerprint(weights)

    def adapter_modules(self, layers: Sequence[int], scope: str) -> dict[str, Any]:
        model, paths = self.transformer.model, adapted(self.names, layers, scope)
        return {path: model.get_submodule(native_name(path, self.names)) for path in paths}


class NativeRun(NativeModel, ABC):
    """Answers what the optimisation asks of a model (`base.Optimisable`) during one run of a sampler.

    `sigmas` are the noise levels of the run's steps, as the host counts them.
    """

    def __init__(
        self,
        model: Any,
        prompt: EncodedPrompt,
        sigmas: Sequence[float],
        weights: Mapping[str, Tensor],
        denoise: Denoise,
        weight_of: WeightOf,
    ) -> None:
        super().__init__(model, weights)
        self.blocks, self.max_text_tokens = model.blocks, prompt.limit
        self.prompt, self._sigmas = prompt, [self._level(sigma) for sigma in sigmas]
        self._denoise, self._weight_of = denoise, weight_of

    def check_trainable(self, sigmas: Sequence[float] = ()) -> None:
        """Nothing to refuse: the host's file looks at the MODEL before it makes this."""

    def phrase_tokens(self, prompt: str, phrases: Sequence[str]) -> dict[str, tuple[int, ...]]:
        return self.prompt.positions(phrases)

    def sigmas(self, steps: int) -> list[float]:
        return self._sigmas

    def sigma_of(self, timestep: Tensor) -> float:
        return self._level(float(timestep.flatten()[0]))  # the host's samplers count in noise levels

    def _level(self, sigma: float) -> float:
        """The noise level of the flow-matching form (0…1) with the signal and noise of the host's."""
        return sigma

    @property
    @abstractmethod
    def _patch(self) -> tuple[int, int, int]:
        """Latents to a token: (frames, rows, columns)."""

    @abstractmethod
    def _projections(self, block: Any) -> tuple[nn.Module, nn.Module]:
        """What gives a block's queries and keys."""

    @abstractmethod
    def _read(
        self, query: Tensor, key: Tensor, state: State, tokens: PhraseTokens, heads: bool, joint_map: JointMap
    ) -> Tensor:
        """Maps of what these give in a block with this state (`MapProbe.read`)."""

    def conditional_rows(self, prompt: str, conditioning: Tensor) -> list[int]:
        return [0]  # a step is told of once, and with the positive prompt

    def maps(
        self,
        call: dict[str, Any],
        rows: Sequence[int],
        tokens: PhraseTokens,
        layers: Sequence[int],
        *,
        prefix: PrefixCache | None = None,
        early_exit: bool = True,
        checkpointing: bool = False,
        keep_heads: bool = False,
        joint_map: JointMap = "video_to_text",
    ) -> dict[int, Tensor]:
        latents = call["hidden_states"]
        first, last = prefix.first_block if prefix else 0, max(layers)
        grid, states = self.token_grid(latents), dict[str, State]()

        def read(query: Tensor, key: Tensor) -> Tensor:
            maps = self._read(query, key, states["block"], tokens, keep_heads, joint_map)
            if maps.shape[-1] != math.prod(grid):
                raise TTOMError(
                    f"The MODEL has {maps.shape[-1]} video tokens and the clip {math.prod(grid)}, as with "
                    "reference pictures among them; remove the node that adds them."
                )
            return maps

        probe = MapProbe(layers, grid, read, early_exit)

        def turn(index: int, run: Callable[[State], State], state: State) -> State:
            if index < first and prefix and prefix.state is not None:
                return state  # what these blocks give is known, and taken up below
            if not first <= index <= last:
                with torch.no_grad():
                    return run(state)
            if index == first and prefix:
                prefix.state = prefix.state or (state,)
                state = prefix.state[0]

            def differentiably(state: State) -> State:
                # Set up here, not around the call: checkpointing runs this again in backward.
                block, states["block"] = self.blocks[index], state
                mine = {index: self._projections(block)} if index in layers else {}
                with tapped(probe, mine), differentiable(block, self._weight_of):
                    return run(state)

            if checkpointing and index < last:
                return checkpoint(differentiably, state, use_reentrant=False)
            return differentiably(state)

        with suppress(EarlyExit):
            self._denoise(latents, call["timestep"], call, turn)
        if missing := set(layers) - probe.maps.keys():
            raise TTOMError(
                f"Layer {min(missing)} of the MODEL was left out when it ran, so its attention is unknown; "
                "remove the node that skips layers or reuses earlier steps."
            )
        return probe.maps

    def token_grid(self, latents: Tensor) -> tuple[int, int, int]:
        """The video tokens (τ, h, w) of latents [1, C, τ, h, w]; what does not fill a patch is padded."""
        sizes = zip(latents.shape[2:], self._patch, strict=True)
        frames, rows, columns = (-(-size // patch) for size, patch in sizes)
        return frames, rows, columns


class NativeWan(NativeRun):
    """Wan: a cross-attention of its own for the text."""

    @property
    def _patch(self) -> tuple[int, int, int]:
        frames, rows, columns = self.transformer.model.patch_size
        return frames, rows, columns

    def _projections(self, block: Any) -> tuple[nn.Module, nn.Module]:
        return block.cross_attn.norm_q, block.cross_attn.norm_k

    def _read(
        self, query: Tensor, key: Tensor, state: State, tokens: PhraseTokens, heads: bool, joint_map: JointMap
    ) -> Tensor:
        width = self.transformer.model.num_heads
        q, k = (x.unflatten(2, (width, -1)).transpose(1, 2) for x in (query, key))  # of [B, tokens, heads·d]
        return phrase_maps(q, k, tokens, heads)


class NativeCogVideoX(NativeRun):
    """CogVideoX: one attention for text and video, the text first.

    The host counts noise against a signal of 1, whatever the schedule (`cogvideox` says why σ/(1+σ)).
    """

    def _level(self, sigma: float) -> float:
        return sigma / (1 + sigma)

    @property
    def _patch(self) -> tuple[int, int, int]:
        model = self.transformer.model
        return model.patch_size_t or 1, model.patch_size, model.patch_size

    def _projections(self, block: Any) -> tuple[nn.Module, nn.Module]:
        return block.norm_q, block.norm_k

    def _read(
        self, query: Tensor, key: Tensor, state: State, tokens: PhraseTokens, heads: bool, joint_map: JointMap
    ) -> Tensor:
        from diffusers.models.embeddings import apply_rotary_emb

        _, text, rotation = state
        length = text.shape[1]

        def rotated(x: Tensor) -> Tensor:  # of [B, tokens, heads, d]
            x = x.transpose(1, 2)
            if rotation is None:
                return x
            return torch.cat([x[:, :, :length], apply_rotary_emb(x[:, :, length:], rotation)], 2)

        return joint_phrase_maps(rotated(query), rotated(key), tokens, length, joint_map, heads)


def native_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """The fingerprint that the diffusers backbone gives the same weights; TTOMError when some are missing."""
    family = names_of(weights)
    last = "head.modulation" if family is WAN else "norm_final.weight"
    if last not in weights:
        raise TTOMError(f"The MODEL lacks {last}, so it is no whole {family.title}; load another file.")
    width = weights[last].shape[-1]
    # Counted, not read from the numbers: a gap is then found, and a huge number does no harm.
    layers = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    sizes = {"num_attention_heads": 1, "attention_head_dim": width, "num_layers": layers}
    # For the order of its parameters.
    model = (_wan_like if family is WAN else _cogvideox_like)(weights, sizes)
    names = [name for name, _ in model.named_parameters()]
    natives = {name: native_name(name, family) for name in names}
    if lacking := [name for name in natives.values() if name not in weights]:
        raise TTOMError(f"The MODEL lacks {lacking[0]}, so it is no whole {family.title}; load another file.")
    return fingerprint(family.family, layers, width, ((name, weights[natives[name]]) for name in names))


def _wan_like(weights: Mapping[str, Tensor], sizes: dict[str, int]) -> Any:
    image, places = weights.get("img_emb.proj.0.weight"), weights.get("img_emb.emb_pos")
    return wan_on_meta(
        **sizes,
        image_dim=None if image is None else image.shape[0],
        added_kv_proj_dim=None if image is None else sizes["attention_head_dim"],
        pos_embed_seq_len=None if places is None else places.shape[1],
    )


def _cogvideox_like(weights: Mapping[str, Tensor], sizes: dict[str, int]) -> Any:
    image = weights.get("ofs_embedding_linear_1.weight")
    return cogvideox_on_meta(
        **sizes,
        patch_bias="patch_embed.proj.bias" in weights,
        ofs_embed_dim=None if image is None else image.shape[1],
    )


def wan_on_meta(**config: Any) -> Any:
    """diffusers' Wan of this config on the meta device: names and shapes, and no numbers."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        return WanTransformer3DModel(**config)


def cogvideox_on_meta(**config: Any) -> Any:
    """As `wan_on_meta`; its positions rotate, which spares a table of them."""
    from diffusers import CogVideoXTransformer3DModel

    with torch.device("meta"):
        return CogVideoXTransformer3DModel(**config, use_rotary_positional_embeddings=True)


def twin(
    model: Any, dtype: torch.dtype, size: tuple[int, int, int]
) -> tuple[PipelineBackbone, tuple[int, int, int]]:
    """diffusers' backbone of a host's transformer on the meta device, on which costs are counted.

    Its clips are given in latents; with it comes the least (frames, rows, columns) that it takes and that
    holds `size`.
    """
    from .cogvideox import CogVideoXBackbone
    from .wan import WanBackbone

    kind: type[PipelineBackbone]
    if hasattr(model, "ffn_dim"):
        kind, transformer = WanBackbone, wan_on_meta(
            num_attention_heads=model.num_heads,
            attention_head_dim=model.dim // model.num_heads,
            in_channels=model.in_dim,
            ffn_dim=model.ffn_dim,
            num_layers=len(model.blocks),
        )  # fmt: skip
    else:
        kind, transformer = CogVideoXBackbone, cogvideox_on_meta(
            num_attention_heads=model.num_attention_heads,
            attention_head_dim=model.attention_head_dim,
            in_channels=model.in_channels,
            time_embed_dim=model.time_embedding_linear_1.out_features,
            text_embed_dim=model.patch_embed.text_proj.in_features,
            num_layers=len(model.blocks),
            patch_size=model.patch_size,
            patch_size_t=model.patch_size_t,
            sample_frames=1 << 20,  # no limit
            max_text_seq_length=model.max_text_seq_length,
        )  # fmt: skip
    transformer.requires_grad_(False)
    for parameter in transformer.parameters():
        parameter.data = parameter.data.to(dtype)
    backbone = kind.of_transformer(transformer, 1, 1)
    frames, rows, columns = size
    frames += (1 - frames) % backbone._frames_step()
    _, patch, _ = backbone._patch
    return backbone, (frames, rows + -rows % patch, columns + -columns % patch)
