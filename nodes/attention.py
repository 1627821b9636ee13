"""Which layers of a model see the objects."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from comfy_api.latest import io

from ..ttom_core.evaluation.grounding import DETECTOR, GROUNDINGS, SEGMENTER, grounding_of
from ..ttom_core.pictures import relevance_chart, relevance_strip
from ..ttom_core.probe import COUNT, ProbeSettings, probe_clip, recommend
from . import host
from .inputs import checked, folded, sampling_inputs
from .types import BackboneSocket, LayoutSocket, to_image

if TYPE_CHECKING:
    from ..ttom_core.backbones.base import Backbone
    from ..ttom_core.layout import Layout


class AttentionProbe(io.ComfyNode):
    """`ttom_core.probe.probe_clip`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_AttentionProbe",
            display_name="Attention Probe (TTOM)",
            category="TTOM",
            description=(
                "Samples a plain video, finds its objects, and measures in which layers the attention "
                "of their words lies on them: those layers are worth optimising."
            ),
            inputs=[
                BackboneSocket.Input("backbone"),
                LayoutSocket.Input("layout", tooltip="Whose phrases to look at; its boxes play no part."),
                io.String.Input(
                    "prompt", multiline=True, default="", tooltip="What the layout was planned from."
                ),
                io.Combo.Input(
                    "grounding",
                    options=list(GROUNDINGS),
                    default="blobs",
                    tooltip="What finds the objects: 'blobs' the coloured shapes of the demo model, "
                    "'detector' everything else, by GroundingDINO and SAM 2.",
                ),
                io.Int.Input(
                    "count", default=COUNT, min=1, max=1000, tooltip="How many layers to recommend."
                ),
                *sampling_inputs(),
                folded(
                    io.String.Input(
                        "detector",
                        default=DETECTOR,
                        optional=True,
                        tooltip="A GroundingDINO: a folder, or a name on the Hugging Face Hub.",
                    )
                ),
                folded(
                    io.String.Input(
                        "segmenter",
                        default=SEGMENTER,
                        optional=True,
                        tooltip="A SAM 2: a folder, or a name on the Hugging Face Hub.",
                    )
                ),
            ],
            outputs=[
                io.Image.Output(
                    "maps",
                    display_name="maps",
                    tooltip="A picture for each phrase: the video, where its object is, the best layers.",
                ),
                io.Image.Output("chart", display_name="chart", tooltip="The score of every layer and head."),
                io.String.Output("layers", display_name="layers", tooltip="For the sampler."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls,
        backbone: Backbone,
        layout: Layout,
        prompt: str,
        grounding: str,
        count: int,
        seed: int,
        steps: int,
        guidance_scale: float,
        num_frames: int,
        width: int,
        height: int,
        detector: str = DETECTOR,
        segmenter: str = SEGMENTER,
    ) -> io.NodeOutput:
        settings = ProbeSettings.checked(
            steps=steps,
            guidance_scale=guidance_scale,
            num_frames=num_frames,
            width=width,
            height=height,
        )
        with torch.inference_mode(False):
            clip = probe_clip(
                backbone,
                prompt,
                layout.phrases,
                grounding_of(grounding, detector.strip(), segmenter.strip()),
                settings,
                seed=seed,
                on_progress=host.progress_on(cls.hidden.unique_id),
            )
        found = clip.relevance
        layers = recommend(found, count)
        pictures = [
            relevance_strip(clip.frames, phrase, clip.masks[n], clip.maps[:, n], found.layers)
            for n, phrase in enumerate(clip.phrases)
        ]
        maps = to_image(np.stack([np.asarray(picture) for picture in pictures]))
        chart = to_image(np.asarray(relevance_chart(found.layers, found.heads, layers))[None])
        return io.NodeOutput(maps, chart, ",".join(map(str, layers)))
