"""CogVideoX text-to-video (2B, 5B, 1.5) through diffusers' CogVideoXPipeline.

Text and video share one sequence, text first, and one attention. Adapters on it therefore act on the video's
self-attention too, and nothing in its block can be computed ahead of them.

The schedule is variance-preserving, x_t = √ᾱ·x_0 + √(1−ᾱ)·ε. Its noise level is put as σ of the
flow-matching form (1−σ)·x_0 + σ·ε with the same ratio of signal to noise: σ = √(1−ᾱ) / (√ᾱ + √(1−ᾱ)). Ranges
of noise levels then mean the same for both families: the fifth of 50 steps is at 0.977 (2B) and 0.959 (5B)
here, at 0.972 for Wan. √(1−ᾱ) alone is above 0.99 for all of the first eight steps and more.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import CogVideoXPipeline
from diffusers.models.embeddings import apply_rotary_emb
from torch import Tensor
from transformers import AutoTokenizer
from transformers.utils import is_protobuf_available, is_sentencepiece_available

from ..attention import JointMap, PhraseTokens, joint_phrase_maps
from ..errors import TTOMError
from .folder import TrainedClip
from .names import COGVIDEOX
from .pipeline import PipelineBackbone


class CogVideoXBackbone(PipelineBackbone):
    """Answers the backbone protocol for a CogVideoXPipeline."""

    pipeline_class = CogVideoXPipeline
    names = COGVIDEOX
    guided_rows = 2

    def __init__(self, pipeline: CogVideoXPipeline, clip: TrainedClip | None = None) -> None:
        if not hasattr(pipeline.scheduler, "alphas_cumprod"):
            raise TTOMError(
                f"The scheduler {type(pipeline.scheduler).__name__} has no alphas, which CogVideoX's noise "
                "levels come from; use CogVideoXDDIMScheduler or CogVideoXDPMScheduler."
            )
        super().__init__(pipeline, clip)

    @classmethod
    def _own_parts(cls, folder: Path, dtype: torch.dtype, transformer: Path | None) -> dict[str, Any]:
        can_read_pieces = is_sentencepiece_available() and is_protobuf_available()
        if not (can_read_pieces or (folder / "tokenizer" / "tokenizer.json").exists()):
            raise TTOMError(
                f"The tokenizer of {folder} needs the packages sentencepiece and protobuf; install them with "
                "pip."
            )
        # The listing names a tokenizer that, in older releases, does not say where its tokens lie.
        tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
        return {"tokenizer": tokenizer}

    def _trained_fps(self) -> int:
        return 16 if self.transformer.config.patch_size_t else 8  # 1.5 alone has patches over time

    @property
    def _patch(self) -> tuple[int, int, int]:
        config = self.transformer.config
        return config.patch_size_t or 1, config.patch_size, config.patch_size

    def _frames_step(self) -> int:
        # The VAE decodes latent frames in pairs after the first; an even number would come out longer.
        return 2 * self.pipeline.vae_scale_factor_temporal * self._patch[0]

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        super().check_size(num_frames, height, width)
        config = self.transformer.config
        if config.patch_size_t is None and num_frames > config.sample_frames:
            raise TTOMError(
                f"The model makes clips of at most {config.sample_frames} frames, not {num_frames}."
            )

    def _text_limit(self) -> int:
        return self.transformer.config.max_text_seq_length

    def blank_call(self, num_frames: int, height: int, width: int, rows: int, like: Tensor) -> dict[str, Any]:
        config, frames = self.transformer.config, (num_frames - 1) // self.pipeline.vae_scale_factor_temporal
        spatial, (patch, _, _) = self.pipeline.vae_scale_factor_spatial, self._patch
        size = (-(-(frames + 1) // patch) * patch, height // spatial, width // spatial)
        rotary = None
        if config.use_rotary_positional_embeddings:
            tokens = math.prod(self.token_grid(num_frames, height, width))
            angles = torch.zeros(tokens, config.attention_head_dim, device=like.device)
            rotary = (angles, angles.clone())
        return {
            "hidden_states": like.new_zeros(rows, size[0], config.in_channels, *size[1:]),
            "timestep": torch.full((rows,), 900, device=like.device),
            "encoder_hidden_states": like.new_zeros(rows, config.max_text_seq_length, config.text_embed_dim),
            "image_rotary_emb": rotary,
        }

    def _latent_size(self, latents: Tensor) -> tuple[int, int, int]:
        _, frames, _, rows, columns = latents.shape
        return frames, rows, columns

    def _shared_inputs(self, call: dict[str, Any]) -> dict[str, Any]:
        return {"image_rotary_emb": call.get("image_rotary_emb")}

    def _reader(
        self, call: dict[str, Any], tokens: PhraseTokens, keep_heads: bool, joint_map: JointMap
    ) -> Callable[[Tensor, Tensor], Tensor]:
        text, rotary = call["encoder_hidden_states"].shape[1], call.get("image_rotary_emb")

        def rotated(x: Tensor) -> Tensor:
            """As the attention goes on to do with the video tokens; the 2B model has no rotation."""
            if rotary is None:
                return x
            return torch.cat([x[:, :, :text], apply_rotary_emb(x[:, :, text:], rotary)], 2)

        def read(query: Tensor, key: Tensor) -> Tensor:  # [B, heads, text + video, d] each
            return joint_phrase_maps(rotated(query), rotated(key), tokens, text, joint_map, keep_heads)

        return read

    def sigmas(self, steps: int) -> list[float]:
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        scheduler.set_timesteps(steps)
        return [self.sigma_of(timestep) for timestep in scheduler.timesteps]

    def sigma_of(self, timestep: Tensor) -> float:
        signal = float(self.pipeline.scheduler.alphas_cumprod[int(timestep.flatten()[0])]) ** 0.5
        noise = max(0.0, 1 - signal**2) ** 0.5
        return noise / (signal + noise)
