"""Moving the latents until the attention follows the layout: the rival of the adapter, and its companion.

LLM-grounded Video Diffusion (LVD, Lian et al. 2023) does so at the first denoising steps; at the very first
one alone it is an optimisation of the initial noise. As with the adapter, the sampling loop stays the host's
own: `LatentGuidance` hooks the denoiser's call of a step, and the loop's step starts from what it found.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .attention import EarlyExit
from .backbones.base import Backbone
from .errors import TTOMError
from .masks import SoftMasks
from .objectives import alignment_loss, lvd
from .optimize import (
    Trace,
    TraceRow,
    TTOSettings,
    agreed,
    frozen,
    insist_finite,
    insist_on_grid,
    insist_on_layers,
    is_between,
    mean_maps,
)

HALVINGS = 30  # of the way back into the trust region


class LatentGuidance:
    """Move the latents while a pipeline samples: `with LatentGuidance(...): pipeline(...)`, once.

    Every denoiser call of a step sees the moved latents, and the loop's step starts from them, changed in
    fp32 at least whatever the denoiser's type. Entered before `TTO`, it moves first and the adapter is
    optimised on what it moved. On leaving the block, by whatever road, pipeline and model are as they were.

    masks are the hard boxes for LVD's energy, `settings.mask_kind` for the adapter's own loss. The
    conditional call has to be the first of a step, or one batch with the unconditional one.
    """

    def __init__(
        self,
        backbone: Backbone,
        masks: SoftMasks,
        prompt: str,
        settings: TTOSettings,
        *,
        steps: int,
        trace: Trace | None = None,
        on_progress: Callable[[int, int, float | None], None] | None = None,
        keep_maps: bool = False,
    ) -> None:
        if settings.latents is None:
            raise TTOMError("These settings move no latents; set latents, or choose a preset that does.")
        insist_on_layers(settings.layers, backbone)
        self.backbone, self.masks, self.prompt = backbone, masks, prompt
        self.settings, self.latents = settings, settings.latents
        self.on_progress, self.keep_maps, self.trace = on_progress, keep_maps, trace or Trace()
        self.tokens = list(backbone.phrase_tokens(prompt, masks.phrases).values())
        self._counts = [len(tokens) for tokens in self.tokens]
        self.planned_iterations = self._plan(backbone.sigmas(steps))
        self._stack = ExitStack()
        self._sigma: float | None = None  # of the step that is running
        self._step = -1
        self._change: Tensor | None = None  # of its latents

    def _plan(self, sigmas: list[float]) -> list[int]:
        """The most iterations of each denoising step; early stops make them fewer."""
        wanted = [sigma for sigma in sigmas if self._wanted(sigma)]
        if self.latents.iterations and not wanted:
            low, high = self.latents.sigma_end, self.latents.sigma_start
            raise TTOMError(
                f"None of the {len(sigmas)} denoising steps has a noise level between {low} and {high}, so "
                "there are no latents to move; use more steps or lower latents.sigma_end."
            )
        if self.latents.iterations:
            self.backbone.check_trainable(wanted)
        return [self.latents.iterations * self._wanted(sigma) for sigma in sigmas]

    def _wanted(self, sigma: float) -> bool:
        return is_between(sigma, self.latents.sigma_start, self.latents.sigma_end)

    # In and out -----------------------------------------------------------------------------------

    def __enter__(self) -> LatentGuidance:
        transformer = self.backbone.transformer
        with ExitStack() as stack:
            stack.enter_context(frozen(transformer))
            stack.enter_context(self.backbone.latents_moved(self._before_step))
            hook = transformer.register_forward_pre_hook(self._before_call, with_kwargs=True)
            stack.callback(hook.remove)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._change = None
        self._stack.close()

    # The loop's calls -----------------------------------------------------------------------------

    def _before_call(
        self, module: nn.Module, args: tuple[Any, ...], call: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        sigma = self.backbone.sigma_of(call["timestep"])
        if sigma != self._sigma:
            self._step, self._sigma, self._change = self._step + 1, sigma, None
            if self.latents.iterations and self._wanted(sigma):
                self._change = self._optimise(call, self._row(call), sigma)
        if self._change is None:
            return None
        return args, call | {"hidden_states": _moved(call["hidden_states"], self._change)}

    def _before_step(self, latents: Tensor) -> Tensor:
        # Once: the next step may be another expert's, whose calls are not seen.
        change, self._change = self._change, None
        return latents if change is None else _moved(latents, change)

    def _row(self, call: dict[str, Any]) -> int:
        """The batch row of a call that carries the prompt."""
        rows = self.backbone.conditional_rows(self.prompt, call["encoder_hidden_states"])
        if len(rows) > 1:
            raise TTOMError(f"TTOM optimises one video at a time, not {len(rows)}.")
        if not rows:
            raise TTOMError(
                f"A step's first call of the denoiser was not with the prompt {self.prompt!r}, so no latents "
                "were moved; give the pipeline the same prompt and a max_sequence_length of "
                f"{self.backbone.max_text_tokens}."
            )
        return rows[0]

    # One step's optimisation ----------------------------------------------------------------------

    def _optimise(self, call: dict[str, Any], row: int, sigma: float) -> Tensor | None:
        """What to add to this step's latents [1, …], in fp32 at least; None if that is nothing."""
        settings = self.latents
        # Hosts sample under no_grad or inference_mode; both end here, for these lines only.
        with torch.inference_mode(False), torch.enable_grad():
            call = {k: v.clone() if isinstance(v, Tensor) else v for k, v in call.items()}
            given = call["hidden_states"]
            start = given[row : row + 1].to(torch.promote_types(given.dtype, torch.float32))
            change = torch.zeros_like(start)
            for iteration in range(settings.iterations):
                change.requires_grad_(True)
                maps = self._maps(call | {"hidden_states": _moved(given, change)}, row)
                energy, loss = self._energy(maps)
                loss = agreed(self.backbone, loss)
                insist_finite("latents' loss", loss, self._step, "latents.step_size")
                if self.keep_maps and self.trace.maps_before is None:
                    self.trace.maps_before = self._mean_maps(maps)
                self.trace.latent_rows.append(TraceRow(self._step, sigma, iteration, loss))
                if settings.stop_loss is not None and loss < settings.stop_loss:
                    break
                update = self._update(energy, change, sigma)
                change = self._allowed(start, change.detach() - update)
                if self.on_progress is not None:
                    self.on_progress(self._step, iteration, loss)
            change = change.detach()
            # A gradient that is no number shows in the next loss, but the last one has none.
            insist_finite("latents' change", float(change.sum()), self._step, "latents.step_size")
            if self.keep_maps:
                with torch.no_grad():
                    maps = self._maps(call | {"hidden_states": _moved(given, change)}, row)
                self.trace.maps_after = self._mean_maps(maps)
        return change if change.any() else None

    def _maps(self, call: dict[str, Any], row: int) -> dict[int, Tensor]:
        """Maps by layer: [N, τ, h, w], for LVD of every head and token [heads, T, τ, h, w]."""
        by_head = self.latents.energy == "lvd"
        maps = self.backbone.maps(
            call,
            [row],
            [(token,) for tokens in self.tokens for token in tokens] if by_head else self.tokens,
            self.settings.layers,
            early_exit=self.settings.early_exit,
            checkpointing=self.settings.checkpointing,
            keep_heads=by_head,
            joint_map=self.settings.joint_map,
        )
        grid = next(iter(maps.values())).shape[-3:]
        insist_on_grid(self.masks.values, torch.Size((len(self.tokens), *grid)))
        return maps

    def _energy(self, maps: dict[int, Tensor]) -> tuple[Tensor, float]:
        """What the latents lower, and the loss that is told of it: LVD's sum per head and frame."""
        first = next(iter(maps.values()))
        masks = self.masks.values.to(first.device)
        if self.latents.energy == "alignment":
            loss = alignment_loss(maps, masks, self.settings.objective, self.settings.normalize_over)
            return loss, loss.item()
        energies = [
            lvd(
                layer,
                masks,
                self._counts,
                top_share=self.latents.top_share,
                foreground=self.latents.foreground_weight,
                background=self.latents.background_weight,
                center=self.latents.center_weight,
            )
            for layer in maps.values()
        ]
        energy = torch.stack(energies).mean()
        return energy, energy.item() / (first.shape[0] * first.shape[2])

    def _mean_maps(self, maps: dict[int, Tensor]) -> dict[str, np.ndarray]:
        if self.latents.energy == "lvd":
            tokens = {layer: heads.mean(0).split(self._counts) for layer, heads in maps.items()}
            maps = {layer: torch.stack([t.mean(0) for t in phrases]) for layer, phrases in tokens.items()}
        return mean_maps(maps, self.masks.phrases)

    def _update(self, energy: Tensor, change: Tensor, sigma: float) -> Tensor:
        """What an iteration takes from the latents."""
        gradient = None
        if energy.requires_grad:
            (gradient,) = torch.autograd.grad(energy, change, allow_unused=True)
        if gradient is None:
            raise TTOMError(
                "No gradient reached the latents, so they would not move; turn off offloading or attention "
                "backends that have no backward pass."
            )
        if self.latents.update == "sigma_scaled":
            return self.latents.step_size * sigma * gradient
        return self.latents.step_size * gradient / max(_rms(gradient), torch.finfo(gradient.dtype).tiny)

    def _allowed(self, start: Tensor, change: Tensor) -> Tensor:
        """The change brought back onto the shell and, along the way to it, into the trust region."""
        limit = self.latents.max_change
        whole = self._on_shell(start, change)
        if limit is None or _rms(whole) <= limit:
            return whole
        low, high = 0.0, 1.0
        for _ in range(HALVINGS):
            share = (low + high) / 2
            near = _rms(self._on_shell(start, share * change)) <= limit
            low, high = (share, high) if near else (low, share)
        return self._on_shell(start, low * change)

    def _on_shell(self, start: Tensor, change: Tensor) -> Tensor:
        """The change that leaves the latents' norm, or every channel's statistics, as they were."""
        moved = start + change
        if self.latents.keep_on_shell == "norm":
            return moved * (start.norm() / moved.norm()) - start
        if self.latents.keep_on_shell == "channels":
            deviation, mean = torch.std_mean(start, (-2, -1), keepdim=True, correction=0)
            new_deviation, new_mean = torch.std_mean(moved, (-2, -1), keepdim=True, correction=0)
            return (moved - new_mean) * (deviation / new_deviation) + mean - start
        return change

    # Several noises -------------------------------------------------------------------------------

    def best_seed(self, seed: int, sample: Callable[[int], object]) -> int:
        """The seed whose noise has the lowest loss at the first denoising step, among `candidates`.

        They are `seed` and others drawn from it. `sample(seed)` begins the sampling loop; each noise costs
        one denoiser call that ends at the deepest loss layer. Call it before entering.
        """
        drawn = np.random.SeedSequence(seed % 2**64).generate_state(self.latents.candidates - 1)
        seeds = [seed, *map(int, drawn)]
        if len(seeds) == 1:
            return seed
        losses = [self._first_loss(candidate, sample) for candidate in seeds]
        return seeds[int(np.argmin(losses))]

    def _first_loss(self, seed: int, sample: Callable[[int], object]) -> float:
        found: list[float] = []

        def measure(module: nn.Module, args: tuple[Any, ...], call: dict[str, Any]) -> None:
            with torch.no_grad():
                found.append(self._energy(self._maps(call, self._row(call)))[1])
            raise EarlyExit

        hook = self.backbone.transformer.register_forward_pre_hook(measure, with_kwargs=True)
        try:
            sample(seed)
        except EarlyExit:
            pass
        finally:
            hook.remove()
        return agreed(self.backbone, found[0])


def _moved(latents: Tensor, change: Tensor) -> Tensor:
    """latents + change in the finer of their types, given in the latents' own."""
    return (latents + change).to(latents.dtype)


def _rms(x: Tensor) -> float:
    return x.square().mean().sqrt().item()
