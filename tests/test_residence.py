"""Lighter weights, blocks that wait elsewhere, checkpointing: the gradients stay those of the naive way."""

import importlib.util

import pytest
import tiny_cogvideox
import torch
from conftest import PHRASES, PROMPT, SIZE, STEPS, build_tiny
from torch import nn

from ttom_core.adapter import attach, init_adapter
from ttom_core.attention import PrefixCache
from ttom_core.backbones import load
from ttom_core.backbones.cogvideox import CogVideoXBackbone
from ttom_core.backbones.quantization import cast_weights
from ttom_core.backbones.wan import WanBackbone
from ttom_core.errors import TTOMError
from ttom_core.masks import SoftMasks
from ttom_core.objectives import alignment_loss
from ttom_core.optimize import TTO, TTOSettings

FAMILIES = {
    "wan": (WanBackbone, build_tiny, SIZE, (2, 2, 2)),
    "cogvideox": (CogVideoXBackbone, tiny_cogvideox.build, tiny_cogvideox.SIZE, tiny_cogvideox.GRID),
}
LAYERS = (1, 2)
SETTINGS = TTOSettings(layers=LAYERS, rank=4, alpha=4.0, learning_rate=1e-2, iterations=2, sigma_end=0.8)


@pytest.fixture(params=FAMILIES)
def family(request):
    torch.set_num_threads(1)
    cls, build, size, grid = FAMILIES[request.param]
    backbone = cls(build())
    backbone.transformer.requires_grad_(False)
    masks = SoftMasks(PHRASES, torch.rand(2, *grid, generator=torch.Generator().manual_seed(2)))
    return backbone, masks, size


def gradients(backbone, masks, size, *, cached=False, **how):
    """The loss and gradients of a disturbed adapter."""
    modules = backbone.adapter_modules(LAYERS, "reachable")
    adapter = init_adapter(modules, 4, 4.0, 0, backbone.fingerprint)
    generator = torch.Generator().manual_seed(4)
    for _, b in adapter.weights.values():
        b.normal_(0, 0.3, generator=generator)
    call = backbone.blank_call(*size.values(), 1, torch.zeros(0, dtype=backbone.encode(PROMPT).dtype))
    noise = torch.randn(call["hidden_states"].shape, generator=generator)
    call["hidden_states"] = noise.to(call["hidden_states"])
    call["encoder_hidden_states"] = backbone.encode(PROMPT)
    tokens = list(backbone.phrase_tokens(PROMPT, PHRASES).values())
    with attach(backbone.transformer, adapter) as attached:
        prefix = PrefixCache(0) if cached else None
        maps = backbone.maps(call, [0], tokens, LAYERS, prefix=prefix, **how)
        loss = alignment_loss(maps, masks.values, "jsd", "frame")
        return loss, torch.autograd.grad(loss, attached.parameters())


def assert_same(ours, naive):
    torch.testing.assert_close(ours[0], naive[0], rtol=1e-5, atol=1e-8)
    for a, b in zip(ours[1], naive[1], strict=True):
        assert b.abs().sum() > 0
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-7)


def sample(backbone, size, **more):
    return backbone.sample(
        PROMPT, negative_prompt="", steps=STEPS, guidance_scale=3.0,
        generator=torch.Generator().manual_seed(0), on_step=lambda step: None, **size, **more,
    )  # fmt: skip


# ---- weights of fewer bits -----------------------------------------------------------------------


@pytest.mark.parametrize("way", [{}, {"checkpointing": True}, {"checkpointing": True, "cached": True}])
def test_gradients_through_fp8_weights_are_those_through_the_same_values_in_full(family, way):
    backbone, masks, size = family
    cast_weights(backbone.pipeline, torch.float32)
    light = [p for p in backbone.transformer.parameters() if p.dtype == torch.float8_e4m3fn]
    assert len(light) > 10
    ours = gradients(backbone, masks, size, **way)
    assert all(p.dtype == torch.float8_e4m3fn for p in light)

    full = type(backbone)(FAMILIES["wan" if size == SIZE else "cogvideox"][1]())
    full.transformer.requires_grad_(False)
    weights = {k: v.float() for k, v in backbone.transformer.state_dict().items()}
    full.transformer.load_state_dict(weights)
    assert_same(ours, gradients(full, masks, size, early_exit=False))


