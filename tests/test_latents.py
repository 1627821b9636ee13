"""Moving the latents: the right energy, the right update, where the loop goes on from, and nothing left."""

from __future__ import annotations

import copy
import functools
import inspect

import pytest
import tiny_cogvideox
import torch
from conftest import PHRASES, PROMPT, SIZE, STEPS
from diffusers import (
    CogVideoXDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
    WanPipeline,
)
from pydantic import ValidationError
from test_attention import call_of
from test_optimize import state_of

from ttom_core.backbones.cogvideox import CogVideoXBackbone
from ttom_core.backbones.folder import TrainedClip
from ttom_core.backbones.wan import WanBackbone
from ttom_core.cli import main
from ttom_core.errors import TTOMError
from ttom_core.generate import generate
from ttom_core.latents import LatentGuidance
from ttom_core.masks import SoftMasks, soft_masks
from ttom_core.objectives import lvd
from ttom_core.optimize import PRESETS, TTO, LatentSettings, TTOSettings, sigma_of_step
from ttom_core.planner import plan

GRID = (2, 2, 2)


@pytest.fixture
def boxes() -> SoftMasks:
    """Hard masks of two objects, one of them not there in the second frame."""
    values = torch.zeros(2, *GRID)
    values[0, 0, :, 0] = 1
    values[1, 0, 1, 1] = 1
    values[1, 1] = 1
    return SoftMasks(PHRASES, values)


def with_latents(settings: TTOSettings, adapter: int = 0, **latents: object) -> TTOSettings:
    chosen = {"step_size": 0.01, "iterations": 2, "sigma_end": 0.8} | latents
    changes = {"iterations": adapter, "latents": LatentSettings(**chosen)}
    return settings.model_copy(update=changes)


class Watched:
    """What a scheduler's steps were given and made, and what the denoiser's calls saw."""

    def __init__(self, backbone, monkeypatch):
        scheduler, self.calls, self.samples, self.made = backbone.pipeline.scheduler, [], [], []
        step = scheduler.step

        @functools.wraps(step)
        def watched(*args, **kwargs):
            self.samples.append(inspect.signature(step).bind(*args, **kwargs).arguments["sample"].clone())
            result = step(*args, **kwargs)
            self.made.append(result[0].clone())
            return result

        monkeypatch.setattr(scheduler, "step", watched)
        self.backbone = backbone

    def __enter__(self):
        """To be entered last: its hook sees what the others made of a call."""
        self.hook = self.backbone.transformer.register_forward_pre_hook(
            lambda module, args, call: self.calls.append(call["hidden_states"].clone()), with_kwargs=True
        )
        return self

    def __exit__(self, *error):
        self.hook.remove()


# The energy ---------------------------------------------------------------------------------------


def naive_lvd(weights, masks, tokens, p=0.75, fg=1.0, bg=4.0, com=0.0):
    """The definition, one head, frame and token after the other; weights [heads, τ·h·w, keys]."""
    frames, h, w = masks.shape[1:]
    rows, columns = torch.arange(h).double(), torch.arange(w).double()

    def centre(x):
        return torch.stack([(x.sum(1) * rows).sum() / x.sum(), (x.sum(0) * columns).sum() / x.sum()])

    total = 0
    for mask, positions in zip(masks, tokens, strict=True):
        for position in positions:
            maps = weights[..., position].unflatten(1, (frames, h, w))
            for head in maps:
                for f in range(frames):
                    m = mask[f]
                    k_in = max(1, int(p * m.sum()))
                    k_out = max(1, int(p * (1 - m).sum()))
                    inside = (head[f] * m).flatten().topk(k_in).values.mean()
                    outside = (head[f] * (1 - m)).flatten().topk(k_out).values.mean()
                    energy = fg * (1 - inside) + bg * outside
                    if com and m.any():
                        energy = energy + com * (centre(head[f]) - centre(m)).square().sum() / len(maps)
                    if com and f + 1 < frames and m.any() and mask[f + 1].any():
                        way = centre(head[f + 1]) - centre(head[f]) - centre(mask[f + 1]) + centre(m)
                        energy = energy + com * way.square().sum() / len(maps)
                    total = total + energy / len(positions)
    return total / len(tokens)


