"""The benchmark at full size: its extrapolation, and that every design and scope costs less than the last."""

import runpy
from pathlib import Path

import pytest
import torch
from conftest import SIZE, build_tiny

from ttom_core.backbones.wan import WanBackbone
from ttom_core.forecast import Clip, blueprint_of
from ttom_core.optimize import TTOSettings

ROOT = Path(__file__).parent.parent
FULL_SIZE = runpy.run_path(str(ROOT / "benchmarks" / "full_size.py"))
DESIGNS, SCOPES, scaled = (FULL_SIZE[name] for name in ("DESIGNS", "SCOPES", "scaled"))
cost_of_step, operations, overhead = (FULL_SIZE[name] for name in ("cost_of_step", "operations", "overhead"))
full_size_table = runpy.run_path(str(ROOT / "benchmarks" / "readme.py"))["full_size_table"]
CLIP = Clip(**SIZE)


@pytest.fixture(scope="module")
def tiny():
    return blueprint_of(WanBackbone(build_tiny())).backbone


def test_iterations_are_paid_five_times_eight_and_the_step_fifty_times(tiny):
    def once(run):
        run()
        return 1.0

    like = torch.empty(0, device="meta")
    assert cost_of_step(tiny, CLIP, like, once) == 2.0  # one row a call
    for cached in (False, True):
        settings = TTOSettings(layers=(2,), prefix_cache=cached)
        assert overhead(tiny, CLIP, settings, like, once, 2.0) == pytest.approx(100 * 5 * 8 / (50 * 2))


def test_every_design_and_scope_costs_less_than_the_one_before(tiny):
    like = torch.empty(0, device="meta")
    step = cost_of_step(tiny, CLIP, like, operations)
    shares = {
        scope: [
            overhead(
                tiny, CLIP,
                TTOSettings(layers=(2,), scope=scope, early_exit=d.early_exit, prefix_cache=d.prefix_cache),
                like, operations, step,
            )
            for d in DESIGNS
        ]
        for scope in SCOPES
    }  # fmt: skip
    for row in shares.values():
        assert row == sorted(row, reverse=True) and row[0] > row[-1] > 0
    assert all(a > b for a, b in zip(*shares.values(), strict=True))


def test_reading_costs_what_the_adapters_own_products_do(tiny):
    like, settings = torch.empty(0, device="meta"), TTOSettings(layers=(2,), rank=4)
    step = cost_of_step(tiny, CLIP, like, operations)
    share = FULL_SIZE["read_only"](tiny, CLIP, settings, like, operations, step)
    assert 0 < share < 100
    doubled = settings.model_copy(update={"rank": 8})
    assert FULL_SIZE["read_only"](tiny, CLIP, doubled, like, operations, step) == pytest.approx(2 * share)


def test_a_scaled_down_model_is_of_the_same_build():
    backbone = scaled("CogVideoX-2b", 0)
    config = backbone.transformer.config
    assert (config.num_attention_heads, config.attention_head_dim, config.num_layers) == (3, 64, 15)
    assert isinstance(scaled("Wan2.1-T2V-1.3B", 0), WanBackbone)


def test_the_table_says_which_figures_had_no_gpu():
    def figures(*names, unit):
        return {
            f"{model}_{name}": {"value": 12.3456, "unit": unit} for model in ("A-1", "B-2") for name in names
        }

    case = "deep_selected_prefix_cache"
    counted = figures(f"{case}_overhead_counted", unit="% of 50 steps")
    counted |= figures(f"{case}_memory_forecast", f"{case}_checkpointing_memory_forecast", unit="GiB")
    text = full_size_table(counted)
    assert (
        "| B-2 | deep | selected | 12.3 % |" in text
        and "| A-1 | deep | selected | 12.3 GiB | 12.3 GiB |" in text
    )
    assert "timed" not in text and "measured |" not in text
    assert "need a GPU and there was none" in text and "of A-1, B-2." in text
    one = {f"A-1_{case}_overhead": {"value": 11, "unit": "% of 50 steps"}}
    one |= {f"A-1_{case}_memory": {"value": 12, "unit": "GiB"}}
    text = full_size_table(counted | one)
    assert (
        "| A-1 | deep | selected | 12.3 % | 11 % |" in text
        and "| B-2 | deep | selected | 12.3 % | – |" in text
    )
    assert "| A-1 | deep | selected | 12.3 GiB | 12 GiB | 12.3 GiB |" in text and "memory of B-2." in text
    both = {name.replace("A-1", "B-2"): figure for name, figure in one.items()}
    assert "GPU" not in full_size_table(counted | one | both)
