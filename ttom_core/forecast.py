"""What a clip needs of memory, part by part, known before any long work.

The model is built anew on torch's meta device, where tensors have shapes and no numbers, and the very code
of an iteration, of a denoising step and of the decoding runs there; what its tensors would hold is counted
as it goes. Kernels' own workspaces and the allocator's gaps are not in it: `RESERVE` stands for them.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .adapter import Adapter, attach
from .attention import PrefixCache
from .backbones.published import PUBLISHED
from .backbones.quantization import Base, is_cast, is_packed
from .errors import TTOMError
from .objectives import alignment_loss
from .optimize import agreed, block_of, insist_on_layers

if TYPE_CHECKING:
    from pathlib import Path

    from .backbones.pipeline import PipelineBackbone
    from .optimize import TTOSettings

GIB = 2**30
RESERVE = 0.05  # of the free memory, left to kernels' workspaces and the allocator's gaps
PHRASES = 4  # whose maps are counted: hardly more than nothing each
SMALLER = "make the clip shorter or smaller"
ADAMW_STATES = 2  # moments, beside the parameter itself
GGUFType = Literal["Q8_0", "Q6_K", "Q5_K", "Q4_K", "Q3_K"]
Packing = Base | GGUFType
# Bytes a weight of the blocks' linear layers: of GGUF's types, a block's of 32 or 256 with its scales (the
# package gguf's GGML_QUANT_SIZES; Q5_0 and Q4_0 are as Q5_K and Q4_K); nf4 has an fp32 scale for every 64.
GGUF_BYTES: dict[Packing, float] = {
    "Q8_0": 34 / 32, "Q6_K": 210 / 256, "Q5_K": 176 / 256, "Q4_K": 144 / 256, "Q3_K": 110 / 256,
}  # fmt: skip
WEIGHT_BYTES: dict[Packing, float] = {"int8": 1.0, "nf4": 0.5 + 4 / 64, **GGUF_BYTES}
UNPACKING = 10  # bytes a weight at most, while diffusers unpacks a GGUF matrix


class NotEnoughMemory(TTOMError):
    """What was asked for does not fit into the memory that is free."""


class Clip(NamedTuple):
    """A clip's size in frames and pixels."""

    num_frames: int
    height: int
    width: int


class Plan(NamedTuple):
    """How to fit into memory; what each saves is paid for in time, from left to right ever more."""

    offload: bool = False  # text encoder and VAE are on the device only while they work
    checkpointing: bool = False
    resident_blocks: bool = False  # blocks behind the deepest loss layer wait off the device
    base: Packing = "full"

    def __str__(self) -> str:
        words = {
            "offload": self.offload,
            "checkpointing": self.checkpointing,
            "resident blocks": self.resident_blocks,
            f"{self.base} base": self.base != "full",
        }
        return " + ".join(word for word, chosen in words.items() if chosen) or "all on the device"


# In the order in which they are tried. A base of 8 bits wants checkpointing: autograd would otherwise keep
# every weight as it was computed with.
PLANS = (
    Plan(),
    Plan(offload=True),
    Plan(offload=True, checkpointing=True),
    Plan(offload=True, checkpointing=True, resident_blocks=True),
    Plan(offload=True, checkpointing=True, base="fp8"),
    Plan(offload=True, checkpointing=True, base="nf4"),
)


