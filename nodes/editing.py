"""A layout drawn by hand, in the editor that web/layout_editor.js puts into the node."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from comfy_api.latest import io, ui

from ..ttom_core.errors import TTOMError
from ..ttom_core.layout import Layout
from .inputs import about, checked, frame_inputs
from .types import LayoutSocket

if TYPE_CHECKING:
    import torch

DrawingSocket = io.Custom("TTOM_DRAWING")
EMPTY_ONLY, ALWAYS = "while nothing is drawn", "always"
SHOWN_FRAMES = 24
SHOWN_WIDTH = 512


class LayoutEditor(io.ComfyNode):
    """`ttom_core.layout.Layout`, by hand."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_LayoutEditor",
            display_name="Layout Editor (TTOM)",
            category="TTOM",
            description="Draws where each object is, and when: boxes with keyframes on a timeline.",
            inputs=[
                io.String.Input(
                    "prompt",
                    multiline=True,
                    default="",
                    tooltip="What the video should show; it names the objects that are drawn. Empty: the "
                    "upstream layout's own.",
                ),
                *frame_inputs("The size that pixels are counted in. Boxes fit videos of any size."),
                io.Int.Input(
                    "num_frames",
                    default=21,
                    min=1,
                    max=1024,
                    step=4,
                    tooltip="The frames that the timeline counts. Keyframes fit clips of any length.",
                ),
                LayoutSocket.Input(
                    "layout", optional=True, tooltip="To start from: after a run the editor can take it over."
                ),
                io.Image.Input(
                    "frames", optional=True, tooltip="A picture or video to draw on; seen after a run."
                ),
                io.Combo.Input(
                    "use_layout",
                    options=[EMPTY_ONLY, ALWAYS],
                    default=EMPTY_ONLY,
                    optional=True,
                    tooltip="When the layout that is wired in goes before the drawing.",
                ),
                DrawingSocket.Input("drawn", optional=True, extra_dict={"default": ""}),
            ],
            outputs=[
                LayoutSocket.Output("layout_out", display_name="layout"),
                io.String.Output("prompt_out", display_name="prompt", tooltip="For the sampler."),
                io.String.Output(
                    "notes", display_name="notes", tooltip="The objects, and what does not fit the prompt."
                ),
                io.String.Output("layout_json", display_name="layout_json"),
            ],
            # Alone it can be run to see what comes from upstream.
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        prompt: str,
        width: int,
        height: int,
        num_frames: int,
        layout: Layout | None = None,
        frames: torch.Tensor | None = None,
        use_layout: str = EMPTY_ONLY,
        drawn: str = "",
    ) -> io.NodeOutput:
        from ..ttom_core.planner import check

        drawing = _read(drawn)
        from_upstream = layout is not None and (drawing is None or use_layout == ALWAYS)
        chosen = layout if from_upstream else drawing
        if chosen is None:
            raise TTOMError("drawn: nothing is drawn yet; draw a box in the editor, or wire in a layout.")
        prompt = prompt.strip() or chosen.prompt
        chosen = chosen.model_copy(update={"prompt": prompt})
        faults = check(chosen, prompt) if prompt else ["No prompt is given that could name the objects."]
        names = ", ".join(thing.name for thing in chosen.objects)
        notes = "\n".join([f"Planned by {chosen.planner}: {names}.", *chosen.unresolved, *faults])
        shown = {
            "ttom_layout": [layout.to_json()] if layout is not None else [],
            "ttom_used": ["upstream" if from_upstream else "drawn"],
            "ttom_frames": [] if frames is None else _pictures(frames),
        }
        return io.NodeOutput(chosen, prompt, notes, chosen.to_json(), ui=shown)


def _read(drawn: object) -> Layout | None:
    """The drawing, None when there is none; TTOMError names the field when it is no layout."""
    if not isinstance(drawn, str):
        raise TTOMError(f"drawn: a drawing is a layout as JSON text, not {type(drawn).__name__}.")
    if not drawn.strip():
        return None
    with about("drawn"):
        drawing = Layout.from_json(drawn)
    return drawing if drawing.objects else None


def _pictures(frames: torch.Tensor) -> list[ui.SavedResult]:
    """At most SHOWN_FRAMES of these frames [F, H, W, C], evenly spread and small enough to be drawn on."""
    chosen = np.linspace(0, len(frames) - 1, min(len(frames), SHOWN_FRAMES)).round().astype(int)
    stride = max(1, frames.shape[2] // SHOWN_WIDTH)
    small = frames[chosen.tolist(), ::stride, ::stride, :3]
    return ui.ImageSaveHelper.save_images(
        small, filename_prefix="ttom_frames", folder_type=io.FolderType.temp, cls=None, compress_level=1
    )
