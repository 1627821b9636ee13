"""A shift of the noise: the loop starts from it wholly, nothing is left behind, and a memory keeps it."""

from __future__ import annotations

from collections import Counter
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from conftest import PROMPT, SIZE, STEPS
from test_optimize import state_of

from ttom_core.adapter import Adapter, AdapterError, attach
from ttom_core.errors import TTOMError
from ttom_core.fusion import fuse
from ttom_core.generate import generate
from ttom_core.memory.embedding import PipelineEmbedder
from ttom_core.memory.key import scene_key
from ttom_core.memory.recall import Memory, MemorySettings, insert, recall, scene_of
from ttom_core.memory.rehearsal import rehearsals
from ttom_core.memory.store import MemoryStore
from ttom_core.noise import NAME, ShiftSettings, is_shift, learn_shift, moved, shifted
from ttom_core.optimize import LatentSettings
from ttom_core.planner import plan
from ttom_core.stream import generate_with_memory

SAMPLING = {**SIZE, "steps": STEPS, "guidance_scale": 3.0}
LAYOUT = plan(PROMPT)
SAME = PROMPT.replace("red circle", "green triangle")
SHAPE = (1, 16, 2, 4, 4)
LESSONS = ((PROMPT, LAYOUT), (SAME, plan(SAME)))
QUICK = ShiftSettings(rank=2, iterations=3, batch=2)


def a_shift(backbone, seed=0, scale=0.3, positions=16) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    pair = (torch.randn(2, positions, generator=generator), torch.randn(32, 2, generator=generator))
    return Adapter({NAME: (pair[0], scale * pair[1])}, 2, 2.0, backbone.fingerprint)


def frames(backbone, settings=None, **changes):
    layout = LAYOUT if settings else None
    return generate(backbone, PROMPT, layout, settings, **SAMPLING | changes).frames


# Starting from it ---------------------------------------------------------------------------------


def test_moved_noise_is_as_long_as_it_was_and_points_to_the_shift(backbone):
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1))
    adapter = a_shift(backbone)
    there = moved(noise, adapter)
    a, b = adapter.weights[NAME]
    assert torch.allclose(there.norm(), noise.norm())
    whole = noise + (b @ a).view(SHAPE)
    assert torch.allclose(there, whole * noise.norm() / whole.norm())


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_sampling_is_that_of_the_pipeline_from_the_moved_noise(backbone, guidance):
    adapter = a_shift(backbone)
    with shifted(backbone, adapter):
        ours = frames(backbone, seed=5, guidance_scale=guidance)
    noise = torch.randn(SHAPE, generator=torch.Generator().manual_seed(5))
    pipe = backbone.pipeline
    video = pipe(
        PROMPT,
        negative_prompt="",
        **SIZE,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=moved(noise, adapter),
        max_sequence_length=backbone.max_text_tokens,
        output_type="np",
    ).frames[0]
    assert np.abs(ours.astype(int) - np.round(video * 255).astype(int)).max() <= 1
    assert not np.array_equal(ours, frames(backbone, seed=5, guidance_scale=guidance))


@pytest.mark.parametrize("adapter", [None, "zero"])
def test_without_a_shift_or_with_one_of_zeros_it_is_the_base_model(backbone, adapter):
    with shifted(backbone, adapter and a_shift(backbone, scale=0.0)):
        made = frames(backbone)
    assert np.array_equal(made, frames(backbone))


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_nothing_is_left_behind(backbone, error):
    base, before = frames(backbone), state_of(backbone)
    own = "step" in vars(backbone.pipeline.scheduler)

    def tick(progress):
        if error:
            raise error

    with pytest.raises(error) if error else nullcontext(), shifted(backbone, a_shift(backbone)):
        generate(backbone, PROMPT, **SAMPLING, on_progress=tick)
    assert state_of(backbone) == before and ("step" in vars(backbone.pipeline.scheduler)) == own
    assert np.array_equal(frames(backbone), base)


def test_what_optimises_sees_the_moved_noise(backbone, settings):
    def first(shift, latents=None):
        with shifted(backbone, shift):
            changed = settings.model_copy(update={"latents": latents})
            return generate(backbone, PROMPT, LAYOUT, changed, **SAMPLING).trace

    both = LatentSettings(step_size=0.01, iterations=1, sigma_end=0.8)
    plain, there = first(None), first(a_shift(backbone))
    assert plain.first_loss != there.first_loss
    # The latents' first loss is of the same noise and of no adapter yet.
    assert first(a_shift(backbone), both).latent_rows[0].loss == pytest.approx(there.first_loss)


def test_a_clip_of_another_size_is_left_alone_with_a_warning(backbone):
    warned = pytest.warns(UserWarning, match="32×9, this clip's noise is 32×16.*was left out")
    with warned, shifted(backbone, a_shift(backbone, positions=9)):
        made = frames(backbone)
    assert np.array_equal(made, frames(backbone))


def test_a_shift_is_no_adapter_of_modules_nor_the_other_way_round(backbone, settings):
    with pytest.raises(AdapterError, match="does not have"), attach(backbone.transformer, a_shift(backbone)):
        pass
    solved = generate(backbone, PROMPT, LAYOUT, settings, **SAMPLING).adapter
    with pytest.raises(AdapterError, match="sits on modules"):
        moved(torch.zeros(SHAPE), solved)


# Learning it --------------------------------------------------------------------------------------


