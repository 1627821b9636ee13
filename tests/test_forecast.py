"""The forecast is what the real models then hold, and too little memory is said before any long work."""

import dataclasses
import itertools
import weakref

import pytest
import tiny_cogvideox
import torch
from conftest import PROMPT, SIZE, STEPS, build_tiny
from torch.profiler import ProfilerActivity, profile

from ttom_core.backbones.cogvideox import CogVideoXBackbone
from ttom_core.backbones.published import PUBLISHED, default_layers
from ttom_core.backbones.wan import WanBackbone
from ttom_core.errors import TTOMError
from ttom_core.forecast import (
    PLANS,
    RESERVE,
    Clip,
    LiveBytes,
    NotEnoughMemory,
    Plan,
    _advice,
    blueprint_of,
    count_decoding,
    count_iteration,
    count_step,
    fitted,
    forecast,
    free_memory,
    gib,
    held,
    iterations,
    published,
)
from ttom_core.generate import generate
from ttom_core.optimize import TTOSettings
from ttom_core.planner import plan as plan_layout

FAMILIES = {
    "wan": lambda: WanBackbone(build_tiny()),
    "cogvideox 2b": lambda: CogVideoXBackbone(tiny_cogvideox.build("2b")),
    "cogvideox 5b": lambda: CogVideoXBackbone(tiny_cogvideox.build("5b")),
}
# Large enough for the activations to be more than the small change around them.
CLIPS = {"wan": Clip(9, 64, 96), "cogvideox 2b": Clip(9, 96, 144), "cogvideox 5b": Clip(9, 96, 144)}
SETTINGS = TTOSettings(layers=(1, 2), rank=4, alpha=4.0)
WAYS = {
    "default": {},
    "whole forward": {"early_exit": False, "prefix_cache": False},
    "selected": {"scope": "selected"},
    "queries and keys": {"scope": "maps"},
    "features": {"scope": "features"},
    "no prefix cache": {"prefix_cache": False},
    "checkpointing": {"checkpointing": True},
    "selected, checkpointing": {"scope": "selected", "checkpointing": True},
}


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    torch.set_num_threads(1)
    backbone = FAMILIES[request.param]()
    backbone.transformer.requires_grad_(False)
    return backbone, CLIPS[request.param]


