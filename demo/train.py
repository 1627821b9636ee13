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
import json
import math
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain, pairwise, repeat
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    WanPipeline,
    WanTransformer3DModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from torch.multiprocessing import get_context
from torch.nn import functional as F
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

from .card import write_card
from .latents import Basis, load_basis, project
from .muon import Muon
from .scenes import FPS, FRAMES, SIZE, Scene, SceneSampler
from .start import head_start, words_know_their_neighbours

TEXT_LENGTH = 64
SHIFT = 4.0  # of the noise levels in sampling: below σ = 0.8 all is a local matter, drawn in a few steps
# Mean and deviation of the taught noise levels' logits (Esser et al. 2024): half are between 0.84 and 0.96,
# where it is decided what is where and frames come to agree on it, which is learnt slowest.
LEVEL, SPREAD = 2.2, 1.1
LEARNING_RATE, GO_ON_RATE = 6e-3, 0.4  # the second as a share of the first
# The text encoder's, again as a share: its weights are a hundredth of the transformer's. At the full rate its
# queries and keys grew until every word looked at one, whatever the sentence.
TEXT_RATE = 0.02
LATENT_NOISE = 0.1
IMAGE_BATCH, CLIP_BATCH = 128, 32
WORDS = """a an the and , . of on in to while beside each other stays still moves move right left up
down from above below two three four circle circles square squares triangle triangles red green blue
yellow purple cyan turns grows shrinks bounces around zigzags towards away follows dark light
background""".split()
MODEL = Path(__file__).parent / "model"


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


def clips(scenes: list[Scene], start: int = 0, frames: int = FRAMES) -> torch.Tensor:
    """Rendered scenes as [B, 3, frames, H, W] in -1…1."""
    video = np.stack([scene.render(start, frames) for scene in scenes])
    return torch.from_numpy(video).permute(0, 4, 1, 2, 3).float() / 127.5 - 1


class Curve:
    """A loss curve kept as JSON lines, one row every `every` iterations."""

    def __init__(self, path: Path, every: int = 25) -> None:
        self.path, self.every, self.sum = path, every, 0.0

    def add(self, iteration: int, loss: float) -> None:
        self.sum += loss
        if (iteration + 1) % self.every == 0:
            row = {"iteration": iteration + 1, "loss": round(self.sum / self.every, 5)}
            with self.path.open("a") as file:
                file.write(json.dumps(row | {"time": round(time.time())}) + "\n")
            self.sum = 0.0


def cosine(part: float, warm: float = 0.04, floor: float = 0.03) -> float:
    """Learning-rate factor at this part of the run (0…1): linear warm-up, then cosine to a floor."""
    if part < warm:
        return (part + 1e-3) / warm
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * (part - warm) / (1 - warm)))


def stage_at(stages: list[tuple], iteration: int) -> tuple:
    """The stage's settings (all but its last item), and where in the stage this iteration lies, 0…1."""
    for *settings, iterations in stages:
        if iteration < iterations:
            return (*settings, iteration / iterations)
        iteration -= iterations
    raise IndexError("iteration past the last stage")


def save(path: Path, **state) -> None:
    """Write a checkpoint whole or not at all."""
    torch.save(state, path.with_suffix(".part"))
    path.with_suffix(".part").rename(path)


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


def crops(sampler: SceneSampler, batch: int, frames: int, size: int) -> torch.Tensor:
    """Clips [batch, 3, frames, size, size] cut from full scenes around one of their objects."""
    cut = []
    for _ in range(batch):
        scene = sampler.sample()
        first = int(sampler.rng.integers(0, FRAMES - frames + 1))
        track = scene.instances[sampler.rng.integers(len(scene.instances))].centres
        centre = track[sampler.rng.integers(first, first + frames)]
        centre = centre + sampler.rng.uniform(-size / 4, size / 4, 2)
        x, y = np.clip(centre - size / 2, 0, SIZE - size).astype(int)
        cut.append(clips([scene], first, frames)[..., y : y + size, x : x + size])
    return torch.cat(cut)


