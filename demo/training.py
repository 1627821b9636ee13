"""How both demo models are taught: what their latents are, a process a core, and one loop with its curve.

A VAE is taught a latent space that is given; a denoiser is taught by flow matching on scenes that are
encoded once. Checkpoints and curves go to a working folder; an interrupted training continues where it
stopped.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from abc import ABC, abstractmethod
from concurrent.futures import ProcessPoolExecutor
from itertools import chain, pairwise, repeat
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, AutoencoderKLWan
from torch.multiprocessing import get_context
from torch.nn import functional as F
from tqdm import tqdm

from .latents import Basis, project
from .muon import Muon
from .scenes import FRAMES, SIZE, Scene, SceneSampler

# Mean and deviation of the taught noise levels' logits (Esser et al. 2024): half are between 0.84 and 0.96,
# where it is decided what is where and frames come to agree on it, which is learnt slowest.
LEVEL, SPREAD = 2.2, 1.1
LATENT_NOISE = 0.1


def training_options(parser: argparse.ArgumentParser) -> None:
    """Add how to train, whichever model it is."""
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--compile", action="store_true", help="on a CPU: a third faster, with a C++ compiler"
    )
    parser.add_argument(
        "--bfloat16", action="store_true", help="on a CPU with AVX-512 BF16 or AMX: three times faster"
    )
    parser.add_argument("--note", default="", help="a remark for the model card")


def clips(scenes: list[Scene], start: int = 0, frames: int | None = None) -> torch.Tensor:
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


# The VAE --------------------------------------------------------------------------------------------


def crops(sampler: SceneSampler, batch: int, frames: int, size: int) -> torch.Tensor:
    """Clips [batch, 3, frames, size, size] cut from full scenes around one of their objects."""
    cut = []
    for _ in range(batch):
        scene = sampler.sample()
        first = int(sampler.rng.integers(0, len(scene) - frames + 1))
        track = scene.instances[sampler.rng.integers(len(scene.instances))].centres
        centre = track[sampler.rng.integers(first, first + frames)]
        centre = centre + sampler.rng.uniform(-size / 4, size / 4, 2)
        x, y = np.clip(centre - size / 2, 0, SIZE - size).astype(int)
        cut.append(clips([scene], first, frames)[..., y : y + size, x : x + size])
    return torch.cat(cut)


def train_vae(
    vae: AutoencoderKLWan | AutoencoderKLCogVideoX,
    basis: Basis,
    work: Path,
    stages: list[tuple[int, int, int, float, int]],
    device: str,
    seed: int,
    length: int,
) -> None:
    """Teach the encoder this basis, and the decoder to undo it, from small still crops to whole clips.

    Stages are (frames, size, batch, lr, iterations), cut from scenes of `length` frames. The decoder's error
    is L1 + L2, five times heavier on objects than on background; noise on its latents teaches it to paint
    clean shapes from what a small denoiser gets almost right. Resumes from work/vae.pt.
    """
    checkpoint, done = work / "vae.pt", 0
    optimiser = torch.optim.AdamW(vae.parameters(), lr=2e-3, betas=(0.9, 0.95), weight_decay=0.0)
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        vae.load_state_dict(state["vae"])
        optimiser.load_state_dict(state["optimiser"])
        done = state["iteration"]
    total = sum(stage[-1] for stage in stages)
    curve = Curve(work / "vae.jsonl")
    vae.train()
    for iteration in tqdm(range(done, total), initial=done, total=total, desc="VAE"):
        frames, size, batch, lr, part = stage_at(stages, iteration)
        video = crops(SceneSampler(seed * 1_000_003 + iteration, frames=length), batch, frames, size)
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


# The denoiser ---------------------------------------------------------------------------------------


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
    sampler = SceneSampler(seed, frames=FRAMES if frames == 1 else frames)
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


class Batch(NamedTuple):
    """Latents and noise [B, 16, T, 16, 16], noise levels [B], captions, and the part of the training done."""

    latents: torch.Tensor
    noise: torch.Tensor
    sigma: torch.Tensor
    captions: list[str]
    part: float

    def split(self, parts: int) -> list[Batch]:
        cuts = [i * len(self.captions) // parts for i in range(parts + 1)]
        return [
            Batch(self.latents[a:b], self.noise[a:b], self.sigma[a:b], self.captions[a:b], self.part)
            for a, b in pairwise(cuts)
        ]


class Pupil(ABC):
    """A denoiser to be taught, of whichever family. Worker processes are sent it as it is."""

    modules: torch.nn.ModuleDict  # what is taught

    def __init__(self, compiled: bool, bfloat16: bool) -> None:
        self.compiled, self.bfloat16 = compiled, bfloat16

    @property
    def device(self) -> torch.device:
        return next(self.modules.parameters()).device

    @abstractmethod
    def prepare(self) -> None:
        """Hooks and compilation, once in each process that computes gradients."""

    @abstractmethod
    def loss(self, batch: Batch) -> tuple[torch.Tensor, float]:
        """What is minimised, and the squared error that the curve tells, summed over the batch's latents."""

    @abstractmethod
    def share(self, name: str, weight: torch.Tensor) -> float | None:
        """AdamW's learning rate for this weight as a share of the whole; None where Muon takes it."""

    def gradient(self, batch: Batch) -> tuple[float, torch.Tensor]:
        """The error of a batch, and the loss's gradient for all weights as one vector."""
        latents, noise, sigma = (field.to(self.device) for field in batch[:3])
        batch = batch._replace(latents=latents, noise=noise, sigma=sigma)
        loss, error = self.loss(batch)
        slopes = torch.autograd.grad(loss, list(self.modules.parameters()))
        return error, torch.cat([slope.flatten() for slope in slopes])

    def reduced(self) -> torch.autocast:
        """Matrix products in bf16: always on a GPU; on a CPU where wanted, since few have units for it."""
        kind = self.device.type
        return torch.autocast(kind, torch.bfloat16, enabled=self.bfloat16 or kind == "cuda")

    @torch.no_grad()
    def settle(self, average: dict[str, torch.Tensor]) -> None:
        """Leave training with the averaged weights."""
        for name, weight in self.modules.eval().named_parameters():
            weight.copy_(average[name])


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


