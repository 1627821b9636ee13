"""What can be looked at, in a real ComfyUI over HTTP: comparison, attention, loss."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

PROMPT = "a red circle moves to the right while a blue square stays still"
Graph = dict[str, Any]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def sampler(**changes: Any) -> dict[str, Any]:
    inputs = {
        "backbone": ["load", 0], "prompt": PROMPT, "negative_prompt": "", "preset": "demo", "seed": 7,
        "steps": 8, "guidance_scale": 4.0, "num_frames": 21, "width": 64, "height": 64,
    }  # fmt: skip
    return node("TTOM_TTOSampler", **(inputs | changes))


def graph(**changes: Any) -> Graph:
    return {
        "load": node("TTOM_LoadModel", model="demo"),
        "plan": node("TTOM_LayoutPlanner", prompt=PROMPT, seed=0),
        "soften": node(
            "TTOM_SoftMask",
            layout=["plan", 0], kind="gaussian", softness=0.25, num_frames=21, width=64, height=64, phrase="",
        ),
        "base": sampler(),
        "tto": sampler(masks=["soften", 0], **({"keep_maps": True} | changes)),
        "compare": node(
            "TTOM_Compare",
            first=["base", 0], second=["tto", 0], labels="base, TTO", columns=4, fps=8.0,
        ),
        "strip": node("PreviewImage", images=["compare", 1]),
        "attention": node(
            "TTOM_AttentionPreview", trace=["tto", 5], images=["tto", 0], fps=8.0, phrase=""
        ),
        "loss": node("TTOM_LossCurve", loss=["tto", 3]),
    }  # fmt: skip


def picture(comfyui: Any, run: Any, name: str) -> Image.Image:
    (file,) = run.outputs[name]["images"]
    return Image.open(io.BytesIO(comfyui.view(file)))


def test_a_comparison_the_attention_and_the_loss_are_seen(comfyui: Any) -> None:
    run = comfyui.run(graph())
    assert run.end == "success", run.error
    beside = picture(comfyui, run, "compare")
    assert (beside.n_frames, beside.size) == (21, (2 * 128 + 4, 128 + 22))
    frame = np.asarray(beside.convert("RGB"))[22:]
    assert (frame[:, :128] != frame[:, 132:]).any()
    assert picture(comfyui, run, "strip").size == (4 * 132 - 4, 2 * (128 + 26))
    attention = picture(comfyui, run, "attention")
    assert (attention.n_frames, attention.size) == (21, (4 * 260 - 4, 256 + 22))
    before, after = (np.asarray(attention.convert("RGB"))[22:, left : left + 256] for left in (0, 260))
    assert (before != after).any()
    assert picture(comfyui, run, "loss").size == (770, 385)


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("tto", {"keep_maps": False}, "trace: no attention was kept"),
        ("attention", {"phrase": "white horse"}, "white horse"),
        ("compare", {"second": ["soft", 0]}, "one size and length"),
    ],
)
def test_what_cannot_be_shown_is_said_in_one_sentence(
    comfyui: Any, name: str, change: dict[str, Any], words: str
) -> None:
    asked = graph()
    asked["soft"] = node("MaskToImage", mask=["soften", 1])
    asked["soften"]["inputs"]["num_frames"] = 5
    asked[name]["inputs"] |= change
    if name == "compare":
        asked = {key: asked[key] for key in ("load", "plan", "soften", "soft", "base", "compare")}
    run = comfyui.run(asked)
    assert run.end == "error"
    assert words in run.error
    assert len(run.error.strip().splitlines()) == 1, run.error


def test_without_iterations_there_is_no_loss_and_its_picture_is_left_out(comfyui: Any) -> None:
    asked = graph(optimise=False)
    asked.pop("attention")
    run = comfyui.run(asked)
    assert run.end == "success", run.error
    assert "loss" not in run.outputs