def train_vae(
    vae: AutoencoderKLWan,
    basis: Basis,
    work: Path,
    stages: list[tuple[int, int, int, float, int]],
    device: str,
    seed: int,
) -> None:
    """Teach the encoder this basis, and the decoder to undo it, from small still crops to whole clips.

    Stages are (frames, size, batch, lr, iterations). The decoder's error is L1 + L2, five times heavier on
    objects than on background; noise on its latents teaches it to paint clean shapes from what a small
    denoiser gets almost right. Resumes from work/vae.pt.
    """
    checkpoint, done = work / "vae.pt", 0
    optimiser = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimiser.load_state_dict(state["optimiser"])
        done = state["iteration"]
    else:
        inflate(vae)
    total = sum(stage[-1] for stage in stages)
    curve = Curve(work / "vae.jsonl")
    vae.train()
    for iteration in tqdm(range(done, total), initial=done, total=total, desc="VAE"):
        frames, size, batch, lr, part = stage_at(stages, iteration)
        video = crops(SceneSampler(seed * 1_000_003 + iteration), batch, frames, size)
        latents, video = project(video, basis).to(device), video.to(device)
        background = video.flatten(2).median(-1).values[:, :, None, None, None]
        weight = 1 + 4 * ((video - background).abs().amax(1, keepdim=True) > 0.05)
        for group in optimiser.param_groups:
            group["lr"] = lr * cosine(part)
        noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(iteration)).to(device)
        error = vae.decode(latents + LATENT_NOISE * noise).sample - video
        missed = vae.encode(video).latent_dist.mode() - latents
        loss = (weight * (error.abs() + error.square())).mean() + missed.square().mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        curve.add(iteration, loss.item())
        if (iteration + 1) % 100 == 0 or iteration + 1 == total:
            save(checkpoint, vae=vae.state_dict(), optimiser=optimiser.state_dict(), iteration=iteration + 1)
    vae.eval()


def lesson(sampler: SceneSampler, frames: int) -> Scene:
    """A scene to learn from: half of those where several stand still are left to the single frames."""
    while True:
        scene = sampler.sample()
        alone = scene.category == "single"
        if frames == 1 or scene.moves or alone or sampler.rng.random() < 0.5:
            return scene


def encode_part(basis: Basis, count: int, frames: int, seed: int) -> tuple[torch.Tensor, list[str]]:
    """Latents [count, 16, T, 16, 16] in fp16 and captions of the scenes that this seed gives."""
    torch.set_num_threads(1)
    sampler = SceneSampler(seed)
    scenes = [lesson(sampler, frames) for _ in range(count)]
    start = int(sampler.rng.integers(0, FRAMES)) if frames == 1 else 0
    return project(clips(scenes, start, frames), basis).half(), [scene.caption for scene in scenes]


def encode(basis: Basis, work: Path, name: str, count: int, frames: int, seed: int) -> dict:
    """Encode `count` scenes once, on every core: latents [count, 16, T, 16, 16] and their captions."""
    path = work / f"{name}.pt"
    if path.exists():
        return torch.load(path, weights_only=True)
    sizes = [min(16, count - done) for done in range(0, count, 16)]
    seeds = [seed * 1_000_003 + part for part in range(len(sizes))]
    with ProcessPoolExecutor(torch.get_num_threads(), get_context("spawn")) as pool:
        parts = pool.map(encode_part, repeat(basis), sizes, repeat(frames), seeds, chunksize=16)
        latents, captions = zip(*tqdm(parts, total=len(sizes), desc=f"encode {name}"), strict=True)
    save(path, latents=torch.cat(latents), captions=[*chain(*captions)])
    return torch.load(path, weights_only=True)


def embed(pipe: WanPipeline, captions: list[str]) -> torch.Tensor:
    """What WanPipeline's encode_prompt gives, up to the first row that is padding for every caption."""
    tokens = pipe.tokenizer(captions, padding=True, return_tensors="pt").to(pipe.text_encoder.device)
    states = pipe.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
    return F.pad(states * tokens.attention_mask[..., None], (0, 0, 0, 1))


def pad_text(module: torch.nn.Module, inputs: tuple, projected: torch.Tensor) -> torch.Tensor:
    """Hook on the text projection: repeat the projected padding up to TEXT_LENGTH, which costs nothing."""
    padding = projected[:, -1:].expand(-1, TEXT_LENGTH - projected.shape[1], -1)
    return torch.cat([projected, padding], 1)


class Batch(NamedTuple):
    """Latents and noise [B, 16, T, 16, 16], noise levels [B], captions."""

    latents: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor
    captions: list[str]

    def split(self, parts: int) -> list[Batch]:
        cuts = [i * len(self.captions) // parts for i in range(parts + 1)]
        return [
            Batch(self.latents[a:b], self.noise[a:b], self.sigma[a:b], self.captions[a:b])
            for a, b in pairwise(cuts)
        ]


def reduced(device: torch.device, wanted: bool) -> torch.autocast:
    """Matrix products in bf16: always on a GPU; on a CPU where wanted, since few have units for it."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted or device.type == "cuda")


def gradient(pipe: WanPipeline, bfloat16: bool, batch: Batch) -> tuple[float, torch.Tensor]:
    """The batch's summed squared error of v = noise − x₀, and its gradient for all weights, as one vector."""
    device = pipe.transformer.device
    latents, noise, sigma = (field.to(device) for field in batch[:3])
    s = sigma.view(-1, 1, 1, 1, 1)
    with reduced(device, bfloat16):
        embeds = embed(pipe, batch.captions)
        velocity = pipe.transformer((1 - s) * latents + s * noise, sigma * 1000, embeds).sample
    loss = F.mse_loss(velocity.float(), noise - latents, reduction="sum")
    slopes = torch.autograd.grad(loss, list(trained(pipe).parameters()))
    return loss.item(), torch.cat([slope.flatten() for slope in slopes])


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    scale: float | None = None,
    **_: object,
) -> torch.Tensor:
    """torch's own [B, H, N, D], as two matrix products and a softmax for a compiler to fuse."""
    logits = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
    return (logits if attn_mask is None else logits + attn_mask).softmax(-1).to(value.dtype) @ value


