"""All the pack asks of ComfyUI itself: folders, progress, blocked outputs, LoRA key names."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths
from comfy.model_management import get_torch_device, throw_exception_if_processing_interrupted
from comfy.utils import ProgressBar
from comfy_execution.graph_utils import ExecutionBlocker

from ..ttom_core.backbones.names import COGVIDEOX, WAN, native_name
from ..ttom_core.errors import TTOMError

if TYPE_CHECKING:
    import torch
    from aiohttp.web import RouteTableDef

    from ..ttom_core.adapter import Adapter
    from ..ttom_core.generate import Progress
    from ..ttom_core.memory.store import MemoryStore

DEMO = "demo"
_ROOT = Path(__file__).parent.parent
_DEMO_FOLDERS = {DEMO: _ROOT / "demo" / "model", "demo (CogVideoX)": _ROOT / "demo" / "cogvideox"}
_STARTER_FOLDER = _ROOT / "memory_store" / "starter"


def model_folders() -> dict[str, Path]:
    """The demo models, then every diffusers pipeline in `models/diffusers`, by the name to show."""
    folders = dict(_DEMO_FOLDERS)
    for root in map(Path, folder_paths.get_folder_paths("diffusers")):
        # Large models are often kept elsewhere and linked, hence followlinks.
        for folder, inside, files in os.walk(root, followlinks=True):
            inside.sort()
            if "model_index.json" in files:
                inside.clear()
                folders.setdefault(Path(folder).relative_to(root).as_posix(), Path(folder))
    return folders


def _memory_folder(name: str) -> Path:
    """Where the memory of this name lives: in the user folder, so that updating the pack keeps it."""
    fits = re.fullmatch(r"\w[\w .-]{0,63}", name) and len(name.encode()) <= 200  # a folder's name has 255
    if not fits or name.endswith((".", " ")):
        raise TTOMError(
            f"A memory cannot be called {name[:80]!r}; use up to 64 letters, digits, spaces, dots and "
            "hyphens."
        )
    return Path(folder_paths.get_user_directory()) / "ttom_memory" / name


def open_memory(
    name: str, read_only: bool, max_entries: int | None, other_copies: bool = False
) -> MemoryStore:
    """The memory of a name; a missing one is made, unless it is only to be read."""
    from ..ttom_core.memory.store import MemoryStore

    folder = _memory_folder(name)
    return MemoryStore(folder, read_only=read_only, max_entries=max_entries, other_copies=other_copies)


def memory_sizes() -> dict[str, int]:
    """The memories there are, by name, and how many entries each has."""
    from ..ttom_core.memory.store import DATABASE, MemoryStore

    sizes = {}
    for path in sorted((Path(folder_paths.get_user_directory()) / "ttom_memory").glob(f"*/{DATABASE}")):
        try:
            with MemoryStore(_memory_folder(path.parent.name), read_only=True) as store:
                sizes[path.parent.name] = len(store)
        except TTOMError:  # a folder of another make, or a damaged one: opening it by its node says what
            continue
    return sizes


def memory_state(name: str) -> str:
    """What changes whenever the memory of this name changes."""
    from ..ttom_core.memory.store import DATABASE, MemoryStore

    folder = _memory_folder(name)
    if not (folder / DATABASE).exists():
        return "nothing"
    with MemoryStore(folder, read_only=True) as store:
        return store.state


def memory_packs() -> dict[str, Path]:
    """The packs that come with the nodes, then those in ComfyUI's input folder, by the name to show."""
    folders = {"starter": _STARTER_FOLDER, "input": Path(folder_paths.get_input_directory())}
    return {
        f"{where}/{path.name}": path
        for where, folder in folders.items()
        for path in sorted(folder.glob("*.ttompack"))
    }


def output_file(prefix: str, suffix: str) -> Path:
    """A new file in ComfyUI's output folder, numbered like the pictures that are saved there."""
    root = folder_paths.get_output_directory()
    try:
        folder, name, count, *_ = folder_paths.get_save_image_path(prefix, root)
    except Exception as error:  # it has no errors of its own, and says where the server keeps its files
        raise TTOMError(
            f"filename_prefix: {prefix[:80]!r} is no place in the output folder; give a name such as "
            "memory/pack."
        ) from error
    # ComfyUI counts the files that end in an underscore before their suffix.
    return Path(folder) / f"{name}_{count:05}_.{suffix}"


def device() -> str:
    """Where ComfyUI computes, its command line options considered."""
    return str(get_torch_device())


def plans_folder() -> Path:
    """Where a language model's plans are kept, so that the same inputs ask nobody twice."""
    return Path(folder_paths.get_user_directory()) / "ttom_plans"


def text_on(node_id: str | None) -> Callable[[str], None]:
    """A callback that says below a node what is being done, and raises when the user presses cancel."""

    def say(text: str) -> None:
        throw_exception_if_processing_interrupted()
        if node_id is not None:
            _say(text, node_id)

    return say


def progress_on(node_id: str | None) -> Callable[[Progress], None]:
    """A callback that moves the node's one bar and says below it what is being done.

    It raises ComfyUI's interrupt when the user presses cancel.
    """
    bar = ProgressBar(1, node_id=node_id)

    def show(progress: Progress) -> None:
        bar.update_absolute(progress.done, progress.total)
        if node_id is not None:
            loss = "" if progress.loss is None else f", loss {progress.loss:.3f}"
            _say(progress.message + loss, node_id)

    return show


def routes() -> RouteTableDef | None:
    """Where ComfyUI's server takes further addresses until it begins to answer; None without a server."""
    server = getattr(sys.modules.get("server"), "PromptServer", None)
    return getattr(getattr(server, "instance", None), "routes", None)


def _say(text: str, node_id: str) -> None:
    from server import PromptServer

    # Frontends of 2025 take what stands below a node for HTML.
    PromptServer.instance.send_progress_text(text.replace("<", "‹"), node_id)


def nothing() -> ExecutionBlocker:
    """An output that does not exist in this run: the nodes behind it are skipped, silently."""
    return ExecutionBlocker(None)


def lora_model(adapter: Adapter) -> dict[str, torch.Tensor]:
    """The adapter under ComfyUI's names, for the stock nodes that save or load a LORA_MODEL."""
    import torch

    lora: dict[str, torch.Tensor] = {}
    names = next(names for names in (WAN, COGVIDEOX) if adapter.fingerprint.startswith(f"{names.family}-"))
    for module, (down, up) in adapter.weights.items():
        name = f"diffusion_model.{native_name(module, names)}"
        lora[f"{name}.lora_A.weight"] = down.detach().cpu().contiguous()
        lora[f"{name}.lora_B.weight"] = up.detach().cpu().contiguous()
        lora[f"{name}.alpha"] = torch.tensor(float(adapter.alpha))
    return lora
