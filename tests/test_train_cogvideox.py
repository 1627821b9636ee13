"""The CogVideoX sibling's lessons: what it takes over, what it is shown, and what it is scored on."""

from __future__ import annotations

import pytest
import torch
from diffusers import WanPipeline

from demo.latents import load_basis, project
from demo.scenes import FRAMES, SceneSampler
from demo.train import MODEL, embed
from demo.train_cogvideox import FOLDER, FORCED, SHOWN, TEXT_LENGTH, CogVideoXPupil, build_pipeline
from demo.training import Batch, clips
from ttom_core.backbones import load
from ttom_core.backbones.cogvideox import CogVideoXBackbone
from ttom_core.backbones.folder import TrainedClip
from ttom_core.errors import TTOMError

CAPTIONS = ["a red circle moves up", "three blue squares", ""]


@pytest.fixture(scope="module")
def first():
    return WanPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)


@pytest.fixture(scope="module")
def pupil(first):
    pupil = CogVideoXPupil(build_pipeline(first), first, compiled=False, bfloat16=False)
    pupil.prepare()
    return pupil


@pytest.fixture(scope="module")
def batch():
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(3, 16, 5, 16, 16, generator=generator) for _ in range(2))
    return Batch(latents, noise, torch.tensor([0.97, 0.9, 0.5]), CAPTIONS, 1.0)


def test_its_words_are_the_first_models(first, pupil):
    tokens = first.tokenizer(CAPTIONS, padding=True, return_tensors="pt")
    with torch.no_grad():
        own = pupil.pipe.text_encoder(tokens.input_ids, tokens.attention_mask).last_hidden_state
        theirs = embed(first, CAPTIONS)[:, :-1]
    there = tokens.attention_mask.bool()
    torch.testing.assert_close(own[there], theirs[there])


def test_the_error_is_that_of_the_transformers_own_call(pupil, batch):
    """What the lessons compute block by block is what the pipeline will compute."""
    levels = pupil.noise / (pupil.signal + pupil.noise)
    timestep = torch.searchsorted(levels, batch.sigma)
    assert ((levels[timestep] - batch.sigma).abs() < 0.01).all()
    noisy = pupil.pipe.scheduler.add_noise(batch.latents, batch.noise, timestep)
    tokens = pupil.pipe.tokenizer(
        CAPTIONS, padding="max_length", max_length=TEXT_LENGTH, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        _, error = pupil.loss(batch)
        velocity = pupil.pipe.transformer(
            noisy.transpose(1, 2),
            pupil.pipe.text_encoder(tokens)[0],
            timestep,
            image_rotary_emb=pupil.pipe._prepare_rotary_positional_embeddings(64, 64, 5, torch.device("cpu")),
        ).sample.transpose(1, 2)
    truth = pupil.pipe.scheduler.get_velocity(batch.latents, batch.noise, timestep)
    assert error == pytest.approx((velocity - truth).square().sum().item(), rel=1e-4)


def test_what_it_is_shown_is_the_first_models_prediction(first, pupil, batch):
    """Of one noise level in both forms: the same clean latents behind both predictions."""
    timestep = torch.searchsorted(pupil.noise / (pupil.signal + pupil.noise), batch.sigma)
    a, s = (x[timestep].view(-1, 1, 1, 1, 1) for x in (pupil.signal, pupil.noise))
    noisy, sigma = a * batch.latents + s * batch.noise, s / (a + s)
    features, shown = pupil._shown(noisy, a, s, CAPTIONS)
    assert len(features) == len(first.transformer.blocks)
    with torch.no_grad():
        flow = first.transformer(noisy / (a + s), sigma.flatten() * 1000, embed(first, CAPTIONS)).sample
    torch.testing.assert_close(a * noisy - s * shown, noisy / (a + s) - sigma * flow, rtol=1e-4, atol=1e-4)


def test_the_showing_fades_out(pupil, batch):
    with torch.no_grad():
        (alone, error), (late, _) = (pupil.loss(batch._replace(part=part)) for part in (1.0, SHOWN))
        shown, same = pupil.loss(batch._replace(part=FORCED))
        _, forced = pupil.loss(batch._replace(part=0.0))
    assert alone.item() == late.item() == error == same
    assert shown.item() != error != forced


def test_a_batch_in_parts_has_the_gradient_of_the_whole(pupil, batch):
    error, whole = pupil.gradient(batch)
    parts = [pupil.gradient(part) for part in batch.split(2)]
    assert error == pytest.approx(sum(own for own, _ in parts), rel=1e-5)
    torch.testing.assert_close(whole, parts[0][1] + parts[1][1], rtol=1e-3, atol=1e-3 * whole.abs().max())


def test_a_scene_in_other_frames_is_the_same_scene():
    for seed in range(8):
        whole, short = (SceneSampler(seed, frames=frames).sample() for frames in (FRAMES, 17))
        assert (len(whole), len(short)) == (FRAMES, 17) and whole.caption == short.caption
        for one, other in zip(whole.instances, short.instances, strict=True):
            assert (one.centres[[0, 10, -1]] == other.centres[[0, 8, -1]]).all()
        first, middle, last = short.render()[[0, 8, -1]]
        assert [
            (x == y).all() for x, y in zip(whole.render()[[0, 10, -1]], (first, middle, last), strict=True)
        ]


# What ships ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return load(FOLDER)


def test_the_model_that_ships_makes_the_clips_it_was_trained_on(shipped):
    assert isinstance(shipped, CogVideoXBackbone)
    assert shipped.trained_clip == TrainedClip(17, 64, 64, 8)
    assert (shipped.max_text_tokens, shipped.num_layers) == (TEXT_LENGTH, 7)
    with pytest.raises(TTOMError, match="21 frames do not fit the VAE, which takes 8·n\\+1"):
        shipped.check_size(21, 64, 64)


def test_its_vae_has_the_first_models_latent_space(shipped):
    """Encoder and decoder both: a scene's latents are the basis's, and are painted as the scene."""
    video = clips([SceneSampler(seed, frames=17).sample() for seed in range(4)])
    latents = project(video, load_basis())
    vae = shipped.pipeline.vae
    with torch.no_grad():
        painted = vae.decode(latents).sample
        encoded = vae.encode(video).latent_dist.mode()
    assert (painted - video).abs().mean() < 0.05
    assert (encoded - latents).square().mean() < 0.2 * latents.var()


def test_it_knows_what_it_was_taught(shipped, first):
    """New scenes at a high noise level, whose captions say what is there."""
    scenes = [SceneSampler(seed, frames=17).sample() for seed in range(4)]
    latents = project(clips(scenes), load_basis())
    noise = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    batch = Batch(latents, noise, torch.full((4,), 0.8), [scene.caption for scene in scenes], 1.0)
    untrained = CogVideoXPupil(build_pipeline(first), first, compiled=False, bfloat16=False)
    trained = CogVideoXPupil(shipped.pipeline, first, compiled=False, bfloat16=False)
    with torch.no_grad():
        errors = [pupil.loss(batch)[1] / latents.numel() for pupil in (untrained, trained)]
    assert errors[1] < 0.2 < errors[0]
