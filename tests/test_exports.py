"""Exports: files where and how each benchmark's scripts read them, continued after any end, and refusals.

The clones are made up, in the benchmarks' own layouts; none of their prompts is here.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import imageio.v3 as imageio
import numpy as np
import pytest

from ttom_core.cli import main
from ttom_core.errors import TTOMError
from ttom_core.evaluation import exports
from ttom_core.evaluation.exports import (
    COMPBENCH,
    Clip,
    check_length,
    compbench_suite,
    export,
    vbench_suite,
)

MADE_WITH = {"seed": 0, "tto": {"iterations": 4, "layers": [1, 2]}}


def compbench_clone(folder: Path, count: int = 200) -> Path:
    """A clone in the layout of T2V-CompBench version 2."""
    for category, (prompts, metadata) in COMPBENCH.items():
        texts = [f"Scene {k} of {category}: a red circle rolls" for k in range(1, count + 1)]
        (folder / prompts).parent.mkdir(parents=True, exist_ok=True)
        (folder / metadata).parent.mkdir(parents=True, exist_ok=True)
        (folder / prompts).write_text("\n".join(texts), encoding="utf-8")
        rows = [{"prompt": text, "objects": "red circle", "numbers": "1"} for text in texts]
        (folder / metadata).write_text(json.dumps(rows), encoding="utf-8")
    return folder


def vbench_clone(folder: Path, rows: list[dict]) -> Path:
    """A clone in the layout of VBench, with these rows."""
    (folder / "vbench").mkdir(parents=True)
    (folder / "vbench" / "VBench_full_info.json").write_text(json.dumps(rows), encoding="utf-8")
    return folder


def row(prompt: str, *dimensions: str) -> dict:
    return {"prompt_en": prompt, "dimension": list(dimensions or ("object_class",))}


@pytest.fixture
def clone(tmp_path):
    return compbench_clone(tmp_path / "clone")


def frames_of(clip: Clip) -> tuple[np.ndarray, dict]:
    """17 frames whose grey tells the clip."""
    return np.full((17, 8, 8, 3), clip.seed % 256, np.uint8), {"seed": clip.seed}


def run(suite, out, make=frames_of, made_with=MADE_WITH):
    """The places that were made."""
    return [clip.place for clip, facts in export(suite, out, make, made_with, 8) if facts is not None]


# ---- T2V-CompBench -------------------------------------------------------------------------------


def test_compbench_has_seven_categories_of_four_digits(clone):
    suite = compbench_suite(clone)
    assert len(suite.clips) == 1400
    assert suite.folders == tuple(f"video/{category}" for category in COMPBENCH)
    assert suite.clips[0].place == "video/consistent_attr/0001.mp4"
    assert suite.clips[-1].place == "video/generative_numeracy/0200.mp4"
    prompts = (clone / "prompts" / "4_motion_binding.txt").read_text().split("\n")
    motion = [clip for clip in suite.clips if "motion" in clip.place]
    for clip in motion:  # as the scripts find a video's metadata: by the first four signs of its name
        assert clip.prompt == prompts[int(Path(clip.place).name[0:4]) - 1]


def test_a_limit_or_a_choice_changes_no_video(clone):
    whole = {clip.place: clip for clip in compbench_suite(clone).clips}
    part = compbench_suite(clone, ["interaction", "motion_binding"], 3)
    assert [clip.place for clip in part.clips] == [
        f"video/{category}/000{k}.mp4" for category in ("motion_binding", "interaction") for k in (1, 2, 3)
    ]
    assert all(whole[clip.place] == clip for clip in part.clips)


def test_the_folder_is_what_the_scripts_read(clone, tmp_path):
    out = tmp_path / "out"
    suite = compbench_suite(clone, ["generative_numeracy"], 2)
    assert run(suite, out) == ["video/generative_numeracy/0001.mp4", "video/generative_numeracy/0002.mp4"]
    videos = out / "video" / "generative_numeracy"
    assert sorted(os.listdir(videos)) == ["0001.mp4", "0002.mp4"]  # they take every file for a video
    assert os.listdir(out / "video") == ["generative_numeracy"]  # and put their frames beside it
    for place in COMPBENCH["generative_numeracy"]:
        assert (out / place).read_bytes() == (clone / place).read_bytes()
    assert len(imageio.imread(videos / "0001.mp4")) == 17
    assert imageio.immeta(videos / "0001.mp4")["fps"] == 8
    rows = [json.loads(line) for line in (out / "rows.jsonl").read_text().splitlines()]
    assert [(r["place"], r["seed"]) for r in rows] == [(clip.place, clip.seed) for clip in suite.clips]


@pytest.mark.parametrize(("count", "says"), [(199, "199 prompts and not the 200"), (100, "100 prompts")])
def test_a_changed_count_is_said_and_can_be_accepted(tmp_path, count, says):
    clone = compbench_clone(tmp_path / "clone", count)
    with pytest.raises(TTOMError, match=says) as error:
        compbench_suite(clone)
    assert "--accept-changed" in str(error.value) and "\n" not in str(error.value)
    assert len(compbench_suite(clone, accept_changed=True).clips) == 7 * count


def test_prompts_and_metadata_must_be_as_many(clone):
    path = clone / COMPBENCH["interaction"][1]
    path.write_text(json.dumps(json.loads(path.read_text())[:-1]))
    with pytest.raises(TTOMError, match=r"200 prompts in prompts/6_interaction\.txt and 199 rows"):
        compbench_suite(clone, accept_changed=True)
    assert compbench_suite(clone, ["motion_binding"])  # the others are whole


@pytest.mark.parametrize(
    "prompt", ["../../x/y", "a\u2028b", "猫 / 狗", "x" * 2000, "a\x85b\x0bc", "'; rm -rf ~"]
)
def test_a_hostile_prompt_neither_names_a_file_nor_shifts_the_numbers(clone, prompt):
    for place, content in zip(
        COMPBENCH["interaction"],
        ("\r\n".join([prompt] * 3 + ["last"]) + "\n\n", json.dumps([{"prompt": prompt}] * 4)),
        strict=True,
    ):
        (clone / place).write_bytes(content.encode())
    suite = compbench_suite(clone, ["interaction"], accept_changed=True)
    assert [clip.place for clip in suite.clips] == [f"video/interaction/000{k}.mp4" for k in (1, 2, 3, 4)]
    assert suite.clips[0].prompt == prompt and suite.clips[3].prompt == "last"


@pytest.mark.parametrize(
    ("which", "content", "says"),
    [
        (0, b"a\n\nb", "Line 2 of .* holds no prompt"),
        (0, b"x" * 2001, "Line 1 of .* holds no prompt of 1 to 2000"),
        (0, b"\xff\xfe", "no UTF-8 text"),
        (0, b"", "Line 1 of .* holds no prompt"),
        (1, b"{", "no JSON list of rows with 'prompt'"),
        (1, b"[1]", "no JSON list of rows with 'prompt'"),
        (1, b"[" * 100_000, "no JSON list of rows"),
        (1, b'{"prompt": "x"}', "no JSON list of rows"),
        (1, b'[{"prompt": 5}]', "Row 1 of .* holds no prompt"),
    ],
)
def test_a_damaged_clone_is_one_sentence(clone, which, content, says):
    (clone / COMPBENCH["interaction"][which]).write_bytes(content)
    with pytest.raises(TTOMError, match=says) as error:
        compbench_suite(clone, accept_changed=True)
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


# ---- VBench --------------------------------------------------------------------------------------


def test_vbench_names_are_the_prompt_and_the_sample(tmp_path):
    rows = [
        row("a bird", "object_class"),
        row("a lamp, frozen in time", "temporal_flickering"),
        row("a bird", "color"),
        row("ein Café – 猫 (nachts)", "scene", "background_consistency"),
    ]
    clone = vbench_clone(tmp_path / "clone", rows)
    suite = vbench_suite(clone, accept_changed=True)
    names = [clip.place for clip in suite.clips]
    assert len(names) == len(set(names)) == 5 + 25 + 5
    assert names[:6] == [*(f"videos/a bird-{k}.mp4" for k in range(5)), "videos/a lamp, frozen in time-0.mp4"]
    assert names[-1] == "videos/ein Café – 猫 (nachts)-4.mp4"
    assert len({clip.seed for clip in suite.clips}) == len(names)  # every video its own noise
    part = vbench_suite(clone, ["scene", "color"], samples=2, accept_changed=True)
    assert {clip.prompt for clip in part.clips} == {"a bird", rows[3]["prompt_en"]} and len(part.clips) == 4
    out = tmp_path / "out"
    run(part, out)
    assert sorted(os.listdir(out / "videos")) == sorted(Path(clip.place).name for clip in part.clips)
    info = out / "VBench_full_info.json"
    assert json.loads(info.read_text()) == rows
    for wanted in json.loads(info.read_text()):  # as its standard mode looks for them
        if {"scene", "color"} & set(wanted["dimension"]):
            assert f"{wanted['prompt_en']}-1.mp4" in os.listdir(out / "videos")


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("either/or", "no file name can hold"),
        ("../../etc/x", "no file name can hold"),
        ("two\nlines", "line break"),
        ("nul\0", "control character"),
        ("a\u2028b", "line break"),
        ("\ud800", "control character"),
        ("x" * 250, "256 bytes"),
        ("猫" * 84, "258 bytes"),
    ],
)
def test_a_prompt_that_names_no_file_is_refused(tmp_path, prompt, says):
    clone = vbench_clone(tmp_path / "clone", [row("a bird"), row(prompt)])
    with pytest.raises(TTOMError, match=says) as error:
        vbench_suite(clone, accept_changed=True)
    assert "\n" not in str(error.value)
    assert len(vbench_suite(clone, limit=1, accept_changed=True).clips) == 5  # it is not among these


def test_vbench_says_a_changed_count(tmp_path):
    clone = vbench_clone(tmp_path / "clone", [row(f"a bird, number {k}") for k in range(945)])
    with pytest.raises(TTOMError, match="945 prompts and not the 946"):
        vbench_suite(clone)


# ---- length --------------------------------------------------------------------------------------


def test_clips_too_short_for_the_scripts_are_refused(clone, tmp_path):
    motion = compbench_suite(clone, ["motion_binding"], 1)
    with pytest.raises(TTOMError, match="looks at 16 frames of a video, and these have 13"):
        check_length(motion, 13, 8)
    with pytest.raises(TTOMError, match="less than the second"):
        check_length(motion, 17, 24)
    assert check_length(motion, 17, 16) == []
    assert check_length(compbench_suite(clone, ["interaction"], 1), 17, 24) == []
    vbench = vbench_suite(vbench_clone(tmp_path / "vbench", [row("a bird")]), accept_changed=True)
    assert check_length(vbench, 21, 8) == []
    assert "5.06 s are VBench-Long's" in check_length(vbench, 81, 16)[0]


# ---- going on ------------------------------------------------------------------------------------

KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from ttom_core.evaluation import exports
save = exports.save_video
def save_then_die(frames, path, fps, left=[1]):
    left[0] -= 1
    if left[0] < 0:
        Path(path).with_name(Path(path).stem + ".part.mp4").write_bytes(b"half a video")
        os.kill(os.getpid(), signal.SIGKILL)
    save(frames, path, fps)
exports.save_video = save_then_die
suite = exports.compbench_suite(Path(sys.argv[1]), ["interaction"], 2)
make = lambda clip: (np.full((17, 8, 8, 3), 200, np.uint8), {})
list(exports.export(suite, Path(sys.argv[2]), make, {"seed": 0}, 8))
"""


