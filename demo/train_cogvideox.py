"""Train the demo model's sibling of the CogVideoX family, in which text and video share one attention.

    python -m demo.train_cogvideox                 # everything, resumable; writes demo/cogvideox
    python -m demo.train_cogvideox --untrained     # the same folder before its training

It draws the same scenes in 17 frames (its VAE takes 8·n+1) and shares the first model's latent space and text
encoder. It is taught as that one was, and shown the way by it: in the beginning every block sees the first
model's features and has to give those of the next block, then its own, and what the first model predicts
counts as much as the truth; both fade out, and from two thirds on it learns from scenes alone.
"""

from __future__ import annotations

import argparse
from itertools import chain
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    CogVideoXDDIMScheduler,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    WanPipeline,
)
from torch.nn import functional as F
from transformers import T5Config, T5EncoderModel

from .card import machine, save_model, write_card
from .latents import load_basis
from .scenes import SIZE
from .train import MODEL, embed, pad_text
from .training import Batch, Pupil, encode, teach, train_vae, training_options

FRAMES, TEXT_LENGTH = 17, 32
LEARNING_RATE, OTHERS = 6e-3, 0.3  # the second is AdamW's, as a share of the first
FORCED, SHOWN = (
    0.07,
    0.7,
)  # parts of the training: blocks see the first model's features, anything of it counts
BATCH = 32
VAE_STAGES = [  # frames, size, batch, learning rate, iterations
    (1, SIZE // 2, 16, 2e-3, 1200),
    (9, SIZE // 2, 4, 2e-3, 6000),
    (FRAMES, SIZE // 2, 2, 5e-4, 1800),
]
FOLDER = Path(__file__).parent / "cogvideox"
ABOUT = """A sibling of `demo/model` in the CogVideoX family (`CogVideoXPipeline`: T5 text encoder, CogVideoX
transformer with rotary positions, CogVideoX VAE, DDIM with zero terminal SNR), trained on the same scenes. It
exists so that the joint attention of text and video can be tested honestly too."""


def build_pipeline(first: WanPipeline, seed: int = 0) -> CogVideoXPipeline:
    """The sibling before its training, with what it can take over from the first model.

    That is the tokenizer and text encoder, which stay as they are, and as a start the patches' projections
    and the feed-forwards. T5 with one layer is UMT5 with one layer.
    """
    torch.manual_seed(seed)
    text = first.text_encoder.config
    encoder = T5EncoderModel(
        T5Config(
            vocab_size=text.vocab_size,
            d_model=text.d_model,
            d_kv=text.d_kv,
            d_ff=text.d_ff,
            num_heads=text.num_heads,
            num_layers=1,
            dropout_rate=0.0,
            feed_forward_proj="gated-gelu",
            pad_token_id=text.pad_token_id,
            eos_token_id=text.eos_token_id,
        )
    )
    encoder.load_state_dict(first.text_encoder.state_dict())
    vae = AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 3,
        up_block_types=("CogVideoXUpBlock3D",) * 3,
        block_out_channels=(16, 32, 64),
        latent_channels=16,
        layers_per_block=1,
        norm_num_groups=8,
        scaling_factor=1.0,
        sample_height=SIZE,
        sample_width=SIZE,
    )
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=4,
        attention_head_dim=64,
        in_channels=16,
        out_channels=16,
        time_embed_dim=64,
        text_embed_dim=text.d_model,
        num_layers=first.transformer.config.num_layers,
        sample_width=SIZE // 4,
        sample_height=SIZE // 4,
        sample_frames=FRAMES,
        max_text_seq_length=TEXT_LENGTH,
        use_rotary_positional_embeddings=True,
    )
    head_start(transformer, first)
    scheduler = CogVideoXDDIMScheduler(
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        snr_shift_scale=3.0,
        timestep_spacing="trailing",
    )
    return CogVideoXPipeline(first.tokenizer, encoder.eval(), vae, transformer, scheduler)


@torch.no_grad()
def head_start(transformer: CogVideoXTransformer3DModel, first: WanPipeline) -> None:
    """Take over the first model's patches and feed-forwards; attention whispers, and all gates are open."""
    wan, width = first.transformer, transformer.proj_out.in_features
    hidden = wan.config.ffn_dim
    transformer.patch_embed.proj.weight.copy_(wan.patch_embedding.weight[:, :, 0])
    transformer.patch_embed.proj.bias.copy_(wan.patch_embedding.bias)
    # Of a patch, Wan gives places before channels, CogVideoX channels before places.
    transformer.proj_out.weight.copy_(wan.proj_out.weight.view(4, 16, width).transpose(0, 1).flatten(0, 1))
    transformer.proj_out.bias.copy_(wan.proj_out.bias.view(4, 16).T.flatten())
    for block, other in zip(transformer.transformer_blocks, wan.blocks, strict=True):
        into, out = block.ff.net[0].proj, block.ff.net[2]
        into.weight[:hidden].copy_(other.ffn.net[0].proj.weight)
        into.bias[:hidden].copy_(other.ffn.net[0].proj.bias)
        out.weight.zero_()[:, :hidden].copy_(other.ffn.net[2].weight)
        out.bias.copy_(other.ffn.net[2].bias)
        block.attn1.to_out[0].weight.mul_(0.2)
        for norm in (block.norm1, block.norm2):
            norm.linear.weight.mul_(0.1)
            gates = norm.linear.bias.zero_().view(6, width)  # shift, scale and gate of the video, of the text
            gates[[2, 5]] = 1.0


class CogVideoXPupil(Pupil):
    """The sibling's transformer, taught v = √ᾱ·ε − √(1−ᾱ)·x₀ and the first model's features."""

    def __init__(self, pipe: CogVideoXPipeline, first: WanPipeline, compiled: bool, bfloat16: bool) -> None:
        super().__init__(compiled, bfloat16)
        self.pipe = pipe
        self.first = WanPipeline(first.tokenizer, first.text_encoder, None, None, first.transformer)
        self.modules = torch.nn.ModuleDict({"transformer": pipe.transformer})
        for part in (pipe.text_encoder, first.text_encoder, first.transformer):
            part.requires_grad_(False)
        cumulated = pipe.scheduler.alphas_cumprod.double()
        self.signal, self.noise = cumulated.sqrt().float(), (1 - cumulated).sqrt().float()
        self.levels = self.noise / (self.signal + self.noise)  # as flow matching counts them
        self.features: list[torch.Tensor] = []

    def prepare(self) -> None:
        blocks = self.first.transformer.blocks
        self.first.transformer.condition_embedder.text_embedder.register_forward_hook(pad_text)
        for block in chain(self.pipe.transformer.transformer_blocks, blocks) if self.compiled else ():
            block.compile()
        for block in blocks:
            block.register_forward_hook(lambda module, inputs, output: self.features.append(output))

    def loss(self, batch: Batch) -> tuple[torch.Tensor, float]:
        transformer, count = self.pipe.transformer, batch.latents[0].numel()
        timestep = torch.searchsorted(self.levels, batch.sigma.cpu()).clamp(max=len(self.levels) - 1)
        a, s = (x[timestep].to(self.device).view(-1, 1, 1, 1, 1) for x in (self.signal, self.noise))
        timestep = timestep.to(self.device)
        noisy = a * batch.latents + s * batch.noise
        fading = max(0.0, 1 - batch.part / SHOWN)
        features, shown = self._shown(noisy, a, s, batch.captions) if fading else ([], noisy)
        with self.reduced():
            text = self._text(batch.captions)
            time = transformer.time_embedding(transformer.time_proj(timestep))
            tokens = transformer.patch_embed(text, noisy.transpose(1, 2))
            text, video = tokens.split([TEXT_LENGTH, tokens.shape[1] - TEXT_LENGTH], 1)
            rotary = self.pipe._prepare_rotary_positional_embeddings(SIZE, SIZE, noisy.shape[2], self.device)
            missed = []
            for number, block in enumerate(transformer.transformer_blocks):
                if batch.part < FORCED and number:
                    video = features[number - 1]
                video, text = block(video, text, time, image_rotary_emb=rotary)
                if fading:
                    missed.append(_distance(video, features[number]))
            patches = transformer.proj_out(transformer.norm_out(transformer.norm_final(video), temb=time))
        velocity = _unpatched(patches.float(), noisy.shape)
        loss = error = F.mse_loss(velocity, a * batch.noise - s * batch.latents, reduction="sum")
        if fading:
            followed = F.mse_loss(velocity, shown, reduction="sum")
            loss = error.lerp(followed, fading / 2) + fading * count * torch.stack(missed).mean(0).sum()
        return loss, error.item()

    def share(self, name: str, weight: torch.Tensor) -> float | None:
        others = weight.ndim != 2 or any(part in name for part in ("proj_out", "norm", "time"))
        return OTHERS if others else None

    def _text(self, captions: list[str]) -> torch.Tensor:
        """As CogVideoXPipeline encodes prompts: padded, and the padding read too."""
        tokens = self.pipe.tokenizer(
            captions, padding="max_length", max_length=TEXT_LENGTH, truncation=True, return_tensors="pt"
        )
        with torch.no_grad():
            return self.pipe.text_encoder(tokens.input_ids.to(self.device))[0]

    @torch.no_grad()
    def _shown(
        self, noisy: torch.Tensor, a: torch.Tensor, s: torch.Tensor, captions: list[str]
    ) -> tuple[list[torch.Tensor], torch.Tensor]:
        """The first model's features after each block, and its prediction as the sibling's v.

        Both noise levels have the same ratio of signal to noise, so the latents differ by a factor.
        """
        flow, sigma = noisy / (a + s), s / (a + s)
        self.features.clear()
        with self.reduced():
            text = embed(self.first, captions)
            velocity = self.first.transformer(flow, sigma.flatten() * 1000, text).sample.float()
        clean, noise = flow - sigma * velocity, flow + (1 - sigma) * velocity
        return list(self.features), a * noise - s * clean


def _distance(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of each clip's features [B, N, C], normalised as the next block sees them."""
    x, y = (F.layer_norm(features.float(), features.shape[-1:]) for features in (x, y))
    return (x - y).square().mean((1, 2))


def _unpatched(patches: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """The transformer's output tokens [B, N, 64] as latents of this shape [B, 16, T, H, W]."""
    _, channels, frames, height, width = shape
    grid = patches.unflatten(1, (frames, height // 2, width // 2)).unflatten(-1, (channels, 2, 2))
    return grid.permute(0, 4, 1, 2, 5, 3, 6).reshape(shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=FOLDER)
    parser.add_argument("--work", type=Path, default=Path("outputs/train_cogvideox"))
    parser.add_argument("--untrained", action="store_true", help="write it before its training and stop")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--clips", type=int, default=32768)
    parser.add_argument("--iterations", type=int, default=2600)
    training_options(parser)
    options = parser.parse_args()
    first = WanPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    pipe, work, device = build_pipeline(first, options.seed), options.work, options.device
    if not options.untrained:
        work.mkdir(parents=True, exist_ok=True)
        basis = load_basis()
        train_vae(pipe.vae.to(device), basis, work, VAE_STAGES, device, options.seed, FRAMES)
        scenes = encode(basis, work, "clips", options.clips, FRAMES, options.seed + 2)
        pupil = CogVideoXPupil(pipe.to(device), first.to(device), options.compile, options.bfloat16)
        teach(pupil, work, [(scenes, BATCH, options.iterations)], options.seed, LEARNING_RATE)
    save_model(pipe, options.out, FRAMES)
    if not options.untrained:
        switches = [f" --{name}" for name in ("compile", "bfloat16") if getattr(options, name)]
        facts = {
            "title": "The demo model's sibling",
            "about": ABOUT,
            "seen": {
                "vae": ", ".join(
                    f"{b * n} × {frames} frames of {s}×{s}" for frames, s, b, _, n in VAE_STAGES
                ),
                "denoiser": f"{BATCH * options.iterations} × {scenes['latents'].shape[2]} latent frames",
            },
            "text": TEXT_LENGTH,
            "command": f"python -m demo.train_cogvideox --iterations {options.iterations}{''.join(switches)}",
            "note": f"\n{options.note}\n" if options.note else "",
            "seed": options.seed,
            "machine": machine(device),
        }
        shapes = {"transformer": "ffn 1024", "vae": f"channels {pipe.vae.config.block_out_channels}"}
        write_card(options.out, pipe, shapes, FRAMES, work, facts)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
