"""Layouts from and to the stock types, in a real ComfyUI over HTTP."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

PROMPT = "a red circle moves to the right while a blue square stays still"
PIXELS = {"width": 640, "height": 480}
Graph = dict[str, Any]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def from_boxes(**changes: Any) -> Graph:
    inputs = {"phrases": "", **PIXELS, "tolerance": 0.5}
    return {
        "make": node("TTOM_LayoutFromBoxes", **(inputs | changes)),
        "json": node("PreviewAny", source=["make", 1]),
    }


def from_tracks(**changes: Any) -> Graph:
    inputs = {"phrases": "ball", **PIXELS, "box_width": 25.0, "box_height": 25.0, "tolerance": 0.5}
    return {
        "make": node("TTOM_LayoutFromTracks", **(inputs | changes)),
        "json": node("PreviewAny", source=["make", 1]),
    }


def objects(run: Any, name: str = "json") -> list[dict[str, Any]]:
    assert run.end == "success", run.error
    return json.loads(run.outputs[name]["text"][0])["objects"]


def test_a_layout_goes_out_and_comes_back_on_every_road(comfyui: Any) -> None:
    graph = {
        "plan": node("TTOM_LayoutPlanner", prompt=PROMPT, seed=0),
        "planned": node("PreviewAny", source=["plan", 3]),
        "boxes": node("TTOM_LayoutToBoxes", layout=["plan", 0], num_frames=81, **PIXELS),
        **from_boxes(boxes=["boxes", 0]),
        "text": node("TTOM_LayoutFromBoxes", phrases="", **PIXELS, tolerance=0.5, boxes_json=["boxes", 1]),
        "by text": node("PreviewAny", source=["text", 1]),
        "tracks": node("TTOM_LayoutToTracks", layout=["plan", 0], num_frames=81, **PIXELS),
        "points": node("PreviewAny", source=["tracks", 0]),
        "follow": from_tracks(tracks=["tracks", 0], phrases="red circle\nblue square")["make"],
        "by track": node("PreviewAny", source=["follow", 1]),
        "soften": node(
            "TTOM_SoftMask", layout=["plan", 0], kind="hard_box", softness=0.25, num_frames=21, width=64,
            height=64, phrase="red circle",
        ),
        "mask": node(
            "TTOM_LayoutFromMask", mask=["soften", 1], phrase="red circle", tolerance=0.5, layout=["plan", 0]
        ),
        "by mask": node("PreviewAny", source=["mask", 1]),
    }  # fmt: skip
    run = comfyui.run(graph)
    planned = objects(run, "planned")
    assert objects(run) == objects(run, "by text")
    assert [o["id"] for o in objects(run)] == [o["id"] for o in planned]
    for road in ("json", "by track"):
        for before, after in zip(planned, objects(run, road), strict=True):
            assert after["phrase"] == before["phrase"]
            for end in (0, -1):
                start, came = before["keyframes"][end]["box"], after["keyframes"][end]["box"]
                centre = start["x"] + start["w"] / 2
                assert came["x"] + came["w"] / 2 == pytest.approx(centre, abs=2 / 640)
    assert [len(track) for track in json.loads(run.outputs["points"]["text"][0])] == [81, 81]
    *kept, masked = objects(run, "by mask")
    assert kept == planned
    assert masked["phrase"] == "red circle"
    assert masked["id"] not in {o["id"] for o in planned}


BOX = {"x": 10, "y": 20, "width": 100, "height": 50}


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        (from_boxes(), "boxes: nothing is wired in"),
        (from_boxes(boxes_json="{"), "boxes: the text is no JSON"),
        (from_boxes(boxes_json="../../etc/passwd"), "boxes: the text is no JSON"),
        (from_boxes(boxes_json=json.dumps([BOX | {"width": 1e308, "x": "<b>"}])), "frame 1, box 1, x"),
        (from_boxes(boxes_json=json.dumps([BOX])), "phrases: name the objects"),
        (from_boxes(boxes_json=json.dumps([BOX] * 3), phrases="dog, cat"), "2 are given for 3"),
        (from_tracks(tracks="[]"), "tracks: there are none"),
        (from_tracks(tracks='[[{"x": NaN, "y": 1}]]'), "track 1, point 1, x"),
        (from_tracks(tracks="[[[9999, 9999]]]"), "on none of the 1 frames"),
    ],
)
def test_what_is_refused_is_named_in_one_sentence(comfyui: Any, graph: Graph, words: str) -> None:
    run = comfyui.run(graph)
    assert run.end == "error"
    assert words in run.error
    assert len(run.error.strip().splitlines()) == 1, run.error