@dataclass(frozen=True)
class Forecast:
    """Bytes that are held at once, by phase and part."""

    phases: dict[str, dict[str, int]]

    @property
    def peak(self) -> int:
        return max(sum(parts.values()) for parts in self.phases.values())

    @property
    def fullest(self) -> str:
        """The phase that needs the most."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    def __str__(self) -> str:
        """One line a phase, its parts in GiB."""
        return "\n".join(
            f"{name:9} {gib(sum(parts.values())):>9} = "
            + " + ".join(f"{part} {gib(size)}" for part, size in parts.items() if size)
            for name, parts in self.phases.items()
        )


def gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB / 10 else f"{size / 2**20:.1f} MiB"


# ---- a model without its weights -----------------------------------------------------------------


@dataclass(frozen=True)
class Blueprint:
    """A model's parts on the meta device, and the bytes that their weights take where they are loaded."""

    backbone: PipelineBackbone
    vae: Any
    text_encoder: int
    blocks: tuple[int, ...]
    rest: int  # of the transformer
    dtype: torch.dtype
    other_expert: int = 0
    unpacking: int = 0  # the most that one packed matrix takes while it is unpacked
    counted: dict[Any, dict[str, int]] = field(default_factory=dict, compare=False, repr=False)

    @property
    def transformer(self) -> int:
        return sum(self.blocks) + self.rest


def published(name: str, dtype: torch.dtype = torch.bfloat16, base: Packing = "full") -> Blueprint:
    """The blueprint of a published model; TTOMError for a name that is not among them.

    With a GGUF type it is that of a file that has all matrices of the blocks in this type. It takes the place
    of one transformer: a second expert stays as it is.
    """
    if name not in PUBLISHED:
        raise TTOMError(f"There is no published model {name!r} here; choose one of {', '.join(PUBLISHED)}.")
    model = PUBLISHED[name]
    # Models of one size share what is counted.
    first = next(other for other, twin in PUBLISHED.items() if twin.transformer == model.transformer)
    expert = _expert(first, dtype, base)
    if model.experts == 1:
        return expert
    other = _expert(first, dtype, "full") if base in GGUF_BYTES else expert
    return dataclasses.replace(expert, other_expert=other.transformer)


@functools.lru_cache(maxsize=32)
def _expert(name: str, dtype: torch.dtype, base: Packing) -> Blueprint:
    import diffusers

    model = PUBLISHED[name]
    wan = model.pipeline == "WanPipeline"
    kind = diffusers.WanTransformer3DModel if wan else diffusers.CogVideoXTransformer3DModel
    transformer = _on_meta(kind, model.transformer, dtype, base)
    backbone = _family(model.pipeline).of_transformer(transformer, 4, 8)
    blocks = tuple(_weight_bytes(block, base) for block in backbone.blocks)
    rest = held(transformer) - sum(held(block) for block in backbone.blocks)
    vae, text_encoder = _other_parts(model.pipeline, dtype)
    unpacking = _unpacking(backbone) if base in GGUF_BYTES else 0
    return Blueprint(backbone, vae, text_encoder, blocks, rest, dtype, unpacking=unpacking)


@functools.lru_cache(maxsize=8)
def _other_parts(pipeline: str, dtype: torch.dtype) -> tuple[Any, int]:
    """The VAE and the bytes of the text encoder, which all published models of a pipeline share."""
    import diffusers
    import transformers

    model = next(model for model in PUBLISHED.values() if model.pipeline == pipeline)
    wan = pipeline == "WanPipeline"
    kind = "UMT5" if wan else "T5"
    with torch.device("meta"):
        config = getattr(transformers, f"{kind}Config")(**model.text_encoder)
        text_encoder = getattr(transformers, f"{kind}EncoderModel")(config)
    vae = _on_meta(diffusers.AutoencoderKLWan if wan else diffusers.AutoencoderKLCogVideoX, model.vae, dtype)
    return vae, sum(p.numel() for p in text_encoder.parameters()) * dtype.itemsize


