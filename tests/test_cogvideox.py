"""CogVideoX: its sizes, its text, its noise levels, and maps of a joint attention that are the naive ones."""

import pytest
import tiny_cogvideox
import torch
from conftest import PHRASES, PROMPT
from diffusers import CogVideoXDDIMScheduler, CogVideoXDPMScheduler, FlowMatchEulerDiscreteScheduler
from tiny_cogvideox import GRID, SIZE, TEXT, scheduler_options
from torch.nn import functional as F

from ttom_core.adapter import attach, init_adapter
from ttom_core.attention import PrefixCache, joint_phrase_maps, phrase_maps
from ttom_core.backbones.cogvideox import CogVideoXBackbone
from ttom_core.backbones.folder import TrainedClip
from ttom_core.errors import TTOMError
from ttom_core.generate import generate
from ttom_core.masks import SoftMasks
from ttom_core.objectives import alignment_loss
from ttom_core.optimize import PRESETS, TTO, TTOSettings, sigma_of_step
from ttom_core.planner import plan

STEPS = 8
SETTINGS = TTOSettings(layers=(1, 2), rank=4, alpha=4.0, learning_rate=1e-2, iterations=2, sigma_end=0.8)
KINDS = ("video_to_text", "text_to_video", "renormalized")


@pytest.fixture(params=["2b", "5b"])
def backbone(request):
    return CogVideoXBackbone(tiny_cogvideox.build(request.param))


@pytest.fixture
def masks():
    return SoftMasks(PHRASES, torch.rand(2, *GRID, generator=torch.Generator().manual_seed(2)))


def sample(backbone, prompt=PROMPT, **changes):
    options = {"negative_prompt": "", "steps": STEPS, "guidance_scale": 3.0, "on_step": lambda step: None}
    generator = torch.Generator().manual_seed(0)
    return backbone.sample(prompt, generator=generator, **(SIZE | options | changes))


# ---- sizes, text, noise levels -------------------------------------------------------------------


def test_the_published_sizes_give_the_published_grid(backbone):
    assert backbone.token_grid(49, 480, 720) == (13, 30, 45)
    assert backbone.fps == 8 and backbone.fingerprint.startswith("cogvideox-4x32-")
    assert CogVideoXBackbone(tiny_cogvideox.build()).max_text_tokens == TEXT


def test_a_model_with_patches_over_time_pads_its_latent_frames():
    backbone = CogVideoXBackbone(tiny_cogvideox.build("5b", patch_size_t=2))
    assert backbone.token_grid(81, 480, 720) == (11, 30, 45) and backbone.fps == 16
    clip = {"num_frames": 17, "height": 32, "width": 48}
    with TTO(backbone, SoftMasks(PHRASES, torch.rand(2, 3, 2, 3)), PROMPT, SETTINGS, steps=STEPS) as tto:
        assert sample(backbone, **clip).shape == (17, 32, 48, 3)
    assert tto.trace.last_loss < tto.trace.first_loss


@pytest.mark.parametrize("frames", [1, 9, 17])
def test_allowed_frame_counts_come_out_as_asked_for(backbone, frames):
    assert len(sample(backbone, num_frames=frames, steps=1)) == frames


def test_sizes_that_do_not_fit(backbone):
    for frames, near in ((5, 1), (13, 17), (48, 49)):
        with pytest.raises(TTOMError, match=rf"{frames} frames do not fit .* takes 8·n\+1; use {near},"):
            backbone.check_size(frames, 480, 720)
    with pytest.raises(TTOMError, match="at most 49 frames, not 57"):
        backbone.check_size(57, 480, 720)
    with pytest.raises(TTOMError, match="width must be a multiple of 16, not 728"):
        backbone.check_size(49, 480, 728)


def test_phrases_are_found_in_the_tokenizers_pieces(backbone):
    tokenizer = backbone.pipeline.tokenizer
    ids = tokenizer(PROMPT).input_ids
    found = backbone.phrase_tokens(PROMPT, PHRASES)
    pieces = {k: tokenizer.convert_ids_to_tokens([ids[i] for i in v]) for k, v in found.items()}
    assert pieces == {"red circle": ["▁red", "▁cir", "cle"], "blue square": ["▁blue", "▁squ", "are"]}