def test_weights_in_fp8_keep_the_models_identity(tmp_path):
    build_tiny().save_pretrained(tmp_path / "wan")
    full, light = load(tmp_path / "wan"), load(tmp_path / "wan", base="fp8")
    assert light.fingerprint == full.fingerprint
    assert any(p.dtype == torch.float8_e4m3fn for p in light.transformer.parameters())
    with pytest.warns(UserWarning, match="denoising steps lie in"):
        tto = TTO(light, SoftMasks(PHRASES, torch.rand(2, 2, 2, 2)), PROMPT, SETTINGS, steps=4)
    with tto:
        light.sample(
            PROMPT, negative_prompt="", steps=4, guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0), on_step=lambda step: None,
            num_frames=5, height=16, width=16,
        )  # fmt: skip
    assert tto.trace.last_loss < tto.trace.first_loss


@pytest.mark.parametrize(("base", "package"), [("nf4", "bitsandbytes"), ("int8", "torchao")])
def test_a_quantised_base_needs_its_package(tmp_path, monkeypatch, base, package):
    build_tiny().save_pretrained(tmp_path / "wan")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(TTOMError, match=f"Weights in {base} need the package {package}; install it"):
        load(tmp_path / "wan", base=base)


@pytest.mark.parametrize(("base", "package"), [("nf4", "bitsandbytes"), ("int8", "torchao")])
def test_gradients_through_a_quantised_base(tmp_path, base, package):
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"needs the package {package}")
    build_tiny().save_pretrained(tmp_path / "wan")
    if base == "nf4" and not torch.cuda.is_available():
        with pytest.raises(TTOMError, match="nf4 need a GPU"):
            load(tmp_path / "wan", base=base)
        return
    light, full = (load(tmp_path / "wan", dtype=torch.bfloat16, base=b) for b in (base, "full"))
    masks = SoftMasks(PHRASES, torch.rand(2, 2, 2, 2, generator=torch.Generator().manual_seed(2)))
    for name, module in full.transformer.named_modules():
        if isinstance(module, nn.Linear):
            # What the layer really multiplies by: the quantised one's answer to the unit vectors.
            with torch.no_grad():
                layer = light.transformer.get_submodule(name)
                units = torch.eye(module.in_features).to(module.weight)
                module.weight.copy_((layer(units) - (0 if layer.bias is None else layer.bias)).T)
    ours, naive = (gradients(b, masks, SIZE)[1] for b in (light, full))
    full.transformer.float()
    full.pipeline.text_encoder.float()
    exact = gradients(WanBackbone(full.pipeline), masks, SIZE)[1]
    # bf16 has three digits, and a toy model's gradients are small: no farther off than without quantisation.
    off = [sum((a - b).norm() ** 2 for a, b in zip(g, exact, strict=True)) ** 0.5 for g in (ours, naive)]
    assert off[0] < 2 * off[1] < 0.5 * sum(b.norm() ** 2 for b in exact) ** 0.5, off


@pytest.mark.parametrize("way", [{}, {"checkpointing": True}, {"checkpointing": True, "cached": True}])
def test_gradients_through_layers_of_nf4(family, way):
    """diffusers loads nf4 on a GPU alone; the layers it puts there compute on a CPU too."""
    bnb = pytest.importorskip("bitsandbytes", reason="needs the package bitsandbytes")
    backbone, masks, size = family
    full = type(backbone)(FAMILIES["wan" if size == SIZE else "cogvideox"][1]())
    for transformer in (backbone.transformer, full.transformer):
        transformer.requires_grad_(False)
    full.transformer.load_state_dict(backbone.transformer.state_dict())
    inside = {id(module) for module in backbone.blocks.modules()}
    linears = [
        (name, module)
        for name, module in backbone.transformer.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside
    ]
    for name, module in linears:
        has_bias = module.bias is not None
        light = bnb.nn.Linear4bit(
            module.in_features, module.out_features, has_bias, compute_dtype=torch.float32, quant_type="nf4"
        )
        light.load_state_dict(module.state_dict())
        backbone.transformer.set_submodule(name, light.to("cpu").requires_grad_(False))
        state = light.weight.quant_state
        assert light.weight.dtype == torch.uint8
        unpacked = bnb.functional.dequantize_4bit(light.weight.data, state)
        full.transformer.get_submodule(name).weight.data.copy_(unpacked)
    ours = gradients(backbone, masks, size, **way)
    assert_same(ours, gradients(full, masks, size, early_exit=False))


