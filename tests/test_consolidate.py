"""Consolidation: one adapter over many clips, its moments carried on, and a memory that it tidies."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
import torch
from conftest import PROMPT, SIZE, STEPS

from ttom_core import cli, scenes
from ttom_core.attention import EarlyExit
from ttom_core.consolidate import consolidate
from ttom_core.errors import TTOMError
from ttom_core.fusion import fuse
from ttom_core.masks import soft_masks
from ttom_core.memory.embedding import PipelineEmbedder
from ttom_core.memory.recall import ANY_SCENE, insert, learn, merge, recall, scene_of
from ttom_core.memory.store import MemoryStore
from ttom_core.optimize import TTO, LatentSettings
from ttom_core.planner import plan
from ttom_core.scenes import consolidate_scene, share

SAME = PROMPT.replace("red circle", "green triangle")
LESSONS = [(prompt, plan(prompt)) for prompt in (PROMPT, SAME)]
SAMPLING = {**SIZE, "steps": STEPS, "guidance_scale": 3.0}


@pytest.fixture(params=["reachable", "features"])
def scoped(request, settings):
    return settings.model_copy(update={"scope": request.param})


def sampled(tto, backbone, prompt=PROMPT, last=STEPS):
    """Sample with this optimisation up to the denoising step `last`, and return it."""

    def stop(step):
        if step == last:
            raise EarlyExit

    with suppress(EarlyExit), tto:
        noise = torch.Generator().manual_seed(0)
        backbone.sample(prompt, negative_prompt="", generator=noise, on_step=stop, **SAMPLING)
    return tto


def equal(one, other):
    return all(
        torch.equal(x, y)
        for name in one.weights
        for x, y in zip(one.weights[name], other.weights[name], strict=True)
    )


def test_it_goes_on_from_clip_to_clip_and_lowers_the_loss(backbone, scoped) -> None:
    adapter, losses = consolidate(backbone, LESSONS[:1], scoped, clips=8, **SAMPLING)
    assert len(losses) == 8 and sum(losses[-3:]) < sum(losses[:3])
    assert adapter.weights.keys() == backbone.adapter_modules(scoped.layers, scoped.scope).keys()
    again, _ = consolidate(backbone, LESSONS[:1], scoped, clips=8, **SAMPLING)
    assert equal(adapter, again)
    further, _ = consolidate(backbone, LESSONS[:1], scoped, clips=1, adapter=adapter, **SAMPLING)
    assert not equal(adapter, further)


def test_the_prompts_take_turns_each_with_noise_of_its_own(backbone, settings, monkeypatch) -> None:
    drawn, real = [], backbone.sample

    def sample(prompt, **how):
        drawn.append((prompt, how["generator"].initial_seed()))
        return real(prompt, **how)

    monkeypatch.setattr(backbone, "sample", sample)
    consolidate(backbone, LESSONS, settings, clips=3, seed=5, **SAMPLING)
    assert drawn == [(PROMPT, 5), (SAME, 6), (PROMPT, 7)]


def test_only_the_optimised_steps_are_sampled(backbone, settings) -> None:
    levels = []

    def look(module, args, call):
        levels.append(backbone.sigma_of(call["timestep"]))

    hook = backbone.transformer.register_forward_pre_hook(look, with_kwargs=True)
    try:
        consolidate(backbone, LESSONS, settings, clips=1, **SAMPLING)
    finally:
        hook.remove()
    assert levels and min(levels) >= settings.sigma_end - 1e-4


@pytest.mark.parametrize("how", ["to its end", "interrupted"])
def test_the_model_is_as_it_was(backbone, settings, how) -> None:
    before = {name: x.clone() for name, x in backbone.transformer.state_dict().items()}
    flags = [p.requires_grad for p in backbone.transformer.parameters()]

    def stop(done, total, loss):
        if how == "interrupted":
            raise KeyboardInterrupt

    try:
        consolidate(backbone, LESSONS, settings, clips=2, on_progress=stop, **SAMPLING)
    except KeyboardInterrupt:
        assert how == "interrupted"
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in backbone.transformer.modules())
    assert [p.requires_grad for p in backbone.transformer.parameters()] == flags
    assert all(torch.equal(x, before[name]) for name, x in backbone.transformer.state_dict().items())


def test_moments_that_are_handed_on_are_those_of_one_optimiser(backbone, settings, masks) -> None:
    """Two runs of one iteration with moments are AdamW's own two steps on the same gradients."""
    once = settings.model_copy(update={"iterations": 1})

    def turn(adapter=None, moments=None):
        tto = TTO(backbone, masks, PROMPT, once, steps=STEPS, adapter=adapter, moments=moments)
        return sampled(tto, backbone, last=0)

    first = turn()
    handed, fresh = (turn(first.adapter, moments) for moments in (first.moments, None))
    assert {int(state["step"]) for state in first.moments.values()} == {1}
    assert {int(state["step"]) for state in handed.moments.values()} == {2}
    assert not equal(handed.adapter, fresh.adapter)

    both = settings.model_copy(update={"iterations": 2, "stop_loss": None})
    twice = sampled(TTO(backbone, masks, PROMPT, both, steps=STEPS), backbone, last=0)
    for name, pair in twice.adapter.weights.items():
        for x, y in zip(pair, handed.adapter.weights[name], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-5, atol=1e-7)