def test_half_a_word_within_the_limit_is_none(backbone):
    # The last place belongs to the end of the text; "cle" would be there.
    late = " ".join(["the"] * (TEXT - 3) + ["red", "circle"])
    with pytest.raises(TTOMError, match=f"'red circle' lies past the model's limit of {TEXT} text tokens"):
        backbone.phrase_tokens(late, ["red circle"])
    assert max(backbone.phrase_tokens(late[4:], ["red circle"])["red circle"]) == TEXT - 2


@pytest.mark.parametrize("scheduler", [CogVideoXDDIMScheduler, CogVideoXDPMScheduler])
@pytest.mark.parametrize("size", ["2b", "5b"])
def test_noise_levels_are_those_of_flow_matching_at_the_same_ratio(scheduler, size):
    backbone = CogVideoXBackbone(tiny_cogvideox.build(size))
    backbone.pipeline.scheduler = scheduler(**scheduler_options(size))
    backbone.pipeline.scheduler.set_timesteps(50)
    levels = backbone.sigmas(50)
    assert levels == [backbone.sigma_of(t.expand(2)) for t in backbone.pipeline.scheduler.timesteps]
    assert levels[0] == 1.0 and levels == sorted(levels, reverse=True)
    for t, level in zip(backbone.pipeline.scheduler.timesteps[1:], levels[1:], strict=True):
        signal_to_noise = backbone.pipeline.scheduler.alphas_cumprod[t]
        assert ((1 - level) / level) ** 2 == pytest.approx(float(signal_to_noise / (1 - signal_to_noise)))
    # Wan's "first 5 of 50" are the first 6 of the 2B, and the first 4 of the 5B's lighter noise.
    first = sum(level >= PRESETS["paper"].sigma_end - 1e-4 for level in levels)
    assert first == {"2b": 6, "5b": 4}[size]
    assert sigma_of_step(4, 50, 3.0) == pytest.approx(levels[4], abs=0.015)


def test_a_scheduler_without_alphas_is_refused():
    pipeline = tiny_cogvideox.build()
    pipeline.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(TTOMError, match="FlowMatchEulerDiscreteScheduler has no alphas"):
        CogVideoXBackbone(pipeline)


# ---- maps ----------------------------------------------------------------------------------------


def naive_maps(query, key, tokens, kind):
    """softmax(QKᵀ/√d), all of it, then what the kind says."""
    scores = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    if kind == "renormalized":
        scores = scores[..., :TEXT]
    weights = scores.softmax(-1).mean(1)
    if kind == "text_to_video":
        return torch.stack([weights[:, list(t), TEXT:].mean(1) for t in tokens], 1)
    return torch.stack([weights[:, TEXT:, list(t)].mean(-1) for t in tokens], 1)


def test_the_first_kind_is_the_fused_map_and_the_others_are_not():
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 3, TEXT + 10, 8, dtype=torch.float64)
    tokens = [(1, 2), (4,), (2, 5, 6)]
    results = {kind: joint_phrase_maps(q, k, tokens, TEXT, kind) for kind in KINDS}
    for kind, maps in results.items():
        torch.testing.assert_close(maps, naive_maps(q, k, tokens, kind))
        heads = joint_phrase_maps(q, k, tokens, TEXT, kind, keep_heads=True)
        assert heads.shape == (1, 3, 3, 10)
        torch.testing.assert_close(heads.mean(1), maps)
    assert torch.equal(results["video_to_text"], phrase_maps(q[:, :, TEXT:], k, tokens))
    shares = {kind: maps / maps.sum(-1, keepdim=True) for kind, maps in results.items()}
    assert not torch.allclose(shares["video_to_text"], shares["renormalized"], rtol=1e-3)


def call_of(backbone, dtype):
    pipeline = backbone.pipeline
    rotary = None
    if backbone.transformer.config.use_rotary_positional_embeddings:
        rotary = pipeline._prepare_rotary_positional_embeddings(32, 48, GRID[0], torch.device("cpu"))
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(1, GRID[0], 4, 4, 6, generator=generator).to(dtype)
    text = torch.cat([backbone.encode(""), backbone.encode(PROMPT)]).to(dtype)
    return {
        "hidden_states": torch.cat([latents] * 2),
        "timestep": torch.tensor([900, 900]),
        "encoder_hidden_states": text,
        "image_rotary_emb": rotary,
        "attention_kwargs": None,
        "return_dict": False,
    }


