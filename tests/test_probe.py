"""The probe sees what the model does, changes nothing, and what it finds is kept by model."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tiny_cogvideox
import torch
from conftest import PHRASES, PROMPT, SIZE, STEPS
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from ttom_core.backbones.cogvideox import CogVideoXBackbone
from ttom_core.backbones.wan import WanBackbone
from ttom_core.errors import TTOMError
from ttom_core.generate import generate
from ttom_core.probe import (
    AttentionProbe,
    ProbeSettings,
    Relevance,
    RelevanceError,
    chosen_layers,
    probe_clip,
    probe_prompts,
    recommend,
    recommended_layers,
    relevance_file,
    soft_iou,
)

SETTINGS = ProbeSettings(sigma_start=0.8, steps=STEPS, guidance_scale=3.0, **SIZE)


class Corner:
    """Every object fills the top left quarter of every frame but the last."""

    name = "corner"

    def locate(self, frames: np.ndarray, phrases) -> np.ndarray:
        count, height, width, _ = frames.shape
        masks = np.zeros((len(phrases), count, height, width), bool)
        masks[:, :-1, : height // 2, : width // 2] = True
        return masks


class Nowhere:
    name = "nowhere"

    def locate(self, frames: np.ndarray, phrases) -> np.ndarray:
        return np.zeros((len(phrases), *frames.shape[:3]), bool)


def relevance(**changes) -> Relevance:
    values = {
        "fingerprint": "wan-3x8-abc",
        "layers": (0.1, 0.4, 0.2),
        "heads": ((0.1, 0.2), (0.3, 0.5), (0.2, 0.2)),
        "n": 4,
        "grounding": "corner",
        "settings": SETTINGS,
    }
    return Relevance(**(values | changes))


def hooks_of(model: torch.nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


# ---- soft IoU ------------------------------------------------------------------------------------


def test_soft_iou_by_hand() -> None:
    # Normalised, the map is [0, 1, 0.5, 0]: A·M sums to 1.25, A + M to 1.5 + 1.5.
    maps = torch.tensor([[[2.0, 6.0], [4.0, 2.0]]])
    masks = torch.tensor([[[0.0, 1.0], [0.5, 0.0]]])
    assert soft_iou(maps, masks).item() == pytest.approx(1.25 / (3.0 - 1.25))
    hard = torch.tensor([[[0.0, 1.0], [0.0, 0.0]]])
    assert soft_iou(hard * 7 + 3, hard).item() == 1.0
    assert soft_iou(1 - hard, hard).item() == 0.0


def test_without_contrast_or_object_nothing_is_scored() -> None:
    assert soft_iou(torch.full((2, 3, 3), 0.2), torch.ones(2, 3, 3)).tolist() == [0.0, 0.0]
    assert soft_iou(torch.rand(2, 3, 3), torch.zeros(2, 3, 3)).tolist() == [0.0, 0.0]


SHARES = npst.arrays(np.float32, (2, 3, 4), elements=st.floats(0, 1, width=32))


@given(SHARES, SHARES, st.floats(0.5, 8), st.floats(-2, 2))
def test_soft_iou_is_a_share_and_blind_to_scale(maps, masks, scale, shift) -> None:
    maps, masks = torch.from_numpy(maps).double(), torch.from_numpy(masks).double()
    iou = soft_iou(maps, masks)
    assert ((iou >= 0) & (iou <= 1)).all()
    contrast = (maps.amax((-2, -1)) - maps.amin((-2, -1))) > 1e-3
    again = soft_iou(maps * scale + shift, masks)
    torch.testing.assert_close(again[contrast], iou[contrast], rtol=1e-6, atol=1e-6)


# ---- the tapped run ------------------------------------------------------------------------------


def test_a_probed_clip_is_the_plain_clip_to_the_bit(backbone: WanBackbone) -> None:
    plain = generate(backbone, PROMPT, steps=STEPS, guidance_scale=3.0, **SIZE)
    probed = probe_clip(backbone, PROMPT, PHRASES, Corner(), SETTINGS)
    np.testing.assert_array_equal(probed.frames, plain.frames)
    assert hooks_of(backbone.transformer) == 0
    assert probed.maps.shape == (4, 2, 2, 2, 2) and probed.masks.shape == (2, 2, 2, 2)
    assert len(probed.relevance.layers) == 4 and len(probed.relevance.heads[0]) == 2
    assert probed.relevance.n == 2


def test_a_host_that_guides_in_one_batch_is_probed_at_its_conditional_row() -> None:
    backbone = CogVideoXBackbone(tiny_cogvideox.build())
    settings = SETTINGS.model_copy(update=tiny_cogvideox.SIZE | {"sigma_start": 0.9})
    clip = settings.model_dump(exclude={"sigma_start", "sigma_end"})
    plain = generate(backbone, PROMPT, **clip)
    probed = probe_clip(backbone, PROMPT, PHRASES, Corner(), settings)
    np.testing.assert_array_equal(probed.frames, plain.frames)
    assert probed.maps.shape == (backbone.num_layers, 2, *tiny_cogvideox.GRID)
    assert np.array(probed.relevance.heads).shape == (backbone.num_layers, tiny_cogvideox.HEADS)
    assert hooks_of(backbone.transformer) == 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_the_hosts_own_call_is_the_same_and_its_maps_are_those_seen(backbone: WanBackbone, mode) -> None:
    call = {
        "hidden_states": torch.randn(1, 16, 2, 4, 4, generator=torch.Generator().manual_seed(3)),
        "timestep": torch.tensor([700.0]),
        "encoder_hidden_states": backbone.encode(PROMPT),
    }
    other = call | {"encoder_hidden_states": backbone.encode("something else")}
    with mode():
        plain = backbone.transformer(**call, return_dict=False)[0]
        with AttentionProbe(backbone, PROMPT, PHRASES, SETTINGS) as probe:
            tapped = backbone.transformer(**call, return_dict=False)[0]
            backbone.transformer(**other, return_dict=False)
            backbone.transformer(**(call | {"timestep": torch.tensor([950.0])}), return_dict=False)
        tokens = list(backbone.phrase_tokens(PROMPT, PHRASES).values())
        maps = backbone.maps(call, [0], tokens, range(4), keep_heads=True)
    torch.testing.assert_close(tapped, plain, rtol=0, atol=0)
    for layer, seen in enumerate(probe.maps):
        torch.testing.assert_close(seen, maps[layer])


def test_the_hook_is_gone_after_an_error(backbone: WanBackbone) -> None:
    def stop(progress) -> None:
        raise KeyboardInterrupt

    class Broken(Corner):
        def locate(self, frames, phrases):
            raise TTOMError("no detector")

    with pytest.raises(KeyboardInterrupt):
        probe_clip(backbone, PROMPT, PHRASES, Corner(), SETTINGS, on_progress=stop)
    with pytest.raises(TTOMError, match="no detector"):
        probe_clip(backbone, PROMPT, PHRASES, Broken(), SETTINGS)
    with pytest.raises(RuntimeError), AttentionProbe(backbone, PROMPT, PHRASES, SETTINGS):
        raise RuntimeError
    assert hooks_of(backbone.transformer) == 0


def follow_the_corner(backbone: WanBackbone, layer: int) -> list:
    """Bend a layer so that the tokens of the top left quarter attend to the phrases, the others to all."""
    attention = backbone.transformer.blocks[layer].attn2
    positions = [i for found in backbone.phrase_tokens(PROMPT, PHRASES).values() for i in found]

    def query(module, inputs, output):  # [B, τ·h·w, heads·d], the grid being 2×2×2
        bent = torch.zeros_like(output)
        bent[:, [0, 4]] = 50.0
        return bent

    def key(module, inputs, output):
        bent = torch.zeros_like(output)
        bent[:, positions] = 50.0
        return bent

    return [attention.norm_q.register_forward_hook(query), attention.norm_k.register_forward_hook(key)]


def test_a_layer_that_follows_the_objects_scores_one(backbone: WanBackbone) -> None:
    bent = follow_the_corner(backbone, 2)
    try:
        found = probe_clip(backbone, PROMPT, PHRASES, Corner(), SETTINGS).relevance
    finally:
        for handle in bent:
            handle.remove()
    assert found.layers[2] == pytest.approx(1.0, abs=1e-5)
    assert found.heads[2] == pytest.approx((1.0, 1.0), abs=1e-5)
    assert max(found.layers[i] for i in (0, 1, 3)) < 0.9
    assert recommend(found, 1) == (2,)


def test_what_is_not_found_is_not_counted(backbone: WanBackbone) -> None:
    found = probe_clip(backbone, PROMPT, PHRASES, Nowhere(), SETTINGS).relevance
    assert found.n == 0 and set(found.layers) == {0.0}
    with pytest.raises(RelevanceError, match="none of the objects"):
        recommend(found)


@pytest.mark.parametrize(
    ("phrases", "settings", "words"),
    [
        (("green dog",), SETTINGS, "green dog"),
        ((), SETTINGS, "at least one object"),
        (
            PHRASES,
            SETTINGS.model_copy(update={"sigma_start": 0.003, "sigma_end": 0.002}),
            "use more steps or a wider range",
        ),
    ],
)
def test_a_probe_that_could_see_nothing_is_refused_first(backbone, phrases, settings, words) -> None:
    with pytest.raises(TTOMError, match=words):
        probe_clip(backbone, PROMPT, phrases, Corner(), settings)


def test_a_host_with_another_prompt_is_told_so(backbone: WanBackbone) -> None:
    with AttentionProbe(backbone, PROMPT, PHRASES, SETTINGS) as probe:
        pass
    with pytest.raises(TTOMError, match="was not called with the prompt"):
        _ = probe.maps


def test_prompts_are_probed_once(backbone: WanBackbone, tmp_path) -> None:
    prompts = [(PROMPT, PHRASES), ("a red circle", ("red circle",))]
    made: list[int] = []

    def run(**changes) -> list[Relevance]:
        return list(
            probe_prompts(
                backbone, prompts, Corner(), SETTINGS, tmp_path,
                on_clip=lambda index, clip: made.append(index), **changes,
            )
        )  # fmt: skip

    first = run()
    assert [part.n for part in first] == [2, 1]
    (damaged, _) = sorted(tmp_path.iterdir())
    assert run() == first and made == [0, 1]
    run(seed=5)
    assert made == [0, 1, 0, 1]
    damaged.write_text("{")
    with pytest.raises(RelevanceError, match=damaged.name):
        run()


# ---- what is kept --------------------------------------------------------------------------------


def test_pooling_weighs_every_object_alike() -> None:
    parts = [relevance(n=3), relevance(n=1, layers=(0.5, 0.0, 0.2)), relevance(n=0, layers=(0.0, 0.0, 0.0))]
    pooled = Relevance.pooled(parts)
    assert pooled.layers == pytest.approx((0.2, 0.3, 0.2)) and pooled.n == 4
    assert Relevance.pooled([parts[2]]).n == 0
    for mixed in (
        [],
        [relevance(), relevance(fingerprint="another")],
        [relevance(), relevance(grounding="")],
    ):
        with pytest.raises(RelevanceError):
            Relevance.pooled(mixed)


def test_json_round_trip(tmp_path) -> None:
    value = relevance(layers=(1 / 3, 0.1 + 0.2, 1.0))
    assert Relevance.from_json(value.to_json()) == value
    value.save(tmp_path / "deep" / "r.json")
    assert Relevance.load(tmp_path / "deep" / "r.json") == value
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["r.json"]


@pytest.mark.parametrize(
    "text",
    [
        "", "[]", "{}", "nul", "[" * 100_000, "\x00", b"\xff\xfe",
        *[
            json.dumps(relevance().model_dump(mode="json") | change)
            for change in (
                {"version": 2}, {"layers": []}, {"layers": [0.1]}, {"layers": [0.1, 2.0, 0.1]},
                {"layers": [0.1, None, 0.1]}, {"heads": [[0.1], [0.1, 0.2], [0.1]]}, {"n": -1}, {"n": 1e99},
                {"heads": "abc"}, {"fingerprint": ""}, {"settings": {"steps": 0}}, {"more": 1},
            )
        ],
        relevance().to_json().replace("0.4", "NaN"),
        " " * 5_000_000,
    ],
    ids=lambda text: repr(text[:20]),
)  # fmt: skip
def test_a_hostile_file_is_one_sentence(text, tmp_path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(RelevanceError) as caught:
        Relevance.load(path)
    assert "r.json" in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_recommended_are_the_best_layers_in_their_order() -> None:
    assert recommend(relevance()) == (1, 2)
    assert recommend(relevance(), 1) == (1,)
    assert recommend(relevance(), 9) == (0, 1, 2)
    assert recommend(relevance(layers=(0.5, 0.5, 0.5)), 2) == (0, 1)
    with pytest.raises(TTOMError, match="not 0"):
        recommend(relevance(), 0)


def test_recommendations_are_kept_by_model(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert recommended_layers("wan-3x8-abc") is None
    with pytest.raises(TTOMError, match="was never probed"):
        chosen_layers("probed", "wan-3x8-abc")
    relevance().save(relevance_file("wan-3x8-abc"))
    relevance(layers=(0.9, 0.1, 0.8)).save(relevance_file("another"))
    assert chosen_layers("probed", "wan-3x8-abc") == (1, 2)
    with pytest.raises(RelevanceError, match="is of the model wan-3x8-abc"):
        recommended_layers("another")
    relevance_file("another").write_text("{}")
    with pytest.raises(RelevanceError, match=r"another\.json"):
        recommended_layers("another")


@pytest.mark.parametrize("fingerprint", ["../../outside", "a/b", "..", "C:\\x", "x" * 500])
def test_no_fingerprint_leads_out_of_the_folder(fingerprint, tmp_path) -> None:
    assert relevance_file(fingerprint, tmp_path).resolve().parent == tmp_path.resolve()
    relevance(fingerprint=fingerprint).save(relevance_file(fingerprint, tmp_path))
    assert recommended_layers(fingerprint, folder=tmp_path) == (1, 2)


@pytest.mark.parametrize("choice", ["", "two", "1;2", "-1", "1,,2", "1.5", "9" * 50, "٣"])
def test_what_names_no_layers_is_refused(choice) -> None:
    with pytest.raises(TTOMError, match="names no layers"):
        chosen_layers(choice, "any")
