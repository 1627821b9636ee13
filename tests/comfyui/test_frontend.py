"""Every shipped workflow in the real frontend, driven through headless Chromium by frontend.mjs."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(1200)]

HERE = Path(__file__).resolve().parent
WORKFLOWS = sorted((HERE.parents[1] / "workflows").glob("*.json"))
MUTED, BYPASSED = 2, 4
CANCELLED_AT = 3  # the value of the bar at which frontend.mjs presses cancel
SIZES = {
    "compare_methods": (4 * 132 - 4, 150),
    "memory_stream": (3 * 132 - 4, 150),
}  # clips beside each other


def played(comfyui: Any, chromium: tuple[str, str, str], script: str, *words: str) -> Any:
    """What a script of this folder saw in the browser."""
    node, library, browser = chromium
    command = [node, str(HERE / script), library, browser, comfyui.url, *words]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1100)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_an_artist_runs_cancels_and_runs_it_again(
    comfyui: Any,
    chromium: tuple[str, str, str],
    path: Path,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    """The screenshot stays in pytest's temporary folder, or in SCREENSHOTS, to be looked at."""
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    pictures.mkdir(parents=True, exist_ok=True)
    seen = played(comfyui, chromium, "frontend.mjs", str(path), str(pictures / f"{path.stem}.png"))

    record_property("frontend", seen["version"])
    assert seen["missing"] == []
    assert (seen["faults"], seen["outside"]) == ([], [])
    assert seen["dialogs"] == []  # the frontend's words about missing nodes, or anything else
    assert sorted(seen["nodes"]) == sorted(n["type"] for n in json.loads(path.read_text())["nodes"])

    assert seen["cancelled"]["end"] == "execution_interrupted", seen["cancelled"]["message"]
    assert 1 <= len(seen["cancelled"]["bar"]) <= CANCELLED_AT + 3
    last = seen["cancelled"]["texts"][-1]
    assert "optimising" in last or "moving the latents" in last

    whole = seen["whole"]
    assert whole["end"] == "execution_success", whole["message"]
    assert whole["bar"][-1][0] == whole["bar"][-1][1] == max(value for value, _ in whole["bar"])
    assert whole["bar"][0][1] == whole["bar"][-1][1], "the bar changed its length on the way"
    assert ("optimising" if path.stem == "native_patch" else "denoising") in whole["texts"][-1]

    assert (seen["video"]["width"], seen["video"]["height"]) == SIZES.get(path.stem, (64, 64))
    assert seen["video"]["seconds"] == pytest.approx(21 / 8, abs=0.2)
    assert seen["video"]["colours"] > 8, "the video is a blank picture"


@pytest.mark.parametrize(
    ("workflow", "modes", "shows"),
    [
        ("prompt_to_video", {"TTOM_SoftMask": MUTED}, "SaveVideo"),
        ("prompt_to_video", {"TTOM_SoftMask": BYPASSED}, "SaveVideo"),
        ("prompt_to_video", {"TTOM_TTOSampler": MUTED}, "TTOM_LayoutPreview"),
        ("prompt_to_video", {"TTOM_LayoutPreview": BYPASSED}, "SaveVideo"),
        ("native_patch", {"TTOM_PatchModel": BYPASSED}, "SaveVideo"),
        ("memory", {"TTOM_MemoryRead": MUTED, "TTOM_MemoryUpdate": MUTED}, "SaveVideo"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_what_is_muted_or_bypassed_is_done_without(
    comfyui: Any, chromium: tuple[str, str, str], workflow: str, modes: dict[str, int], shows: str
) -> None:
    """What is left runs: without masks the plain model, without Patch Model the stock sampler's."""
    path = HERE.parents[1] / "workflows" / f"{workflow}.json"
    seen = played(comfyui, chromium, "modes.mjs", str(path), json.dumps(modes))
    assert seen["faults"] == []
    left = [node["class_type"] for node in seen["prompt"].values()]
    assert not modes.keys() & set(left)
    assert seen["run"] == "execution_success"
    assert shows in seen["shown"]
    if workflow == "native_patch":
        (sampler,) = (node for node in seen["prompt"].values() if node["class_type"] == "KSampler")
        source, _ = sampler["inputs"]["model"]
        assert seen["prompt"][source]["class_type"] == "ModelSamplingSD3"


def test_two_tabs_each_get_their_own(comfyui: Any, chromium: tuple[str, str, str]) -> None:
    path = HERE.parents[1] / "workflows" / "prompt_to_video.json"
    prompts = ["a red circle moves to the right", "a blue square stays still"]
    one, other = played(comfyui, chromium, "tabs.mjs", str(path), *prompts)
    assert [one["end"], other["end"]] == ["execution_success"] * 2
    assert len(one["runs"]) == len(other["runs"]) == 1 and one["runs"] != other["runs"]
    assert comfyui.view(one["film"]) != comfyui.view(other["film"])
