"""What the backbones behind diffusers' pipelines share; a family's own file holds what differs."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..adapter import is_adapted, uncompiled
from ..attention import (
    EarlyExit,
    JointMap,
    MapProbe,
    PhraseTokens,
    PrefixCache,
    captured,
    recalled,
    tapped,
)
from ..errors import TTOMError
from .fingerprint import fingerprint
from .folder import TrainedClip, trained_clip
from .frozen import differentiable
from .guidance import guided_until
from .names import Names, adapted
from .parallel import devices_of
from .phrases import EncodedPrompt
from .published import default_layers
from .quantization import Base, cast_weights, is_cast, is_packed, quantized_loading, unpacked_weight
from .scheduler import stepping_from
from .traps import refuse_untrainable


class PipelineBackbone(ABC):
    """Answers the backbone protocol for a diffusers pipeline, from what its family says of itself."""

    pipeline_class: ClassVar[Any]
    takes_single_file: ClassVar[bool] = False  # in place of the folder's transformer
    names: ClassVar[Names]
    guided_rows: ClassVar[int] = 1  # of one denoiser call in guided sampling
    # An attention before the one with the text in the block.
    self_attention_name: ClassVar[str | None] = None

    def __init__(self, pipeline: Any, clip: TrainedClip | None = None) -> None:
        if not pipeline.tokenizer.is_fast:
            raise TTOMError(
                "The pipeline's tokenizer does not say where a token lies in the prompt; load it with "
                "AutoTokenizer, which picks the fast one."
            )
        self._hold(pipeline, pipeline.transformer)
        self.trained_clip = clip or TrainedClip()
        self.fps = self.trained_clip.fps or self._trained_fps()
        self.check_trainable()
        self.max_text_tokens = self._text_limit()
        config = self.transformer.config
        self.fingerprint = fingerprint(
            self.names.family,
            config.num_layers,
            config.num_attention_heads * config.attention_head_dim,
            self.transformer.named_parameters(),
        )
        self._encoded: tuple[str, Tensor] | None = None
        pipeline.set_progress_bar_config(disable=True)

    @property
    def video_fingerprint(self) -> str:
        return self.fingerprint + ("-fp8" if is_cast(self.transformer) else "")

    def _hold(self, pipeline: Any, transformer: Any) -> None:
        self.pipeline, self.transformer = pipeline, transformer
        self.blocks: nn.ModuleList = getattr(transformer, self.names.blocks)
        self.num_layers = len(self.blocks)

    @classmethod
    def of_transformer(cls, transformer: Any, temporal: int, spatial: int) -> PipelineBackbone:
        """A backbone of a transformer alone: it gives maps, and can neither encode a prompt nor sample.

        `temporal` and `spatial` are how many frames, rows or columns of the clip are one of the latents'. On
        the meta device this is what costs are counted on.
        """
        backbone = cls.__new__(cls)
        parts = SimpleNamespace(vae_scale_factor_temporal=temporal, vae_scale_factor_spatial=spatial)
        backbone._hold(parts, transformer)
        return backbone

    @classmethod
    def from_folder(
        cls,
        folder: Path,
        device: str | None,
        dtype: torch.dtype | None,
        transformer: Path | None = None,
        base: Base = "full",
        offload: bool = False,
    ) -> PipelineBackbone:
        """Load a complete diffusers folder, with a single-file transformer in place of its own if given."""
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.float32 if device == "cpu" else torch.bfloat16)
        clip = trained_clip(folder)
        with warnings.catch_warnings():
            # Newer releases prefer `dtype`, which the oldest that we take do not know.
            warnings.filterwarnings("ignore", "`torch_dtype` is deprecated", FutureWarning)
            pipeline = cls.pipeline_class.from_pretrained(
                folder,
                torch_dtype=dtype,
                local_files_only=True,
                use_safetensors=True,  # never a pickle
                **cls._own_parts(folder, dtype, transformer),
                **quantized_loading(base, dtype),
            )
        if offload:
            pipeline.enable_model_cpu_offload(device=device)
        else:
            pipeline.to(device)
        backbone = cls(pipeline, clip)
        if base == "fp8":  # after the fingerprint: the model and its adapters stay the same
            cast_weights(pipeline, dtype)
        return backbone

    @classmethod
    def _own_parts(cls, folder: Path, dtype: torch.dtype, transformer: Path | None) -> dict[str, Any]:
        """Parts of the pipeline that are loaded otherwise than its listing says."""
        return {}

    def check_trainable(self, sigmas: Sequence[float] = ()) -> None:
        attentions = [getattr(block, self.names.parts.attention) for block in self.blocks]
        refuse_untrainable(self.transformer, attentions, self.pipeline._execution_device)

    @abstractmethod
    def _trained_fps(self) -> int:
        """Frames a second of what the published models were trained on."""

    # Sizes ----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def _patch(self) -> tuple[int, int, int]:
        """Latents to a token: (frames, rows, columns)."""

    @abstractmethod
    def _frames_step(self) -> int:
        """The clip's frames are a multiple of this, and one."""

    def check_size(self, num_frames: int, height: int, width: int) -> None:
        step = self._frames_step()
        if num_frames < 1 or (num_frames - 1) % step:
            near = max(1, round((num_frames - 1) / step) * step + 1)
            raise TTOMError(
                f"{num_frames} frames do not fit the VAE, which takes {step}·n+1; use {near}, for example."
            )
        multiple = self.pipeline.vae_scale_factor_spatial * self._patch[1]
        for name, size in (("height", height), ("width", width)):
            if size < multiple or size % multiple:
                raise TTOMError(f"The {name} must be a multiple of {multiple}, not {size}.")
        devices_of(self.transformer).insist_on_slices(math.prod(self._grid(num_frames, height, width)))

    def token_grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        self.check_size(num_frames, height, width)
        return self._grid(num_frames, height, width)

    def _grid(self, num_frames: int, height: int, width: int) -> tuple[int, int, int]:
        t, s = self.pipeline.vae_scale_factor_temporal, self.pipeline.vae_scale_factor_spatial
        p_t, p_h, p_w = self._patch
        # Rounded up: latent frames that do not fill a patch are padded.
        return -(-((num_frames - 1) // t + 1) // p_t), height // s // p_h, width // s // p_w

    # Text -----------------------------------------------------------------------------------------

    @abstractmethod
    def _text_limit(self) -> int:
        """The text tokens of a denoiser call, the end-of-text token and the padding among them."""

    def _clean(self, text: str) -> str:
        """A prompt as the pipeline gives it to the tokenizer."""
        return text

    def read(self, prompt: str) -> EncodedPrompt:
        """Where the tokens of a prompt lie in it."""
        text = self._clean(prompt)
        # Not verbose: prompts past the limit are answered in words of our own.
        encoding = self.pipeline.tokenizer(text, return_offsets_mapping=True, truncation=False, verbose=False)
        return EncodedPrompt(prompt, text, tuple(encoding["offset_mapping"]), self.max_text_tokens)

    def phrase_tokens(self, prompt: str, phrases: Sequence[str]) -> dict[str, tuple[int, ...]]:
        cleaned = [self._clean(phrase) for phrase in phrases]
        found = self.read(prompt).positions(cleaned)
        return {phrase: found[clean] for phrase, clean in zip(phrases, cleaned, strict=True)}

    def encode(self, prompt: str) -> Tensor:
        """The prompt's embedding [1, max_text_tokens, d], remembered for the last prompt."""
        if self._encoded is None or self._encoded[0] != prompt:
            with torch.no_grad():
                embeds, _ = self.pipeline.encode_prompt(
                    prompt,
                    do_classifier_free_guidance=False,
                    max_sequence_length=self.max_text_tokens,
                )
            self._encoded = (prompt, embeds)
        return self._encoded[1]

    def conditional_rows(self, prompt: str, conditioning: Tensor) -> list[int]:
        wanted = self.encode(prompt)[0].to(conditioning)
        return [
            i for i, row in enumerate(conditioning) if row.shape == wanted.shape and torch.equal(row, wanted)
        ]

    # Adapters and maps ----------------------------------------------------------------------------

    def adapter_modules(self, layers: Sequence[int], scope: str) -> dict[str, nn.Linear]:
        paths = adapted(self.names, layers, scope)
        return {path: self.transformer.get_submodule(path) for path in paths}

    def default_layers(self) -> tuple[int, ...]:
        found = default_layers(type(self).pipeline_class.__name__, self.transformer)
        if found is None:
            raise TTOMError(
                "No loss layers are known for a model of this size; name some, or find them with ttom probe."
            )
        return found[0]

    @abstractmethod
    def blank_call(self, num_frames: int, height: int, width: int, rows: int, like: Tensor) -> dict[str, Any]:
        """A denoiser call's arguments for a clip, of zeros, in the type and on the device of `like`."""

    @abstractmethod
    def _latent_size(self, latents: Tensor) -> tuple[int, int, int]:
        """Latent frames, rows and columns of a denoiser call."""

    def _shared_inputs(self, call: dict[str, Any]) -> dict[str, Any]:
        """What the denoiser is called with beside the latents, the timestep and the text."""
        return {}

    @abstractmethod
    def _reader(
        self, call: dict[str, Any], tokens: PhraseTokens, keep_heads: bool, joint_map: JointMap
    ) -> Callable[[Tensor, Tensor], Tensor]:
        """Maps of what the attention's norm_q and norm_k give (`MapProbe.read`)."""

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
        blocks, chosen = self.blocks, list(rows)
        latents = call["hidden_states"][chosen]
        size = self._latent_size(latents)
        grid = (size[0] // self._patch[0], size[1] // self._patch[1], size[2] // self._patch[2])
        devices, read = devices_of(self.transformer), self._reader(call, tokens, keep_heads, joint_map)
        if latents.requires_grad:
            latents.register_hook(lambda gradient: devices.summed(gradient)[0])
        probe = MapProbe(layers, grid, lambda query, key: devices.gathered(read(query, key)), early_exit)
        attentions = {i: getattr(blocks[i], self.names.parts.attention) for i in layers}
        projections = {i: (attention.norm_q, attention.norm_k) for i, attention in attentions.items()}

        # No cache to go on from: one for this call alone, in which nothing before an adapter is left out.
        # Nothing in it has a gradient, unless the latents themselves are optimised.
        start = PrefixCache(0) if prefix is None else prefix
        first, last = start.first_block, max(layers)
        constant = getattr(blocks[first], self.self_attention_name) if self.self_attention_name else None
        if constant is not None and is_adapted(constant):
            constant = None
        if start.state is None:
            _insist_on_one_video(call["hidden_states"], chosen)
            devices.insist_on_same("latents", latents)
            devices.insist_on_same("prompts", call["encoder_hidden_states"][chosen])
            gradients = torch.is_grad_enabled() and latents.requires_grad
            eager = uncompiled(blocks.modules())
            with eager, torch.set_grad_enabled(gradients), captured(start, blocks[first], constant):
                # The host's attention_kwargs stay out: a LoRA scale in them would be gone in backward.
                self.transformer.forward(
                    hidden_states=latents,
                    timestep=call["timestep"][chosen],
                    encoder_hidden_states=call["encoder_hidden_states"][chosen],
                    return_dict=False,
                    **self._shared_inputs(call),
                )
        assert start.state is not None
        packed = is_packed(self.transformer)

        def run(index: int, *state: Any) -> tuple[Any, ...]:
            # All is set up here, not around the loop: checkpointing runs this again in backward.
            mine = {index: projections[index]} if index in projections else {}
            recall: AbstractContextManager[None] = nullcontext()
            if index == first and start.self_attention is not None:
                recall = recalled(constant, start.self_attention)
            unpacked = differentiable(blocks[index], unpacked_weight) if packed else nullcontext()
            with uncompiled(blocks[index].modules()), tapped(probe, mine), recall, unpacked:
                output = blocks[index](*state)
            return output if isinstance(output, tuple) else (output,)

        state = start.state
        try:
            for index in range(first, (last + 1) if early_exit else self.num_layers):
                if checkpointing and index < last:
                    moved = checkpoint(run, index, *state, use_reentrant=False)
                else:
                    moved = run(index, *state)
                # A block gives its first arguments anew; the others are the same for all.
                state = (*moved, *state[len(moved) :])
        except EarlyExit:
            pass
        return probe.maps

    def agreed(self, value: float) -> float:
        return devices_of(self.transformer).least(value)

    def insist_on_same(self, what: str, given: Tensor) -> None:
        devices_of(self.transformer).insist_on_same(what, given)

    def summed(self, gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
        return devices_of(self.transformer).summed(*gradients)

    @contextmanager
    def resident(self, last: int) -> Iterator[None]:
        """Keep the blocks behind this one off the device for the length of a `with` block."""
        late = self.blocks[last + 1 :]
        devices = [next(block.parameters()).device for block in late]
        # Cut off, not only moved: a hook that brings the model to its device leaves them where they are.
        setattr(self.transformer, self.names.blocks, self.blocks[: last + 1])
        try:
            late.to("cpu")
            yield
        finally:
            setattr(self.transformer, self.names.blocks, self.blocks)
            for block, device in zip(late, devices, strict=True):
                block.to(device)

    # Sampling -------------------------------------------------------------------------------------

    def latents_moved(self, move: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        return stepping_from(self.pipeline.scheduler, move)

    def guided_until(self, prompt: str, sigma: float) -> AbstractContextManager[None]:
        experts = [self.transformer, getattr(self.pipeline, "transformer_2", None)]
        present = [expert for expert in experts if expert is not None]
        return guided_until(sigma, present, self.sigma_of, partial(self.conditional_rows, prompt))

    @abstractmethod
    def sigmas(self, steps: int) -> list[float]: ...

    @abstractmethod
    def sigma_of(self, timestep: Tensor) -> float: ...

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
        def ended(pipe: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step(step)
            return tensors

        video = self.pipeline(
            # Encoded here, once: when the optimisation looks for it, an offloading pipeline would have to
            # bring the text encoder back beside the transformer.
            prompt_embeds=self.encode(prompt),
            negative_prompt=negative_prompt,
            num_frames=num_frames,
            height=height,
            width=width,
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generator,
            max_sequence_length=self.max_text_tokens,
            callback_on_step_end=ended,
            output_type="np",
        ).frames[0]
        return (video * 255).round().clip(0, 255).astype(np.uint8)


def _insist_on_one_video(latents: Tensor, rows: Sequence[int]) -> None:
    """TTOMError when a call holds more; guidance in one batch only repeats a video's latents."""
    others = [row for index, row in enumerate(latents) if index != rows[0]]
    if len(rows) > 1 or not all(torch.equal(row, latents[rows[0]]) for row in others):
        raise TTOMError(
            "TTOM optimises one video at a time; call the pipeline with a single prompt and "
            "num_videos_per_prompt=1."
        )