def serve(
    pipe: WanPipeline, slopes: torch.Tensor, compiled: bool, bfloat16: bool, connection: Connection
) -> None:
    """A worker process: take slices of batches, write their gradient into `slopes`, send their loss."""
    torch.set_num_threads(1)
    if compiled and bfloat16:
        # In this process alone: torch's fused kernel gains nothing from bf16.
        F.scaled_dot_product_attention = attention  # type: ignore[assignment]
    pipe.transformer.condition_embedder.text_embedder.register_forward_hook(pad_text)
    for block in pipe.transformer.blocks if compiled else ():
        block.compile()
    while True:
        arrays = connection.recv()
        latents, noise, sigma = map(torch.from_numpy, arrays[:3])
        loss, slopes[:] = gradient(pipe, bfloat16, Batch(latents, noise, sigma, arrays[3]))
        connection.send(loss)


class Workers:
    """One process per core, each with its slice of the batch and all of them on the same shared weights.

    The operations are too small to be shared by cores, and threads wait for the interpreter's lock:
    half as fast again as either.
    """

    def __init__(self, pipe: WanPipeline, count: int, compiled: bool, bfloat16: bool) -> None:
        weights = trained(pipe).share_memory().parameters()
        self.slopes = torch.zeros(count, sum(w.numel() for w in weights)).share_memory_()
        context = get_context("spawn")
        self.ends = []
        bare = WanPipeline(pipe.tokenizer, pipe.text_encoder, None, None, pipe.transformer)
        for slopes in self.slopes:
            end, other = context.Pipe()
            context.Process(target=serve, args=(bare, slopes, compiled, bfloat16, other), daemon=True).start()
            self.ends.append(end)

    def gradient(self, batch: Batch) -> tuple[float, torch.Tensor]:
        """As the function of this name."""
        for end, part in zip(self.ends, batch.split(len(self.ends)), strict=True):
            end.send((*(field.numpy() for field in part[:3]), part.captions))
        return sum(end.recv() for end in self.ends), self.slopes.sum(0)


def trained(pipe: WanPipeline) -> torch.nn.ModuleDict:
    """What is trained after the VAE."""
    return torch.nn.ModuleDict({"transformer": pipe.transformer, "text_encoder": pipe.text_encoder})


@torch.no_grad()
def settle(pipe: WanPipeline, average: dict[str, torch.Tensor]) -> None:
    """Leave training with the averaged weights."""
    for name, weight in trained(pipe).eval().named_parameters():
        weight.copy_(average[name])


