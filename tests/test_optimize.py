"""Test-time optimisation does what it says and leaves nothing behind, however it ends."""

import copy

import numpy as np
import pytest
import torch
from conftest import PHRASES, PROMPT, SIZE, STEPS
from pydantic import ValidationError

from ttom_core.adapter import Adapter, init_adapter
from ttom_core.errors import TTOMError
from ttom_core.generate import generate
from ttom_core.masks import SoftMasks
from ttom_core.optimize import PRESETS, TTO, TTOSettings, sigma_of_step
from ttom_core.planner import plan


def state_of(backbone):
    """Everything a run could leave changed."""
    transformer = backbone.transformer
    return {
        "hooks": [
            (name, len(m._forward_hooks), len(m._forward_pre_hooks))
            for name, m in transformer.named_modules()
        ],
        "processors": [type(p) for p in transformer.attn_processors.values()],
        "blocks": [id(b) for b in transformer.blocks],
        "grad": [p.requires_grad for p in transformer.parameters()],
        "training": [m.training for m in transformer.modules()],
        "names": [name for name, _ in transformer.named_parameters()],
        "forward": "forward" in transformer.__dict__,
        "rng": torch.get_rng_state().tolist(),
    }


def test_zero_iterations_are_bit_identical_to_the_plain_pipeline(backbone, masks, settings, sample):
    plain = sample()
    with TTO(backbone, masks, PROMPT, settings.model_copy(update={"iterations": 0}), steps=STEPS):
        guided = sample()
    assert (plain == guided).all()


def test_optimising_lowers_the_loss_changes_the_video_and_repeats(backbone, masks, settings, sample):
    before, plain = state_of(backbone), sample()
    runs = []
    for _ in range(2):
        with TTO(backbone, masks, PROMPT, settings, steps=STEPS) as tto:
            runs.append((sample(), tto))
    (first, tto), (second, _) = runs
    assert tto.trace.last_loss < tto.trace.first_loss
    assert (first != plain).any() and (first == second).all()
    assert len(tto.trace.rows) == sum(tto.planned_iterations)
    assert state_of(backbone) == before and (sample() == plain).all()


@pytest.mark.parametrize("error", [RuntimeError("host"), KeyboardInterrupt()])
def test_an_interrupt_in_mid_optimisation_leaves_nothing_behind(backbone, masks, settings, sample, error):
    plain = sample()
    backbone.transformer.blocks[0].attn2.to_q.weight.requires_grad_(False)  # a flag of the user's
    before = state_of(backbone)

    def stop(step, iteration, loss):
        if step == 1:
            raise error

    with (
        pytest.raises(type(error)),
        TTO(backbone, masks, PROMPT, settings, steps=STEPS, on_progress=stop),
    ):
        sample()
    assert state_of(backbone) == before
    assert (sample() == plain).all()
    backbone.transformer.requires_grad_(True)


def test_a_loss_that_is_no_number_stops_and_restores(backbone, masks, settings, sample):
    before, plain = state_of(backbone), sample()
    broken = SoftMasks(masks.phrases, masks.values * float("nan"))
    with (
        pytest.raises(TTOMError, match=r"became nan .* model restored"),
        TTO(backbone, broken, PROMPT, settings, steps=STEPS),
    ):
        sample()
    assert state_of(backbone) == before and (sample() == plain).all()


def test_an_update_that_is_no_number_stops_even_after_the_last_iteration(
    backbone, masks, settings, sample, monkeypatch
):
    before, plain = state_of(backbone), sample()
    real = torch.autograd.grad
    monkeypatch.setattr(torch.autograd, "grad", lambda *a, **k: [g * float("nan") for g in real(*a, **k)])
    once = settings.model_copy(update={"iterations": 1})
    with (
        pytest.raises(TTOMError, match=r"adapter's sum became nan at step 1"),
        TTO(backbone, masks, PROMPT, once, steps=STEPS),
    ):
        sample()
    assert state_of(backbone) == before and (sample() == plain).all()


@pytest.mark.parametrize("leaf", [False, True])
def test_no_gradient_anywhere_is_an_error(backbone, masks, settings, sample, monkeypatch, leaf):
    real = backbone.maps

    def detached(*args, **kwargs):
        maps = real(*args, **kwargs)
        return {k: m.detach().requires_grad_(leaf) for k, m in maps.items()}

    monkeypatch.setattr(backbone, "maps", detached)
    with (
        pytest.raises(TTOMError, match="No adapter parameter received a gradient"),
        TTO(backbone, masks, PROMPT, settings, steps=STEPS),
    ):
        sample()


def test_it_works_under_inference_mode(backbone, masks, settings, sample):
    with TTO(backbone, masks, PROMPT, settings, steps=STEPS):
        expected = sample()
    with torch.inference_mode(), TTO(backbone, masks, PROMPT, settings, steps=STEPS):
        assert (sample() == expected).all()