def test_what_cannot_be_loaded_is_refused_before_it_is_tried(tmp_path):
    build_tiny().save_pretrained(tmp_path / "wan")
    with pytest.raises(TTOMError, match=r"no weights 'fp4'; choose one of full, fp8, int8, nf4"):
        load(tmp_path / "wan", base="fp4")
    with pytest.raises(TTOMError, match="there is no GPU; leave it out"):
        load(tmp_path / "wan", device="cpu", offload=True)


# ---- blocks that wait elsewhere ------------------------------------------------------------------


def test_late_blocks_are_gone_while_maps_are_made_and_back_for_the_step(family, monkeypatch):
    backbone, masks, size = family
    plain = gradients(backbone, masks, size)
    moves, last = [], max(LAYERS)
    late = set(map(id, backbone.blocks[last + 1 :]))
    real = nn.Module.to

    def watched(module, *args, **kwargs):
        if id(module) in late or (isinstance(module, nn.ModuleList) and set(map(id, module)) == late):
            moves.append(args[0])
        return real(module, *args, **kwargs)

    monkeypatch.setattr(nn.Module, "to", watched)
    names = [name for name, _ in backbone.transformer.named_parameters()]
    with backbone.resident(last):
        assert moves == ["cpu"]
        held = list(backbone.transformer.named_parameters())
        assert len(held) < len(names) and {name for name, _ in held} <= set(names)
        assert_same(gradients(backbone, masks, size), plain)
    assert moves[1:] == [torch.device("cpu")] * len(late)  # to where each was
    assert [name for name, _ in backbone.transformer.named_parameters()] == names


@pytest.mark.parametrize("way", ["done", "error"])
def test_the_whole_model_is_back_by_whatever_road(family, way):
    backbone, masks, size = family
    settings = SETTINGS.model_copy(update={"resident_blocks": True})
    blocks = list(backbone.blocks)
    frames = sample(backbone, size)

    def stop(step, iteration, loss):
        assert len(getattr(backbone.transformer, backbone.names.blocks)) == max(LAYERS) + 1
        if way == "error":
            raise KeyboardInterrupt

    runs = {}
    for name, chosen, progress in (("plain", SETTINGS, None), ("resident", settings, stop)):
        try:
            with TTO(backbone, masks, PROMPT, chosen, steps=STEPS, on_progress=progress):
                runs[name] = sample(backbone, size)
        except KeyboardInterrupt:
            assert way == "error"
    assert list(getattr(backbone.transformer, backbone.names.blocks)) == blocks
    assert (sample(backbone, size) == frames).all()
    if way == "done":
        assert (runs["plain"] == runs["resident"]).all()


def test_a_whole_forward_cannot_leave_blocks_out(family):
    backbone, masks, _ = family
    settings = SETTINGS.model_copy(update={"resident_blocks": True, "early_exit": False})
    with pytest.raises(TTOMError, match="resident_blocks needs early_exit"):
        TTO(backbone, masks, PROMPT, settings, steps=STEPS)


# ---- a GPU ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_offloading_and_resident_blocks_give_the_same_video(family):
    backbone, masks, size = family
    masks = SoftMasks(masks.phrases, masks.values)
    settings = SETTINGS.model_copy(update={"resident_blocks": True})
    frames = []
    for offload, chosen in ((False, SETTINGS), (True, settings)):
        pipeline = FAMILIES["wan" if size == SIZE else "cogvideox"][1]()
        pipeline.enable_model_cpu_offload() if offload else pipeline.to("cuda")
        fresh = type(backbone)(pipeline)
        with TTO(fresh, masks, PROMPT, chosen, steps=STEPS) as tto:
            frames.append(sample(fresh, size))
        assert tto.trace.last_loss < tto.trace.first_loss
    assert abs(frames[0].astype(int) - frames[1]).max() <= 1
