"""Two devices that share a video find what one device finds: maps, gradients, adapter and frames."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_cogvideox
import torch
import two_devices
from diffusers import ContextParallelConfig
from diffusers.models._modeling_parallel import ContextParallelInput, ParallelConfig, TensorParallelConfig
from safetensors import safe_open

from ttom_core.backbones.cogvideox import CogVideoXBackbone
from ttom_core.backbones.parallel import context_parallel
from ttom_core.errors import TTOMError

WORKER = Path(two_devices.__file__)


# ---- two processes ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def devices(tmp_path_factory):
    """What each of two processes found, and said."""
    folder = tmp_path_factory.mktemp("devices")
    root = WORKER.parent.parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(root), str(WORKER.parent)])}
    runs = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(folder)],
            env=environment, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for run in runs:
            said, _ = run.communicate(timeout=300)
            assert run.returncode == 0, said
    finally:
        for run in runs:
            run.kill()
    results = []
    for rank in range(2):
        with safe_open(folder / f"{rank}.safetensors", "pt") as file:
            found = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            results.append((found, json.loads(file.metadata()["said"])))
    return results


@pytest.fixture(scope="module")
def alone():
    return two_devices.measure(two_devices.build())


def differ(found, wanted):
    """The largest difference, relative to the largest value."""
    return ((found - wanted).abs().max() / wanted.abs().max()).item()


@pytest.mark.slow
def test_two_devices_find_what_one_finds(devices, alone):
    # AdamW's first steps have the size of the learning rate however small the gradient is, rounding included.
    most = {"loss": 1e-5, "gradient": 1e-5, "losses": 1e-5, "adapter": 1e-3, "frames": 1 / 254}
    for found, _ in devices:
        for name, wanted in alone.items():
            kind = name.split(",")[0].split()[0]
            if kind != "own":
                assert found[name].shape == wanted.shape, name
                assert differ(found[name], wanted) < most[kind], name


@pytest.mark.slow
def test_every_device_holds_the_same(devices):
    (first, _), (second, _) = devices
    assert first.keys() == second.keys()
    for name in first:
        assert name.startswith("own") or torch.equal(first[name], second[name]), name


@pytest.mark.slow
def test_a_device_alone_would_learn_something_else(devices, alone):
    """The tests above would see it, if the devices' parts were not summed."""
    for name, wanted in alone.items():
        if name.startswith("own"):
            assert all(differ(found[name], wanted) > 0.1 for found, _ in devices), name


@pytest.mark.slow
def test_all_stop_at_the_same_iteration(devices, alone):
    assert len(alone["losses, stopped"]) < len(alone["losses, adapter"])
    assert all(len(found["losses, stopped"]) == len(alone["losses, stopped"]) for found, _ in devices)


@pytest.mark.slow
def test_afterwards_each_has_its_own_model_again(devices):
    """An interruption in mid-optimisation and refusals lie between these two videos."""
    for found, _ in devices:
        assert torch.equal(found["before"], found["after"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("twice", "already"),
        ("tokens", "1 video tokens cannot be divided among 2 devices"),
        ("seeds", "different latents"),
        ("layouts", "different layouts"),
        ("adapters", "different adapters"),
        ("_native_math", "set_attention_backend"),
        ("_native_flash", "set_attention_backend"),
    ],
)
def test_what_two_devices_cannot_do_is_one_sentence(devices, what, words):
    for _, said in devices:
        assert words in said[what]
        one_sentence(said[what])


# ---- refused before anything is exchanged ----------------------------------------------------------


def one_sentence(text):
    assert "\n" not in text and text.endswith(".") and text.count(". ") == 0


def refused(action, words):
    with pytest.raises(TTOMError, match=words) as error:
        action()
    one_sentence(str(error.value))


def enter(backbone):
    with context_parallel(backbone):
        pass


def processes(monkeypatch, count):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: count)


def test_without_processes_there_is_nothing_to_share(backbone):
    refused(lambda: enter(backbone), "torchrun")


def test_one_process_is_left_as_it_is(backbone, monkeypatch):
    processes(monkeypatch, 1)
    with context_parallel(backbone):
        assert backbone.transformer._parallel_config is None


def test_heads_must_divide(backbone, monkeypatch):
    processes(monkeypatch, 3)
    refused(lambda: enter(backbone), "2 attention heads cannot be divided among 3 devices; use 2")


def test_cogvideox_has_no_plan(monkeypatch):
    processes(monkeypatch, 2)
    refused(lambda: enter(CogVideoXBackbone(tiny_cogvideox.build())), "CogVideoXTransformer3DModel")


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"context_parallel_config": ContextParallelConfig(ring_degree=2)}, "ring attention"),
        (
            {"context_parallel_config": ContextParallelConfig(ulysses_degree=2, ulysses_anything=True)},
            "ulysses_anything",
        ),
        ({"tensor_parallel_config": TensorParallelConfig(tp_degree=2)}, "tensor parallelism"),
    ],
)
def test_sharing_without_exact_gradients_is_refused(backbone, monkeypatch, config, words):
    monkeypatch.setattr(backbone.transformer, "_parallel_config", ParallelConfig(**config))
    refused(backbone.check_trainable, words)


def test_a_plan_that_divides_the_text_is_refused(backbone, monkeypatch):
    """As older releases of diffusers have it: a map would be a share of some of the words."""
    text = {"encoder_hidden_states": ContextParallelInput(split_dim=1)}
    config = ParallelConfig(context_parallel_config=ContextParallelConfig(ulysses_degree=2))
    monkeypatch.setattr(backbone.transformer, "_parallel_config", config)
    monkeypatch.setattr(backbone.transformer, "_cp_plan", {"blocks.*": text})
    refused(backbone.check_trainable, "upgrade diffusers")
