"""Distortion is nothing for what the scene grammar draws, and grows with everything done to it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from demo.prompts import spec
from demo.scenes import CATEGORIES, FRAMES, SIZE, Scene, SceneSampler
from ttom_core.evaluation.blobs import BACKGROUNDS, PALETTE, SHAPES
from ttom_core.evaluation.scores import score

CENTRE = np.full((FRAMES, 2), SIZE / 2)


def scene(shape: str = "circle", category: str = "single", seed: int = 4) -> Scene:
    """One object of 18 pixels in the middle of the canvas."""
    sampler = SceneSampler(seed)
    while (drawn := sampler.sample(category)).nouns[0].shape != shape or len(drawn.nouns) > 1:
        pass
    return replace(drawn, instances=(resized(drawn.instances[0], 18.0),))


def resized(instance, size):
    return replace(instance, sizes=np.full(FRAMES, size), centres=CENTRE)


def distortion(drawn: Scene, frames: np.ndarray | None = None) -> float:
    return score(drawn.render() if frames is None else frames, spec(drawn)).distortion


@pytest.mark.parametrize("category", [*CATEGORIES, "single"])
def test_what_the_grammar_draws_has_none(category):
    sampler = SceneSampler(12, held_out=True)
    assert max(distortion(sampler.sample(category)) for _ in range(8)) < 0.08


@pytest.mark.parametrize("shape", SHAPES)
def test_it_grows_with_an_object_that_is_inflated_or_shrunk(shape):
    drawn = scene(shape)

    def at(size: float) -> float:
        return distortion(replace(drawn, instances=(resized(drawn.instances[0], size),)))

    inflated, shrunk = [at(s) for s in (18, 26, 34, 46)], [at(s) for s in (14, 10, 7)]
    assert inflated == sorted(inflated) and inflated[0] < 0.05 and inflated[-1] > 0.7
    assert shrunk == sorted(shrunk) and shrunk[0] < 0.05 and shrunk[-1] > 0.3


@pytest.mark.parametrize("shape", SHAPES)
def test_it_grows_with_an_object_that_is_smeared(shape):
    drawn = scene(shape)
    true = drawn.render()
    values = []
    for length in (1, 9, 17, 25):
        smeared = ndimage.maximum_filter if drawn.background == "dark" else ndimage.minimum_filter
        values.append(distortion(drawn, smeared(true, size=(1, 1, length, 1))))
    assert values[0] < 0.05 and values == sorted(values) and values[-1] > 0.3


def test_two_objects_merged_into_one_are_distorted():
    drawn = scene("circle")
    one = drawn.instances[0]
    noun = replace(drawn.nouns[0], count=2)
    apart, merged = (
        replace(
            drawn,
            category="numeracy",
            nouns=(noun,),
            instances=tuple(replace(one, centres=CENTRE + np.array([side * d, 0])) for side in (-1, 1)),
        )
        for d in (14, 8)
    )
    assert distortion(apart) < 0.05 < 0.4 < distortion(merged)


def test_another_shape_is_a_distortion():
    drawn = scene("square")
    as_circle = replace(drawn, nouns=(replace(drawn.nouns[0], shape="circle"),))
    as_triangle = replace(drawn, nouns=(replace(drawn.nouns[0], shape="triangle"),))
    frames = drawn.render()
    assert 0.05 < distortion(as_circle, frames) < distortion(as_triangle, frames)


def test_a_clip_without_its_objects_is_all_distortion():
    drawn = scene()
    empty = np.full((FRAMES, SIZE, SIZE, 3), BACKGROUNDS["dark"], np.uint8)
    assert distortion(drawn, empty) == 1
    half = np.concatenate([drawn.render()[:10], empty[10:]])
    assert distortion(drawn, half) == pytest.approx(11 / FRAMES, abs=0.05)


def test_a_grain_of_debris_weighs_little():
    drawn = scene()
    frames = drawn.render()
    frames[:, 2:7, 2:7] = PALETTE[drawn.nouns[0].colour]
    assert distortion(drawn, frames) < 0.15