@pytest.mark.parametrize("com", [0.0, 0.03])
def test_the_energy_is_the_naive_one_head_by_head(com):
    torch.manual_seed(0)
    scores = torch.randn(3, 4 * 5 * 6, 7, dtype=torch.float64, requires_grad=True)
    layout = plan("a red circle moves to the right while a blue square stays still")
    masks = soft_masks(layout, (4, 5, 6), "hard_box").values.round().double()
    masks[0, 3] = 0  # gone in the last frame
    tokens = [(1, 4), (2, 3, 5)]
    weights = scores.softmax(-1)
    columns = torch.stack([weights[..., i] for t in tokens for i in t], 1).unflatten(2, (4, 5, 6))
    ours, naive = lvd(columns, masks, [2, 3], center=com), naive_lvd(weights, masks, tokens, com=com)
    torch.testing.assert_close(ours, naive, rtol=1e-12, atol=0)
    gradients = [torch.autograd.grad(x, scores, retain_graph=True)[0] for x in (ours, naive)]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("com", [0.0, 0.03])
def test_the_latents_get_the_gradient_of_the_whole_softmax(backbone64, boxes, settings, com):
    """Energy, loss and gradient through the probe, against the model run in full and its explicit softmax."""
    chosen = with_latents(settings, energy="lvd", center_weight=com, iterations=1)
    guidance = LatentGuidance(backbone64, boxes, PROMPT, chosen, steps=STEPS)
    call = call_of(backbone64, torch.float64)
    latents = call["hidden_states"].requires_grad_(True)
    backbone64.transformer.requires_grad_(False)
    energy, loss = guidance._energy(guidance._maps(call, 0))

    held, handles = {}, []
    for layer in chosen.layers:
        for name in ("norm_q", "norm_k"):

            def keep(module, inputs, output, where=(layer, name)):
                held[where] = output.unflatten(2, (2, -1)).transpose(1, 2)

            module = getattr(backbone64.transformer.blocks[layer].attn2, name)
            handles.append(module.register_forward_hook(keep))
    backbone64.transformer(**call, return_dict=False)
    for handle in handles:
        handle.remove()
    naive = 0
    for layer in chosen.layers:
        q, k = held[layer, "norm_q"][0], held[layer, "norm_k"][0]
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1)
        naive = naive + naive_lvd(weights, boxes.values.double(), guidance.tokens, com=com)
    naive = naive / len(chosen.layers)
    torch.testing.assert_close(energy, naive, rtol=1e-9, atol=0)
    assert loss == pytest.approx(naive.item() / (2 * GRID[0]))  # heads × frames
    ours, expected = (torch.autograd.grad(x, latents)[0] for x in (energy, naive))
    torch.testing.assert_close(ours, expected, rtol=1e-7, atol=1e-14)


@pytest.mark.parametrize("way", [{}, {"early_exit": False}, {"checkpointing": True}])
def test_every_way_gives_the_latents_the_same_gradient(backbone64, masks, settings, way):
    gradients = []
    for how in ({}, way):
        chosen = with_latents(settings).model_copy(update=how)
        guidance = LatentGuidance(backbone64, masks, PROMPT, chosen, steps=STEPS)
        call = call_of(backbone64, torch.float64)
        latents = call["hidden_states"].requires_grad_(True)
        backbone64.transformer.requires_grad_(False)
        gradients.append(torch.autograd.grad(guidance._energy(guidance._maps(call, 0))[0], latents)[0])
    assert gradients[0].abs().sum() > 0
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-15)


def test_a_frame_without_a_box_only_repels():
    maps = torch.full((2, 1, 1, 2, 2), 0.25, requires_grad=True)
    energy = lvd(maps, torch.zeros(1, 1, 2, 2), [1])
    assert energy.item() == pytest.approx(2 * (1 + 4 * 0.25))
    assert (torch.autograd.grad(energy, maps)[0] >= 0).all()


# The update ---------------------------------------------------------------------------------------


