"""Wan as ComfyUI samples with it: the artist's own MODEL, during one run of a sampler.

The host's own call of the model is made for every iteration, with its patches, casts and offloading; it is
left as soon as the deepest map is known. What only the host can do comes as two functions, so that nothing
here depends on it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.hooks import RemovableHandle

from ..adapter import adapter_places
from ..attention import EarlyExit, JointMap, MapProbe, PhraseTokens, PrefixCache, phrase_maps, tapped
from ..errors import TTOMError
from .fingerprint import fingerprint
from .frozen import WeightOf, differentiable
from .names import diffusers_name, native_name
from .phrases import EncodedPrompt

# A block's turn: (its number, its run, the video tokens [B, S, d] that come to it) → what it passes on.
BlockTurn = Callable[[int, Callable[[Tensor], Tensor], Tensor], Tensor]
# Call the model on (latents [1, C, τ, h, w], noise level [1], the denoiser call), its blocks by these turns.
Denoise = Callable[[Tensor, Tensor, Mapping[str, Any], BlockTurn], object]


class NativeDenoiser:
    """A host's transformer as the optimisation sees one: diffusers' names, and hooks before each step."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._hooks: OrderedDict[int, Callable[..., None]] = OrderedDict()

    def parameters(self) -> Iterator[nn.Parameter]:
        return self.model.parameters()

    def named_modules(self) -> Iterator[tuple[str, nn.Module]]:
        """The linear layers, by diffusers' names."""
        for name, module in self.model.named_modules():
            if isinstance(module, nn.Linear):
                yield diffusers_name(name), module

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
    """ComfyUI's own Wan as a memory sees it (`base.Adaptable`), by diffusers' names.

    `weights` are the model's tensors by native name without a user's LoRAs, from which the fingerprint comes;
    it is the one of the same weights in diffusers' format.
    """

    def __init__(self, model: Any, weights: Mapping[str, Tensor]) -> None:
        self.transformer = NativeDenoiser(model)
        self.num_layers = len(model.blocks)
        self.fingerprint = native_fingerprint(weights)

    def adapter_modules(self, layers: Sequence[int], scope: str) -> dict[str, Any]:
        paths = [f"blocks.{layer}.attn2.{name}" for layer, name in adapter_places(layers, scope)]
        return {path: self.transformer.model.get_submodule(native_name(path)) for path in paths}


class NativeWan(NativeModel):
    """Answers what the optimisation asks of a model (`base.Optimisable`) during one run of a sampler.

    `sigmas` are the noise levels of the run's steps.
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
        self.blocks, self.heads = model.blocks, model.num_heads
        self.max_text_tokens = prompt.limit
        self._patch: tuple[int, int, int] = tuple(model.patch_size)
        self.prompt, self._sigmas = prompt, list(sigmas)
        self._denoise, self._weight_of = denoise, weight_of

    def check_trainable(self, sigmas: Sequence[float] = ()) -> None:
        """Nothing to refuse: the host's file looks at the MODEL before it makes this."""

    def phrase_tokens(self, prompt: str, phrases: Sequence[str]) -> dict[str, tuple[int, ...]]:
        return self.prompt.positions(phrases)

    def sigmas(self, steps: int) -> list[float]:
        return self._sigmas

    def sigma_of(self, timestep: Tensor) -> float:
        return float(timestep.flatten()[0])  # the host's samplers count in noise levels

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
        probe = MapProbe(layers, self.token_grid(latents), self._reader(tokens, keep_heads), early_exit)

        def turn(index: int, run: Callable[[Tensor], Tensor], state: Tensor) -> Tensor:
            if index < first and prefix and prefix.state is not None:
                return state  # what these blocks give is known, and taken up below
            if not first <= index <= last:
                with torch.no_grad():
                    return run(state)
            if index == first and prefix:
                prefix.state = prefix.state or (state,)
                state = cast(Tensor, prefix.state[0])

            def differentiably(state: Tensor) -> Tensor:
                # Set up here, not around the call: checkpointing runs this again in backward.
                attention = self.blocks[index].cross_attn
                mine = {index: (attention.norm_q, attention.norm_k)} if index in layers else {}
                with tapped(probe, mine), differentiable(self.blocks[index], self._weight_of):
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

    def _reader(self, tokens: PhraseTokens, keep_heads: bool) -> Callable[[Tensor, Tensor], Tensor]:
        def read(query: Tensor, key: Tensor) -> Tensor:  # [B, tokens, heads·d] each
            q, k = (x.unflatten(2, (self.heads, -1)).transpose(1, 2) for x in (query, key))
            return phrase_maps(q, k, tokens, keep_heads)

        return read


def native_fingerprint(weights: Mapping[str, Tensor]) -> str:
    """The fingerprint that the diffusers backbone gives the same weights; TTOMError when some are missing."""
    if "head.modulation" not in weights:
        raise TTOMError("The MODEL lacks head.modulation, so it is no whole Wan; load another file.")
    width = weights["head.modulation"].shape[-1]
    # Counted, not read from the numbers: a gap is then found, and a huge number does no harm.
    layers = len({name.split(".")[1] for name in weights if name.startswith("blocks.")})
    image = weights.get("img_emb.proj.0.weight")
    places = weights.get("img_emb.emb_pos")
    model = wan_on_meta(  # for the order of its parameters
        num_attention_heads=1,
        attention_head_dim=width,
        num_layers=layers,
        image_dim=None if image is None else image.shape[0],
        added_kv_proj_dim=None if image is None else width,
        pos_embed_seq_len=None if places is None else places.shape[1],
    )
    names = [name for name, _ in model.named_parameters()]
    if lacking := [name for name in map(native_name, names) if name not in weights]:
        raise TTOMError(f"The MODEL lacks {lacking[0]}, so it is no whole Wan; load another file.")
    return fingerprint("wan", layers, width, ((name, weights[native_name(name)]) for name in names))


def wan_on_meta(**config: Any) -> Any:
    """diffusers' Wan of this config on the meta device: names and shapes, and no numbers."""
    from diffusers import WanTransformer3DModel

    with torch.device("meta"):
        return WanTransformer3DModel(**config)
