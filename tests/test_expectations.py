"""What a person expects of a layout: held where it holds, missed where it does not; the benchmark's file."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from chat_server import chat_server

from ttom_core.evaluation.expectations import ALONE, PAIRED, held
from ttom_core.layout import Box, Keyframe, Layout, TrackedObject

PLANNING = Path(__file__).parent.parent / "benchmarks" / "planning"
CATEGORIES = json.loads((PLANNING / "prompts.json").read_text(encoding="utf-8"))


def thing(name: str, *places: tuple[float, ...], **rest) -> TrackedObject:
    """At these centres (x, y, and perhaps the side), evenly over the clip."""
    times = np.linspace(0, 1, len(places)) if len(places) > 1 else [0.0]
    keys = tuple(
        Keyframe(time=t, box=Box.around(x, y, *(side or [0.2])))
        for t, (x, y, *side) in zip(times, places, strict=True)
    )
    return TrackedObject(id=str(rest.pop("id", name)), name=name, phrase=name, keyframes=keys, **rest)


TURN = [(0.5 + 0.3 * np.sin(a), 0.5 - 0.3 * np.cos(a)) for a in np.linspace(0, 2 * np.pi, 17)]
HERE, LEFT, RIGHT, TOP, LOW = (0.5, 0.5), (0.2, 0.5), (0.8, 0.5), (0.5, 0.2), (0.5, 0.8)
BALL = {
    "moves ball right": ([LEFT, RIGHT], [RIGHT, LEFT]),
    "moves ball up": ([LOW, TOP], [LEFT, RIGHT]),
    "moves ball any": ([LOW, TOP], [HERE]),
    "rests ball": ([HERE], [LEFT, HERE]),
    "then ball right up": ([LEFT, HERE, TOP], [LEFT, RIGHT]),
    "starts ball left": ([LEFT, RIGHT], [RIGHT, LEFT]),
    "starts ball middle": ([HERE], [TOP]),
    "falls ball": ([TOP, LOW, LOW], [TOP, LOW, HERE]),
    "bounces ball": ([LOW, TOP, LOW], [LOW, TOP]),
    "back_and_forth ball": ([LEFT, RIGHT, LEFT], [LEFT, RIGHT]),
    "circles ball": (TURN, TURN[:9]),
    "grows ball": ([(*HERE, 0.1), (*HERE, 0.3)], [(*HERE, 0.3), (*HERE, 0.1)]),
    "shrinks ball": ([(*HERE, 0.3), (*HERE, 0.1)], [HERE]),
    "steady ball": ([HERE, LEFT], [(*HERE, 0.1), (*HERE, 0.3)]),
}


@pytest.mark.parametrize("words", BALL)
def test_of_one_thing(words: str) -> None:
    good, bad = BALL[words]
    row = {"things": {"ball": 1}, "expect": [words.split()]}
    assert held(Layout(objects=(thing("ball", *good),)), row)[words]
    assert not held(Layout(objects=(thing("ball", *bad),)), row)[words]


CAT = {
    "left_of cat dog": ([LEFT], [RIGHT]),
    "right_of cat dog": ([RIGHT], [LEFT, RIGHT]),
    "above cat dog": ([TOP], [LOW]),
    "below cat dog": ([LOW], [LEFT]),
    "on cat dog": ([(0.5, 0.3)], [(0.1, 0.3)]),
    "beside cat dog": ([LEFT], [TOP]),
    "near cat dog": ([LEFT], [(0.05, 0.05, 0.1)]),
    "nearer cat dog": ([LEFT, (0.4, 0.5)], [LEFT]),
    "apart cat dog": ([(0.4, 0.5), LEFT], [LEFT, (0.4, 0.5)]),
    "around cat dog": (TURN, TURN[:5]),
    "over cat dog": ([LEFT, (0.5, 0.2), RIGHT], [LEFT, RIGHT]),
}


@pytest.mark.parametrize("words", CAT)
def test_of_two_things(words: str) -> None:
    good, bad = CAT[words]
    row = {"things": {"cat": 1, "dog": 1}, "expect": [words.split()]}
    assert held(Layout(objects=(thing("cat", *good), thing("dog", HERE))), row)[words]
    assert not held(Layout(objects=(thing("cat", *bad), thing("dog", HERE))), row)[words]


def test_every_kind_is_tested() -> None:
    assert {words.split()[0] for words in BALL} | {"enters", "leaves", "stays"} == ALONE.keys()
    assert {words.split()[0] for words in CAT} == PAIRED.keys()


def test_of_coming_and_going() -> None:
    row = {"things": {"ball": 1}, "expect": [["enters", "ball"], ["leaves", "ball"], ["stays", "ball"]]}
    for kind, enter, leave in (("enters", 0.5, 1.0), ("leaves", 0.0, 0.5), ("stays", 0.0, 1.0)):
        results = held(Layout(objects=(thing("ball", HERE, enter=enter, leave=leave),)), row)
        assert [words for words, good in results.items() if good and words[-1] != "1"] == [
            "nothing else",
            f"{kind} ball",
        ]


def test_numbers_names_and_what_is_too_much() -> None:
    row = {"things": {"red ball": 2, "ball": 1}, "expect": [], "optional": ["grass"]}
    balls = [thing("red ball", LEFT, id=1), thing("red balls", RIGHT, id=2), thing("balls", HERE, id=3)]
    assert all(held(Layout(objects=tuple(balls)), row).values())
    assert all(held(Layout(objects=(*balls, thing("green grass", LOW))), row).values())
    assert not held(Layout(objects=(*balls, thing("unicorn", LOW))), row)["nothing else"]
    assert not held(Layout(objects=tuple(balls[1:])), row)["count red ball 2"]


def test_what_is_missing_fulfils_nothing() -> None:
    row = {"things": {"cat": 1, "dog": 1}, "expect": [["rests", "dog"], ["left_of", "cat", "dog"]]}
    results = held(Layout(objects=(thing("cat", LEFT),)), row)
    assert not results["rests dog"] and not results["left_of cat dog"] and results["count cat 1"]


# The benchmark ------------------------------------------------------------------------------------


def test_the_prompts_are_many_and_well_formed() -> None:
    assert len(CATEGORIES) == 7
    rows = [row for members in CATEGORIES.values() for row in members]
    assert len(rows) >= 150 and len({row["prompt"] for row in rows}) == len(rows)
    for row in rows:
        assert row.keys() <= {"prompt", "things", "expect", "optional"} and row["things"], row
        for kind, name, *rest in row["expect"]:
            names = [name, *rest] if kind in PAIRED or kind == "between" else [name]
            assert kind in {*ALONE, *PAIRED, "between"} and set(names) <= row["things"].keys(), row


def run(*arguments: str) -> dict:
    command = [sys.executable, str(PLANNING / "run.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=PLANNING.parent.parent)
    assert done.returncode == 0, done.stderr
    return json.loads(Path(arguments[-1]).read_text())["figures"]


def test_the_rules_are_scored(tmp_path: Path) -> None:
    figures = run("--out", str(tmp_path / "planning.json"))
    assert figures["score_all"]["n"] >= 150 and figures["score_all"]["value"] > 0.8
    assert all(f"{kind}_{name}" in figures for kind in ("score", "obeyed", "silent") for name in CATEGORIES)


@pytest.mark.slow
def test_a_model_is_scored_with_how_its_plans_became_valid(tmp_path: Path) -> None:
    with chat_server() as server:
        out = tmp_path / "planning.json"
        figures = run("--llm", "toy", "--base-url", server.url, "--mode", "one-call", "--out", str(out))
    first, repaired, asked = (figures[f"valid_{step}"]["value"] for step in ("first", "repair", "reask"))
    assert 0.5 < first <= repaired <= asked <= 1
