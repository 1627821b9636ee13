"""The published models' sizes, so that what they need can be counted without their weights.

The configs are those of the models' diffusers folders on the Hub (the id is given with each; diffusers'
scripts/convert_wan_to_diffusers.py and convert_cogvideox_to_diffusers.py write the same). What is left out
is the class's own default.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Published:
    """One published model: `layers` are loss layers to begin with, and `layers_from` says where from."""

    pipeline: str
    hub_id: str
    transformer: dict[str, Any] = field(repr=False)
    vae: dict[str, Any] = field(repr=False)
    text_encoder: dict[str, Any] = field(repr=False)
    num_frames: int
    height: int
    width: int
    layers: tuple[int, ...]
    layers_from: str
    experts: int = 1


_WAN_TRANSFORMER = {
    "attention_head_dim": 128,
    "cross_attn_norm": True,
    "freq_dim": 256,
    "in_channels": 16,
    "out_channels": 16,
    "patch_size": (1, 2, 2),
    "qk_norm": "rms_norm_across_heads",
    "text_dim": 4096,
}
_WAN_14B = _WAN_TRANSFORMER | {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824}
_WAN_VAE = {"base_dim": 96, "z_dim": 16}
_T5_XXL = {
    "d_model": 4096, "d_ff": 10240, "d_kv": 64, "num_heads": 64, "num_layers": 24,
    "feed_forward_proj": "gated-gelu", "vocab_size": 32128,
}  # fmt: skip
_UMT5_XXL = _T5_XXL | {"vocab_size": 256384}
_COGVIDEOX = {
    "attention_head_dim": 64,
    "in_channels": 16,
    "out_channels": 16,
    "max_text_seq_length": 226,
    "sample_height": 60,
    "sample_width": 90,
    "sample_frames": 49,
    "text_embed_dim": 4096,
    "time_embed_dim": 512,
}
_COGVIDEOX_VAE = {
    "block_out_channels": (128, 256, 256, 512),
    "latent_channels": 16,
    "layers_per_block": 3,
}

_RELEASED_WAN = "TTOM's released code for Wan2.1-14B"
_RELEASED_COG = "TTOM's released config for CogVideoX-5B, its two middle layers (middle_2)"

PUBLISHED = {
    "Wan2.1-T2V-1.3B": Published(
        "WanPipeline",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        _WAN_TRANSFORMER | {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960},
        _WAN_VAE,
        _UMT5_XXL,
        *(81, 480, 832),
        layers=(3,),
        layers_from=f"{_RELEASED_WAN}; for this size nobody has said, so probe it",
    ),
    "Wan2.1-T2V-14B": Published(
        "WanPipeline",
        "Wan-AI/Wan2.1-T2V-14B-Diffusers",
        _WAN_14B,
        _WAN_VAE,
        _UMT5_XXL,
        *(81, 480, 832),
        layers=(3,),
        layers_from=_RELEASED_WAN,
    ),
    "Wan2.2-T2V-A14B": Published(
        "WanPipeline",
        "Wan-AI/Wan2.2-T2V-A14B-Diffusers",
        _WAN_14B,
        _WAN_VAE,
        _UMT5_XXL,
        *(81, 480, 832),
        layers=(3,),
        layers_from=f"{_RELEASED_WAN}; for the high-noise expert nobody has said, so probe it",
        experts=2,
    ),
    "CogVideoX-2b": Published(
        "CogVideoXPipeline",
        "THUDM/CogVideoX-2b",
        _COGVIDEOX | {"num_attention_heads": 30, "num_layers": 30},
        _COGVIDEOX_VAE,
        _T5_XXL,
        *(49, 480, 720),
        layers=(14, 15),
        layers_from=f"{_RELEASED_COG}, by the same rule",
    ),
    "CogVideoX-5b": Published(
        "CogVideoXPipeline",
        "THUDM/CogVideoX-5b",
        _COGVIDEOX | {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
        _COGVIDEOX_VAE,
        _T5_XXL,
        *(49, 480, 720),
        layers=(20, 21),
        layers_from=_RELEASED_COG,
    ),
}


def default_layers(pipeline: str, transformer: Any) -> tuple[tuple[int, ...], str] | None:
    """Loss layers to begin with for a transformer of this pipeline, and where they come from.

    None for one whose sizes are none of the published models'.
    """
    config = transformer.config
    size = (config.num_layers, config.num_attention_heads)
    for model in PUBLISHED.values():
        mine = (model.transformer["num_layers"], model.transformer["num_attention_heads"])
        if model.pipeline == pipeline and mine == size:
            return model.layers, model.layers_from
    return None
