"""The model, and the video sampled from it with test-time optimisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io

from ..ttom_core.backbones import load
from ..ttom_core.generate import generate
from ..ttom_core.optimize import PRESETS, TTOSettings
from ..ttom_core.probe import chosen_layers
from . import host
from .inputs import about, checked, folded, sampling_inputs
from .types import (
    BackboneSocket,
    LayoutMasks,
    MasksSocket,
    RecallSocket,
    Solved,
    SolvedSocket,
    TraceSocket,
    to_image,
)

if TYPE_CHECKING:
    from ..ttom_core.backbones.base import Backbone
    from ..ttom_core.memory.recall import Recall


class LoadModel(io.ComfyNode):
    """`ttom_core.backbones.load`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_LoadModel",
            display_name="Load Model (TTOM)",
            category="TTOM",
            description="Loads a text-to-video pipeline in diffusers' folder format.",
            inputs=[
                io.Combo.Input(
                    "model",
                    options=list(host.model_folders()),
                    default=host.DEMO,
                    tooltip="'demo' and its sibling come with the pack; the rest is in models/diffusers.",
                ),
            ],
            outputs=[BackboneSocket.Output("backbone", display_name="backbone")],
        )

    @classmethod
    @checked
    def execute(cls, model: str) -> io.NodeOutput:
        # ComfyUI runs nodes in inference mode; weights made there could never be differentiated.
        with torch.inference_mode(False):
            return io.NodeOutput(load(host.model_folders()[model], host.device()))


def starting_inputs() -> list[io.Input]:
    """Where a sampler's optimisation starts, whether it runs, and in which layers."""
    return [
        RecallSocket.Input(
            "recall",
            optional=True,
            tooltip="What a memory found: the optimisation starts there instead of from nothing.",
        ),
        io.Boolean.Input(
            "optimise",
            default=True,
            optional=True,
            tooltip="Off: what was recalled is used as it is, at the cost of the plain model.",
        ),
        io.String.Input(
            "layers",
            default="",
            optional=True,
            tooltip="Where the loss is taken, such as 1,2: empty for the preset's own layers, 'probed' for "
            "those that `ttom probe` found for this model.",
        ),
    ]


def keep_maps_input() -> io.Input:
    return folded(
        io.Boolean.Input(
            "keep_maps",
            default=False,
            optional=True,
            tooltip="For Attention Preview: the attention before and after, at one more look a step.",
        )
    )


def sampler_settings(preset: str, masks: LayoutMasks, optimise: bool) -> TTOSettings:
    """A preset's settings for these masks; without optimising, what was recalled is used as it is."""
    choice: dict[str, object] = {"mask_kind": masks.kind, "softness": masks.softness}
    if not optimise:
        choice |= {"iterations": 0, "latents": None}
    return PRESETS[preset].model_copy(update=choice)


def with_layers(settings: TTOSettings, layers: str, fingerprint: str) -> TTOSettings:
    """The settings with the loss in the layers that a user wrote down for this model."""
    with about("layers"):
        return settings.model_copy(update={"layers": chosen_layers(layers, fingerprint)})


def loss_map(rows: Sequence[Any]) -> Any:
    """What the stock Plot Loss Graph takes, of a trace's rows."""
    if not rows:
        return host.nothing()
    return {key: [getattr(row, key) for row in rows] for key in ("loss", "step", "sigma")}


class TTOSampler(io.ComfyNode):
    """`ttom_core.generate.generate`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_TTOSampler",
            display_name="TTO Sampler (TTOM)",
            category="TTOM",
            description=(
                "Samples a video and, during the first denoising steps, optimises a small adapter "
                "until the objects' attention lies where the masks are. Without masks it is the "
                "plain model."
            ),
            inputs=[
                BackboneSocket.Input("backbone"),
                MasksSocket.Input("masks", optional=True, tooltip="Leave open for the plain model's video."),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What the layout was planned from: it must name the layout's objects.",
                ),
                io.String.Input("negative_prompt", multiline=True, default=""),
                io.Combo.Input(
                    "preset",
                    options=list(PRESETS),
                    default="best",
                    tooltip="The settings of the optimisation. best and demo are tuned for the demo model: "
                    "demo learns an adapter alone, best moves the latents too and ends the guidance early; "
                    "lvd, latent and noise move them instead. paper and released are what the paper and its "
                    "authors' code have.",
                ),
                *sampling_inputs(),
                *starting_inputs(),
                keep_maps_input(),
            ],
            outputs=[
                io.Image.Output("images", display_name="images"),
                io.Float.Output("fps", display_name="fps", tooltip="The model's frame rate."),
                io.LoraModel.Output("lora", display_name="lora", tooltip="The adapter that was optimised."),
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
        backbone: Backbone,
        prompt: str,
        negative_prompt: str,
        preset: str,
        seed: int,
        steps: int,
        guidance_scale: float,
        num_frames: int,
        width: int,
        height: int,
        masks: LayoutMasks | None = None,
        recall: Recall | None = None,
        optimise: bool = True,
        layers: str = "",
        keep_maps: bool = False,
    ) -> io.NodeOutput:
        settings = None
        if masks is not None:
            settings = sampler_settings(preset, masks, optimise)
            if layers.strip():
                settings = with_layers(settings, layers, backbone.fingerprint)
        with torch.inference_mode(False):
            made = generate(
                backbone,
                prompt,
                masks.layout if masks is not None else None,
                settings,
                seed=seed,
                steps=steps,
                guidance_scale=guidance_scale,
                num_frames=num_frames,
                height=height,
                width=width,
                negative_prompt=negative_prompt,
                adapter=recall.start(settings.iterations) if recall and settings else None,
                on_progress=host.progress_on(cls.hidden.unique_id),
                keep_maps=keep_maps,
            )
        for note in made.trace.notes if made.trace else ():
            host.text_on(cls.hidden.unique_id)(note)
        lora = host.lora_model(made.adapter) if made.adapter else host.nothing()
        rows = made.trace.curve if made.trace else []
        solved = host.nothing()
        if masks is not None and settings is not None and made.adapter and made.trace:
            solved = Solved(prompt, masks.layout, made.adapter, made.trace, settings)
        trace = made.trace or host.nothing()
        return io.NodeOutput(to_image(made.frames), float(backbone.fps), lora, loss_map(rows), solved, trace)
