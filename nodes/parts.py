"""The text encoder and the VAE of a pipeline as ComfyUI's CLIP and VAE, where the stock ones do not fit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..ttom_core.errors import TTOMError
from ..ttom_core.memory.embedding import text_embedder
from . import compat
from .inputs import checked
from .types import BackboneSocket

if TYPE_CHECKING:
    from torch import Tensor

    from ..ttom_core.backbones.phrases import EncodedPrompt
    from ..ttom_core.backbones.wan import WanBackbone
    from ..ttom_core.memory.embedding import Embedder


class PipelineCLIP:
    """What nodes ask of a CLIP to encode a prompt."""

    def __init__(self, backbone: WanBackbone) -> None:
        self.backbone = backbone

    def tokenize(self, text: str, **options: Any) -> str:
        return text

    def encode_from_tokens_scheduled(self, tokens: str, **options: Any) -> compat.Conditioning:
        return [[self.backbone.encode(tokens).cpu(), {}]]

    def read(self, text: str) -> EncodedPrompt:
        return self.backbone.read(text)

    def embedder(self) -> Embedder:
        """The pipeline's own: a memory then has the same entries for it and for the MODEL."""
        return text_embedder("pipeline", self.backbone.pipeline)


class PipelineVAE:
    """What nodes ask of a VAE: LATENT as a Wan MODEL's, [B, 16, τ, h, w], and pixels in 0–1."""

    def __init__(self, backbone: WanBackbone) -> None:
        self.vae = backbone.pipeline.vae
        shape = (1, -1, 1, 1, 1)
        self.mean = torch.tensor(self.vae.config.latents_mean).view(shape)
        self.deviation = torch.tensor(self.vae.config.latents_std).view(shape)

    def decode(self, samples: Tensor, **options: Any) -> Tensor:
        """Pixels [B, F, H, W, 3]."""
        latents = compat.to_wan(samples.float().cpu()) * self.deviation + self.mean
        with torch.no_grad():
            video = self.vae.decode(latents.to(self.vae.device, self.vae.dtype)).sample
        return (video.float().cpu() / 2 + 0.5).clamp(0, 1).movedim(1, -1)

    def encode(self, pixels: Tensor, **options: Any) -> Tensor:
        """The LATENT of pixels [F, H, W, 3]."""
        video = (pixels[..., :3].movedim(-1, 0)[None] * 2 - 1).to(self.vae.device, self.vae.dtype)
        with torch.no_grad():
            latents = self.vae.encode(video).latent_dist.mode()
        return compat.from_wan((latents.float().cpu() - self.mean) / self.deviation)


class PipelineParts(io.ComfyNode):
    """Two parts of a pipeline."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_PipelineParts",
            display_name="Pipeline Parts (TTOM)",
            category="TTOM/native",
            description=(
                "The text encoder and the VAE of a diffusers pipeline as CLIP and VAE, to go with its "
                "transformer as a MODEL; `ttom convert` writes that for the stock loader."
            ),
            inputs=[BackboneSocket.Input("backbone", tooltip="From Load Model.")],
            outputs=[
                io.Clip.Output(
                    "clip", display_name="clip", tooltip="For Encode Prompt and CLIP Text Encode."
                ),
                io.Vae.Output("vae", display_name="vae", tooltip="For VAE Decode and VAE Encode."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, backbone: Any) -> io.NodeOutput:
        from ..ttom_core.backbones.wan import WanBackbone

        if not isinstance(backbone, WanBackbone):
            raise TTOMError("Only the parts of a Wan pipeline go with ComfyUI's MODEL; load a Wan.")
        return io.NodeOutput(PipelineCLIP(backbone), PipelineVAE(backbone))
