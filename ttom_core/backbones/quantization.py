"""A transformer whose weights take fewer bits; adapters and what is computed keep their precision.

fp8 is diffusers' own layerwise casting, and leaves the model's fingerprint as it is. int8 (torchao, in bf16
alone) and nf4 (bitsandbytes, on a GPU alone) need their package; adapters made with them are their own.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any, Literal, get_args

import torch

from ..errors import TTOMError

Base = Literal["full", "fp8", "int8", "nf4"]
PACKAGES: dict[Base, str] = {"int8": "torchao", "nf4": "bitsandbytes"}


def check_base(base: str, single_file: bool, device: str) -> None:
    """TTOMError for a kind of weights that is not known, or cannot be had here."""
    if base not in get_args(Base):
        raise TTOMError(f"There are no weights {base!r}; choose one of {', '.join(get_args(Base))}.")
    package = PACKAGES.get(base)  # type: ignore[call-overload]
    if package and importlib.util.find_spec(package) is None:
        raise TTOMError(f"Weights in {base} need the package {package}; install it with pip, or choose fp8.")
    if base == "nf4" and device == "cpu":
        raise TTOMError("Weights in nf4 need a GPU, and the model would run on the CPU; choose fp8.")
    if package and single_file:
        raise TTOMError(f"A single-file transformer cannot be read into {base}; choose fp8, or its folder.")


def quantized_loading(base: Base, dtype: torch.dtype) -> dict[str, Any]:
    """What from_pretrained is told, for weights that are quantised as they are read."""
    if base not in PACKAGES:
        return {}
    from diffusers import PipelineQuantizationConfig

    config: Any
    if base == "nf4":
        from diffusers import BitsAndBytesConfig

        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype
        )
    else:
        from diffusers import TorchAoConfig

        config = TorchAoConfig(importlib.import_module("torchao.quantization").Int8WeightOnlyConfig())
    parts = ("transformer", "transformer_2")
    return {"quantization_config": PipelineQuantizationConfig(quant_mapping=dict.fromkeys(parts, config))}


def cast_weights(pipeline: Any, dtype: torch.dtype) -> None:
    """Store the transformers' weights in fp8; every layer casts its own while it runs."""
    for name in ("transformer", "transformer_2"):
        part = getattr(pipeline, name, None)
        if part is not None:
            part.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)


def is_cast(transformer: torch.nn.Module) -> bool:
    """Whether weights are stored in fp8."""
    return any(p.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) for p in transformer.parameters())
