"""The demo world: captions, truth, held-out combinations and scores that agree with what is drawn."""

from itertools import combinations

import numpy as np
import pytest

from demo.prompts import FOLDER, collect, spec
from demo.scenes import CATEGORIES, FRAMES, GRID, SIZE, SceneSampler, held_out
from demo.training import lesson
from ttom_core.errors import TTOMError
from ttom_core.evaluation.evaluate import bootstrap, figures, load_prompts, markdown
from ttom_core.evaluation.scores import score


@pytest.mark.parametrize("category", CATEGORIES)
def test_truth_scores_full_marks(category):
    sampler = SceneSampler(5, held_out=True)
    for _ in range(6):
        scene = sampler.sample(category)
        result = score(scene.render(), spec(scene))
        assert result.composition == pytest.approx(1.0), scene.caption
        # Half-way between two colours an object may have none of the palette's.
        assert result.presence > (0.5 if scene.expect.get("change") == "turns" else 0.7), scene.caption


@pytest.mark.parametrize("category", CATEGORIES)
def test_an_empty_clip_scores_zero(category):
    scene = SceneSampler(6).sample(category)
    empty = np.full((FRAMES, SIZE, SIZE, 3), 30, np.uint8)
    result = score(empty, spec(scene))
    assert result.composition == 0 and result.presence == 0


@pytest.mark.parametrize("category", ["spatial", "motion", "interaction"])
def test_the_mirrored_clip_is_wrong(category):
    sampler = SceneSampler(7)
    for _ in range(6):
        scene = sampler.sample(category)
        mirrored = scene.render()[:, ::-1, ::-1] if category != "interaction" else scene.render()[::-1]
        assert score(mirrored, spec(scene)).composition < 0.1, scene.caption


def test_boxes_hold_their_objects():
    sampler = SceneSampler(8)
    for _ in range(20):
        scene = sampler.sample()
        boxes = scene.boxes()
        assert boxes.min() >= 0 and (boxes[..., :2] + boxes[..., 2:]).max() <= 1


def test_objects_keep_a_token_apart():
    sampler = SceneSampler(13)
    for _ in range(40):
        scene = sampler.sample()
        for first, second in combinations(scene.instances, 2):
            apart = abs(first.centres - second.centres).max(1) - (first.sizes + second.sizes) / 2
            assert apart.min() >= GRID - 1e-6, scene.caption


def test_training_never_sees_a_held_out_noun_and_testing_always_does():
    roles = {"motion": "directions", "action": "action", "dynamic_attribute": "change"}
    for testing in (False, True):
        sampler = SceneSampler(9, held_out=testing)
        for _ in range(60):
            for category, key in roles.items():
                scene = sampler.sample(category)
                role = scene.expect[key] if isinstance(scene.expect[key], str) else scene.expect[key][0]
                noun = scene.nouns[0]
                assert held_out(noun.colour, noun.shape, role) == testing


def test_clips_to_learn_from_mostly_move_and_single_frames_may_stand_still():
    assert all(SceneSampler(10).sample(category).moves for category in ("motion", "action", "interaction"))
    assert not any(SceneSampler(11).sample(category).moves for category in ("single", "spatial", "numeracy"))
    for frames, low, high in ((FRAMES, 0.55, 0.8), (1, 0.4, 0.62)):
        sampler = SceneSampler(12)
        assert low < np.mean([lesson(sampler, frames).moves for _ in range(200)]) < high


def test_seeds_reproduce_scenes():
    first, second = (SceneSampler(3).sample() for _ in range(2))
    assert first.caption == second.caption and (first.render() == second.render()).all()


def test_prompt_files_are_what_the_command_writes():
    rows = load_prompts(FOLDER / "held_out.json")
    assert rows == collect(seed=7001, per_category=30, exclude=set())
    tuning = load_prompts(FOLDER / "tuning.json")
    assert not {r["prompt"] for r in rows} & {r["prompt"] for r in tuning}


def test_a_prompt_file_of_another_form_is_refused(tmp_path):
    path = tmp_path / "prompts.json"
    path.write_text('[{"prompt": "a red circle"}]')
    with pytest.raises(TTOMError, match="not a list of prompts"):
        load_prompts(path)


def test_intervals_cover_the_mean():
    mean, low, high = bootstrap(np.array([0.0, 1.0] * 50))
    assert low < mean == 0.5 < high
    row = {"category": "motion", "composition": 0.5, "presence": 0.5, "distortion": 0.5, "seconds": 1.0}
    better = row | {"composition": 0.75}
    table = figures({"base": [row] * 4, "ttom": [better] * 4}, [("ttom", "base")])
    assert table["base_composition"]["value"] == table["base_composition_motion"]["value"] == 0.5
    gain = table["composition_of_ttom_over_base"]
    assert gain["value"] == gain["low"] == gain["high"] == 0.25
    assert markdown(table).splitlines()[-1].startswith("| motion | 4 | 0.50 (0.50–0.50) | 0.75 ")