def test_the_adapter_is_off_below_its_noise_level(backbone, masks, settings):
    seen = []
    quiet = settings.model_copy(update={"adapter_until_sigma": 0.85})

    def watch(step):
        seen.append(tto._attached.scale)

    with TTO(backbone, masks, PROMPT, quiet, steps=STEPS) as tto:
        backbone.sample(
            PROMPT, negative_prompt="", steps=STEPS, guidance_scale=3.0,
            generator=torch.Generator().manual_seed(0), on_step=watch, **SIZE,
        )  # fmt: skip
    expected = [float(s >= 0.85) for s in backbone.sigmas(STEPS)]
    assert seen == expected and 0 < sum(seen) < STEPS


def test_early_stop_ends_a_steps_iterations(backbone, masks, settings, sample):
    eager = settings.model_copy(update={"stop_loss": 0.69})  # ln 2 bounds the loss: always below
    with TTO(backbone, masks, PROMPT, eager, steps=STEPS) as tto:
        sample()
    assert len(tto.trace.rows) == sum(n > 0 for n in tto.planned_iterations)


def test_an_adapter_continues_where_it_was(backbone, masks, settings, sample, tmp_path):
    with TTO(backbone, masks, PROMPT, settings, steps=STEPS) as tto:
        sample()
    tto.adapter.save(tmp_path / "a.safetensors")
    again = Adapter.load(tmp_path / "a.safetensors")
    with TTO(backbone, masks, PROMPT, settings, steps=STEPS, adapter=again) as second:
        sample()
    assert second.trace.first_loss < tto.trace.first_loss


def test_an_adapter_of_another_model_is_refused(backbone, masks, settings):
    modules = backbone.adapter_modules((1,), "reachable")
    stranger = init_adapter(modules, 4, 4.0, 0, "wan-of-somebody-else")
    with pytest.raises(TTOMError, match="made with wan-of-somebody-else"):
        TTO(backbone, masks, PROMPT, settings, steps=STEPS, adapter=stranger)


@pytest.mark.parametrize("layer", [-1, 4])
def test_layers_that_do_not_exist(backbone, masks, settings, layer):
    with pytest.raises(TTOMError, match=f"Layer {layer} does not exist; .* 0 to 3"):
        TTO(backbone, masks, PROMPT, settings.model_copy(update={"layers": (layer,)}), steps=STEPS)


def test_phrases_that_cannot_be_found(backbone, masks, settings):
    missing = SoftMasks(("green dog", "blue square"), masks.values)
    with pytest.raises(TTOMError, match="'green dog' is not in the prompt"):
        TTO(backbone, missing, PROMPT, settings, steps=STEPS)
    long = "the " * 80 + PROMPT
    with pytest.raises(TTOMError, match="past the model's limit of 64 text tokens"):
        TTO(backbone, masks, long, settings, steps=STEPS)


def test_half_a_phrase_within_the_limit_is_none(backbone, masks, settings):
    limit = backbone.max_text_tokens
    # With the end-of-text token, "red" is the last word within the limit and "circle" the first past it.
    prompt = " ".join(["the"] * (limit - 2) + ["red", "circle"])
    with pytest.raises(TTOMError, match="'red circle' lies past the model's limit"):
        backbone.phrase_tokens(prompt, ["red circle"])
    fits = " ".join(["the"] * (limit - 3) + ["red", "circle"])
    assert backbone.phrase_tokens(fits, ["red circle"])["red circle"] == (limit - 3, limit - 2)


def test_another_prompt_in_the_pipeline_is_said_at_once(backbone, masks, settings):
    seen = []
    with (
        pytest.raises(TTOMError, match=r"not called with the prompt .* max_sequence_length of 64"),
        TTO(backbone, masks, PROMPT, settings, steps=STEPS),
    ):
        backbone.sample(
            "something else", negative_prompt="", steps=STEPS, guidance_scale=3.0,
            generator=torch.Generator().manual_seed(0), on_step=seen.append, **SIZE,
        )  # fmt: skip
    assert seen == [0]


def test_masks_of_another_size_are_refused(backbone, masks, settings, sample):
    wrong = SoftMasks(masks.phrases, torch.rand(2, 2, 3, 2))
    with (
        pytest.raises(TTOMError, match=r"masks are 2×2×3×2 .* maps 2×2×2×2"),
        TTO(backbone, wrong, PROMPT, settings, steps=STEPS),
    ):
        sample()


def test_an_adapter_that_the_loss_cannot_reach_is_refused(backbone, masks, settings):
    modules = backbone.adapter_modules((3,), "selected")
    deep = init_adapter(modules, 4, 4.0, 0, backbone.fingerprint)
    with pytest.raises(TTOMError, match="begins at layer 3, which a loss at layer 2 does not reach"):
        TTO(backbone, masks, PROMPT, settings, steps=STEPS, adapter=deep)