def naive_forward(backbone, call, tokens, layers, kind, monkeypatch):
    """The whole model on the prompt's row, and every query and key that its attention is really given."""
    seen, real = [], F.scaled_dot_product_attention

    def watched(query, key, value, **options):
        seen.append((query, key))
        return real(query, key, value, **options)

    row = {k: call[k][1:] for k in ("hidden_states", "timestep", "encoder_hidden_states")}
    with monkeypatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", watched)
        backbone.transformer.forward(**row, image_rotary_emb=call["image_rotary_emb"])
    return {i: naive_maps(*seen[i], tokens, kind)[0].unflatten(1, GRID) for i in layers}


WAYS = {
    "whole forward": {"early_exit": False},
    "early exit": {},
    "prefix cache": {"cached": 0},
    "checkpointing": {"checkpointing": True},
    "prefix cache, checkpointing": {"cached": 0, "checkpointing": True},
    "selected layers": {"scope": "selected"},
    "selected layers, prefix cache": {"scope": "selected", "cached": 1},
    "queries and keys, prefix cache": {"scope": "maps", "cached": 1},
    "features": {"scope": "features"},
    "features, prefix cache": {"scope": "features", "cached": 0},
}


def loss_and_gradients(
    backbone, masks, dtype, monkeypatch, *, naive=False, scope="reachable", cached=None, **how
):
    """One loss with a disturbed adapter, by one way of computing it."""
    layers = (1, 2)
    adapter = init_adapter(backbone.adapter_modules(layers, scope), 4, 4.0, 0, backbone.fingerprint)
    generator = torch.Generator().manual_seed(4)
    for _, b in adapter.weights.values():
        b.normal_(0, 0.3, generator=generator)
    tokens = list(backbone.phrase_tokens(PROMPT, PHRASES).values())
    backbone.transformer.requires_grad_(False)
    call = call_of(backbone, dtype)
    with attach(backbone.transformer, adapter) as attached:
        if cached is not None:
            how["prefix"] = PrefixCache(cached)
            backbone.maps(call, [1], tokens, layers, **how)  # fills the cache
        if naive:
            maps = naive_forward(backbone, call, tokens, layers, how["joint_map"], monkeypatch)
        else:
            maps = backbone.maps(call, [1], tokens, layers, **how)
        loss = alignment_loss(maps, masks.values.to(dtype), "jsd", "frame")
        gradients = torch.autograd.grad(loss, attached.parameters(), allow_unused=True)
    return loss, gradients


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_way_gives_the_naive_loss_and_gradients(backbone, masks, kind, dtype, monkeypatch):
    backbone.transformer.to(dtype)
    # Rotations are done in fp32 whatever the model's type, by diffusers itself.
    exact = dtype == torch.float64 and not backbone.transformer.config.use_rotary_positional_embeddings
    rtol, atol = (1e-9, 1e-13) if exact else (2e-4, 1e-7)
    expected = {
        scope: loss_and_gradients(
            backbone, masks, dtype, monkeypatch, naive=True, scope=scope, joint_map=kind
        )
        for scope in ("reachable", "selected", "maps", "features")
    }
    for name, way in WAYS.items():
        loss, gradients = expected[way.get("scope", "reachable")]
        way = way | {"joint_map": kind}
        ours, our_gradients = loss_and_gradients(backbone, masks, dtype, monkeypatch, **way)
        torch.testing.assert_close(ours, loss, rtol=rtol, atol=atol, msg=name)
        for a, b in zip(our_gradients, gradients, strict=True):
            assert b is not None and b.abs().sum() > 0, name
            torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=name)


def test_gradients_reach_the_latents_when_they_ask_for_them(backbone, masks):
    call = call_of(backbone, torch.float32)
    call["hidden_states"].requires_grad_(True)
    tokens = list(backbone.phrase_tokens(PROMPT, PHRASES).values())
    loss = alignment_loss(backbone.maps(call, [1], tokens, (1,)), masks.values, "jsd", "frame")
    (gradient,) = torch.autograd.grad(loss, call["hidden_states"])
    assert not gradient[0].any() and gradient[1].any()


