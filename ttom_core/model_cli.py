"""The flags of every command that loads a model: which one, and how its weights are held."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .backbones import Source
    from .backbones.base import Backbone


def add_model(parser: argparse.ArgumentParser, default: Path) -> None:
    """Add `--model`, this one by default, and how it is loaded."""
    parser.add_argument(
        "--model", default=str(default), help="a diffusers folder or a Hub id (default: the demo)"
    )
    parser.add_argument(
        "--transformer",
        type=Path,
        metavar="FILE",
        help="a single-file transformer in place of the model's: safetensors or GGUF (Wan only)",
    )
    parser.add_argument(
        "--weights",
        choices=("full", "fp8", "int8", "nf4"),
        default="full",
        help="how the transformer's weights are kept (default: full); less memory, and slower",
    )
    parser.add_argument("--offload", action="store_true", help="idle parts of the model leave the GPU")


def source_of(options: argparse.Namespace) -> Source:
    """What the flags ask for; a process of its own can be sent it."""
    from .backbones import Source

    return Source(options.model, options.transformer, options.weights, options.offload)


def clip_size(options: argparse.Namespace) -> dict[str, int]:
    """Frames, height and width of the clips to make: as asked for, or as the model's folder says."""
    from .backbones.folder import trained_clip

    size = trained_clip(Path(options.model)).size
    if options.frames is not None:
        size["num_frames"] = options.frames
    if options.size:
        size["width"], size["height"] = options.size
    return size


def loaded(options: argparse.Namespace) -> Backbone:
    """The model, loaded once for a command."""
    from .evaluation.pool import backbone_of

    return backbone_of(source_of(options))
