"""ComfyUI's door to the pack: nothing is imported until ComfyUI asks for the nodes."""

from __future__ import annotations

WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI after it has imported this folder, whatever name the clone has."""
    from .nodes import TTOMExtension

    return TTOMExtension()
