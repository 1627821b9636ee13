"""Low-rank adapters: values that are saved and fused, and forward hooks that apply them.

An adapter's parameters live outside the module tree and act through forward hooks, so the base model is
never edited, a user's own LoRAs stay as they are, and detaching leaves nothing behind.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from .errors import TTOMError

VERSION = 1


class AdapterError(TTOMError):
    """An adapter file or its fit to a model is wrong."""


@dataclass(frozen=True)
class Adapter:
    """LoRA weights by module name: A [rank, in] and B [out, rank]; ΔW = alpha/rank · B·A.

    They are fp32. Such as are in bf16 are saved so, in half the space, and are fp32 again when loaded.
    """

    weights: Mapping[str, tuple[Tensor, Tensor]] = field(repr=False)
    rank: int
    alpha: float
    fingerprint: str

    @property
    def scaling(self) -> float:
        return self.alpha / self.rank

    def save(self, path: Path) -> None:
        """Write safetensors with peft's key names; alpha, rank and fingerprint go into the metadata."""
        from safetensors.torch import save_file

        tensors = {}
        for name, (a, b) in self.weights.items():
            tensors[f"transformer.{name}.lora_A.weight"] = a.contiguous()
            tensors[f"transformer.{name}.lora_B.weight"] = b.contiguous()
        facts = {
            "version": VERSION,
            "rank": self.rank,
            "alpha": self.alpha,
            "fingerprint": self.fingerprint,
        }
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        # One key only: safetensors writes several in random order, and equal adapters are equal bytes.
        save_file(tensors, part, metadata={"ttom": json.dumps(facts)})
        part.replace(path)

    @classmethod
    def load(cls, path: Path) -> Adapter:
        """Read what `save` wrote; AdapterError for any other file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as file:
                facts = json.loads((file.metadata() or {})["ttom"])
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            version, rank, alpha = int(facts["version"]), int(facts["rank"]), float(facts["alpha"])
            fingerprint = str(facts["fingerprint"])
        except (
            OSError, SafetensorError, KeyError, TypeError, ValueError, OverflowError, RecursionError
        ) as error:  # fmt: skip
            raise AdapterError(f"{path} is not an adapter saved by TTOM; choose another file.") from error
        if version != VERSION:
            raise AdapterError(f"{path} has adapter version {version}; this TTOM reads version {VERSION}.")
        weights = {}
        for key, a in tensors.items():
            if not key.endswith(".lora_A.weight"):
                continue
            name = key.removeprefix("transformer.").removesuffix(".lora_A.weight")
            b = tensors.get(key.replace("lora_A", "lora_B"))
            if b is None or a.ndim != 2 or b.ndim != 2 or a.shape[0] != rank or b.shape[1] != rank:
                raise AdapterError(f"{path} has no fitting lora_A and lora_B of rank {rank} for {name}.")
            weights[name] = (a.float(), b.float())
        if 2 * len(weights) != len(tensors):
            raise AdapterError(f"{path} holds tensors that are no part of an adapter; choose another file.")
        return cls(weights, rank, alpha, fingerprint)


class BlockParts(NamedTuple):
    """What a family calls the parts of a block that adapters know.

    `attention` is the one whose maps are read; `before` and `after` are the linear layers, outside it, that
    its own map depends on and that only the maps of the next blocks do.
    """

    attention: str
    before: tuple[str, ...]
    after: tuple[str, ...]


def adapter_places(layers: Sequence[int], scope: str, parts: BlockParts) -> list[tuple[int, str]]:
    """The (block, linear) pairs that an adapter sits on when the loss is taken at these layers.

    Of the attentions that the maps are read from, `reachable` is all that the loss depends on (the paper's),
    `selected` that in these layers alone, `maps` these layers' queries and keys. `features` is all that the
    loss depends on but them: a map that is read as it was trained to be has to follow with the video.
    """
    last = max(layers)
    if scope == "features":
        every = (*parts.before, *parts.after)
        return [(block, name) for block in range(last) for name in every] + [
            (last, name) for name in parts.before
        ]
    chosen = range(last + 1) if scope == "reachable" else sorted(layers)
    # The deepest map depends on its layer's q and k only: v and o would get no gradient.
    maps, whole = ("to_q", "to_k"), ("to_q", "to_k", "to_v", "to_out.0")
    return [
        (layer, f"{parts.attention}.{name}")
        for layer in chosen
        for name in (maps if scope == "maps" or layer == last else whole)
    ]


def init_adapter(
    modules: Mapping[str, nn.Linear], rank: int, alpha: float, seed: int, fingerprint: str
) -> Adapter:
    """A fresh adapter: A uniform as peft draws it, from its own generator; B zero, so ΔW = 0.

    One fixed seed per (model, rank) makes adapters of different prompts fuse well.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    weights = {}
    for name in sorted(modules):
        module = modules[name]
        bound = module.in_features**-0.5
        a = torch.empty(rank, module.in_features).uniform_(-bound, bound, generator=generator)
        weights[name] = (a, torch.zeros(module.out_features, rank))
    return Adapter(weights, rank, float(alpha), fingerprint)


class NamesModules(Protocol):
    """A transformer, or what stands for one: it has modules under the names that adapters use."""

    def named_modules(self) -> Iterable[tuple[str, Any]]: ...


class AttachedAdapter:
    """An adapter at work on a model; `scale` turns it down or off, 0 being exactly the base model."""

    def __init__(self, adapter: Adapter, devices: Mapping[str, torch.device]) -> None:
        self.adapter, self.scale = adapter, 1.0
        self.pairs = {
            name: tuple(
                # Cloned outside inference mode: an inference tensor could not take a gradient.
                nn.Parameter(x.detach().to(devices[name], torch.float32, copy=True))
                for x in pair
            )
            for name, pair in adapter.weights.items()
        }

    def parameters(self) -> list[nn.Parameter]:
        """A and B of every module."""
        return [parameter for pair in self.pairs.values() for parameter in pair]

    def snapshot(self) -> Adapter:
        """The adapter as it now is, on the CPU."""
        weights = {
            name: (a.detach().cpu().clone(), b.detach().cpu().clone()) for name, (a, b) in self.pairs.items()
        }
        return Adapter(weights, self.adapter.rank, self.adapter.alpha, self.adapter.fingerprint)

    def _hook(self, name: str) -> Callable[..., Tensor | None]:
        a, b = self.pairs[name]

        def add(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor | None:
            if self.scale == 0:
                return None
            x = inputs[0]
            factor = self.adapter.scaling * self.scale
            # `to(x)`: the type of the model and, where a host moved it after attaching, its device.
            low = nn.functional.linear(x, a.to(x))
            return output + nn.functional.linear(low * factor, b.to(x))

        return add


def uncompiled(modules: Iterable[Any]) -> AbstractContextManager[None]:
    """Let modules that torch.compile is at work on run as they are written, for the length of a `with` block.

    What was compiled before does not see hooks that come later, and would leave an adapter out in silence.
    """
    if all(getattr(module, "_compiled_call_impl", None) is None for module in modules):
        return nullcontext()
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def is_adapted(module: nn.Module) -> bool:
    """Whether an adapter, or anything else by a hook, acts on a linear layer of a module."""
    return any(part._forward_hooks for part in module.modules() if isinstance(part, nn.Linear))


@contextmanager
def attach(transformer: NamesModules, adapter: Adapter) -> Iterator[AttachedAdapter]:
    """Let an adapter act on a transformer for the length of a `with` block.

    AdapterError if a module is missing or of another size. The hooks are gone afterwards, come what may.
    """
    modules = dict(transformer.named_modules())
    for name, (a, b) in adapter.weights.items():
        linear = modules.get(name)
        if linear is None:
            raise AdapterError(f"The adapter needs a layer {name!r} that this model does not have.")
        shape = (linear.out_features, linear.in_features)  # quantised weights are packed
        if (b.shape[0], a.shape[1]) != shape:
            raise AdapterError(
                f"The adapter is for {name} of {b.shape[0]}×{a.shape[1]}, the model's is "
                f"{shape[0]}×{shape[1]}; use the model it was made with."
            )
        if linear.weight.is_meta and not a.is_meta:
            raise AdapterError(
                "The model's weights are loaded piece by piece while it runs (sequential offloading), "
                "which leaves nothing to optimise; use enable_model_cpu_offload() instead."
            )
    with torch.inference_mode(False):
        devices = {name: modules[name].weight.device for name in adapter.weights}
        attached = AttachedAdapter(adapter, devices)
    handles = []
    try:
        for name in adapter.weights:
            handles.append(modules[name].register_forward_hook(attached._hook(name)))
        with uncompiled(modules.values()):
            yield attached
    finally:
        for handle in handles:
            handle.remove()
