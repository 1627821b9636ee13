"""The benchmark's formulas against values worked out by hand, and on rendered scenes with known truth."""

from __future__ import annotations

import sys
from dataclasses import replace
from itertools import pairwise
from urllib.error import URLError

import numpy as np
import pytest
import torch
from test_grounding import dino, sam  # noqa: F401  toy folders of the real classes

from demo.scenes import FPS, Instance, Noun, Scene
from ttom_core.errors import TTOMError
from ttom_core.evaluation import compbench, detectors
from ttom_core.evaluation.blobs import coloured
from ttom_core.evaluation.detectors import (
    Detection,
    DetectorError,
    GroundingDino,
    Raft,
    Sam2,
    Vision,
    detect_blobs,
    follow,
    rendered_vision,
    segment_blobs,
    track_blobs,
)


def found(label: str, x: float, y: float, w: float = 0.2, h: float = 0.2, score: float = 0.5) -> Detection:
    return Detection(label, score, (x, y, w, h))


# ---- boxes ---------------------------------------------------------------------------------------


def test_iou_by_hand():
    assert compbench.iou((0, 0, 2, 2), (1, 1, 2, 2)) == pytest.approx(1 / 7, abs=1e-12)
    assert compbench.iou((0, 0, 1, 1), (1, 0, 1, 1)) == 0
    assert compbench.iou((0, 0, 0, 0), (0, 0, 0, 0)) == 0


def test_of_two_boxes_on_one_thing_the_likelier_stays_in_the_place_of_the_first():
    first, twin = found("cat", 0, 0, 1, 1, 0.4), found("dog", 0, 0, 1, 0.95, 0.6)
    other = found("cat", 0, 0, 1, 0.5, 0.9)
    assert compbench.distinct([first, other, twin], 0.9) == [twin, other]
    assert compbench.distinct([twin, other, first], 0.9) == [twin, other]
    # At the threshold itself (0.5 = IoU of the halves) both stay: doubles lie above it.
    assert compbench.distinct([first, other], 0.5) == [first, other]


# ---- numeracy ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cats", "dogs", "value"), [(3, 1, 1.0), (3, 2, 0.5), (2, 1, 0.5), (0, 0, 0.0), (4, 2, 0.0)]
)
def test_numeracy_gives_each_noun_its_half(cats, dogs, value):
    boxes = [found("cat", 0.2 * k, 0) for k in range(cats)] + [
        found("dog", 0.2 * k, 0.5) for k in range(dogs)
    ]
    assert compbench.numeracy(boxes, ["cat", "dog"], [3, 1]) == value


def test_numeracy_counts_only_labels_that_are_the_noun():
    boxes = [found("red ball", 0, 0), found("ball", 0.3, 0), found("red", 0.6, 0)]
    assert compbench.numeracy(boxes, ["red ball"], [1]) == 1
    assert compbench.numeracy(boxes, ["red ball"], [3]) == 0


# ---- spatial relationships -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("relation", "one", "other"),
    [
        ("left", (0.1, 0.4), (0.6, 0.5)),
        ("right", (0.6, 0.4), (0.1, 0.5)),
        ("above", (0.4, 0.1), (0.5, 0.6)),
        ("on", (0.4, 0.1), (0.5, 0.6)),
        ("under", (0.4, 0.6), (0.5, 0.1)),
        ("below", (0.4, 0.6), (0.5, 0.1)),
    ],
)
def test_a_relation_holds_one_way_only(relation, one, other):
    boxes = [found("cat", *one), found("dog", *other)]
    assert compbench.spatial_2d(boxes, ["cat", "dog"], relation) == 1
    assert compbench.spatial_2d(boxes, ["dog", "cat"], relation) == 0
    # The same distance both ways is no relation at all.
    diagonal = [found("cat", 0.25, 0.25), found("dog", 0.5, 0.5)]
    assert compbench.spatial_2d(diagonal, ["cat", "dog"], relation) == 0


def test_spatial_takes_the_best_pair_and_scores_only_its_overlap():
    # left: cat 0–0.2 | dog 0.1–0.3, IoU 1/3; a far but unlikely dog has merit ½·1 + ¼·(0.5 + 0.1) = 0.65,
    # the near one ½·2/3 + ¼·(0.5 + 0.9) = 0.683: the near one is taken, and scores 2/3.
    near, far = found("dog", 0.1, 0, score=0.9), found("dog", 0.7, 0, score=0.1)
    cat = found("cat", 0, 0, score=0.5)
    assert compbench.spatial_2d([cat, near, far], ["cat", "dog"], "left") == pytest.approx(2 / 3, abs=1e-12)
    likelier = replace(far, score=0.3)  # 0.5 + 0.2 = 0.7 > 0.683
    assert compbench.spatial_2d([cat, near, likelier], ["cat", "dog"], "left") == 1


