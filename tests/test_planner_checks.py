"""Checks of a plan against its prompt: a good one passes, each fault is found, repairs mend what they say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ttom_core.layout import Box, Keyframe, Layout, TrackedObject
from ttom_core.planner import check, plan
from ttom_core.planner.camera import GRID, View, World, WorldKeyframe, WorldObject, project
from ttom_core.planner.checks import MAX_RATIO, MAX_SPEED, repair, retold

PROMPTS = Path(__file__).parent.parent / "demo" / "prompts"
Place = tuple[float, ...]  # time, centre x, centre y, and perhaps the side


def thing(name: str, *places: Place, side: float = 0.2, phrase: str = "", id: str = "", **rest: Any):
    """A tracked object at these centres over time."""
    keys = tuple(
        Keyframe(time=t, box=Box.around(x, y, more[0] if more else side)) for t, x, y, *more in places
    )
    return TrackedObject(id=id or f"{name} 1", name=name, phrase=phrase or name, keyframes=keys, **rest)


def still(name: str, x: float, y: float, **rest: Any) -> TrackedObject:
    return thing(name, (0.0, x, y), **rest)


def faults(prompt: str, *objects: TrackedObject) -> str:
    return " ".join(check(Layout(prompt=prompt, objects=objects, background=""), prompt))


# A plan that obeys --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "prompt",
    [
        "a red ball moves to the right",
        "a dog runs from left to right while a cat sits still",
        "three birds fly up",
        "a leaf falls to the ground",
        "a ball bounces to the left",
        "a moth circles around a lamp",
        "a red circle zigzags",
        "a pendulum swings back and forth",
        "a balloon grows while a ball shrinks",
        "a cat and a dog walk towards each other",
        "two dogs run away from each other",
        "a cat chases a mouse to the left",
        "a cat jumps over a log to the left",
        "a bird lands on a rock",
        "a red ball above a blue cube and a green cone to the left of a tree",
        "an apple between a pear and an orange",
        "a lamp on the left and a chair in the bottom right corner",
        "a bird appears and a cat disappears",
        "a soap bubble expands and then bursts.",
        "a ball moves to the right, then up",
    ],
)
def test_the_rules_keep_what_they_read(prompt: str) -> None:
    assert not check(plan(prompt), prompt)


def test_every_demo_plan_passes() -> None:
    for row in json.loads((PROMPTS / "held_out.json").read_text()):
        assert not check(plan(row["prompt"]), row["prompt"]), row["prompt"]


@pytest.mark.parametrize(
    ("prompt", "objects"),
    [  # what a prompt leaves open is nobody's fault
        ("a cat sits behind a dog", [still("cat", 0.5, 0.5), still("dog", 0.5, 0.6)]),
        ("a cat next to a dog", [still("cat", 0.7, 0.5), still("dog", 0.3, 0.6)]),
        ("several birds fly left", [thing("bird", (0, 0.8, y), (1, 0.3, y), phrase="birds", id=str(y))
                                    for y in (0.2, 0.4, 0.6)]),
        ("a ball drops and rests", [thing("ball", (0, 0.5, 0.2), (0.4, 0.5, 0.8), (1, 0.5, 0.8))]),
        ("a panda dances wildly", [thing("panda", (0, 0.2, 0.5), (1, 0.8, 0.5))]),
    ],
)  # fmt: skip
def test_what_is_left_open_may_be_chosen(prompt: str, objects: list[TrackedObject]) -> None:
    assert not faults(prompt, *objects)


# A plan that does not -----------------------------------------------------------------------------

BALL = "red ball"
MOVES = thing(BALL, (0, 0.2, 0.5), (1, 0.8, 0.5))


@pytest.mark.parametrize(
    ("prompt", "objects", "words"),
    [
        ("two dogs", [still("dog", 0.3, 0.5, phrase="dogs")], "asks for 2 of 'dogs', the plan has 1"),
        ("a dog and a cat", [still("dog", 0.3, 0.5)], "names 'cat', and no object"),
        ("two red balls and a red ball moves up", [MOVES], "asks for 2"),
        ("a red ball moves to the right", [MOVES.model_copy(update={"leave": 0.5})],
         "only 0 are there at 0.55"),
        ("a red ball moves to the right", [MOVES.model_copy(update={"phrase": "crimson ball"})],
         "'crimson ball' of 'red ball 1' is not in the text"),
        ("a red ball moves to the right", [MOVES.model_copy(update={"phrase": "d ball"})], "not in the text"),
        ("a red ball moves to the left", [MOVES], "should move left"),
        ("a red ball moves up", [MOVES], "should move up"),
        ("a red ball moves to the right", [still(BALL, 0.5, 0.5)], "should move right by at least"),
        ("a red ball moves to the right", [thing(BALL, (0, 0.3, 0.1), (1, 0.45, 0.9))],
         "more across than along"),
        ("a red ball stays still", [MOVES], "should stay where it is"),
        ("a red ball bounces", [thing(BALL, (0, 0.5, 0.2), (1, 0.5, 0.8))], "should bounce"),
        ("a red ball zigzags", [MOVES], "should zigzag"),
        ("a red ball swings back and forth", [MOVES], "back and forth"),
        ("a red ball moves in a circle", [MOVES], "round in a circle"),
        ("a red ball grows", [still(BALL, 0.5, 0.5)], "should grow"),
        ("a red ball shrinks", [thing(BALL, (0, 0.5, 0.5, 0.1), (1, 0.5, 0.5, 0.3))], "should shrink"),
        ("a red ball falls", [thing(BALL, (0, 0.5, 0.2), (0.5, 0.5, 0.7), (0.8, 0.5, 0.4), (1, 0.5, 0.8))],
         "must never rise"),
        ("a red ball falls", [thing(BALL, (0, 0.5, 0.2), (0.3, 0.5, 0.5), (0.8, 0.5, 0.5), (1, 0.5, 0.8))],
         "hang in the air"),
        ("a red ball moves to the right", [thing(BALL, (0, 0.2, 0.5), (0.5, 0.25, 0.5), (0.55, 0.8, 0.5))],
         "jumps at 0.5"),
        ("a red ball moves to the right", [thing(BALL, (0, 0.2, 0.5, 0.1), (1, 0.7, 0.5, 0.3))],
         "changes its size 3.0 times"),
        ("a red ball on the left", [still(BALL, 0.7, 0.5)], "on the side left"),
        ("a red ball in the middle", [still(BALL, 0.2, 0.5)], "in the middle"),
        ("a cat above a dog", [still("cat", 0.5, 0.8), still("dog", 0.5, 0.3)], "should be above 'dog 1'"),
        ("a cat to the left of a dog", [still("cat", 0.8, 0.5), still("dog", 0.3, 0.5)],
         "should be to the left of"),
        ("a cat between a dog and a pig",
         [still("cat", 0.9, 0.5), still("dog", 0.2, 0.5), still("pig", 0.5, 0.5)], "should be between"),
        ("a cat and a dog meet", [thing("cat", (0, 0.4, 0.5), (1, 0.2, 0.5)), still("dog", 0.7, 0.5)],
         "come nearer"),
        ("a cat and a dog move apart", [still("cat", 0.3, 0.5), still("dog", 0.7, 0.5)], "farther apart"),
        ("a cat chases a dog",
         [thing("cat", (0, 0.4, 0.5), (1, 0.2, 0.5)), thing("dog", (0, 0.6, 0.5), (1, 0.8, 0.5))],
         "in the same direction"),
        ("a cat jumps over a log", [thing("cat", (0, 0.2, 0.8), (1, 0.8, 0.8)), still("log", 0.5, 0.8)],
         "go over the other"),
        ("a bug orbits a lamp", [still("bug", 0.3, 0.5), still("lamp", 0.5, 0.5)],
         "should go around 'lamp 1'"),
    ],
)  # fmt: skip
def test_each_fault_is_found(prompt: str, objects: list[TrackedObject], words: str) -> None:
    found = faults(prompt, *objects)
    assert words in found, found
    assert found.endswith(".") and "\n" not in found


def test_a_description_keeps_the_prompts_things_and_numbers() -> None:
    prompt = "three dogs chase a red ball"
    assert not retold(prompt, "On a lawn, three dogs chase a red ball from left to right.")
    assert "lost 'red ball'" in " ".join(retold(prompt, "On a lawn, three dogs chase a ball."))
    assert "say 3 of 'dogs'" in " ".join(retold(prompt, "On a lawn, some dogs chase a red ball."))


def test_no_prompt_breaks_a_check() -> None:
    layout = plan("a red ball moves to the right")
    for prompt in ("", "99 dogs", "the", "?" * 50, "a cat " * 500):
        assert isinstance(check(layout, prompt), list)


# Repairs ------------------------------------------------------------------------------------------

PROMPT = "a red ball moves to the right while two blue cubes stay still"
number = st.floats(-3, 3, allow_nan=False).map(lambda v: round(v, 3))
keys = st.builds(WorldKeyframe, time=number, x=number, y=number, w=number, h=number)
words = st.sampled_from(["red ball", "Red Ball", "blue cubes", "two blue cubes", "a dragon", "", "blue"])
objects = st.builds(
    WorldObject,
    id=words,
    name=words,
    phrase=words,
    enter=number,
    leave=number,
    resizes=st.sampled_from(["", "it comes nearer"]),
    keyframes=st.lists(keys, min_size=1, max_size=5).map(tuple),
)
views = st.builds(View, time=number, x=number, y=number, zoom=number)
worlds = st.builds(
    World,
    reasoning=st.just(""),
    objects=st.lists(objects, min_size=1, max_size=4).map(tuple),
    camera=st.lists(views, max_size=2).map(tuple),
    background=st.just(""),
)


@settings(max_examples=150, deadline=None)
@given(worlds)
def test_repairs_of_any_plan_end_and_are_said(world: World) -> None:
    mended, done = repair(world, PROMPT, PROMPT)
    assert bool(done) == (mended.objects != world.objects)
    assert len({o.id for o in mended.objects}) == len(world.objects) and all(o.id for o in mended.objects)
    for item in mended.objects:
        times = [k.time for k in item.keyframes]
        assert times == sorted(set(times)) and times[0] >= 0 and times[-1] <= 1
        assert all(k.w > 0 and k.h > 0 for k in item.keyframes) and item.enter < item.leave
    assert all(s.endswith(".") for s in [*check(mended, PROMPT, PROMPT), *done])


@settings(max_examples=100, deadline=None)
@given(worlds)
def test_a_mended_plan_needs_no_mending(world: World) -> None:
    mended, _ = repair(world, PROMPT, PROMPT)
    again, done = repair(mended, PROMPT, PROMPT)
    for one, other in zip(mended.objects, again.objects, strict=True):
        assert one.model_dump(exclude={"keyframes"}) == other.model_dump(exclude={"keyframes"})
    assert not [s for s in done if "times put in order" in s or "the id" in s.lower()]


@pytest.mark.parametrize(
    "prompt", ["a red ball moves to the right", PROMPT, "two dogs run towards each other"]
)
def test_a_good_plan_is_left_alone(prompt: str) -> None:
    world = World.of(plan(prompt))
    assert repair(world, prompt, prompt) == (world, [])


def test_what_a_reason_explains_may_change_its_size() -> None:
    world = World.of(Layout(objects=(thing(BALL, (0, 0.3, 0.5, 0.1), (1, 0.7, 0.5, 0.3)),)))
    prompt = "a red ball moves to the right"
    mended, done = repair(world, prompt, prompt)
    assert done and not check(mended, prompt) and MAX_RATIO < 3
    reason = world.objects[0].model_copy(update={"resizes": "it comes nearer"})
    kept = world.model_copy(update={"objects": (reason,)})
    assert repair(kept, prompt, prompt) == (kept, []) and not check(kept, prompt)


def test_identities_that_change_hands_are_given_back() -> None:
    swap = [(0.0, 0.2, 0.8), (0.2, 0.25, 0.75), (0.3, 0.75, 0.25), (1.0, 0.8, 0.2)]
    pair = [thing("dog", *[(t, x[k], 0.5) for t, *x in swap], id=f"dog {k}", phrase="dogs") for k in (0, 1)]
    world = World.of(Layout(objects=tuple(pair)))
    assert "jumps" in " ".join(check(world, "two dogs"))
    mended, done = repair(world, "two dogs", "two dogs")
    speeds = np.abs(np.diff(mended.boxes(GRID)[..., 0])).max() * (len(GRID) - 1)
    assert speeds < MAX_SPEED and len(done) == 2 and not check(mended, "two dogs")


# Easing -------------------------------------------------------------------------------------------


def eased(item: TrackedObject, *eases: str) -> TrackedObject:
    """The object with these easings of its first keyframes."""
    keys = [k.model_copy(update={"ease": e}) for k, e in zip(item.keyframes, eases, strict=False)]
    return item.model_copy(update={"keyframes": (*keys, *item.keyframes[len(keys) :])})


@pytest.mark.parametrize("ease", ["linear", "in", "out", "in_out", "hold"])
@pytest.mark.parametrize("count", [2, 4, 300])
def test_the_checks_see_the_boxes_where_easing_puts_them(ease: str, count: int) -> None:
    places = [(k / (count - 1), 0.2 + 0.6 * (k % 2), 0.5) for k in range(count)]
    item = eased(thing("dog", *places), *[ease] * (count - 1))
    layout = Layout(objects=(item, still("cat", 0.3, 0.3)))
    np.testing.assert_allclose(World.of(layout).boxes(GRID), layout.boxes(GRID), atol=1e-9)


def test_a_fall_that_is_held_in_the_air_is_found() -> None:
    fall = thing("leaf", (0, 0.5, 0.1), (0.3, 0.5, 0.4), (1, 0.5, 0.8))
    assert not faults("a leaf falls to the ground", fall)
    assert not faults("a leaf falls to the ground", eased(fall, "in"))
    assert "hang in the air" in faults("a leaf falls to the ground", eased(fall, "linear", "hold"))


def test_a_held_keyframe_is_a_jump() -> None:
    run = thing("dog", (0, 0.1, 0.5), (1, 0.9, 0.5))
    assert not faults("a dog runs to the right", eased(run, "in_out"))
    assert "jumps" in faults("a dog runs to the right", eased(run, "hold"))


# The camera ---------------------------------------------------------------------------------------


def filmed(layout: Layout, *camera: Place) -> World:
    track = tuple(View(time=t, x=x, y=y, zoom=zoom) for t, x, y, zoom in camera)
    return World.of(layout).model_copy(update={"camera": track})


def seen(world: World) -> np.ndarray:
    """Centres [N, 21, 2] in the frame."""
    layout, lost = project(world)
    assert not lost
    boxes = layout.boxes(GRID)
    return boxes[..., :2] + boxes[..., 2:] / 2


def test_a_camera_at_rest_changes_nothing() -> None:
    layout = plan(PROMPT)
    assert project(World.of(layout), PROMPT, "rules") == (layout, [])
    same, _ = project(filmed(layout, (0, 0.5, 0.5, 1)), PROMPT, "rules")
    assert same == layout


def test_what_rests_moves_against_the_camera() -> None:
    world = filmed(Layout(objects=(still("tree", 0.5, 0.5),)), (0, 0.4, 0.5, 1), (1, 0.7, 0.5, 1))
    path = seen(world)[0]
    np.testing.assert_allclose(path[[0, -1]], [[0.6, 0.5], [0.3, 0.5]], atol=1e-9)


def test_what_the_camera_follows_rests_in_the_frame() -> None:
    world = filmed(Layout(objects=(MOVES,)), (0, 0.2, 0.5, 1), (1, 0.8, 0.5, 1))
    np.testing.assert_allclose(seen(world)[0], 0.5, atol=1e-9)
    assert not check(world, "the camera follows a red ball that moves to the right")


def test_zoom_is_about_the_middle_of_the_frame() -> None:
    world = filmed(Layout(objects=(still("tree", 0.6, 0.5),)), (0, 0.5, 0.5, 1), (1, 0.5, 0.5, 2))
    layout, _ = project(world)
    first, last = layout.boxes([0, 1])[0]
    np.testing.assert_allclose([first[2], last[2]], [0.2, 0.4], atol=1e-9)
    np.testing.assert_allclose(last[0] + last[2] / 2, 0.7, atol=1e-9)


def test_what_the_camera_passes_comes_and_goes() -> None:
    world = filmed(Layout(objects=(still("tree", 0.9, 0.5),)), (0, -0.5, 0.5, 1), (1, 2.3, 0.5, 1))
    layout, lost = project(world)
    (tree,) = layout.objects
    assert 0 < tree.enter < 0.5 < tree.leave < 1 and not lost
    boxes = layout.boxes(GRID)[0]
    there = boxes[~np.isnan(boxes[:, 0])]
    assert (there[:, :2] >= -1e-9).all() and (there[:, :2] + there[:, 2:] <= 1 + 1e-9).all()


def test_what_the_camera_never_shows_is_said() -> None:
    world = filmed(Layout(objects=(still("tree", 0.1, 0.5), still("cat", 0.9, 0.5))), (0, 1.2, 0.5, 1))
    layout, lost = project(world)
    assert [o.name for o in layout.objects] == ["cat"] and lost == ["The camera never shows 'tree 1'."]
    back = filmed(
        Layout(objects=(still("tree", 0.5, 0.5),)), (0, 0.5, 0.5, 1), (0.5, 3, 0.5, 1), (0.9, 0.5, 0.5, 1)
    )
    assert "only its longest stay" in project(back)[1][0]