def serve(pupil: Pupil, slopes: torch.Tensor, connection: Connection) -> None:
    """A worker process: take slices of batches, write their gradient into `slopes`, send their error."""
    torch.set_num_threads(1)
    if pupil.compiled and pupil.bfloat16:
        # In this process alone: torch's fused kernel gains nothing from bf16.
        F.scaled_dot_product_attention = attention  # type: ignore[assignment]
    pupil.prepare()
    while True:
        arrays = connection.recv()
        latents, noise, sigma = map(torch.from_numpy, arrays[:3])
        error, slopes[:] = pupil.gradient(Batch(latents, noise, sigma, *arrays[3:]))
        connection.send(error)


class Workers:
    """One process per core, each with its slice of the batch and all of them on the same shared weights.

    The operations are too small to be shared by cores, and threads wait for the interpreter's lock:
    half as fast again as either.
    """

    def __init__(self, pupil: Pupil, count: int) -> None:
        weights = pupil.modules.share_memory().parameters()
        self.slopes = torch.zeros(count, sum(w.numel() for w in weights)).share_memory_()
        context = get_context("spawn")
        self.ends = []
        for slopes in self.slopes:
            end, other = context.Pipe()
            context.Process(target=serve, args=(pupil, slopes, other), daemon=True).start()
            self.ends.append(end)

    def gradient(self, batch: Batch) -> tuple[float, torch.Tensor]:
        """As the pupil's of this name."""
        for end, part in zip(self.ends, batch.split(len(self.ends)), strict=True):
            end.send((*(field.numpy() for field in part[:3]), *part[3:]))
        return sum(end.recv() for end in self.ends), self.slopes.sum(0)


def teach(pupil: Pupil, work: Path, stages: list[tuple[dict, int, int]], seed: int, rate: float) -> None:
    """Flow matching over (encoded scenes, batch, iterations) stages, with EMA weights.

    Resumes from work/denoiser.pt.
    """
    weights = dict(pupil.modules.named_parameters())
    shares = {name: pupil.share(name, weight) for name, weight in weights.items()}
    groups: list[dict[str, Any]] = [
        {"params": [weights[name] for name, own in shares.items() if own == share], "share": share}
        for share in dict.fromkeys(share for share in shares.values() if share is not None)
    ]
    optimisers = [
        Muon([weights[name] for name, share in shares.items() if share is None], lr=rate),
        torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    average = {name: w.detach().clone() for name, w in weights.items()}
    checkpoint, done = work / "denoiser.pt", 0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=pupil.device, weights_only=True)
        pupil.modules.load_state_dict(state["modules"])
        average = state["average"]
        for optimiser, saved in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)
        done = state["iteration"]
    if pupil.device.type == "cpu":
        gradient = Workers(pupil, torch.get_num_threads()).gradient
    else:
        pupil.prepare()
        gradient = pupil.gradient
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
        error, vector = gradient(Batch(latents, noise, sigma, captions, iteration / total))
        parts = (vector / latents.numel()).split([w.numel() for w in weights.values()])
        for weight, part in zip(weights.values(), parts, strict=True):
            weight.grad = part.view_as(weight)
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        with pupil.reduced():
            for optimiser in optimisers:
                optimiser.step()
        decay = min(0.999, (iteration + 1) / (iteration + 20))
        torch._foreach_lerp_(list(average.values()), [w.detach() for w in weights.values()], 1 - decay)
        curve.add(iteration, error / latents.numel())
        bar.update()
        if (iteration + 1) % 100 == 0 or iteration + 1 == total:
            save(
                checkpoint,
                modules=pupil.modules.state_dict(),
                average=average,
                optimisers=[optimiser.state_dict() for optimiser in optimisers],
                iteration=iteration + 1,
            )
    pupil.settle(average)