def test_features_leave_the_maps_own_projections_alone(backbone) -> None:
    names = backbone.adapter_modules((1, 2), "features").keys()
    assert names and not any(".attn2." in name for name in names)
    assert {name for name in names if name.startswith("blocks.2.")} == {
        f"blocks.2.attn1.{part}" for part in ("to_q", "to_k", "to_v", "to_out.0")
    }


def test_mistakes_get_one_sentence(backbone, settings) -> None:
    with pytest.raises(TTOMError, match="nothing to consolidate"):
        consolidate(backbone, [], settings, **SAMPLING)
    alone = settings.model_copy(update={"iterations": 0, "latents": LatentSettings(step_size=0.01)})
    with pytest.raises(TTOMError, match="optimises an adapter"):
        consolidate(backbone, LESSONS, alone, **SAMPLING)
    with pytest.raises(TTOMError, match="at least 1 clip to learn from, not 0"):
        consolidate(backbone, LESSONS, settings, clips=0, **SAMPLING)


# In a memory --------------------------------------------------------------------------------------


@pytest.fixture
def filled(tmp_path, backbone, settings):
    """A memory of two prompts of one scene and one of another, all solved."""
    embedder = PipelineEmbedder(backbone.pipeline)
    grid = backbone.token_grid(**SIZE)
    with MemoryStore(tmp_path / "store") as store:
        for prompt in (PROMPT, SAME, "three red circles"):
            layout = plan(prompt)
            tto = TTO(backbone, soft_masks(layout, grid), prompt, settings, steps=STEPS)
            sampled(tto, backbone, prompt)
            insert(store, scene_of(prompt, layout, embedder), tto.adapter)
    return tmp_path / "store"


def test_one_adapter_takes_the_place_of_a_scenes_entries(filled) -> None:
    with MemoryStore(filled) as store:
        one, other, third = store.entries()
        with pytest.raises(TTOMError, match="one scene"):
            merge(store, [one, third], store.load(one))
        assert len(store) == 3
        made = merge(store, [one, other], store.load(other), note="both")
        assert (made.prompt, made.note, made.parents) == (PROMPT, "both", (one.id, other.id))
        assert {entry.id for entry in store.entries()} == {made.id, third.id}
        store.undo()
        assert {one.id, other.id} < {entry.id for entry in store.entries()}


def test_the_command_leaves_one_entry_a_scene(filled, backbone, settings, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cli, "loaded", lambda options: backbone)
    monkeypatch.setattr(cli, "_settings", lambda options: settings)
    size = ["--frames", "5", "--size", "16", "16", "--steps", str(STEPS)]
    assert cli.main(["consolidate", "--store", str(filled), "--clips", "8", *size]) == 0
    said = capsys.readouterr().out
    with MemoryStore(filled, read_only=True) as store:
        found = {entry.key.sentence: entry for entry in store.entries()}
        assert len(found) == len(store) == 3
        common = found.pop(ANY_SCENE.sentence)
        assert common.key == ANY_SCENE and {*common.parents} == {entry.id for entry in found.values()}
    assert f"what 2 scenes share: {common.id[:8]}" in said
    assert said.count("became") + said.count("kept as they were") == 2
    pair = found["<object A> moves to the right while <object B> stays still"]
    assert len(pair.parents) == 2 and pair.loss_last < pair.loss_first
    assert f"2 became {pair.id[:8]}" in said


