"""GGUF transformers: gradients of the weights unpacked, nothing of them kept, and files of strangers."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest
import tiny_gguf
import torch
from conftest import PHRASES, PROMPT, SIZE
from diffusers import WanTransformer3DModel
from torch import nn

from ttom_core.adapter import attach, init_adapter
from ttom_core.backbones import ModelError, load
from ttom_core.backbones.folder import is_damaged
from ttom_core.backbones.gguf_file import HEADER_LIMIT, SCALARS
from ttom_core.backbones.published import PUBLISHED
from ttom_core.backbones.wan import WanBackbone
from ttom_core.errors import TTOMError
from ttom_core.forecast import (
    GGUF_BYTES,
    UNPACKING,
    Clip,
    LiveBytes,
    Plan,
    blueprint_of,
    forecast,
    published,
)
from ttom_core.masks import SoftMasks
from ttom_core.objectives import alignment_loss
from ttom_core.optimize import TTO, TTOSettings

LAYERS = (1, 2)
NO_PACKAGE = "needs the package gguf: pip install ttom[gguf]"


@pytest.fixture(scope="module", params=["Q8_0", "Q4_0"])
def model(request, tmp_path_factory):
    """The folder without its transformer's weights, the file, and the model that both should be."""
    pytest.importorskip("gguf", reason=NO_PACKAGE)
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("gguf")
    pipeline = tiny_gguf.build()
    pipeline.save_pretrained(folder / "wan")
    for weights in (folder / "wan" / "transformer").glob("*.safetensors"):
        weights.unlink()
    tiny_gguf.write(pipeline.transformer, folder / "wan.gguf", request.param)
    return folder / "wan", folder / "wan.gguf", WanBackbone(pipeline)


@pytest.fixture
def packed(model):
    return load(model[0], transformer=model[1])


def loss_of(backbone, **how):
    """The loss of a disturbed adapter, and the adapter's parameters."""
    backbone.transformer.requires_grad_(False)
    adapter = init_adapter(backbone.adapter_modules(LAYERS, "reachable"), 4, 4.0, 0, backbone.fingerprint)
    generator = torch.Generator().manual_seed(4)
    for _, b in adapter.weights.values():
        b.normal_(0, 0.3, generator=generator)
    call = backbone.blank_call(*SIZE.values(), 1, torch.zeros(0))
    call["hidden_states"] = torch.randn(call["hidden_states"].shape, generator=generator)
    call["encoder_hidden_states"] = backbone.encode(PROMPT)
    tokens = list(backbone.phrase_tokens(PROMPT, PHRASES).values())
    masks = torch.rand(2, 2, 2, 2, generator=generator)
    with attach(backbone.transformer, adapter) as attached:
        loss = alignment_loss(backbone.maps(call, [0], tokens, LAYERS, **how), masks, "jsd", "frame")
        return loss, torch.autograd.grad(loss, attached.parameters())


@pytest.mark.parametrize("how", [{}, {"checkpointing": True}, {"early_exit": False}])
def test_gradients_are_those_through_the_weights_unpacked(model, packed, how):
    kinds = {type(module).__name__ for module in packed.transformer.blocks.modules()}
    assert "GGUFLinear" in kinds and "Linear" not in kinds
    ours, full = loss_of(packed, **how), loss_of(model[2], early_exit=False)
    torch.testing.assert_close(ours[0], full[0], rtol=1e-5, atol=1e-8)
    for a, b in zip(ours[1], full[1], strict=True):
        assert (a - b).norm() < 1e-5 * b.norm()


def test_the_graph_keeps_no_unpacked_weight(model, packed):
    weights = [m.weight for m in model[2].transformer.blocks.modules() if isinstance(m, nn.Linear)]
    known, kept = {float(weight.detach().sum()) for weight in weights}, []
    for backbone, is_kept in ((model[2], True), (packed, False)):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x: kept.append(float(x.sum())) or x, lambda x: x
        ):
            loss_of(backbone)
        assert any(abs(total - weight) < 1e-5 for total in kept for weight in known) == is_kept


