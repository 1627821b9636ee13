"""Soft masks: what they promise, and what they refuse."""

import numpy as np
import pytest

from ttom_core.errors import TTOMError
from ttom_core.layout import Box, Keyframe, Layout, TrackedObject
from ttom_core.masks import MASK_KINDS, soft_masks


def track(*boxes, **more):
    times = np.linspace(0, 1, len(boxes)) if len(boxes) > 1 else [0.5]
    keys = tuple(
        Keyframe(time=float(t), box=Box(x=b[0], y=b[1], w=b[2], h=b[3]))
        for t, b in zip(times, boxes, strict=True)
    )
    return TrackedObject(**({"id": "a", "name": "ball", "phrase": "ball"} | more), keyframes=keys)


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_masks_peak_in_their_box(kind):
    item = track((0.5, 0.0, 0.25, 0.5))
    masks = soft_masks(Layout(objects=(item,)), (3, 8, 8), kind)
    assert masks.values.shape == (1, 3, 8, 8) and masks.values.min() >= 0
    assert 0 < masks.values.max() <= 1 + 1e-6
    rows, columns = np.unravel_index(masks.values[0, 1].argmax(), (8, 8))
    assert rows < 4 and columns in (4, 5)


def test_a_hard_box_covers_its_area():
    masks = soft_masks(Layout(objects=(track((0.1, 0.2, 0.3, 0.4)),)), (1, 10, 7), "hard_box")
    assert masks.values.mean() == pytest.approx(0.12)


def test_objects_of_one_phrase_share_a_mask_and_absent_frames_are_empty():
    left, right = track((0, 0, 0.2, 0.2)), track((0.7, 0.7, 0.2, 0.2), id="b", enter=0.6)
    masks = soft_masks(Layout(objects=(left, right)), (6, 4, 4))
    assert masks.phrases == ("ball",)
    assert masks.values[0, 0, 3, 3] < 1e-3 < masks.values[0, 5, 3, 3]
    late = soft_masks(Layout(objects=(right,)), (6, 4, 4)).values
    assert late[0, 0].sum() == 0 < late[0, 5].sum()


def test_masks_refuse_nonsense():
    layout = Layout(objects=(track((0, 0, 0.2, 0.2)),))
    with pytest.raises(TTOMError, match="no mask kind 'star'"):
        soft_masks(layout, (1, 4, 4), "star")
    with pytest.raises(TTOMError, match="above 0, not -1"):
        soft_masks(layout, (1, 4, 4), softness=-1)
    with pytest.raises(TTOMError, match="no objects"):
        soft_masks(Layout(objects=()), (1, 4, 4))
    crowd = tuple(track((0, 0, 0.2, 0.2), id=str(i)) for i in range(17))
    with pytest.raises(TTOMError, match="17 objects, but a frame of this clip has only 4×4 = 16 tokens"):
        soft_masks(Layout(objects=crowd), (1, 4, 4))
    blink = track((0, 0, 0.2, 0.2), enter=0.41, leave=0.42)
    with pytest.raises(TTOMError, match="none of the 3 latent frames"):
        soft_masks(Layout(objects=(blink,)), (3, 4, 4))
