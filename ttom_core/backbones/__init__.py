"""Model families, picked by name in one table."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import TTOMError

if TYPE_CHECKING:
    from .base import Backbone

# Pipeline class in model_index.json → where its backbone is.
BACKBONES = {
    "CogVideoXPipeline": ("cogvideox", "CogVideoXBackbone"),
    "WanPipeline": ("wan", "WanBackbone"),
}


class ModelError(TTOMError):
    """A model folder is missing, incomplete or of an unknown family."""


def load(folder: str | Path, device: str | None = None, dtype: Any = None) -> Backbone:
    """Load a diffusers folder as a backbone; fp32 on a CPU, bf16 on a GPU unless said otherwise."""
    folder = Path(folder)
    index = folder / "model_index.json"
    if not folder.is_dir():
        raise ModelError(f"There is no model folder at {folder}; give the path of a diffusers folder.")
    try:
        listing = json.loads(index.read_text())
        family = listing["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"{folder} has no readable model_index.json; give a diffusers folder, or download it again."
        ) from error
    if family not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise ModelError(f"{folder} holds a {family}, which TTOM does not know; it knows {known}.")
    parts = [name for name, entry in listing.items() if isinstance(entry, list) and entry[0]]
    missing = [name for name in parts if not (folder / name).is_dir()]
    if missing:
        raise ModelError(f"{folder} lacks its part {missing[0]!r}; download the model again.")
    module, name = BACKBONES[family]
    cls = getattr(importlib.import_module(f".{module}", __name__), name)
    try:
        backbone: Backbone = cls.from_folder(folder, device, dtype)
    except TTOMError:
        raise
    except Exception as error:  # whatever a damaged file makes the libraries raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ModelError(
            f"{folder} could not be loaded ({reason[:200]}); download the model again."
        ) from error
    return backbone
