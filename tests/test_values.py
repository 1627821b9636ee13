"""Layouts, masks, objectives and adapters: what they promise, and what they refuse."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ttom_core.adapter import Adapter, AdapterError, attach, init_adapter
from ttom_core.errors import TTOMError
from ttom_core.layout import Box, Keyframe, Layout, LayoutError, TrackedObject, frame_times
from ttom_core.masks import MASK_KINDS, soft_masks
from ttom_core.objectives import OBJECTIVES, alignment_loss, jsd, normalize


def track(*boxes, **more):
    times = np.linspace(0, 1, len(boxes)) if len(boxes) > 1 else [0.5]
    keys = tuple(
        Keyframe(time=float(t), box=Box(x=b[0], y=b[1], w=b[2], h=b[3]))
        for t, b in zip(times, boxes, strict=True)
    )
    return TrackedObject(**({"id": "a", "name": "ball", "phrase": "ball"} | more), keyframes=keys)


# Layout -------------------------------------------------------------------------------------------

shares = st.floats(0.01, 0.49)


@given(st.lists(st.tuples(shares, shares, shares, shares), min_size=1, max_size=6))
def test_layouts_round_trip_through_json(boxes):
    layout = Layout(prompt="a ball", objects=(track(*boxes),), unresolved=("what?",))
    assert Layout.from_json(layout.to_json()) == layout


def test_boxes_move_linearly_and_leave():
    item = track((0.0, 0.2, 0.2, 0.2), (0.8, 0.2, 0.2, 0.2), enter=0.25, leave=0.75)
    boxes = Layout(objects=(item,)).boxes(frame_times(5))
    assert np.isnan(boxes[0, [0, 4]]).all()
    assert np.allclose(boxes[0, 1:4, 0], [0.2, 0.4, 0.6])


def test_one_keyframe_is_a_box_that_rests():
    boxes = Layout(objects=(track((0.1, 0.2, 0.3, 0.4)),)).boxes(frame_times(6))
    assert np.allclose(boxes[0], [0.1, 0.2, 0.3, 0.4])


def spoiled(**changes):
    good = json.loads(Layout(prompt="a ball", objects=(track((0.1, 0.1, 0.2, 0.2)),)).to_json())
    box = good["objects"][0]["keyframes"][0]["box"]
    for name, value in changes.items():
        if name in box:
            box[name] = value
        elif name in good["objects"][0]:
            good["objects"][0][name] = value
        elif name == "twice":
            good["objects"] *= 2
        else:
            good[name] = value
    return json.dumps(good)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (spoiled(version=7), "version 7; this TTOM reads version 1"),
        (spoiled(x=0.9), "outside the canvas"),
        (spoiled(x=-0.5), "outside the canvas"),
        (spoiled(w=-0.1), "inverted"),
        (spoiled(w=0), "zero area"),
        (spoiled(keyframes=[]), "at least one keyframe"),
        (spoiled(enter=0.9, leave=0.1), "leave later than it enters"),
        (spoiled(twice=True), "Two objects have the id 'a'"),
        (spoiled(phrase=""), "phrase"),
        (spoiled(surprise=1), "surprise"),
        ('{"objects": 3}', "objects"),
        ("not json", "not valid JSON"),
        ("[" * 10_000, "JSON"),
        ('{"x": "' + "y" * 1_000_001 + '"}', "at most 1000000"),
        (spoiled(x=float("nan")), "objects"),
    ],
)
def test_bad_layouts_get_one_sentence(text, words):
    with pytest.raises(LayoutError, match=words) as error:
        Layout.from_json(text)
    assert "\n" not in str(error.value)


def test_layout_files(tmp_path):
    layout = Layout(prompt="a ball", objects=(track((0.1, 0.1, 0.2, 0.2)),))
    layout.save(tmp_path / "deep" / "layout.json")
    assert Layout.load(tmp_path / "deep" / "layout.json") == layout
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["layout.json"]
    with pytest.raises(LayoutError, match="cannot be read"):
        Layout.load(tmp_path / "none.json")


# Soft masks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MASK_KINDS)
def test_masks_peak_in_their_box(kind):
    item = track((0.5, 0.0, 0.25, 0.5))
    masks = soft_masks(Layout(objects=(item,)), (3, 8, 8), kind)
    assert masks.values.shape == (1, 3, 8, 8) and masks.values.min() >= 0
    assert 0 < masks.values.max() <= 1 + 1e-6
    rows, columns = np.unravel_index(masks.values[0, 1].argmax(), (8, 8))
    assert rows < 4 and columns in (4, 5)


def test_a_hard_box_covers_its_area():
    masks = soft_masks(Layout(objects=(track((0.1, 0.2, 0.3, 0.4)),)), (1, 10, 7), "hard_box")
    assert masks.values.mean() == pytest.approx(0.12)


def test_objects_of_one_phrase_share_a_mask_and_absent_frames_are_empty():
    left, right = track((0, 0, 0.2, 0.2)), track((0.7, 0.7, 0.2, 0.2), id="b", enter=0.6)
    masks = soft_masks(Layout(objects=(left, right)), (6, 4, 4))
    assert masks.phrases == ("ball",)
    assert masks.values[0, 0, 3, 3] < 1e-3 < masks.values[0, 5, 3, 3]
    late = soft_masks(Layout(objects=(right,)), (6, 4, 4)).values
    assert late[0, 0].sum() == 0 < late[0, 5].sum()


def test_masks_refuse_nonsense():
    layout = Layout(objects=(track((0, 0, 0.2, 0.2)),))
    with pytest.raises(TTOMError, match="no mask kind 'star'"):
        soft_masks(layout, (1, 4, 4), "star")
    with pytest.raises(TTOMError, match="above 0, not -1"):
        soft_masks(layout, (1, 4, 4), softness=-1)
    with pytest.raises(TTOMError, match="no objects"):
        soft_masks(Layout(objects=()), (1, 4, 4))
    blink = track((0, 0, 0.2, 0.2), enter=0.41, leave=0.42)
    with pytest.raises(TTOMError, match="none of the 3 latent frames"):
        soft_masks(Layout(objects=(blink,)), (3, 4, 4))


# Objectives ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("over", ["frame", "volume"])
def test_jsd_is_zero_at_the_goal_bounded_and_blind_to_scale(over):
    generator = torch.Generator().manual_seed(0)
    maps, masks = torch.rand(2, 2, 3, 4, 4, generator=generator, dtype=torch.float64)
    assert jsd(masks * 7, masks, over) < 1e-12
    assert jsd(maps, masks, over) == pytest.approx(float(jsd(masks, maps, over)))
    apart = torch.zeros_like(maps)
    apart[..., :2] = 1
    assert jsd(apart, 1 - apart, over) == pytest.approx(math.log(2))


def test_jsd_agrees_with_scipy():
    from scipy.spatial.distance import jensenshannon

    generator = torch.Generator().manual_seed(1)
    maps, masks = torch.rand(2, 1, 1, 5, 5, generator=generator, dtype=torch.float64)
    expected = jensenshannon(maps.flatten().numpy(), masks.flatten().numpy()) ** 2
    assert float(jsd(maps, masks)) == pytest.approx(expected)


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("over", ["frame", "volume"])
def test_descending_an_objective_moves_attention_to_the_mask(name, over):
    masks = torch.zeros(1, 2, 6, 6)
    masks[..., 1:3, 1:3] = 1
    logits = torch.zeros(1, 2, 6, 6)
    logits[..., 4, 4] = 0.5
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], 0.1)
    before = after = 0.0
    for _ in range(60):
        maps = logits.flatten(2).softmax(-1).view_as(logits)
        after = float(normalize(maps, "frame")[0].view(2, 6, 6)[:, 1:3, 1:3].sum()) / 2
        before = before or after
        loss = alignment_loss({0: maps}, masks, name, over)
        (logits.grad,) = torch.autograd.grad(loss, logits)
        optimizer.step()
    assert after > 1.2 * before, (before, after)


def test_frames_without_the_object_say_nothing():
    masks = torch.rand(1, 4, 3, 3)
    masks[:, 2:] = 0
    maps = torch.rand(1, 4, 3, 3)
    changed = maps.clone()
    changed[:, 2:] = torch.rand(1, 2, 3, 3)
    for name in OBJECTIVES:
        a, b = (alignment_loss({0: m}, masks, name, "frame") for m in (maps, changed))
        assert torch.isfinite(a) and a == pytest.approx(float(b))


# Adapters -----------------------------------------------------------------------------------------


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5), nn.Linear(5, 4)

    def forward(self, x):
        return self.second(self.first(x).relu())


@pytest.fixture
def toy():
    torch.manual_seed(0)
    return Toy()


def adapter_of(toy, rank=3, alpha=6.0):
    return init_adapter({"first": toy.first, "second": toy.second}, rank, alpha, 0, "toy")


def test_a_fresh_adapter_changes_not_one_bit(toy):
    x = torch.randn(2, 6)
    plain = toy(x)
    with attach(toy, adapter_of(toy)):
        assert torch.equal(toy(x), plain)


def test_an_adapter_is_its_weight_update(toy):
    adapter = adapter_of(toy)
    for _, b in adapter.weights.values():
        b.normal_()
    x = torch.randn(2, 6)
    plain = toy(x)
    merged = Toy()
    merged.load_state_dict(toy.state_dict())
    for name, (a, b) in adapter.weights.items():
        getattr(merged, name).weight.data += adapter.scaling * b @ a
    with attach(toy, adapter) as attached:
        torch.testing.assert_close(toy(x), merged(x))
        attached.scale = 0
        assert torch.equal(toy(x), plain)
    assert torch.equal(toy(x), plain) and not toy.first._forward_hooks


def test_initialisation_has_its_own_seed(toy):
    state = torch.get_rng_state()
    first, second = adapter_of(toy), adapter_of(toy)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first.weights["first"][0], second.weights["first"][0])


def test_adapters_round_trip_through_safetensors(toy, tmp_path):
    adapter = adapter_of(toy)
    adapter.save(tmp_path / "a.safetensors")
    again = Adapter.load(tmp_path / "a.safetensors")
    assert (again.rank, again.alpha, again.fingerprint) == (3, 6.0, "toy")
    for name, (a, b) in adapter.weights.items():
        assert torch.equal(again.weights[name][0], a) and torch.equal(again.weights[name][1], b)


def test_hostile_adapter_files(toy, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "x.safetensors"
    for content in (b"", b"\x80\x04pickle", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(AdapterError, match="not an adapter saved by TTOM"):
            Adapter.load(path)
    facts = {"version": 1, "rank": 3, "alpha": 3, "fingerprint": "toy"}
    a = torch.zeros(3, 6)
    for tensors, words in (
        ({"transformer.first.lora_A.weight": a}, "no fitting lora_A and lora_B"),
        ({"other": a}, "no part of an adapter"),
    ):
        save_file(tensors, path, metadata={"ttom": json.dumps(facts)})
        with pytest.raises(AdapterError, match=words):
            Adapter.load(path)
    save_file({}, path, metadata={"ttom": json.dumps(facts | {"version": 9})})
    with pytest.raises(AdapterError, match="version 9"):
        Adapter.load(path)


def test_adapters_that_do_not_fit(toy):
    adapter = adapter_of(toy)
    with pytest.raises(AdapterError, match="does not have"), attach(toy.first, adapter):
        pass
    wide = init_adapter({"first": nn.Linear(9, 5)}, 3, 3, 0, "toy")
    with pytest.raises(AdapterError, match="5×9, the model's is 5×6"), attach(toy, wide):
        pass
    assert not toy.first._forward_hooks
    toy.second.to("meta")  # as sequential offloading leaves a layer between its calls
    told = pytest.raises(AdapterError, match=r"sequential offloading.* enable_model_cpu_offload")
    with told, attach(toy, adapter):
        pass
    assert not toy.first._forward_hooks
