"""Test-time optimisation: during the first denoising steps a small adapter learns the layout (TTOM 3.2).

The sampling loop stays the host's own. `TTO` hooks the denoiser's call of a step; before the conditional
call it optimises the adapter on exactly that call's latents, timestep and conditioning, then lets the
call run with the adapter in place.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from .adapter import Adapter, AttachedAdapter, attach, init_adapter
from .attention import JointMap, PrefixCache
from .backbones.base import Adaptable, Denoiser, Movable, Optimisable, Shareable
from .errors import TTOMError
from .masks import SoftMasks
from .objectives import alignment_loss

SHORT = 3  # fewer optimised steps than this gets a warning: the layout forms in the first few


class LatentSettings(BaseModel):
    """Every setting of moving the latents themselves, beside the adapter or instead of it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    energy: Literal["alignment", "lvd"] = Field(
        "alignment", description="what the latents lower: the adapter's loss, or LVD's energy and hard boxes"
    )
    top_share: float = Field(0.75, gt=0, le=1, description="LVD: the share of a box's tokens that counts")
    foreground_weight: float = Field(1.0, ge=0, description="LVD: attention inside the boxes")
    background_weight: float = Field(4.0, ge=0, description="LVD: attention outside them")
    center_weight: float = Field(0.0, ge=0, description="LVD: centre of mass, position and velocity")
    update: Literal["normalized", "sigma_scaled"] = Field(
        "normalized", description="z − step·g/rms(g), or LVD's z − step·σ·g"
    )
    step_size: float = Field(gt=0, description="normalized: the rms change of an iteration")
    iterations: int = Field(5, ge=0, description="per denoising step; 0 leaves the latents alone")
    sigma_start: float = Field(1.0, ge=0, le=1, description="move the latents at noise levels from here…")
    sigma_end: float = Field(0.91, ge=0, le=1, description="…down to here")
    stop_loss: float | None = Field(None, description="end a step's iterations below this; LVD's per head")
    keep_on_shell: Literal["off", "norm", "channels"] = Field(
        "off", description="keep the norm, or each frame's mean and deviation in every channel"
    )
    max_change: float | None = Field(None, gt=0, description="trust region: the most a step moves, rms")
    candidates: int = Field(1, ge=1, le=64, description="initial noises, of which the best is used")