def test_its_fingerprint_is_that_of_the_weights_unpacked(model, packed):
    assert packed.fingerprint == packed.video_fingerprint == WanBackbone(model[2].pipeline).fingerprint


def test_it_is_optimised_and_left_as_it_was(packed):
    settings = TTOSettings(layers=LAYERS, rank=4, alpha=4.0, learning_rate=1e-2, iterations=2, sigma_end=0.8)
    before = {name: stored(p) for name, p in packed.transformer.named_parameters()}
    masks = SoftMasks(PHRASES, torch.rand(2, 2, 2, 2, generator=torch.Generator().manual_seed(2)))
    with TTO(packed, masks, PROMPT, settings, steps=6) as tto:
        packed.sample(
            PROMPT, negative_prompt="", steps=6, guidance_scale=1.0,
            generator=torch.Generator().manual_seed(0), on_step=lambda step: None, **SIZE,
        )  # fmt: skip
    assert tto.trace.last_loss < tto.trace.first_loss
    assert {name: stored(p) for name, p in packed.transformer.named_parameters()} == before
    assert not any("forward" in vars(module) for module in packed.transformer.blocks.modules())


def test_what_is_forecast_of_a_file_is_what_it_holds(model, packed, monkeypatch):
    config = dict(packed.transformer.config)
    toy = replace(PUBLISHED["Wan2.1-T2V-1.3B"], transformer=config)
    monkeypatch.setitem(PUBLISHED, "toy", toy)
    kind = packed.transformer.blocks[0].ffn.net[2].weight.quant_type.name
    foretold = published("toy", torch.float32, {"Q4_0": "Q4_K"}.get(kind, kind))
    found = blueprint_of(packed)
    assert (foretold.blocks, foretold.rest) == (found.blocks, found.rest)
    assert foretold.unpacking == found.unpacking > 0
    needed = forecast(found, Clip(*SIZE.values()), TTOSettings(layers=LAYERS), Plan())
    assert {p for p, parts in needed.phases.items() if "unpacked weight" in parts} == {"optimise", "sample"}
    assert blueprint_of(model[2]).unpacking == 0


