"""VBench's formulas against values worked out by hand, and on rendered scenes with known truth."""

from __future__ import annotations

import numpy as np
import pytest

from demo.scenes import Instance, Noun, Scene
from ttom_core.errors import TTOMError
from ttom_core.evaluation import vbench
from ttom_core.evaluation.detectors import Detection, detect_blobs


def found(label: str, x: float, y: float, w: float = 0.2, h: float = 0.2) -> Detection:
    return Detection(label, 0.9, (x, y, w, h))


def test_every_noun_must_be_there():
    frame = [found("cat", 0, 0), found("cat", 0.5, 0), found("dog", 0, 0.5)]
    assert vbench.present(frame, ["cat"]) == vbench.present(frame, ["cat", "dog"]) == 1
    assert vbench.present(frame, ["cat", "bird"]) == vbench.present([], ["cat"]) == 0


def test_a_relation_is_an_axis_and_not_a_way():
    level = [found("cat", 0.1, 0.4), found("dog", 0.6, 0.5)]
    for relation in ("on the left of", "on the right of"):
        assert vbench.spatial(level, ["cat", "dog"], relation) == 1
    assert vbench.spatial(level, ["cat", "dog"], "on the top of") == 0
    assert vbench.spatial(level[:1], ["cat", "dog"], "on the left of") == 0
    twins = [found("cat", 0.1, 0.1), found("cat", 0.1, 0.6)]
    assert vbench.spatial(twins, ["cat", "dog"], "on the bottom of") == 1
    # 0.3 across and 0.2 down, but in pixels of a narrow frame 30 and 40.
    narrow = [found("cat", 0.1, 0.1), found("dog", 0.4, 0.3)]
    assert vbench.spatial(narrow, ["cat", "dog"], "on the left of") == 1
    assert vbench.spatial(narrow, ["cat", "dog"], "on the left of", (100, 200)) == 0


def test_overlap_makes_a_relation_count_for_less():
    close = [found("cat", 0, 0), found("dog", 0.1, 0)]  # IoU 1/3
    assert vbench.spatial(close, ["cat", "dog"], "on the left of") == pytest.approx(0.3, abs=1e-12)


def test_colour_is_over_the_frames_that_name_one():
    frames = [
        [("car", "a red car"), ("car", "a blue car")],
        [("car", "a blue car"), ("sky", "red sky")],
        [("car", "a shiny car")],
        [],
    ]
    assert vbench.colour(frames, "car", "red") == 0.5
    assert vbench.colour(frames, "dog", "red") is None


def test_the_total_of_the_expected_extremes():
    low = {name: bounds[1] for name, bounds in {**vbench.QUALITY, **vbench.SEMANTIC}.items()}
    high = {name: bounds[2] for name, bounds in {**vbench.QUALITY, **vbench.SEMANTIC}.items()}
    assert vbench.total(low) == {"quality": 0, "semantic": 0, "total": 0}
    assert vbench.total(high) == pytest.approx({"quality": 1, "semantic": 1, "total": 1})
    still = vbench.total(high | {"dynamic_degree": 0})  # which has half a weight: 6 of 6.5 stay
    assert still["quality"] == pytest.approx(6 / 6.5) and still["semantic"] == pytest.approx(1)
    assert still["total"] == pytest.approx((4 * 6 / 6.5 + 1) / 5)
    with pytest.raises(TTOMError, match="all 16 dimensions, and scene are not there"):
        vbench.total({name: value for name, value in high.items() if name != "scene"})


@pytest.mark.parametrize(
    ("count", "taken"),
    [(32, list(range(0, 32, 2))), (16, list(range(16))), (3, [0, 1] + [2] * 14)],
)
def test_the_middles_of_sixteen_intervals(count, taken):
    assert vbench.sampled(np.arange(count)).tolist() == taken


def test_a_rendered_scene():
    red, blue = Noun("red", "circle"), Noun("blue", "square")
    places = [np.tile([x, 32.0], (21, 1)) for x in (14, 50)]
    frames = Scene(
        "test", "", (red, blue), {}, tuple(Instance(k, p, np.full(21, 14.0)) for k, p in enumerate(places))
    ).render()
    frames[12:] = frames[0, 0, 0]  # both vanish
    share = float(np.mean(vbench.sampled(np.arange(21)) < 12))

    def score(**info):
        return vbench.score(frames, {"prompt_en": "x", "auxiliary_info": info}, detect_blobs)

    assert score(object_class={"object": "red circle"}) == share
    assert score(object_class={"object": "cyan circle"}) == 0
    assert score(multiple_objects={"object": "red circle and blue square"}) == share
    relation = {"object_a": "red circle", "object_b": "blue square", "relationship": "on the left of"}
    assert score(spatial_relationship={"spatial_relationship": relation}) == share
    for info in ({}, {"color": {"color": "red"}}, {"object_class": 3}):
        with pytest.raises(TTOMError, match="none of the dimensions"):
            score(**info)
    with pytest.raises(TTOMError, match="no spatial relationship 'near'"):
        score(spatial_relationship={"spatial_relationship": relation | {"relationship": "near"}})
