"""Attention-layout relevance: how well each layer's maps show where the objects are (TTOM 3.2, Fig. 3).

A plain clip is sampled while the maps of its phrases are collected at late denoising steps. A grounding
then says where the objects really are in the clip, and every layer and head is scored by soft IoU. The
layers that see the objects best are recommended as loss layers of the optimisation.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from .backbones.base import Backbone
from .errors import TTOMError
from .generate import Progress, generate
from .layout import frame_times

COUNT = 2  # layers that are recommended
MAX_BYTES = 4_000_000


class RelevanceError(TTOMError):
    """A relevance file is missing, malformed or of another model."""


class Grounding(Protocol):
    """Where the things that phrases name are in a clip: the truth that maps are held against."""

    name: str

    def locate(self, frames: np.ndarray, phrases: Sequence[str]) -> np.ndarray:
        """Masks bool [N, F, H, W] for frames uint8 [F, H, W, 3]; empty where a phrase's object is not.

        TTOMError for a phrase that this grounding cannot look for.
        """


class _Value(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class ProbeSettings(_Value):
    """How the probed clips are sampled, and at which noise levels their maps are taken."""

    # The released code takes steps 42 to 50 of 50, which with Wan's shift of 3 begin at σ 0.364.
    sigma_start: float = Field(0.37, ge=0, le=1, description="take maps at noise levels from here…")
    sigma_end: float = Field(0.0, ge=0, le=1, description="…down to here")
    steps: int = Field(20, ge=1, le=1000)
    guidance_scale: float = Field(4.0, ge=0)
    negative_prompt: str = ""
    num_frames: int = Field(21, ge=1)
    height: int = Field(64, ge=1)
    width: int = Field(64, ge=1)

    @classmethod
    def checked(cls, **values: Any) -> ProbeSettings:
        """These settings; TTOMError with the first that is wrong."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise TTOMError(f"Setting {'.'.join(map(str, first['loc']))}: {first['msg']}.") from None

    def wants(self, sigma: float) -> bool:
        """Whether maps are taken at this noise level."""
        # A hair of slack: schedulers store sigmas in fp32.
        return self.sigma_end - 1e-4 <= sigma <= self.sigma_start + 1e-4


Share = Annotated[float, Field(ge=0, le=1)]


