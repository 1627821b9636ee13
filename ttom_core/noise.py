"""A shift of the initial noise, the same for every noise and every colour: what a scene's layout asks of it.

The initial noise decides much of a layout, and part of what it has to look like belongs to the scene and
not to the one noise or the one prompt. That part is learnt over many noises and prompts and kept as a matrix
of low rank, latent channels and frames by positions, in an adapter that has this matrix alone: a memory
files, fuses and shares it like any other. A noise that was moved by it has the length that it had, and
costs no optimisation. It is this project's, not the paper's.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from .adapter import Adapter, AdapterError
from .attention import EarlyExit
from .backbones.base import Backbone
from .errors import TTOMError
from .layout import Layout
from .masks import soft_masks
from .objectives import alignment_loss
from .optimize import TTOSettings, frozen, insist_finite, insist_on_layers

NAME = "initial_noise"  # in the place of a module's name
Lesson = tuple[str, Layout]


class ShiftSettings(BaseModel):
    """Every setting of learning a shift."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: int = Field(8, ge=1, le=512)
    size: float = Field(0.2, gt=0, le=1, description="rms of the shift, that of the noise being 1")
    iterations: int = Field(100, ge=1)
    batch: int = Field(2, ge=1, description="noises of an iteration, each of a prompt of its own")
    learning_rate: float = Field(0.02, gt=0)
    seed: int = 0


def is_shift(adapter: Adapter) -> bool:
    """Whether this is a shift of the noise and sits on no module."""
    return adapter.weights.keys() == {NAME}


def moved(noise: Tensor, adapter: Adapter) -> Tensor:
    """The noise [1, …, h, w] with the shift added, in fp32 and as long as it was.

    AdapterError where the clip has another size than those that the shift was learnt on.
    """
    if not is_shift(adapter):
        raise AdapterError("This adapter sits on modules; only a shift of the noise can be added to one.")
    a, b = (x.to(noise.device) for x in adapter.weights[NAME])
    rows, columns = noise.shape[-2:]
    wanted = (math.prod(noise.shape[1:-2]), rows * columns)
    if (len(b), a.shape[1]) != wanted:
        raise AdapterError(
            f"The shift of the noise is {len(b)}×{a.shape[1]}, this clip's noise is {wanted[0]}×{wanted[1]}; "
            "make a clip of the size that it was learnt on."
        )
    return _moved(noise.float(), adapter.scaling * (b @ a))


def _moved(noise: Tensor, shift: Tensor) -> Tensor:
    there = noise + shift.view_as(noise[0])
    return there * (noise.norm() / there.norm())


