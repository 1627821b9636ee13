"""From words to a layout, and the layout drawn where one can look at it."""

from __future__ import annotations

import numpy as np
from comfy_api.latest import io, ui

from ..ttom_core.layout import Layout
from ..ttom_core.pictures import draw_layout
from ..ttom_core.planner import plan
from .types import LayoutSocket, to_frames, to_image


class LayoutPlanner(io.ComfyNode):
    """`ttom_core.planner.plan`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_LayoutPlanner",
            display_name="Layout Planner (TTOM)",
            category="TTOM",
            description="Reads a plain English prompt and plans where each object is, and when.",
            inputs=[
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="a red circle moves to the right while a blue square stays still",
                    tooltip="What the video should show.",
                ),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=0xFFFFFFFF,
                    control_after_generate=True,
                    tooltip="Where the prompt leaves a choice, another seed chooses differently.",
                ),
            ],
            outputs=[
                LayoutSocket.Output("layout", display_name="layout"),
                io.String.Output(
                    "prompt_out", display_name="prompt", tooltip="The same prompt, for the sampler."
                ),
                io.String.Output(
                    "notes",
                    display_name="notes",
                    tooltip="The objects found, and what was not understood.",
                ),
            ],
        )

    @classmethod
    def execute(cls, prompt: str, seed: int) -> io.NodeOutput:
        layout = plan(prompt, seed=seed)
        return io.NodeOutput(layout, prompt, _notes(layout))


def _notes(layout: Layout) -> str:
    found = ", ".join(thing.name for thing in layout.objects)
    return "\n".join([f"Planned: {found}.", *layout.unresolved])


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
                io.Int.Input("num_frames", default=21, min=1, max=1024, step=4),
                io.Int.Input("width", default=64, min=16, max=4096, step=8),
                io.Int.Input("height", default=64, min=16, max=4096, step=8),
                io.Float.Input("fps", default=8.0, min=1.0, max=120.0, step=1.0),
            ],
            outputs=[io.Image.Output("images_out", display_name="images")],
            is_output_node=True,
        )

    @classmethod
    def execute(
        cls,
        layout: Layout,
        num_frames: int,
        width: int,
        height: int,
        fps: float,
        images=None,
    ) -> io.NodeOutput:
        if images is None:
            frames = np.full((num_frames, height, width, 3), 245, np.uint8)
        else:
            frames = to_frames(images)
        drawn = to_image(draw_layout(frames, layout))
        picture = ui.ImageSaveHelper.save_animated_webp(
            drawn,
            filename_prefix="ttom_layout",
            folder_type=io.FolderType.temp,
            cls=None,
            fps=fps,
            lossless=True,
            quality=80,
            method=0,
        )
        return io.NodeOutput(drawn, ui=ui.SavedImages([picture], is_animated=len(drawn) > 1))
