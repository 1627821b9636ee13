"""What nodes/compat.py takes for granted of ComfyUI, in ComfyUI's own Python."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(300)]

ROOT = Path(__file__).resolve().parents[2]
# The pack under a name of its own beside ComfyUI, as ComfyUI imports it.
BEFORE = """
import importlib.util, json, sys
root, sys.argv = sys.argv[1], ["main.py", "--cpu"]
sys.path.insert(0, ".")
import comfy.options
comfy.options.enable_args_parsing()
import torch, comfy.ops
spec = importlib.util.spec_from_file_location(
    "pack", root + "/__init__.py", submodule_search_locations=[root]
)
sys.modules["pack"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(sys.modules["pack"])
from pack.nodes import compat
answers = {}
"""


@pytest.fixture(scope="module")
def answers() -> Any:
    """What the scripts below find out, by name; ComfyUI is imported once for all."""
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        pytest.skip("COMFYUI_DIR is not set: the folder of a ComfyUI installation to test against")
    python = os.environ.get("COMFYUI_PYTHON") or sys.executable
    code = BEFORE + TOKENS + SENTENCES + WEIGHTS + ROOM + KINDS + COGVIDEOX + "print(json.dumps(answers))"
    command = [python, "-c", code, str(ROOT)]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.splitlines()[-1])


TOKENS = """
import io, sentencepiece
from comfy.text_encoders.wan import WanT5Tokenizer
from types import SimpleNamespace
text = ["a red circle moves to the right", "a blue square, still; 2 circles and squares of red and blue"] * 20
file = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(
    sentence_iterator=iter(text), model_writer=file, vocab_size=60, pad_id=0, eos_id=1, unk_id=2, bos_id=-1,
    hard_vocab_limit=False, minloglevel=2,
)
vocabulary = torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)
tokenizer = WanT5Tokenizer(tokenizer_data={"spiece_model": vocabulary})
clip = SimpleNamespace(tokenizer=tokenizer, tokenize=tokenizer.tokenize_with_weights)
clip.encode_from_tokens_scheduled = lambda tokens: [[torch.zeros(1, 512, 8), {"pooled_output": None}]]

def spelt(text, phrase):
    ((_, facts),) = compat.encode(clip, text)
    prompt, tokens = facts[compat.PROMPT], clip.tokenize(text)["umt5xxl"][0]
    places = prompt.positions([phrase])[phrase]
    pieces = tokenizer.clip_umt5xxl.inv_vocab
    return "".join(pieces[tokens[place][0]] for place in places).replace("\\u2581", "")

answers["phrases"] = [
    spelt("a red circle moves", "red circle"),
    spelt("a (red circle:1.3) moves and a (blue:0.7) square", "red circle"),
    spelt("a (red circle:1.3) moves and a (blue:0.7) square", "blue square"),
    spelt("a red\\ncircle, a red circle", "red circle"),
]
"""


def test_phrases_are_found_among_the_stock_tokenizers_pieces(answers: Any) -> None:
    """The real Wan tokenizer around a small vocabulary; weights and punctuation do not hide a phrase."""
    plain, weighted, partly, twice = answers["phrases"]
    assert plain == weighted == "redcircle"
    assert partly == "bluesquare"
    assert twice == "redcircle" * 2


SENTENCES = """
torch.manual_seed(0)
table = torch.nn.Embedding(64, 8)

def encoded(tokens):
    (batch,) = tokens["umt5xxl"]
    return [[table(torch.tensor([[token for token, _ in batch]])), {}]]

with torch.no_grad():
    clip.cond_stage_model, clip.encode_from_tokens_scheduled = table, encoded
    embedder = compat.embedder(clip)
    rows = embedder(["a red circle moves", "a red circle moves ☃", "a blue square"])
    name = embedder.name
    table.weight += 1
answers["sentences"] = [float(rows[0] @ row) for row in rows]
answers["names"] = [name, compat.embedder(clip).name]
"""


def test_a_stock_clip_embeds_sentences_by_their_known_words(answers: Any) -> None:
    same, unknown, other = answers["sentences"]
    assert same == pytest.approx(1, abs=1e-6)
    assert other < unknown
    assert answers["names"][0] != answers["names"][1]


WEIGHTS = """
from pack.ttom_core.backbones.frozen import differentiable

