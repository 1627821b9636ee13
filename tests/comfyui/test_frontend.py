"""Every shipped workflow in the real frontend, driven through headless Chromium by frontend.mjs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(1200)]

HERE = Path(__file__).resolve().parent
WORKFLOWS = sorted((HERE.parents[1] / "workflows").glob("*.json"))
CANCELLED_AT = 3  # the value of the bar at which frontend.mjs presses cancel
SIZES = {
    "compare_methods": (4 * 132 - 4, 150),
    "memory_stream": (3 * 132 - 4, 150),
}  # clips beside each other


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_an_artist_runs_cancels_and_runs_it_again(
    comfyui: Any, chromium: tuple[str, str, str], path: Path, tmp_path: Path
) -> None:
    """The screenshot stays in pytest's temporary folder, or in SCREENSHOTS, to be looked at."""
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    pictures.mkdir(parents=True, exist_ok=True)
    node, library, browser = chromium
    script, picture = str(HERE / "frontend.mjs"), str(pictures / f"{path.stem}.png")
    command = [node, script, library, browser, comfyui.url, str(path), picture]
    run = subprocess.run(command, capture_output=True, text=True, timeout=1100)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)

    assert seen["missing"] == []
    assert seen["dialogs"] == []  # the frontend's words about missing nodes, or anything else
    assert sorted(seen["nodes"]) == sorted(n["type"] for n in json.loads(path.read_text())["nodes"])

    assert seen["cancelled"]["end"] == "execution_interrupted"
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
