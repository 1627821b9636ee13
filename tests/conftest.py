"""A real WanPipeline of toy size with random weights, and what most tests ask of it."""

from __future__ import annotations

import copy

import pytest
import torch
from diffusers import WanPipeline

from ttom_core.backbones.folder import TrainedClip
from ttom_core.backbones.wan import WanBackbone
from ttom_core.masks import SoftMasks
from ttom_core.optimize import TTOSettings

PROMPT = "a red circle moves to the right while a blue square stays still"
PHRASES = ("red circle", "blue square")
SIZE = {"num_frames": 5, "height": 16, "width": 16}
STEPS = 6


def build_tiny() -> WanPipeline:
    """Every class is the real one; only the sizes are toys."""
    from diffusers import WanTransformer3DModel

    from demo.train import build_pipeline

    pipe = build_pipeline(0)
    torch.manual_seed(1)
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=24,
        in_channels=16,
        out_channels=16,
        text_dim=4096,
        freq_dim=32,
        ffn_dim=48,
        num_layers=4,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    )
    parts = {**pipe.components, "transformer": transformer}
    parts.pop("transformer_2", None)
    return WanPipeline(**parts)


@pytest.fixture(scope="session")
def tiny_pipeline() -> WanPipeline:
    torch.set_num_threads(1)
    return build_tiny()


@pytest.fixture
def backbone(tiny_pipeline: WanPipeline) -> WanBackbone:
    return WanBackbone(tiny_pipeline, clip=TrainedClip(fps=8))


@pytest.fixture
def backbone64(tiny_pipeline: WanPipeline) -> WanBackbone:
    """The same model in float64, to compare gradients exactly."""
    parts = {name: copy.deepcopy(part) for name, part in tiny_pipeline.components.items()}
    parts.pop("transformer_2", None)
    pipe = WanPipeline(**parts)
    pipe.transformer.double()
    return WanBackbone(pipe, clip=TrainedClip(fps=8))


@pytest.fixture
def masks() -> SoftMasks:
    generator = torch.Generator().manual_seed(2)
    return SoftMasks(PHRASES, torch.rand(2, 2, 2, 2, generator=generator))


@pytest.fixture
def settings() -> TTOSettings:
    return TTOSettings(layers=(1, 2), rank=4, alpha=4.0, learning_rate=1e-2, iterations=2, sigma_end=0.7)


@pytest.fixture
def sample(backbone: WanBackbone):
    """Sample a toy clip through the pipeline's own loop."""

    def run(on_step=lambda step: None):
        return backbone.sample(
            PROMPT,
            negative_prompt="",
            steps=STEPS,
            guidance_scale=3.0,
            generator=torch.Generator().manual_seed(0),
            on_step=on_step,
            **SIZE,
        )

    return run