class Relevance(_Value):
    """Mean soft IoU per layer [L], of its head-averaged map, and per layer and head [L, H].

    `n` counts the objects (a phrase in a clip) that the grounding found; with 0 all scores are 0.
    """

    version: Literal[1] = 1
    fingerprint: str = Field(min_length=1, max_length=500)
    layers: tuple[Share, ...] = Field(min_length=1, max_length=1000)
    heads: tuple[tuple[Share, ...], ...] = Field(max_length=1000)
    n: int = Field(ge=0)
    grounding: str = Field(max_length=500)
    settings: ProbeSettings

    @model_validator(mode="after")
    def _rectangular(self) -> Relevance:
        if len(self.heads) != len(self.layers) or len(set(map(len, self.heads))) != 1:
            raise ValueError(f"heads must be {len(self.layers)} rows of one length, one a layer")
        return self

    @classmethod
    def pooled(cls, parts: Sequence[Relevance]) -> Relevance:
        """The mean over all objects of several probes of one model with the same settings."""
        if not parts:
            raise RelevanceError("Nothing was probed; give at least one prompt.")
        made = {(p.fingerprint, p.grounding, p.settings, len(p.layers), len(p.heads[0])) for p in parts}
        if len(made) > 1:
            raise RelevanceError("Probes of different models or settings have no common mean; probe again.")
        n = [part.n for part in parts]

        def mean(scores: list[Any]) -> Any:
            return np.average(scores, axis=0, weights=n if any(n) else None).clip(0, 1).tolist()

        layers, heads = mean([p.layers for p in parts]), mean([p.heads for p in parts])
        pooled = {"layers": tuple(layers), "heads": tuple(map(tuple, heads)), "n": sum(n)}
        return parts[0].model_copy(update=pooled)

    def to_json(self) -> str:
        return self.model_dump_json(indent=1)

    @classmethod
    def from_json(cls, text: str | bytes) -> Relevance:
        """Read a relevance; RelevanceError with the first thing that is wrong."""
        if len(text) > MAX_BYTES:
            raise RelevanceError(f"The relevance has {len(text)} bytes; at most {MAX_BYTES} are read.")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "the file"
            raise RelevanceError(f"This is no relevance of a probe ({place}: {first['msg']}).") from None

    def save(self, path: Path) -> None:
        """Write JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        part.write_text(self.to_json() + "\n", encoding="utf-8")
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Relevance:
        """Read a relevance file; RelevanceError names the file and what is wrong with it."""
        try:
            if path.stat().st_size > MAX_BYTES:
                raise RelevanceError(f"It is larger than {MAX_BYTES} bytes.")
            return cls.from_json(path.read_bytes())
        except OSError as error:
            raise RelevanceError(f"The relevance file {path} cannot be read: {error.strerror}.") from error
        except RelevanceError as error:
            raise RelevanceError(f"{path}: {error}") from None


# Measuring ----------------------------------------------------------------------------------------


def soft_iou(maps: Tensor, masks: Tensor) -> Tensor:
    """ΣAM / Σ(A + M − AM) of each frame, A the map min-max normalised: [..., h, w] → [...].

    maps and masks [..., h, w] broadcast; masks lie in 0…1. A map without any contrast scores 0.
    """
    low, high = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    a = torch.where(high > low, (maps - low) / (high - low), 0.0)
    both = (a * masks).sum((-2, -1))
    either = (a + masks).sum((-2, -1)) - both
    return torch.where(either > 0, both / either, 0.0).clamp(0, 1)


class AttentionProbe:
    """Collect the maps while a pipeline samples: `with AttentionProbe(...) as probe: pipeline(...)`, once.

    Before the conditional call of a step in the settings' noise levels, the maps of the same latents,
    timestep and conditioning are computed apart; the host's own call runs untouched, so its result is
    the same to the bit. The hook is gone after the block, come what may.
    """

    def __init__(
        self, backbone: Backbone, prompt: str, phrases: Sequence[str], settings: ProbeSettings
    ) -> None:
        self.backbone, self.prompt, self.settings = backbone, prompt, settings
        self.tokens = list(backbone.phrase_tokens(prompt, phrases).values())
        if not self.tokens:
            raise TTOMError("A probe needs the phrase of at least one object.")
        if not any(settings.wants(sigma) for sigma in backbone.sigmas(settings.steps)):
            raise TTOMError(
                f"None of the {settings.steps} denoising steps has a noise level between "
                f"{settings.sigma_end} and {settings.sigma_start}; use more steps or a wider range."
            )
        self._layers = range(backbone.num_layers)
        self._sums: list[Tensor] = []
        self._count = 0
        self._stack = ExitStack()

    def __enter__(self) -> AttentionProbe:
        transformer = self.backbone.transformer
        hook = transformer.register_forward_pre_hook(self._before_call, with_kwargs=True)
        self._stack.callback(hook.remove)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def maps(self) -> list[Tensor]:
        """Each layer's maps [heads, N, τ, h, w] on the CPU, mean over the probed steps."""
        if not self._count:
            raise TTOMError(
                f"The denoiser was not called with the prompt {self.prompt!r}, so there is nothing to see; "
                "give the pipeline the same prompt and a max_sequence_length of "
                f"{self.backbone.max_text_tokens}."
            )
        return [total / self._count for total in self._sums]

    def _before_call(self, module: nn.Module, args: tuple[Any, ...], call: dict[str, Any]) -> None:
        if not self.settings.wants(self.backbone.sigma_of(call["timestep"])):
            return
        rows = self.backbone.conditional_rows(self.prompt, call["encoder_hidden_states"])
        if not rows:
            return
        if len(rows) > 1:
            raise TTOMError(f"The probe looks at one video at a time, not {len(rows)}.")
        with torch.no_grad():
            maps = self.backbone.maps(call, rows, self.tokens, self._layers, keep_heads=True)
        seen = [maps[layer].float().cpu() for layer in self._layers]
        self._sums = [a + b for a, b in zip(self._sums, seen, strict=True)] if self._sums else seen
        self._count += 1


@dataclass(frozen=True)
class ProbedClip:
    """A probed clip: frames uint8 [F, H, W, 3], each layer's maps and where the objects really are.

    maps [L, N, τ, h, w] are means over heads and steps, masks [N, τ, h, w] the grounding's on the tokens.
    """

    frames: np.ndarray
    phrases: tuple[str, ...]
    maps: np.ndarray
    masks: np.ndarray
    relevance: Relevance