def learnt(backbone, settings, how=QUICK, lessons=LESSONS, **more):
    return learn_shift(backbone, lessons, settings, how, steps=STEPS, **SIZE, **more)


def test_learning_lowers_the_loss_on_noises_it_has_not_seen(backbone, settings):
    how = ShiftSettings(rank=4, iterations=40, batch=2, size=0.8, learning_rate=0.1)
    shift, losses = learnt(backbone, settings, how)
    assert len(losses) == 40 and is_shift(shift)

    def unseen(adapter):
        found = []
        for seed in range(9000, 9006):
            with shifted(backbone, adapter):
                found.append(
                    generate(backbone, PROMPT, LAYOUT, settings, **SAMPLING, seed=seed).trace.first_loss
                )
        return np.mean(found)

    assert unseen(shift) < unseen(None)


def test_it_is_of_its_rank_no_larger_than_asked_and_the_same_again(backbone, settings):
    how = QUICK.model_copy(update={"learning_rate": 10.0, "size": 0.1})
    shift, losses = learnt(backbone, settings, how)
    a, b = shift.weights[NAME]
    assert a.shape == (2, 16) and b.shape == (32, 2)
    assert float((b @ a).square().mean().sqrt()) == pytest.approx(0.1, rel=1e-4)
    again, same = learnt(backbone, settings, how)
    assert losses == same and torch.equal(again.weights[NAME][0], a)


def test_an_interruption_leaves_the_model_as_it_was(backbone, settings):
    before = state_of(backbone)
    flags = [p.requires_grad for p in backbone.transformer.parameters()]

    def tick(done, total, loss):
        assert (done, total) == (1, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        learnt(backbone, settings, on_progress=tick)
    assert state_of(backbone) == before
    assert flags == [p.requires_grad for p in backbone.transformer.parameters()]


def test_nothing_to_learn_from_is_said(backbone, settings):
    with pytest.raises(TTOMError, match="at least one prompt"):
        learnt(backbone, settings, lessons=())


# In a memory --------------------------------------------------------------------------------------


@pytest.fixture
def memory(tmp_path, backbone):
    with MemoryStore(tmp_path / "store") as store:
        yield Memory(store, PipelineEmbedder(backbone.pipeline))


def test_a_memory_reads_shifts_and_adapters_each_for_what_it_is(backbone, settings, memory):
    scene = scene_of(PROMPT, LAYOUT, memory.embedder)
    solved = generate(backbone, PROMPT, LAYOUT, settings, **SAMPLING).adapter
    shifts = [a_shift(backbone, seed) for seed in (1, 2)]
    for adapter in (*shifts, solved):
        insert(memory.store, scene, adapter)
    known = recall(
        memory.store, scene, backbone.fingerprint, threshold=0, rank=4, modules=solved.weights.keys()
    )
    assert (len(known.hits), len(known.shift_hits), len(known.found), known.skipped) == (1, 2, 3, ())
    a, b = known.shift.weights[NAME]
    wanted = fuse(shifts, rank=2).weights[NAME]
    assert torch.allclose(b @ a, wanted[1] @ wanted[0], atol=1e-5)


@pytest.mark.parametrize("mode", ["read", "start", "learn"])
def test_generation_starts_from_it_and_learning_leaves_it_as_it_was(backbone, settings, memory, mode):
    kept = insert(memory.store, scene_of(PROMPT, LAYOUT, memory.embedder), a_shift(backbone))
    use = MemorySettings(mode=mode, threshold=0)
    made = generate_with_memory(backbone, PROMPT, LAYOUT, settings, memory, use, **SAMPLING)
    changed = settings if mode != "read" else settings.model_copy(update={"iterations": 0})
    with shifted(backbone, a_shift(backbone)):
        assert np.array_equal(made.generation.frames, frames(backbone, changed))
    assert [hit.entry.id for hit in made.recall.found] == [kept.id]
    assert memory.store.get(kept.id).value == kept.value
    assert len(memory.store) == (2 if mode == "learn" else 1)
    assert made.change == ("inserted" if mode == "learn" else "")


# What it is learnt from ---------------------------------------------------------------------------


def test_rehearsals_are_of_the_same_scene_and_boxes_with_known_objects():
    solved = [(text, plan(text)) for text in (PROMPT, SAME)]
    known = [layout for _, layout in solved] + [plan("three cyan circles"), plan("a purple square grows")]
    made = rehearsals(solved, known, 12, 0)
    assert made[:2] == solved and len(made) == 12 and made == rehearsals(solved, known, 12, 0)
    assert len({text for text, _ in made}) > 4
    for text, layout in made:
        assert scene_key(text, layout).digest == scene_key(*solved[0]).digest
        assert [o.keyframes for o in layout.objects] == [o.keyframes for o in LAYOUT.objects]
        assert all(Counter(text.split())[word] for phrase in layout.phrases for word in phrase.split())
        assert len(set(layout.phrases)) == 2 and "cyan circles" not in text


def test_a_prompt_that_repeats_a_phrase_stays_as_it_is():
    text = "a red circle moves to the right, then the red circle stops"
    layout = plan("a red circle moves to the right").model_copy(update={"prompt": text})
    assert rehearsals([(text, layout)], [LAYOUT], 3, 0) == [(text, layout)] * 3
    assert rehearsals([], [LAYOUT], 3, 0) == []