class TTOSettings(BaseModel):
    """Every setting of the optimisation; presets are values of this and nothing else."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: tuple[int, ...] = Field(min_length=1, description="loss layers, counted from 0")
    rank: int = Field(32, ge=1, le=512)
    alpha: float = Field(32.0, gt=0, description="LoRA scale is alpha/rank")
    learning_rate: float = Field(1e-4, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    iterations: int = Field(8, ge=0, description="per optimised step; 0 leaves the adapter out")
    sigma_start: float = Field(1.0, ge=0, le=1, description="optimise steps at noise levels from here…")
    sigma_end: float = Field(0.9, ge=0, le=1, description="…down to here")
    adapter_until_sigma: float = Field(0.0, ge=0, le=1, description="adapter off below this noise level")
    guidance_until_sigma: float = Field(
        0.0,
        ge=0,
        le=1,
        description="no guidance below this noise level: truer shapes, steps at half the cost",
    )
    stop_loss: float | None = Field(None, description="end a step's iterations below this loss")
    objective: Literal["jsd", "bce", "center_of_mass"] = "jsd"
    normalize_over: Literal["frame", "volume"] = "frame"
    mask_kind: Literal["gaussian", "blurred_box", "hard_box"] = "gaussian"
    softness: float = Field(0.25, gt=0, description="Gaussian σ as a share of the box side")
    scope: Literal["reachable", "selected", "maps", "features"] = Field(
        "reachable",
        description="adapt the text's attentions that the loss depends on, those of the loss layers, their "
        "queries and keys, or all that the loss depends on but them",
    )
    joint_map: JointMap = Field(
        "video_to_text", description="CogVideoX: what a map is; or text_to_video, or renormalized over text"
    )
    lora_seed: int = 0
    freeze_a: bool = Field(False, description="learn B alone, A staying as it was drawn")
    reset_optimizer: bool = Field(False, description="forget AdamW's moments before every denoising step")
    prefix_cache: bool = True
    early_exit: bool = True
    checkpointing: bool = Field(False, description="compute activations anew; done where memory is short")
    resident_blocks: bool = Field(
        False, description="blocks behind the deepest loss layer wait off the device; needs early_exit"
    )
    latents: LatentSettings | None = Field(None, description="move the latents too")


def sigma_of_step(step: int, steps: int, shift: float) -> float:
    """Noise level at a step of a flow-matching schedule with this shift.

    The paper's "first 5 of 50 steps" is a range of noise levels; copied as a count it would be another
    range on any other schedule.
    """
    u = 1 - step / steps
    return shift * u / (1 + (shift - 1) * u)


def _first_steps(count: int, steps: int) -> float:
    """The noise level that the first `count` steps are above, at shift 3 (Wan2.1 at 480p).

    Halfway to the next step's: schedulers differ in the third digit, and one rounds its timesteps.
    """
    return round((sigma_of_step(count - 1, steps, 3.0) + sigma_of_step(count, steps, 3.0)) / 2, 4)


_FIFTH_OF_50, _TENTH_OF_40 = _first_steps(5, 50), _first_steps(10, 40)

PRESETS: dict[str, TTOSettings] = {
    "paper": TTOSettings(layers=(3,), learning_rate=1e-4, sigma_end=_FIFTH_OF_50),
    "released": TTOSettings(
        layers=(3,),
        learning_rate=1e-3,
        sigma_end=_FIFTH_OF_50,
        adapter_until_sigma=_FIFTH_OF_50,
        stop_loss=0.03,
    ),
    "demo": TTOSettings(
        layers=(0, 1, 2, 3, 4, 5, 6),
        rank=8,
        alpha=8.0,
        learning_rate=2e-3,
        sigma_end=0.85,
        adapter_until_sigma=0.85,
        stop_loss=0.03,
        normalize_over="volume",
        scope="features",  # an adapter on the attentions is quick to move the maps without the objects
    ),
}
# The rivals that move latents, with the demo preset's layers and loss, so that the method alone differs.
PRESETS |= {
    name: PRESETS["demo"].model_copy(update=changes)
    for name, changes in {
        "lvd": {
            "iterations": 0,
            "mask_kind": "hard_box",
            "latents": LatentSettings(
                energy="lvd",
                center_weight=0.03,
                update="sigma_scaled",
                step_size=5.0,
                sigma_end=_TENTH_OF_40,
                stop_loss=0.75,
            ),
        },
        "latent": {"iterations": 0, "latents": LatentSettings(step_size=0.012, sigma_end=0.91)},
        "noise": {
            "iterations": 0,
            "latents": LatentSettings(
                step_size=0.007, iterations=25, sigma_end=0.998, keep_on_shell="channels"
            ),
        },
        "best": {
            "learning_rate": 4e-3,
            "weight_decay": 5.0,
            "scope": "maps",
            "stop_loss": 0.1,
            "guidance_until_sigma": 0.85,
            "latents": LatentSettings(step_size=0.012, iterations=3, sigma_end=0.91, max_change=0.1),
        },
    }.items()
}
# On the CogVideoX sibling guidance to the end composes better (benchmarks/evidence.py cogvideox).
PRESETS |= {
    "best_cogvideox": PRESETS["best"].model_copy(
        update={
            "guidance_until_sigma": 0.0,
            "latents": LatentSettings(step_size=0.012, sigma_end=0.91, max_change=0.1),
        }
    )
}
# The adapter alone there, whose maps are read from the attention that moves its features.
PRESETS |= {"demo_cogvideox": PRESETS["best_cogvideox"].model_copy(update={"latents": None})}
# From a memory (`scenes.share`) a quarter of the iterations, each twice as large, composes nearly as well.
PRESETS |= {"demo_fast": PRESETS["demo"].model_copy(update={"iterations": 2, "learning_rate": 4e-3})}


Moments = dict[int, dict[str, Any]]  # AdamW's state, by the parameter's number


class TraceRow(NamedTuple):
    """One iteration: which step, at which noise level, and the loss before its update."""

    step: int
    sigma: float
    iteration: int
    loss: float


class Trace:
    """What happened: a row an iteration and, on request, the phrases' maps [τ, h, w] before and after.

    `rows` are the adapter's iterations, `latent_rows` those that moved the latents; LVD's losses are per
    head and frame. `curve` is the one of them that tells the run's loss, `first_loss` and `last_loss` its
    ends, None where nothing was optimised. `notes` are warnings, a sentence each, for hosts that show them
    beside the video.
    """

    def __init__(self) -> None:
        self.rows: list[TraceRow] = []
        self.latent_rows: list[TraceRow] = []
        self.notes: list[str] = []
        self.maps_before: dict[str, np.ndarray] | None = None
        self.maps_after: dict[str, np.ndarray] | None = None

    @property
    def curve(self) -> list[TraceRow]:
        """The adapter's iterations, or the latents' where they alone were moved.

        Never both in one: the latents may lower another energy.
        """
        return self.rows or self.latent_rows

    @property
    def first_loss(self) -> float | None:
        return self.curve[0].loss if self.curve else None

    @property
    def last_loss(self) -> float | None:
        return self.curve[-1].loss if self.curve else None


class TTO:
    """Optimise while a pipeline samples: `with TTO(...) as tto: pipeline(...)`, once.

    On leaving the block, by whatever road, the model is as it was: no hooks, no adapter, every
    `requires_grad` flag back. No random number is drawn from any global generator. `adapter` and `moments`
    are what an earlier run ended with, where this one goes on from it.
    """

    def __init__(
        self,
        backbone: Optimisable,
        masks: SoftMasks,
        prompt: str,
        settings: TTOSettings,
        *,
        steps: int,
        adapter: Adapter | None = None,
        moments: Moments | None = None,
        on_progress: Callable[[int, int, float | None], None] | None = None,
        keep_maps: bool = False,
    ) -> None:
        insist_on_layers(settings.layers, backbone)
        if settings.resident_blocks and not (settings.early_exit and isinstance(backbone, Movable)):
            raise TTOMError(
                "resident_blocks needs early_exit and a model whose blocks TTOM may move itself; turn it off."
            )
        if adapter is not None and adapter.fingerprint != backbone.fingerprint:
            raise TTOMError(
                f"The adapter was made with {adapter.fingerprint}, this model is "
                f"{backbone.fingerprint}; use the model it was made with."
            )
        self.backbone, self.masks, self.prompt, self.settings = backbone, masks, prompt, settings
        self.on_progress, self.keep_maps, self.trace = on_progress, keep_maps, Trace()
        self.tokens = list(backbone.phrase_tokens(prompt, masks.phrases).values())
        sigmas = backbone.sigmas(steps)
        self.planned_iterations = self._plan(sigmas)
        backbone.check_trainable([s for s, n in zip(sigmas, self.planned_iterations, strict=True) if n])
        modules = backbone.adapter_modules(settings.layers, settings.scope)
        self.initial = adapter or init_adapter(
            modules, settings.rank, settings.alpha, settings.lora_seed, backbone.fingerprint
        )
        self._reachable = {
            name
            for scope in ("reachable", "features")
            for name in backbone.adapter_modules(settings.layers, scope)
        }
        blocks = [block_of(name) for name in self.initial.weights]
        deepest = max(settings.layers)
        if min(blocks) > deepest:
            raise TTOMError(
                f"The adapter begins at layer {min(blocks)}, which a loss at layer {deepest} does not "
                "reach; choose a deeper loss layer or another adapter."
            )
        self._first_block = min(*blocks, *settings.layers)
        self._stack = ExitStack()
        self._attached: AttachedAdapter | None = None
        self._optimizer: torch.optim.Optimizer | None = None
        self.moments = moments
        self._snapshot: Adapter | None = None
        self._sigma: float | None = None  # of the step that is running
        self._step = -1
        self._found = False  # its conditional call

    @property
    def adapter(self) -> Adapter:
        """The adapter as optimised so far, on the CPU."""
        if self._attached is not None:
            return self._attached.snapshot()
        return self._snapshot or self.initial

    def _plan(self, sigmas: list[float]) -> list[int]:
        """The most iterations of each denoising step; early stops make them fewer."""
        low, high = self.settings.sigma_end, self.settings.sigma_start
        count = sum(self._wanted(sigma) for sigma in sigmas)
        if self.settings.iterations and count == 0:
            raise TTOMError(
                f"None of the {len(sigmas)} denoising steps has a noise level between {low} and {high}, so "
                "there is nothing to optimise in; use more steps or lower sigma_end."
            )
        if self.settings.iterations and count < SHORT:
            note = (
                f"Only {count} of {len(sigmas)} denoising steps lie in the noise levels {low} to {high}; the "
                "layout will be followed less closely than with a longer schedule."
            )
            self.trace.notes.append(note)
            warnings.warn(note, stacklevel=3)
        return [self.settings.iterations * self._wanted(sigma) for sigma in sigmas]

    def _wanted(self, sigma: float) -> bool:
        return is_between(sigma, self.settings.sigma_start, self.settings.sigma_end)

    # In and out -----------------------------------------------------------------------------------

    def __enter__(self) -> TTO:
        transformer = self.backbone.transformer
        with ExitStack() as stack:
            stack.enter_context(frozen(transformer))
            self._attached = stack.enter_context(attach(transformer, self.initial))
            hook = transformer.register_forward_pre_hook(self._before_call, with_kwargs=True)
            stack.callback(hook.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        try:
            if self._attached is not None:
                self._snapshot = self._attached.snapshot()
            if self._optimizer is not None:
                self.moments = self._optimizer.state_dict()["state"]
        finally:
            self._attached = self._optimizer = None
            self._stack.close()
        if error[0] is None:
            self._check_found()

    # The denoiser's call --------------------------------------------------------------------------

    def _before_call(self, module: nn.Module, args: tuple[Any, ...], call: dict[str, Any]) -> None:
        assert self._attached is not None
        sigma = self.backbone.sigma_of(call["timestep"])
        if sigma != self._sigma:
            self._check_found()
            self._step, self._sigma, self._found = self._step + 1, sigma, False
        rows = self.backbone.conditional_rows(self.prompt, call["encoder_hidden_states"])
        self._found = self._found or bool(rows)
        # An untouched adapter adds exactly nothing: skip even the sum of zeros.
        used = bool(self.trace.rows) or any(b.any() for _, b in self.initial.weights.values())
        self._attached.scale = float(sigma >= self.settings.adapter_until_sigma - 1e-4 and used)
        if rows and self.settings.iterations and self._wanted(sigma):
            if len(rows) > 1:
                raise TTOMError(f"TTOM optimises one video at a time, not {len(rows)}.")
            self._attached.scale = 1.0
            # Hosts sample under no_grad or inference_mode; both end here, for these lines only.
            with torch.inference_mode(False), torch.enable_grad():
                tensors = {k: v.clone() if isinstance(v, Tensor) else v for k, v in call.items()}
                self._optimise(tensors, rows, sigma)
            self._attached.scale = float(sigma >= self.settings.adapter_until_sigma - 1e-4)

    def _check_found(self) -> None:
        """TTOMError if the step that ran should have been optimised and its prompt was never seen."""
        if self._sigma is None or self._found or not self.settings.iterations:
            return
        if self._wanted(self._sigma):
            raise TTOMError(
                f"The denoiser was not called with the prompt {self.prompt!r}, so nothing was optimised; "
                "give the pipeline the same prompt and a max_sequence_length of "
                f"{self.backbone.max_text_tokens}."
            )

    def _optimise(self, call: dict[str, Any], rows: list[int], sigma: float) -> None:
        """All iterations of one denoising step."""
        with ExitStack() as stack:
            if self.settings.resident_blocks and isinstance(self.backbone, Movable):
                stack.enter_context(self.backbone.resident(max(self.settings.layers)))
            self._iterate(call, rows, sigma)

    def _iterate(self, call: dict[str, Any], rows: list[int], sigma: float) -> None:
        assert self._attached is not None
        settings = self.settings
        prefix = PrefixCache(self._first_block) if settings.prefix_cache else None
        masks = self.masks.values.to(call["hidden_states"].device)
        parameters = self._trained()
        if self._optimizer is None and isinstance(self.backbone, Shareable):
            self.backbone.insist_on_same("layouts", masks)
            for parameter in parameters:
                self.backbone.insist_on_same("adapters", parameter)
        if self._optimizer is None or settings.reset_optimizer:
            first = self._optimizer is None
            self._optimizer = torch.optim.AdamW(
                parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
            )
            if first and self.moments:
                fresh = self._optimizer.state_dict()
                # A copy: AdamW changes its moments in place.
                self._optimizer.load_state_dict(fresh | {"state": copy.deepcopy(self.moments)})

        def maps() -> dict[int, Tensor]:
            return self.backbone.maps(
                call,
                rows,
                self.tokens,
                settings.layers,
                prefix=prefix,
                early_exit=settings.early_exit,
                checkpointing=settings.checkpointing,
                joint_map=settings.joint_map,
            )

        for iteration in range(settings.iterations):
            layers = maps()
            insist_on_grid(masks, next(iter(layers.values())).shape)
            loss = alignment_loss(layers, masks, settings.objective, settings.normalize_over)
            value = agreed(self.backbone, loss.item())
            insist_finite("alignment loss", value, self._step, "learning rate")
            if self.keep_maps and self.trace.maps_before is None:
                self.trace.maps_before = mean_maps(layers, self.masks.phrases)
            self.trace.rows.append(TraceRow(self._step, sigma, iteration, value))
            if settings.stop_loss is not None and value < settings.stop_loss:
                break
            gradients: tuple[Tensor | None, ...] = ()
            if loss.requires_grad:
                gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
            self._insist_on_gradients(gradients)
            if isinstance(self.backbone, Shareable):
                gradients = self.backbone.summed(gradients)
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            self._optimizer.step()
            if self.on_progress is not None:
                self.on_progress(self._step, iteration, value)
        # A gradient that is no number shows in the next loss, but the last one has none: look once a step.
        total = float(sum(p.detach().sum() for p in parameters))
        insist_finite("adapter's sum", total, self._step, "learning rate")
        if self.keep_maps:
            with torch.no_grad():
                self.trace.maps_after = mean_maps(maps(), self.masks.phrases)

    def _insist_on_gradients(self, gradients: Sequence[Tensor | None]) -> None:
        """TTOMError if the loss did not reach everything that it should; an adapter may be deeper than it."""
        assert self._attached is not None
        each = 1 if self.settings.freeze_a else 2
        names = [name for name in self._attached.pairs for _ in range(each)]
        lost = [name for name, gradient in zip(names, gradients, strict=False) if gradient is None]
        if not gradients or len(lost) == len(names):
            raise TTOMError(
                "No adapter parameter received a gradient, so the optimisation would do nothing; "
                "turn off offloading or attention backends that have no backward pass."
            )
        if lost := [name for name in lost if name in self._reachable]:
            raise TTOMError(
                f"The adapter on {lost[0]} received no gradient, so part of it would not learn; turn off "
                "offloading or attention backends that have no backward pass."
            )

    def _trained(self) -> list[nn.Parameter]:
        """What the optimiser changes: A and B of every module, or B alone."""
        assert self._attached is not None
        if self.settings.freeze_a:
            return [b for _, b in self._attached.pairs.values()]
        return self._attached.parameters()


def agreed(backbone: Optimisable, value: float) -> float:
    """A loss as all devices that share the model have it, so that none of them stops alone."""
    return backbone.agreed(value) if isinstance(backbone, Shareable) else value


def is_between(sigma: float, start: float, end: float) -> bool:
    """Whether a noise level lies in a range, with a hair of slack: schedulers store them in fp32."""
    return end - 1e-4 <= sigma <= start + 1e-4


@contextmanager
def frozen(module: Denoiser) -> Iterator[None]:
    """No parameter of a module asks for a gradient for the length of a `with` block."""
    parameters = [p for p in module.parameters() if p.requires_grad]

    def flag(value: bool) -> None:
        with torch.inference_mode():  # weights that were loaded in it take no flag outside
            for parameter in parameters:
                parameter.requires_grad_(value)

    flag(False)
    try:
        yield
    finally:
        flag(True)


def insist_on_layers(layers: tuple[int, ...], backbone: Adaptable) -> None:
    """TTOMError for a loss layer that the model does not have."""
    for layer in layers:
        if not 0 <= layer < backbone.num_layers:
            raise TTOMError(
                f"Layer {layer} does not exist; this model has layers 0 to {backbone.num_layers - 1}."
            )


def insist_on_grid(masks: Tensor, grid: torch.Size) -> None:
    """TTOMError when the masks are of another size than the maps [N, τ, h, w]."""
    if grid != masks.shape:
        raise TTOMError(
            f"The masks are {_by(masks.shape)} (phrases, frames, rows, columns), the attention maps "
            f"{_by(grid)}; draw the masks for the clip's own size."
        )


def insist_finite(what: str, value: float, step: int, cause: str) -> None:
    """TTOMError naming the setting to lower when a value is no number."""
    if not math.isfinite(value):
        raise TTOMError(
            f"The {what} became {value} at step {step + 1}; the run was stopped and the model "
            f"restored: lower the {cause}."
        )


def mean_maps(layers: dict[int, Tensor], phrases: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Each phrase's map [τ, h, w], mean over the layers."""
    mean = torch.stack(list(layers.values())).mean(0).detach().float().cpu().numpy()
    return dict(zip(phrases, mean, strict=True))


def block_of(module_name: str) -> int:
    """The block number in a module's dotted name."""
    return next(int(part) for part in module_name.split(".") if part.isdigit())


def _by(shape: torch.Size) -> str:
    return "×".join(map(str, shape))
