"""All that depends on how ComfyUI samples: every fact here may change with its version.

Tried on 0.3.64 and 0.33.0 (the numbers were shortened in between). Used are the wrappers of
`comfy.patcher_extension`, and in `transformer_options` the replacement of blocks (`patches_replace`) and of
attention (`optimized_attention_override`). Nothing of ComfyUI is edited. CogVideoX came in between, and its
blocks cannot be replaced by an option: for the length of a call they are given another `forward`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.model_sampling
import comfy.ops
import comfy.sample
import comfy.samplers
import numpy as np
from comfy.latent_formats import Wan21
from comfy.ldm.modules.attention import attention_pytorch
from comfy.model_management import get_total_memory
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ..ttom_core.backbones.native import (
    BlockTurn,
    NativeCogVideoX,
    NativeModel,
    NativeRun,
    NativeWan,
    State,
)
from ..ttom_core.backbones.phrases import EncodedPrompt
from ..ttom_core.errors import TTOMError
from ..ttom_core.memory.embedding import identity, unit_rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from ..ttom_core.memory.embedding import Embedder

SAMPLERS = list(comfy.samplers.KSampler.SAMPLERS)
SCHEDULERS = list(comfy.samplers.KSampler.SCHEDULERS)
PROMPT = "ttom_prompt"  # what a CONDITIONING carries beside its tensor
_KEY = "ttom"
_SUPPORTED = "TTOM supports Wan 2.1 and 2.2, and CogVideoX, for texts and for images"
_KINDS = {"WanModel": NativeWan, "CogVideoXTransformer3DModel": NativeCogVideoX}  # by their transformers
_BLOCK = "double_block"  # what Wan's blocks are called among the replacements

Model = Any  # a comfy.model_patcher.ModelPatcher
Conditioning = list[Any]  # [[tensor, facts], …]


# The MODEL ----------------------------------------------------------------------------------------


def check_model(model: Model) -> None:
    """TTOMError for a MODEL that TTOM does not know, or that would not learn what it should."""
    transformer = model.model.diffusion_model
    if hasattr(transformer, "_orig_mod") or _has_wrapper(model, "compile"):
        raise TTOMError(
            "The MODEL is compiled, which fixes what TTOM changes during its first steps; remove the node "
            "that compiles it."
        )
    if type(transformer).__name__ not in _KINDS:
        raise TTOMError(f"A MODEL of the kind {type(model.model).__name__} is unknown here; {_SUPPORTED}.")
    if getattr(transformer, "ref_conv", None) is not None:
        raise TTOMError(f"This Wan takes a reference picture among its video tokens; {_SUPPORTED}.")
    if model.model.model_config.optimizations.get("fp8") or any(
        isinstance(part, comfy.ops.fp8_ops.Linear) for part in transformer.modules()
    ):
        raise TTOMError(
            "The MODEL computes in fp8, which is too coarse for gradients; load it with weight_dtype "
            "fp8_e4m3fn instead of fp8_e4m3fn_fast: it is stored just as small."
        )
    if model.model_options.get("context_handler") is not None:
        raise TTOMError(
            "The MODEL samples its video window by window, and TTOM needs all of it at once; remove the node "
            "that sets context windows."
        )
    if _has_wrapper(model, "cache"):
        raise TTOMError(
            "A cache reuses what the MODEL gave at one step in the next, and TTOM changes just that; remove "
            "the cache node."
        )
    if _is_wan(model) and float(model.get_model_object("model_sampling").sigma_max) > 1 + 1e-4:
        raise TTOMError(
            "The MODEL's noise levels go beyond 1, so it is not sampled as Wan is; remove the node that "
            "changes its sampling, other than ModelSamplingSD3 with a shift."
        )


def _is_wan(model: Model) -> bool:
    """Whether a MODEL that TTOM knows is a Wan; else it is a CogVideoX."""
    return _KINDS[type(model.model.diffusion_model).__name__] is NativeWan


def _has_wrapper(model: Model, word: str) -> bool:
    options = model.model_options.get("transformer_options", {})
    kinds = [*model.wrappers.values(), *options.get("wrappers", {}).values()]
    return any(wrappers and word in str(key) for kind in kinds for key, wrappers in kind.items())


def weights_of(model: Model) -> dict[str, Tensor]:
    """The transformer's tensors by name, without the LoRAs that are merged into them now."""
    prefix = "diffusion_model."
    weights = dict(model.model.diffusion_model.named_parameters())
    for key, kept in model.backup.items():
        if key.startswith(prefix):
            weights[key.removeprefix(prefix)] = kept.weight
    return weights


