"""`ttom probe`: what it writes, continues and keeps; `--set layers=probed`."""

from __future__ import annotations

import json

import pytest
from conftest import PROMPT

from ttom_core.backbones import load
from ttom_core.cli import main
from ttom_core.evaluation.grounding import BlobGrounding
from ttom_core.probe import Relevance, relevance_file

QUICK = ["--steps", "4", "--frames", "5", "--size", "32", "32"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model folder of the demo's form with random weights."""
    from demo.train import build_pipeline

    path = tmp_path_factory.mktemp("models") / "untrained"
    build_pipeline().save_pretrained(path)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def everywhere(monkeypatch):
    """An untrained model draws nothing: let the grounding find every object in the upper half."""

    def locate(self, frames, phrases):
        masks = frames[None, ..., 0].repeat(len(phrases), 0) < 0
        masks[:, :, : masks.shape[2] // 2] = True
        return masks

    monkeypatch.setattr(BlobGrounding, "locate", locate)


@pytest.mark.slow
def test_a_probe_is_written_kept_and_used(folder, tmp_path, capsys, everywhere) -> None:
    out, prompts = tmp_path / "out", tmp_path / "prompts.txt"
    prompts.write_text(f"{PROMPT}\n\na red circle\n")
    command = ["probe", str(prompts), "--model", str(folder), "--out", str(out), *QUICK]
    assert main(command) == 0
    assert {path.name for path in out.iterdir()} == {
        *("clips", "relevance.json", "relevance.png"),
        *("00000_red_circle.png", "00000_blue_square.png", "00001_red_circle.png"),
    }
    found, backbone = Relevance.load(out / "relevance.json"), load(folder)
    assert found.n == 3 and len(found.layers) == backbone.num_layers
    assert Relevance.load(relevance_file(backbone.fingerprint)) == found
    told = capsys.readouterr().out
    assert told.count("recommended") == 2 and "3 objects" in told

    before = {path: path.stat().st_mtime_ns for path in (out / "clips").iterdir()}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "clips").iterdir()} == before
    assert Relevance.load(out / "relevance.json") == found

    made = ["generate", PROMPT, "--model", str(folder), "--out", str(tmp_path / "made"), "--no-base", *QUICK]
    assert main([*made, "--set", "iterations=1", "--set", "layers=probed"]) == 0
    record = json.loads((tmp_path / "made" / "settings.json").read_text())
    best = sorted(range(len(found.layers)), key=lambda layer: -found.layers[layer])[:2]
    assert record["tto"]["layers"] == sorted(best), "a run's record says the layers themselves"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a file of prompts, or one with --prompt"),
        (["nowhere.txt"], "cannot be read as text"),
        (["--prompt", "a red circle", "--grounding", "eyes"], "no grounding 'eyes'"),
        (["--prompt", "a red circle", "--sigma", "2", "0"], "Setting sigma_start"),
        (["--prompt", "a red circle", "--sigma", "0.2", "0.5"], "wider range"),
        (["--prompt", "a red circle"], "none of the objects"),
        (["--prompt", "a dog runs to the left"], "no coloured shape"),
    ],
)
def test_mistakes_are_answered_by_one_sentence(folder, arguments, words, tmp_path, capsys) -> None:
    assert main(["probe", *arguments, "--model", str(folder), "--out", str(tmp_path / "out"), *QUICK]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ttom:")]
    assert len(errors) == 1 and words in errors[0]
    assert not (tmp_path / "out" / "relevance.json").exists()


def test_layers_of_a_model_never_probed_are_asked_for(folder, tmp_path, capsys) -> None:
    command = ["generate", PROMPT, "--model", str(folder), "--out", str(tmp_path), "--set", "layers=probed"]
    assert main(command) == 2
    assert "was never probed; run `ttom probe`" in capsys.readouterr().err