def test_spatial_says_what_is_missing():
    cat = found("cat", 0, 0)
    assert compbench.spatial_2d([cat], ["cat", "dog"], "left") == -1
    assert compbench.spatial_2d([], ["cat", "dog"], "left") == -2


@pytest.mark.parametrize(("raw", "value"), [(-2, 0), (-1, 0.2), (0, 0.4), (0.5, 0.7), (1, 1)])
def test_the_scale_of_a_frame(raw, value):
    assert compbench.graded(raw) == pytest.approx(value, abs=1e-12)


def whole(boxes):
    """Masks [N, 10, 10] that fill their boxes."""
    masks = np.zeros((len(boxes), 10, 10), bool)
    for mask, (x, y, w, h) in zip(masks, boxes, strict=True):
        mask[round(y * 10) : round((y + h) * 10), round(x * 10) : round((x + w) * 10)] = True
    return masks


def test_depth_decides_what_is_in_front():
    cat, dog = found("cat", 0, 0, 0.6, 1), found("dog", 0.4, 0, 0.6, 1)
    slope = np.tile(np.arange(10) * 20.0, (10, 1))  # nearer to the right: the dog is in front
    case = ([cat], [dog], ["cat", "dog"])
    overlap = 0.2 / 1.0  # IoU of the two boxes
    assert compbench.spatial_3d(*case, "behind", whole, slope) == pytest.approx(overlap, abs=1e-12)
    assert compbench.spatial_3d(*case, "in front of", whole, slope) == 0
    apart = [replace(dog, box=(0.7, 0, 0.3, 1))]
    assert compbench.spatial_3d([cat], apart, ["cat", "dog"], "behind", whole, slope) == 0
    assert compbench.spatial_3d([cat], [], ["cat", "dog"], "behind", whole, slope) == -1
    nothing = lambda boxes: np.zeros((len(boxes), 10, 10), bool)  # noqa: E731
    assert compbench.spatial_3d(*case, "behind", nothing, slope) == 0


# ---- motion --------------------------------------------------------------------------------------


def test_displacement_is_between_the_first_frame_and_the_last_that_shows_anything():
    tracks = np.array(
        [
            [[0, 0, 1], [2, 0, 1]],
            [[5, 1, 1], [9, 9, 0]],
            [[7, 7, 0], [9, 9, 0]],
        ],
        float,
    )
    assert compbench.displacement(tracks) == (4, 1)
    assert compbench.displacement(tracks * (1, 1, 0)) == (0, 0)
    assert compbench.displacement(tracks[:, :0]) == (0, 0)


@pytest.mark.parametrize(
    ("steps", "ground", "directions", "value"),
    [
        ([(0.4, 0.0)], (0.1, 0.0), ["right"], 0.3),  # against the ground, which moves too
        ([(0.1, 0.0)], (0.4, 0.0), ["left"], 0.3),
        ([(0.4, 0.3)], (0.0, 0.0), ["up"], 0.0),
        ([(0.4, -0.3)], (0.0, 0.0), ["up"], 0.3),
        ([None], (0.0, 0.0), ["right"], -1.0),
        ([(0.4, 0.0), (0.0, 0.2)], (0.0, 0.0), ["right", "down"], 0.3),
        ([(0.4, 0.0), None], (0.0, 0.0), ["right", "down"], 0.2),
        ([(-0.4, 0.0), None], (0.0, 0.0), ["right", "down"], 0.0),
        ([None, None], (0.0, 0.0), ["right", "down"], -1.0),
        ([(0.4, 0.0)], None, ["right"], 0.0),
    ],
)
def test_motion_by_hand(steps, ground, directions, value):
    assert compbench.motion(steps, ground, directions) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("raw", "value"), [(-1, 0), (0, 0.2), (0.5, 0.6), (1, 1)])
def test_the_scale_of_a_video_s_motion(raw, value):
    assert compbench.graded_motion(raw) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("count", "fps", "tracked"), [(81, 16, 40), (21, 8, 16), (49, 8, 48), (16, 16, 8)])