def test_what_all_scenes_share_starts_every_optimisation(filled, backbone, settings) -> None:
    with MemoryStore(filled) as store:
        one, other, third = store.entries()
        (common,) = share(store, backbone.fingerprint)
        mean = fuse([store.load(entry) for entry in (one, other, third)], [0.5, 0.5, 1], rank=one.rank)
        for name, (a, b) in store.load(common).weights.items():
            torch.testing.assert_close(b @ a, mean.weights[name][1] @ mean.weights[name][0])

        def known(prompt, **more):
            scene = scene_of(prompt, plan(prompt), PipelineEmbedder(backbone.pipeline))
            return recall(store, scene, backbone.fingerprint, **more)

        new = known("a red circle bounces")
        assert not new.hits and equal(new.start(1), store.load(common))
        assert new.start(0) is None  # it is of use to an optimisation alone
        old = known(PROMPT)
        assert old.hits and equal(old.start(0), old.adapter) and equal(old.start(1), store.load(common))

        assert equal(known(PROMPT, modules=one_of(store)).start(1), store.load(common))
        elsewhere = known(PROMPT, modules=["another"])  # what sits on other modules is no start
        assert elsewhere.common is None and equal(elsewhere.start(1), old.adapter)

        # The entries that it did not start from are left alone.
        facts = {"settings": {"iterations": 1}, "lora_seed": 0, "loss_first": 0.5, "loss_last": 0.4}
        before = [*store.entries()]
        for on_hit in ("update", "replace"):
            assert learn(store, old, mean, on_hit, **facts) == "kept as it was"
        assert [entry.value for entry in store.entries()] == [entry.value for entry in before]
        assert learn(store, old, mean, "insert", **facts) == "inserted" and len(store) == len(before) + 1
        store.undo()

        store.delete([common.id])
        assert equal(known(PROMPT).start(1), old.adapter)

        store.insert(
            store.load(one), common.key, common.embedding, embedder=common.embedder, prompt="any scene"
        )
        store.delete([third.id])
        assert share(store, backbone.fingerprint) == []  # one scene shares nothing with another
        assert not any(entry.key == ANY_SCENE for entry in store.entries())


def one_of(store):
    return store.load(next(store.entries())).weights.keys()


def test_a_new_one_takes_its_place_and_its_pin_and_evicts_no_scene(filled, backbone) -> None:
    with MemoryStore(filled, max_entries=4) as store:
        kept = [entry.id for entry in store.entries()]
        (before,) = share(store, backbone.fingerprint)
        store.pin(before.id)
        (after,) = share(store, backbone.fingerprint)
        assert after.pinned and after.id != before.id
        assert [entry.id for entry in store.entries()] == [*kept, after.id]


def test_many_are_averaged_in_goes(filled, monkeypatch) -> None:
    with MemoryStore(filled) as store:
        one = next(store.entries())
        noise = torch.Generator().manual_seed(0)
        for _ in range(3):  # each with an A of its own
            pairs = {
                name: tuple(torch.randn(tensor.shape, generator=noise) / 10 for tensor in pair)
                for name, pair in store.load(one).weights.items()
            }
            random = replace(store.load(one), weights=pairs)
            store.insert(random, one.key, one.embedding, embedder=one.embedder, prompt=one.prompt)
        entries, weights = [*store.entries()][-3:], [1.0, 0.5, 2.0]
        at_once = scenes._average(store, entries, weights)
        monkeypatch.setattr(scenes, "AT_ONCE", 1)
        in_goes = scenes._average(store, entries, weights)
    for name, (a, b) in at_once.weights.items():
        torch.testing.assert_close(in_goes.weights[name][1] @ in_goes.weights[name][0], b @ a)


def test_a_read_only_memory_is_told_before_anything_is_learnt(filled, backbone, settings) -> None:
    with MemoryStore(filled, read_only=True) as store, pytest.raises(TTOMError, match="open read-only"):
        consolidate_scene(backbone, store, [*store.entries()][:2], settings, clips=10**9)


def test_a_memory_of_another_model_is_one_sentence(filled, backbone, monkeypatch, capsys) -> None:
    monkeypatch.setattr(cli, "loaded", lambda options: backbone)
    monkeypatch.setattr(backbone, "fingerprint", "another")
    assert cli.main(["consolidate", "--store", str(filled)]) == 2
    assert "Nothing there is of this model" in capsys.readouterr().err
