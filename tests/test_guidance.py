"""Guidance that ends below a noise level: what is left is the prompt's own prediction, at half the cost."""

from types import SimpleNamespace

import pytest
import tiny_cogvideox
import torch
from conftest import PROMPT, STEPS, build_tiny
from conftest import SIZE as WAN_SIZE
from diffusers import WanPipeline, WanTransformer3DModel

from ttom_core.backbones.cogvideox import CogVideoXBackbone
from ttom_core.backbones.wan import WanBackbone
from ttom_core.errors import TTOMError
from ttom_core.generate import generate
from ttom_core.optimize import TTOSettings
from ttom_core.planner import plan

WHOLE, NONE = 2.0, 0.0  # above and below every noise level
PLAIN = TTOSettings(layers=(1,), iterations=0)


@pytest.fixture(params=["wan", "cogvideox"])
def family(request):
    if request.param == "wan":
        return SimpleNamespace(backbone=WanBackbone(build_tiny()), size=WAN_SIZE)
    return SimpleNamespace(backbone=CogVideoXBackbone(tiny_cogvideox.build()), size=tiny_cogvideox.SIZE)


def sample(family, **changes):
    options = {"negative_prompt": "blue", "steps": STEPS, "guidance_scale": 3.0, "on_step": lambda step: None}
    generator = torch.Generator().manual_seed(0)
    return family.backbone.sample(PROMPT, generator=generator, **(family.size | options | changes))


def rows_computed(family, until):
    """How many rows the first block saw in one clip."""
    seen = []
    block = family.backbone.blocks[0]

    def count(module, args, call):
        seen.append(len(args[0] if args else call["hidden_states"]))

    hook = block.register_forward_pre_hook(count, with_kwargs=True)
    try:
        with family.backbone.guided_until(PROMPT, until):
            sample(family)
    finally:
        hook.remove()
    return sum(seen)


def test_below_the_level_a_clip_is_the_one_without_guidance(family):
    guided = sample(family)
    with family.backbone.guided_until(PROMPT, WHOLE):
        ended = sample(family)
    assert (ended == sample(family, guidance_scale=1.0)).all() and (ended != guided).any()
    with family.backbone.guided_until(PROMPT, NONE):
        assert (sample(family) == guided).all()


def test_the_negative_prompt_is_not_computed_where_it_has_no_say(family):
    levels = family.backbone.sigmas(STEPS)
    middle = (levels[2] + levels[3]) / 2
    assert rows_computed(family, NONE) == 2 * STEPS
    assert rows_computed(family, middle) == 2 * 3 + (STEPS - 3)
    assert rows_computed(family, WHOLE) == STEPS


def test_the_denoiser_is_left_as_it_was(family):
    def stop(step):
        raise KeyboardInterrupt

    for _ in range(2):
        with pytest.raises(KeyboardInterrupt), family.backbone.guided_until(PROMPT, WHOLE):
            sample(family, on_step=stop)
    assert "forward" not in vars(family.backbone.transformer)

    hosts = family.backbone.transformer.forward = family.backbone.transformer.forward
    with family.backbone.guided_until(PROMPT, WHOLE):
        assert family.backbone.transformer.forward is not hosts
    assert family.backbone.transformer.forward is hosts


def test_a_setting_ends_the_guidance_of_a_generation(family):
    made = {
        until: generate(
            family.backbone, PROMPT, plan(PROMPT), PLAIN.model_copy(update={"guidance_until_sigma": until}),
            steps=STEPS, guidance_scale=3.0, **family.size,
        ).frames
        for until in (0.0, 0.5, 1.0)
    }  # fmt: skip
    plain = generate(family.backbone, PROMPT, steps=STEPS, guidance_scale=3.0, **family.size)
    assert (made[0.0] == plain.frames).all()
    assert (made[0.5] != made[0.0]).any() and (made[0.5] != made[1.0]).any()


def test_the_second_of_two_experts_is_unguided_too():
    parts = dict(build_tiny().components)
    torch.manual_seed(5)
    parts["transformer_2"] = WanTransformer3DModel.from_config(parts["transformer"].config)
    backbone = WanBackbone(WanPipeline(**parts, boundary_ratio=0.7))
    family = SimpleNamespace(backbone=backbone, size=WAN_SIZE)
    with backbone.guided_until(PROMPT, WHOLE):
        ended = sample(family)
    assert (ended == sample(family, guidance_scale=1.0)).all() and (ended != sample(family)).any()
    assert not {"forward"} & (vars(backbone.transformer) | vars(parts["transformer_2"])).keys()


def test_a_loop_that_does_not_begin_with_the_prompt_is_told(family):
    with (
        family.backbone.guided_until("another prompt", WHOLE),
        pytest.raises(TTOMError, match="guidance could not be ended; set guidance_until_sigma to 0"),
    ):
        sample(family)