def blueprint_in(folder: Path, dtype: torch.dtype = torch.bfloat16) -> Blueprint:
    """The blueprint of a model in a diffusers folder, of which only the configs are read."""
    import diffusers

    def config(part: str) -> dict[str, Any]:
        read: dict[str, Any] = json.loads((folder / part / "config.json").read_text())
        return read

    try:
        family = json.loads((folder / "model_index.json").read_text())["_class_name"]
        parts = {part: config(part) for part in ("transformer", "vae")}
        made = {
            part: _on_meta(getattr(diffusers, values["_class_name"]), values, dtype)
            for part, values in parts.items()
        }
        twin = _family(family)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TTOMError(f"{folder} is no whole diffusers folder of a model known here; give one.") from error
    vae = made["vae"]
    temporal = getattr(vae.config, "scale_factor_temporal", None) or vae.config.temporal_compression_ratio
    spatial = getattr(vae.config, "scale_factor_spatial", None) or 2 ** (
        len(vae.config.block_out_channels) - 1
    )
    backbone = twin.of_transformer(made["transformer"], temporal, spatial)
    blocks = tuple(held(block) for block in backbone.blocks)
    text = sum(file.stat().st_size for file in (folder / "text_encoder").glob("*.safetensors"))
    return Blueprint(backbone, vae, text, blocks, held(made["transformer"]) - sum(blocks), dtype)


def blueprint_of(backbone: PipelineBackbone) -> Blueprint:
    """The blueprint of a loaded model, made once, and again when its VAE decodes in another way."""
    pipeline, real = backbone.pipeline, backbone.transformer
    tiling = _tiling(pipeline.vae)
    known: Blueprint | None = getattr(backbone, "_blueprint", None)
    if known is not None and _tiling(known.vae) == tiling:
        return known
    dtype = real.dtype if real.dtype in (torch.float64, torch.float32, torch.float16) else torch.bfloat16
    base: Base = "fp8" if is_cast(real) else "full"
    transformer = _on_meta(type(real), dict(real.config), dtype, base)
    vae = _on_meta(type(pipeline.vae), dict(pipeline.vae.config), pipeline.vae.dtype)
    vars(vae).update(tiling)
    factors = (pipeline.vae_scale_factor_temporal, pipeline.vae_scale_factor_spatial)
    twin = type(backbone).of_transformer(transformer, *factors)
    blocks = tuple(held(block) for block in backbone.blocks)
    made = Blueprint(
        twin,
        vae,
        held(pipeline.text_encoder),
        blocks,
        held(real) - sum(blocks),
        dtype,
        0 if (other := getattr(pipeline, "transformer_2", None)) is None else held(other),
        _unpacking(twin) if is_packed(real) else 0,
    )
    backbone._blueprint = made  # type: ignore[attr-defined]
    return made


def _tiling(vae: Any) -> dict[str, Any]:
    """Whether, and in which sizes, a VAE decodes piece by piece."""
    return {name: value for name, value in vars(vae).items() if name.startswith(("use_", "tile_"))}


def _family(pipeline: str) -> type[PipelineBackbone]:
    from .backbones import BACKBONES

    module, name = BACKBONES[pipeline]
    found: type[PipelineBackbone] = getattr(
        importlib.import_module(f".backbones.{module}", __package__), name
    )
    return found


def _on_meta(cls: Any, config: dict[str, Any], dtype: torch.dtype, base: Packing = "full") -> Any:
    """A model of this config on the meta device, its types as from_pretrained would give them."""
    with torch.device("meta"):
        module = cls.from_config({k: v for k, v in config.items() if not k.startswith("_")})
    kept = set(getattr(module, "_keep_in_fp32_modules", None) or ())
    for name, parameter in module.named_parameters():
        if not kept & set(name.split(".")):
            parameter.data = parameter.data.to(dtype)
    for buffer in module.buffers() if not kept else ():
        buffer.data = buffer.data.to(dtype)
    module.requires_grad_(False).eval()
    if base == "fp8":
        module.enable_layerwise_casting(torch.float8_e4m3fn, dtype)
    return module


def held(module: nn.Module, device: torch.device | None = None) -> int:
    """The bytes of a module's weights, those on one device if it is given."""
    size = 0
    for tensor in (*module.parameters(), *module.buffers()):
        if device is None or tensor.device == device:
            scales = getattr(getattr(tensor, "quant_state", None), "absmax", None)  # bitsandbytes'
            size += tensor.nbytes + (0 if scales is None else scales.nbytes)
    return size


