"""Layouts: what they interpolate, that JSON keeps them, and that a bad one is refused in a sentence."""

from __future__ import annotations

import json
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from ttom_core.layout import (
    MAX_BYTES,
    Box,
    Ease,
    Keyframe,
    Layout,
    LayoutError,
    TrackedObject,
    frame_times,
)

share = st.floats(0.0, 1.0, allow_subnormal=False)
eases = st.sampled_from(get_args(Ease))


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    w, h = draw(st.floats(0.01, 1.0)), draw(st.floats(0.01, 1.0))
    return Box(x=draw(share) * (1 - w), y=draw(share) * (1 - h), w=w, h=h)


@st.composite
def tracked(draw: st.DrawFn, id: str = "a 1") -> TrackedObject:
    times = sorted(draw(st.sets(share, min_size=1, max_size=5)))
    enter = draw(st.floats(0.0, 0.9))
    return TrackedObject(
        id=id,
        name=draw(st.text(min_size=1, max_size=20)),
        phrase=draw(st.sampled_from(["red circle", "grüner Kreis", "気球"])),
        keyframes=tuple(Keyframe(time=t, box=draw(boxes()), ease=draw(eases)) for t in times),
        enter=enter,
        leave=draw(st.floats(enter + 0.05, 1.0)),
    )


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    ids = draw(st.sets(st.text(min_size=1, max_size=8), max_size=4))
    objects = tuple(draw(tracked(id)) for id in sorted(ids))
    return Layout(prompt=draw(st.text(max_size=50)), objects=objects, unresolved=("a sentence.",))


def one(*keyframes: tuple[float, float], **values: float) -> Layout:
    """One object of side 0.2 whose left edge is at x at each (time, x)."""
    keys = tuple(Keyframe(time=t, box=Box(x=x, y=0.1, w=0.2, h=0.2)) for t, x in keyframes)
    item = TrackedObject(id="ball 1", name="ball", phrase="ball", keyframes=keys, **values)
    return Layout(prompt="a ball", objects=(item,))


@settings(max_examples=50, deadline=None)
@given(layouts())
def test_json_round_trip_keeps_everything(layout: Layout) -> None:
    assert Layout.from_json(layout.to_json()) == layout
    assert Layout.from_json(layout.to_json().encode()) == layout


@settings(max_examples=50, deadline=None)
@given(layouts(), st.lists(share, max_size=7))
def test_boxes_are_on_the_canvas_or_nowhere(layout: Layout, times: list[float]) -> None:
    found = layout.boxes(times)
    assert found.shape == (len(layout.objects), len(times), 4)
    for row, item in zip(found, layout.objects, strict=True):
        for box, time in zip(row, times, strict=True):
            away = time < item.enter - 1e-6 or time > item.leave + 1e-6
            assert np.isnan(box).all() if away else not np.isnan(box).any() or _at_an_end(item, time)
    there = found[~np.isnan(found[..., 0])]
    assert (there >= -1e-6).all() and (there[:, :2] + there[:, 2:] <= 1 + 1e-6).all()


def _at_an_end(item: TrackedObject, time: float) -> bool:
    return min(abs(time - item.enter), abs(time - item.leave)) <= 2e-6


def test_boxes_move_linearly_and_rest_outside_the_keyframes() -> None:
    xs = one((0.25, 0.0), (0.75, 0.8)).boxes([0, 0.25, 0.5, 0.75, 1])[0, :, 0]
    assert xs == pytest.approx([0, 0, 0.4, 0.8, 0.8])


@pytest.mark.parametrize(
    ("ease", "quarter", "half"),
    [
        ("linear", 0.25, 0.5),
        ("in", 0.0625, 0.25),
        ("out", 0.4375, 0.75),
        ("in_out", 0.15625, 0.5),
        ("hold", 0.0, 0.0),
    ],
)
def test_a_keyframe_says_how_the_box_sets_out(ease: Ease, quarter: float, half: float) -> None:
    """Of the way from 0 to 0.8, so much is gone after a quarter and half of the time."""
    layout = Layout.from_json(
        one((0.0, 0.0), (1.0, 0.8)).to_json().replace('"time":', f'"ease":"{ease}","time":')
    )
    x = layout.boxes([0.0, 0.25, 0.5, 1.0])[0, :, 0]
    np.testing.assert_allclose(x, [0.0, 0.8 * quarter, 0.8 * half, 0.8], atol=1e-12)
    assert Layout.from_json(layout.to_json()) == layout


def test_an_even_motion_is_written_as_ever() -> None:
    """Layouts without easing have the bytes they had before there was any."""
    key = Keyframe(time=0.5, box=Box(x=0, y=0, w=1, h=1))
    assert key.model_dump_json() == '{"time":0.5,"box":{"x":0.0,"y":0.0,"w":1.0,"h":1.0}}'
    assert key.model_copy(update={"ease": "in"}).model_dump_json().endswith(',"ease":"in"}')


def test_a_single_keyframe_is_there_the_whole_time() -> None:
    assert one((0.5, 0.3)).boxes(frame_times(3))[0].tolist() == [[0.3, 0.1, 0.2, 0.2]] * 3


