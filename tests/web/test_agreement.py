"""The editor's JavaScript and the core agree: on the boxes of these layouts, and on what is none.

layouts.json is made by `python tests/web/test_agreement.py` and read by layout.test.mjs.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ttom_core.layout import Layout, LayoutError

HERE = Path(__file__).resolve().parent
FIXTURE = HERE / "layouts.json"
TIMES = [0.0, 0.05, 0.1, 0.25, 1 / 3, 0.5, 0.61, 0.75, 0.9, 1.0]


def _box(x: float, y: float = 0.1, w: float = 0.2, h: float = 0.3) -> dict[str, float]:
    return {"x": x, "y": y, "w": w, "h": h}


def _object(**changes: Any) -> dict[str, Any]:
    keyframes = [{"time": 0, "box": _box(0)}, {"time": 1, "box": _box(0.7, 0.6, 0.3, 0.25)}]
    return {"id": "ball 1", "name": "ball", "phrase": "red ball", "keyframes": keyframes} | changes


def _layout(*objects: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {"version": 1, "prompt": "a red ball", "objects": list(objects)} | changes


def _eased(ease: str) -> dict[str, Any]:
    times = (0.1, 0.35, 0.9)
    boxes = (_box(0), _box(0.5, 0.5), _box(0.1, 0.7, 0.9, 0.05))
    keyframes = [{"time": t, "box": b, "ease": ease} for t, b in zip(times, boxes, strict=True)]
    return _layout(_object(keyframes=keyframes, enter=0.05, leave=0.95))


def _keyed(**changes: Any) -> dict[str, Any]:
    return _layout(_object(keyframes=[{"time": 0, "box": _box(0)} | changes]))


GOOD = [
    _layout(),
    _layout(_object()),
    _layout(_object(name="<img src=x onerror=alert(1)>", phrase="気球 🎈", enter=0.25, leave=0.75)),
    _layout(_object(), _object(id="__proto__", keyframes=[{"time": 0.5, "box": _box(0, 0, 1, 1)}])),
    *[_eased(ease) for ease in ("linear", "in", "out", "in_out", "hold")],
]

BAD: list[Any] = [
    None,
    [],
    {},
    "text",
    _layout(version=2),
    _layout(extra=1),
    _layout(objects={}),
    _layout(_object(), _object()),
    _layout(unresolved="text"),
    _layout(_object(id="")),
    _layout(_object(name="x" * 201)),
    _layout(_object(phrase=None)),
    _layout(_object(keyframes=[])),
    _layout(_object(keyframes=[{"time": 0.5, "box": _box(0)}] * 2)),
    _layout(_object(enter=0.5, leave=0.5)),
    _layout(_object(enter=-0.1)),
    _layout(_object(colour="#ffffff")),
    _keyed(time=1.5),
    _keyed(ease="bounce"),
    _keyed(ease="__proto__"),
    _keyed(box=_box(0.9)),
    _keyed(box=_box(-0.1)),
    _keyed(box=_box(0, w=0)),
    _keyed(box=_box(0, w=1e300)),
    _keyed(box={"x": 0, "y": 0, "w": 1}),
]
BAD_TEXTS = ["", "{", "NaN", '{"objects": [], "prompt": "\\ud800"}']


def fixture() -> dict[str, Any]:
    layouts = [Layout.from_json(json.dumps(good)) for good in GOOD]
    agreed = []
    for layout in layouts:
        boxes = layout.boxes(TIMES)
        agreed.append(
            {
                "layout": json.loads(layout.to_json()),
                "boxes": np.where(np.isnan(boxes), None, boxes.round(12)).tolist(),  # type: ignore[call-overload]
            }
        )
    refused = [json.dumps(bad) for bad in BAD] + BAD_TEXTS
    return {"times": TIMES, "agreed": agreed, "refused": refused}


def test_the_committed_fixture_is_what_the_core_says() -> None:
    assert json.loads(FIXTURE.read_text(encoding="utf-8")) == fixture()


def test_the_core_refuses_what_the_editor_refuses() -> None:
    many = json.dumps(_layout(*[_object(id=str(n)) for n in range(201)]))
    large = json.dumps(_layout(prompt="x" * 20_001))
    for text in [*fixture()["refused"], many, large, "[" * 100_000]:
        with pytest.raises(LayoutError):
            Layout.from_json(text)


def test_the_editors_own_tests() -> None:
    """`node --test tests/web/*.test.mjs`, for those who run pytest alone."""
    node = shutil.which("node")
    if not node:
        pytest.skip("node is not on the path")
    command = [node, "--test", *map(str, sorted(HERE.glob("*.test.mjs")))]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stdout + run.stderr


if __name__ == "__main__":
    FIXTURE.write_text(json.dumps(fixture(), indent=1) + "\n", encoding="utf-8")
