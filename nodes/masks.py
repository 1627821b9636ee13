"""From a layout to the soft masks that attention is pulled towards."""

from __future__ import annotations

from comfy_api.latest import io

from ..ttom_core.layout import Layout
from ..ttom_core.masks import MASK_KINDS, soft_masks
from .inputs import checked, clip_inputs, insist_on_phrase, insist_on_size, phrase_input
from .types import LayoutMasks, LayoutSocket, MasksSocket


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
                    options=list(MASK_KINDS),
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
                *clip_inputs("Size of the mask output; the sampler draws the masks at its own size."),
                phrase_input("mask to put out"),
            ],
            outputs=[
                MasksSocket.Output("masks", display_name="masks", tooltip="For the sampler."),
                io.Mask.Output("mask", display_name="mask", tooltip="One mask a frame."),
                io.Mask.Output(
                    "each",
                    display_name="each object",
                    is_output_list=True,
                    tooltip="One batch of masks an object, for nodes that are run for each.",
                ),
            ],
        )

    @classmethod
    @checked
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
        insist_on_size(num_frames, width, height, len(layout.objects))
        masks = soft_masks(layout, (num_frames, height, width), kind, softness)
        values = masks.values.clamp(0, 1)
        each = list(values)
        if phrase := phrase.strip():
            insist_on_phrase(phrase, masks.phrases)
            values = values[[masks.phrases.index(phrase)]]
        return io.NodeOutput(LayoutMasks(layout, kind, softness), values.amax(0), each)
