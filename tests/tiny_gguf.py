"""A toy Wan whose transformer is a GGUF file, and the same one with its weights unpacked."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import build_tiny
from diffusers import WanPipeline, WanTransformer3DModel

from ttom_core.backbones.names import native_name


def build() -> WanPipeline:
    """The toy of conftest, a little wider: GGUF packs 32 weights of a row together."""
    parts = build_tiny().components
    config = dict(parts["transformer"].config) | {"attention_head_dim": 32, "ffn_dim": 64}
    torch.manual_seed(1)
    parts["transformer"] = WanTransformer3DModel.from_config(config)
    return WanPipeline(**parts)


def write(transformer: WanTransformer3DModel, path: Path, kind: str) -> None:
    """Write a transformer as published files are: the blocks' matrices packed, the rest as it is.

    The transformer's own weights become what the file's unpack to.
    """
    import gguf

    packing = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(str(path), arch="wan")
    with torch.no_grad():
        for name, parameter in transformer.named_parameters():
            values = parameter.float().numpy()
            if name.startswith("blocks.") and name.endswith(".weight") and values.ndim == 2:
                packed = gguf.quants.quantize(values, packing)
                writer.add_tensor(native_name(name), packed, raw_dtype=packing)
                unpacked = torch.from_numpy(gguf.quants.dequantize(packed, packing))
                parameter.copy_(unpacked.half())  # in which diffusers unpacks
            else:
                writer.add_tensor(native_name(name), values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
