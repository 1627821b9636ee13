"""The nodes in a real ComfyUI, over HTTP."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
CLONE = "ttom-clone.v1"
MODEL_FOLDER = "wan/a copy of the demo"
PROMPT = "a red circle moves to the right while a blue square stays still"
STEPS = 8

Graph = dict[str, Any]

# Ids, names of inputs and the order of outputs stand in saved workflows: this table only grows.
SOCKETS = {
    "TTOM_LoadModel": (["model"], ["TTOM_BACKBONE"]),
    "TTOM_LayoutPlanner": (["prompt", "seed"], ["TTOM_LAYOUT", "STRING", "STRING"]),
    "TTOM_LayoutPreview": (
        ["layout", "num_frames", "width", "height", "fps", "images"],
        ["IMAGE"],
    ),
    "TTOM_SoftMask": (
        ["layout", "kind", "softness", "num_frames", "width", "height", "phrase"],
        ["TTOM_MASKS", "MASK"],
    ),
    "TTOM_TTOSampler": (
        [
            *["backbone", "prompt", "negative_prompt", "preset", "seed", "steps", "guidance_scale"],
            *["num_frames", "width", "height", "masks"],
        ],
        ["IMAGE", "FLOAT", "LORA_MODEL", "LOSS_MAP"],
    ),
}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def sampler(**changes: Any) -> dict[str, Any]:
    inputs = {
        "backbone": ["load", 0], "prompt": PROMPT, "negative_prompt": "", "preset": "demo",
        "seed": 7, "steps": STEPS, "guidance_scale": 4.0,
        "num_frames": 21, "width": 64, "height": 64,
    }  # fmt: skip
    return node("TTOM_TTOSampler", **(inputs | changes))


def base_graph() -> Graph:
    return {
        "load": node("TTOM_LoadModel", model="demo"),
        "base": sampler(),
        "save": node("SaveImage", images=["base", 0], filename_prefix="base"),
        "lora": node("SaveLoRANode", lora=["base", 2], prefix="loras/base"),
    }


def tto_graph() -> Graph:
    return {
        "load": node("TTOM_LoadModel", model="demo"),
        "plan": node("TTOM_LayoutPlanner", prompt=PROMPT, seed=0),
        "soften": node(
            "TTOM_SoftMask",
            layout=["plan", 0], kind="gaussian", softness=0.25, num_frames=21, width=64, height=64,
            phrase="red circle",
        ),
        "tto": sampler(masks=["soften", 0], prompt=["plan", 1]),
        "save": node("SaveImage", images=["tto", 0], filename_prefix="tto"),
        "mask": node("MaskPreview", mask=["soften", 1]),
        "draw": node(
            "TTOM_LayoutPreview",
            layout=["plan", 0], images=["tto", 0], num_frames=21, width=64, height=64, fps=8.0,
        ),
        "notes": node("PreviewAny", source=["plan", 2]),
        "film": node("CreateVideo", images=["tto", 0], fps=["tto", 1]),
        "keep": node(
            "SaveVideo", video=["film", 0], filename_prefix="tto", format="mp4", codec="h264"
        ),
        "lora": node("SaveLoRANode", lora=["tto", 2], prefix="loras/tto"),
        "loss": node("LossGraphNode", loss=["tto", 3], filename_prefix="loss"),
    }  # fmt: skip


def pictures(comfyui: Any, run: Any, name: str) -> np.ndarray:
    """The frames a node put out: uint8 [F, H, W, 3]."""
    files = run.outputs[name]["images"]
    frames = [np.asarray(Image.open(io.BytesIO(comfyui.view(f))).convert("RGB")) for f in files]
    return np.stack(frames)


def test_ids_inputs_and_outputs_are_what_saved_workflows_expect(comfyui: Any) -> None:
    info = comfyui.get("/object_info")
    ours = {name for name in info if name.startswith("TTOM_")}
    assert ours == SOCKETS.keys(), comfyui.log.read_text(errors="replace")[-3000:]
    for name, (inputs, outputs) in SOCKETS.items():
        order = info[name]["input_order"]
        assert order.get("required", []) + order.get("optional", []) == inputs, name
        assert info[name]["output"] == outputs, name
        assert info[name]["python_module"] == f"custom_nodes.{CLONE}"
    models = info["TTOM_LoadModel"]["input"]["required"]["model"]
    assert MODEL_FOLDER in json.dumps(models)


def test_the_pack_shows_its_help_and_workflows(comfyui: Any) -> None:
    page = comfyui.base / "page"
    page.write_bytes(_file(comfyui, f"/extensions/{CLONE}/docs/TTOM_TTOSampler.md"))
    assert page.read_text().startswith("# TTO Sampler (TTOM)")
    shipped = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert shipped == set(comfyui.get("/workflow_templates")[CLONE])


def _file(comfyui: Any, path: str) -> bytes:
    import urllib.request

    with urllib.request.urlopen(comfyui.url + path, timeout=60) as answer:
        return answer.read()


@pytest.mark.parametrize("path", sorted((ROOT / "workflows").glob("*.json")), ids=lambda p: p.stem)
def test_shipped_workflows_use_nodes_that_exist(comfyui: Any, path: Path) -> None:
    info = comfyui.get("/object_info")
    workflow = json.loads(path.read_text())
    nodes = {n["id"]: n for n in workflow["nodes"]}
    for n in nodes.values():
        assert n["type"] in info or n["type"] in {"Note", "MarkdownNote"}, n["type"]
    for _, source, out_slot, target, in_slot, _ in workflow["links"]:
        offered = info[nodes[source]["type"]]["output"][out_slot]
        assert nodes[source]["outputs"][out_slot]["type"] == offered
        assert nodes[target]["inputs"][in_slot]["type"] in {offered, "*"}


def test_the_whole_story_and_its_interrupt(comfyui: Any) -> None:
    """Base and TTO differ; a cancel in mid-optimisation leaves the loaded model as it was."""
    base = comfyui.run(base_graph())
    assert base.end == "success", base.error
    assert "lora" not in base.outputs  # nothing was optimised, so nothing is saved
    assert not list((comfyui.base / "output" / "loras").glob("base*"))
    assert all("optimising" not in text for text in base.texts)

    cut = comfyui.run(tto_graph(), interrupt_at=2)
    assert cut.end == "interrupted"
    assert "save" not in cut.outputs
    reached = max(value for name, value, _ in cut.progress if name == "tto")
    assert 2 <= reached < 6, "it ran on long after the cancel"
    assert "optimising" in cut.texts[-1]

    again = comfyui.run(base_graph())
    assert again.end == "success", again.error
    # The same loaded model, sampled anew: the proof that the cancelled run left nothing in it.
    assert "load" in again.cached
    assert "base" not in again.cached
    before = pictures(comfyui, base, "save")
    np.testing.assert_array_equal(pictures(comfyui, again, "save"), before)

    whole = comfyui.run(tto_graph())
    assert whole.end == "success", whole.error
    after = pictures(comfyui, whole, "save")
    assert after.shape == before.shape == (21, 64, 64, 3)
    assert (after != before).any()

    bar = [(value, total) for name, value, total in whole.progress if name == "tto"]
    assert len({total for _, total in bar}) == 1
    assert [value for value, _ in bar] == sorted(value for value, _ in bar)
    assert bar[-1][0] == bar[-1][1]
    assert bar[-1][1] > STEPS  # iterations and denoising steps in one count
    assert any("loss 0." in text for text in whole.texts)

    assert pictures(comfyui, whole, "mask").shape == (21, 64, 64, 3)
    assert "red circle" in whole.outputs["notes"]["text"][0]
    (drawn,) = whole.outputs["draw"]["images"]
    with Image.open(io.BytesIO(comfyui.view(drawn))) as webp:
        assert webp.n_frames == 21
        assert webp.width == webp.height >= 256  # small frames are enlarged
    (film,) = whole.outputs["keep"]["images"]
    assert film["filename"].endswith(".mp4")
    assert comfyui.view(film)[4:8] == b"ftyp"
    assert whole.outputs["loss"]["images"]


def test_the_adapter_travels_under_comfyuis_names(comfyui: Any) -> None:
    """The stock node saved it in the test above, or does so now."""
    run = comfyui.run({**tto_graph()})
    assert run.end == "success", run.error
    saved = sorted((comfyui.base / "output" / "loras").glob("tto*.safetensors"))
    assert saved
    content = saved[-1].read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    for key in header:
        assert key.startswith("diffusion_model.blocks."), key
        assert ".cross_attn." in key, key
        assert key.endswith((".lora_A.weight", ".lora_B.weight", ".alpha")), key


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("plan", {"prompt": "  "}, "prompt"),
        ("tto", {"prompt": "a green triangle"}, "is not in the prompt"),
        ("tto", {"num_frames": 20}, "20"),
        ("soften", {"phrase": "white horse"}, "white horse"),
    ],
)
def test_mistakes_are_answered_by_one_sentence(
    comfyui: Any, name: str, change: dict[str, Any], words: str
) -> None:
    graph = tto_graph()
    graph[name]["inputs"] |= change
    run = comfyui.run(graph)
    assert run.end == "error"
    assert words in run.error
    assert len(run.error.strip().splitlines()) == 1, run.error