def test_phrases_are_found_at_their_tokens(backbone):
    words = PROMPT.split()
    found = backbone.phrase_tokens(PROMPT.upper(), PHRASES)
    assert [words[i] for i in found["red circle"]] == ["red", "circle"]
    assert [words[i] for i in found["blue square"]] == ["blue", "square"]


def test_too_few_steps(backbone, masks, settings):
    narrow = settings.model_copy(update={"sigma_start": 0.5, "sigma_end": 0.49})
    with pytest.raises(TTOMError, match="None of the 6 denoising steps"):
        TTO(backbone, masks, PROMPT, narrow, steps=STEPS)
    with pytest.warns(UserWarning, match="Only 1 of 2 denoising steps"):
        TTO(backbone, masks, PROMPT, settings, steps=2)


@pytest.mark.parametrize("frames", [0, 2, 20])
def test_frame_counts_that_do_not_fit(backbone, frames):
    with pytest.raises(TTOMError, match=f"{frames} frames do not fit"):
        generate(backbone, PROMPT, num_frames=frames)


def test_sizes_and_prompts_that_do_not_fit(backbone, settings):
    with pytest.raises(TTOMError, match="width must be a multiple of 8, not 30"):
        generate(backbone, PROMPT, width=30)
    with pytest.raises(TTOMError, match="prompt is empty"):
        generate(backbone, "  ")
    with pytest.raises(TTOMError, match="needs a layout"):
        generate(backbone, PROMPT, settings=settings)


def test_generate_tells_the_story_and_counts_it_once(backbone, settings):
    ticks = []
    result = generate(
        backbone, PROMPT, plan(PROMPT), settings, steps=STEPS, on_progress=ticks.append,
        keep_maps=True, **SIZE,
    )  # fmt: skip
    assert result.frames.shape == (5, 16, 16, 3) and result.frames.dtype == np.uint8
    assert [t.done for t in ticks] == list(range(1, ticks[-1].total + 1))
    assert set(result.trace.maps_before) == set(result.trace.maps_after) == set(PHRASES)
    assert result.settings["tto"] == settings.model_dump(mode="json")


def test_settings_refuse_what_they_do_not_know():
    for wrong in ({"layers": ()}, {"layers": (1,), "iterations": -1}, {"layers": (1,), "lr": 1}):
        with pytest.raises(ValidationError):
            TTOSettings(**wrong)
    assert {"paper", "released", "demo", "lvd", "latent", "noise", "best"} <= set(PRESETS)


def test_five_of_fifty_is_a_range_of_noise_levels(backbone):
    shift = backbone.pipeline.scheduler.config.shift
    ours = [sigma_of_step(k, 50, shift) for k in range(50)]
    # Schedulers differ in where they end (diffusers' Euler above 0), hardly in where they begin.
    assert np.allclose(ours[:10], backbone.sigmas(50)[:10], atol=0.005)
    low = PRESETS["paper"].sigma_end
    assert sum(sigma_of_step(k, 50, 3.0) >= low - 1e-4 for k in range(50)) == 5


def test_the_base_weights_are_never_touched(backbone, masks, settings, sample):
    before = copy.deepcopy(backbone.transformer.state_dict())
    with TTO(backbone, masks, PROMPT, settings, steps=STEPS):
        sample()
    after = backbone.transformer.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[k], after[k]) for k in before)


def test_an_early_stop_still_fills_the_bar(backbone, settings):
    ticks = []
    eager = settings.model_copy(update={"stop_loss": 0.69})
    generate(backbone, PROMPT, plan(PROMPT), eager, steps=STEPS, on_progress=ticks.append, **SIZE)
    assert ticks[-1].done == ticks[-1].total


def test_a_frozen_adapter_learns_b_alone(backbone, masks, settings, sample):
    with TTO(backbone, masks, PROMPT, settings.model_copy(update={"freeze_a": True}), steps=STEPS) as tto:
        sample()
    assert tto.trace.last_loss < tto.trace.first_loss
    for name, (a, b) in tto.adapter.weights.items():
        assert (a == tto.initial.weights[name][0]).all()
        assert b.any()


def test_a_forgetful_optimiser_differs_from_the_second_step_on(backbone, masks, settings, sample):
    losses = []
    for reset in (False, True):
        chosen = settings.model_copy(update={"reset_optimizer": reset})
        with TTO(backbone, masks, PROMPT, chosen, steps=STEPS) as tto:
            sample()
        losses.append([row.loss for row in tto.trace.rows])
    n = settings.iterations
    assert losses[0][: n + 1] == losses[1][: n + 1]  # one update more, and then the moments tell
    assert losses[0][n + 1 :] != losses[1][n + 1 :]
