"""Adapters: exact, untouched by other seeds, and refused when they do not fit."""

import json

import pytest
import torch
from torch import nn

from ttom_core.adapter import Adapter, AdapterError, attach, init_adapter


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
