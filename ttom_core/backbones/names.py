"""One model, two sets of names: a transformer's as diffusers has them, and as ComfyUI has them.

Adapters and memories speak diffusers' names everywhere; ComfyUI's are what its own models and LoRA files use.
The tensors are the same, bit for bit, in both: only their names differ.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..adapter import BlockParts, adapter_places
from ..errors import TTOMError


@dataclass(frozen=True)
class Names:
    """What the parts of a family are called: diffusers' name → ComfyUI's, in a block and outside the blocks.

    `blocks` are the blocks as diffusers calls them (ComfyUI calls all of them blocks), `parts` what adapters
    know of one.
    """

    family: str
    title: str
    blocks: str
    parts: BlockParts
    in_block: Mapping[str, str]
    outside: Mapping[str, str]


_ATTENTION = {
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "o",
    "norm_q": "norm_q",
    "norm_k": "norm_k",
    "add_k_proj": "k_img",  # of models that take an image
    "add_v_proj": "v_img",
    "norm_added_k": "norm_k_img",
}
_IN_BLOCK = {
    **{f"attn1.{theirs}": f"self_attn.{native}" for theirs, native in _ATTENTION.items()},
    **{f"attn2.{theirs}": f"cross_attn.{native}" for theirs, native in _ATTENTION.items()},
    "norm2": "norm3",
    "ffn.net.0.proj": "ffn.0",
    "ffn.net.2": "ffn.2",
    "scale_shift_table": "modulation",
}
_OUTSIDE = {
    "patch_embedding": "patch_embedding",
    "condition_embedder.time_embedder.linear_1": "time_embedding.0",
    "condition_embedder.time_embedder.linear_2": "time_embedding.2",
    "condition_embedder.time_proj": "time_projection.1",
    "condition_embedder.text_embedder.linear_1": "text_embedding.0",
    "condition_embedder.text_embedder.linear_2": "text_embedding.2",
    "condition_embedder.image_embedder.norm1": "img_emb.proj.0",
    "condition_embedder.image_embedder.ff.net.0.proj": "img_emb.proj.1",
    "condition_embedder.image_embedder.ff.net.2": "img_emb.proj.3",
    "condition_embedder.image_embedder.norm2": "img_emb.proj.4",
    "condition_embedder.image_embedder.pos_embed": "img_emb.emb_pos",
    "proj_out": "head.head",
    "scale_shift_table": "head.modulation",
}
_SELF_ATTENTION = tuple(f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0"))
_WAN_PARTS = BlockParts("attn2", _SELF_ATTENTION, ("ffn.net.0.proj", "ffn.net.2"))
WAN = Names("wan", "Wan", "blocks", _WAN_PARTS, _IN_BLOCK, _OUTSIDE)

_SAME = ("norm1.linear", "norm1.norm", "norm2.linear", "norm2.norm")
COGVIDEOX = Names(
    "cogvideox",
    "CogVideoX",
    "transformer_blocks",
    BlockParts("attn1", (), ("ff.net.0.proj", "ff.net.2")),
    {
        **{f"attn1.to_{name}": name for name in "qkv"},
        "attn1.to_out.0": "attn_out",
        "attn1.norm_q": "norm_q",
        "attn1.norm_k": "norm_k",
        "ff.net.0.proj": "ff_proj",
        "ff.net.2": "ff_out",
        **{name: name for name in _SAME},
    },
    {
        "time_embedding.linear_1": "time_embedding_linear_1",
        "time_embedding.linear_2": "time_embedding_linear_2",
        "ofs_embedding.linear_1": "ofs_embedding_linear_1",  # of models that take an image
        "ofs_embedding.linear_2": "ofs_embedding_linear_2",
        **{f"patch_embed.{name}": f"patch_embed.{name}" for name in ("proj", "text_proj", "pos_embedding")},
        **{name: name for name in ("norm_final", "norm_out.linear", "norm_out.norm", "proj_out")},
    },
)


def names_of(tensors: Iterable[str]) -> Names:
    """The family of a transformer with tensors of these names, diffusers' or ComfyUI's; Wan if in doubt."""
    return COGVIDEOX if any(".norm1.linear." in name for name in tensors) else WAN


def adapted(names: Names, layers: Sequence[int], scope: str) -> list[str]:
    """The linear layers that an adapter sits on when the loss is taken at these layers, by diffusers' names.

    TTOMError where the scope leaves none.
    """
    places = adapter_places(layers, scope, names.parts)
    if not places:
        raise TTOMError(
            f"Nothing comes before the attention of layer {max(layers)} that the scope {scope!r} could "
            "adapt; choose a deeper loss layer."
        )
    return [f"{names.blocks}.{block}.{linear}" for block, linear in places]


def native_name(name: str, names: Names = WAN) -> str:
    """ComfyUI's name of what diffusers calls `name`, a module or a tensor; TTOMError if there is none."""
    return _renamed(name, names, names.blocks, "blocks", names.in_block, names.outside)


def diffusers_name(name: str, names: Names = WAN) -> str:
    """The inverse of `native_name`."""
    in_block, outside = ({n: d for d, n in table.items()} for table in (names.in_block, names.outside))
    return _renamed(name, names, "blocks", names.blocks, in_block, outside)


def _renamed(
    name: str, names: Names, here: str, there: str, in_block: Mapping[str, str], outside: Mapping[str, str]
) -> str:
    found = re.fullmatch(rf"(?:{here}\.(\d+)\.)?(.+?)(\.weight|\.bias)?", name)
    block, stem, leaf = found.groups("") if found else ("", "", "")
    renamed = (in_block if block else outside).get(stem)
    if renamed is None:
        raise TTOMError(
            f"{name!r} is no part of a {names.title} transformer; TTOM converts text-to-video Wan and "
            "CogVideoX models."
        )
    return (f"{there}.{block}." if block else "") + renamed + leaf


def convert(source: Path, target: Path) -> int:
    """Write a transformer's tensors under the other names into one safetensors file; how many.

    `source` is a diffusers folder (the pipeline's or the transformer's own), which becomes a file for
    ComfyUI's models/diffusion_models, or such a file, which becomes diffusers' weights. The tensors are
    copied as they are. TTOMError when the source is neither, and when the target exists.
    """
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    if target.exists():
        raise TTOMError(f"{target} exists already; give the name of a new file.")
    if target.suffix != ".safetensors":
        raise TTOMError(f"{target} does not end in .safetensors; give the name of such a file.")
    is_folder = source.is_dir()
    room = source / "transformer" if (source / "transformer").is_dir() else source
    files = sorted(room.glob("*.safetensors")) if is_folder else [source]
    if not files or not all(path.is_file() for path in files):
        raise TTOMError(f"{source} holds no transformer; give a diffusers folder or a safetensors file.")
    found: dict[str, Any] = {}
    try:
        for path in files:
            with safe_open(path, "pt") as file:
                found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise TTOMError(f"{source} is damaged or only partly downloaded; download it again.") from error
    rename, names = native_name if is_folder else diffusers_name, names_of(found)
    tensors = {rename(name, names): tensor for name, tensor in found.items()}
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    save_file(tensors, part, metadata={"format": "pt"})
    part.replace(target)
    return len(tensors)