@pytest.mark.parametrize("kind", [*GGUF_BYTES, "Q5_0", "Q4_0"])
def test_bytes_of_a_weight_are_the_formats_own(kind):
    gguf = pytest.importorskip("gguf", reason=NO_PACKAGE)
    from diffusers.quantizers.gguf.utils import GGUFParameter, dequantize_gguf_tensor

    number = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[number]
    assert GGUF_BYTES[{"Q5_0": "Q5_K", "Q4_0": "Q4_K"}.get(kind, kind)] == size / block
    weight = GGUFParameter(torch.zeros(64, 512 // block * size, dtype=torch.uint8), quant_type=number)
    with torch.no_grad(), LiveBytes([weight]) as live:
        dequantize_gguf_tensor(weight).to(torch.bfloat16)
    assert live.peak - live.start <= UNPACKING * 64 * 512


def stored(parameter):
    return parameter.detach().numpy().tobytes()


# ---- files that do not fit -----------------------------------------------------------------------


def refused(words, folder, path, monkeypatch, error=ModelError, **more):
    """Refused in one sentence, before any weights are read."""
    monkeypatch.setattr(
        WanTransformer3DModel, "from_single_file", lambda *_, **__: pytest.fail("loading has begun")
    )
    with pytest.raises(error, match=words) as told:
        load(folder, transformer=path, **more)
    text = str(told.value)
    assert "\n" not in text and text.endswith(".")


def test_without_the_package_that_is_said(tmp_path, monkeypatch):
    tiny_gguf.build().save_pretrained(tmp_path / "wan")
    (tmp_path / "wan.gguf").write_bytes(b"GGUF")
    find = "ttom_core.backbones.quantization.importlib.util.find_spec"
    monkeypatch.setattr(find, lambda name: None)
    words = r"is a GGUF, which needs the package gguf; install it with pip, or choose a safetensors file"
    refused(words, tmp_path / "wan", tmp_path / "wan.gguf", monkeypatch, TTOMError)


@pytest.mark.parametrize("base", ["fp8", "int8"])
def test_packed_weights_are_not_packed_again(model, monkeypatch, base):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    words = f"is quantised already; leave its weights as they are, not in {base}"
    refused(words, *model[:2], monkeypatch, TTOMError, base=base)


@pytest.mark.parametrize("kept", [0, 3, 20, 200, 0.5, -1])
def test_a_file_cut_short_is_named(model, tmp_path, monkeypatch, kept):
    content = model[1].read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(content[: int(len(content) * kept) if isinstance(kept, float) else kept])
    refused("cut.gguf is damaged or only partly downloaded", model[0], path, monkeypatch)


def test_a_file_of_another_model_is_refused(model, tmp_path):
    other = tiny_gguf.build().transformer
    del other.blocks[3].attn2.to_q
    tiny_gguf.write(other, tmp_path / "less.gguf", "Q8_0")
    with pytest.raises(TTOMError, match=r"lacks weights of the model|does not fit into"):
        load(model[0], transformer=tmp_path / "less.gguf")


def header(*parts, version=3, tensors=0, facts=0):
    return b"GGUF" + struct.pack("<IQQ", version, tensors, facts) + b"".join(parts) + b"\0" * 64


def string(text):
    return struct.pack("<Q", len(text)) + text


HUGE = 2**63
HOSTILE = {
    "not a GGUF": b"\x80\x04\x95" + b"\0" * 64,
    "a later version": header(version=9),
    "facts without end": header(facts=HUGE),
    "tensors without end": header(tensors=HUGE),
    "a name of eight exabytes": header(struct.pack("<Q", HUGE), facts=1),
    "an array without end": header(string(b"a"), struct.pack("<IIQ", 9, 0, HUGE), facts=1),
    "strings without end": header(string(b"a"), struct.pack("<IIQ", 9, 8, HUGE), facts=1),
    "arrays in arrays": header(string(b"a"), struct.pack("<I", 9), struct.pack("<IQ", 9, 1) * 9000, facts=1),
    "a value of no type": header(string(b"a"), struct.pack("<I", 99), facts=1),
    "an alignment of nothing": header(string(b"general.alignment"), struct.pack("<II", 4, 0), facts=1),
    "a tensor of many dimensions": header(string(b"a"), struct.pack("<I", 2**31), tensors=1),
    "a tensor of no type": header(string(b"a"), struct.pack("<IQIQ", 1, 32, 999, 0), tensors=1),
    "a tensor of exabytes": header(string(b"a"), struct.pack("<IQIQ", 1, HUGE, 0, 0), tensors=1),
    "a tensor far away": header(string(b"a"), struct.pack("<IQIQ", 1, 1, 0, HUGE), tensors=1),
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_found_at_once(tmp_path, content):
    pytest.importorskip("gguf", reason=NO_PACKAGE)
    path = tmp_path / "hostile.gguf"
    path.write_bytes(content)
    assert is_damaged(path)


def test_a_small_true_file_is_whole(tmp_path):
    pytest.importorskip("gguf", reason=NO_PACKAGE)
    facts = [string(b"x"), struct.pack("<IIQ", 9, 8, 2), string(b"a"), string(b"b")]
    for kind, size in SCALARS.items():
        facts += [string(b"y"), struct.pack("<I", kind), b"\1" * size]
    path = tmp_path / "true.gguf"
    tensor = string(b"t") + struct.pack("<IQIQ", 1, 4, 0, 0)
    path.write_bytes(header(*facts, tensor, facts=1 + len(SCALARS), tensors=1))
    assert not is_damaged(path) and path.stat().st_size < HEADER_LIMIT