def _weight_bytes(block: nn.Module, base: Packing) -> int:
    size = held(block)
    if base in WEIGHT_BYTES:
        size += round(sum(w.numel() * WEIGHT_BYTES[base] - w.nbytes for w in _matrices(block)))
    return size


def _matrices(module: nn.Module) -> list[Tensor]:
    return [part.weight for part in module.modules() if isinstance(part, nn.Linear)]


def _unpacking(backbone: PipelineBackbone) -> int:
    return UNPACKING * max(weight.numel() for weight in _matrices(backbone.blocks))


# ---- counting ------------------------------------------------------------------------------------


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, for as long as anything holds them.

    `given` are tensors that are there before and may be set free meanwhile.
    """

    def __init__(self, given: Iterable[Tensor] = ()) -> None:
        super().__init__()
        self.now, self._seen = 0, dict[int, Any]()
        for tensor in given:
            self.see(tensor)
        self.start = self.peak = self.now

    def see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._seen:
            return

        def freed(_: Any) -> None:
            del self._seen[key]
            self.now -= size

        self._seen[key] = weakref.ref(storage, freed)
        self.now += size

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors(result):
            self.see(tensor)
        self.peak = max(self.peak, self.now)
        return result


@contextmanager
def fused_attention() -> Iterator[None]:
    """Attention on the meta device as the fused kernels have it; torch itself takes the naive one there."""
    own = F.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *rest: Any, **options: Any) -> Tensor:
        if not query.is_meta:
            return own(query, key, value, *rest, **options)
        attended: Tensor = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value)[0]
        return attended

    # Not a TorchFunctionMode: it is off in backward, where checkpointing computes anew.
    F.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own


@contextmanager
def iterations(
    backbone: PipelineBackbone, clip: Clip, settings: TTOSettings, like: Tensor
) -> Iterator[tuple[list[nn.Parameter], Callable[[PrefixCache | None], Tensor], PrefixCache | None]]:
    """The adapter's parameters, the loss of an iteration, and the prefix cache it starts with, if any.

    Everything of the type and on the device of `like`, the meta device among them. The adapter is at work as
    long as the block runs.
    """
    call = backbone.blank_call(*clip, 1, like)
    modules = backbone.adapter_modules(settings.layers, settings.scope)
    rank, device = settings.rank, like.device
    weights = {
        name: (
            torch.full((rank, module.in_features), 1e-3, device=device),
            torch.zeros(module.out_features, rank, device=device),
        )
        for name, module in modules.items()
    }
    masks = torch.ones(PHRASES, *backbone.token_grid(*clip), device=device)
    tokens = [(index + 1,) for index in range(PHRASES)]
    first = min(*map(block_of, modules), *settings.layers)

    def loss(prefix: PrefixCache | None) -> Tensor:
        maps = backbone.maps(
            call,
            [0],
            tokens,
            settings.layers,
            prefix=prefix,
            early_exit=settings.early_exit,
            checkpointing=settings.checkpointing,
            joint_map=settings.joint_map,
        )
        return alignment_loss(maps, masks, settings.objective, settings.normalize_over)

    with attach(backbone.transformer, Adapter(weights, rank, settings.alpha, "")) as attached:
        yield attached.parameters(), loss, PrefixCache(first) if settings.prefix_cache else None


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def count_iteration(model: Blueprint, clip: Clip, settings: TTOSettings) -> dict[str, int]:
    """The bytes of one optimisation iteration beside the weights, part by part."""
    backbone, like = model.backbone, torch.empty(0, dtype=model.dtype, device="meta")
    transformer = backbone.transformer
    with iterations(backbone, clip, settings, like) as (parameters, loss, prefix):
        given = [*transformer.parameters(), *transformer.buffers(), *parameters]
        with fused_attention(), LiveBytes(given) as live:
            value = loss(prefix)
            kept = live.now - live.start
            torch.autograd.grad(value, parameters)
            peak = live.peak - live.start
        state = () if prefix is None else (prefix.state or (), prefix.self_attention)
        cached = LiveBytes(_tensors(state)).now
    own = sum(p.nbytes for p in parameters)
    return {
        "adapter and optimiser": own * (1 + ADAMW_STATES),
        "prefix cache": cached,
        "activations": kept - cached,
        "working memory": peak - kept,
    }


def count_step(model: Blueprint, clip: Clip) -> int:
    """The bytes of one denoising step beside the weights."""
    backbone, like = model.backbone, torch.empty(0, dtype=model.dtype, device="meta")
    transformer, blocks = backbone.transformer, backbone.blocks
    call = backbone.blank_call(*clip, backbone.guided_rows, like)
    # Without gradients a block leaves nothing behind: two say what all need.
    setattr(transformer, backbone.names.blocks, blocks[:2])
    try:
        given = [*transformer.parameters(), *transformer.buffers(), *_tensors(call)]
        with torch.no_grad(), fused_attention(), LiveBytes(given) as live:
            transformer(**call, return_dict=False)
        return live.peak - live.start
    finally:
        setattr(transformer, backbone.names.blocks, blocks)


def count_decoding(model: Blueprint, clip: Clip) -> int:
    """The bytes of decoding a clip beside the VAE's weights."""
    parts = model.backbone.pipeline
    return _decoding(model.vae, parts.vae_scale_factor_temporal, parts.vae_scale_factor_spatial, clip)


