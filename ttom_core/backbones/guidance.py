"""Classifier-free guidance that ends with the noise levels in which a clip is composed.

Below them it costs half of every step and draws worse: of images it is known that guidance does harm where
little noise is left (Kynkäänniemi et al. 2024, arXiv:2404.07724), and so it is here with what moves.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

from ..errors import TTOMError

PER_ROW = ("hidden_states", "timestep", "encoder_hidden_states")


@contextmanager
def guided_until(
    sigma: float,
    transformers: Sequence[nn.Module],
    sigma_of: Callable[[Tensor], float],
    conditional_rows: Callable[[Tensor], list[int]],
) -> Iterator[None]:
    """Let these denoisers answer every row of a call below a noise level as they answer the prompt's.

    Prompt and negative prompt then predict the same, and a guidance of any strength leaves it as it is. The
    negative prompt's call is not computed, be it a row of the prompt's or, as for Wan, one that follows it.
    """
    answered: dict[float, Tensor] = {}  # by the step's noise level: the prompt's prediction [1, …]

    def wrapped(forward: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(forward)
        def answer(*args: Any, **call: Any) -> Any:
            level = sigma_of(call["timestep"])
            if level >= sigma:
                return forward(*args, **call)
            rows, count = conditional_rows(call["encoder_hidden_states"]), len(call["hidden_states"])
            if rows:
                answered.clear()
                alone = {k: v[rows[:1]] if k in PER_ROW else v for k, v in call.items()}
                output = forward(*args, **alone)
                answered[level] = output[0]
            if level not in answered:
                raise TTOMError(
                    "A step's first call of the denoiser was not with the prompt, so its guidance could not "
                    "be ended; set guidance_until_sigma to 0."
                )
            repeated = answered[level].expand(count, *answered[level].shape[1:])
            return (repeated, *output[1:]) if rows else (repeated,)

        return answer

    with ExitStack() as stack:
        for transformer in transformers:
            stack.callback(_restorer(transformer))
            transformer.forward = wrapped(transformer.forward)
        yield


def _restorer(module: nn.Module) -> Callable[[], None]:
    """What gives a module back the `forward` that it has now: its class's, or one that a host put there."""
    if "forward" in vars(module):
        return functools.partial(setattr, module, "forward", module.forward)
    return functools.partial(delattr, module, "forward")