def probe_clip(
    backbone: Backbone,
    prompt: str,
    phrases: Sequence[str],
    grounding: Grounding,
    settings: ProbeSettings | None = None,
    *,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
) -> ProbedClip:
    """Sample a plain clip of the prompt and score every layer and head on these phrases of it.

    Means are over the latent frames in which the grounding finds the object, then over objects.
    """
    settings = settings or ProbeSettings()
    with AttentionProbe(backbone, prompt, phrases, settings) as probe:
        made = generate(
            backbone,
            prompt,
            seed=seed,
            on_progress=on_progress,
            **settings.model_dump(exclude={"sigma_start", "sigma_end"}),
        )
    maps = probe.maps
    _, _, count, height, width = maps[0].shape
    # Latent frame k is at time k/(τ−1), as it is for soft masks.
    moments = (frame_times(count) * (len(made.frames) - 1)).round().astype(int)
    found = torch.from_numpy(grounding.locate(made.frames[moments], phrases)).float()
    masks = F.interpolate(found, (height, width), mode="area")
    visible = masks.flatten(2).any(-1)  # [N, τ]
    objects = visible.any(-1)

    def mean(iou: Tensor) -> Tensor:
        """[..., N, τ] → [...]"""
        if not objects.any():
            return iou.new_zeros(iou.shape[:-2])
        per_object = (iou * visible).sum(-1) / visible.sum(-1).clamp(min=1)
        return per_object[..., objects].mean(-1)

    layers = [mean(soft_iou(layer.mean(0), masks)).item() for layer in maps]
    heads = [mean(soft_iou(layer, masks)).tolist() for layer in maps]
    relevance = Relevance(
        fingerprint=backbone.fingerprint,
        layers=tuple(layers),
        heads=tuple(map(tuple, heads)),
        n=int(objects.sum()),
        grounding=grounding.name,
        settings=settings,
    )
    means = torch.stack([layer.mean(0) for layer in maps]).numpy()
    return ProbedClip(made.frames, tuple(phrases), means, masks.numpy(), relevance)


def probe_prompts(
    backbone: Backbone,
    prompts: Sequence[tuple[str, Sequence[str]]],
    grounding: Grounding,
    settings: ProbeSettings,
    folder: Path,
    *,
    seed: int = 0,
    on_progress: Callable[[Progress], None] | None = None,
    on_clip: Callable[[int, ProbedClip], None] | None = None,
) -> Iterator[Relevance]:
    """Probe each (prompt, phrases), its noise being seed + index; finished ones come from `folder`.

    TTOMError for a phrase that the grounding cannot look for, before anything is made.
    """
    for _, phrases in prompts:
        grounding.locate(np.empty((0, settings.height, settings.width, 3), np.uint8), phrases)
    for index, (prompt, phrases) in enumerate(prompts):
        model = backbone.video_fingerprint
        facts = [model, grounding.name, settings.model_dump(), prompt, *phrases, seed + index]
        path = folder / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:16]}.json"
        if path.exists():
            yield Relevance.load(path)
            continue
        clip = probe_clip(
            backbone, prompt, phrases, grounding, settings, seed=seed + index, on_progress=on_progress
        )
        if on_clip:
            on_clip(index, clip)
        clip.relevance.save(path)
        yield clip.relevance


# Recommending -------------------------------------------------------------------------------------


def recommend(relevance: Relevance, count: int = COUNT) -> tuple[int, ...]:
    """The `count` layers that see the objects best, in the model's order; all of a shallower model.

    >>> recommend(Relevance(fingerprint="x", layers=(0.1, 0.4, 0.2), heads=((0,), (0,), (0,)), n=9,
    ...                     grounding="blobs", settings=ProbeSettings()))
    (1, 2)
    """
    if count < 1:
        raise TTOMError(f"At least 1 layer must be recommended, not {count}.")
    if not relevance.n:
        raise RelevanceError(
            "The grounding found none of the objects, so no layer can be recommended; probe more prompts, "
            "or ones that the model draws well."
        )
    best = sorted(range(len(relevance.layers)), key=lambda layer: -relevance.layers[layer])
    return tuple(sorted(best[:count]))


def default_folder() -> Path:
    """Where relevance is kept, one file a model: in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ttom" / "relevance"


def relevance_file(fingerprint: str, folder: Path | None = None) -> Path:
    """Where the relevance of the model with this fingerprint is kept."""
    name = re.sub(r"[^\w.-]", "_", fingerprint)[:200]
    return (folder or default_folder()) / f"{name}.json"


def recommended_layers(
    fingerprint: str, count: int = COUNT, folder: Path | None = None
) -> tuple[int, ...] | None:
    """The layers that a kept probe recommends for this model; None when it was never probed.

    RelevanceError when what is kept is damaged or of another model.
    """
    path = relevance_file(fingerprint, folder)
    if not path.exists():
        return None
    relevance = Relevance.load(path)
    if relevance.fingerprint != fingerprint:
        raise RelevanceError(
            f"{path} is of the model {relevance.fingerprint}, not {fingerprint}; delete it and probe again."
        )
    return recommend(relevance, count)


def chosen_layers(choice: str, fingerprint: str) -> tuple[int, ...]:
    """Loss layers as a user writes them: "1,2", or "probed" for what a probe recommends for this model.

    >>> chosen_layers(" 1, 2", "any")
    (1, 2)
    """
    if choice.strip() == "probed":
        layers = recommended_layers(fingerprint)
        if layers is None:
            raise TTOMError(
                f"The model {fingerprint} was never probed; run `ttom probe` with it, or name its layers."
            )
        return layers
    if not re.fullmatch(r"\s*[0-9]{1,4}\s*(,\s*[0-9]{1,4}\s*)*", choice):
        raise TTOMError(f"{choice!r} names no layers; write numbers from 0 such as 1,2, or probed.")
    return tuple(map(int, choice.split(",")))
