"""A transformer whose weights take fewer bits; adapters and what is computed keep their precision.

fp8 is diffusers' own layerwise casting, and leaves the model's fingerprint as it is. int8 (torchao, in bf16
alone) and nf4 (bitsandbytes, on a GPU alone) need their package; adapters made with them are their own. So
are those made with a GGUF file, whose weights stay packed: a layer unpacks its own each time it computes.
"""

from __future__ import annotations

import importlib
import importlib.util
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import TTOMError

Base = Literal["full", "fp8", "int8", "nf4"]
PACKAGES: dict[Base, str] = {"int8": "torchao", "nf4": "bitsandbytes"}


def insist_on_package(package: str, what_needs: str, instead: str) -> None:
    """TTOMError when a package is not installed."""
    if importlib.util.find_spec(package) is None:
        raise TTOMError(f"{what_needs} the package {package}; install it with pip, or {instead}.")


def check_base(base: str, single_file: Path | None, device: str) -> None:
    """TTOMError for a kind of weights that is not known, or cannot be had here."""
    if base not in get_args(Base):
        raise TTOMError(f"There are no weights {base!r}; choose one of {', '.join(get_args(Base))}.")
    package = PACKAGES.get(base)  # type: ignore[call-overload]
    if package:
        insist_on_package(package, f"Weights in {base} need", "choose fp8")
    if base == "nf4" and device == "cpu":
        raise TTOMError("Weights in nf4 need a GPU, and the model would run on the CPU; choose fp8.")
    if base != "full" and single_file and single_file.suffix == ".gguf":
        raise TTOMError(f"{single_file} is quantised already; leave its weights as they are, not in {base}.")
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


def packed_loading(path: Path, dtype: torch.dtype) -> dict[str, Any]:
    """What from_single_file is told, for a file whose weights stay packed."""
    if path.suffix != ".gguf":
        return {}
    from diffusers import GGUFQuantizationConfig

    return {"quantization_config": GGUFQuantizationConfig(compute_dtype=dtype)}


def is_packed(transformer: nn.Module) -> bool:
    """Whether the weights came from a GGUF file and are still as they are there."""
    config = getattr(getattr(transformer, "hf_quantizer", None), "quantization_config", None)
    return getattr(config, "quant_method", None) == "gguf"


def unpacked_weight(linear: nn.Module, like: Tensor) -> Tensor:
    """The weight that a layer of such a transformer computes with (`frozen.WeightOf`)."""
    from diffusers.quantizers.gguf.utils import dequantize_gguf_tensor

    weight: Tensor = dequantize_gguf_tensor(linear.weight)
    return weight.to(getattr(linear, "compute_dtype", weight.dtype)).to(like)


def cast_weights(pipeline: Any, dtype: torch.dtype) -> None:
    """Store the transformers' weights in fp8; every layer casts its own while it runs."""
    for name in ("transformer", "transformer_2"):
        part = getattr(pipeline, name, None)
        if part is not None:
            part.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=dtype)


def is_cast(transformer: nn.Module) -> bool:
    """Whether weights are stored in fp8."""
    return any(p.dtype in (torch.float8_e4m3fn, torch.float8_e5m2) for p in transformer.parameters())
