"""What a model family must answer; all that the optimisation ever sees of a model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from ..attention import JointMap, PhraseTokens, PrefixCache
from .folder import TrainedClip


class Denoiser(Protocol):
    """What the optimisation asks of a transformer: diffusers' own, or what stands for a host's.

    A hook is called as `hook(transformer, args, call)` before the host's call of a denoising step, with its
    keyword arguments: `hidden_states`, `timestep` and `encoder_hidden_states` are among them.
    """

    def parameters(self) -> Iterable[nn.Parameter]: ...

    def named_modules(self) -> Iterable[tuple[str, nn.Module]]: ...

    def register_forward_pre_hook(self, hook: Callable[..., None], *, with_kwargs: bool) -> Any: ...


@runtime_checkable
class Movable(Protocol):
    """A model whose blocks can be moved one by one."""

    def resident(self, last: int) -> AbstractContextManager[None]:
        """Keep the blocks behind this one off the device for the length of a `with` block."""


@runtime_checkable
class Shareable(Protocol):
    """A model that several devices can run together: each calls the same, in the same order."""

    def agreed(self, value: float) -> float:
        """The least of all devices' values, by which all decide alike; on one device the value itself."""

    def insist_on_same(self, what: str, given: Tensor) -> None:
        """TTOMError, on every device, when these values of the devices are not the same."""

    def summed(self, gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        """Gradients of what every device holds, of a loss of `maps`, from each device's part of them."""


class Adaptable(Protocol):
    """A model that adapters fit on: all that a memory asks of it."""

    fingerprint: str
    num_layers: int

    def adapter_modules(self, layers: Sequence[int], scope: str) -> dict[str, nn.Linear]:
        """The linear layers an adapter may sit on when the loss is taken at these layers."""


class Optimisable(Adaptable, Protocol):
    """A text-to-video model in its host's sampling loop: all that the optimisation asks of it."""

    transformer: Any  # a Denoiser
    max_text_tokens: int

    def check_trainable(self, sigmas: Sequence[float] = ()) -> None:
        """TTOMError when nothing could be optimised, at one of these noise levels, on the model as it is."""

    def phrase_tokens(self, prompt: str, phrases: Sequence[str]) -> dict[str, tuple[int, ...]]:
        """Key positions of each phrase; TTOMError when absent or past the token limit."""

    def sigmas(self, steps: int) -> list[float]:
        """The noise level (0…1) of each of this many denoising steps."""

    def sigma_of(self, timestep: Tensor) -> float:
        """The noise level of a timestep that the running sampling loop passed."""

    def conditional_rows(self, prompt: str, conditioning: Tensor) -> list[int]:
        """The batch rows of a denoiser call that carry this prompt; none in an unconditional call."""

    def maps(
        self,
        call: dict[str, Any],
        rows: Sequence[int],
        tokens: PhraseTokens,
        layers: Sequence[int],
        *,
        prefix: PrefixCache | None = None,
        early_exit: bool = True,
        checkpointing: bool = False,
        keep_heads: bool = False,
        joint_map: JointMap = "video_to_text",
    ) -> dict[int, Tensor]:
        """Maps [N, τ, h, w] by layer for one denoiser call (its keyword arguments), with gradients.

        Each is the mean over the heads or, with `keep_heads`, all of them: [heads, N, τ, h, w]. Without a
        prefix cache the gradients reach `hidden_states` too, if it asks for them. `joint_map` says what
        a map is where text and video share one attention (`attention.joint_phrase_maps`).
        """


class Backbone(Optimisable, Protocol):
    """A text-to-video model that is asked for videos: it brings its host's sampling loop along."""

    fps: int
    trained_clip: TrainedClip

    @property
    def video_fingerprint(self) -> str:
        """What of the model decides a video: the fingerprint, and a base that this leaves out (fp8)."""

    def default_layers(self) -> tuple[int, ...]:
        """Loss layers to begin with (`published.Published.layers`); TTOMError for sizes nobody has tried."""

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        """TTOMError when a clip of this size does not fit the VAE and the patches."""

    def token_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        """The video tokens (τ, h, w) of a clip of pixel size (frames, height, width)."""

    def latents_moved(self, move: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        """Let the sampling loop's steps start from `move(latents)` for the length of a `with` block.

        The latents are the loop's own, in its precision and not in the denoiser's. A step for which `move`
        returns the very tensor that it was given is left alone.
        """

    def guided_until(self, prompt: str, sigma: float) -> AbstractContextManager[None]:
        """Let the sampling loop go without guidance below a noise level for the length of a `with` block.

        The negative prompt has no say there, and is not computed.
        """

    def sample(
        self,
        prompt: str,
        *,
        negative_prompt: str,
        num_frames: int,
        height: int,
        width: int,
        steps: int,
        guidance_scale: float,
        generator: torch.Generator,
        on_step: Callable[[int], None],
    ) -> np.ndarray:
        """Run the host's own sampling loop; frames uint8 [F, H, W, 3]."""