def train_denoiser(
    pipe: WanPipeline,
    work: Path,
    stages: list[tuple[dict, int, int]],
    seed: int,
    rate: float = LEARNING_RATE,
    compiled: bool = False,
    bfloat16: bool = False,
) -> None:
    """Flow matching over (encoded scenes, batch, iterations) stages, with EMA weights.

    Matrices are trained with Muon, the rest and the text encoder with AdamW; resumes from
    work/denoiser.pt.
    """
    modules = trained(pipe)
    weights = dict(modules.named_parameters())
    text = [name for name in weights if name.startswith("text_encoder")]
    matrices = [
        name for name, w in weights.items() if w.ndim == 2 and name not in text and "proj_out" not in name
    ]
    rest = [name for name in weights if name not in text and name not in matrices]
    groups: list[dict[str, Any]] = [
        {"params": [weights[name] for name in rest]},
        {"params": [weights[name] for name in text], "share": TEXT_RATE},
    ]
    optimisers = [
        Muon([weights[name] for name in matrices], lr=rate),
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    average = {name: w.detach().clone() for name, w in weights.items()}
    checkpoint, done = work / "denoiser.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=pipe.transformer.device, weights_only=True)
        modules.load_state_dict(state["modules"])
        average = state["average"]
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        done = state["iteration"]
    if pipe.transformer.device.type == "cpu":
        slope = Workers(pipe, torch.get_num_threads(), compiled, bfloat16).gradient
    else:
        pipe.transformer.condition_embedder.text_embedder.register_forward_hook(pad_text)
        slope = partial(gradient, pipe, bfloat16)
    total = sum(iterations for _, _, iterations in stages)
    curve = Curve(work / "denoiser.jsonl")
    bar = tqdm(total=total, initial=done, desc="denoiser")
    for iteration in range(done, total):
        scenes, size, _ = stage_at(stages, iteration)
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = rate * group.get("share", 1.0) * cosine(iteration / total)
        rng = torch.Generator().manual_seed(seed * 1_000_003 + iteration)
        picks = torch.randint(len(scenes["captions"]), (size,), generator=rng).tolist()
        latents = scenes["latents"][picks].float()
        kept = torch.rand(size, generator=rng) > 0.1  # one in ten learns the unconditional branch
        captions = [scenes["captions"][p] if k else "" for p, k in zip(picks, kept, strict=True)]
        # Stratified noise levels: lower variance of the loss than independent draws.
        u = (torch.randperm(size, generator=rng) + torch.rand(size, generator=rng)) / size
        sigma = torch.sigmoid(LEVEL + SPREAD * torch.special.ndtri(u))
        noise = torch.randn(latents.shape, generator=rng)
        loss, vector = slope(Batch(latents, noise, sigma, captions))
        parts = (vector / latents.numel()).split([w.numel() for w in weights.values()])
        for weight, part in zip(weights.values(), parts, strict=True):
            weight.grad = part.view_as(weight)
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        with reduced(pipe.transformer.device, bfloat16):
            for optimiser in optimisers:
                optimiser.step()
        decay = min(0.999, (iteration + 1) / (iteration + 20))
        torch._foreach_lerp_(list(average.values()), [w.detach() for w in weights.values()], 1 - decay)
        curve.add(iteration, loss / latents.numel())
        bar.update()
        if (iteration + 1) % 100 == 0 or iteration + 1 == total:
            save(
                checkpoint,
                modules=modules.state_dict(),
                average=average,
                optimisers=[optimiser.state_dict() for optimiser in optimisers],
                iteration=iteration + 1,
            )
    settle(pipe, average)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--out", type=Path, default=MODEL)
    parser.add_argument("--work", type=Path, default=Path("outputs/train"))
    parser.add_argument("--untrained", action="store_true", help="write random weights and stop")
    parser.add_argument("--snapshot", action="store_true", help="write the last checkpoint and stop")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--vae-image-iterations", type=int, default=2000)
    parser.add_argument("--vae-crop-iterations", type=int, default=900)
    parser.add_argument("--vae-clip-iterations", type=int, default=150)
    parser.add_argument("--images", type=int, default=8000)
    parser.add_argument("--clips", type=int, default=4096)
    parser.add_argument("--image-iterations", type=int, default=1500)
    parser.add_argument("--clip-iterations", type=int, default=2500)
    parser.add_argument(
        "--compile", action="store_true", help="on a CPU: a third faster, with a C++ compiler"
    )
    parser.add_argument(
        "--bfloat16", action="store_true", help="on a CPU with AVX-512 BF16 or AMX: three times faster"
    )
    parser.add_argument("--start-from", metavar="FOLDER", help="go on from this model, keeping its VAE")
    parser.add_argument("--note", default="", help="a remark for the model card")
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
            train_vae(pipe.vae.to(device), basis, work, vae_stages, device, options.seed)
        images = encode(basis, work, "images", options.images, 1, options.seed + 1)
        videos = encode(basis, work, "clips", options.clips, FRAMES, options.seed + 2)
        lessons = [
            (images, IMAGE_BATCH, options.image_iterations),
            (videos, CLIP_BATCH, options.clip_iterations),
        ]
        if options.snapshot:
            settle(pipe, torch.load(work / "denoiser.pt", map_location=device, weights_only=True)["average"])
        else:
            train_denoiser(
                pipe.to(device),
                work,
                lessons,
                options.seed,
                LEARNING_RATE * (GO_ON_RATE if options.start_from else 1),
                options.compile,
                options.bfloat16,
            )
    assert pipe.vae.config.z_dim == 16 and SIZE % 8 == 0
    pipe.to("cpu", torch.bfloat16).save_pretrained(options.out)
    clip = {
        "num_frames": FRAMES,
        "height": SIZE,
        "width": SIZE,
        "fps": FPS,
        "steps": 20,
        "guidance_scale": 4.0,
    }
    (options.out / "clip.json").write_text(json.dumps(clip, indent=1) + "\n")
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
            "seen": seen,
            "text": TEXT_LENGTH,
            "command": " ".join(["python -m demo.train", *chosen, *switches]),
            "note": f"\n{options.note}\n" if options.note else "",
            "seed": options.seed,
            "torch": torch.__version__,
            "machine": torch.cuda.get_device_name()
            if options.device == "cuda"
            else f"{torch.get_num_threads()} CPU threads",
        }
        write_card(options.out.parent, pipe, options.work, facts)
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