def test_about_eight_frames_a_second_are_tracked(count, fps, tracked):
    clip = np.arange(count)[:, None, None, None]
    taken = compbench.tracked(clip, fps).ravel()
    assert len(taken) == tracked and taken[0] == 0 and taken[-1] == count - 1


# ---- rendered scenes -----------------------------------------------------------------------------

RED, BLUE = Noun("red", "circle"), Noun("blue", "square")
RAMP = np.linspace(0, 1, 21)[:, None]


def scene(*moves: tuple[Noun, tuple[float, float], tuple[float, float]]) -> np.ndarray:
    """Frames [21, 64, 64, 3] of things that go straight from one pixel to another."""
    nouns = tuple(dict.fromkeys(noun for noun, _, _ in moves))
    instances = tuple(
        Instance(nouns.index(noun), np.array(a) + RAMP * (np.array(b) - np.array(a)), np.full(21, 14.0))
        for noun, a, b in moves
    )
    return Scene("test", "", nouns, {}, instances).render()


def score(frames: np.ndarray, row: dict[str, str], vision: Vision | None = None) -> float:
    return compbench.score(frames, FPS, row, vision or rendered_vision())


def test_numeracy_of_a_scene():
    frames = scene(*((RED, (x, 20), (x, 20)) for x in (12, 32, 52)), (BLUE, (32, 50), (32, 50)))
    row = {"objects": "red circle, blue square", "numbers": "3,1"}
    assert score(frames, row) == 1
    assert score(frames, row | {"numbers": "3, 2"}) == 0.5
    assert score(frames, {"objects": "green circle", "numbers": "2"}) == 0


def test_a_relation_that_comes_true_halfway_counts_for_half():
    row = {"object_1": "red circle", "object_2": "blue square", "spatial": "left"}
    still = scene((RED, (14, 32), (14, 32)), (BLUE, (50, 32), (50, 32)))
    assert score(still, row) == 1
    assert score(still, row | {"spatial": "right"}) == pytest.approx(0.4)
    assert score(still, row | {"object_2": "cyan triangle"}) == pytest.approx(0.2)
    assert score(still, row | {"object_1": "zebra", "object_2": "hat"}) == 0
    # Above one another they pass; before that left holds (1), after it it does not (0.4).
    passing = scene((RED, (12, 20), (52, 20)), (BLUE, (52, 36), (12, 36)))
    assert 0.5 < score(passing, row) < 0.9


@pytest.mark.parametrize(("direction", "axis", "sign"), [("right", 0, 1), ("left", 0, -1), ("down", 1, 1)])
def test_motion_of_a_scene_is_what_was_drawn(direction, axis, sign):
    end = np.array([32.0, 32.0])
    end[axis] += sign * 20
    frames = scene((RED, (32, 32), tuple(end)))
    row = {"object_1": "red circle", "d_1": direction, "object_2": "", "d_2": ""}
    assert score(frames, row) == pytest.approx(0.2 + 0.8 * 20 / 64, abs=0.01)
    other = {"right": "left", "left": "right", "down": "up"}[direction]
    assert score(frames, row | {"d_1": other}) == pytest.approx(0.2)
    assert score(frames, row | {"object_1": "green circle"}) == 0


def test_motion_of_two_is_shared():
    frames = scene((RED, (12, 16), (44, 16)), (BLUE, (32, 56), (32, 40)))
    row = {"object_1": "red circle", "d_1": "right", "object_2": "blue square", "d_2": "up"}
    assert score(frames, row) == pytest.approx(0.2 + 0.8 * (32 + 16) / 2 / 64, abs=0.01)
    assert score(frames, row | {"d_2": "down"}) == pytest.approx(0.2 + 0.8 * 32 / 2 / 64, abs=0.01)


def test_depth_of_a_scene():
    frames = scene((BLUE, (36, 32), (36, 32)), (RED, (28, 32), (28, 32)))  # red is drawn over blue
    boxes = [d.box for noun in ("red", "blue") for d in detect_blobs(frames[0], noun)]
    overlap = compbench.iou(*boxes)
    assert overlap > 0.1
    row = {"object_1": "red", "object_2": "blue", "spatial": "in front of"}
    vision = rendered_vision(lambda frame: np.where(coloured(frame)["red"], 200.0, 50.0))
    assert score(frames, row, vision) == pytest.approx(0.4 + 0.6 * overlap)
    assert score(frames, row | {"spatial": "behind"}, vision) == pytest.approx(0.4)