def worst(linear, dtype=torch.float32):
    x = torch.randn(3, 16, dtype=dtype)
    with torch.no_grad():
        bias = linear(torch.zeros(1, 16, dtype=dtype))
        matrix = linear(torch.eye(16, dtype=dtype)) - bias  # what it really does, column by column
    x.requires_grad_()
    with differentiable(linear, compat.weight_of):
        (gradient,) = torch.autograd.grad((linear(x) ** 3).sum(), x)
    y = linear(x.detach())
    return float((gradient - (3 * y ** 2) @ matrix.T).abs().max() / gradient.abs().max())

def made(ops, dtype):
    with torch.inference_mode():
        linear = ops.Linear(16, 8, dtype=dtype)
        with torch.no_grad():
            linear.weight.copy_(torch.randn(8, 16)); linear.bias.copy_(torch.randn(8))
    return linear

torch.manual_seed(0)
plain = made(comfy.ops.disable_weight_init, torch.float32)
if hasattr(comfy.ops, "scaled_fp8_ops"):
    scaled = made(comfy.ops.scaled_fp8_ops(override_dtype=torch.float8_e4m3fn), torch.float8_e4m3fn)
    scaled.scale_weight.data = torch.tensor(0.25)
else:  # newer ComfyUI has a type of tensor for it
    quantized = comfy.ops.QuantizedTensor.from_float(torch.randn(8, 16), "TensorCoreFP8E4M3Layout")
    scaled = made(comfy.ops.manual_cast, torch.float32)
    scaled.weight = torch.nn.Parameter(quantized, requires_grad=False)
patched = made(comfy.ops.manual_cast, torch.bfloat16)
patched.weight_function = [lambda weight: weight + 0.5]  # a LoRA on a model that is only partly loaded
answers["worst"] = [
    worst(plain),
    worst(made(comfy.ops.manual_cast, torch.bfloat16)),
    worst(made(comfy.ops.manual_cast, torch.float8_e4m3fn)),
    worst(scaled),
    worst(patched),
]
"""


def test_gradients_are_those_of_the_weights_that_comfyui_computes_with(answers: Any) -> None:
    """Plain, cast, fp8, fp8 with a scale, and with a LoRA applied on the fly."""
    assert max(answers["worst"]) < 1e-5


ROOM = """
from types import SimpleNamespace
model = SimpleNamespace(model=SimpleNamespace(memory_required=lambda shape: 100 * shape[0]))
shapes = [compat.with_room(model, [1, 16, 21, 60, 104], needed) for needed in (0, 1, 200, 201)]
answers["batches"] = [shape[0] for shape in shapes]
"""


def test_room_is_asked_for_in_whole_batches(answers: Any) -> None:
    assert answers["batches"] == [1, 2, 2, 3]


KINDS = """
import importlib
from pack.ttom_core.errors import TTOMError

def told(room, kind, **parts):
    transformer = getattr(importlib.import_module(room), kind)
    transformer = transformer.__new__(transformer)
    torch.nn.Module.__init__(transformer)
    for name, part in parts.items():
        setattr(transformer, name, part)
    config = SimpleNamespace(optimizations={})
    sampling = SimpleNamespace(sigma_max=1.0)
    base = type("Base", (), {"diffusion_model": transformer, "model_config": config})()
    model = SimpleNamespace(
        model=base, model_options={}, wrappers={}, get_model_object=lambda name: sampling
    )
    try:
        compat.check_model(model)
    except TTOMError as error:
        return str(error)
    return ""

answers["kinds"] = {
    "StableDiffusion": told("comfy.ldm.modules.diffusionmodules.openaimodel", "UNetModel"),
    "Flux": told("comfy.ldm.flux.model", "Flux"),
    "LTXV": told("comfy.ldm.lightricks.model", "LTXVModel"),
    "VaceWan": told("comfy.ldm.wan.model", "VaceWanModel"),
    "CameraWan": told("comfy.ldm.wan.model", "CameraWanModel"),
    "WanWithReference": told("comfy.ldm.wan.model", "WanModel", ref_conv=torch.nn.Identity()),
    "Wan": told("comfy.ldm.wan.model", "WanModel"),
}
"""


def test_models_of_other_kinds_are_refused_by_what_is_supported(answers: Any) -> None:
    """For images, for videos by other makers, and Wans that take more than a text and a picture."""
    kinds = answers["kinds"]
    assert kinds.pop("Wan") == ""
    for kind, sentence in kinds.items():
        assert sentence.endswith("TTOM supports Wan 2.1 and 2.2, and CogVideoX, for texts and for images."), (
            kind
        )
        assert len(sentence.splitlines()) == 1


COGVIDEOX = """
try:
    from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel as Native