def is_model(thing: object) -> bool:
    """Whether this came from a MODEL socket."""
    return isinstance(thing, ModelPatcher)


def native_model(model: Model) -> NativeModel:
    """A MODEL as a memory sees it; TTOMError for one that TTOM does not know."""
    check_model(model)
    return NativeModel(model.model.diffusion_model, weights_of(model))


def weight_of(linear: nn.Module, like: Tensor) -> Tensor:
    """The weight that a linear layer computes with: cast, dequantised, with LoRAs (`frozen.WeightOf`)."""
    cast = getattr(linear, "cast_bias_weight", None)  # GGUF's layers have their own
    if cast is not None:
        return cast(like)[0]
    if not isinstance(linear, comfy.ops.CastWeightBiasOp):
        return linear.weight.to(like)
    weight = comfy.ops.cast_bias_weight(linear, like)[0]
    if isinstance(weight, getattr(comfy.ops, "QuantizedTensor", ())):  # newer ComfyUI's fp8, int8 and nvfp4
        weight = weight.dequantize().to(like)
    scale = getattr(linear, "scale_weight", None)
    return weight if scale is None else weight * scale.to(weight)


def wrapped(
    model: Model, prepare: Callable[..., Any], sample: Callable[..., Any], predict: Callable[..., Any]
) -> Model:
    """A clone of a MODEL whose runs go through `prepare`, before it is loaded, and `sample`.

    Each of their steps goes through `predict`. All are called as (executor, *args, **kwargs) and return what
    executor(*args, **kwargs) does.
    """
    clone = model.clone()
    for kind, wrapper in (
        (WrappersMP.PREPARE_SAMPLING, prepare),
        (WrappersMP.SAMPLER_SAMPLE, sample),
        (WrappersMP.PREDICT_NOISE, predict),
    ):
        clone.remove_wrappers_with_key(kind, _KEY)  # patched twice: the last one counts
        clone.add_wrapper_with_key(kind, _KEY, wrapper)
    return clone


def memory(model: Model) -> tuple[int, int]:
    """The bytes of the device, and those of the MODEL's weights."""
    return int(get_total_memory(model.load_device)), int(model.model_size())


def with_room(model: Model, shape: Sequence[int], needed: int) -> list[int]:
    """A shape of latents for which ComfyUI makes `needed` bytes more room than for `shape`.

    It reckons what a run needs from this shape alone, in proportion to the batch.
    """
    own = model.model.memory_required([2 * shape[0], *shape[1:]])  # with and without the prompt
    return [shape[0] * (1 + math.ceil(needed / max(own, 1))), *shape[1:]]


# One run of a sampler -----------------------------------------------------------------------------


def insist_on_one_video(shape: Sequence[int]) -> None:
    """TTOMError for latents of a shape that are more, or none."""
    if len(shape) != 5 or shape[0] != 1:
        raise TTOMError(
            f"TTOM optimises one video at a time, not latents of {'×'.join(map(str, shape))}; give it "
            "a video's empty latent with batch_size 1."
        )


def positive_prompt(guider: Any) -> EncodedPrompt:
    """What the run's positive conditioning was encoded from."""
    parts = guider.conds.get("positive") or []
    if len(parts) != 1:
        raise TTOMError(
            f"The positive conditioning has {len(parts)} parts; TTOM takes one prompt for the whole video."
        )
    if PROMPT not in parts[0]:
        raise TTOMError(
            "The positive conditioning does not say where its words are; encode it by Encode Prompt (TTOM)."
        )
    return parts[0][PROMPT]