def test_lvd_moves_by_its_formula_and_the_loop_goes_on_from_there(
    backbone, boxes, settings, monkeypatch, sample
):
    """z ← z − 5·σ·∇L by hand, at the first step; both branches of the guidance see the same z."""
    watched = Watched(backbone, monkeypatch)
    sample()
    noise, plain = watched.samples[0], len(watched.samples)
    chosen = with_latents(
        settings, energy="lvd", update="sigma_scaled", step_size=5.0, iterations=1, sigma_end=1.0
    )
    with LatentGuidance(backbone, boxes, PROMPT, chosen, steps=STEPS) as guidance, watched:
        sample()
    call = {
        "hidden_states": noise.clone().requires_grad_(True),
        "timestep": torch.tensor([1000.0]),
        "encoder_hidden_states": backbone.encode(PROMPT),
    }
    energy, _ = guidance._energy(guidance._maps(call, 0))
    expected = noise - 5.0 * 1.0 * torch.autograd.grad(energy, call["hidden_states"])[0]
    moved = watched.samples[plain]
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-6)
    assert not torch.equal(moved, noise)
    assert torch.equal(watched.calls[0], moved) and torch.equal(watched.calls[1], moved)
    # From the second step on the loop's own latents are its last step's, unmoved.
    assert torch.equal(watched.samples[plain + 1], watched.made[plain])
    assert torch.equal(watched.calls[2], watched.made[plain])


@pytest.mark.parametrize("update", ["normalized", "sigma_scaled"])
@pytest.mark.parametrize("energy", ["alignment", "lvd"])
def test_the_loss_falls(backbone, boxes, settings, sample, energy, update):
    size = 0.05 if update == "normalized" else {"lvd": 5.0, "alignment": 50.0}[energy]
    chosen = with_latents(settings, energy=energy, update=update, step_size=size, iterations=6, sigma_end=1.0)
    before, plain = state_of(backbone), sample()
    runs = []
    for _ in range(2):
        with LatentGuidance(backbone, boxes, PROMPT, chosen, steps=STEPS) as guidance:
            runs.append(sample())
    losses = [row.loss for row in guidance.trace.latent_rows]
    assert losses[-1] < losses[0] and len(losses) == 6
    assert (runs[0] == runs[1]).all() and (runs[0] != plain).any()
    assert state_of(backbone) == before and (sample() == plain).all()


def test_a_normalised_step_has_its_size(backbone, masks, settings, monkeypatch, sample):
    watched = Watched(backbone, monkeypatch)
    sample()
    chosen = with_latents(settings, step_size=0.02, iterations=1, sigma_end=1.0)
    with LatentGuidance(backbone, masks, PROMPT, chosen, steps=STEPS):
        sample()
    change = watched.samples[STEPS] - watched.samples[0]
    assert change.square().mean().sqrt().item() == pytest.approx(0.02, rel=1e-4)


def test_a_stop_ends_a_steps_iterations_before_they_move(backbone, masks, settings, sample):
    plain = sample()
    eager = with_latents(settings, stop_loss=0.69)  # ln 2 bounds the loss: always below
    with LatentGuidance(backbone, masks, PROMPT, eager, steps=STEPS) as guidance:
        assert (sample() == plain).all()
    assert len(guidance.trace.latent_rows) == sum(n > 0 for n in guidance.planned_iterations) > 1


# The shell and the trust region -------------------------------------------------------------------

NOISE = torch.randn(1, 16, 3, 8, 8, generator=torch.Generator().manual_seed(5))
PULL = torch.randn(NOISE.shape, generator=torch.Generator().manual_seed(6)) + 0.3 * NOISE + 0.1


def rms(x):
    return x.square().mean().sqrt().item()


