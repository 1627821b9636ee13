"""What a diffusers folder holds, checked before anything is loaded: a download may have been cut off."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import TTOMError
from .gguf_file import insist_on_whole

VOCABULARIES = ("tokenizer.json", "spiece.model")
LIMITS = {"num_frames": 10_000, "height": 16_384, "width": 16_384, "fps": 240}


class TrainedClip(NamedTuple):
    """The clips a model was trained on, as its folder's clip.json says; a small one where it does not."""

    num_frames: int = 21
    height: int = 64
    width: int = 64
    fps: int | None = None  # the family's own

    @property
    def size(self) -> dict[str, int]:
        """As `generate` takes it."""
        return {"num_frames": self.num_frames, "height": self.height, "width": self.width}


def trained_clip(folder: Path) -> TrainedClip:
    """What clip.json says, of a folder that has it; TTOMError with the first value that cannot be."""
    path = folder / "clip.json"
    if not path.exists():
        return TrainedClip()
    try:
        said = {name: value for name, value in json.loads(path.read_text()).items() if name in LIMITS}
    except (ValueError, AttributeError, RecursionError) as error:
        raise TTOMError(
            f"{path} is not a JSON object; write the clips' num_frames, height, width and fps into it, or "
            "delete it."
        ) from error
    for name, value in said.items():
        if type(value) is not int or not 1 <= value <= LIMITS[name]:
            unit = (
                "frames a second" if name == "fps" else "number of frames" if name == "num_frames" else name
            )
            example = {"fps": 16, "num_frames": 81, "height": 480, "width": 832}[name]
            raise TTOMError(f"{path} gives {value!r} as {name}; write the model's {unit}, such as {example}.")
    return TrainedClip(**said)


def model_files(folder: Path, listing: dict[str, Any], without: Collection[str] = ()) -> Iterator[Path]:
    """Every file that loading this model_index.json's parts reads; the weights of parts `without` are not.

    A damaged index of shards counts as its only file: it will be found damaged.
    """
    for name, entry in listing.items():
        match entry:
            case [str(library), str(kind)]:
                part = folder / name
            case _:  # a setting, or a part that the model does without
                continue
        if "Tokenizer" in kind:
            yield part / "tokenizer_config.json"
            yield next((part / v for v in VOCABULARIES if (part / v).exists()), part / VOCABULARIES[0])
        elif "Scheduler" in kind:
            yield part / "scheduler_config.json"
        else:
            yield part / "config.json"
            if name not in without:
                yield from _weights(part, "model" if library == "transformers" else "diffusion_pytorch_model")


def _weights(part: Path, stem: str) -> Iterator[Path]:
    index = part / f"{stem}.safetensors.index.json"
    if not index.exists():
        yield part / f"{stem}.safetensors"
        return
    yield index
    yield from (part / shard for shard in sorted(_shards(index) or ()))


def _shards(index: Path) -> dict[str, set[str]] | None:
    """The files that an index of shards names, and the tensors in each; None if it cannot be read."""
    shards: dict[str, set[str]] = {}
    try:
        for tensor, shard in json.loads(index.read_text())["weight_map"].items():
            shards.setdefault(str(shard), set()).add(tensor)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    return shards


def is_damaged(path: Path) -> bool:
    """Whether a file is not what its name says, or ends too early; weights are not read for it."""
    from safetensors import SafetensorError

    try:
        if path.suffix == ".safetensors":
            _tensors(path)
        elif path.suffix == ".gguf":
            insist_on_whole(path)
        elif path.name.endswith(".index.json"):
            shards = _shards(path)
            # A shard that is itself damaged is found when its own turn comes.
            return shards is None or any(
                not is_damaged(path.parent / shard) and not tensors <= _tensors(path.parent / shard)
                for shard, tensors in shards.items()
            )
        elif path.suffix == ".json":
            json.loads(path.read_text())
    except (OSError, SafetensorError, ValueError, RecursionError):
        return True
    return False


def _tensors(path: Path) -> set[str]:
    """The names in a safetensors file, whose header is held against the file's length on the way."""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        return set(file.keys())
