"""Every command that loads a model takes the same flags for it, and they reach its processes."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from conftest import PROMPT, build_tiny

from ttom_core.backbones import Source, load
from ttom_core.backbones.quantization import Base
from ttom_core.cli import _parser, main
from ttom_core.evaluation import pool
from ttom_core.evaluation.evaluate import Clip
from ttom_core.model_cli import clip_size, source_of

COMMANDS = {
    "generate": ["generate", PROMPT],
    "stream": ["stream", "prompts.txt"],
    "evaluate": ["evaluate"],
    "probe": ["probe", "--prompt", PROMPT],
    "compbench": ["export", "compbench", "--clone", "a", "--out", "b"],
    "vbench": ["export", "vbench", "--clone", "a", "--out", "b"],
}
FLAGS = ["--model", "m", "--transformer", "t.safetensors", "--weights", "fp8", "--offload"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "wan"
    build_tiny().save_pretrained(path)
    return path


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_the_flags_are_the_same_everywhere(command):
    plain, asked = (source_of(_parser().parse_args([*command, *flags])) for flags in ([], FLAGS))
    assert plain[1:] == (None, "full", False) and Path(plain.model).name == "model"
    assert asked == Source("m", Path("t.safetensors"), "fp8", True)


@pytest.mark.parametrize("command", [COMMANDS[name] for name in COMMANDS if name != "evaluate"])
def test_a_clip_is_as_asked_for_or_as_the_models_folder_says(command, tmp_path):
    def size(*flags):
        return clip_size(_parser().parse_args([*command, "--model", str(tmp_path), *flags]))

    assert size() == {"num_frames": 21, "height": 64, "width": 64}
    (tmp_path / "clip.json").write_text('{"num_frames": 17, "height": 96, "fps": 8}')
    assert size() == {"num_frames": 17, "height": 96, "width": 64}
    assert size("--frames", "9", "--size", "32", "16") == {"num_frames": 9, "height": 16, "width": 32}


def test_every_kind_of_weights_can_be_asked_for():
    for weights in get_args(Base):
        assert source_of(_parser().parse_args(["evaluate", "--weights", weights])).base == weights


@pytest.mark.parametrize("command", [COMMANDS[name] for name in ("generate", "probe")])
def test_what_cannot_be_loaded_is_one_sentence(command, folder, tmp_path, capsys):
    flags = ["--model", str(folder), "--transformer", str(tmp_path / "no.safetensors")]
    assert main([*command, *flags, "--out", str(tmp_path / "out")]) == 2
    assert "There is no transformer at" in capsys.readouterr().err


def test_an_evaluation_asks_for_the_model_as_the_flags_say(folder, tmp_path, capsys):
    flags = ["--model", str(folder), "--transformer", str(tmp_path / "no.safetensors")]
    assert main(["evaluate", *flags, "--limit", "1", "--out", str(tmp_path / "out")]) == 2
    assert "There is no transformer at" in capsys.readouterr().err


def test_a_process_loads_what_it_is_sent(folder):
    light = pool.backbone_of(Source(str(folder), base="fp8"))
    assert pool.backbone_of(Source(str(folder), base="fp8")) is light
    full = load(folder)
    assert light.fingerprint == full.fingerprint == full.video_fingerprint
    clip = Clip({"prompt": PROMPT}, None, 0, 4)
    keys = {clip.key(backbone.video_fingerprint) for backbone in (light, full)}
    assert len(keys) == 2, "videos of lighter weights are not those of full ones"


def test_a_gpu_holds_one_copy_of_the_model(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert pool._room_for_models() == 1
