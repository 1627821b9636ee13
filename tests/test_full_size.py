"""The benchmark at full size: its extrapolation, and that every design and scope costs less than the last."""

import runpy
from pathlib import Path

import pytest
import torch
from conftest import SIZE, build_tiny

from ttom_core.backbones.wan import WanBackbone
from ttom_core.forecast import Clip, blueprint_of
from ttom_core.optimize import TTOSettings

FULL_SIZE = runpy.run_path(str(Path(__file__).parent.parent / "benchmarks" / "full_size.py"))
DESIGNS, SCOPES, scaled = (FULL_SIZE[name] for name in ("DESIGNS", "SCOPES", "scaled"))
cost_of_step, operations, overhead = (FULL_SIZE[name] for name in ("cost_of_step", "operations", "overhead"))
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


def test_a_scaled_down_model_is_of_the_same_build():
    backbone = scaled("CogVideoX-2b", 0)
    config = backbone.transformer.config
    assert (config.num_attention_heads, config.attention_head_dim, config.num_layers) == (3, 64, 15)
    assert isinstance(scaled("Wan2.1-T2V-1.3B", 0), WanBackbone)
