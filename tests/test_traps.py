"""What would quietly keep an adapter from learning is refused in one sentence, before any long work."""

import functools
import sys
import types
from pathlib import Path

import accelerate
import pytest
import tiny_cogvideox
import torch
from conftest import PHRASES, PROMPT, SIZE, STEPS, build_tiny
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
    WanPipeline,
    WanTransformer3DModel,
    hooks,
)
from diffusers.hooks import apply_first_block_cache, apply_group_offloading
from diffusers.models.attention_dispatch import AttentionBackendName, _AttentionBackendRegistry
from peft import LoraConfig, get_peft_model_state_dict
from torch.nn import functional as F

from ttom_core.adapter import init_adapter
from ttom_core.backbones.cogvideox import CogVideoXBackbone
from ttom_core.backbones.wan import WanBackbone
from ttom_core.errors import TTOMError
from ttom_core.masks import SoftMasks
from ttom_core.optimize import TTO, TTOSettings

SETTINGS = TTOSettings(layers=(1, 2), rank=4, alpha=4.0, learning_rate=1e-2, iterations=2, sigma_end=0.8)
FAMILIES = {
    "wan": (WanBackbone, build_tiny, SIZE, (2, 2, 2)),
    "cogvideox": (CogVideoXBackbone, tiny_cogvideox.build, tiny_cogvideox.SIZE, tiny_cogvideox.GRID),
}


class Family:
    """A toy model of a family, and what is asked of it here."""

    def __init__(self, name: str) -> None:
        self.cls, build, self.size, grid = FAMILIES[name]
        self.pipeline = build()
        self.transformer = self.pipeline.transformer
        self.backbone = self.cls(self.pipeline)
        self.masks = SoftMasks(PHRASES, torch.rand(2, *grid, generator=torch.Generator().manual_seed(2)))

    def tto(self, settings=SETTINGS, **more):
        return TTO(self.backbone, self.masks, PROMPT, settings, steps=STEPS, **more)

    def sample(self):
        return self.backbone.sample(
            PROMPT, negative_prompt="", steps=STEPS, guidance_scale=3.0,
            generator=torch.Generator().manual_seed(0), on_step=lambda step: None, **self.size,
        )  # fmt: skip

    def refused(self, words):
        """A new backbone and an optimisation on an old one are refused, in one sentence, before a call."""
        calls = self.transformer.register_forward_pre_hook(lambda *_: pytest.fail("the model was called"))
        for start in (self.tto, lambda: self.cls(self.pipeline)):
            with pytest.raises(TTOMError, match=words) as error:
                start()
            text = str(error.value)
            assert "\n" not in text and text.endswith(".") and text.count(". ") == 0
        calls.remove()


@pytest.fixture(params=FAMILIES)
def family(request):
    torch.set_num_threads(1)
    return Family(request.param)


@pytest.fixture
def wan():
    return Family("wan")


# ---- the model's own state -----------------------------------------------------------------------


def test_fused_projections_are_refused_until_they_are_unfused(family):
    family.transformer.fuse_qkv_projections()
    family.refused(r"projections are fused.* call transformer\.unfuse_qkv_projections\(\)")
    family.transformer.unfuse_qkv_projections()
    family.tto()


CACHES = {
    "first_block": FirstBlockCacheConfig(threshold=0.2),
    "pyramid_attention_broadcast": PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    ),
    "faster_cache": FasterCacheConfig(current_timestep_callback=lambda: 500),
    "taylorseer_cache": TaylorSeerCacheConfig(
        use_lite_mode=True
    ),  # the default patterns match neither family
}


@pytest.mark.parametrize("name", CACHES)
def test_caches_over_denoising_steps_are_refused_until_they_are_off(family, name):
    family.transformer.enable_cache(CACHES[name])
    family.refused(rf"A cache \({name}.* call transformer\.disable_cache\(\)")
    family.transformer.disable_cache()
    family.tto()


def test_a_cache_applied_without_the_model_knowing_is_found_too(family):
    apply_first_block_cache(family.transformer, FirstBlockCacheConfig(threshold=0.2))
    family.refused(r"A cache \(first_block_cache")


