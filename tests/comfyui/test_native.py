"""TTOM on ComfyUI's own MODEL: the demo's transformer through the stock loader and samplers."""

from __future__ import annotations

import ast
import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ttom_core.backbones.names import convert

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a red circle moves to the right while a blue square stays still"
FILE = "ttom_demo.safetensors"
STEPS = 8

Graph = dict[str, Any]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


@pytest.fixture(scope="module")
def native(comfyui: Any) -> Any:
    """The server, with the demo's transformer among its diffusion models."""
    target = comfyui.base / "models" / "diffusion_models" / FILE
    if not target.exists():
        convert(ROOT / "demo" / "model", target)
    return comfyui


def sampler(model: str = "shift", **changes: Any) -> dict[str, Any]:
    inputs = {
        "model": [model, 0], "positive": ["pos", 0], "negative": ["neg", 0], "latent_image": ["latent", 0],
        "preset": "demo", "seed": 7, "steps": STEPS, "cfg": 4.0, "sampler_name": "euler",
        "scheduler": "simple", "denoise": 1.0,
    }  # fmt: skip
    return node("TTOM_LoRASampler", **(inputs | changes))


def ksampler(model: str = "shift", **changes: Any) -> dict[str, Any]:
    inputs = sampler(model)["inputs"]
    inputs.pop("preset")
    return node("KSampler", **(inputs | changes))


def loaded(**more: Any) -> Graph:
    """Stock nodes around the demo: no TTOM but its text encoder and VAE."""
    return {
        "load": node("TTOM_LoadModel", model="demo"),
        "parts": node("TTOM_PipelineParts", backbone=["load", 0]),
        "unet": node("UNETLoader", unet_name=FILE, weight_dtype="default"),
        "shift": node("ModelSamplingSD3", model=["unet", 0], shift=3.0),
        "pos": node("TTOM_EncodePrompt", clip=["parts", 0], prompt=PROMPT),
        "neg": node("CLIPTextEncode", clip=["parts", 0], text=""),
        # The stock VAE's latents are 8 times smaller than the clip, the demo's 4 times.
        "latent": node("EmptyHunyuanLatentVideo", width=128, height=128, length=21, batch_size=1),
        "plan": node("TTOM_LayoutPlanner", prompt=PROMPT, seed=0),
        "soften": node(
            "TTOM_SoftMask", layout=["plan", 0], kind="gaussian", softness=0.25, num_frames=21, width=64,
            height=64, phrase="",
        ),
    } | more  # fmt: skip


def shown(name: str, sampled: dict[str, Any]) -> Graph:
    """A sampler, and its video as pictures."""
    return {
        name: sampled,
        f"{name} video": node("VAEDecode", samples=[name, 0], vae=["parts", 1]),
        f"{name} saved": node("SaveImage", images=[f"{name} video", 0], filename_prefix=name),
    }


def composed(**changes: Any) -> Graph:
    return shown("tto", sampler(masks=["soften", 0], **changes)) | {
        "loss": node("PreviewAny", source=["tto", 2]),
        "lora": node("SaveLoRANode", lora=["tto", 1], prefix="loras/native"),
    }


def frames(comfyui: Any, run: Any, name: str) -> np.ndarray:
    """Of a node in `shown`: uint8 [F, H, W, 3]."""
    assert run.end == "success", run.error
    files = run.outputs[f"{name} saved"]["images"]
    return np.stack([np.asarray(Image.open(io.BytesIO(comfyui.view(f))).convert("RGB")) for f in files])


def losses(run: Any) -> list[float]:
    return ast.literal_eval(run.outputs["loss"]["text"][0])["loss"]


def diffusers_losses() -> list[float]:
    """Of the same optimisation on the diffusers road: same noise, and at first the same noise level."""
    from ttom_core.backbones import load
    from ttom_core.generate import generate
    from ttom_core.optimize import PRESETS
    from ttom_core.planner import propose

    layout = propose(PROMPT, 0).layout
    backbone = load(ROOT / "demo" / "model", "cpu")
    made = generate(backbone, PROMPT, layout, PRESETS["demo"], seed=7, steps=STEPS)
    return [row.loss for row in made.trace.rows]


def test_the_native_road_optimises_as_the_other_and_leaves_the_model(native: Any) -> None:
    """Base, TTOM and base again in one server: the first and the last are bit for bit the same."""
    base = native.run(loaded(**shown("base", ksampler())))
    before = frames(native, base, "base")
    assert before.shape == (21, 64, 64, 3)

    whole = native.run(loaded(**composed()))
    after = frames(native, whole, "tto")
    assert (after != before).any()
    assert "unet" in whole.cached
    ours, theirs = losses(whole), diffusers_losses()
    assert ours[0] == pytest.approx(theirs[0], abs=1e-3)
    assert min(ours) < ours[0]
    assert ours[:8] == pytest.approx(theirs[:8], abs=2e-3)  # the step at noise level 1

    again = native.run(loaded(**shown("base", ksampler(seed=7, denoise=0.99999))))
    assert "unet" in again.cached
    assert "base" not in again.cached
    np.testing.assert_array_equal(frames(native, again, "base"), before)
    bar = [(value, total) for name, value, total in whole.progress if name == "tto"]
    assert bar[-1][0] == bar[-1][1] > STEPS
    assert len({total for _, total in bar}) == 1
