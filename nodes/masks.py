"""From a layout to the soft masks that attention is pulled towards."""

from __future__ import annotations

from comfy_api.latest import io

from ..ttom_core.errors import TTOMError
from ..ttom_core.layout import Layout
from ..ttom_core.masks import soft_masks
from .types import LayoutMasks, LayoutSocket, MasksSocket

KINDS = ["gaussian", "blurred_box", "hard_box"]


class SoftMask(io.ComfyNode):
    """`ttom_core.masks.soft_masks`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_SoftMask",
            display_name="Soft Mask (TTOM)",
            category="TTOM",
            description="Softens the boxes of a layout into the masks that the sampler aims at.",
            inputs=[
                LayoutSocket.Input("layout"),
                io.Combo.Input(
                    "kind",
                    options=KINDS,
                    default="gaussian",
                    tooltip="A bell around the centre, a box with blurred edges, or the bare box.",
                ),
                io.Float.Input(
                    "softness",
                    default=0.25,
                    min=0.01,
                    max=2.0,
                    step=0.01,
                    tooltip="Spread as a share of the box's size.",
                ),
                io.Int.Input(
                    "num_frames",
                    default=21,
                    min=1,
                    max=1024,
                    step=4,
                    tooltip="Size of the mask output; the sampler draws the masks at its own size.",
                ),
                io.Int.Input("width", default=64, min=16, max=4096, step=8),
                io.Int.Input("height", default=64, min=16, max=4096, step=8),
                io.String.Input(
                    "phrase",
                    default="",
                    optional=True,
                    tooltip="Whose mask to put out, e.g. 'red circle'; empty for all objects.",
                ),
            ],
            outputs=[
                MasksSocket.Output("masks", display_name="masks", tooltip="For the sampler."),
                io.Mask.Output("mask", display_name="mask", tooltip="One mask a frame."),
            ],
        )

    @classmethod
    def execute(
        cls,
        layout: Layout,
        kind: str,
        softness: float,
        num_frames: int,
        width: int,
        height: int,
        phrase: str = "",
    ) -> io.NodeOutput:
        masks = soft_masks(layout, (num_frames, height, width), kind, softness)
        values = masks.values
        if phrase := phrase.strip():
            if phrase not in masks.phrases:
                known = ", ".join(masks.phrases)
                raise TTOMError(f"The layout has no phrase {phrase!r}; it has {known}.")
            values = values[[masks.phrases.index(phrase)]]
        return io.NodeOutput(LayoutMasks(layout, kind, softness), values.amax(0).clamp(0, 1))