def test_what_a_kill_leaves_is_finished_and_nothing_is_made_twice(clone, tmp_path):
    out = tmp_path / "out"
    root = Path(exports.__file__).parents[2]
    command = [sys.executable, "-c", KILLED, str(clone), str(out)]
    killed = subprocess.run(command, cwd=root, timeout=120, check=False)
    assert killed.returncode == -signal.SIGKILL
    videos = out / "video" / "interaction"
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in videos.iterdir()}
    assert sorted(before) == ["0001.mp4"]
    suite = compbench_suite(clone, ["interaction"], 2)
    assert run(suite, out, made_with={"seed": 0}) == ["video/interaction/0002.mp4"]
    for name, was in before.items():
        assert ((videos / name).stat().st_mtime_ns, (videos / name).read_bytes()) == was
    assert sorted(os.listdir(videos)) == ["0001.mp4", "0002.mp4"]
    more = compbench_suite(clone, ["interaction", "motion_binding"], 1)  # other ones, later
    assert run(more, out, made_with={"seed": 0}) == ["video/motion_binding/0001.mp4"]
    assert run(more, out, made_with={"seed": 0}) == []


def test_a_folder_of_other_settings_is_refused_untouched(clone, tmp_path):
    out, suite = tmp_path / "out", compbench_suite(clone, ["interaction"], 1)
    run(suite, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    other = {"seed": 0, "tto": {"iterations": 8, "layers": [1, 2]}}
    with pytest.raises(TTOMError, match=r"begun with tto\.iterations 4 and not 8; choose another folder"):
        run(suite, out, made_with=other)
    with pytest.raises(TTOMError, match=r"begun with tto\.iterations 4 and not None"):
        run(suite, out, made_with={"seed": 0, "tto": None})
    vbench = vbench_suite(vbench_clone(tmp_path / "vbench", [row("a bird")]), accept_changed=True)
    with pytest.raises(TTOMError, match="begun with benchmark 'T2V-CompBench v2' and not 'VBench'"):
        run(vbench, out)
    prompts = clone / COMPBENCH["interaction"][0]
    prompts.write_text(prompts.read_text().replace("Scene 1 ", "Scene one "))
    with pytest.raises(TTOMError, match="begun with other prompts"):
        run(compbench_suite(clone, ["interaction"], 1), out)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_not_ours_is_refused_untouched(clone, tmp_path):
    suite = compbench_suite(clone, ["interaction"], 1)
    holiday = tmp_path / "holiday"
    holiday.mkdir()
    (holiday / "beach.mp4").write_bytes(b"sea")
    with pytest.raises(TTOMError, match=r"holds files and no export\.json"):
        run(suite, holiday)
    assert os.listdir(holiday) == ["beach.mp4"]
    with pytest.raises(TTOMError, match=r"holds files and no export\.json"):
        run(suite, holiday / "beach.mp4")
    out = tmp_path / "out"
    run(suite, out)
    (out / "video" / "interaction" / ".DS_Store").write_bytes(b"")
    with pytest.raises(TTOMError, match=r"holds '\.DS_Store', which the benchmark's scripts would take"):
        run(suite, out)
    (out / "export.json").write_text("[]")
    with pytest.raises(TTOMError, match=r"export\.json cannot be read"):
        run(suite, out)


def test_a_video_that_appears_meanwhile_is_kept(clone, tmp_path):
    out, suite = tmp_path / "out", compbench_suite(clone, ["interaction"], 1)

    def make(clip):
        (out / clip.place).write_bytes(b"another run's")
        return frames_of(clip)

    run(suite, out, make)
    assert (out / suite.clips[0].place).read_bytes() == b"another run's"
    assert not list(out.glob("unfinished*"))


# ---- the command ---------------------------------------------------------------------------------

QUICK = ["--steps", "2", "--set", "iterations=1", "--frames", "17", "--size", "32", "32"]


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    """A model folder of the demo's form with random weights."""
    from demo.train import build_pipeline

    path = tmp_path_factory.mktemp("models") / "untrained"
    build_pipeline().save_pretrained(path)
    return ["--model", str(path)]


@pytest.mark.slow
def test_the_command_makes_the_videos_and_says_what_it_could_not_lay_out(model, tmp_path, capsys):
    clone = vbench_clone(tmp_path / "clone", [row("a red circle rolls"), row("parking lot", "scene")])
    out = tmp_path / "out"
    command = ["export", "vbench", "--clone", str(clone), "--out", str(out), *model, *QUICK]
    assert main(command) == 2
    assert "2 prompts and not the 946" in capsys.readouterr().err and not out.exists()
    command += ["--accept-changed", "--samples", "1"]
    assert main(command) == 0
    assert sorted(os.listdir(out / "videos")) == ["a red circle rolls-0.mp4", "parking lot-0.mp4"]
    rows = {r["prompt"]: r for r in map(json.loads, (out / "rows.jsonl").read_text().splitlines())}
    assert rows["a red circle rolls"]["planner"] == "rules" and rows["a red circle rolls"]["loss_first"] > 0
    assert rows["parking lot"]["planner"] is None
    said = capsys.readouterr()
    assert "2 videos made" in said.out and "1 of them are the plain model's" in said.out
    assert main(command) == 0
    assert "0 videos made, 2 were there" in capsys.readouterr().out
    assert main([*command, "--base"]) == 2
    assert re.search(r"begun with .* choose another folder", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--clone", "nowhere"], "no folder nowhere; clone https://github.com/KaiyueSun98/T2V-CompBench"),
        (["--categories", "beauty"], "no category 'beauty'; choose from consistent_attr"),
        (["--limit", "0"], "at least 1 prompt, not 0"),
        (["--frames", "13"], "set --frames to 16 or more"),
    ],
)
def test_mistakes_get_one_sentence(arguments, words, model, clone, tmp_path, capsys):
    out = tmp_path / "out"
    command = ["export", "compbench", "--clone", str(clone), "--out", str(out), *model, *QUICK, *arguments]
    assert main(command) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("ttom: ") and error.count("\n") == 1
    assert not out.exists()


def test_a_folder_that_is_no_clone_is_refused(tmp_path):
    with pytest.raises(TTOMError, match=r"no readable prompts/1_consistent_attr\.txt; give a clone of"):
        compbench_suite(tmp_path)
    with pytest.raises(TTOMError, match=r"no readable vbench/VBench_full_info\.json; give a clone of"):
        vbench_suite(tmp_path)