def test_masks_and_tracks_of_a_scene():
    frames = scene((RED, (20, 32), (40, 32)), (BLUE, (52, 10), (52, 10)))
    (box,) = [d.box for d in detect_blobs(frames[0], "red circle")]
    (mask,) = segment_blobs(frames[0], [box])
    assert abs(mask.sum() - np.pi * 7**2) < 20
    tracks = track_blobs(frames)
    moved = tracks[-1] - tracks[0]
    assert np.allclose(moved[mask][:, 0], 20, atol=1) and np.allclose(moved[~mask][:, :2], 0)
    gone = frames.copy()
    gone[-1] = gone[-1, 0, 0]
    assert not track_blobs(gone)[-1, mask, 2].any()


# ---- tracks by optical flow ----------------------------------------------------------------------

ROWS, COLUMNS = 40, 60
GRID = np.stack(np.meshgrid(np.arange(COLUMNS), np.arange(ROWS)), -1)


def test_points_that_leave_the_frame_are_lost_and_the_others_followed():
    step = np.array([3.0, -2.0])
    there = np.broadcast_to(step, (ROWS, COLUMNS, 2))
    tracks = follow(GRID, [(there, -there)] * 5)
    assert tracks.shape == (6, ROWS, COLUMNS, 3) and tracks[0, ..., 2].all()
    for count, frame in enumerate(tracks):
        np.testing.assert_allclose(frame[..., :2], GRID + count * step, atol=1e-4)
    inside = (GRID[..., 0] + 15 < COLUMNS) & (GRID[..., 1] >= 10)
    np.testing.assert_array_equal(tracks[-1, ..., 2] > 0, inside)
    assert compbench.displacement(tracks[:, inside]) == pytest.approx((15, -10), abs=1e-3)


def square(left):
    """A square of 10 pixels."""
    return (abs(GRID - (left + 5, 15)) <= 5).all(-1)


def test_ground_that_an_object_covers_is_lost_and_stays_where_it_was():
    flows = [
        (
            np.where(square(4 * k)[..., None], (4, 0), 0.0),
            np.where(square(4 * k + 4)[..., None], (-4, 0), 0.0),
        )
        for k in range(10)
    ]
    tracks = follow(GRID, flows)
    assert compbench.displacement(tracks[:, square(0)]) == (40, 0) and tracks[:, square(0), 2].all()
    ground = tracks[:, ~square(0)]
    seen, moved = ground[..., 2] > 0, (ground[..., :2] != ground[0, :, :2]).any(-1)
    assert not (seen & moved).any()
    assert 0 < (~seen[-1]).sum() < 5 * square(0).sum()


def test_motion_of_a_scene_by_flow_is_what_was_drawn():
    frames = scene((RED, (14, 32), (46, 32)))

    def track(clip):
        masks = [coloured(frame)["red"][..., None] for frame in clip]
        step = np.array([32 / (len(clip) - 1), 0])
        flows = [(np.where(one, step, 0), np.where(other, -step, 0)) for one, other in pairwise(masks)]
        return follow(np.stack(np.meshgrid(np.arange(64), np.arange(64)), -1), flows)

    row = {"object_1": "red circle", "d_1": "right", "object_2": "", "d_2": ""}
    vision = replace(rendered_vision(), track=track)
    assert score(frames, row, vision) == pytest.approx(0.2 + 0.8 * 32 / 64, abs=0.04)
    assert score(frames, row | {"d_1": "left"}, vision) == pytest.approx(0.2)


@pytest.fixture
def raft(monkeypatch):
    """The tracker's whole path with random weights; says how they were asked for."""
    models = pytest.importorskip("torchvision.models", reason="RAFT is torchvision's")
    asked = []

    def random(url, *_, **how):
        asked.append(how)
        torch.manual_seed(0)
        return models.get_model("raft_small").state_dict()

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", random)
    monkeypatch.setattr(detectors, "TRACKED_SIZE", (128, 144))
    return Raft("raft_small", "cpu"), asked


