"""What the schedulers of diffusers' pipelines have in common."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor


@contextmanager
def stepping_from(scheduler: Any, move: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Let `scheduler.step` start from `move(latents)` for the length of a `with` block.

    A step for which `move` returns the very tensor that it was given is left alone.
    """
    step, is_own = scheduler.step, "step" in vars(scheduler)
    signature = inspect.signature(step)  # the latents are `sample` everywhere, at differing places

    @functools.wraps(step)
    def moved_step(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        latents = bound.arguments["sample"]
        bound.arguments["sample"] = move(latents)
        if bound.arguments["sample"] is not latents and getattr(scheduler, "last_sample", None) is not None:
            # UniPC's corrector makes these latents anew from the last step's, and the move would be lost.
            scheduler.last_sample = None
        return step(*bound.args, **bound.kwargs)

    scheduler.step = moved_step
    try:
        yield
    finally:
        if is_own:
            scheduler.step = step
        else:
            del scheduler.step