@pytest.mark.parametrize("technique", sorted(p.stem for p in Path(hooks.__file__).parent.glob("*_cache.py")))
def test_every_cache_that_diffusers_has_is_known(wan, technique):
    """By where its hooks come from: those of later releases too."""
    hook = type("Hook", (hooks.ModelHook,), {"__module__": f"diffusers.hooks.{technique}"})()
    registry = hooks.HookRegistry.check_if_exists_or_initialize(wan.transformer.blocks[0])
    registry.register_hook(hook, "cache")
    wan.refused(rf"A cache \({technique}\)")


def test_sequential_offloading_is_refused(family):
    accelerate.cpu_offload(family.transformer, torch.device("cpu"))
    family.refused(r"piece by piece .*sequential offloading.* use enable_model_cpu_offload")


def test_group_offloading_is_refused(family):
    cpu = torch.device("cpu")
    apply_group_offloading(family.transformer, cpu, cpu, offload_type="leaf_level")
    family.refused(r"piece by piece .*group offloading.* use enable_model_cpu_offload")


def test_weights_stored_in_eight_bits_are_no_trap(family):
    family.transformer.enable_layerwise_casting(torch.float8_e4m3fn, torch.float32)
    with family.tto() as tto:
        family.sample()
    assert tto.trace.last_loss < tto.trace.first_loss


def test_a_model_compiled_as_a_whole_is_refused(wan):
    wan.transformer.compile(backend="eager")
    wan.refused(r"compiled as a whole.* compile its blocks instead")
    wrapped = build_tiny()
    wrapped.transformer = torch.compile(wrapped.transformer, backend="eager")
    with pytest.raises(TTOMError, match="compiled as a whole"):
        WanBackbone(wrapped)


@pytest.mark.slow
def test_blocks_compiled_and_used_before_leave_no_adapter_out(family):
    """A compiled block does not see hooks that come later: the video would be the plain one, silently."""

    def made():
        with family.tto() as tto:
            frames = family.sample()
        return frames, [row.loss for row in tto.trace.rows]

    plain, (guided, losses) = family.sample(), made()
    for block in family.backbone.blocks:
        block.compile(backend="eager")
    assert abs(family.sample().astype(int) - plain).max() <= 1
    again, same = made()
    assert same == pytest.approx(losses, rel=1e-4) and abs(again.astype(int) - guided).max() <= 1
    assert (guided != plain).any() and abs(family.sample().astype(int) - plain).max() <= 1


# ---- attention without a backward pass -----------------------------------------------------------


class Forward(torch.autograd.Function):
    """Attention as sage has it: nothing to go back through."""

    @staticmethod
    def forward(ctx, query, key, value):
        return F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (query, key, value))).transpose(
            1, 2
        )


@pytest.mark.parametrize("attention", ["attn1", "attn2"])
@pytest.mark.parametrize("way", ["graph ends", "backward missing"])
def test_an_attention_backend_without_backward_is_refused(wan, monkeypatch, way, attention):
    def attend(query, key, value, **options):
        return Forward.apply(query, key, value) if way == "backward missing" else query.detach()

    monkeypatch.setitem(_AttentionBackendRegistry._backends, AttentionBackendName.SAGE, attend)
    names = ["query", "key", "value"]
    monkeypatch.setitem(_AttentionBackendRegistry._supported_arg_names, AttentionBackendName.SAGE, names)
    for block in wan.transformer.blocks:
        getattr(block, attention).processor._attention_backend = AttentionBackendName.SAGE
    wan.refused(r"backend 'sage' has no backward pass.*set_attention_backend\('native'\)")


def test_a_replaced_attention_function_is_found_too(family, monkeypatch):
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *_, **__: query.detach())
    family.refused(r"backend 'scaled_dot_product_attention' has no backward.* give torch its own")


