"""What an artist sees in ComfyUI. Each node is its schema and one call into `ttom_core`.

The node ids, and the ids and order of their inputs and outputs, stand in people's saved workflows:
they are never changed, only added to.
"""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .attention import AttentionProbe
from .browser import add_routes
from .conversion import (
    LayoutFromBoxes,
    LayoutFromMask,
    LayoutFromTracks,
    LayoutToBoxes,
    LayoutToTracks,
)
from .editing import LayoutEditor
from .masks import SoftMask
from .memory import (
    MemoryBrowse,
    MemoryConsolidate,
    MemoryDelete,
    MemoryExport,
    MemoryImport,
    MemoryInsert,
    MemoryOpen,
    MemoryRead,
    MemoryUpdate,
)
from .native import EncodePrompt, LoRASampler, PatchModel
from .parts import PipelineParts
from .pictures import AttentionPreview, Compare, LayoutPreview, LossCurve
from .planning import LanguageModel, LayoutPlanner
from .sampling import LoadModel, TTOSampler


class TTOMExtension(ComfyExtension):
    """The pack as ComfyUI knows it."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        add_routes()  # not every ComfyUI calls on_load
        memory = [
            *[MemoryOpen, MemoryRead, MemoryInsert, MemoryUpdate, MemoryDelete],
            *[MemoryConsolidate, MemoryBrowse, MemoryExport, MemoryImport],
        ]
        planning = [LanguageModel, LayoutPlanner, LayoutEditor, LayoutPreview]
        conversion = [LayoutFromBoxes, LayoutFromMask, LayoutFromTracks, LayoutToBoxes, LayoutToTracks]
        pictures = [AttentionPreview, Compare, LossCurve]
        native = [LoRASampler, PatchModel, EncodePrompt, PipelineParts]
        sampling = [LoadModel, SoftMask, TTOSampler, AttentionProbe, *native]
        return [*sampling, *planning, *conversion, *pictures, *memory]