@functools.lru_cache(maxsize=64)
def _decoding(vae: Any, temporal: int, spatial: int, clip: Clip) -> int:
    config = vae.config
    channels = config.z_dim if hasattr(config, "z_dim") else config.latent_channels
    frames, size = (clip.num_frames - 1) // temporal + 1, (clip.height // spatial, clip.width // spatial)
    latents = torch.zeros(1, channels, frames, *size, dtype=vae.dtype, device="meta")
    given = [*vae.parameters(), *vae.buffers()]
    with torch.no_grad(), torch.device("meta"), fused_attention(), LiveBytes(given) as live:
        vae.decode(latents, return_dict=False)
    return live.peak - live.start


def _counted(model: Blueprint, key: Any, count: Callable[[], dict[str, int]]) -> dict[str, int]:
    if key not in model.counted:
        model.counted[key] = count()
    return model.counted[key]


def forecast(model: Blueprint, clip: Clip, settings: TTOSettings | None, plan: Plan) -> Forecast:
    """What a clip needs with this model and plan; without settings no more than the plain sampling.

    The plan's base is the model's own: a blueprint is made for it.
    """
    # Of the settings, only what changes the memory: others share one count.
    step = _counted(model, ("step", clip), lambda: {"working memory": count_step(model, clip)})
    decoding = _counted(model, ("decode", clip), lambda: {"decoding": count_decoding(model, clip)})
    vae = held(model.vae)
    idle = {} if plan.offload else {"text encoder": model.text_encoder, "VAE": vae}
    other = {} if plan.offload or not model.other_expert else {"other expert": model.other_expert}
    transformer = {"transformer": model.transformer}
    unpacked = {"unpacked weight": model.unpacking}
    phases = {
        "encode": {"text encoder": model.text_encoder}
        | ({} if plan.offload else {"VAE": vae} | transformer | other)
    }
    adapter = {}
    if settings is not None and (settings.iterations or settings.latents):
        settings = settings.model_copy(update={"checkpointing": plan.checkpointing})
        if settings.latents is not None:  # whose gradients need the way from the first block on
            scope = "features" if settings.scope == "features" else "reachable"
            settings = settings.model_copy(update={"scope": scope, "prefix_cache": False})
        names = {"layers", "rank", "scope", "joint_map", "prefix_cache", "early_exit", "checkpointing"}
        key = (clip, json.dumps(settings.model_dump(include=names), sort_keys=True))
        chosen = settings
        parts = _counted(model, key, lambda: count_iteration(model, clip, chosen))
        late = sum(model.blocks[max(settings.layers) + 1 :]) if plan.resident_blocks else 0
        phases["optimise"] = idle | other | {"transformer": model.transformer - late} | parts | unpacked
        adapter = {"adapter and optimiser": parts["adapter and optimiser"]}
    # With offload the experts take turns.
    larger = max(model.transformer, model.other_expert) if plan.offload else model.transformer
    phases["sample"] = idle | other | {"transformer": larger} | adapter | step | unpacked
    phases["decode"] = {"VAE": vae} | decoding
    if not plan.offload:
        phases["decode"] |= {"text encoder": model.text_encoder} | transformer | other
    return Forecast(phases)