def test_a_strangers_processor_that_loses_gradients_is_found_at_the_first_iteration(family, monkeypatch):
    """It cannot be tried beforehand; the maps alone would go on teaching the deepest layer."""
    attention = getattr(family.backbone.blocks[0], family.backbone.names.parts.attention)
    real = type(attention.processor).__call__

    @functools.wraps(real)
    def detached(*args, **kwargs):
        output = real(*args, **kwargs)
        return tuple(x.detach() for x in output) if isinstance(output, tuple) else output.detach()

    monkeypatch.setattr(type(attention.processor), "__call__", detached)
    with (
        family.tto() as tto,
        pytest.raises(TTOMError, match=r"adapter on \w+\.0\.\w+\.to_[kqv] received no gradient"),
    ):
        family.sample()
    assert len(tto.trace.rows) == 1


def test_kernels_for_gguf_weights_are_refused(family, monkeypatch):
    class GGUFLinear(torch.nn.Linear):
        """Stands for diffusers' own, which needs the package gguf; the flag is the real one's."""

    family.transformer.proj_out.__class__ = GGUFLinear
    flag = types.SimpleNamespace(can_use_cuda_kernels=False)
    monkeypatch.setitem(sys.modules, "diffusers.quantizers.gguf.utils", flag)
    family.tto()
    flag.can_use_cuda_kernels = True
    family.refused("GGUF model runs on CUDA kernels .* set DIFFUSERS_GGUF_CUDA_KERNELS=false")


# ---- what is asked of the model ------------------------------------------------------------------


def prompts_of(family, **what):
    family.pipeline(**({"num_inference_steps": STEPS, "guidance_scale": 3.0} | family.size | what),
                    max_sequence_length=family.backbone.max_text_tokens)  # fmt: skip


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_a_batch_of_videos_is_refused_at_its_first_step(family, guidance_scale):
    with family.tto() as tto, pytest.raises(TTOMError, match="optimises one video at a time"):
        prompts_of(family, prompt=[PROMPT, "a blue circle"], guidance_scale=guidance_scale)
    assert not tto.trace.rows
    with family.tto() as tto, pytest.raises(TTOMError, match="optimises one video at a time"):
        prompts_of(family, prompt=[PROMPT, PROMPT], guidance_scale=guidance_scale)
    assert not tto.trace.rows


def test_an_adapter_of_another_model_is_refused(family):
    modules = family.backbone.adapter_modules((1,), "reachable")
    stranger = init_adapter(modules, 4, 4.0, 0, "somebody-elses-1x2-abc")
    with pytest.raises(TTOMError, match=r"made with somebody-elses-1x2-abc, this model is"):
        family.tto(adapter=stranger)


# ---- two experts ---------------------------------------------------------------------------------


def with_experts(boundary_ratio):
    """A toy Wan 2.2: the second expert takes over below the boundary."""
    parts = dict(build_tiny().components)
    torch.manual_seed(5)
    parts["transformer_2"] = WanTransformer3DModel.from_config(parts["transformer"].config)
    return WanPipeline(**parts, boundary_ratio=boundary_ratio)


def test_of_two_experts_the_one_for_high_noise_is_optimised(wan):
    wan.pipeline = with_experts(0.7)
    wan.backbone, low_noise = WanBackbone(wan.pipeline), wan.pipeline.transformer_2
    called = []
    low_noise.register_forward_pre_hook(lambda module, args, call: called.append(call["timestep"]),
                                        with_kwargs=True)  # fmt: skip
    before = {name: value.clone() for name, value in low_noise.state_dict().items()}
    plain = wan.sample()
    with wan.tto() as tto:
        guided = wan.sample()
    assert tto.trace.last_loss < tto.trace.first_loss and (guided != plain).any()
    assert called and max(float(t) for t in called) < 700
    assert all(torch.equal(low_noise.state_dict()[name], value) for name, value in before.items())
    assert not any(module._forward_hooks for module in low_noise.modules())
    assert all(parameter.requires_grad for parameter in low_noise.parameters())