@pytest.mark.parametrize("limit", [None, 1e-3, 0.05, 0.4])
@pytest.mark.parametrize("shell", ["off", "norm", "channels"])
@pytest.mark.parametrize("pull", [0.01, 0.3, 3.0])
def test_the_shell_and_the_trust_region_are_kept(backbone, masks, settings, shell, limit, pull):
    chosen = with_latents(settings, keep_on_shell=shell, max_change=limit)
    guidance = LatentGuidance(backbone, masks, PROMPT, chosen, steps=STEPS)
    change = guidance._allowed(NOISE, pull * PULL)
    moved = NOISE + change
    assert change.any()
    if limit is not None:
        assert rms(change) <= limit
        if rms(guidance._on_shell(NOISE, pull * PULL)) > limit:
            assert rms(change) == pytest.approx(limit, rel=1e-3)  # and no shorter than it must
    if shell == "off" and (limit is None or rms(pull * PULL) <= limit):
        assert torch.equal(change, pull * PULL)
    if shell == "norm":
        assert moved.norm().item() == pytest.approx(NOISE.norm().item(), rel=1e-5)
    if shell == "channels":
        for ours, start in zip(torch.std_mean(moved, (-2, -1)), torch.std_mean(NOISE, (-2, -1)), strict=True):
            torch.testing.assert_close(ours, start, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shell", ["norm", "channels"])
def test_the_noise_that_a_run_starts_from_is_on_the_shell(
    backbone, masks, settings, monkeypatch, sample, shell
):
    watched = Watched(backbone, monkeypatch)
    sample()
    chosen = with_latents(
        settings, step_size=0.1, iterations=8, sigma_end=1.0, keep_on_shell=shell, max_change=0.2
    )
    with LatentGuidance(backbone, masks, PROMPT, chosen, steps=STEPS) as guidance:
        sample()
    noise, moved = watched.samples[0], watched.samples[STEPS]
    assert rms(moved - noise) <= 0.2 * (1 + 1e-5)
    assert moved.norm().item() == pytest.approx(noise.norm().item(), rel=1e-5)
    rows = guidance.trace.latent_rows
    assert rows[-1].loss < rows[0].loss and {row.step for row in rows} == {0}


# The loop, whatever its scheduler and types -------------------------------------------------------


def pipeline_with(backbone, **parts) -> WanBackbone:
    kept = {k: v for k, v in backbone.pipeline.components.items() if k != "transformer_2"}
    return WanBackbone(WanPipeline(**(kept | parts)), clip=TrainedClip(fps=8))


def run(backbone, on_step=lambda step: None, size=SIZE):
    return backbone.sample(
        PROMPT,
        negative_prompt="",
        steps=STEPS,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0),
        on_step=on_step,
        **size,
    )


def test_a_coarser_denoiser_costs_the_latents_no_precision(backbone, masks, settings, monkeypatch):
    """A change too small for bf16 still reaches the loop's fp32 latents in full."""
    coarse = pipeline_with(backbone, transformer=copy.deepcopy(backbone.transformer).bfloat16())
    watched = Watched(coarse, monkeypatch)
    run(coarse)
    chosen = with_latents(settings, step_size=1e-4, iterations=1, sigma_end=1.0)
    with LatentGuidance(coarse, masks, PROMPT, chosen, steps=STEPS), watched:
        run(coarse)
    noise, moved = watched.samples[0], watched.samples[STEPS]
    assert moved.dtype == torch.float32 and watched.calls[0].dtype == torch.bfloat16
    assert rms(moved - noise) == pytest.approx(1e-4, rel=1e-3)
    torch.testing.assert_close(watched.calls[0].float(), moved, rtol=2**-7, atol=1e-3)


def unipc() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )


def test_unipc_goes_on_from_the_moved_latents(backbone, masks, settings, monkeypatch):
    """Its corrector would make a step's latents anew from the last step's; Wan comes with this scheduler."""
    scheduler = unipc()
    backbone = pipeline_with(backbone, scheduler=scheduler)
    plain = run(backbone)
    watched = Watched(backbone, monkeypatch)
    kept = []
    update = scheduler.multistep_uni_p_bh_update

    def predict(*args, sample=None, **kwargs):
        kept.append(sample.clone())
        return update(*args, sample=sample, **kwargs)

    monkeypatch.setattr(scheduler, "multistep_uni_p_bh_update", predict)
    chosen = with_latents(settings, step_size=0.05, iterations=2, sigma_end=0.9)
    with LatentGuidance(backbone, masks, PROMPT, chosen, steps=STEPS) as guidance:
        moved = run(backbone)
    steps = {row.step for row in guidance.trace.latent_rows}
    assert steps == {0, 1} and (moved != plain).any()
    for step in steps:
        assert torch.equal(kept[step], watched.samples[step])
    assert (run(backbone) == plain).all()


