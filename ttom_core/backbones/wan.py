"""Wan 2.1 and 2.2 text-to-video through diffusers' WanPipeline."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import WanPipeline, WanTransformer3DModel
from diffusers.pipelines.wan.pipeline_wan import prompt_clean
from safetensors import safe_open
from torch import Tensor

from ..attention import JointMap, PhraseTokens, phrase_maps
from ..errors import TTOMError
from .folder import TrainedClip
from .names import WAN
from .pipeline import PipelineBackbone
from .quantization import packed_loading


class WanBackbone(PipelineBackbone):
    """Answers the backbone protocol for a WanPipeline.

    Wan 2.2 has two experts: adapters sit on the one for high noise levels, the other is left alone.
    """

    pipeline_class, takes_single_file = WanPipeline, True
    names, self_attention_name = WAN, "attn1"

    def __init__(self, pipeline: WanPipeline, clip: TrainedClip | None = None) -> None:
        if pipeline.transformer is None:
            raise TTOMError("This Wan model lacks its high-noise expert, the part 'transformer'; load both.")
        if pipeline.transformer.config.added_kv_proj_dim is not None:
            raise TTOMError("This Wan model takes an image; TTOM needs a text-to-video one.")
        super().__init__(pipeline, clip)

    @classmethod
    def _own_parts(cls, folder: Path, dtype: torch.dtype, transformer: Path | None) -> dict[str, Any]:
        if transformer is None:
            return {}
        if transformer.suffix == ".safetensors":
            _refuse_scaled_weights(transformer)
        try:
            single = WanTransformer3DModel.from_single_file(
                str(transformer),
                config=str(folder),
                subfolder="transformer",
                torch_dtype=dtype,
                local_files_only=True,
                **packed_loading(transformer, dtype),
            )
        except NotImplementedError as error:  # torch's, of a weight that was given no value
            raise TTOMError(
                f"{transformer} lacks weights of the model in {folder}; choose a transformer of this model."
            ) from error
        return {"transformer": single}

    def check_trainable(self, sigmas: Sequence[float] = ()) -> None:
        super().check_trainable(sigmas)
        boundary, lowest = self.pipeline.config.boundary_ratio or 0.0, min(sigmas, default=1.0)
        if lowest < boundary:
            raise TTOMError(
                f"A step at noise level {lowest:.3g} is to be optimised, but below {boundary:g} the "
                "model's low-noise expert takes over, which TTOM leaves alone; set sigma_end to at least "
                f"{boundary:g}."
            )

    def _trained_fps(self) -> int:
        # The 2.2 model for texts and images has a timestep for every token.
        return 24 if self.pipeline.config.expand_timesteps else 16

    @property
    def _patch(self) -> tuple[int, int, int]:
        frames, rows, columns = self.transformer.config.patch_size
        return frames, rows, columns

    def _frames_step(self) -> int:
        return self.pipeline.vae_scale_factor_temporal

    def _text_limit(self) -> int:
        return min(self.pipeline.tokenizer.model_max_length, 512)

    def _clean(self, text: str) -> str:
        return prompt_clean(text)

    def blank_call(self, num_frames: int, height: int, width: int, rows: int, like: Tensor) -> dict[str, Any]:
        config, frames = self.transformer.config, (num_frames - 1) // self.pipeline.vae_scale_factor_temporal
        spatial = self.pipeline.vae_scale_factor_spatial
        size = (frames + 1, height // spatial, width // spatial)
        return {
            "hidden_states": like.new_zeros(rows, config.in_channels, *size),
            "timestep": torch.full((rows,), 900.0, device=like.device),
            "encoder_hidden_states": like.new_zeros(rows, 512, config.text_dim),
        }

    def _latent_size(self, latents: Tensor) -> tuple[int, int, int]:
        _, _, frames, rows, columns = latents.shape
        return frames, rows, columns

    def _reader(
        self, call: dict[str, Any], tokens: PhraseTokens, keep_heads: bool, joint_map: JointMap
    ) -> Callable[[Tensor, Tensor], Tensor]:
        heads = self.transformer.config.num_attention_heads

        def read(query: Tensor, key: Tensor) -> Tensor:  # [B, tokens, heads·d] each
            q, k = (x.unflatten(2, (heads, -1)).transpose(1, 2) for x in (query, key))
            return phrase_maps(q, k, tokens, keep_heads)

        return read

    def sigmas(self, steps: int) -> list[float]:
        scheduler = copy.deepcopy(self.pipeline.scheduler)
        scheduler.set_timesteps(steps)
        return [float(s) for s in scheduler.sigmas[:-1]]

    def sigma_of(self, timestep: Tensor) -> float:
        # Flow matching: the timestep is the noise level times the number of training steps.
        return float(timestep.flatten()[0]) / self.pipeline.scheduler.config.num_train_timesteps


def _refuse_scaled_weights(path: Path) -> None:
    with safe_open(path, "pt") as file:
        if any(key.endswith(("scale_weight", "scaled_fp8")) for key in file.keys()):  # noqa: SIM118
            raise TTOMError(
                f"{path} holds scaled fp8 weights, which diffusers would read without their scales; choose a "
                "bf16, fp16 or plain fp8 file."
            )