def computes_in(model: Model) -> torch.dtype:
    """The type that a MODEL computes in, whatever it is stored in."""
    return model.model.manual_cast_dtype or model.model.get_dtype()


def native_backbone(guider: Any, sigmas: list[float]) -> NativeRun:
    """The run's MODEL as the optimisation sees it."""
    model = guider.inner_model
    kind = _KINDS[type(model.diffusion_model).__name__]
    by_turns = _wan_by_turns if kind is NativeWan else _cogvideox_by_turns

    def denoise(latents: Tensor, sigma: Tensor, call: Mapping[str, Any], turn: BlockTurn) -> None:
        with by_turns(model.diffusion_model.blocks, call["model_options"], turn) as options:
            comfy.samplers.calc_cond_batch(model, [guider.conds["positive"]], latents, sigma, options)

    return kind(
        model.diffusion_model,
        positive_prompt(guider),
        sigmas,
        weights_of(guider.model_patcher),
        denoise,
        weight_of,
    )


@contextmanager
def _wan_by_turns(
    blocks: Sequence[nn.Module], model_options: dict[str, Any], turn: BlockTurn
) -> Iterator[dict[str, Any]]:
    """The run's options with its blocks by these turns, and attention that has a backward pass."""
    options, transformer = _with_plain_attention(model_options)
    replaced = dict(transformer.get("patches_replace", {}))
    dit = dict(replaced.get("dit", {}))
    for index in range(len(blocks)):
        dit[(_BLOCK, index)] = _wan_block(index, turn, dit.get((_BLOCK, index)))
    transformer["patches_replace"] = replaced | {"dit": dit}
    yield options