def peak_of(run):
    """The most bytes that torch's own profiler sees allocated at once while this runs."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    events = [e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(itertools.accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())))


# ---- what is counted is what is held -------------------------------------------------------------


@pytest.mark.parametrize("way", [way for way in WAYS if "checkpointing" not in way])
def test_activations_are_the_bytes_that_autograd_saves(family, way):
    backbone, clip = family
    settings = SETTINGS.model_copy(update=WAYS[way])
    foretold = count_iteration(blueprint_of(backbone), clip, settings)
    weights = {t.untyped_storage().data_ptr() for t in backbone.transformer.state_dict().values()}
    saved, mine = weakref.WeakSet(), set()

    class Saved:
        def __init__(self, tensor):
            self.tensor = tensor.detach()  # with its graph it would hold itself
            saved.add(self)

    with iterations(backbone, clip, settings, torch.zeros(0)) as (parameters, loss, prefix):
        with torch.autograd.graph.saved_tensors_hooks(Saved, lambda kept: kept.tensor):
            value = loss(prefix)
        cached = () if prefix is None else (*prefix.state, prefix.self_attention)
        for tensor in (*parameters, *cached):
            if isinstance(tensor, torch.Tensor):
                mine.add(tensor.untyped_storage().data_ptr())
        storages = {s.data_ptr(): s.nbytes() for s in (kept.tensor.untyped_storage() for kept in saved)}
        assert len(torch.autograd.grad(value, parameters)) == len(parameters)
    counted = sum(size for where, size in storages.items() if where not in weights | mine)
    assert foretold["activations"] == pytest.approx(counted, rel=0.1)


@pytest.mark.parametrize("way", WAYS)
def test_the_peak_of_an_iteration_is_the_allocators(family, way):
    backbone, clip = family
    settings = SETTINGS.model_copy(update=WAYS[way])
    parts = count_iteration(blueprint_of(backbone), clip, settings)
    foretold = parts["prefix cache"] + parts["activations"] + parts["working memory"]
    with iterations(backbone, clip, settings, torch.zeros(0)) as (parameters, loss, prefix):
        assert foretold == pytest.approx(
            peak_of(lambda: torch.autograd.grad(loss(prefix), parameters)), rel=0.1
        )


def test_the_peak_of_a_step_is_the_allocators(family):
    backbone, clip = family
    model = blueprint_of(backbone)
    call = backbone.blank_call(*clip, backbone.guided_rows, torch.zeros(0))
    with torch.no_grad():
        assert count_step(model, clip) == pytest.approx(
            peak_of(lambda: backbone.transformer(**call, return_dict=False)), rel=0.1
        )


def test_decoding_holds_what_the_same_operations_hold_with_numbers(family):
    """Not the allocator's peak: convolutions have workspaces of their own, other ones on every device."""
    backbone, clip = family
    vae, factor = backbone.pipeline.vae, backbone.pipeline.vae_scale_factor_spatial
    channels = getattr(vae.config, "z_dim", None) or vae.config.latent_channels
    size = ((clip.num_frames - 1) // 4 + 1, clip.height // factor, clip.width // factor)
    latents = torch.zeros(1, channels, *size)
    with torch.no_grad(), LiveBytes([latents, *vae.parameters()]) as live:
        vae.decode(latents)
    assert count_decoding(blueprint_of(backbone), clip) == pytest.approx(live.peak - live.start, rel=0.1)


def test_checkpointing_and_selected_layers_hold_less(family):
    backbone, clip = family
    model = blueprint_of(backbone)

    def need(**changes):
        settings = SETTINGS.model_copy(update={"layers": (2,)} | changes)
        return count_iteration(model, clip, settings)["activations"]

    assert need(scope="selected") < need() <= need(early_exit=False)
    assert need(checkpointing=True) < need()


def test_counting_leaves_the_model_alone(family):
    backbone, clip = family
    before = {k: v.clone() for k, v in backbone.transformer.state_dict().items()}
    forecast(blueprint_of(backbone), clip, SETTINGS, Plan())
    assert all(torch.equal(backbone.transformer.state_dict()[k], v) for k, v in before.items())
    assert not any(m._forward_hooks for m in backbone.transformer.modules())
    assert blueprint_of(backbone) is blueprint_of(backbone)


def test_a_vae_that_decodes_piece_by_piece_is_counted_anew():
    """Turned on because of a refusal, it is what the next clip is judged by."""
    backbone, clip = FAMILIES["wan"](), Clip(5, 256, 384)
    whole = count_decoding(blueprint_of(backbone), clip)
    backbone.pipeline.vae.enable_tiling(64, 64, 48, 48)
    assert count_decoding(blueprint_of(backbone), clip) < 0.7 * whole
    assert blueprint_of(backbone) is blueprint_of(backbone)


def test_bytes_live_for_as_long_as_something_holds_them():
    given = torch.zeros(10)
    with LiveBytes([given]) as live:
        kept = torch.ones(100)
        view = kept[:5].view(5, 1)
        torch.ones(1000)
    assert (live.start, live.now, live.peak) == (40, 440, 4440)
    del kept
    assert live.now == 440
    del view
    assert live.now == 40


# ---- the published models ------------------------------------------------------------------------

# Specification: GiB of weights in bf16 and of activations a block, without checkpointing.
KNOWN = {
    "Wan2.1-T2V-1.3B": (2.6, 2.3),
    "Wan2.1-T2V-14B": (26.6, 6.8),
    "CogVideoX-2b": (3.2, 0.9),
    "CogVideoX-5b": (10.4, 1.4),
}


@pytest.mark.parametrize("name", KNOWN)
def test_published_sizes(name):
    weights, activations = KNOWN[name]
    model, config = published(name), PUBLISHED[name]
    clip = Clip(config.num_frames, config.height, config.width)
    assert model.transformer / 2**30 == pytest.approx(weights, abs=0.1)
    settings = TTOSettings(layers=(2,))
    counts = [
        count_iteration(model, clip, settings.model_copy(update={"layers": (n,)}))["activations"]
        for n in (1, 2)
    ]
    assert (counts[1] - counts[0]) / 2**30 == pytest.approx(activations, abs=0.1)
    assert config.layers_from and max(config.layers) < model.backbone.num_layers
    assert default_layers(config.pipeline, model.backbone.transformer)[0] == config.layers


@pytest.mark.slow
def test_each_plan_of_the_14b_holds_what_it_says():
    settings = TTOSettings(layers=(11, 12, 13))
    clip = Clip(81, 480, 832)
    peaks = {}
    for plan in PLANS:
        model = published("Wan2.1-T2V-14B", base=plan.base)
        result = forecast(model, clip, settings, plan)
        peaks[str(plan)] = result.peak
        assert result.peak == sum(result.phases[result.fullest].values())
        assert gib(result.peak) in str(result)
    values = list(peaks.values())
    assert values == sorted(values, reverse=True), peaks
    assert peaks["offload + checkpointing"] / 2**30 == pytest.approx(41, abs=1.5)  # specification


def test_a_base_of_eight_bits_keeps_its_upcast_weights_without_checkpointing():
    model, clip = published("CogVideoX-2b", base="fp8"), Clip(49, 480, 720)
    full = published("CogVideoX-2b")
    assert model.transformer < 0.65 * full.transformer
    kept = [
        count_iteration(m, clip, TTOSettings(layers=(2,), checkpointing=c))["activations"]
        for m in (model, full)
        for c in (False, True)
    ]
    assert kept[0] > kept[2] + held(full.backbone.blocks[1]) // 2
    assert kept[1] < 1.1 * kept[3]


def test_an_unknown_name_is_refused():
    with pytest.raises(TTOMError, match=r"no published model 'Wan9'.* choose one of Wan2\.1-T2V-1\.3B, "):
        published("Wan9")


def test_sizes_of_no_published_model_have_no_default_layers():
    backbone = FAMILIES["wan"]()
    assert default_layers("WanPipeline", backbone.transformer) is None
    assert SIZE["num_frames"] == 5


# ---- what fits -----------------------------------------------------------------------------------


@pytest.fixture
def memory(monkeypatch):
    """So much of it can be had, beside what is loaded."""

    def only(size):
        monkeypatch.setattr("ttom_core.forecast.free_memory", lambda device: round(size / (1 - RESERVE)))

    return only


def loaded(backbone):
    return sum(held(part) for part in backbone.pipeline.components.values() if hasattr(part, "buffers"))


def test_checkpointing_is_turned_on_where_it_is_needed_and_only_there(memory, monkeypatch):
    backbone = FAMILIES["wan"]()
    settings = SETTINGS.model_copy(update={"layers": (3,)})
    monkeypatch.setattr("ttom_core.forecast.count_decoding", lambda *_: 0)  # optimising needs the most
    model, clip = blueprint_of(backbone), Clip(33, 128, 192)
    plain, saving = (
        forecast(model, clip, settings, Plan(checkpointing=c)).peak - loaded(backbone) for c in (False, True)
    )
    assert saving < plain
    memory(plain + 1000)
    assert fitted(backbone, clip, settings).settings == settings
    memory(plain - 1000)
    chosen = fitted(backbone, clip, settings)
    assert chosen.settings == settings.model_copy(update={"checkpointing": True})
    assert "checkpointing:" in str(chosen) and "activations" in str(chosen)


def test_too_little_memory_is_one_sentence_before_anything_is_computed(memory):
    backbone = FAMILIES["wan"]()
    layout = plan_layout(PROMPT)
    backbone.transformer.register_forward_pre_hook(lambda *_: pytest.fail("the model was called"))
    memory(1000)
    for settings in (SETTINGS, None):
        with pytest.raises(NotEnoughMemory, match=r"^A clip of 5 frames at 16×16 needs .* MiB to ") as told:
            generate(backbone, PROMPT, layout, settings, steps=STEPS, **SIZE)
        text = str(told.value)
        assert text.endswith("make the clip shorter or smaller.") and text.count(". ") == 0


def test_free_memory_is_some_of_this_machines():
    assert 0 < free_memory(torch.device("cpu")) < 2**50


def test_what_is_quantised_is_not_advised_to_be_quantised_again():
    full, light = (published("CogVideoX-2b", base=base) for base in ("full", "fp8"))
    gpu = torch.device("cuda")
    clip, settings = Clip(9, 96, 144), TTOSettings(layers=(2,))
    plan = next(plan for plan in PLANS if plan.base == "fp8")
    for model, advised in ((full, True), (light, False)):
        lighter = dataclasses.replace(model, text_encoder=0, blocks=tuple(s // 2 for s in model.blocks))
        enough = forecast(lighter, clip, settings, plan).peak
        model = dataclasses.replace(model, text_encoder=0)
        assert ("base=" in _advice(model, clip, settings, enough, gpu)) == advised


# ---- several devices -----------------------------------------------------------------------------

ELSEWHERE = torch.device("meta")  # the one other device that every machine has
HERE = torch.device("cpu")


@pytest.fixture
def apart():
    """A model whose text encoder and VAE are elsewhere."""
    backbone = FAMILIES["wan"]()
    for part in ("text_encoder", "vae"):
        setattr(backbone.pipeline, part, getattr(backbone.pipeline, part).to(ELSEWHERE))
    return backbone


def test_each_device_is_told_what_it_needs(apart, memory):
    memory(2**40)
    clip = CLIPS["wan"]
    fit = fitted(apart, clip, SETTINGS)
    whole = forecast(blueprint_of(apart), clip, SETTINGS, fit.plan)
    assert set(fit.needed) == {HERE, ELSEWHERE}
    here, there = fit.needed[HERE].phases, fit.needed[ELSEWHERE].phases
    for phase, parts in whole.phases.items():
        assert here.get(phase, {}) | there.get(phase, {}) == parts
    assert set(there["decode"]) == {"VAE", "decoding", "text encoder"}
    assert set(here["decode"]) == {"transformer"} and "activations" in here["optimise"]
    assert {line.split(":")[0] for line in str(fit).splitlines()} == {"cpu", "meta"}


@pytest.mark.parametrize("short", [HERE, ELSEWHERE])
def test_the_device_that_has_too_little_is_named(apart, monkeypatch, short):
    monkeypatch.setattr("ttom_core.forecast.free_memory", lambda device: 0 if device == short else 2**40)
    with pytest.raises(NotEnoughMemory, match=f"of {short} .* can be had; make the clip shorter or smaller"):
        fitted(apart, CLIPS["wan"], SETTINGS)


def test_a_part_spread_over_devices_is_said_to_be_beyond_telling(apart):
    apart.blocks[3].to(ELSEWHERE)
    with pytest.warns(
        UserWarning, match=r"^The transformer is spread over cpu and meta, so .* cannot be told"
    ):
        fit = fitted(apart, CLIPS["wan"], SETTINGS)
    assert fit.settings == SETTINGS and str(fit) == "not foretold"


def test_a_model_that_offloads_needs_one_device(memory):
    memory(2**40)
    backbone = FAMILIES["wan"]()
    backbone.pipeline._all_hooks = ["stands for what enable_model_cpu_offload leaves"]
    fit = fitted(backbone, CLIPS["wan"], SETTINGS)
    assert set(fit.needed) == {HERE} and fit.plan.offload and "\n" not in str(fit)
    assert "text encoder" not in fit.needed[HERE].phases["optimise"]