def test_what_comes_before_the_first_adapter_is_computed_once(backbone):
    names = ["patch_embed", *(f"transformer_blocks.{i}.attn1.to_q" for i in range(4))]
    calls = dict.fromkeys(names, 0)
    handles = []
    for name in names:

        def count(module, inputs, output, name=name):
            calls[name] += 1

        handles.append(backbone.transformer.get_submodule(name).register_forward_hook(count))
    prefix = PrefixCache(1)
    tokens = list(backbone.phrase_tokens(PROMPT, PHRASES).values())
    call = call_of(backbone, torch.float32)
    calls.update(dict.fromkeys(names, 0))
    for _ in range(3):
        backbone.maps(call, [1], tokens, (1, 2), prefix=prefix)
    for handle in handles:
        handle.remove()
    assert list(calls.values()) == [1, 1, 3, 3, 0]


def test_the_prompts_row_is_found_in_the_one_guided_call(backbone):
    call = call_of(backbone, torch.float32)
    assert backbone.conditional_rows(PROMPT, call["encoder_hidden_states"]) == [1]
    assert backbone.conditional_rows(PROMPT, call["encoder_hidden_states"][:1]) == []
    assert backbone.conditional_rows(PROMPT, call["encoder_hidden_states"][1:]) == [0]


# ---- the whole story -----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_optimising_lowers_the_loss_changes_the_video_and_leaves_nothing(backbone, masks, kind):
    settings = SETTINGS.model_copy(update={"joint_map": kind})
    before, plain = torch.get_rng_state().tolist(), sample(backbone)
    weights = {k: v.clone() for k, v in backbone.transformer.state_dict().items()}
    runs = []
    for _ in range(2):
        with TTO(backbone, masks, PROMPT, settings, steps=STEPS) as tto:
            runs.append(sample(backbone))
    assert tto.trace.last_loss < tto.trace.first_loss and len(tto.trace.rows) == sum(tto.planned_iterations)
    assert (runs[0] != plain).any() and (runs[0] == runs[1]).all()
    assert (sample(backbone) == plain).all() and torch.get_rng_state().tolist() == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.transformer.modules())
    after = backbone.transformer.state_dict()
    assert all(torch.equal(after[name], weight) for name, weight in weights.items())


def test_zero_iterations_are_bit_identical_to_the_plain_pipeline(backbone, masks):
    plain = sample(backbone)
    with TTO(backbone, masks, PROMPT, SETTINGS.model_copy(update={"iterations": 0}), steps=STEPS):
        assert (sample(backbone) == plain).all()


def test_a_sampler_that_draws_noise_repeats_itself(masks):
    backbone = CogVideoXBackbone(tiny_cogvideox.build("5b"))
    backbone.pipeline.scheduler = CogVideoXDPMScheduler(**scheduler_options("5b"))
    runs = []
    for _ in range(2):
        with TTO(backbone, masks, PROMPT, SETTINGS, steps=STEPS):
            runs.append(sample(backbone))
    assert (runs[0] == runs[1]).all()


def test_without_guidance_the_call_has_one_row(backbone, masks):
    with TTO(backbone, masks, PROMPT, SETTINGS, steps=STEPS) as tto:
        sample(backbone, guidance_scale=1.0)
    assert tto.trace.last_loss < tto.trace.first_loss


def test_the_whole_story_in_one_call(backbone):
    result = generate(backbone, PROMPT, plan(PROMPT), SETTINGS, steps=STEPS, **SIZE)
    assert result.frames.shape == (9, 32, 48, 3)
    assert result.settings["backbone"] == backbone.fingerprint
    assert all(name.startswith("transformer_blocks.") for name in result.adapter.weights)


def test_adapters_of_the_other_family_are_refused(backbone, masks, tiny_pipeline):
    from ttom_core.backbones.wan import WanBackbone

    wan = WanBackbone(tiny_pipeline, clip=TrainedClip(fps=8))
    stranger = init_adapter(wan.adapter_modules((1,), "reachable"), 4, 4.0, 0, wan.fingerprint)
    with pytest.raises(TTOMError, match=r"made with wan-4x48-\w+, this model is cogvideox-4x32"):
        TTO(backbone, masks, PROMPT, SETTINGS, steps=STEPS, adapter=stranger)