# ---- what fits -----------------------------------------------------------------------------------


def free_memory(device: torch.device) -> int:
    """The bytes that could still be taken on a device; what torch has set aside and not in use counts."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil  # type: ignore[import-untyped]

    return int(psutil.virtual_memory().available)


class Fit(NamedTuple):
    """Settings that fit, what they need of each device, and the bytes that can be had of it.

    Both are empty where that cannot be told.
    """

    settings: TTOSettings | None
    plan: Plan
    needed: dict[torch.device, Forecast]
    free: dict[torch.device, int]

    def __str__(self) -> str:
        """One line a device, with the parts of the phase that needs the most."""
        lines = []
        for device, needed in self.needed.items():
            phase = needed.fullest
            parts = [f"{part} {gib(size)}" for part, size in needed.phases[phase].items() if size]
            line = f"{gib(needed.peak)} of {gib(self.free[device])} to {phase}, {self.plan}: "
            lines.append(f"{device}: " * (len(self.needed) > 1) + line + " + ".join(parts))
        return "\n".join(lines) or "not foretold"


def fitted(backbone: Any, clip: Clip, settings: TTOSettings | None) -> Fit:
    """The settings, with checkpointing and resident blocks only if without them the memory is too little.

    `backbone` is a loaded `PipelineBackbone`, whose parts may be on several devices. NotEnoughMemory, in one
    sentence with what would help, if one of them has too little in any case; a warning where a part is itself
    spread over several, and nothing can be told. Nothing is loaded or computed for it.
    """
    if settings is not None:
        insist_on_layers(settings.layers, backbone)
    pipeline = backbone.pipeline
    offload = bool(getattr(pipeline, "_all_hooks", None))
    own = torch.empty(0, device=pipeline._execution_device).device  # with its number
    places = {name: [own] if offload else _places(part) for name, part in _parts(pipeline).items()}
    for name, devices in places.items():
        if len(devices) > 1:
            warnings.warn(
                f"The {name} is spread over {' and '.join(map(str, devices))}, so that what memory a clip "
                "needs cannot be told beforehand; if it runs out, make the clip smaller.",
                stacklevel=2,
            )
            return Fit(settings, Plan(), {}, {})
    homes = {name: devices[0] for name, devices in places.items()}
    model, own = blueprint_of(backbone), homes["transformer"]
    free = {device: _available(backbone, device) for device in sorted(set(homes.values()), key=str)}
    for plan in _within_reach(settings, offload, own):
        needed = shares(forecast(model, clip, settings, plan), homes)
        if all(needed[device].peak <= free[device] for device in needed):
            changes = {"checkpointing": plan.checkpointing, "resident_blocks": plan.resident_blocks}
            return Fit(settings and settings.model_copy(update=changes), plan, needed, free)
    device = next(device for device in needed if needed[device].peak > free[device])
    short = needed[device]
    sizes = short.phases[short.fullest]
    largest = sorted(sizes, key=lambda part: -sizes[part])[:3]
    advice = _advice(model, clip, settings, free[device], device) if device == own else SMALLER
    raise NotEnoughMemory(
        f"A clip of {clip.num_frames} frames at {clip.width}×{clip.height} needs {gib(short.peak)} to "
        f"{short.fullest} ({', '.join(f'{part} {gib(sizes[part])}' for part in largest)}), and of {device} "
        f"{gib(free[device])} can be had; {advice}."
    )


def shares(needed: Forecast, homes: Mapping[str, torch.device]) -> dict[torch.device, Forecast]:
    """What each device needs where a model's parts have homes of their own, the transformer among them.

    What is computed is where the part that computes it is: the VAE decodes, all else is the transformer's.
    """
    found: dict[torch.device, dict[str, dict[str, int]]] = {}
    for phase, parts in needed.phases.items():
        for part, size in parts.items():
            home = homes.get("VAE" if part == "decoding" else part, homes["transformer"])
            found.setdefault(home, {}).setdefault(phase, {})[part] = size
    return {device: Forecast(phases) for device, phases in found.items()}


def _parts(pipeline: Any) -> dict[str, nn.Module]:
    """A pipeline's models by the names that forecasts have for them."""
    names = {
        "transformer": "transformer",
        "VAE": "vae",
        "text encoder": "text_encoder",
        "other expert": "transformer_2",
    }
    found = {name: getattr(pipeline, attribute, None) for name, attribute in names.items()}
    return {name: part for name, part in found.items() if part is not None}