except ImportError:
    Native = None
answers["cogvideox"] = None
if Native:
    from diffusers import CogVideoXTransformer3DModel
    from pack.ttom_core.adapter import Adapter, attach, init_adapter
    from pack.ttom_core.attention import PrefixCache
    from pack.ttom_core.backbones.cogvideox import CogVideoXBackbone
    from pack.ttom_core.backbones.fingerprint import fingerprint
    from pack.ttom_core.backbones.names import COGVIDEOX, native_name
    from pack.ttom_core.backbones.native import NativeCogVideoX
    from pack.ttom_core.backbones.phrases import EncodedPrompt

    torch.manual_seed(0)
    sizes = dict(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, out_channels=4, time_embed_dim=8,
        text_embed_dim=32, num_layers=3, max_text_seq_length=24, use_rotary_positional_embeddings=True,
    )
    theirs = CogVideoXTransformer3DModel(**sizes).requires_grad_(False)
    for block in theirs.transformer_blocks:  # random weights give almost even attention
        torch.nn.init.normal_(block.attn1.to_q.weight, std=0.5)
        torch.nn.init.normal_(block.attn1.to_k.weight, std=0.5)
    with torch.inference_mode():  # as ComfyUI loads
        ours = Native(**sizes, dtype=torch.float32, operations=comfy.ops.manual_cast).requires_grad_(False)
        ours.load_state_dict({native_name(n, COGVIDEOX): x for n, x in theirs.state_dict().items()})
    latents, text, timestep = torch.randn(1, 4, 3, 4, 6), torch.randn(1, 24, 32), torch.tensor([700])

    def denoise(latents, sigma, call, turn):
        with compat._cogvideox_by_turns(ours.blocks, {}, turn) as options:
            ours(latents, sigma, text, transformer_options=options["transformer_options"])

    native = NativeCogVideoX(
        ours, EncodedPrompt("", "", (), 24), [4500.0, 1.0], dict(ours.named_parameters()), denoise,
        compat.weight_of,
    )
    diffusers = CogVideoXBackbone.of_transformer(theirs, 1, 1)
    calls = {"timestep": timestep, "encoder_hidden_states": text}
    here = calls | {"hidden_states": latents}
    there = calls | {
        "hidden_states": latents.transpose(1, 2), "image_rotary_emb": ours._get_rotary_emb(2, 3, 3, "cpu")
    }
    fresh = init_adapter(diffusers.adapter_modules((1,), "reachable"), 4, 4.0, 0, "x")
    adapter = Adapter({n: (a, torch.randn_like(b) / 9) for n, (a, b) in fresh.weights.items()}, 4, 4.0, "x")

    def found(backbone, call, **how):
        with attach(backbone.transformer, adapter) as attached:
            prefix = PrefixCache(0)
            for _ in range(2):  # the second time from the cache
                maps = backbone.maps(call, [0], [(1, 2), (5,)], (0, 1), prefix=prefix, **how)
            loss = sum((layer ** 2).sum() for layer in maps.values())
            return torch.stack(list(maps.values())), torch.autograd.grad(loss, attached.parameters())

    answers["cogvideox"] = {"maps": [], "gradients": []}
    for how in ({}, {"checkpointing": True}, {"joint_map": "text_to_video"}):
        maps, gradients = found(native, here, **how)
        reference, exact = found(diffusers, there, **how)
        answers["cogvideox"]["maps"].append(float((maps - reference).abs().max() / reference.abs().max()))
        worse = [float((a - b).abs().max() / b.abs().max()) for a, b in zip(gradients, exact)]
        answers["cogvideox"]["gradients"].append(max(worse))
    answers["cogvideox"] |= {
        "levels": native.sigmas(2),
        "clean": not any("forward" in vars(block) for block in ours.blocks),
        "fingerprints": [native.fingerprint, fingerprint("cogvideox", 3, 32, theirs.named_parameters())],
    }
"""


def test_cogvideox_has_the_maps_and_gradients_of_the_same_weights_on_diffusers(answers: Any) -> None:
    """Random weights; with the prefix cache, with checkpointing, and read the other way round."""
    found = answers["cogvideox"]
    if found is None:
        pytest.skip("this ComfyUI has no CogVideoX of its own")
    assert max(found["maps"]) < 1e-4
    assert max(found["gradients"]) < 1e-3
    assert found["levels"] == [pytest.approx(0.9998, abs=1e-4), 0.5]
    assert found["clean"]
    here, there = found["fingerprints"]
    assert here == there