def test_noise_levels_of_the_other_expert_are_refused(wan):
    wan.backbone = WanBackbone(with_experts(0.875))
    with pytest.raises(
        TTOMError, match=r"at noise level 0\.8\d+ .* below 0\.875 .* sigma_end to at least 0\.875"
    ):
        wan.tto()
    narrow = SETTINGS.model_copy(update={"sigma_end": 0.95})
    with pytest.warns(UserWarning, match="denoising steps lie in"):
        wan.tto(narrow)


def test_a_model_without_its_high_noise_expert_is_refused():
    parts = dict(with_experts(0.875).components)
    with pytest.raises(TTOMError, match="lacks its high-noise expert"):
        WanBackbone(WanPipeline(**(parts | {"transformer": None}), boundary_ratio=0.875))


def test_a_timestep_for_every_token_is_one_noise_level(wan):
    wan.pipeline = WanPipeline(**{**build_tiny().components, "transformer_2": None}, expand_timesteps=True)
    wan.backbone = WanBackbone(wan.pipeline)
    assert wan.backbone.fps == 24
    with wan.tto() as tto:
        wan.sample()
    assert tto.trace.last_loss < tto.trace.first_loss


# ---- a user's own LoRA ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["add_adapter", "load_lora_weights"])
def test_a_users_lora_stays_active_and_untouched(family, way, tmp_path):
    plain, alone = family.sample(), family.backbone.fingerprint
    attention = family.backbone.names.parts.attention
    targets = [f"{attention}.to_q", f"{attention}.to_k", f"{attention}.to_v", f"{attention}.to_out.0"]
    torch.manual_seed(6)
    lora = LoraConfig(r=4, lora_alpha=4, target_modules=targets, init_lora_weights=False)
    family.transformer.add_adapter(lora, adapter_name="style")
    if way == "load_lora_weights":
        weights = get_peft_model_state_dict(family.transformer, adapter_name="style")
        family.pipeline.save_lora_weights(tmp_path, transformer_lora_layers=weights)
        family.transformer.delete_adapters("style")
        family.pipeline.load_lora_weights(tmp_path, adapter_name="style")
    with_style = family.sample()
    assert (with_style != plain).any()

    family.backbone = family.cls(family.pipeline)  # made anew: peft has wrapped the layers
    assert family.backbone.fingerprint == alone  # so a memory made without the LoRA goes on serving
    before = {name: value.clone() for name, value in family.transformer.state_dict().items()}
    flags = [parameter.requires_grad for parameter in family.transformer.parameters()]
    with family.tto(SETTINGS.model_copy(update={"iterations": 0})):
        assert (family.sample() == with_style).all()
    with family.tto() as tto:
        guided = family.sample()
    assert tto.trace.last_loss < tto.trace.first_loss and (guided != with_style).any()
    assert not any("base_layer" in name or "lora" in name for name in tto.adapter.weights)

    after = family.transformer.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[k], before[k]) for k in before)
    assert [parameter.requires_grad for parameter in family.transformer.parameters()] == flags
    assert family.transformer.active_adapters() == ["style"]
    assert (family.sample() == with_style).all()
    family.transformer.disable_adapters()
    assert (family.sample() == plain).all()


def test_a_lora_scale_and_the_pipelines_own_checkpointing_leave_the_loss_alone(family):
    """The host's scale is gone again in backward, so it must not be there in the maps' forward."""
    torch.manual_seed(6)
    lora = LoraConfig(r=4, lora_alpha=4, target_modules=["to_q", "to_k"], init_lora_weights=False)
    family.transformer.add_adapter(lora, adapter_name="style")
    rows = []
    for scale, own in ((None, False), ({"scale": 0.5}, True)):
        family.transformer.gradient_checkpointing = own
        settings = SETTINGS.model_copy(update={"checkpointing": own, "sigma_end": 0.999})
        with pytest.warns(UserWarning, match="Only 1 of"), family.tto(settings) as tto:
            prompts_of(
                family, prompt=PROMPT, negative_prompt="", attention_kwargs=scale,
                generator=torch.Generator().manual_seed(0), output_type="latent",
            )  # fmt: skip
        rows.append([row.loss for row in tto.trace.rows])
    assert rows[0] == pytest.approx(rows[1], rel=1e-5)
