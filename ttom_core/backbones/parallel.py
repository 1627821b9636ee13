"""One video on several devices: diffusers' context parallelism (Ulysses), with exact gradients.

Every device holds the whole model and a slice of the video's tokens. In self-attention they exchange tokens
for heads and back (DeepSpeed-Ulysses, arXiv:2309.14509); attention to the text needs a device's own tokens
alone. The maps are gathered, so that every device has the loss over the whole volume. Its backward pass gives
a device what went through its own tokens: an adapter's gradient is the sum over the devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import TTOMError

DIFFERENT = 0.05  # of the largest value; devices of different make round differently


@dataclass(frozen=True)
class Devices:
    """Those that share a video, by diffusers' mesh of them; one alone has nothing to exchange.

    What exchanges is called on every device, in the same order. `own` is this process's device: an offloaded
    model's adapter lies elsewhere, where NCCL does not reach.
    """

    mesh: Any = None
    own: torch.device | None = None

    @property
    def count(self) -> int:
        return 1 if self.mesh is None else int(self.mesh.size())

    def insist_on_slices(self, tokens: int) -> None:
        """TTOMError when a clip's tokens make no equal slices."""
        if tokens % self.count:
            raise TTOMError(
                f"The clip's {tokens} video tokens cannot be divided among {self.count} devices; choose "
                "another number of frames, another size or fewer devices."
            )

    def gathered(self, maps: Tensor) -> Tensor:
        """Maps […, S] of the whole volume from each device's […, S / count], with gradients to its own."""
        if self.mesh is None:
            return maps
        from diffusers.hooks.context_parallel import EquipartitionSharder

        whole: Tensor = EquipartitionSharder.unshard(maps, maps.ndim - 1, self.mesh)
        return whole

    def summed(self, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Each gradient's sum over the devices, in one exchange; a missing one is missing everywhere."""
        present = [gradient for gradient in gradients if gradient is not None]
        if self.mesh is None or not present:
            return gradients
        flat = torch.cat([gradient.flatten() for gradient in present]).to(self.own)
        torch.distributed.all_reduce(flat, group=self.mesh.get_group())
        sums = iter(flat.split([gradient.numel() for gradient in present]))
        return tuple(g if g is None else next(sums).view_as(g).to(g.device) for g in gradients)

    def insist_on_same(self, what: str, given: Tensor) -> None:
        """TTOMError, on every device, when they were given different values: other seeds, say."""
        if self.mesh is None:
            return
        flat = given.detach().flatten().float()
        bounds = self._least(torch.cat([flat, -flat]))
        least, most = bounds[: flat.numel()], -bounds[flat.numel() :]
        if (most - least).max() > DIFFERENT * bounds.abs().max():
            raise TTOMError(
                f"The devices were given different {what}; call the same on each, with the same prompt, "
                "layout, settings, seed and adapter."
            )

    def least(self, value: float) -> float:
        """The least of the devices' values, by which all decide alike: one alone would wait forever."""
        if self.mesh is None:
            return value
        return self._least(torch.tensor(value, dtype=torch.float64)).item()

    def _least(self, values: Tensor) -> Tensor:
        values = values.to(self.own)
        torch.distributed.all_reduce(values, op=torch.distributed.ReduceOp.MIN, group=self.mesh.get_group())
        return values


def devices_of(transformer: Any) -> Devices:
    """The devices that a diffusers transformer is shared by, whoever turned that on."""
    config = getattr(transformer, "_parallel_config", None)
    config = getattr(config, "context_parallel_config", None)
    return Devices() if config is None else Devices(config._flattened_mesh, config._device)


def refuse_inexact_sharing(transformer: Any) -> None:
    """TTOMError for a model that devices share in a way whose maps or gradients would be wrong or missing."""
    parallel = getattr(transformer, "_parallel_config", None)
    if parallel is None:
        return
    plan = getattr(transformer, "_cp_plan", None) or {}
    if any("encoder_hidden_states" in part for part in plan.values() if isinstance(part, dict)):
        raise TTOMError(
            "This release of diffusers divides the text among the devices too, so that none has the whole of "
            "an attention map; upgrade diffusers."
        )
    config = parallel.context_parallel_config
    if config is None:
        kind = "tensor parallelism"
    elif config.ring_degree > 1:
        kind = "ring attention"
    elif config.ulysses_anything:
        kind = "ulysses_anything, which has no backward pass"
    else:
        return
    raise TTOMError(
        f"The devices share the model by {kind}, which TTOM cannot optimise through; give diffusers a "
        "ContextParallelConfig of ulysses_degree alone."
    )


@contextmanager
def context_parallel(backbone: Any) -> Iterator[None]:
    """Let all processes make each video together, one a device, for the length of a `with` block.

    Every process of torch's default group loads the same model (`PipelineBackbone`) on its own device, enters
    this, and calls the same with the same values and seeds: `generate`, or `TTO` around the pipeline. Each
    then has the same frames and the same adapter. TTOMError where devices cannot share this model, or nothing
    could be optimised if they did. Afterwards each has its own again. The forecast of memory is of the whole
    clip on each device, which is more than it takes. If one device alone fails, the others wait for it
    until torchrun, or a timeout, ends them.

        torchrun --nproc-per-node=2 script.py

        torch.distributed.init_process_group()
        backbone = load_backbone(folder, device=f"cuda:{torch.distributed.get_rank()}")
        with context_parallel(backbone):
            generate(backbone, prompt, layout, settings)
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise TTOMError(
            "Several devices need a process each; start the script with torchrun and call "
            "torch.distributed.init_process_group() first."
        )
    count = torch.distributed.get_world_size()
    if count == 1:
        yield
        return
    # Wan 2.2 has two experts, and the pipeline goes from one to the other.
    experts = [backbone.transformer, getattr(backbone.pipeline, "transformer_2", None)]
    experts = [expert for expert in experts if expert is not None]
    _insist_on_sharing(backbone.transformer, count)
    with ExitStack() as stack:
        for expert in experts:
            stack.callback(_unshare, expert)
            _share(expert, count)
        backbone.check_trainable()
        yield


def _insist_on_sharing(transformer: Any, count: int) -> None:
    name = type(transformer).__name__
    if getattr(transformer, "_parallel_config", None) is not None:
        raise TTOMError(f"Devices share this {name} already; leave out context_parallel().")
    if getattr(transformer, "_cp_plan", None) is None:
        raise TTOMError(
            f"diffusers has no plan of how devices could share a {name}; use one device, or a Wan model."
        )
    heads = transformer.config.num_attention_heads
    if heads % count:
        raise TTOMError(
            f"The model's {heads} attention heads cannot be divided among {count} devices; use "
            f"{max(n for n in range(1, count) if heads % n == 0)}."
        )


def _share(transformer: Any, count: int) -> None:
    from diffusers import ContextParallelConfig

    try:
        transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=count))
    except ValueError as error:  # diffusers' list of attention backends is longer than a sentence
        raise TTOMError(
            "The model's attention backend cannot be shared by devices; call "
            "transformer.set_attention_backend('native')."
        ) from error


def _unshare(transformer: Any) -> None:
    """Undo `enable_parallelism`, for which diffusers has no call, however far it came."""
    from diffusers.hooks.context_parallel import remove_context_parallel

    remove_context_parallel(transformer, transformer._cp_plan)
    transformer._parallel_config = None
    for processor in transformer.attn_processors.values():
        if hasattr(processor, "_parallel_config"):
            processor._parallel_config = None
