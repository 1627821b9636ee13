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
    code = BEFORE + TOKENS + SENTENCES + WEIGHTS + ROOM + "print(json.dumps(answers))"
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
scaled = made(comfy.ops.scaled_fp8_ops(override_dtype=torch.float8_e4m3fn), torch.float8_e4m3fn)
scaled.scale_weight.data = torch.tensor(0.25)
patched = made(comfy.ops.manual_cast, torch.bfloat16)
patched.weight_function = [lambda weight: weight + 0.5]  # a LoRA on a model that is only partly loaded
answers["worst"] = [
    worst(made(comfy.ops.disable_weight_init, torch.float32)),
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
