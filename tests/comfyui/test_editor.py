"""The layout editor: drawn in by real mouse and keys, and its node over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ttom_core.evaluation.grounding import BlobGrounding
from ttom_core.layout import Layout
from ttom_core.masks import soft_masks
from ttom_core.probe import soft_iou

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

HERE = Path(__file__).resolve().parent
HTML = "<img src=x onerror=alert(1)>"
SEEDS = range(4)


def drawing(**changes: Any) -> str:
    box = {"x": 0.1, "y": 0.1, "w": 0.25, "h": 0.25}
    item = {"id": "ball 1", "name": "ball", "phrase": "red ball", "keyframes": [{"time": 0, "box": box}]}
    return json.dumps({"version": 1, "objects": [item]} | changes)


def graph(drawn: Any, **changes: Any) -> dict[str, Any]:
    inputs = {"prompt": "", "width": 64, "height": 64, "num_frames": 21, "drawn": drawn}
    return {
        "plan": {
            "class_type": "TTOM_LayoutPlanner",
            "inputs": {"prompt": "a green triangle falls", "seed": 0},
        },
        "edit": {"class_type": "TTOM_LayoutEditor", "inputs": inputs | changes},
        "json": {"class_type": "PreviewAny", "inputs": {"source": ["edit", 3]}},
        "notes": {"class_type": "PreviewAny", "inputs": {"source": ["edit", 2]}},
    }


def names(run: Any) -> list[str]:
    assert run.end == "success", run.error
    return [thing["name"] for thing in json.loads(run.outputs["json"]["text"][0])["objects"]]


@pytest.mark.parametrize("mode", ["canvas", "vue"])
def test_the_editor_is_drawn_on_saved_and_reloaded(
    comfyui: Any, chromium: tuple[str, str, str], mode: str, tmp_path: Path
) -> None:
    """The screenshots stay in pytest's temporary folder, or in SCREENSHOTS, to be looked at."""
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    pictures.mkdir(parents=True, exist_ok=True)
    node, library, browser = chromium
    script = str(HERE / "editor.mjs")
    command = [node, script, library, browser, comfyui.url, str(pictures / f"editor {mode}"), mode]
    run = subprocess.run(command, capture_output=True, text=True, timeout=420)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    if "skipped" in seen:
        pytest.skip(seen["skipped"])
    assert seen["faults"] == []

    (circle,) = seen["drawn"]["objects"]
    assert (circle["id"], circle["name"], circle["phrase"]) == ("red circle 1", "red circle", "red circle")
    (key,) = circle["keyframes"]
    assert key["time"] == 0
    assert [key["box"][side] for side in "xywh"] == pytest.approx([0.1, 0.15, 0.25, 0.25], abs=0.02)

    (circle,) = seen["moved"]["objects"]
    assert [key["time"] for key in circle["keyframes"]] == [0, 1]
    first, last = (key["box"] for key in circle["keyframes"])
    assert last["x"] - first["x"] == pytest.approx(0.6, abs=0.04)  # it may have snapped
    assert (last["w"], last["h"]) == (first["w"], first["h"])
    assert seen["undone"] == seen["drawn"]
    assert seen["redone"] == seen["moved"]
    (circle,) = seen["retimed"]["objects"]
    assert [key["time"] for key in circle["keyframes"]] == [0, 0.9]
    assert [thing["id"] for thing in seen["pasted"]["objects"]] == ["red circle 1", "red circle 2"]

    circle, other = json.loads(seen["value"])["objects"]
    assert other["name"] == HTML
    assert seen["images"] == 0, "a name was taken for HTML"
    assert other["enter"] == pytest.approx(0.25)
    (key,) = other["keyframes"]  # mended where it was drawn: still one keyframe
    assert (key["time"], key["box"]["x"], key["box"]["w"]) == (0.5, 0.25, 0.25)
    assert [key["box"][side] for side in "yh"] == pytest.approx([0.65, 0.25], abs=0.02)
    assert seen["looks"] == seen["looksAgain"] == {other["id"]: {"locked": True}}
    assert seen["nodes"] == 1

    assert seen["reloaded"] == seen["sent"] == seen["value"]
    assert seen["labels"] == ["red circle", HTML]

    assert seen["run"] == "execution_success"
    assert seen["background"] == pytest.approx([0x33, 0x55, 0x77], abs=3)
    (triangle,) = seen["taken"]["objects"]
    assert "triangle" in triangle["name"]


