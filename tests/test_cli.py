"""The command from end to end on a model folder, its pictures, and its answers to bad input."""

import json
import shutil

import numpy as np
import pytest
from conftest import PROMPT

from ttom_core.backbones import ModelError, load
from ttom_core.cli import main
from ttom_core.evaluation.evaluate import evaluate
from ttom_core.optimize import PRESETS
from ttom_core.pictures import draw_layout, heatmap, save_video, strip
from ttom_core.planner import plan

QUICK = ["--steps", "4", "--set", "iterations=1", "--frames", "5", "--size", "32", "32"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model folder of the demo's form with random weights."""
    from demo.train import build_pipeline

    path = tmp_path_factory.mktemp("models") / "untrained"
    build_pipeline().save_pretrained(path)
    return path


def test_generate_writes_everything_needed_to_see_and_to_remake_it(folder, tmp_path):
    out = tmp_path / "out"
    assert main(["generate", PROMPT, "--model", str(folder), "--out", str(out), *QUICK]) == 0
    names = {p.name for p in out.iterdir()}
    assert names == {
        *("video.mp4", "base.mp4", "layout.mp4", "before_after.png", "layout.png", "layout.json"),
        *("attention_red_circle.png", "attention_blue_square.png", "loss.png"),
        *("settings.json", "adapter.safetensors"),
    }
    record = json.loads((out / "settings.json").read_text())
    assert record["tto"] == PRESETS["best"].model_copy(update={"iterations": 1}).model_dump(mode="json")
    assert record["prompt"] == PROMPT and record["seed"] == 0


def test_a_stream_fills_a_memory_that_generation_starts_from(folder, tmp_path, capsys):
    prompts, store = tmp_path / "prompts.txt", ["--store", str(tmp_path / "store")]
    prompts.write_text(f"{PROMPT}\n\n{PROMPT.replace('red', 'green')}\n")
    arguments = ["stream", str(prompts), "--out", str(tmp_path / "out"), "--model", str(folder), *QUICK]
    changed = ["--set", "learning_rate=0.01", "--set", "stop_loss=null", "--set", "iterations=2"]
    assert main([*arguments, *changed, *store, "--on-hit", "insert"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"00000.mp4", "00001.mp4", "rows.jsonl"}
    assert main(["memory", "list", *store]) == 0
    assert PROMPT in capsys.readouterr().out
    out = ["--out", str(tmp_path / "one"), "--no-base", "--memory", "read"]
    assert main(["generate", PROMPT, "--model", str(folder), *out, *QUICK, *store]) == 0
    assert "from memory" in capsys.readouterr().out


def test_plan_prints_writes_and_draws(tmp_path, capsys):
    assert main(["plan", PROMPT]) == 0
    assert json.loads(capsys.readouterr().out)["planner"] == "rules"
    layout, picture = tmp_path / "layout.json", tmp_path / "layout.png"
    assert main(["plan", PROMPT, "--out", str(layout), "--show", str(picture)]) == 0
    assert layout.exists() and picture.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", " "], "empty"),
        (["generate", ""], "empty"),
        (["generate", PROMPT, "--model", "nowhere"], "no model folder at nowhere"),
        (["generate", PROMPT, "--preset", "fastest"], "no preset 'fastest'"),
        (["generate", PROMPT, "--set", "speed=9"], "names no setting"),
        (["generate", PROMPT, "--set", "iterations=-1"], "iterations"),
        (["generate", PROMPT, "--layout", "nowhere.json"], "cannot be read"),
        (["evaluate", "--prompts", "nowhere.json"], "not a list of prompts"),
        (["stream", "nowhere.txt"], "cannot be read as text"),
        (["generate", PROMPT, "--memory", "read", "--store", "nowhere"], "nowhere"),
        (["generate", PROMPT, "--memory", "start", "--top-k", "0"], "top_k"),
    ],
)
def test_mistakes_get_one_sentence(arguments, words, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.startswith("ttom: ") and error.count("\n") == 1


def test_ctrl_c_ends_quietly(monkeypatch, capsys):
    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("ttom_core.planner.propose", interrupted)
    assert main(["plan", PROMPT]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_model_folders_that_are_damaged(folder, tmp_path):
    with pytest.raises(ModelError, match=r"no readable model_index\.json"):
        load(tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    weights = broken / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match=r"partly downloaded files, transformer/.*\.safetensors;") as error:
        load(broken)
    assert "\n" not in str(error.value)
    shutil.rmtree(broken / "vae")
    with pytest.raises(ModelError, match=r"lacks vae/config\.json and vae/"):
        load(broken)
    (broken / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    with pytest.raises(ModelError, match="FluxPipeline, which TTOM does not know"):
        load(broken)


@pytest.mark.slow
def test_an_evaluation_continues_where_it_stopped(folder, tmp_path, monkeypatch):
    from demo.prompts import FOLDER
    from ttom_core.evaluation.evaluate import load_frames, load_prompts

    methods = {"base": None, "ttom": PRESETS["demo"].model_copy(update={"iterations": 1})}
    rows, prompts = tmp_path / "rows.jsonl", load_prompts(FOLDER / "tuning.json", 2)
    made = []

    def run(count, methods=methods):
        made.clear()
        return evaluate(
            str(folder),
            prompts[:count],
            methods,
            rows,
            steps=4,
            workers=1,
            pictures=tmp_path,
            on_row=lambda left, row: made.append((left, row["prompt"])),
        )

    first = run(1)
    assert [left for left, _ in made] == [1, 0]
    with rows.open("a") as file:
        file.write('{"prompt": "cut sh')  # the line that an interruption left
    both = run(2)
    assert len(made) == 2 and both["base"][0] == first["base"][0] and both["ttom"][0] == first["ttom"][0]
    other = {"base": None, "other": PRESETS["demo"].model_copy(update={"iterations": 2})}
    again = run(2, other)
    assert len(made) == 2 and again["base"] == both["base"], "the base model's clips are the same beside both"
    assert len(list((tmp_path / "clips").glob("*.png"))) == 6
    assert load_frames(next((tmp_path / "clips").glob("*.png"))).shape == (21, 64, 64, 3)
    assert {row["prompt"] for row in again["other"]} == {spec["prompt"] for spec in prompts}


def test_pictures_show_what_they_are_given(tmp_path):
    frames = np.full((5, 64, 64, 3), 255, np.uint8)
    layout = plan(PROMPT)
    drawn = draw_layout(frames, layout)
    assert drawn.shape == (5, 256, 256, 3) and (drawn != 255).any()
    maps = np.zeros((2, 4, 4))
    maps[:, 0, 0] = 1
    heat = heatmap(frames, maps).astype(int).sum(-1)
    assert heat[0, :32, :32].mean() > heat[0, 128:, 128:].mean() + 50
    assert strip({"a": frames, "b": drawn}, columns=3).size[0] > 3 * 256
    import imageio.v3 as imageio

    save_video(drawn, tmp_path / "x.mp4", 8)
    assert imageio.imread(tmp_path / "x.mp4").shape == drawn.shape
