"""Which model an adapter was made with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from torch import Tensor


def fingerprint(family: str, layers: int, width: int, parameters: Iterable[tuple[str, Tensor]]) -> str:
    """Family, sizes and weight identity: the start of every parameter, hashed in fp32.

    `parameters` are named and ordered as diffusers' own model has them. A user's LoRAs are no part of it:
    an adapter for the model is one for the model with a LoRA too.
    """
    digest = hashlib.sha256()
    for name, parameter in parameters:
        if ".lora_" in name:
            continue
        name = name.replace(".base_layer.", ".")  # where peft keeps the layer that a LoRA is on
        parameter = parameter.detach()
        shape = tuple(parameter.shape)
        if hasattr(parameter, "quant_shape"):  # diffusers' GGUF: a row is enough
            shape, parameter = tuple(parameter.quant_shape), _unpacked(parameter[:1])
        elif type(parameter.data) is not Tensor and hasattr(parameter.data, "dequantize"):  # torchao's
            parameter = parameter.data.dequantize()
        digest.update(f"{name}{shape}".encode())
        digest.update(parameter.flatten()[:16].float().cpu().numpy().tobytes())
    return f"{family}-{layers}x{width}-{digest.hexdigest()[:16]}"


def _unpacked(parameter: Tensor) -> Tensor:
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    weight: Tensor = dequantize_gguf_tensor(parameter)
    return weight