@pytest.mark.parametrize("scheduler", [None, CogVideoXDPMScheduler])
@pytest.mark.parametrize("energy", ["alignment", "lvd"])
def test_both_branches_in_one_batch_see_the_moved_latents(monkeypatch, energy, scheduler):
    """CogVideoX calls its denoiser once a step; its stochastic scheduler takes the latents as its fifth."""
    cogvideox = CogVideoXBackbone(tiny_cogvideox.build("5b"))
    if scheduler:
        cogvideox.pipeline.scheduler = scheduler(**tiny_cogvideox.scheduler_options("5b"))
    masks = soft_masks(plan(PROMPT), tiny_cogvideox.GRID, "hard_box")
    plain = run(cogvideox, size=tiny_cogvideox.SIZE)
    watched = Watched(cogvideox, monkeypatch)
    chosen = with_latents(TTOSettings(layers=(1, 2)), energy=energy, step_size=0.05, sigma_end=0.9)
    with LatentGuidance(cogvideox, masks, PROMPT, chosen, steps=STEPS) as guidance, watched:
        moved = run(cogvideox, size=tiny_cogvideox.SIZE)
    assert len(watched.calls) == len(watched.samples) == STEPS and (moved != plain).any()
    last = guidance.trace.latent_rows[-1].step
    for index, (call, latents) in enumerate(zip(watched.calls, watched.samples, strict=True)):
        assert torch.equal(call, latents.expand(2, *latents.shape[1:]))
        if index:
            assert torch.equal(latents, watched.made[index - 1]) == (index > last)
    losses = [row.loss for row in guidance.trace.latent_rows]
    assert losses[1] < losses[0]


def test_a_step_that_another_expert_makes_is_left_alone(backbone, masks, settings):
    """Wan 2.2 hands over to a second denoiser, whose calls nobody watches: one move must not act twice."""
    chosen = with_latents(settings)
    latents = torch.zeros(1, 16, 2, 4, 4)
    with LatentGuidance(backbone, masks, PROMPT, chosen, steps=STEPS) as guidance:
        with torch.no_grad():
            backbone.transformer(**call_of(backbone, torch.float32), return_dict=False)
        assert guidance._before_step(latents).any()
        assert guidance._before_step(latents) is latents


def test_it_works_under_inference_mode(backbone, masks, settings, sample):
    chosen = with_latents(settings, adapter=1)

    def both():
        with (
            LatentGuidance(backbone, masks, PROMPT, chosen, steps=STEPS),
            TTO(backbone, masks, PROMPT, chosen, steps=STEPS),
        ):
            return sample()

    expected = both()
    with torch.inference_mode():
        assert (both() == expected).all()


# Nothing is left behind ---------------------------------------------------------------------------


def whole_state(backbone):
    return state_of(backbone) | {"step": "step" in vars(backbone.pipeline.scheduler)}


def test_zero_iterations_are_bit_identical_to_the_plain_pipeline(backbone, masks, settings, sample):
    plain = sample()
    with LatentGuidance(backbone, masks, PROMPT, with_latents(settings, iterations=0), steps=STEPS):
        assert (sample() == plain).all()


@pytest.mark.parametrize("error", [RuntimeError("host"), KeyboardInterrupt()])
def test_an_interrupt_in_mid_optimisation_leaves_nothing_behind(backbone, masks, settings, sample, error):
    plain = sample()
    backbone.transformer.blocks[0].attn2.to_q.weight.requires_grad_(False)  # a flag of the user's
    before = whole_state(backbone)

    def stop(step, iteration, loss):
        if step == 1:
            raise error

    chosen = with_latents(settings)
    with (
        pytest.raises(type(error)),
        LatentGuidance(backbone, masks, PROMPT, chosen, steps=STEPS, on_progress=stop),
    ):
        sample()
    assert whole_state(backbone) == before and (sample() == plain).all()
    backbone.transformer.requires_grad_(True)


def test_an_error_in_the_loop_restores_the_scheduler(backbone, masks, settings):
    before = whole_state(backbone)

    def stop(step):
        raise RuntimeError("host")

    guidance = LatentGuidance(backbone, masks, PROMPT, with_latents(settings), steps=STEPS)
    with pytest.raises(RuntimeError, match="host"), guidance:
        run(backbone, on_step=stop)
    assert whole_state(backbone) == before


def test_a_step_wrapped_by_somebody_else_is_theirs_again(backbone, masks, settings, monkeypatch):
    watched = Watched(backbone, monkeypatch)
    theirs = backbone.pipeline.scheduler.step
    with LatentGuidance(backbone, masks, PROMPT, with_latents(settings), steps=STEPS):
        assert backbone.pipeline.scheduler.step is not theirs
    assert backbone.pipeline.scheduler.step is theirs and watched.samples == []


