"""Pictures: what is drawn where, and videos that can be read back."""

from __future__ import annotations

from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

from ttom_core.errors import TTOMError
from ttom_core.layout import Box, Keyframe, Layout, TrackedObject
from ttom_core.pictures import (
    COLOURS,
    attention_change,
    beside,
    draw_layout,
    enlarge,
    heatmap,
    interval_chart,
    loss_chart,
    loss_curve,
    relevance_chart,
    relevance_strip,
    save_video,
    strip,
)

GREY = np.full((5, 32, 32, 3), 100, np.uint8)
Row = namedtuple("Row", "step sigma loss")


def layout(**values: float) -> Layout:
    keys = (
        Keyframe(time=0.0, box=Box(x=0.0, y=0.5, w=0.25, h=0.25)),
        Keyframe(time=1.0, box=Box(x=0.75, y=0.5, w=0.25, h=0.25)),
    )
    item = TrackedObject(id="red ball 1", name="red ball", phrase="red ball", keyframes=keys, **values)
    return Layout(objects=(item,))


def test_boxes_are_drawn_where_the_layout_says() -> None:
    drawn = draw_layout(GREY, layout())
    assert drawn.shape == (5, 256, 256, 3) and drawn.dtype == np.uint8
    middle = drawn[2]  # the box now spans x 0.375…0.625, y 0.5…0.75
    assert tuple(middle[190, 100]) == COLOURS[0], "the bottom edge"
    assert tuple(middle[170, 96]) == COLOURS[0], "the left edge"
    assert (middle[170, 130] == 100).all(), "inside, under the label"
    assert (middle[:120] == 100).all() and (middle[:, 200:] == 100).all(), "outside"


def test_an_absent_object_is_not_drawn() -> None:
    drawn = draw_layout(GREY, layout(enter=0.3, leave=0.6))
    changed = [(frame != 100).any() for frame in drawn]
    assert changed == [False, False, True, False, False]


def test_the_frames_given_stay_as_they_were() -> None:
    before = GREY.copy()
    draw_layout(GREY, layout())
    heatmap(GREY, np.ones((2, 4, 4)))
    np.testing.assert_array_equal(GREY, before)


def test_a_label_longer_than_the_picture_still_shows_its_beginning() -> None:
    long = layout().objects[0].model_copy(update={"id": "extraordinarily long name " * 3})
    draw_layout(GREY, Layout(objects=(long,)))


def test_small_frames_are_enlarged_and_large_ones_kept() -> None:
    assert enlarge(GREY).shape == (5, 256, 256, 3)
    assert enlarge(np.zeros((1, 300, 500, 3), np.uint8)).shape == (1, 300, 500, 3)


def test_heat_is_where_the_map_is() -> None:
    maps = np.zeros((3, 4, 4))
    maps[0, 0, 0] = maps[2, 3, 3] = 2.0
    hot = heatmap(GREY, maps).mean(-1)
    assert hot[0, :64, :64].mean() > 2 * hot[0, 128:, 128:].mean()
    assert hot[-1, 192:, 192:].mean() > 2 * hot[-1, :128, :128].mean()
    assert heatmap(GREY, maps, peak=20.0).mean() < hot.mean(), "one scale for several maps"


def test_maps_without_any_attention_are_dark() -> None:
    for empty in (np.zeros((2, 4, 4)), np.full((2, 4, 4), np.nan)):
        assert heatmap(GREY, empty).max() < 60


def test_a_strip_has_a_labelled_row_each() -> None:
    rows = {"base": GREY, "TTOM": np.full((5, 32, 32, 3), 200, np.uint8)}
    sheet = np.asarray(strip(rows, columns=3))
    assert sheet.shape == (2 * (128 + 26), 3 * 132 - 4, 3)
    assert (sheet[26:154, :128] == 100).all() and (sheet[180:, 264:] == 200).all()
    assert (sheet[:26] < 50).any(), "the label"


def test_a_strip_shows_no_frame_twice() -> None:
    assert strip({"short": GREY[:2]}, columns=6).width == 2 * 132 - 4