def node_of(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def obeyed(frames: np.ndarray, layout: Layout) -> float:
    """How well the objects fill their boxes and nothing beside them: mean over objects and frames."""
    boxes = soft_masks(layout, frames.shape[:3], "hard_box").values
    found = BlobGrounding().locate(frames, layout.phrases)
    return float(soft_iou(boxes, torch.from_numpy(found).float()).mean())


def test_the_video_obeys_what_was_drawn_by_hand(
    comfyui: Any, chromium: tuple[str, str, str], tmp_path: Path
) -> None:
    """Drawn by mouse, saved, reloaded and run; then over the seeds beside the plain model's videos."""
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    pictures.mkdir(parents=True, exist_ok=True)
    node, library, browser = chromium
    workflow = HERE.parents[1] / "workflows" / "draw_a_layout.json"
    picture = str(pictures / "drawn by hand.png")
    command = [node, str(HERE / "drawn.mjs"), library, browser, comfyui.url, str(workflow), picture]
    run = subprocess.run(command, capture_output=True, text=True, timeout=420)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert seen["run"] == "execution_success"
    assert seen["reloaded"] == seen["drawn"]

    queued = seen["prompt"]
    (editor,) = (n for n in queued.values() if n["class_type"] == "TTOM_LayoutEditor")
    assert editor["inputs"]["drawn"] == seen["drawn"]
    layout = Layout.from_json(seen["drawn"])
    assert layout.phrases == ("red circle", "blue square")
    start, end = (key.box for key in layout.objects[0].keyframes)
    assert end.x - start.x > 0.4 and len(layout.objects[1].keyframes) == 1

    (name,) = (key for key, n in queued.items() if n["class_type"] == "TTOM_TTOSampler")
    values = queued[name]["inputs"]
    fills: dict[str, list[float]] = {"composed": [], "plain": []}
    for seed in SEEDS:
        composed = values | {"seed": seed}
        graph = queued | {
            name: node_of("TTOM_TTOSampler", **composed),
            "base": node_of("TTOM_TTOSampler", **{k: v for k, v in composed.items() if k != "masks"}),
            "composed": node_of("SaveImage", images=[name, 0], filename_prefix="composed"),
            "plain": node_of("SaveImage", images=["base", 0], filename_prefix="plain"),
        }
        done = comfyui.run(graph)
        assert done.end == "success", done.error
        assert seed != values["seed"] or name in done.cached, "the frontend queued something else"
        for kind, found in fills.items():
            found.append(obeyed(comfyui.frames(done, kind), layout))
    assert np.mean(fills["composed"]) > np.mean(fills["plain"]), fills


def test_what_is_drawn_is_what_goes_on(comfyui: Any) -> None:
    run = comfyui.run(graph(drawing(), prompt="a red ball"))
    assert names(run) == ["ball"]
    assert json.loads(run.outputs["json"]["text"][0])["prompt"] == "a red ball"
    assert run.outputs["edit"]["ttom_used"] == ["drawn"]

    wired = {"layout": ["plan", 0]}
    assert names(comfyui.run(graph("", **wired))) == ["green triangle"]
    assert names(comfyui.run(graph(drawing(), **wired))) == ["ball"]
    always = comfyui.run(graph(drawing(), **wired, use_layout="always"))
    assert names(always) == ["green triangle"]
    assert always.outputs["edit"]["ttom_used"] == ["upstream"]
    (offered,) = always.outputs["edit"]["ttom_layout"]
    assert json.loads(offered)["objects"][0]["name"] == "green triangle"

    run = comfyui.run(graph(drawing(), prompt="a blue square"))
    assert "red ball" in run.outputs["notes"]["text"][0]


@pytest.mark.parametrize(
    ("drawn", "words"),
    [
        ("", "nothing is drawn"),
        ("{", "not valid JSON"),
        ("../../etc/passwd", "not valid JSON"),
        (drawing(version=9), "version 9"),
        (drawing(objects=[{"id": "a"}]), "objects.0"),
        (drawing().replace('"w": 0.25', '"w": 1e308'), "outside the canvas"),
        (drawing(extra=1), "extra"),
        ("x" * 1_000_001, "at most 1000000"),
        (12, "not int"),
        ({"objects": []}, "not dict"),
    ],
)
def test_a_bad_drawing_is_answered_by_a_sentence_that_names_the_field(
    comfyui: Any, drawn: Any, words: str
) -> None:
    run = comfyui.run(graph(drawn))
    assert run.end == "error"
    assert "drawn: " in run.error
    assert words in run.error
    assert len(run.error.strip().splitlines()) == 1, run.error