@pytest.mark.parametrize("where", ["loss", "gradient"])
def test_what_is_no_number_stops_and_restores(backbone, masks, settings, sample, monkeypatch, where):
    before, plain = whole_state(backbone), sample()
    chosen = with_latents(settings, iterations=1)
    if where == "loss":
        masks = SoftMasks(masks.phrases, masks.values * float("nan"))
    else:
        real = torch.autograd.grad
        monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: [g * float("nan") for g in real(*a, **k)])
    with (
        pytest.raises(TTOMError, match=r"became nan at step 1; .* lower the latents.step_size"),
        LatentGuidance(backbone, masks, PROMPT, chosen, steps=STEPS),
    ):
        sample()
    assert whole_state(backbone) == before and (sample() == plain).all()


def test_no_gradient_is_an_error(backbone, masks, settings, sample, monkeypatch):
    real = backbone.maps
    monkeypatch.setattr(backbone, "maps", lambda *a, **k: {i: m.detach() for i, m in real(*a, **k).items()})
    with (
        pytest.raises(TTOMError, match="No gradient reached the latents"),
        LatentGuidance(backbone, masks, PROMPT, with_latents(settings), steps=STEPS),
    ):
        sample()


# What does not fit --------------------------------------------------------------------------------


def test_bad_input_is_one_sentence(backbone, masks, settings, sample):
    chosen = with_latents(settings)
    with pytest.raises(TTOMError, match="move no latents"):
        LatentGuidance(backbone, masks, PROMPT, settings, steps=STEPS)
    with pytest.raises(TTOMError, match="Layer 9 does not exist"):
        LatentGuidance(backbone, masks, PROMPT, chosen.model_copy(update={"layers": (9,)}), steps=STEPS)
    narrow = with_latents(settings, sigma_start=0.5, sigma_end=0.49)
    with pytest.raises(TTOMError, match=r"None of the 6 denoising steps .* lower latents.sigma_end"):
        LatentGuidance(backbone, masks, PROMPT, narrow, steps=STEPS)
    other = PROMPT.replace("still", "where it is")
    with (
        pytest.raises(TTOMError, match="first call of the denoiser was not with the prompt"),
        LatentGuidance(backbone, masks, other, chosen, steps=STEPS),
    ):
        sample()
    wrong = SoftMasks(masks.phrases, torch.rand(2, 2, 3, 2))
    for energy in ("alignment", "lvd"):
        with (
            pytest.raises(TTOMError, match=r"masks are 2×2×3×2 .* maps 2×2×2×2"),
            LatentGuidance(backbone, wrong, PROMPT, with_latents(settings, energy=energy), steps=STEPS),
        ):
            sample()
    for bad in ({"step_size": 0}, {"step_size": 1, "top_share": 0}, {"step_size": 1, "candidates": 0}, {}):
        with pytest.raises(ValidationError):
            LatentSettings(**bad)


# The whole story ----------------------------------------------------------------------------------


def test_both_move_first_and_the_adapter_learns_on_what_was_moved(backbone, masks, settings, sample):
    chosen = with_latents(settings, adapter=2, sigma_end=settings.sigma_end, step_size=0.05)
    before, plain = whole_state(backbone), sample()
    with TTO(backbone, masks, PROMPT, chosen, steps=STEPS) as alone:
        sample()
    with (
        LatentGuidance(backbone, masks, PROMPT, chosen, steps=STEPS) as guidance,
        TTO(backbone, masks, PROMPT, chosen, steps=STEPS) as tto,
    ):
        frames = sample()
    assert guidance.trace.latent_rows[0].loss == pytest.approx(alone.trace.first_loss)
    assert tto.trace.first_loss < guidance.trace.latent_rows[1].loss  # after the second move
    assert (frames != plain).any() and whole_state(backbone) == before


@pytest.mark.parametrize("name", ["lvd", "latent", "noise", "best"])
def test_presets_tell_the_story_and_count_it_once(backbone, name):
    ticks = []
    settings = PRESETS[name].model_copy(update={"layers": (1, 2)})
    made = generate(
        backbone,
        PROMPT,
        plan(PROMPT),
        settings,
        steps=STEPS,
        on_progress=ticks.append,
        keep_maps=True,
        **SIZE,
    )
    assert ticks[-1].done == ticks[-1].total
    assert [t.done for t in ticks] == sorted(t.done for t in ticks)
    trace = made.trace
    assert trace.latent_rows and bool(trace.rows) == (settings.iterations > 0)
    told = trace.rows if settings.iterations else trace.latent_rows
    assert (trace.first_loss, trace.last_loss) == (told[0].loss, told[-1].loss) and trace.curve == told
    assert set(made.trace.maps_before) == set(made.trace.maps_after) == set(PHRASES)
    assert made.settings["tto"] == settings.model_dump(mode="json")
    assert TTOSettings.model_validate(made.settings["tto"]) == settings
    changed = any(b.any() for _, b in made.adapter.weights.values())
    assert changed == (settings.iterations > 0)