def test_a_loss_curve_is_a_picture(tmp_path) -> None:
    rows = [Row(i // 4, 1 - i / 100, 0.5 / (i + 1)) for i in range(20)]
    for name, given in (("some", rows), ("none", [])):
        loss_curve(given, tmp_path / f"{name}.png")
        assert Image.open(tmp_path / f"{name}.png").size == (770, 385)


def test_a_loss_chart_needs_no_more_than_losses() -> None:
    losses = [0.5, 0.3, 0.2, 0.25]
    plain, marked = loss_chart(losses), loss_chart(losses, [0, 0, 1, 1], [1.0, 1.0, 0.9, 0.9])
    assert plain.mode == marked.mode == "RGB" and plain.size == marked.size == (770, 385)
    assert (np.asarray(plain) != np.asarray(marked)).any()


def test_attention_before_and_after_has_one_scale_a_phrase() -> None:
    weak, strong = np.full((2, 4, 4), 0.1), np.full((2, 4, 4), 0.9)
    clip = attention_change(GREY, {"ball": weak, "dog": strong}, {"ball": strong, "dog": weak})
    assert clip.shape == (5, 256 + 22, 4 * 260 - 4, 3)
    levels = [clip[0, 150, 128 + 260 * place].mean() for place in range(4)]
    assert levels[0] < levels[1] / 2 and levels[3] < levels[2] / 2
    assert levels[0] == levels[3] and levels[1] == levels[2]


@pytest.mark.parametrize("layers", [1, 4, 48])
def test_a_relevance_chart_marks_the_recommended_layers(layers: int) -> None:
    scores = [(i + 1) / layers for i in range(layers)]
    chart = relevance_chart(scores, [[s, s / 2] for s in scores], (layers - 1,))
    assert chart.mode == "RGB" and chart.width >= 550 and chart.height == 385
    pixels = np.asarray(chart).astype(int)
    for colour in ((0, 114, 178), (213, 94, 0), *([(86, 180, 233)] if layers > 1 else [])):
        assert (abs(pixels - colour).sum(-1) == 0).any(), colour


def test_a_relevance_strip_shows_the_truth_and_the_best_layers() -> None:
    maps = np.zeros((8, 2, 4, 4))
    maps[:, :, 0, 0] = 1e-3
    sheet = relevance_strip(GREY, "red ball", np.ones((2, 4, 4)), maps, [i / 10 for i in range(8)])
    assert sheet.height == (2 + 6) * (256 + 26)
    heat = np.asarray(sheet)[2 * 282 + 26 :, :256].mean(-1)
    assert heat[:64, :64].mean() > 2 * heat[128:256, 128:].mean(), "stretched to its own contrast"


@pytest.mark.parametrize("size", [(32, 32), (257, 301)])
def test_a_video_can_be_read_back(size: tuple[int, int], tmp_path) -> None:
    imageio = pytest.importorskip("imageio.v2")
    frames = np.zeros((6, *size, 3), np.uint8)
    frames[3:] = 220
    save_video(frames, tmp_path / "v.mp4", fps=8)
    with imageio.get_reader(tmp_path / "v.mp4") as reader:
        facts = reader.get_meta_data()
        read = [np.asarray(frame) for frame in reader]
    assert len(read) == 6 and facts["fps"] == 8 and facts["codec"] == "h264"
    assert "yuv420p" in facts["pix_fmt"], "what browsers play"
    assert read[0].mean() < 10 and abs(read[-1].mean() - 220) < 10
    assert [p.name for p in tmp_path.iterdir()] == ["v.mp4"]


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 4, 4, 3)), np.zeros((4, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)],
    ids=["float", "one image", "empty"],
)
def test_what_is_no_clip_is_refused(frames: np.ndarray, tmp_path) -> None:
    for act in (lambda: strip({"a": frames}), lambda: save_video(frames, tmp_path / "v.mp4", 8)):
        with pytest.raises(TTOMError, match="Frames must be uint8"):
            act()


def test_other_refusals(tmp_path) -> None:
    with pytest.raises(TTOMError, match="at least one row"):
        strip({})
    with pytest.raises(TTOMError, match="Maps must be"):
        heatmap(GREY, np.zeros((4, 4)))
    with pytest.raises(TTOMError, match="frames a second"):
        save_video(GREY, tmp_path / "v.mp4", 0)


def test_a_chart_of_intervals_shows_every_row_and_needs_one(tmp_path):
    rows = {"base": (0.2, 0.1, 0.3), "a $strange$ name": (0.5, 0.5, 0.5)}
    interval_chart({"composition": rows, "presence": rows}, tmp_path / "x.png", "base")
    with Image.open(tmp_path / "x.png") as image:
        assert image.size[0] > 400
    first = (tmp_path / "x.png").read_bytes()
    interval_chart({"composition": rows, "presence": rows}, tmp_path / "x.png", "base")
    assert (tmp_path / "x.png").read_bytes() == first
    for empty in ({}, {"composition": {}}):
        with pytest.raises(TTOMError, match="at least one panel"):
            interval_chart(empty, tmp_path / "y.png")


def test_clips_stand_beside_each_other_in_their_order():
    white = np.full_like(GREY, 255)
    both = beside({"a": GREY, "b": white})
    assert both.shape == (5, 128 + 22, 2 * 128 + 4, 3)
    assert (both[:, 22:, :128] == 100).all() and (both[:, 22:, 132:] == 255).all()
    assert (both[:, :22, :128] != 255).any(), "a label"
    for wrong in ({}, {"a": GREY, "b": GREY[:2]}):
        with pytest.raises(TTOMError, match="one size"):
            beside(wrong)
