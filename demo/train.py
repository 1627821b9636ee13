"""Train the demo model: a VAE, then a text encoder and Wan transformer, on generated scenes.

    python -m demo.train                 # everything, resumable; writes demo/model
    python -m demo.train --untrained     # the same folder with random weights

Stages: (1) the VAE, taught a latent space that is given; (2) encode scenes once; (3) the denoiser, first
on single frames (a sixth of a clip's tokens: words, colours, shapes, places and counts), then on whole
clips (motion).
Checkpoints and curves go to --work; an interrupted run continues where it stopped.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.nn import functional as F
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from .card import machine, save_model, write_card
from .latents import load_basis
from .scenes import FRAMES, SIZE
from .start import head_start, words_know_their_neighbours
from .training import Batch, Pupil, encode, teach, train_vae, training_options

TEXT_LENGTH = 64
SHIFT = 4.0  # of the noise levels in sampling: below σ = 0.8 all is a local matter, drawn in a few steps
LEARNING_RATE, GO_ON_RATE = 6e-3, 0.4  # the second as a share of the first
# The text encoder's, again as a share: its weights are a hundredth of the transformer's. At the full rate its
# queries and keys grew until every word looked at one, whatever the sentence.
TEXT_RATE = 0.02
IMAGE_BATCH, CLIP_BATCH = 128, 32
WORDS = """a an the and , . of on in to while beside each other stays still moves move right left up
down from above below two three four circle circles square squares triangle triangles red green blue
yellow purple cyan turns grows shrinks bounces around zigzags towards away follows dark light
background""".split()
MODEL = Path(__file__).parent / "model"
ABOUT = """A small text-to-video model of the real classes (`WanPipeline`: UMT5 text encoder, Wan transformer,
Wan VAE, flow-matching Euler), trained from scratch on the scenes of `demo/scenes.py`. It exists so that
layout guidance can be tested honestly in seconds; it draws flat shapes and nothing else."""


def build_pipeline(seed: int = 0) -> WanPipeline:
    """The demo pipeline with random weights, inside what ComfyUI's stock Wan loader assumes.

    Head size 128, patch (1, 2, 2), text width 4096, 16 latent channels; width and depth are free.
    """
    torch.manual_seed(seed)
    vocabulary = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", *dict.fromkeys(WORDS)])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation()]
    )
    words.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_LENGTH,
    )
    text_encoder = UMT5EncoderModel(
        UMT5Config(
            vocab_size=len(vocabulary),
            d_model=4096,
            d_kv=32,
            d_ff=64,
            num_heads=2,
            num_layers=1,
            dropout_rate=0.0,
            pad_token_id=0,
            eos_token_id=1,
        )
    )
    vae = AutoencoderKLWan(
        base_dim=16,
        z_dim=16,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * 16,
        latents_std=[1.0] * 16,
        scale_factor_spatial=4,
        scale_factor_temporal=4,
    )
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=128,
        in_channels=16,
        out_channels=16,
        text_dim=4096,
        freq_dim=256,
        ffn_dim=512,
        num_layers=7,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
    )
    words_know_their_neighbours(text_encoder)
    head_start(transformer)
    scheduler = FlowMatchEulerDiscreteScheduler(shift=SHIFT)
    return WanPipeline(tokenizer, text_encoder, vae, scheduler, transformer)


def inflate(vae: AutoencoderKLWan) -> None:
    """Make the untrained video VAE an image VAE that repeats frames: motion is all a clip adds to it.

    Every causal kernel starts with its newest frame alone; halving the frame rate takes the newer
    frame, doubling it shows a frame twice (the inflation that Wan 2.1's own training begins with).
    """
    with torch.no_grad():
        for name, module in vae.named_modules():
            if not isinstance(module, torch.nn.Conv3d) or module.kernel_size[0] == 1:
                continue
            module.weight[:, :, :-1] = 0
            if name.endswith("time_conv"):
                copies = module.out_channels // module.in_channels
                identity = torch.eye(module.in_channels).repeat(copies, 1)
                module.weight[:, :, -1] = identity[..., None, None]
                assert module.bias is not None
                torch.nn.init.zeros_(module.bias)


def embed(pipe: WanPipeline, captions: list[str]) -> torch.Tensor:
    """What WanPipeline's encode_prompt gives, up to the first row that is padding for every caption."""
    tokens = pipe.tokenizer(captions, padding=True, return_tensors="pt").to(pipe.text_encoder.device)
    states = pipe.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return F.pad(states * tokens.attention_mask[..., None], (0, 0, 0, 1))


def pad_text(module: torch.nn.Module, inputs: tuple, projected: torch.Tensor) -> torch.Tensor:
    """Hook on the text projection: repeat the projected padding up to TEXT_LENGTH, which costs nothing."""
    padding = projected[:, -1:].expand(-1, TEXT_LENGTH - projected.shape[1], -1)
    return torch.cat([projected, padding], 1)


class WanPupil(Pupil):
    """The demo model's transformer and text encoder, taught by flow matching: v = noise − x₀."""

    def __init__(self, pipe: WanPipeline, compiled: bool, bfloat16: bool) -> None:
        super().__init__(compiled, bfloat16)
        self.pipe = WanPipeline(pipe.tokenizer, pipe.text_encoder, None, None, pipe.transformer)
        self.modules = torch.nn.ModuleDict(
            {"transformer": pipe.transformer, "text_encoder": pipe.text_encoder}
        )

    def prepare(self) -> None:
        self.pipe.transformer.condition_embedder.text_embedder.register_forward_hook(pad_text)
        for block in self.pipe.transformer.blocks if self.compiled else ():
            block.compile()

    def loss(self, batch: Batch) -> tuple[torch.Tensor, float]:
        s = batch.sigma.view(-1, 1, 1, 1, 1)
        with self.reduced():
            noisy = (1 - s) * batch.latents + s * batch.noise
            velocity = self.pipe.transformer(
                noisy, batch.sigma * 1000, embed(self.pipe, batch.captions)
            ).sample
        loss = F.mse_loss(velocity.float(), batch.noise - batch.latents, reduction="sum")
        return loss, loss.item()

    def share(self, name: str, weight: torch.Tensor) -> float | None:
        if name.startswith("text_encoder"):
            return TEXT_RATE
        return None if weight.ndim == 2 and "proj_out" not in name else 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--work", type=Path, default=Path("outputs/train"))
    parser.add_argument("--untrained", action="store_true", help="write random weights and stop")
    parser.add_argument("--snapshot", action="store_true", help="write the last checkpoint and stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--vae-image-iterations", type=int, default=2000)
    parser.add_argument("--vae-crop-iterations", type=int, default=900)
    parser.add_argument("--vae-clip-iterations", type=int, default=150)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--clips", type=int, default=4096)
    parser.add_argument("--image-iterations", type=int, default=1500)
    parser.add_argument("--clip-iterations", type=int, default=2500)
    parser.add_argument("--start-from", metavar="FOLDER", help="go on from this model, keeping its VAE")
    training_options(parser)
    options = parser.parse_args()
    pipe = build_pipeline(options.seed)
    if not options.untrained:
        work, device = options.work, options.device
        work.mkdir(parents=True, exist_ok=True)
        basis = load_basis()
        vae_stages = [
            (1, SIZE // 2, 16, 2e-3, options.vae_image_iterations),
            # Gently: at the first stage's rate the time convolutions wreck what it learned.
            (FRAMES, SIZE // 2, 4, 5e-4, options.vae_crop_iterations),
            (FRAMES, SIZE, 2, 2e-4, options.vae_clip_iterations),
        ]
        if options.start_from:
            start = WanPipeline.from_pretrained(options.start_from, torch_dtype=torch.float32)
            for part in ("vae", "text_encoder", "transformer"):
                getattr(pipe, part).load_state_dict(getattr(start, part).state_dict())
        else:
            inflate(pipe.vae)
            train_vae(pipe.vae.to(device), basis, work, vae_stages, device, options.seed, FRAMES)
        images = encode(basis, work, "images", options.images, 1, options.seed + 1)
        videos = encode(basis, work, "clips", options.clips, FRAMES, options.seed + 2)
        lessons = [
            (images, IMAGE_BATCH, options.image_iterations),
            (videos, CLIP_BATCH, options.clip_iterations),
        ]
        pupil = WanPupil(pipe.to(device), options.compile, options.bfloat16)
        if options.snapshot:
            state = torch.load(work / "denoiser.pt", map_location=device, weights_only=True)
            pupil.settle(state["average"])
        else:
            rate = LEARNING_RATE * (GO_ON_RATE if options.start_from else 1)
            teach(pupil, work, lessons, options.seed, rate)
    assert pipe.vae.config.z_dim == 16 and SIZE % 8 == 0
    save_model(pipe, options.out, FRAMES)
    if not options.untrained:
        seen = {
            "denoiser": ", ".join(
                f"{batch * n} × {scenes['latents'].shape[2]} latent frames" for scenes, batch, n in lessons
            )
        }
        if not options.start_from:
            vae_seen = [f"{b * n} × {frames} frames of {size}×{size}" for frames, size, b, _, n in vae_stages]
            seen = {"vae": ", ".join(vae_seen), **seen}
        lengths = [name for name in vars(options) if name.endswith(("iterations", "images", "clips"))]
        chosen = [
            f"--{name.replace('_', '-')} {getattr(options, name)}"
            for name in lengths
            if getattr(options, name) != parser.get_default(name)
        ]
        switches = [f"--{name}" for name in ("compile", "bfloat16") if getattr(options, name)]
        if options.start_from:
            switches.insert(0, "--start-from FOLDER")
        facts = {
            "title": "Demo model",
            "about": ABOUT,
            "seen": seen,
            "text": TEXT_LENGTH,
            "command": " ".join(["python -m demo.train", *chosen, *switches]),
            "note": f"\n{options.note}\n" if options.note else "",
            "seed": options.seed,
            "machine": machine(options.device),
        }
        config = pipe.vae.config
        shapes = {
            "transformer": f"ffn {pipe.transformer.config.ffn_dim}",
            "vae": f"base {config.base_dim}, dim_mult {config.dim_mult}",
        }
        write_card(options.out.parent, pipe, shapes, FRAMES, options.work, facts)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
