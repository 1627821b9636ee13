"""The rule planner obeys what it reads, and says what it does not."""

import numpy as np
import pytest
from conftest import PROMPT

from demo.prompts import FOLDER
from ttom_core.evaluation.evaluate import load_prompts
from ttom_core.layout import frame_times
from ttom_core.planner import PlanError, plan

TIMES = frame_times(21)


def centres(layout):
    boxes = layout.boxes(TIMES)
    return boxes[..., :2] + boxes[..., 2:] / 2


def overlap(layout):
    """The largest share of a box that another covers in any frame."""
    boxes = layout.boxes(TIMES)
    low, high = boxes[..., :2], boxes[..., :2] + boxes[..., 2:]
    worst = 0.0
    for i in range(len(boxes)):
        for j in range(i):
            side = np.minimum(high[i], high[j]) - np.maximum(low[i], low[j])
            worst = max(worst, float((side.clip(0).prod(-1) / boxes[i, :, 2:].prod(-1)).max()))
    return worst


@pytest.mark.parametrize("spec", load_prompts(FOLDER / "tuning.json"), ids=lambda spec: spec["prompt"])
def test_the_demo_grammar_is_understood(spec):
    layout = plan(spec["prompt"])
    assert not layout.unresolved
    named = [f"{n['colour']} {n['shape']}" for n in spec["nouns"] for _ in range(n["count"])]
    assert [o.name for o in layout.objects] == named
    assert all(phrase in spec["prompt"] for phrase in layout.phrases)
    assert overlap(layout) < 0.02
    moved = centres(layout)[:, -1] - centres(layout)[:, 0]
    for item, direction in zip(moved, spec["expect"].get("directions", []), strict=False):
        step = {"right": (1, 0), "left": (-1, 0), "up": (0, -1), "down": (0, 1)}[direction]
        assert item @ np.array(step) > 0.3
    if relation := spec["expect"].get("relation"):
        step = {"left_of": (-1, 0), "right_of": (1, 0), "above": (0, -1), "below": (0, 1)}[relation]
        assert (centres(layout)[0, 0] - centres(layout)[1, 0]) @ np.array(step) > 0.3


@pytest.mark.parametrize("count", ["two", "3", "four", "five", "six", "7", "eight", "12"])
def test_counts_get_slots_of_their_own(count):
    number = {"two": 2, "four": 4, "five": 5, "six": 6, "eight": 8}.get(count) or int(count)
    layout = plan(f"{count} small dogs and two cats")
    assert [o.name for o in layout.objects] == ["small dog"] * number + ["cat"] * 2
    assert len({o.id for o in layout.objects}) == number + 2
    assert overlap(layout) == 0


@pytest.mark.parametrize(
    ("words", "step"),
    [
        ("to the right", (1, 0)), ("left", (-1, 0)), ("upwards", (0, -1)), ("down", (0, 1)),
        ("up and to the left", (-1, -1)), ("up and to the right", (1, -1)),
        ("down and to the left", (-1, 1)), ("down and to the right", (1, 1)),
        ("from left to right", (1, 0)), ("right to left", (-1, 0)), ("from top to bottom", (0, 1)),
    ],
)  # fmt: skip
def test_eight_directions(words, step):
    path = centres(plan(f"a bird flies {words}"))[0]
    assert (np.sign((path[-1] - path[0]).round(6)) == step).all()


def test_free_english():
    layout = plan("A vibrant red balloon drifts right to left above a grand statue.")
    balloon, statue = centres(layout)
    assert layout.phrases == ("vibrant red balloon", "grand statue") and not layout.unresolved
    assert balloon[-1, 0] < balloon[0, 0] - 0.3 and (balloon[:, 1] < statue[:, 1]).all()


def test_meeting_and_parting():
    for words, closer in (("approach each other", True), ("move away from each other", False)):
        robot, wizard = centres(plan(f"a robot and a wizard {words}"))
        gap = np.linalg.norm(robot - wizard, axis=-1)
        assert (gap[-1] < gap[0]) == closer


def test_falling_growing_bouncing_circling():
    assert np.ptp(centres(plan("a ball falls"))[0, :, 1]) > 0.4
    sizes = plan("a ball grows").boxes(TIMES)[0, :, 2]
    assert sizes[-1] > 2 * sizes[0]
    y = centres(plan("a ball bounces"))[0, :, 1]
    assert (np.diff(np.sign(np.diff(y))) != 0).sum() >= 3
    path = centres(plan("a fly circles around"))[0] - 0.5
    assert np.unwrap(np.arctan2(*path.T[::-1]))[-1] - np.arctan2(*path[0][::-1]) > 6


def test_what_is_not_understood_is_said():
    layout = plan("a cat barks while a dog moves to the left")
    assert any("barks" in sentence for sentence in layout.unresolved)
    assert centres(layout)[1, -1, 0] < centres(layout)[1, 0, 0]
    assert any("direction" in s for s in plan("a red circle moves").unresolved)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("beautiful light", "No object"),
        ("99 dogs", "more than 12"),
    ],
)
def test_prompts_without_a_layout(prompt, words):
    with pytest.raises(PlanError, match=words):
        plan(prompt)


def test_seeds_vary_a_plan_and_repeat():
    assert plan(PROMPT, 3) == plan(PROMPT, 3) != plan(PROMPT, 4)
    assert plan(PROMPT) == plan(PROMPT)