def _wan_block(
    index: int, turn: BlockTurn, theirs: Callable[..., Any] | None
) -> Callable[..., dict[str, Any]]:
    def replacement(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
        def run(state: State) -> State:
            given = args | {"img": state}
            with _with_backward():
                return (theirs(given, extra) if theirs else extra["original_block"](given))["img"]

        return {"img": turn(index, run, args["img"])}

    return replacement


@contextmanager
def _cogvideox_by_turns(
    blocks: Sequence[nn.Module], model_options: dict[str, Any], turn: BlockTurn
) -> Iterator[dict[str, Any]]:
    """As `_wan_by_turns`; the blocks' own `forward` is back afterwards."""
    options, _ = _with_plain_attention(model_options)
    with ExitStack() as stack:
        for index, block in enumerate(blocks):
            theirs = vars(block).get("forward")  # another pack's, on this block alone
            block.forward = _cogvideox_block(index, turn, block.forward)
            stack.callback(_give_back, block, theirs)
        yield options


def _cogvideox_block(index: int, turn: BlockTurn, own: Callable[..., Any]) -> Callable[..., Any]:
    def forward(
        hidden_states: Tensor,
        encoder_hidden_states: Tensor,
        *args: Any,
        image_rotary_emb: Any = None,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor]:
        def run(state: State) -> State:
            video, text, rotation = state
            with _with_backward():
                return *own(video, text, *args, image_rotary_emb=rotation, **kwargs), rotation

        video, text, _ = turn(index, run, (hidden_states, encoder_hidden_states, image_rotary_emb))
        return video, text

    return forward


def _give_back(block: nn.Module, theirs: Callable[..., Any] | None) -> None:
    if theirs is None:
        del block.forward
    else:
        block.forward = theirs


def _with_plain_attention(model_options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Copies of a run's options and of the transformer's, with attention that has a backward pass."""
    transformer = dict(model_options.get("transformer_options", {}))
    transformer["optimized_attention_override"] = lambda own, *args, **kwargs: attention_pytorch(
        *args, **kwargs
    )
    return model_options | {"transformer_options": transformer}, transformer


@contextmanager
def _with_backward() -> Iterator[None]:
    """Let newer ComfyUI leave out its fused operations, which have no backward pass."""
    before = getattr(comfy.model_management, "in_training", None)
    if before is None:
        yield
        return
    comfy.model_management.in_training = True
    try:
        yield
    finally:
        comfy.model_management.in_training = before


def sample(
    model: Model,
    positive: Conditioning,
    negative: Conditioning,
    latent: dict[str, Any],
    *,
    seed: int,
    steps: int,
    cfg: float,
    sampler: str,
    scheduler: str,
    denoise: float,
    on_step: Callable[[int], None],
) -> dict[str, Any]:
    """What the stock KSampler does with these inputs, `on_step` in place of its progress bar."""
    unscaled = getattr(comfy.model_sampling, "V_PREDICTION_DDPM", ())
    if isinstance(model.get_model_object("model_sampling"), unscaled):
        raise TTOMError(
            "The KSampler's noise is far more than CogVideoX knows; use Patch Model (TTOM) with "
            "SamplerCustomAdvanced and VOIDSampler, which begins from the right one."
        )
    latents = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
    noise = comfy.sample.prepare_noise(latents, seed, latent.get("batch_index"))
    samples = comfy.sample.sample(
        model,
        noise,
        steps,
        cfg,
        sampler,
        scheduler,
        positive,
        negative,
        latents,
        denoise=denoise,
        noise_mask=latent.get("noise_mask"),
        callback=lambda step, *_: on_step(step),
        disable_pbar=True,
        seed=seed,
    )
    return latent | {"samples": samples}


# Texts and latents --------------------------------------------------------------------------------


def encode(clip: Any, text: str) -> Conditioning:
    """What the stock CLIPTextEncode gives, with the places of the prompt's words beside it (PROMPT)."""
    tokens = clip.tokenize(text)
    read = getattr(clip, "read", None)  # our own text encoders'
    prompt = read(text) if read is not None else _read(clip, tokens, text)
    return [[tensor, facts | {PROMPT: prompt}] for tensor, facts in clip.encode_from_tokens_scheduled(tokens)]


def _read(clip: Any, tokens: Mapping[str, Any], text: str) -> EncodedPrompt:
    """Where the pieces that a stock CLIP cut a prompt into lie in the text that they spell.

    Weights, as in (word:1.2), and embeddings are no longer in that text; each embedding's vectors stand in it
    as one sign that no phrase has.
    """
    if len(tokens) != 1:
        raise TTOMError(
            f"This CLIP has {len(tokens)} text encoders, and Wan's and CogVideoX's have one; load it with "
            "CLIPLoader and the type wan or cogvideox."
        )
    (batches,) = tokens.values()
    spelt, offsets = "", []
    for token, *_ in (pair for batch in batches for pair in batch):
        piece = "\ufffc"
        if isinstance(token, int):
            ((_, piece),) = clip.tokenizer.untokenize([(token, 1.0)])
            piece = "" if piece.startswith("<") and piece.endswith(">") else piece.replace("▁", " ")
        offsets.append((len(spelt), len(spelt) + len(piece)))
        spelt += piece
    return EncodedPrompt(text, spelt, tuple(offsets), len(offsets) + 1)  # nothing is cut off


def embedder(clip: Any) -> Embedder:
    """The text encoder of a CLIP as a memory's embedder."""
    own = getattr(clip, "embedder", None)  # our own text encoders'
    return own() if own is not None else ClipEmbedder(clip)


class ClipEmbedder:
    """The mean over a sentence's tokens of a stock CLIP, special and unknown ones left out."""

    def __init__(self, clip: Any) -> None:
        self.clip, self.name = clip, f"comfyui-{identity(clip.cond_stage_model)}"

    def __call__(self, sentences: list[str]) -> np.ndarray:
        rows = []
        for sentence in sentences:
            tokens = self.clip.tokenize(sentence)
            spelt = [i for i, (a, b) in enumerate(_read(self.clip, tokens, sentence).offsets) if a < b]
            ((hidden, _),) = self.clip.encode_from_tokens_scheduled(tokens)
            rows.append(hidden[0, spelt].float().mean(0))
        return unit_rows(rows, 0)


def to_wan(latents: Tensor) -> Tensor:
    """A Wan MODEL's LATENT as its transformer has it: every channel of mean 0 and deviation 1."""
    return Wan21().process_in(latents)


def from_wan(latents: Tensor) -> Tensor:
    """The inverse of `to_wan`."""
    return Wan21().process_out(latents)