def test_raft_answers_as_a_tracker(raft):
    tracker, asked = raft
    frames = np.random.default_rng(0).integers(0, 255, (2, 48, 72, 3), np.uint8)
    tracks = tracker(frames)
    assert tracks.shape == (2, 48, 72, 3) and np.isfinite(tracks).all()
    start = np.stack(np.meshgrid(np.arange(72), np.arange(48)), -1)
    np.testing.assert_allclose(tracks[0, ..., :2], start, atol=1e-3)
    assert set(np.unique(tracks[..., 2])) <= {0, 1} and tracks[0, ..., 2].all()
    np.testing.assert_array_equal(tracks, tracker(frames))
    assert asked == [{"check_hash": True, "weights_only": True}]  # once, and no pickle is opened


def test_a_tracker_that_is_not_there_is_one_sentence(raft, monkeypatch):
    blank = np.zeros((1, 64, 64, 3), np.uint8)
    with pytest.raises(DetectorError, match="no tracker 'eyes'; choose raft_large or raft_small"):
        Raft("eyes")

    def offline(*_, **__):
        raise URLError("no route")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(DetectorError, match=r"connect once to download\.pytorch\.org") as error:
        Raft("raft_small")(blank)
    assert "\n" not in str(error.value)
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    with pytest.raises(DetectorError, match=r"pip install ttom\[detect\]"):
        Raft("raft_small")(blank)


# ---- real detectors, of toy size with random weights ---------------------------------------------


def test_grounding_dino_answers_as_a_detector(dino):  # noqa: F811
    frame = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    detector = GroundingDino(dino, "cpu")
    everything = detector(frame, "Red circle . blue square", 0.0, 0.0)
    assert everything and all(0 < one.score < 1 for one in everything)
    assert {one.label.removesuffix(". [SEP]") for one in everything} == {"red circle. blue square"}
    for x, y, w, h in (one.box for one in everything):
        assert 0 <= x + w / 2 <= 1 and 0 <= y + h / 2 <= 1 and w > 0 and h > 0
    # Thresholds choose among the same detections.
    middle = float(np.median([one.score for one in everything]))
    fewer = detector(frame, "red circle . blue square.", middle, 0.0)
    assert fewer == [one for one in everything if one.score > middle]
    assert detector(frame, "red circle", 1.0, 0.0) == []
    assert all(one.label == "" for one in detector(frame, "red circle", 0.0, 1.0))


def test_sam_gives_a_mask_a_box(sam):  # noqa: F811
    frame = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    segment = Sam2(sam, "cpu")
    masks = segment(frame, [(0, 0, 0.5, 0.5), (0.25, 0.25, 0.75, 0.75)])
    assert masks.shape == (2, 48, 64) and masks.dtype == bool
    assert segment(frame, []).shape == (0, 48, 64)


# ---- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "row", "words"),
    [
        (15, {"objects": "cat", "numbers": "1"}, "15 frames is too short"),
        (7, {"object_1": "cat", "d_1": "left", "object_2": "", "d_2": ""}, "less than the second"),
        (16, {"objects": "cat, dog", "numbers": "1"}, "2 objects and 1 numbers"),
        (16, {"object_1": "cat", "object_2": "dog", "spatial": "near"}, "no spatial relation 'near'"),
        (16, {"object_1": "cat", "d_1": "away", "object_2": "", "d_2": ""}, "give each object one of"),
        (16, {"prompt": "two cats", "phrases": "a; b"}, "none of the categories"),
    ],
)
def test_what_cannot_be_scored_is_said(count, row, words):
    with pytest.raises(TTOMError, match=words) as error:
        score(np.zeros((count, 64, 64, 3), np.uint8), row)
    assert "\n" not in str(error.value)


def test_a_part_that_was_not_given_is_asked_for():
    row = {"object_1": "red circle", "d_1": "right", "object_2": "", "d_2": ""}
    with pytest.raises(DetectorError, match="add the segmenter, the tracker"):
        score(scene((RED, (20, 32), (40, 32))), row, Vision("boxes only", detect_blobs))


@pytest.mark.parametrize("part", [GroundingDino, Sam2])
def test_a_detector_that_is_not_there_is_one_sentence(part, monkeypatch, tmp_path):
    ask = (np.zeros((8, 8, 3), np.uint8), "cat" if part is GroundingDino else [(0, 0, 1, 1)])
    with pytest.raises(DetectorError, match="could not be loaded; give a folder") as error:
        part(str(tmp_path))(*ask)
    assert "\n" not in str(error.value)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(DetectorError, match=r"pip install ttom\[detect\]"):
        part(str(tmp_path))(*ask)
