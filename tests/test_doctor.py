"""`ttom doctor`: what this machine has, and which models fit into how much memory."""

import json

import pytest
from conftest import build_tiny

from ttom_core.backbones import published
from ttom_core.cli import main


@pytest.fixture
def one_model(monkeypatch):
    """The smallest of the published models alone: the others take their time."""
    only = {"CogVideoX-2b": published.PUBLISHED["CogVideoX-2b"]}
    monkeypatch.setattr(published, "PUBLISHED", only)


def doctor(capsys, *options):
    code = main(["doctor", *options])
    told = capsys.readouterr()
    return code, told.out, told.err


def test_a_larger_card_runs_what_a_smaller_one_runs(one_model, capsys):
    code, out, _ = doctor(capsys, "--json", "--memory-gb", "16")
    assert code == 0
    small, large = (json.loads(text) for text in (out, doctor(capsys, "--json", "--memory-gb", "80")[1]))
    assert small["memory_gib"] == 16 and small["machine"]["free_gib"] > 0
    assert small["machine"]["packages"]["torch"]
    for few, many in zip(small["models"], large["models"], strict=True):
        assert few["model"] == many["model"]
        fits = [(a["fits"], b["fits"]) for a, b in zip(few["plans"], many["plans"], strict=True)]
        assert all(b for a, b in fits if a)
        assert all(b for _, b in fits)
        for plan in few["plans"]:
            assert plan["fits"] == (plan["needed_gib"] <= 0.95 * 16)
    assert large["models"][-1]["runs_with"] == "all on the device"
    assert small["models"][-1]["runs_with"] not in (None, "all on the device")


def test_the_table_says_what_the_json_says(one_model, capsys):
    _, out, _ = doctor(capsys, "--memory-gb", "24")
    assert "* fits into 24 GiB" in out and "CogVideoX-2b" in out and "49 × 720×480" in out
    row = next(line for line in out.splitlines() if line.startswith("CogVideoX-2b"))
    assert row.endswith("offload") and "*" in row


@pytest.mark.parametrize("size", ["0", "-3", "nan", "inf"])
def test_a_card_of_no_size_is_refused(capsys, size):
    code, _, error = doctor(capsys, f"--memory-gb={size}")
    assert code == 2 and "A card cannot have" in error and error.count("\n") == 1


def test_a_folder_that_is_no_model_is_refused(one_model, capsys, tmp_path):
    code, _, error = doctor(capsys, "--model", str(tmp_path))
    assert code == 2 and "is no whole diffusers folder" in error


def test_a_model_of_ones_own_is_looked_at_by_its_configs(one_model, capsys, tmp_path):
    folder = tmp_path / "mine"
    build_tiny().save_pretrained(folder)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()  # only configs are read
    models = json.loads(doctor(capsys, "--json", "--memory-gb", "1", "--model", str(folder))[1])["models"]
    assert models[0]["model"] == "mine" and models[0]["runs_with"] == "all on the device"