def test_late_entry_and_early_exit_are_absence() -> None:
    found = one((0, 0.3), enter=0.25, leave=0.5).boxes(frame_times(5))[0, :, 0]
    assert np.isnan(found).tolist() == [True, False, False, True, True]


def test_frame_times() -> None:
    assert frame_times(5).tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert frame_times(1).tolist() == [0]


def test_same_phrases_count_once() -> None:
    item = one((0, 0.3)).objects[0]
    twins = Layout(objects=(item, item.model_copy(update={"id": "ball 2"})))
    assert twins.phrases == ("ball",)


def test_box_around_is_moved_inside() -> None:
    box = Box.around(0.05, 0.99, 0.3)
    assert (box.x, box.y) == pytest.approx((0, 0.7))
    assert Box.around(0.5, 0.4, 0.2, 0.1).centre == pytest.approx((0.5, 0.4))


def test_values_are_frozen() -> None:
    with pytest.raises(ValidationError):
        one((0, 0.3)).objects[0].keyframes[0].box.x = 0.5


def test_files_are_written_whole_and_read_back(tmp_path) -> None:
    layout, path = one((0, 0.3), (1, 0.5)), tmp_path / "new" / "layout.json"
    layout.save(path)
    assert Layout.load(path) == layout
    assert [p.name for p in path.parent.iterdir()] == ["layout.json"]


GOOD = json.loads(one((0, 0.3), (1, 0.5)).to_json())


def changed(**values: object) -> dict[str, object]:
    """A good layout with the first object's fields, or its first box's, replaced."""
    layout = json.loads(json.dumps(GOOD))
    item = layout["objects"][0]
    for name, value in values.items():
        (item["keyframes"][0]["box"] if name in "xywh" else item)[name] = value
    return layout


HOSTILE = [
    ({**GOOD, "version": 2}, r"has version 2; this TTOM reads version 1"),
    ({**GOOD, "version": "one"}, r"has version 'one'"),
    ({**GOOD, "surprise": 1}, r"surprise"),
    ({**GOOD, "objects": GOOD["objects"] * 2}, r"Two objects have the id 'ball 1'"),
    ({**GOOD, "objects": [{**GOOD["objects"][0], "id": str(i)} for i in range(201)]}, r"objects"),
    ({"version": 1}, r"objects"),
    (changed(w=-0.2), r"inverted"),
    (changed(h=0), r"zero area"),
    (changed(x=0.9), r"outside the canvas"),
    (changed(y=-0.1), r"outside the canvas"),
    (changed(x="left"), r"x.*number.*'left'"),
    (changed(x=None), r"x"),
    (changed(keyframes=[]), r"at least one keyframe"),
    (changed(keyframes=GOOD["objects"][0]["keyframes"][::-1]), r"times must rise"),
    (changed(keyframes=[GOOD["objects"][0]["keyframes"][0]] * 2), r"times must rise"),
    (changed(enter=0.6, leave=0.4), r"enters at 0.6 and leaves at 0.4"),
    (changed(enter=-1), r"enter"),
    (changed(id=""), r"id"),
    (changed(phrase=""), r"phrase"),
    ([], r"The layout"),
    (None, r"The layout"),
]


@pytest.mark.parametrize(("content", "words"), HOSTILE, ids=[words for _, words in HOSTILE])
def test_a_bad_layout_is_refused_in_one_sentence(content: object, words: str, tmp_path) -> None:
    path = tmp_path / "layout.json"
    path.write_text(json.dumps(content))
    with pytest.raises(LayoutError, match=words) as caught:
        Layout.load(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and message.endswith(".") and "\n" not in message
    assert len(message) < 300 + len(str(path))


@pytest.mark.parametrize(
    "text",
    ["", "{", "not json", '{"version": 1, "objects": [NaN]}', "[" * 5000, b"\xff\xfe\x00", "\0"],
    ids=["empty", "cut", "prose", "nan", "deep", "bytes", "null"],
)
def test_text_that_is_no_layout(text: str | bytes) -> None:
    with pytest.raises(LayoutError, match=r"The layout is not valid JSON|objects"):
        Layout.from_json(text)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "1e999"])
def test_numbers_that_are_none(value: str) -> None:
    text = json.dumps(changed(x=0.12345)).replace("0.12345", value)
    with pytest.raises(LayoutError, match="x"):
        Layout.from_json(text)


def test_huge_and_missing_files(tmp_path) -> None:
    path = tmp_path / "huge.json"
    path.write_bytes(b" " * (MAX_BYTES + 1))
    with pytest.raises(LayoutError, match="larger than"):
        Layout.load(path)
    with pytest.raises(LayoutError, match="bytes"):
        Layout.from_json(" " * (MAX_BYTES + 1))
    with pytest.raises(LayoutError, match="cannot be read"):
        Layout.load(tmp_path / "absent.json")
    with pytest.raises(LayoutError, match="cannot be read"):
        Layout.load(tmp_path)
