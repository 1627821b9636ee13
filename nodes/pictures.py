"""Pictures of what was planned, optimised and made."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from comfy_api.latest import io, ui

from ..ttom_core.errors import TTOMError
from ..ttom_core.pictures import attention_change, beside, draw_layout, loss_chart, strip
from .inputs import checked, clip_inputs, insist_on_phrase, insist_on_size, phrase_input
from .types import LayoutSocket, TraceSocket, to_frames, to_image

if TYPE_CHECKING:
    import torch

    from ..ttom_core.layout import Layout
    from ..ttom_core.optimize import Trace


def _fps() -> io.Input:
    return io.Float.Input("fps", default=8.0, min=1.0, max=120.0, step=1.0)


def _looping(images: torch.Tensor, name: str, fps: float) -> ui.SavedImages:
    """A clip that plays on the node, over and over."""
    picture = ui.ImageSaveHelper.save_animated_webp(
        images,
        filename_prefix=name,
        folder_type=io.FolderType.temp,
        cls=None,
        fps=fps,
        lossless=True,
        quality=80,
        method=0,
    )
    return ui.SavedImages([picture], is_animated=len(images) > 1)


class LayoutPreview(io.ComfyNode):
    """`ttom_core.pictures.draw_layout`, shown as a looping picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_LayoutPreview",
            display_name="Layout Preview (TTOM)",
            category="TTOM",
            description="Draws the boxes of a layout over a video, or over an empty canvas.",
            inputs=[
                LayoutSocket.Input("layout"),
                io.Image.Input(
                    "images",
                    optional=True,
                    tooltip="The video to draw on; without one, a canvas of the size below.",
                ),
                *clip_inputs(),
                _fps(),
            ],
            outputs=[io.Image.Output("images_out", display_name="images")],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        layout: Layout,
        num_frames: int,
        width: int,
        height: int,
        fps: float,
        images: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        if images is None:
            insist_on_size(num_frames, width, height)
            frames = np.full((num_frames, height, width, 3), 245, np.uint8)
        else:
            frames = to_frames(images)
        drawn = to_image(draw_layout(frames, layout))
        return io.NodeOutput(drawn, ui=_looping(drawn, "ttom_layout", fps))


class AttentionPreview(io.ComfyNode):
    """`ttom_core.pictures.attention_change`, shown as a looping picture."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_AttentionPreview",
            display_name="Attention Preview (TTOM)",
            category="TTOM",
            description="Shows where the attention of each object lay, before the optimisation and after.",
            inputs=[
                TraceSocket.Input("trace", tooltip="From a sampler with keep_maps switched on."),
                io.Image.Input("images", tooltip="The sampler's video, to draw on."),
                phrase_input("attention to show"),
                _fps(),
            ],
            outputs=[io.Image.Output("images_out", display_name="images")],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, trace: Trace, images: torch.Tensor, fps: float, phrase: str = "") -> io.NodeOutput:
        before, after = trace.maps_before, trace.maps_after
        if not before or not after:
            raise TTOMError("trace: no attention was kept; switch keep_maps on in the sampler.")
        if phrase := phrase.strip():
            insist_on_phrase(phrase, before)
            before = {phrase: before[phrase]}
        drawn = to_image(attention_change(to_frames(images), before, after))
        return io.NodeOutput(drawn, ui=_looping(drawn, "ttom_attention", fps))


class Compare(io.ComfyNode):
    """`ttom_core.pictures.beside` and `strip`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_Compare",
            display_name="Compare (TTOM)",
            category="TTOM",
            description="Plays up to four videos beside each other, and lays their frames out in rows.",
            inputs=[
                io.Image.Input("first", tooltip="Such as the plain model's video."),
                io.Image.Input("second", optional=True, tooltip="Of the same size and length."),
                io.Image.Input("third", optional=True),
                io.Image.Input("fourth", optional=True),
                io.String.Input(
                    "labels",
                    default="before, after",
                    tooltip="What is written over each, with commas between.",
                ),
                io.Int.Input("columns", default=6, min=1, max=64, tooltip="Frames in a row of the strip."),
                _fps(),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The videos beside each other."),
                io.Image.Output("strip", display_name="strip", tooltip="One picture, a row a video."),
            ],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        first: torch.Tensor,
        labels: str,
        columns: int,
        fps: float,
        second: torch.Tensor | None = None,
        third: torch.Tensor | None = None,
        fourth: torch.Tensor | None = None,
    ) -> io.NodeOutput:
        given = dict(zip("1234", (first, second, third, fourth), strict=True))
        names = [name.strip()[:80] for name in labels.split(",")]
        clips: dict[str, np.ndarray] = {}
        for number, images in given.items():
            if images is None:
                continue
            name = names[len(clips)] if len(clips) < len(names) else ""
            clips[name if name and name not in clips else f"{name} {number}".strip()] = to_frames(images)
        clip = to_image(beside(clips))
        sheet = to_image(np.asarray(strip(clips, columns))[None])
        return io.NodeOutput(clip, sheet, ui=_looping(clip, "ttom_compare", fps))


class LossCurve(io.ComfyNode):
    """`ttom_core.pictures.loss_chart`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_LossCurve",
            display_name="Loss Curve (TTOM)",
            category="TTOM",
            description="Draws the loss of every iteration, with the denoising steps marked.",
            inputs=[io.LossMap.Input("loss", tooltip="From the sampler, or from a stock training node.")],
            outputs=[io.Image.Output("image", display_name="image")],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, loss: dict[str, Any]) -> io.NodeOutput:
        losses = [float(value) for value in loss.get("loss", [])]
        if not losses or not all(map(math.isfinite, losses)):
            raise TTOMError("loss: it holds no numbers to draw; did the optimisation have any iterations?")
        chart = to_image(np.asarray(loss_chart(losses, loss.get("step"), loss.get("sigma")))[None])
        return io.NodeOutput(chart, ui=ui.PreviewImage(chart))
