"""`ttom doctor`: what this machine has, and which models fit into how much memory."""

import json
from dataclasses import replace

import pytest
from conftest import build_tiny

from ttom_core import forecast
from ttom_core.backbones import published
from ttom_core.cli import main
from ttom_core.optimize import PRESETS


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


@pytest.fixture
def toys(monkeypatch):
    """Models of both families and of two experts, so small that counting takes no time."""
    text = {"d_model": 32, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 1, "vocab_size": 99}
    vaes = {
        "WanPipeline": {"base_dim": 8, "z_dim": 16, "num_res_blocks": 1},
        "CogVideoXPipeline": {"block_out_channels": (4,) * 4, "layers_per_block": 1, "norm_num_groups": 2},
    }
    sizes = {"num_frames": 9, "height": 64, "width": 96, "layers": (1,)}
    made = {}
    for name in ("Wan2.1-T2V-1.3B", "Wan2.2-T2V-A14B", "CogVideoX-2b"):
        model = published.PUBLISHED[name]
        few = {"num_layers": 3, "num_attention_heads": 4}
        small = model.transformer | few | {key: 512 for key in ("ffn_dim",) if key in model.transformer}
        vae = vaes[model.pipeline]
        made[name] = replace(model, transformer=small, vae=vae, text_encoder=text, **sizes)
    monkeypatch.setattr(published, "PUBLISHED", made)
    monkeypatch.setattr("ttom_core.forecast.PUBLISHED", made)
    monkeypatch.setattr("ttom_core.doctor_cli.LARGER", {})
    for cached in (forecast._expert, forecast._other_parts):
        cached.cache_clear()
    yield made
    for cached in (forecast._expert, forecast._other_parts):
        cached.cache_clear()


def test_a_gguf_file_needs_less_the_coarser_it_is(toys, capsys):
    wan, experts, cogvideox = json.loads(doctor(capsys, "--json", "--memory-gb", "80")[1])["models"][1:]
    assert [row["type"] for row in wan["gguf"]] == list(forecast.GGUF_BYTES)
    assert wan["gguf_fits"] == "Q8_0" and all(row["fits"] for row in wan["gguf"])
    assert cogvideox["gguf"] == [] and cogvideox["gguf_fits"] is None
    clip, settings = forecast.Clip(9, 64, 96), PRESETS["paper"].model_copy(update={"layers": (1,)})
    full = forecast.published("Wan2.1-T2V-1.3B")
    peaks = []
    for base in ("full", *forecast.GGUF_BYTES):
        plan = forecast.Plan(offload=True, checkpointing=True, base=base)
        model = forecast.with_weights_of(full, forecast.published("Wan2.1-T2V-1.3B", base=base))
        peaks.append(sum(forecast.forecast(model, clip, settings, plan).phases["optimise"].values()))
    assert peaks == sorted(peaks, reverse=True) and peaks[-1] < peaks[0]
    assert len(experts["gguf"]) == len(wan["gguf"])


def test_of_two_experts_a_gguf_file_replaces_one(toys):
    one, two = (forecast.published(name, base="Q4_K") for name in list(toys)[:2])
    full = forecast.published("Wan2.1-T2V-1.3B")
    assert two.transformer == one.transformer < full.transformer == two.other_expert
    light = forecast.published("Wan2.2-T2V-A14B", base="fp8")
    assert light.other_expert == light.transformer < full.transformer
    for offload in (False, True):
        phases = forecast.forecast(two, forecast.Clip(9, 64, 96), None, forecast.Plan(offload)).phases
        held = phases["sample"]["transformer"], phases["sample"].get("other expert")
        assert held == ((full.transformer, None) if offload else (two.transformer, full.transformer))


def test_the_table_has_the_gguf_sizes_under_what_is_counted(toys, capsys):
    out = doctor(capsys, "--memory-gb", "24")[1]
    heading, rows = out.partition("GGUF files in place of the transformer")[1:]
    assert heading and "Q5_0 and Q4_0 are as Q5_K and Q4_K" in rows and "CogVideoX-2b" not in rows
    assert next(line for line in rows.splitlines() if line.startswith("Wan2.1")).endswith("Q8_0")
    small = doctor(capsys, "--memory-gb", "0.001")[1]
    assert small.count("nothing here") == 4 + 2


@pytest.mark.parametrize("size", ["0", "-3", "nan", "inf"])
def test_a_card_of_no_size_is_refused(capsys, size):
    code, _, error = doctor(capsys, f"--memory-gb={size}")
    assert code == 2 and "A card cannot have" in error and error.count("\n") == 1


def test_a_folder_that_is_no_model_is_refused(one_model, capsys, tmp_path):
    code, _, error = doctor(capsys, "--model", str(tmp_path))
    assert code == 2 and "is no whole diffusers folder" in error
    (tmp_path / "model_index.json").write_text("[" * 200_000)
    assert doctor(capsys, "--model", str(tmp_path))[2] == error


def test_a_model_of_ones_own_is_looked_at_by_its_configs(one_model, capsys, tmp_path):
    folder = tmp_path / "mine"
    build_tiny().save_pretrained(folder)
    (folder / "transformer" / "diffusion_pytorch_model.safetensors").unlink()  # only configs are read
    models = json.loads(doctor(capsys, "--json", "--memory-gb", "1", "--model", str(folder))[1])["models"]
    assert models[0]["model"] == "mine" and models[0]["runs_with"] == "all on the device"
