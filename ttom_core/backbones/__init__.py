"""Model families, picked by name in one table."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import TTOMError
from .folder import is_damaged, model_files
from .quantization import Base, check_base, insist_on_package

if TYPE_CHECKING:
    from .base import Backbone

# Pipeline class in model_index.json → where its backbone is.
BACKBONES = {
    "CogVideoXPipeline": ("cogvideox", "CogVideoXBackbone"),
    "WanPipeline": ("wan", "WanBackbone"),
}
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


class ModelError(TTOMError):
    """A model folder is missing, incomplete or of an unknown family."""


class Source(NamedTuple):
    """Which model, and how it is loaded (`load`): what another process needs to have the same one."""

    model: str
    transformer: Path | None = None
    base: Base = "full"
    offload: bool = False

    def load(self) -> Backbone:
        return load(self.model, transformer=self.transformer, base=self.base, offload=self.offload)


def load(
    model: str | Path,
    device: str | None = None,
    dtype: Any = None,
    *,
    transformer: str | Path | None = None,
    base: Base = "full",
    offload: bool = False,
) -> Backbone:
    """Load a model as a backbone; fp32 on a CPU, bf16 on a GPU unless said otherwise.

    `model` is a diffusers folder or a Hub id ("Wan-AI/Wan2.1-T2V-1.3B-Diffusers"), which is downloaded once
    and then found without a network. `transformer` is a single-file transformer to use in place of the
    folder's, as ComfyUI keeps them in models/diffusion_models (Wan only): safetensors, or GGUF, whose weights
    stay packed. The folder's own weights may then be missing. `base` stores the transformer's weights in fp8,
    int8 (torchao) or nf4 (bitsandbytes); `offload` keeps text encoder, transformer and VAE on the device only
    while each works, which needs a GPU.
    ModelError names every missing or damaged file before anything is loaded.
    """
    import torch

    folder = _folder_of(model)
    try:
        listing = json.loads((folder / "model_index.json").read_text())
        family = listing["_class_name"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ModelError(
            f"{folder} has no readable model_index.json; give a diffusers folder, or download it again."
        ) from error
    if not isinstance(family, str) or family not in BACKBONES:
        known = ", ".join(BACKBONES)
        raise ModelError(f"{folder} holds a {family}, which TTOM does not know; it knows {known}.")
    module, name = BACKBONES[family]
    cls = getattr(importlib.import_module(f".{module}", __name__), name)
    if transformer is not None and not cls.takes_single_file:
        raise ModelError(
            f"diffusers reads no single-file transformer for a {family}, safetensors or GGUF; give a folder "
            "with the model's own."
        )
    single = _single_file(transformer) if transformer is not None else None
    check_base(base, single, device or _best_device())
    if offload and (device or _best_device()) == "cpu":
        raise ModelError(
            "Offloading moves idle parts from a GPU to the CPU, and there is no GPU; leave it out."
        )
    files = list(model_files(folder, listing, without=() if single is None else ("transformer",)))
    if missing := [path for path in files if not path.is_file()]:
        raise ModelError(f"{folder} lacks {_listed(folder, missing)}; download the model again.")
    if damaged := [path for path in files if is_damaged(path)]:
        raise ModelError(
            f"{folder} holds damaged or only partly downloaded files, {_listed(folder, damaged)}; download "
            "the model again."
        )
    try:
        backbone: Backbone = cls.from_folder(folder, device, dtype, single, base, offload)
    except TTOMError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise ModelError(
            f"{folder} does not fit into the memory ({_reason(error)}); load it with offloading or lighter "
            "weights, of which ttom doctor tells what each needs."
        ) from error
    except Exception as error:  # whatever a damaged file makes the libraries raise
        if single is not None:
            raise ModelError(
                f"{single} does not fit into {folder} ({_reason(error)}); choose a transformer of this model."
            ) from error
        raise ModelError(
            f"{folder} could not be loaded ({_reason(error)}); download the model again."
        ) from error
    return backbone


def _best_device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _folder_of(model: str | Path) -> Path:
    """The folder of a model: the path itself or, of a Hub id, where its files were downloaded to."""
    folder = Path(model)
    if folder.is_dir():
        return folder
    if not HUB_ID.fullmatch(folder.as_posix()):
        raise ModelError(f"There is no model folder at {folder}; give the path of a diffusers folder.")
    from diffusers import DiffusionPipeline

    try:
        return Path(DiffusionPipeline.download(folder.as_posix(), use_safetensors=True))
    except Exception as error:  # network, rights, spelling: the Hub's client has an error for each
        raise ModelError(
            f"{folder.as_posix()} is no model folder here and could not be had from the Hub "
            f"({_reason(error)}); check the name and the network, or give the path of a diffusers folder."
        ) from error


def _single_file(path: str | Path) -> Path:
    """The path of a whole single-file transformer."""
    path = Path(path)
    if path.suffix not in (".safetensors", ".gguf"):
        raise ModelError(f"{path} is no safetensors file and no GGUF; choose a transformer of such a form.")
    if not path.is_file():
        raise ModelError(f"There is no transformer at {path}; choose a file of models/diffusion_models.")
    if path.suffix == ".gguf":
        insist_on_package("gguf", f"{path} is a GGUF, which needs", "choose a safetensors file")
    if is_damaged(path):
        raise ModelError(f"{path} is damaged or only partly downloaded; download it again.")
    return path


def _listed(folder: Path, paths: Sequence[Path]) -> str:
    *others, last = [path.relative_to(folder).as_posix() for path in paths]
    return f"{', '.join(others)} and {last}" if others else last


def _reason(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0][:200].rstrip(".") if text else type(error).__name__