@contextmanager
def shifted(backbone: Backbone, adapter: Adapter | None) -> Iterator[None]:
    """Let one sampling loop inside start from shifted noise; with None all is as ever.

    Both the first step's denoiser calls and the step itself start from there. A clip of another size is
    left alone, with a warning. Enter it before anything that optimises, which then sees the shifted noise.
    """
    if adapter is None:
        yield
        return
    change: Tensor | None = None
    begun = warned = False

    def before_call(
        module: nn.Module, args: tuple[Any, ...], call: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        nonlocal change, warned
        if begun or warned:
            return None
        noise = call["hidden_states"]
        try:
            change = moved(noise[:1], adapter) - noise[:1].float()
        except AdapterError as error:
            warned = True
            warnings.warn(f"{error} It was left out.", stacklevel=2)
            return None
        return args, call | {"hidden_states": (noise + change).to(noise.dtype)}

    def before_step(latents: Tensor) -> Tensor:
        nonlocal begun
        if begun or change is None:
            return latents
        begun = True
        return (latents + change).to(latents.dtype)

    with backbone.latents_moved(before_step):
        hook = backbone.transformer.register_forward_pre_hook(before_call, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()


def first_call(
    backbone: Backbone,
    prompt: str,
    *,
    seed: int,
    steps: int,
    num_frames: int,
    height: int,
    width: int,
) -> tuple[dict[str, Any], int]:
    """What the denoiser would first be called with for this seed's noise, and the batch row of the prompt."""
    found: list[tuple[dict[str, Any], int]] = []

    def take(module: nn.Module, args: tuple[Any, ...], call: dict[str, Any]) -> None:
        rows = backbone.conditional_rows(prompt, call["encoder_hidden_states"])
        if rows:
            # Cloned: hosts sample in inference mode, and its tensors take no gradient.
            with torch.inference_mode(False):
                found.append(
                    ({k: v.clone() if isinstance(v, Tensor) else v for k, v in call.items()}, rows[0])
                )
            raise EarlyExit

    hook = backbone.transformer.register_forward_pre_hook(take, with_kwargs=True)
    try:
        backbone.sample(
            prompt,
            negative_prompt="",
            num_frames=num_frames,
            height=height,
            width=width,
            steps=steps,
            guidance_scale=4.0,
            generator=torch.Generator("cpu").manual_seed(seed),
            on_step=lambda step: None,
        )
    except EarlyExit:
        return found[0]
    finally:
        hook.remove()
    raise TTOMError(f"The denoiser was never called with the prompt {prompt!r}.")


def learn_shift(
    backbone: Backbone,
    lessons: Sequence[Lesson],
    settings: TTOSettings,
    how: ShiftSettings,
    *,
    steps: int = 20,
    num_frames: int = 21,
    height: int = 64,
    width: int = 64,
    on_progress: Callable[[int, int, float], None] | None = None,
) -> tuple[Adapter, list[float]]:
    """Learn one shift for all these prompts and layouts, and the loss of every iteration.

    It lowers the alignment loss of `settings` at the first denoising step, mean over noises that are drawn
    anew for every prompt in turn (TTOM eq. 2 with the noise's shift in the place of the adapter).
    on_progress(done, total, loss) may raise to interrupt.
    """
    if not lessons:
        raise TTOMError("There is nothing to learn a shift from; give at least one prompt and its layout.")
    insist_on_layers(settings.layers, backbone)
    backbone.check_trainable(backbone.sigmas(steps)[:1])
    size = {"num_frames": num_frames, "height": height, "width": width}
    grid = backbone.token_grid(**size)
    pairs: list[nn.Parameter] = []
    optimizer: torch.optim.Optimizer | None = None
    losses: list[float] = []

    def shift() -> Tensor:
        a, b = pairs
        whole = b @ a
        rms = whole.square().mean().sqrt()
        return whole * (how.size / rms).clamp(max=1) if rms > 0 else whole

    with frozen(backbone.transformer):
        for iteration in range(how.iterations):
            loss = torch.zeros(())
            for sample in range(iteration * how.batch, (iteration + 1) * how.batch):
                prompt, layout = lessons[sample % len(lessons)]
                call, row = first_call(backbone, prompt, seed=how.seed + sample, steps=steps, **size)
                noise = call["hidden_states"][row : row + 1].float()
                if not pairs:
                    pairs = _pair(noise, how)
                    optimizer = torch.optim.Adam(pairs, lr=how.learning_rate, betas=(0.9, 0.99))
                masks = soft_masks(layout, grid, settings.mask_kind, settings.softness)
                tokens = list(backbone.phrase_tokens(prompt, masks.phrases).values())
                with torch.inference_mode(False), torch.enable_grad():
                    start = _moved(noise, shift()).to(call["hidden_states"].dtype)
                    maps = backbone.maps(
                        call | {"hidden_states": start.expand_as(call["hidden_states"])},
                        [row],
                        tokens,
                        settings.layers,
                        joint_map=settings.joint_map,
                    )
                    values = masks.values.to(start.device)
                    each = alignment_loss(maps, values, settings.objective, settings.normalize_over)
                    (each / how.batch).backward()
                loss += each.detach().cpu() / how.batch
            insist_finite("shift's loss", float(loss), 0, "learning rate")
            assert optimizer is not None
            fade = (1 + math.cos(math.pi * iteration / how.iterations)) / 2
            optimizer.param_groups[0]["lr"] = how.learning_rate * (0.05 + 0.95 * fade)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(float(loss))
            if on_progress is not None:
                on_progress(iteration + 1, how.iterations, losses[-1])
    return _adapter(shift().detach(), how.rank, backbone.fingerprint), losses


def _pair(noise: Tensor, how: ShiftSettings) -> list[nn.Parameter]:
    """A [rank, h·w], drawn, and B [C·F, rank], zero: their product moves nothing yet."""
    columns = math.prod(noise.shape[-2:])
    rows = noise.numel() // columns
    drawn = torch.randn(how.rank, columns, generator=torch.Generator("cpu").manual_seed(how.seed))
    a, b = drawn / math.sqrt(columns), torch.zeros(rows, how.rank)
    return [nn.Parameter(x.to(noise.device)) for x in (a, b)]


def _adapter(shift: Tensor, rank: int, fingerprint: str) -> Adapter:
    """The shift [C·F, h·w] as an adapter, its factors balanced."""
    u, s, vh = torch.linalg.svd(shift.double().cpu(), full_matrices=False)
    rank = min(rank, len(s))
    root = s[:rank].sqrt()
    a, b = root[:, None] * vh[:rank], u[:, :rank] * root
    return Adapter({NAME: (a.float(), b.float())}, rank, float(rank), fingerprint)
