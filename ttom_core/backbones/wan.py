"""Wan 2.1 text-to-video through diffusers' WanPipeline."""

from __future__ import annotations

import copy
import hashlib
import json
import re
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..attention import EarlyExit, MapProbe, PhraseTokens, PrefixCache, captured, recalled, tapped
from ..errors import TTOMError
from .scheduler import stepping_from


class WanBackbone:
    """Answers the backbone protocol for a WanPipeline."""

    def __init__(self, pipeline: WanPipeline, fps: int = 16) -> None:
        transformer = pipeline.transformer
        if transformer.config.added_kv_proj_dim is not None:
            raise TTOMError("This Wan model takes an image; TTOM needs a text-to-video one.")
        if any(getattr(block.attn2, "fused_projections", False) for block in transformer.blocks):
            raise TTOMError(
                "The model's attention projections are fused, so an adapter on k and v would do "
                "nothing; call transformer.unfuse_qkv_projections() first."
            )
        self.pipeline, self.transformer, self.fps = pipeline, transformer, fps
        self.num_layers = len(transformer.blocks)
        limit = pipeline.tokenizer.model_max_length
        self.max_text_tokens = limit if limit < 512 else 512
        self.fingerprint = _fingerprint(transformer)
        self._encoded: tuple[str, Tensor] | None = None
        pipeline.set_progress_bar_config(disable=True)

    @classmethod
    def from_folder(cls, folder: Path, device: str | None, dtype: torch.dtype | None) -> WanBackbone:
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
        with warnings.catch_warnings():
            # Newer releases prefer `dtype`, which the oldest that we take do not know.
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
            pipeline = WanPipeline.from_pretrained(folder, torch_dtype=dtype, local_files_only=True)
        clip = folder / "clip.json"  # what the model was trained to make; Wan's own is 16 frames a second
        fps = json.loads(clip.read_text())["fps"] if clip.exists() else 16
        return cls(pipeline.to(device), fps)

    # Sizes ----------------------------------------------------------------------------------------

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        t, s = self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial
        if num_frames < 1 or (num_frames - 1) % t:
            near = max(1, round((num_frames - 1) / t) * t + 1)
            raise TTOMError(
                f"{num_frames} frames do not fit the VAE, which takes {t}·n+1; use {near}, for example."
            )
        multiple = s * self.transformer.config.patch_size[1]
        for name, size in (("height", height), ("width", width)):
            if size < multiple or size % multiple:
                raise TTOMError(f"The {name} must be a multiple of {multiple}, not {size}.")

    def token_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        self.check_size(num_frames, height, width)
        t, s = self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial
        p_t, p_h, p_w = self.transformer.config.patch_size
        return ((num_frames - 1) // t + 1) // p_t, height // s // p_h, width // s // p_w

    # Text -----------------------------------------------------------------------------------------

    def phrase_tokens(self, prompt: str, phrases: Sequence[str]) -> dict[str, tuple[int, ...]]:
        text = prompt_clean(prompt)
        # Not verbose: prompts past the limit are answered below, in words of our own.
        encoding = self.pipeline.tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)
        offsets = encoding["offset_mapping"]
        taken: list[tuple[int, int]] = []
        found: dict[str, tuple[int, ...]] = {}
        # The longest first, so that "circle" is not looked for inside "red circle".
        for phrase in sorted(phrases, key=len, reverse=True):
            pattern = rf"(?<!\w){re.escape(prompt_clean(phrase))}(?!\w)"
            spans = [
                match.span()
                for match in re.finditer(pattern, text, re.IGNORECASE)
                if not any(match.start() < end and start < match.end() for start, end in taken)
            ]
            if not spans:
                raise TTOMError(
                    f"The phrase {phrase!r} is not in the prompt {prompt!r}; use the prompt's own words."
                )
            taken += spans
            mentions = [
                [i for i, (start, end) in enumerate(offsets) if start < end and start < b and a < end]
                for a, b in spans
            ]
            # The last place within the limit belongs to the end-of-text token. Half a mention is none:
            # "red" of "red circle" would be the map of something else.
            kept = tuple(i for mention in mentions if mention[-1] < self.max_text_tokens - 1 for i in mention)
            if not kept:
                raise TTOMError(
                    f"The phrase {phrase!r} lies past the model's limit of {self.max_text_tokens} text "
                    "tokens; shorten the prompt or name the object earlier."
                )
            found[phrase] = kept
        return {phrase: found[phrase] for phrase in phrases}

    def encode(self, prompt: str) -> Tensor:
        """The prompt's embedding [1, max_text_tokens, d], remembered for the last prompt."""
        if self._encoded is None or self._encoded[0] != prompt:
            with torch.no_grad():
                embeds, _ = self.pipeline.encode_prompt(
                    prompt,
                    do_classifier_free_guidance=False,
                    max_sequence_length=self.max_text_tokens,
                )
            self._encoded = (prompt, embeds)
        return self._encoded[1]

    def conditional_rows(self, prompt: str, conditioning: Tensor) -> list[int]:
        wanted = self.encode(prompt)[0].to(conditioning)
        return [
            i for i, row in enumerate(conditioning) if row.shape == wanted.shape and torch.equal(row, wanted)
        ]

    # Adapters and maps ----------------------------------------------------------------------------

    def adapter_modules(self, layers: Sequence[int], scope: str) -> dict[str, nn.Linear]:
        last = max(layers)
        blocks = range(last + 1) if scope == "reachable" else sorted(layers)
        modules = {}
        for index in blocks:
            # The deepest map depends on its layer's q and k only: v and o would get no gradient.
            names = ("to_q", "to_k") if index == last else ("to_q", "to_k", "to_v", "to_out.0")
            for name in names:
                path = f"blocks.{index}.attn2.{name}"
                modules[path] = self.transformer.get_submodule(path)
        return modules

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
    ) -> dict[int, Tensor]:
        blocks = self.transformer.blocks
        latents = call["hidden_states"][list(rows)]
        p_t, p_h, p_w = self.transformer.config.patch_size
        _, _, t, h, w = latents.shape
        grid = (t // p_t, h // p_h, w // p_w)
        probe = MapProbe(layers, tokens, blocks[0].attn2.heads, grid, early_exit, keep_heads)
        projections = {i: (blocks[i].attn2.norm_q, blocks[i].attn2.norm_k) for i in layers}

        # No cache to go on from: one for this call alone, in which nothing before an adapter is left out.
        # Nothing in it has a gradient, unless the latents themselves are optimised.
        start = PrefixCache(0) if prefix is None else prefix
        first, last = start.first_block, max(layers)
        if start.state is None:
            gradients = torch.is_grad_enabled() and latents.requires_grad
            with torch.set_grad_enabled(gradients), captured(start, blocks[first], blocks[first].attn1):
                self.transformer.forward(
                    hidden_states=latents,
                    timestep=call["timestep"][list(rows)],
                    encoder_hidden_states=call["encoder_hidden_states"][list(rows)],
                    return_dict=False,
                )
        assert start.state is not None and start.self_attention is not None
        known = {first: start.self_attention}

        def run(index: int, *state: Any) -> Tensor:
            # The taps are set here, not around the loop: checkpointing runs this again in backward.
            mine = {index: projections[index]} if index in projections else {}
            recall = recalled(blocks[index].attn1, known[index]) if index in known else nullcontext()
            with tapped(probe, mine), recall:
                return blocks[index](*state)

        hidden, *rest = start.state
        try:
            for index in range(first, (last + 1) if early_exit else self.num_layers):
                if checkpointing and index < last:
                    hidden = checkpoint(run, index, hidden, *rest, use_reentrant=False)
                else:
                    hidden = run(index, hidden, *rest)
        except EarlyExit:
            pass
        return probe.maps

    # Sampling -------------------------------------------------------------------------------------

    def latents_moved(self, move: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        return stepping_from(self.pipeline.scheduler, move)

    def sigmas(self, steps: int) -> list[float]:
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        scheduler.set_timesteps(steps)
        return [float(s) for s in scheduler.sigmas[:-1]]

    def sigma_of(self, timestep: Tensor) -> float:
        # Flow matching: the timestep is the noise level times the number of training steps.
        return float(timestep.flatten()[0]) / self.pipeline.scheduler.config.num_train_timesteps

    def sample(
        self,
        prompt: str,
        *,
        negative_prompt: str,
        num_frames: int,
        height: int,
        width: int,
        steps: int,
        guidance_scale: float,
        generator: torch.Generator,
        on_step: Callable[[int], None],
    ) -> np.ndarray:
        def ended(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(step)
            return tensors

        video = self.pipeline(
            prompt=prompt,
            negative_prompt=negative_prompt,
            num_frames=num_frames,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generator,
            max_sequence_length=self.max_text_tokens,
            callback_on_step_end=ended,
            output_type="np",
        ).frames[0]
        return (video * 255).round().clip(0, 255).astype(np.uint8)


def _fingerprint(transformer: WanTransformer3DModel) -> str:
    """Family, sizes and weight identity: the start of every parameter, hashed in fp32."""
    digest = hashlib.sha256()
    for name, parameter in transformer.named_parameters():
        digest.update(f"{name}{tuple(parameter.shape)}".encode())
        digest.update(parameter.detach().flatten()[:16].float().cpu().numpy().tobytes())
    config = transformer.config
    width = config.num_attention_heads * config.attention_head_dim
    return f"wan-{config.num_layers}x{width}-{digest.hexdigest()[:16]}"
