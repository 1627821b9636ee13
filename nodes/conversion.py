"""Layouts from what detectors, segmenters and spline editors put out, and back."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from comfy_api.latest import io

from ..ttom_core.errors import TTOMError
from .inputs import checked, folded
from .types import BoundingBoxSocket, LayoutSocket

if TYPE_CHECKING:
    import torch

    from ..ttom_core.layout import Layout

CATEGORY = "TTOM/layout"


def _phrases() -> io.Input:
    return io.String.Input(
        "phrases",
        multiline=True,
        default="",
        tooltip="The prompt's own words for the objects, with commas or line breaks between; one phrase "
        "names all of them.",
    )


def _size() -> list[io.Input]:
    return [
        io.Int.Input(
            "width",
            default=832,
            min=16,
            max=16384,
            tooltip="The size of the frames whose pixels are counted. Layouts fit videos of any size.",
        ),
        io.Int.Input("height", default=480, min=16, max=16384),
    ]


def _tolerance() -> io.Input:
    return folded(
        io.Float.Input(
            "tolerance",
            default=0.5,
            min=0.0,
            max=1000.0,
            step=0.5,
            tooltip="Keyframes are left out where the box stays within so many pixels of its way without "
            "them.",
        )
    )


def _beside() -> io.Input:
    return LayoutSocket.Input("layout", optional=True, tooltip="The objects are added to this layout's.")


def _outputs() -> list[io.Output]:
    return [
        LayoutSocket.Output("layout_out", display_name="layout"),
        io.String.Output("layout_json", display_name="layout_json"),
    ]


def _split(phrases: str) -> list[str]:
    return [phrase.strip() for phrase in re.split(r"[,\n]", phrases) if phrase.strip()]


def _made(found: Layout, layout: Layout | None) -> io.NodeOutput:
    from ..ttom_core.conversion import joined

    whole = joined(layout, found) if layout is not None else found
    return io.NodeOutput(whole, whole.to_json())


class LayoutFromBoxes(io.ComfyNode):
    """`ttom_core.conversion.layout_from_boxes`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_LayoutFromBoxes",
            display_name="Layout from Bounding Boxes (TTOM)",
            category=CATEGORY,
            description="Makes a layout of the boxes that a detector found, or somebody drew, in each frame.",
            inputs=[
                _phrases(),
                *_size(),
                _tolerance(),
                BoundingBoxSocket.Input(
                    "boxes",
                    optional=True,
                    tooltip="ComfyUI's bounding boxes: a list for each frame.",
                    extra_dict={"forceInput": True},
                ),
                io.String.Input(
                    "boxes_json",
                    multiline=True,
                    default="",
                    optional=True,
                    tooltip="The same as text: [[{x, y, width, height, label}, …], …]. Used when nothing is "
                    "wired to boxes.",
                ),
                _beside(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    @checked
    def execute(
        cls,
        phrases: str,
        width: int,
        height: int,
        tolerance: float,
        boxes: Any = None,
        boxes_json: str = "",
        layout: Layout | None = None,
    ) -> io.NodeOutput:
        from ..ttom_core.conversion import Size, layout_from_boxes, read_boxes

        if boxes is None:
            if not boxes_json.strip():
                raise TTOMError("boxes: nothing is wired in; give the boxes of a detector, or boxes_json.")
            boxes = read_boxes(boxes_json)
        found = layout_from_boxes(boxes, Size(width, height), _split(phrases), tolerance)
        return _made(found, layout)


class LayoutFromMask(io.ComfyNode):
    """`ttom_core.conversion.layout_from_masks`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_LayoutFromMask",
            display_name="Layout from Mask (TTOM)",
            category=CATEGORY,
            description="Makes an object of a mask over time; chain several for several objects.",
            inputs=[
                io.Mask.Input("mask", tooltip="One object, a mask a frame; a single mask rests."),
                io.String.Input("phrase", default="", tooltip="The prompt's own words for the object."),
                _tolerance(),
                _beside(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    @checked
    def execute(
        cls, mask: torch.Tensor, phrase: str, tolerance: float, layout: Layout | None = None
    ) -> io.NodeOutput:
        from ..ttom_core.conversion import layout_from_masks

        if not phrase.strip():
            raise TTOMError("phrase: it is empty; name the object by the prompt's words, such as red circle.")
        frames = mask[None] if mask.ndim == 2 else mask  # some nodes put out a single mask without a batch
        return _made(layout_from_masks([frames.cpu().numpy()], [phrase], tolerance), layout)


class LayoutFromTracks(io.ComfyNode):
    """`ttom_core.conversion.layout_from_tracks`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_LayoutFromTracks",
            display_name="Layout from Tracks (TTOM)",
            category=CATEGORY,
            description="Puts a box around each point of tracks, as spline editors draw them.",
            inputs=[
                io.String.Input(
                    "tracks",
                    multiline=True,
                    default="[]",
                    tooltip="JSON: for each object a list of {x, y} in pixels, evenly spread over the clip.",
                ),
                _phrases(),
                *_size(),
                io.Float.Input(
                    "box_width",
                    default=25.0,
                    min=1.0,
                    max=100.0,
                    step=1.0,
                    tooltip="The boxes' width, in percent of the frame's.",
                ),
                io.Float.Input(
                    "box_height",
                    default=25.0,
                    min=1.0,
                    max=100.0,
                    step=1.0,
                    tooltip="The boxes' height, in percent of the frame's.",
                ),
                _tolerance(),
                _beside(),
            ],
            outputs=_outputs(),
        )

    @classmethod
    @checked
    def execute(
        cls,
        tracks: str,
        phrases: str,
        width: int,
        height: int,
        box_width: float,
        box_height: float,
        tolerance: float,
        layout: Layout | None = None,
    ) -> io.NodeOutput:
        from ..ttom_core.conversion import Size, layout_from_tracks

        box = (box_width / 100, box_height / 100)
        found = layout_from_tracks(tracks, Size(width, height), _split(phrases), box, tolerance)
        return _made(found, layout)


def _clip() -> list[io.Input]:
    frames = io.Int.Input(
        "num_frames", default=81, min=1, max=1024, tooltip="So many frames, evenly spread over the clip."
    )
    return [LayoutSocket.Input("layout"), frames, *_size()]


class LayoutToBoxes(io.ComfyNode):
    """`ttom_core.conversion.layout_to_boxes`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_LayoutToBoxes",
            display_name="Layout to Bounding Boxes (TTOM)",
            category=CATEGORY,
            description="Puts out a layout as ComfyUI's bounding boxes, a list for each frame.",
            inputs=_clip(),
            outputs=[
                BoundingBoxSocket.Output("boxes", display_name="boxes"),
                io.String.Output("boxes_json", display_name="boxes_json"),
            ],
        )

    @classmethod
    @checked
    def execute(cls, layout: Layout, num_frames: int, width: int, height: int) -> io.NodeOutput:
        from ..ttom_core.conversion import Size, layout_to_boxes

        boxes = layout_to_boxes(layout, num_frames, Size(width, height))
        return io.NodeOutput(boxes, json.dumps(boxes))


class LayoutToTracks(io.ComfyNode):
    """`ttom_core.conversion.layout_to_tracks`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_LayoutToTracks",
            display_name="Layout to Tracks (TTOM)",
            category=CATEGORY,
            description="Puts out the centres of a layout's boxes as tracks, for WanTrackToVideo and others.",
            inputs=_clip(),
            outputs=[io.String.Output("tracks", display_name="tracks")],
        )

    @classmethod
    @checked
    def execute(cls, layout: Layout, num_frames: int, width: int, height: int) -> io.NodeOutput:
        from ..ttom_core.conversion import Size, layout_to_tracks

        return io.NodeOutput(layout_to_tracks(layout, num_frames, Size(width, height)))
