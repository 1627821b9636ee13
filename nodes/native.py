"""TTOM on ComfyUI's own MODEL: the artist's checkpoint, loaders and samplers stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..ttom_core.backbones.native import native_fingerprint, twin
from ..ttom_core.forecast import RESERVE, Blueprint, Clip, NotEnoughMemory, count_iteration, gib
from ..ttom_core.generate import Progress, Reporter
from ..ttom_core.masks import soft_masks
from ..ttom_core.optimize import PRESETS, TTO, TTOSettings, insist_on_layers
from . import compat, host
from .inputs import checked
from .sampling import keep_maps_input, loss_map, sampler_settings, starting_inputs, with_layers
from .types import LayoutMasks, MasksSocket, Solved, SolvedSocket, TraceSocket

if TYPE_CHECKING:
    from ..ttom_core.adapter import Adapter
    from ..ttom_core.memory.recall import Recall

CATEGORY = "TTOM/native"
# Those that move the latents need the sampler's own step, which is ComfyUI's here.
# The host's sampler owns the latents and the guidance.
NATIVE_PRESETS = [
    name for name, preset in PRESETS.items() if preset.latents is None and not preset.guidance_until_sigma
]


class Composition:
    """A MODEL that composes: every run of a sampler on `model` is optimised, `tto` being the last run's."""

    def __init__(
        self,
        model: compat.Model,
        masks: LayoutMasks,
        settings: TTOSettings,
        layers: str,
        adapter: Adapter | None,
        on_progress: Callable[[Progress], None],
        say: Callable[[str], None],
        keep_maps: bool = False,
    ) -> None:
        compat.check_model(model)
        self.model = compat.wrapped(model, self._prepare, self._sample, self._predict)
        self.masks, self.layers, self.adapter = masks, layers.strip(), adapter
        self.asked = self.settings = settings  # as asked for, and as the last run had them
        self.on_progress, self.say, self.keep_maps = on_progress, say, keep_maps
        self.report: Reporter | None = None
        self.tto: TTO | None = None
        self._sigmas: list[float] = []
        self._seen: set[int] = set()  # the steps that were optimised, or had their chance to be

    def _prepare(
        self,
        executor: Callable[..., Any],
        model: compat.Model,
        shape: Sequence[int],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        compat.check_model(model)
        compat.insist_on_one_video(shape)
        self.settings = self.asked
        if self.layers:
            fingerprint = native_fingerprint(compat.weights_of(model))
            self.settings = with_layers(self.asked, self.layers, fingerprint)
        # ComfyUI samples without gradients, and this counts what they take.
        with torch.inference_mode(False), torch.enable_grad():
            self.settings, needed = _fitted(model, shape, self.settings)
        self.say(f"optimising needs {gib(needed)} beside the model")
        return executor(model, compat.with_room(model, shape, needed), *args, **kwargs)

    def _sample(
        self,
        executor: Callable[..., Any],
        guider: Any,
        sigmas: torch.Tensor,
        options: Any,
        callback: Any,
        noise: torch.Tensor,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        self._sigmas, self._seen = [float(sigma) for sigma in sigmas[:-1]], set()
        backbone = compat.native_backbone(guider, self._sigmas)
        self.report = Reporter(len(self._sigmas), self.on_progress)
        with torch.inference_mode(False):
            grid = backbone.token_grid(noise)
            self.tto = TTO(
                backbone,
                soft_masks(self.masks.layout, grid, self.masks.kind, self.masks.softness),
                backbone.prompt.prompt,
                self.settings,
                steps=len(self._sigmas),
                adapter=self.adapter,
                on_progress=self.report.iteration,
                keep_maps=self.keep_maps,
            )
        self.report.plan(self.tto.planned_iterations)
        with self.tto:
            sampled = executor(guider, sigmas, options, callback, noise, *args, **kwargs)
        for note in self.tto.trace.notes:
            self.say(note)
        return sampled

    def _predict(
        self,
        executor: Callable[..., Any],
        latents: torch.Tensor,
        sigma: torch.Tensor,
        model_options: dict[str, Any],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        # Samplers of higher order call the model more than once a step, and between the steps' levels.
        level = float(sigma.flatten()[0]) * (1 - 1e-4)
        step = max((i for i, start in enumerate(self._sigmas) if start >= level), default=0)
        if self.tto is not None and step not in self._seen:
            self._seen.add(step)
            self.tto.backbone.transformer.before_step(latents, sigma, model_options=model_options)
        return executor(latents, sigma, model_options, *args, **kwargs)


def _fitted(model: compat.Model, shape: Sequence[int], settings: TTOSettings) -> tuple[TTOSettings, int]:
    """The settings, with checkpointing only if without it the memory is too little; the bytes they need."""
    device, weights = compat.memory(model)
    needed = _iteration_bytes(model, shape, settings) if settings.iterations else 0
    if needed > (device - weights) * (1 - RESERVE):
        settings = settings.model_copy(update={"checkpointing": True})
        needed = _iteration_bytes(model, shape, settings)
    if needed > device * (1 - RESERVE):  # the weights themselves can wait elsewhere
        raise NotEnoughMemory(
            f"Optimising this video needs {gib(needed)}, and the device has {gib(device)}; make it smaller "
            "or shorter, or take the loss in earlier layers."
        )
    return settings, needed


def _iteration_bytes(model: compat.Model, shape: Sequence[int], settings: TTOSettings) -> int:
    _, _, frames, rows, columns = shape
    dtype = compat.computes_in(model)
    backbone, size = twin(model.model.diffusion_model, dtype, (frames, rows, columns))
    insist_on_layers(settings.layers, backbone)
    blueprint = Blueprint(backbone, None, 0, (), 0, dtype)
    return sum(count_iteration(blueprint, Clip(*size), settings).values())


def _preset() -> io.Input:
    return io.Combo.Input(
        "preset",
        options=NATIVE_PRESETS,
        default="paper",
        tooltip="The settings of the optimisation: as the paper states them, as the authors' code has them, "
        "or tuned for the demo model.",
    )


class LoRASampler(io.ComfyNode):
    """`ttom_core.optimize.TTO`, around a stock sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_LoRASampler",
            display_name="TTO LoRA Sampler (TTOM)",
            category=CATEGORY,
            description=(
                "The stock KSampler for Wan that, during the first denoising steps, optimises a small LoRA "
                "until the objects' attention lies where the masks are. Without masks it is the KSampler."
            ),
            inputs=[
                io.Model.Input("model", tooltip="From any loader: Wan 2.1, or the high-noise Wan 2.2."),
                io.Conditioning.Input("positive", tooltip="From Encode Prompt (TTOM)."),
                io.Conditioning.Input("negative", tooltip="From any text encoder."),
                io.Latent.Input("latent_image", tooltip="One empty video; its size is the video's."),
                MasksSocket.Input("masks", optional=True, tooltip="Leave open for the plain model's video."),
                _preset(),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF,
                    control_after_generate=True,
                    tooltip="The noise, as in the KSampler: with and without masks the same.",
                ),
                io.Int.Input(
                    "steps",
                    default=30,
                    min=1,
                    max=10000,
                    tooltip="Which of them are optimised follows from their noise levels.",
                ),
                io.Float.Input(
                    "cfg",
                    default=6.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="How strongly the video follows the prompt; 1 is no guidance.",
                ),
                io.Combo.Input(
                    "sampler_name", options=compat.SAMPLERS, default="uni_pc", tooltip="As in the KSampler."
                ),
                io.Combo.Input(
                    "scheduler", options=compat.SCHEDULERS, default="simple", tooltip="As in the KSampler."
                ),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1 the first noise levels are left out, in which the layout forms.",
                ),
                *starting_inputs(),
                keep_maps_input(),
            ],
            outputs=[
                io.Latent.Output("latent", display_name="latent", tooltip="For VAE Decode."),
                io.LoraModel.Output(
                    "lora", display_name="lora", tooltip="What was optimised, for Save LoRA."
                ),
                io.LossMap.Output("loss", display_name="loss", tooltip="The loss of every iteration."),
                SolvedSocket.Output("solved", display_name="solved", tooltip="For a memory to keep."),
                TraceSocket.Output("trace", display_name="trace", tooltip="For Attention Preview."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: compat.Model,
        positive: compat.Conditioning,
        negative: compat.Conditioning,
        latent_image: dict[str, Any],
        preset: str,
        seed: int,
        steps: int,
        cfg: float,
        sampler_name: str,
        scheduler: str,
        denoise: float,
        masks: LayoutMasks | None = None,
        recall: Recall | None = None,
        optimise: bool = True,
        layers: str = "",
        keep_maps: bool = False,
    ) -> io.NodeOutput:
        show = host.progress_on(cls.hidden.unique_id)
        made: Composition | None = None
        if masks is not None:
            settings = sampler_settings(preset, masks, optimise)
            adapter = recall.start(settings.iterations) if recall else None
            say = host.text_on(cls.hidden.unique_id)
            made = Composition(model, masks, settings, layers, adapter, show, say, keep_maps)
        plain = Reporter(steps, show)

        def on_step(step: int) -> None:
            report = made.report if made and made.report else plain
            report.step(min(step, report.steps - 1))  # some samplers take more steps than they have levels

        latent = compat.sample(
            made.model if made else model,
            positive,
            negative,
            latent_image,
            seed=seed,
            steps=steps,
            cfg=cfg,
            sampler=sampler_name,
            scheduler=scheduler,
            denoise=denoise,
            on_step=on_step,
        )
        if made is None or made.tto is None:
            return io.NodeOutput(latent, *[host.nothing()] * 4)
        adapter, trace = made.tto.adapter, made.tto.trace
        solved = Solved(made.tto.prompt, made.masks.layout, adapter, trace, made.settings)
        return io.NodeOutput(latent, host.lora_model(adapter), loss_map(trace.rows), solved, trace)


class PatchModel(io.ComfyNode):
    """`ttom_core.optimize.TTO`, in whatever sampler comes after."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_PatchModel",
            display_name="Patch Model (TTOM)",
            category=CATEGORY,
            description=(
                "Makes a MODEL compose in any sampler: KSampler, SamplerCustomAdvanced and others. What it "
                "optimises is forgotten after each run; TTO LoRA Sampler puts it out."
            ),
            inputs=[
                io.Model.Input(
                    "model",
                    tooltip="From any loader: Wan 2.1, the high-noise Wan 2.2, or CogVideoX for "
                    "SamplerCustomAdvanced.",
                ),
                MasksSocket.Input("masks", tooltip="From Soft Mask."),
                _preset(),
                *starting_inputs(),
            ],
            outputs=[
                io.Model.Output(
                    "model_out",
                    display_name="model",
                    tooltip="Its positive prompt has to come from Encode Prompt (TTOM).",
                )
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: compat.Model,
        masks: LayoutMasks,
        preset: str,
        recall: Recall | None = None,
        optimise: bool = True,
        layers: str = "",
    ) -> io.NodeOutput:
        say = host.text_on(cls.hidden.unique_id)

        def show(progress: Progress) -> None:  # the bar is the sampler's
            say(f"{progress.message}, loss {progress.loss:.3f}")

        settings = sampler_settings(preset, masks, optimise)
        adapter = recall.start(settings.iterations) if recall else None
        return io.NodeOutput(Composition(model, masks, settings, layers, adapter, show, say).model)


class EncodePrompt(io.ComfyNode):
    """The stock CLIPTextEncode, and where the prompt's words are."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_EncodePrompt",
            display_name="Encode Prompt (TTOM)",
            category=CATEGORY,
            description="Encodes a prompt as CLIP Text Encode does, and notes where its words are.",
            inputs=[
                io.Clip.Input(
                    "clip", tooltip="From CLIPLoader with the type wan or cogvideox, or from Pipeline Parts."
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What the layout was planned from: it must name the layout's objects. Weights "
                    "such as (red circle:1.2) may be in it.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    "conditioning",
                    display_name="conditioning",
                    tooltip="For any sampler, as positive prompt.",
                )
            ],
        )

    @classmethod
    @checked
    def execute(cls, clip: Any, prompt: str) -> io.NodeOutput:
        return io.NodeOutput(compat.encode(clip, prompt))
