"""What nodes/ imports of ComfyUI, as far as schemas and their checks need it: no server and no models.

What ComfyUI really does with the nodes is for the tests marked `comfyui`.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

ROOT = Path(__file__).resolve().parents[1]
PACK = "ttom_pack"
SOCKETS = "Clip Conditioning Image Latent LoraModel LossMap Mask Model MultiType Vae".split()
WIDGETS = "Boolean Combo Float Int String".split()
MODULES = (
    "aiohttp comfy comfy.ldm comfy.ldm.modules comfy.ldm.modules.attention comfy.latent_formats "
    "comfy.model_management comfy.model_patcher comfy.model_sampling comfy.ops comfy.patcher_extension "
    "comfy.sample comfy.samplers comfy.utils comfy_api comfy_api.latest comfy_execution "
    "comfy_execution.graph_utils folder_paths server"
).split()


class Socket:
    """An input or output: its id, and as attributes whatever else it was given, or None."""

    def __init__(self, id: str, display_name: str | None = None, **options: Any) -> None:
        self.id, self.display_name, self.options = id, display_name, options.pop("options", None)
        self.given = options

    def __getattr__(self, name: str) -> Any:
        return self.given.get(name)


def kind(name: str) -> type:
    """A type of sockets as `comfy_api` has them: one class of inputs and one of outputs each."""
    return type(name, (), {side: type(f"{name}{side}", (Socket,), {}) for side in ("Input", "Output")})


class Node:
    """`io.ComfyNode`."""

    hidden = SimpleNamespace(unique_id=None)


class NodeOutput:
    """`io.NodeOutput`."""

    def __init__(self, *values: Any, ui: Any = None) -> None:
        self.values, self.ui = values, ui


def install(folder: Path) -> None:
    """Put the stand-in where `import` finds it; ComfyUI's folders are all inside `folder`."""
    for name in MODULES:
        sys.modules[name] = module = MagicMock(name=name)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, module)
    latest, patcher, folders = (
        sys.modules[name] for name in ("comfy_api.latest", "comfy.model_patcher", "folder_paths")
    )
    latest.io = SimpleNamespace(
        **{name: kind(name) for name in SOCKETS + WIDGETS},
        Custom=kind,
        ComfyNode=Node,
        FolderType=MagicMock(),
        Hidden=MagicMock(),
        NodeOutput=NodeOutput,
        Schema=SimpleNamespace,
    )
    latest.ComfyExtension = object
    patcher.ModelPatcher = type("ModelPatcher", (), {})
    sys.modules["comfy.samplers"].KSampler = SimpleNamespace(
        SAMPLERS=["euler", "uni_pc"], SCHEDULERS=["normal", "simple"]
    )
    sys.modules["server"].PromptServer = None
    folders.get_folder_paths.return_value = []
    for place in ("user", "input", "output"):
        getattr(folders, f"get_{place}_directory").return_value = str(folder / place)


def import_pack() -> ModuleType:
    """The pack's `nodes` by a name that is no other's, after its door and as ComfyUI imports both."""
    spec = importlib.util.spec_from_file_location(
        PACK, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)]
    )
    assert spec and spec.loader
    sys.modules[PACK] = pack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pack)
    return importlib.import_module(f"{PACK}.nodes")
