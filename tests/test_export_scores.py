"""Scores of export folders: the formulas' own values, asked once each, and what is missing said."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
import torch
from test_compbench import BLUE, RED, scene
from test_exports import row, vbench_clone
from test_grounding import dino, sam  # noqa: F401  toy folders of the real classes
from test_house import check_result

from demo.scenes import FPS
from ttom_core.cli import main
from ttom_core.errors import TTOMError
from ttom_core.evaluation import compbench, export_scores
from ttom_core.evaluation.detectors import (
    DepthAnything,
    Detection,
    GroundingDino,
    Vision,
    rendered_vision,
    track_blobs,
)
from ttom_core.evaluation.export_scores import ExportFolder, answerable, answers, vision_of
from ttom_core.evaluation.exports import COMPBENCH, compbench_suite, export, vbench_suite

COUNTED = {"objects": "red circle, blue square", "numbers": "3,1"}
LEFT = {"object_1": "red circle", "object_2": "blue square", "spatial": "left"}
ROWS = {
    "generative_numeracy": [COUNTED, COUNTED | {"numbers": "2,1"}],
    "spatial_relationships": [LEFT, LEFT | {"spatial": "in front of"}],
    "motion_binding": [{"object_1": "red circle", "d_1": "right", "object_2": "", "d_2": ""}] * 2,
    "action_binding": [{"phrase_0": ["dog", "runs"], "phrase_1": []}] * 2,
}
THREE = scene(*((RED, (x, 20), (x, 20)) for x in (12, 32, 52)), (BLUE, (32, 50), (32, 50)))
APART = scene((RED, (14, 32), (14, 32)), (BLUE, (50, 32), (50, 32)))
MOVING = scene((RED, (14, 32), (46, 32)))
DRAWN = {"generative_numeracy": THREE, "spatial_relationships": APART, "motion_binding": MOVING}


@pytest.fixture
def clone(tmp_path):
    """A clone of T2V-CompBench with two prompts a category."""
    folder = tmp_path / "clone"
    for category, (prompts, metadata) in COMPBENCH.items():
        rows = [{"prompt": f"{category} {k}"} | (ROWS.get(category) or [{}, {}])[k] for k in range(2)]
        for place, text in ((prompts, "\n".join(r["prompt"] for r in rows)), (metadata, json.dumps(rows))):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_text(text)
    return folder


def draw(clip):
    return DRAWN.get(clip.place.split("/")[1], APART), {}


@pytest.fixture
def folder(clone, tmp_path):
    """An export of rendered scenes, whose truth is known."""
    out = tmp_path / "out"
    suite = compbench_suite(clone, ROWS, accept_changed=True)
    list(export(suite, out, draw, {"seed": 7}, FPS))
    return out


def results(folder):
    result = json.loads((folder / "scores.json").read_text())
    check_result(result)
    return result


@pytest.mark.slow
def test_the_command_scores_rendered_videos_by_their_truth(folder, capsys):
    assert main(["score", str(folder)]) == 0
    result = results(folder)
    found = {name: f["value"] for name, f in result["figures"].items()}
    assert found["generative_numeracy"] == pytest.approx((1 + 0.5) / 2)
    assert found["spatial_relationships_2d"] == 1
    assert found["motion_binding"] == pytest.approx(0.2 + 0.8 * 32 / 64, abs=0.02)
    assert result["settings"]["left_out"] == {"spatial_relationships_3d": "needs a depth estimator"}
    assert {f["unit"] for f in result["figures"].values()} == {"CompBench formula, detector blobs"}
    assert result["seed"] == 7 and str(folder.parent) not in json.dumps(result)
    assert "not scored: needs a depth estimator" in capsys.readouterr().out
    # What was made is as it was, and their scripts find no new file among the videos.
    assert sorted(p.name for p in (folder / "video").iterdir()) == sorted(ROWS)


def seen(frame, query, box_threshold, text_threshold):
    """One thing a phrase, the second to the right of the first and over a part of it."""
    return [Detection(query, 0.5, (0.4 if "blue" in query else 0.0, 0.0, 0.6, 1.0))]


def everywhere(frame, boxes):
    """A mask of the whole frame for each box."""
    return np.ones((len(boxes), *frame.shape[:2]), bool)


def test_the_two_halves_of_a_category_are_told_together(folder):
    vision = Vision("made up", seen, everywhere, track_blobs, lambda frame: np.zeros(frame.shape[:2]))
    opened = ExportFolder.open(folder)
    questions, left_out, missing = answerable(opened, vision)
    questions = [q for q in questions if q.dimension in compbench.SPATIAL]
    found = export_scores.figures(opened, list(answers(opened, questions, vision)), vision)
    assert not left_out and not missing
    both = (found["spatial_relationships_2d"]["value"] + found["spatial_relationships_3d"]["value"]) / 2
    assert found["spatial_relationships"]["value"] == pytest.approx(both)


def test_every_question_is_asked_once_until_its_video_changes(folder, clone):
    asked = []

    def detect(frame, query, box_threshold, text_threshold):
        asked.append(query)
        if len(asked) == 40:
            raise KeyboardInterrupt
        return seen(frame, query, box_threshold, text_threshold)

    vision = Vision("made up", detect)
    opened = ExportFolder.open(folder)
    questions, _, _ = answerable(opened, vision)
    with pytest.raises(KeyboardInterrupt):
        list(answers(opened, questions, vision))
    scores = folder / "scores.jsonl"
    (first,) = scores.read_text().splitlines()
    with scores.open("a") as file:
        file.write('{"key": "cut sh')
    assert len(list(answers(opened, questions, vision))) == len(questions) == 3
    assert scores.read_text().splitlines()[0] == first
    count = len(asked)
    again = list(answers(opened, questions, vision))
    assert len(asked) == count
    (folder / questions[0].place).unlink()
    list(
        export(
            compbench_suite(clone, ROWS, accept_changed=True), folder, lambda c: (THREE, {}), {"seed": 7}, FPS
        )
    )
    changed = list(answers(opened, questions, vision))
    assert len(asked) > count and changed[0]["key"] != again[0]["key"] and changed[1:] == again[1:]


def test_a_half_finished_export_says_how_many_are_missing(clone, tmp_path, capsys):
    out, made = tmp_path / "out", []

    def two(clip):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(clip)
        return draw(clip)

    suite = compbench_suite(clone, ["generative_numeracy", "spatial_relationships"], accept_changed=True)
    with pytest.raises(KeyboardInterrupt):
        list(export(suite, out, two, {"seed": 0}, FPS))
    before = sorted(out.rglob("*"))
    assert main(["score", str(out)]) == 2
    error = capsys.readouterr().err
    assert "lacks 2 of its 3 videos to score, video/generative_numeracy/0001.mp4 first" in error
    assert "--accept-missing" in error and error.count("\n") == 1
    assert sorted(out.rglob("*")) == before
    assert main(["score", str(out), "--accept-missing"]) == 0
    assert results(out)["settings"]["missing_videos"] == 2
    assert list(results(out)["figures"]) == ["spatial_relationships_2d"]


@pytest.mark.slow
def test_vbench_asks_a_video_by_each_of_its_prompts_rows(tmp_path, capsys):
    about = {
        "object_class": {"object_class": {"object": "red circle"}},
        "spatial_relationship": {
            "spatial_relationship": {
                "spatial_relationship": {
                    "object_a": "red circle", "object_b": "blue square", "relationship": "on the left of",
                }
            }
        },
    }  # fmt: skip
    rows = [row("a scene", name) | {"auxiliary_info": facts} for name, facts in about.items()]
    clone = vbench_clone(tmp_path / "clone", [*rows, row("a bird", "human_action")])
    out = tmp_path / "out"
    suite = vbench_suite(clone, samples=2, accept_changed=True)
    list(export(suite, out, lambda clip: (APART, {}), {"seed": 0}, FPS))
    assert main(["score", str(out)]) == 0
    found = results(out)["figures"]
    assert {name: (f["value"], f["n"]) for name, f in found.items()} == dict.fromkeys(about, (1, 2))
    assert found["object_class"]["unit"] == "VBench formula, detector blobs"


# ---- real detectors, of toy size with random weights ---------------------------------------------


@pytest.fixture(scope="session")
def depth(tmp_path_factory):
    """A Depth Anything of toy size with random weights, as a folder."""
    from transformers import (
        DepthAnythingConfig,
        DepthAnythingForDepthEstimation,
        Dinov2Config,
        DPTImageProcessor,
    )

    folder = tmp_path_factory.mktemp("depth")
    torch.manual_seed(0)
    backbone = Dinov2Config(
        hidden_size=16, num_hidden_layers=4, num_attention_heads=2, intermediate_size=16, image_size=28,
        patch_size=14, out_features=["stage1", "stage2", "stage3", "stage4"], reshape_hidden_states=False,
    )  # fmt: skip
    config = DepthAnythingConfig(
        backbone_config=backbone, reassemble_hidden_size=16, neck_hidden_sizes=[8] * 4,
        fusion_hidden_size=8, head_hidden_size=4,
    )  # fmt: skip
    DepthAnythingForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 28, "width": 28}, ensure_multiple_of=14).save_pretrained(folder)
    return str(folder)


def test_depth_anything_fills_the_grey_scale(depth):
    frame = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    found = DepthAnything(depth, "cpu")(frame)
    assert found.shape == (48, 64) and found.min() == 0 and found.max() == pytest.approx(255)


def test_the_named_models_are_tried_before_the_first_video(dino, sam, depth):  # noqa: F811
    vision = vision_of("detector", dino, sam, depth, "raft_small", ("segment", "depth"))
    assert not vision.lacking(["segment", "depth", "track"])
    names = [path.rstrip("/").split("/")[-1] for path in (dino, sam, depth)]
    assert vision.name == " + ".join([*names, "raft_small"])


def test_only_the_models_that_a_folder_needs_are_tried(dino, folder, clone, tmp_path):  # noqa: F811
    assert ExportFolder.open(folder).needed() == {"segment", "depth", "track"}
    out = tmp_path / "counted"
    suite = compbench_suite(clone, ["generative_numeracy"], accept_changed=True)
    list(export(suite, out, draw, {"seed": 0}, FPS))
    needed = ExportFolder.open(out).needed()
    assert not needed and vision_of("detector", dino, str(tmp_path), str(tmp_path), needed=needed)
    with pytest.raises(TTOMError, match="could not be loaded"):
        vision_of("detector", dino, str(tmp_path), str(tmp_path))


@pytest.mark.slow
def test_real_models_score_what_they_have_the_parts_for(folder, dino, depth):  # noqa: F811
    vision = Vision("toys", GroundingDino(dino, "cpu"), everywhere, depth=DepthAnything(depth, "cpu"))
    opened = ExportFolder.open(folder)
    questions, left_out, _ = answerable(opened, vision)
    assert left_out == {"motion_binding": "needs a tracker"}
    found = list(answers(opened, questions, vision))
    assert {r["dimension"] for r in found} == {"generative_numeracy", *compbench.SPATIAL}
    assert all(0 <= r["score"] <= 1 for r in found)


# ---- mistakes ------------------------------------------------------------------------------------


def error_of(capsys, *arguments):
    assert main(["score", *map(str, arguments)]) == 2
    *bar, error = capsys.readouterr().err.splitlines()
    assert error.startswith("ttom: ") and not any("ttom" in line for line in bar)
    return error


def test_mistakes_get_one_sentence_and_write_nothing(folder, tmp_path, capsys, monkeypatch):
    assert "no folder nowhere; make one with `ttom export`" in error_of(capsys, "nowhere")
    (tmp_path / "empty").mkdir()
    assert "holds no export that can be read" in error_of(capsys, tmp_path / "empty")
    assert "no grounding 'eyes'" in error_of(capsys, folder, "--grounding", "eyes")
    lost = error_of(capsys, folder, "--grounding", "detector", "--detector", str(tmp_path))
    assert "could not be loaded; give a folder" in lost
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install ttom[detect]" in error_of(capsys, folder, "--grounding", "detector")
    monkeypatch.undo()
    assert not list(folder.glob("scores*"))
    video = folder / "video" / "spatial_relationships" / "0001.mp4"
    video.write_bytes(b"no video")
    assert "0001.mp4 cannot be read as a video; delete it" in error_of(capsys, folder)
    assert not (folder / "scores.json").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("export.json", "{"),
        ("export.json", '{"benchmark": "x", "made_with": {"seed": 0}}'),
        ("export.json", '{"benchmark": ["VBench"], "made_with": {"seed": 0}}'),
        ("export.json", '{"benchmark": "VBench", "made_with": {"seed": "0"}}'),
        ("wanted.jsonl", ""),
        ("wanted.jsonl", '{"key": "../../secret.mp4", "prompt": "x"}\n'),
        ("wanted.jsonl", '{"key": "video/motion_binding/0001.mp4"}\n'),
        ("wanted.jsonl", '{"key": "video/motion_binding/0000.mp4", "prompt": "x"}\n'),
        ("wanted.jsonl", '{"key": "video/nothing/0001.mp4", "prompt": "x"}\n'),
        ("meta_data/motion_binding.json", "[1]"),
        ("meta_data/motion_binding.json", "[" * 100_000),
    ],
)
def test_a_damaged_folder_is_one_sentence(folder, file, content):
    (folder / file).write_text(content)
    with pytest.raises(TTOMError) as error:
        answerable(ExportFolder.open(folder), rendered_vision())
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


def test_nothing_to_score_is_said(clone, tmp_path):
    out = tmp_path / "out"
    list(export(compbench_suite(clone, ["action_binding"], accept_changed=True), out, draw, {"seed": 0}, FPS))
    with pytest.raises(TTOMError, match="takes other judges than a detector"):
        answerable(ExportFolder.open(out), rendered_vision())
    list(export(compbench_suite(clone, ["motion_binding"], accept_changed=True), out, draw, {"seed": 0}, FPS))
    with pytest.raises(TTOMError, match="motion_binding needs a segmenter and a tracker"):
        answerable(ExportFolder.open(out), Vision("boxes only", rendered_vision().detect))
