"""A custom node of the tests' own: a MODEL that fails in mid-run, as one does when memory runs out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class FailBelow:
    """Fails at the first call below a noise level: while TTOM optimises, or while ComfyUI samples."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "failing"
    CATEGORY = "tests"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        return {"required": {"model": ("MODEL",), "sigma": ("FLOAT", {}), "optimising": ("BOOLEAN", {})}}

    def failing(self, model: Any, sigma: float, optimising: bool) -> tuple[Any]:
        def call(apply_model: Callable[..., Any], args: dict[str, Any]) -> Any:
            if float(args["timestep"].max()) < sigma and torch.is_grad_enabled() == optimising:
                raise RuntimeError("no room is left")
            return apply_model(args["input"], args["timestep"], **args["c"])

        clone = model.clone()
        clone.set_model_unet_function_wrapper(call)
        return (clone,)


NODE_CLASS_MAPPINGS = {"TestsFailBelow": FailBelow}
