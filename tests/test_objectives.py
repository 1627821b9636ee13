"""Objectives: zero at the goal, bounded, and downhill towards the mask."""

import math

import pytest
import torch

from ttom_core.objectives import OBJECTIVES, alignment_loss, jsd, normalize


@pytest.mark.parametrize("over", ["frame", "volume"])
def test_jsd_is_zero_at_the_goal_bounded_and_blind_to_scale(over):
    generator = torch.Generator().manual_seed(0)
    maps, masks = torch.rand(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    assert jsd(masks * 7, masks, over) < 1e-12
    assert jsd(maps, masks, over) == pytest.approx(float(jsd(masks, maps, over)))
    apart = torch.zeros_like(maps)
    apart[..., :2] = 1
    assert jsd(apart, 1 - apart, over) == pytest.approx(math.log(2))


def test_jsd_agrees_with_scipy():
    from scipy.spatial.distance import jensenshannon

    generator = torch.Generator().manual_seed(1)
    maps, masks = torch.rand(2, 1, 1, 5, 5, generator=generator, dtype=torch.float64)
    expected = jensenshannon(maps.flatten().numpy(), masks.flatten().numpy()) ** 2
    assert float(jsd(maps, masks)) == pytest.approx(expected)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("over", ["frame", "volume"])
def test_descending_an_objective_moves_attention_to_the_mask(name, over):
    masks = torch.zeros(1, 2, 6, 6)
    masks[..., 1:3, 1:3] = 1
    logits = torch.zeros(1, 2, 6, 6)
    logits[..., 4, 4] = 0.5
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.1)
    before = after = 0.0
    for _ in range(60):
        maps = logits.flatten(2).softmax(-1).view_as(logits)
        after = float(normalize(maps, "frame")[0].view(2, 6, 6)[:, 1:3, 1:3].sum()) / 2
        before = before or after
        loss = alignment_loss({0: maps}, masks, name, over)
        (logits.grad,) = torch.autograd.grad(loss, logits)
        optimizer.step()
    assert after > 1.2 * before, (before, after)


def test_frames_without_the_object_say_nothing():
    masks = torch.rand(1, 4, 3, 3)
    masks[:, 2:] = 0
    maps = torch.rand(1, 4, 3, 3)
    changed = maps.clone()
    changed[:, 2:] = torch.rand(1, 2, 3, 3)
    for name in OBJECTIVES:
        a, b = (alignment_loss({0: m}, masks, name, "frame") for m in (maps, changed))
        assert torch.isfinite(a) and a == pytest.approx(float(b))
