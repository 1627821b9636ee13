"""One model, two sets of names: Wan's as diffusers has them, and as its makers and ComfyUI have them.

Adapters and memories speak diffusers' names everywhere; ComfyUI's are what its own models and LoRA files use.
The tensors are the same, bit for bit, in both: only their names differ.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..errors import TTOMError

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
# diffusers' name → ComfyUI's, within a block and outside the blocks.
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
_NAME = re.compile(r"(blocks\.\d+\.)?(.+?)(\.weight|\.bias)?")


def native_name(name: str) -> str:
    """ComfyUI's name of what diffusers calls `name`, a module or a tensor; TTOMError if Wan has none."""
    return _renamed(name, _IN_BLOCK, _OUTSIDE)


def diffusers_name(name: str) -> str:
    """The inverse of `native_name`."""
    return _renamed(name, {n: d for d, n in _IN_BLOCK.items()}, {n: d for d, n in _OUTSIDE.items()})


def _renamed(name: str, in_block: dict[str, str], outside: dict[str, str]) -> str:
    found = _NAME.fullmatch(name)
    block, stem, leaf = found.groups("") if found else ("", "", "")
    renamed = (in_block if block else outside).get(stem)
    if renamed is None:
        raise TTOMError(f"{name!r} is no part of a Wan transformer; TTOM converts text-to-video Wan models.")
    return block + renamed + leaf


def convert(source: Path, target: Path) -> int:
    """Write a Wan transformer's tensors under the other names into one safetensors file; how many.

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
    rename = native_name if is_folder else diffusers_name
    tensors = {}
    try:
        for path in files:
            with safe_open(path, "pt") as file:
                for name in file.keys():  # noqa: SIM118
                    tensors[rename(name)] = file.get_tensor(name)
    except (OSError, SafetensorError) as error:
        raise TTOMError(f"{source} is damaged or only partly downloaded; download it again.") from error
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    save_file(tensors, part, metadata={"format": "pt"})
    part.replace(target)
    return len(tensors)