def _places(part: nn.Module) -> list[torch.device]:
    """The devices that a model's weights are on."""
    return sorted({tensor.device for tensor in part.parameters()}, key=str)


def _available(backbone: Any, device: torch.device) -> int:
    """The bytes of a device that a clip may take, the model's own there among them."""
    loaded = sum(held(part, device) for part in _parts(backbone.pipeline).values())
    return int(agreed(backbone, loaded + int(free_memory(device) * (1 - RESERVE))))


def _within_reach(settings: TTOSettings | None, offload: bool, device: torch.device) -> Iterator[Plan]:
    """Plans that a loaded model can take, the fastest first."""
    if settings is None:
        yield Plan(offload)
        return
    can_move = device.type != "cpu" and settings.early_exit
    for resident in (False, True) if can_move else (settings.resident_blocks,):
        for checkpointing in (False, True):
            if checkpointing >= settings.checkpointing and resident >= settings.resident_blocks:
                yield Plan(offload, checkpointing, resident)


def _advice(
    model: Blueprint, clip: Clip, settings: TTOSettings | None, free: int, device: torch.device
) -> str:
    if device.type != "cpu":
        stored = sum(weight.numel() for weight in model.backbone.blocks.parameters()) * model.dtype.itemsize
        is_lighter = sum(model.blocks) < stored  # what is quantised is not quantised again
        for plan in PLANS[1:]:
            if is_lighter and plan.base != "full":
                continue
            if forecast(_in_base(model, plan.base), clip, settings, plan).peak <= free:
                words = ["offload=True"] * plan.offload + [f'base="{plan.base}"'] * (plan.base != "full")
                return f"load the model with {' and '.join(words)}"
    return SMALLER


def _in_base(model: Blueprint, base: Packing) -> Blueprint:
    """About the same model with other weights: what is counted is left as it is."""
    if base == "full":
        return model
    factor = WEIGHT_BYTES.get(base, 1.0) / model.dtype.itemsize
    blocks = tuple(round(size * factor) for size in model.blocks)
    other = sum(blocks) + model.rest if model.other_expert else 0
    return dataclasses.replace(model, blocks=blocks, other_expert=other)


def with_weights_of(model: Blueprint, other: Blueprint) -> Blueprint:
    """A model with another's weights and its own counts: with checkpointing they are about the same."""
    return dataclasses.replace(
        model,
        blocks=other.blocks,
        rest=other.rest,
        other_expert=other.other_expert,
        unpacking=other.unpacking,
    )