def test_lvd_takes_the_hard_boxes_whatever_the_mask_kind(backbone):
    losses = []
    for kind in ("hard_box", "gaussian"):
        settings = PRESETS["lvd"].model_copy(update={"layers": (1,), "mask_kind": kind})
        made = generate(backbone, PROMPT, plan(PROMPT), settings, steps=STEPS, **SIZE)
        losses.append(made.trace.latent_rows[0].loss)
    assert losses[0] == losses[1]


def test_lvds_steps_are_a_range_of_noise_levels(backbone):
    """The first 10 of 40, in our formula, in diffusers' Euler and with the whole timesteps of UniPC."""
    low = PRESETS["lvd"].latents.sigma_end
    assert sum(sigma_of_step(k, 40, 3.0) >= low for k in range(40)) == 10
    for scheduler in (FlowMatchEulerDiscreteScheduler(shift=3.0), unipc()):
        scheduler.set_timesteps(40)
        levels = map(pipeline_with(backbone, scheduler=scheduler).sigma_of, scheduler.timesteps)
        assert sum(level >= low for level in levels) == 10


def test_the_noise_preset_moves_the_first_step_alone(backbone):
    settings = PRESETS["noise"]
    for steps in (10, 20, 50):
        masks = soft_masks(plan(PROMPT), GRID)
        chosen = settings.model_copy(update={"layers": (1,)})
        planned = LatentGuidance(backbone, masks, PROMPT, chosen, steps=steps).planned_iterations
        assert planned == [settings.latents.iterations] + [0] * (steps - 1)


def test_the_best_of_several_noises_is_the_one_it_says(backbone, settings):
    """The chosen seed has the lowest first loss and alone gives the same clip; one candidate is itself."""
    layout = plan(PROMPT)

    def first_loss_and_clip(seed, candidates):
        chosen = with_latents(settings, iterations=1, candidates=candidates)
        made = generate(backbone, PROMPT, layout, chosen, seed=seed, steps=2, **SIZE)
        return made.trace.latent_rows[0].loss, made.settings["noise_seed"], made.frames

    before = whole_state(backbone)
    best, noise_seed, frames = first_loss_and_clip(3, 4)
    assert whole_state(backbone) == before
    single, same, again = first_loss_and_clip(noise_seed, 1)
    assert same == noise_seed and single == best and (again == frames).all()
    own, itself, _ = first_loss_and_clip(3, 1)
    assert itself == 3 and best <= own
    few = first_loss_and_clip(3, 2)[0]
    assert best <= few <= own  # more candidates begin with the fewer


def test_settings_within_settings_by_their_dotted_names(capsys):
    from ttom_core.cli import _parser, _settings

    def settings(*changes, preset="latent"):
        options = ["generate", PROMPT, "--preset", preset]
        return _settings(_parser().parse_args(options + [x for c in changes for x in ("--set", c)]))

    assert settings("latents.step_size=0.7").latents.step_size == 0.7
    assert settings("latents.keep_on_shell=norm", "rank=4").latents.keep_on_shell == "norm"
    assert settings("latents=null").latents is None
    assert settings('latents={"step_size": 0.1}', preset="demo").latents.step_size == 0.1
    for wrong in ("latents.size=1", "latents.step_size.x=1", "nothing.at=1", "latents.step_size"):
        with pytest.raises(TTOMError, match=r"names no setting; .* latents.step_size"):
            settings(wrong)
    with pytest.raises(TTOMError, match=r"Setting latents.step_size: Input should be greater than 0"):
        settings("latents.step_size=-1")
    assert main(["generate", PROMPT, "--preset", "demo", "--set", "latents.step_size=1"]) == 2
    assert "names no setting" in capsys.readouterr().err
