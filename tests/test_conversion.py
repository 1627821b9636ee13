"""Layouts from boxes, masks and tracks, and back: nothing is lost on the way, and bad input is refused."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttom_core.conversion import (
    Size,
    joined,
    layout_from_boxes,
    layout_from_masks,
    layout_from_tracks,
    layout_to_boxes,
    layout_to_tracks,
    read_boxes,
)
from ttom_core.layout import Box, Keyframe, Layout, LayoutError, TrackedObject, frame_times

SIZE = Size(832, 480)


def box(x: float, y: float, width: float = 100, height: float = 50, **more: Any) -> dict[str, Any]:
    return {"x": x, "y": y, "width": width, "height": height, **more}


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    """Objects some of which share a phrase, come late or leave early."""
    objects = []
    for n in range(draw(st.integers(1, 4))):
        keyframes = []
        for time in sorted(draw(st.sets(st.sampled_from([0.0, 0.2, 0.5, 0.75, 1.0]), min_size=1))):
            w, h = draw(st.floats(0.05, 0.5)), draw(st.floats(0.05, 0.5))
            x, y = draw(st.floats(0, 1)) * (1 - w), draw(st.floats(0, 1)) * (1 - h)
            ease = draw(st.sampled_from(["linear", "in_out", "hold"]))
            keyframes.append(Keyframe(time=time, box=Box(x=x, y=y, w=w, h=h), ease=ease))
        phrase = draw(st.sampled_from(["red circle", "blue square"]))
        enter, leave = draw(st.sampled_from([(0, 1), (0.3, 1), (0, 0.6), (0.4, 0.7)]))
        item = TrackedObject(
            id=f"{phrase} {n}", name=f"the {phrase}", phrase=phrase, keyframes=tuple(keyframes),
            enter=enter, leave=leave,
        )  # fmt: skip
        objects.append(item)
    return Layout(objects=tuple(objects))


@settings(max_examples=40, deadline=None)
@given(layouts(), st.sampled_from([5, 21, 81]))
def test_boxes_come_back_as_they_went_with_their_identities(layout: Layout, frames: int) -> None:
    boxes = layout_to_boxes(layout, frames, SIZE)
    again = layout_from_boxes(json.loads(json.dumps(boxes)), SIZE, tolerance=0)
    assert layout_to_boxes(again, frames, SIZE) == sorted_like(boxes, again)
    assert {o.id: (o.name, o.phrase) for o in again.objects} == {
        o.id: (o.name, o.phrase) for o in layout.objects
    }
    for item in again.objects:
        (before,) = (o for o in layout.objects if o.id == item.id)
        times = frame_times(frames)
        times = times[(times >= before.enter) & (times <= before.leave)]
        off = np.abs(item.boxes(times) - before.boxes(times)) * SIZE.sides
        assert off.max() <= 1.0  # whole pixels


def sorted_like(boxes: list[list[dict[str, Any]]], layout: Layout) -> list[list[dict[str, Any]]]:
    """Objects stand in the order of their first appearance."""
    order = [item.id for item in layout.objects]
    return [sorted(frame, key=lambda b: order.index(b["metadata"]["id"])) for frame in boxes]


@settings(max_examples=40, deadline=None)
@given(layouts())
def test_boxes_are_whole_pixels_on_the_canvas(layout: Layout) -> None:
    for frame in layout_to_boxes(layout, 9, Size(64, 48)):
        for seen in frame:
            x, y, w, h = (seen[side] for side in ("x", "y", "width", "height"))
            assert all(isinstance(value, int) for value in (x, y, w, h))
            assert w >= 1 and h >= 1 and x >= 0 and y >= 0 and x + w <= 64 and y + h <= 48


def test_keyframes_that_even_motion_explains_are_left_out() -> None:
    frames = [[box(10 + 5 * f, 40)] for f in range(81)]
    (item,) = layout_from_boxes(frames, SIZE, ["red ball"]).objects
    assert [k.time for k in item.keyframes] == [0, 1]
    frames[40][0]["y"] += 30
    (item,) = layout_from_boxes(frames, SIZE, ["red ball"]).objects
    assert [k.time for k in item.keyframes] == pytest.approx([0, 39 / 80, 0.5, 41 / 80, 1])
    (item,) = layout_from_boxes([[box(10, 40)]] * 81, SIZE, ["red ball"]).objects
    assert len(item.keyframes) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 700), st.floats(0, 400)), min_size=1, max_size=40), st.floats(0, 9))
def test_what_is_left_out_is_within_the_tolerance(
    places: list[tuple[float, float]], tolerance: float
) -> None:
    frames = [[box(x, y, 60, 60)] for x, y in places]
    layout = layout_from_boxes(frames, SIZE, ["ball"], tolerance)
    found = layout.boxes(frame_times(len(places)))[0] * SIZE.sides
    assert np.abs(found[:, :2] - np.array(places)).max() <= tolerance + 1e-5


def test_identities_are_kept_where_a_detector_shuffles_its_boxes() -> None:
    """Two of a kind that never come near, in changing order, and one of another kind between them."""
    frames = []
    for f in range(9):
        seen = [box(20 + f, 50, label="dog"), box(600 - f, 50, label="dog"), box(300, 50, label="cat")]
        frames.append(seen[f % 3 :] + seen[: f % 3])
    layout = layout_from_boxes(frames, SIZE)
    assert [o.id for o in layout.objects] == ["dog 1", "dog 2", "cat 1"]
    paths = layout.boxes(frame_times(9))[:, :, 0] * SIZE.width
    assert np.abs(paths[0] - (20 + np.arange(9))).max() < 1e-6
    assert np.abs(paths[1] - (600 - np.arange(9))).max() < 1e-6
    assert [o.phrase for o in layout.objects] == ["dog", "dog", "cat"]


def test_a_frame_that_missed_an_object_is_bridged() -> None:
    frames = [[box(100 + 10 * f, 50)] if f != 4 else [] for f in range(9)]
    (item,) = layout_from_boxes(frames, SIZE, ["ball"]).objects
    assert (item.enter, item.leave) == (0, 1)
    assert item.boxes([0.5])[0, 0] * SIZE.width == pytest.approx(140)


def test_an_object_is_there_from_its_first_to_its_last_frame() -> None:
    frames = [[box(100, 50)] if 3 <= f <= 5 else [] for f in range(11)]
    layout = layout_from_boxes(frames, SIZE, ["ball"])
    there = ~np.isnan(layout.boxes(frame_times(11))[0, :, 0])
    assert there.tolist() == [3 <= f <= 5 for f in range(11)]
    (item,) = layout.objects
    assert (item.enter, item.leave) == pytest.approx((0.25, 0.55))


@pytest.mark.parametrize(
    ("labels", "phrases", "named"),
    [
        (["", ""], ["red ball"], ["red ball", "red ball"]),
        (["", ""], ["red ball", "dog"], ["red ball", "dog"]),
        (["dog", ""], ["red ball", "dog"], ["dog", "red ball"]),
        (["Dog", "ball"], ["red ball", "dog"], ["dog", "red ball"]),
        (["dog", "ball"], [], ["dog", "ball"]),
        (["", "", ""], ["ball", "ball", "dog"], ["ball", "ball", "dog"]),
    ],
)
def test_phrases_find_their_objects(labels: list[str], phrases: list[str], named: list[str]) -> None:
    boxes = [box(200 * n, 50, label=label) for n, label in enumerate(labels)]
    assert [o.phrase for o in layout_from_boxes(boxes, SIZE, phrases).objects] == named


def test_boxes_are_cut_at_the_edges_of_the_canvas() -> None:
    (item,) = layout_from_boxes(box(-50, 440, 100, 100), SIZE, ["ball"]).objects
    (key,) = item.keyframes
    assert [getattr(key.box, side) for side in "xywh"] == pytest.approx([0, 440 / 480, 50 / 832, 40 / 480])


def test_a_mask_becomes_the_box_around_it() -> None:
    mask = np.zeros((5, 48, 64), np.float32)
    for f in range(1, 4):
        mask[f, 10:20, 4 + f : 16 + f] = 0.9
    mask[0, 5, 5] = 0.4  # no more than a shimmer
    layout = layout_from_masks([mask, mask > 0.5], ["red ball", "dog"])
    assert [o.id for o in layout.objects] == ["red ball 1", "dog 1"]
    found = layout.boxes(frame_times(5))
    np.testing.assert_allclose(found[0], found[1])
    assert np.isnan(found[0, [0, 4]]).all()
    np.testing.assert_allclose(found[0, 2] * [64, 48, 64, 48], [6, 10, 12, 10])


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.tuples(st.floats(110, 700), st.floats(70, 400)), min_size=21, max_size=21),
                min_size=1, max_size=3))  # fmt: skip
def test_tracks_come_back_as_they_went(tracks: list[list[tuple[float, float]]]) -> None:
    told = [[{"x": round(x, 3), "y": round(y, 3)} for x, y in track] for track in tracks]
    layout = layout_from_tracks(json.dumps(told), SIZE, ["ball"], tolerance=0)
    again = json.loads(layout_to_tracks(layout, 21, SIZE))
    for one, other in zip(told, again, strict=True):
        for p, q in zip(one, other, strict=True):
            assert (q["x"], q["y"]) == pytest.approx((p["x"], p["y"]), abs=0.01)


@pytest.mark.parametrize(
    "text",
    [
        '[{"x": 208, "y": 240}, {"x": 624, "y": 240}]',
        "[{'x': 208, 'y': 240}, {'x': 624, 'y': 240}]",
        "[[208, 240], [624, 240]]",
        '[[{"x": 208, "y": 240}, {"x": 624, "y": 240}]]',
    ],
)
def test_one_track_in_every_spelling(text: str) -> None:
    (item,) = layout_from_tracks(text, SIZE, ["ball"], box=(0.2, 0.4)).objects
    first, last = item.keyframes
    assert [getattr(first.box, side) for side in "xywh"] == pytest.approx([0.15, 0.3, 0.2, 0.4])
    assert [getattr(last.box, side) for side in "xywh"] == pytest.approx([0.65, 0.3, 0.2, 0.4])


def test_a_point_outside_is_an_absent_object_and_one_at_the_edge_is_whole() -> None:
    points = [{"x": -10, "y": 100}, {"x": 5, "y": 100}, {"x": 500, "y": 100}]
    (item,) = layout_from_tracks(json.dumps(points), SIZE, ["ball"]).objects
    assert item.enter == pytest.approx(0.25)
    assert (item.keyframes[0].box.x, item.keyframes[0].box.w) == (0, 0.25)


def test_an_absent_object_rests_in_its_track() -> None:
    layout = layout_from_boxes([[], [box(100, 50)], [box(300, 50)], []], SIZE, ["ball"])
    (track,) = json.loads(layout_to_tracks(layout, 4, SIZE))
    assert track[0]["x"] == pytest.approx(150, abs=0.01)
    assert track[3]["x"] == pytest.approx(350, abs=0.01)


def test_layouts_are_joined_under_distinct_ids() -> None:
    one = layout_from_boxes(box(10, 10), SIZE, ["dog"])
    two = joined(joined(one, one), one)
    assert [o.id for o in two.objects] == ["dog 1", "dog 2", "dog 3"]
    many = layout_from_boxes([box(n, 10, 1, 1) for n in range(200)], SIZE, ["dog"])
    with pytest.raises(LayoutError, match="201 objects"):
        joined(many, one)


def test_a_label_is_needed_where_no_phrase_is_given() -> None:
    with pytest.raises(LayoutError, match="phrases: name the objects"):
        layout_from_boxes(box(10, 10), SIZE)


DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("boxes", "words"),
    [
        (None, "there are none"),
        ([], "there are none"),
        ("[[1]]", "there are none"),
        ([[1]], "frame 1, box 1: it must have x, y, width and height"),
        ([[{"x": 1}]], "must have x, y, width"),
        ([[box("1", 2)]], "frame 1, box 1, x"),
        ([[box(float("nan"), 2)]], "finite number"),
        ([[box(10**400, 2)]], "finite number"),
        ([[box(True, 2)]], "finite number"),
        ([[box(None, 2)]], "finite number"),
        ([[box(1, 2, 0)]], "0 × 50"),
        ([[box(1, 2, -5)]], "-5 × 50"),
        ([[box(9000, 2)]], "on none of the 1 frames"),
        ([[box(1e308, 2, 1e308)]], "on none of the 1 frames"),
        ([[], []], "none of the 2 frames has one"),
        ([[box(1, 2)], 3], "frame 2 must be a list"),
        ([[box(1, 2)]] * 1001, "at most 1000"),
        ([[box(1, 2)] * 201], "at most 200 boxes"),
        ([[box(1, 2, label=["x"])]], "label must be text"),
        ([[box(1, 2, label="x" * 201)]], "label must be text"),
        ([[box(1, 2, metadata={"id": {}})]], "id must be text"),
        ([[box(1, 2, metadata={"id": 1}), box(9, 2, metadata={"id": 1})]], "two boxes with the id '1'"),
        ([[box(1, 2), box(9, 2), box(40, 2)]], "2 are given for 3 objects"),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_what_is_no_box_is_refused_in_one_sentence(boxes: Any, words: str) -> None:
    phrases = ["ball", "dog"] if "3 objects" in words else ["ball"]
    with pytest.raises(LayoutError, match=words) as refused:
        layout_from_boxes(boxes, SIZE, phrases)
    assert len(str(refused.value).splitlines()) == 1 and len(str(refused.value)) < 300


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no JSON"),
        ("{", "no JSON"),
        (DEEP, "no JSON"),
        ("x" * 1_000_001, "at most 1000000"),
        ("[]", "there are none"),
        ("{}", "there are none"),
        ("null", "there are none"),
        ("[[]]", "track 1: it must be a list of 1 to 1000 points"),
        ('["a"]', "track 1: it must be"),
        ('[[{"x": 1}]]', "track 1, point 1, y"),
        ('[[{"x": 1, "y": "2"}]]', "track 1, point 1, y"),
        ('[[{"x": 1, "y": NaN}]]', "finite number"),
        ('[[{"x": 1, "y": 1e999}]]', "finite number"),
        ('[[{"x": 1, "y": 2}, 7]]', "point 2: it must be"),
        ('[[{"x": -1, "y": -2}]]', "on none of the 1 frames"),
        (json.dumps([[[1, 2]] * 1001]), "1 to 1000 points"),
        (json.dumps([[[1, 2]]] * 201), "at most 200"),
    ],
)
def test_what_is_no_track_is_refused_in_one_sentence(text: str, words: str) -> None:
    with pytest.raises(LayoutError, match=words) as refused:
        layout_from_tracks(text, SIZE, ["ball"])
    assert len(str(refused.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        (np.zeros((0, 4, 4)), "shape"),
        (np.zeros((4, 4)), "shape"),
        (np.zeros((1001, 1, 1)), "at most 1000"),
        (np.zeros((3, 4, 4)), "on none of the 3 frames"),
        (np.full((3, 4, 4), np.nan), "no numbers"),
    ],
)
def test_what_is_no_mask_is_refused_in_one_sentence(mask: np.ndarray, words: str) -> None:
    with pytest.raises(LayoutError, match=words):
        layout_from_masks([mask], ["ball"])


def test_a_box_of_no_share_of_the_canvas_is_refused() -> None:
    with pytest.raises(LayoutError, match="two shares"):
        layout_from_tracks("[[1, 2]]", SIZE, ["ball"], box=(0, 0.5))


def test_boxes_are_read_from_text() -> None:
    assert read_boxes('[{"x": 1}]') == [{"x": 1}]
    with pytest.raises(LayoutError, match="boxes: the text is no JSON"):
        read_boxes("box")
