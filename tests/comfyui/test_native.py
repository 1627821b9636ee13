"""TTOM on ComfyUI's own MODEL: the demo's transformer through the stock loader and samplers."""

from __future__ import annotations

import ast
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ttom_core.backbones.names import convert

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
PROMPT = "a red circle moves to the right while a blue square stays still"
FILE = "ttom_demo.safetensors"  # the demo's transformer, among ComfyUI's models
STEPS = 8

Graph = dict[str, Any]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def sampler(model: str = "shift", **changes: Any) -> dict[str, Any]:
    inputs = {
        "model": [model, 0], "positive": ["pos", 0], "negative": ["neg", 0], "latent_image": ["latent", 0],
        "preset": "demo", "seed": 7, "steps": STEPS, "cfg": 4.0, "sampler_name": "euler",
        "scheduler": "simple", "denoise": 1.0,
    }  # fmt: skip
    return node("TTOM_LoRASampler", **(inputs | changes))


def ksampler(model: str = "shift", **changes: Any) -> dict[str, Any]:
    inputs = sampler(model)["inputs"]
    inputs.pop("preset")
    return node("KSampler", **(inputs | changes))


def loaded(**more: Any) -> Graph:
    """Stock nodes around the demo: no TTOM but its text encoder and VAE."""
    return {
        "load": node("TTOM_LoadModel", model="demo"),
        "parts": node("TTOM_PipelineParts", backbone=["load", 0]),
        "unet": node("UNETLoader", unet_name=FILE, weight_dtype="default"),
        "shift": node("ModelSamplingSD3", model=["unet", 0], shift=4.0),
        "pos": node("TTOM_EncodePrompt", clip=["parts", 0], prompt=PROMPT),
        "neg": node("CLIPTextEncode", clip=["parts", 0], text=""),
        # The stock VAE's latents are 8 times smaller than the clip, the demo's 4 times.
        "latent": node("EmptyHunyuanLatentVideo", width=128, height=128, length=21, batch_size=1),
        "plan": node("TTOM_LayoutPlanner", prompt=PROMPT, seed=0),
        "soften": node(
            "TTOM_SoftMask", layout=["plan", 0], kind="gaussian", softness=0.25, num_frames=21, width=64,
            height=64, phrase="",
        ),
    } | more  # fmt: skip


def shown(name: str, sampled: dict[str, Any]) -> Graph:
    """A sampler, and its video as pictures."""
    return {
        name: sampled,
        f"{name} video": node("VAEDecode", samples=[name, 0], vae=["parts", 1]),
        f"{name} saved": node("SaveImage", images=[f"{name} video", 0], filename_prefix=name),
    }


def composed(**changes: Any) -> Graph:
    return shown("tto", sampler(masks=["soften", 0], **changes)) | {
        "loss": node("PreviewAny", source=["tto", 2]),
        "lora": node("SaveLoRANode", lora=["tto", 1], prefix="loras/native"),
    }


def frames(comfyui: Any, run: Any, name: str) -> np.ndarray:
    """Of a node in `shown`: uint8 [F, H, W, 3]."""
    assert run.end == "success", run.error
    files = run.outputs[f"{name} saved"]["images"]
    return np.stack([np.asarray(Image.open(io.BytesIO(comfyui.view(f))).convert("RGB")) for f in files])


def losses(run: Any) -> list[float]:
    return ast.literal_eval(run.outputs["loss"]["text"][0])["loss"]


def on_diffusers(preset: str | None) -> Any:
    """The same video on the diffusers road: its noise and, by the scheduler "normal", its noise levels."""
    from ttom_core.backbones import load
    from ttom_core.generate import generate
    from ttom_core.optimize import PRESETS
    from ttom_core.planner import propose

    layout = propose(PROMPT, 0).layout if preset else None
    backbone = load(ROOT / "demo" / "model", "cpu")
    return generate(backbone, PROMPT, layout, PRESETS[preset] if preset else None, seed=7, steps=STEPS)


def test_both_roads_make_the_same_videos_and_the_model_is_left_as_it_was(comfyui: Any) -> None:
    """Base, TTOM and base again in one server: the first and the last are bit for bit the same."""
    base = comfyui.run(loaded(**shown("base", ksampler(scheduler="normal"))))
    before = frames(comfyui, base, "base")
    assert before.shape == (21, 64, 64, 3)
    # ComfyUI cuts off what our own pictures round.
    assert np.abs(before.astype(float) - on_diffusers(None).frames).mean() < 1

    whole = comfyui.run(loaded(**composed(scheduler="normal")))
    after = frames(comfyui, whole, "tto")
    assert (after != before).any()
    assert "unet" in whole.cached
    theirs = on_diffusers("demo")
    assert np.abs(after.astype(float) - theirs.frames).mean() < 1
    ours = losses(whole)
    assert ours == pytest.approx([row.loss for row in theirs.trace.rows], abs=1e-3)
    assert min(ours) < ours[0]

    again = comfyui.run(loaded(**shown("base", ksampler(scheduler="normal", denoise=0.99999))))
    assert "unet" in again.cached
    assert "base" not in again.cached
    np.testing.assert_array_equal(frames(comfyui, again, "base"), before)
    bar = [(value, total) for name, value, total in whole.progress if name == "tto"]
    assert bar[-1][0] == bar[-1][1] > STEPS
    assert len({total for _, total in bar}) == 1
    assert any(text.startswith("optimising needs") and "MiB" in text for text in whole.texts)


def test_a_cancel_leaves_the_model_as_it_was(comfyui: Any) -> None:
    before = frames(comfyui, comfyui.run(loaded(**shown("base", ksampler(seed=8)))), "base")
    cut = comfyui.run(loaded(**shown("tto", sampler(masks=["soften", 0], seed=8))), interrupt_at=2)
    assert cut.end == "interrupted"
    assert "optimising" in cut.texts[-1]
    again = comfyui.run(loaded(**shown("base", ksampler(seed=8, denoise=0.99999))))
    assert "unet" in again.cached
    np.testing.assert_array_equal(frames(comfyui, again, "base"), before)


@pytest.mark.parametrize("optimising", [True, False])
def test_an_error_in_mid_run_leaves_the_model_as_it_was(comfyui: Any, optimising: bool) -> None:
    """At the third step, when the adapter has learnt something and sits in the MODEL."""
    before = frames(comfyui, comfyui.run(loaded(**shown("base", ksampler(seed=8)))), "base")
    graph = loaded(
        fail=node("TestsFailBelow", model=["shift", 0], sigma=0.93, optimising=optimising),
        **shown("tto", sampler("fail", masks=["soften", 0], seed=8)),
    )
    broken = comfyui.run(graph)
    assert (broken.end, broken.error.strip()) == ("error", "no room is left")
    assert any("optimising step 2" in text for text in broken.texts)
    changed = 0.99999 - 1e-5 * optimising  # not taken from ComfyUI's cache, and the same to it
    again = comfyui.run(loaded(**shown("base", ksampler(seed=8, denoise=changed))))
    assert "unet" in again.cached
    assert "base" not in again.cached
    np.testing.assert_array_equal(frames(comfyui, again, "base"), before)


def test_a_schedule_with_few_steps_is_warned_of_on_the_node(comfyui: Any) -> None:
    graph = loaded(
        patch=node("TTOM_PatchModel", model=["shift", 0], masks=["soften", 0], preset="demo"),
        there=node(
            "TTOM_TTOSampler",
            backbone=["load", 0], prompt=PROMPT, negative_prompt="", seed=7, steps=4, guidance_scale=4.0,
            num_frames=21, width=64, height=64, preset="demo", masks=["soften", 0],
        ),
        seen=node("PreviewImage", images=["there", 0]),
        **shown("tto", sampler(masks=["soften", 0], steps=4)),
        **shown("patched", ksampler("patch", steps=4)),
    )  # fmt: skip
    run = comfyui.run(graph)
    assert run.end == "success", run.error
    # diffusers spaces its noise levels otherwise than ComfyUI, so one step fewer may be in reach there.
    assert sum(bool(re.match("Only [12] of 4 denoising steps", text)) for text in run.texts) == 3


def test_a_patched_model_composes_in_any_sampler_and_its_other_branch_does_not(comfyui: Any) -> None:
    """The same seed and schedule give the same video by all three roads."""
    seed = 9
    graph = loaded(
        patch=node("TTOM_PatchModel", model=["shift", 0], masks=["soften", 0], preset="demo"),
        noise=node("RandomNoise", noise_seed=seed),
        guider=node("CFGGuider", model=["patch", 0], positive=["pos", 0], negative=["neg", 0], cfg=4.0),
        euler=node("KSamplerSelect", sampler_name="euler"),
        sigmas=node("BasicScheduler", model=["shift", 0], scheduler="simple", steps=STEPS, denoise=1.0),
        **shown("tto", sampler(masks=["soften", 0], seed=seed)),
        **shown("patched", ksampler("patch", seed=seed)),
        **shown("branch", ksampler(seed=seed)),
        **shown(
            "custom",
            node(
                "SamplerCustomAdvanced",
                noise=["noise", 0], guider=["guider", 0], sampler=["euler", 0], sigmas=["sigmas", 0],
                latent_image=["latent", 0],
            ),
        ),
    )  # fmt: skip
    run = comfyui.run(graph)
    tto, patched, custom = (frames(comfyui, run, name) for name in ("tto", "patched", "custom"))
    np.testing.assert_array_equal(patched, tto)
    np.testing.assert_array_equal(custom, tto)
    assert any("optimising step" in text for text in run.texts)
    branch = frames(comfyui, run, "branch")
    assert (branch != tto).any()
    base = comfyui.run(loaded(**shown("base", ksampler(seed=seed, denoise=0.99999))))
    np.testing.assert_array_equal(frames(comfyui, base, "base"), branch)


def test_every_stock_sampler_is_optimised_once_a_step(comfyui: Any) -> None:
    """Some call the model twice a step, between the steps' noise levels, or at levels of their own."""
    steps = 6
    names = comfyui.get("/object_info/KSampler")["KSampler"]["input"]["required"]["sampler_name"][0]
    assert len(names) > 30
    graph = loaded()
    for name in names:
        graph[name] = sampler(masks=["soften", 0], sampler_name=name, steps=steps)
        graph[f"{name} loss"] = node("PreviewAny", source=[name, 2])
    run = comfyui.run(graph)
    assert run.end == "success", run.error
    for name in names:
        told = ast.literal_eval(run.outputs[f"{name} loss"]["text"][0])
        each = [told["step"].count(step) for step in sorted(set(told["step"]))]
        assert max(each) <= 8, name
        assert 1 <= len(each) <= steps, name
        assert told["sigma"] == sorted(told["sigma"], reverse=True), name
        assert min(told["loss"]) < told["loss"][0], name


GUIDERS: Graph = {
    "basic": node("BasicGuider", model=["patch", 0], conditioning=["pos", 0]),
    "dual": node(
        "DualCFGGuider",
        model=["patch", 0], cond1=["pos", 0], cond2=["neg", 0], negative=["neg", 0], cfg_conds=4.0,
        cfg_cond2_negative=2.0, style="regular",
    ),
    "perpendicular": node(
        "PerpNegGuider",
        model=["patch", 0], positive=["pos", 0], negative=["neg", 0], empty_conditioning=["neg", 0], cfg=4.0,
        neg_scale=1.0,
    ),
}  # fmt: skip
GUIDING: Graph = {  # nodes that patch a MODEL's guidance, by their names here
    "rescaled": node("RescaleCFG", multiplier=0.7),
    "zero star": node("CFGZeroStar"),
    "tangential": node("TCFG"),
}


def test_every_kind_of_guidance_is_optimised(comfyui: Any) -> None:
    """Guiders of one, two and three conditionings, and MODELs whose guidance is patched."""
    graph = loaded(
        patch=node("TTOM_PatchModel", model=["shift", 0], masks=["soften", 0], preset="demo", layers="0"),
        noise=node("RandomNoise", noise_seed=9),
        euler=node("KSamplerSelect", sampler_name="euler"),
        sigmas=node("BasicScheduler", model=["shift", 0], scheduler="simple", steps=4, denoise=1.0),
        **shown("base", ksampler(steps=4, seed=9)),
    )
    for name, guider in GUIDERS.items():
        sampled = node(
            "SamplerCustomAdvanced",
            noise=["noise", 0], guider=[f"{name} guider", 0], sampler=["euler", 0], sigmas=["sigmas", 0],
            latent_image=["latent", 0],
        )  # fmt: skip
        graph |= {f"{name} guider": guider} | shown(name, sampled)
    for name, guiding in GUIDING.items():
        patched = node(guiding["class_type"], model=["patch", 0], **guiding["inputs"])
        graph |= {f"{name} model": patched} | shown(name, ksampler(f"{name} model", steps=4, seed=9))
    run = comfyui.run(graph)
    base = frames(comfyui, run, "base")
    for name in (*GUIDERS, *GUIDING):
        assert (frames(comfyui, run, name) != base).any(), name
    optimised = [text for text in run.texts if "optimising step 1" in text]
    assert len(optimised) >= len(GUIDERS) + len(GUIDING)


def test_fp8_weights_optimise_as_the_same_weights_uncompressed_do(comfyui: Any) -> None:
    """Stored in fp8 and cast for use, against a file of the very weights that fp8 can hold."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = comfyui.base / "models" / "diffusion_models"
    rounded = {
        name: tensor.float() if name.startswith("patch_embedding") else tensor.to(torch.float8_e4m3fn).float()
        for name, tensor in load_file(folder / FILE).items()
    }
    save_file(rounded, folder / "rounded.safetensors")
    graph = loaded(**composed())
    graph["unet"]["inputs"]["weight_dtype"] = "fp8_e4m3fn"
    stored = comfyui.run(graph)
    assert stored.end == "success", stored.error
    graph["unet"]["inputs"] |= {"unet_name": "rounded.safetensors", "weight_dtype": "default"}
    reference = comfyui.run(graph)
    assert reference.end == "success", reference.error
    assert losses(stored) == pytest.approx(losses(reference), abs=1e-6)
    np.testing.assert_array_equal(frames(comfyui, stored, "tto"), frames(comfyui, reference, "tto"))


def test_a_gguf_optimises_as_its_weights_dequantised_do(comfyui: Any) -> None:
    """City96's loader and its Q8_0, against a file of the very weights that it dequantises to."""
    import torch
    from safetensors.torch import load_file, save_file

    if not os.environ.get("COMFYUI_GGUF"):
        pytest.skip("COMFYUI_GGUF is not set: the folder of city96's ComfyUI-GGUF")
    gguf = pytest.importorskip("gguf")
    folder = comfyui.base / "models" / "diffusion_models"
    kind, exact = gguf.GGMLQuantizationType.Q8_0, {}
    writer = gguf.GGUFWriter(str(folder / "demo.gguf"), arch="wan")
    for name, tensor in load_file(folder / FILE).items():
        values = tensor.float().numpy()
        if values.ndim == 2 and name.startswith("blocks.") and name.endswith(".weight"):
            packed = gguf.quants.quantize(values, kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
            # The loader multiplies in fp16, the type of the scales.
            values = gguf.quants.dequantize(packed, kind).astype(np.float16).astype(np.float32)
        else:
            if values.ndim > 4:  # more than GGUF has
                writer.add_array(f"comfy.gguf.orig_shape.{name}", list(values.shape))
            writer.add_tensor(name, values.reshape(values.shape[0], -1) if values.ndim > 4 else values)
        exact[name] = torch.from_numpy(values.copy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    save_file(exact, folder / "dequantised.safetensors")
    graph = loaded(**composed())
    graph["unet"]["inputs"]["unet_name"] = "dequantised.safetensors"
    reference = comfyui.run(graph)
    assert reference.end == "success", reference.error
    graph["unet"] = node("UnetLoaderGGUF", unet_name="demo.gguf")
    packed_run = comfyui.run(graph)
    assert packed_run.end == "success", packed_run.error
    assert losses(packed_run) == pytest.approx(losses(reference), abs=1e-6)
    np.testing.assert_array_equal(frames(comfyui, packed_run, "tto"), frames(comfyui, reference, "tto"))


def test_a_model_for_images_is_optimised_by_its_text_attention(comfyui: Any, tmp_path: Path) -> None:
    """Random weights of the real class: it has a second cross-attention and more channels."""
    import torch
    from diffusers import WanTransformer3DModel

    torch.manual_seed(0)
    model = WanTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=128,
        in_channels=36,
        ffn_dim=64,
        num_layers=2,
        image_dim=1280,
        added_kv_proj_dim=128,
    )
    model.save_pretrained(tmp_path / "transformer")
    convert(tmp_path, comfyui.base / "models" / "diffusion_models" / "image.safetensors")
    graph = loaded(**composed(layers="0,1", keep_maps=True, steps=4))
    graph["unet"]["inputs"]["unet_name"] = "image.safetensors"
    graph["maps"] = node(
        "TTOM_AttentionPreview", trace=["tto", 4], images=["tto video", 0], fps=8.0, phrase=""
    )
    run = comfyui.run(graph)
    assert run.end == "success", run.error
    assert min(losses(run)) < losses(run)[0]
    saved = sorted((comfyui.base / "output" / "loras").glob("native*.safetensors"))[-1]
    header = saved.read_bytes()
    assert b"diffusion_model.blocks.0.self_attn.q.lora_A.weight" in header
    assert b"k_img" not in header


def test_comfyuis_own_cogvideox_composes(comfyui: Any, tmp_path: Path) -> None:
    """Random weights of the real class, in the sampler that it has; the plain one is refused."""
    import torch
    from diffusers import CogVideoXTransformer3DModel

    if not comfyui.get("/object_info/VOIDSampler"):
        pytest.skip("this ComfyUI has no CogVideoX of its own")
    torch.manual_seed(0)
    encoder = json.loads((ROOT / "demo" / "model" / "transformer" / "config.json").read_text())["text_dim"]
    model = CogVideoXTransformer3DModel(
        num_attention_heads=1,
        attention_head_dim=64,
        in_channels=16,
        out_channels=16,
        time_embed_dim=32,
        text_embed_dim=encoder,
        num_layers=2,
        use_rotary_positional_embeddings=True,
    )
    for block in model.transformer_blocks:  # random weights give almost even attention
        torch.nn.init.normal_(block.attn1.to_q.weight, std=0.5)
        torch.nn.init.normal_(block.attn1.to_k.weight, std=0.5)
    model.save_pretrained(tmp_path / "transformer")
    convert(tmp_path, comfyui.base / "models" / "diffusion_models" / "cogvideox.safetensors")
    graph = loaded(
        patch=node(
            "TTOM_PatchModel", model=["unet", 0], masks=["soften", 0], preset="demo", layers="0,1"
        ),
        noise=node("RandomNoise", noise_seed=7),
        void=node("VOIDSampler"),
        sigmas=node("BasicScheduler", model=["unet", 0], scheduler="simple", steps=STEPS, denoise=1.0),
    )  # fmt: skip
    graph["unet"]["inputs"]["unet_name"] = "cogvideox.safetensors"
    del graph["shift"]
    for name, source in (("base", "unet"), ("tto", "patch"), ("again", "unet")):
        graph[f"{name} guider"] = node(
            "CFGGuider", model=[source, 0], positive=["pos", 0], negative=["neg", 0], cfg=4.0
        )
        sampled = node(
            "SamplerCustomAdvanced",
            noise=["noise", 0], guider=[f"{name} guider", 0], sampler=["void", 0], sigmas=["sigmas", 0],
            latent_image=["latent", 0],
        )  # fmt: skip
        graph |= shown(name, sampled)
    run = comfyui.run(graph)
    base, composed_frames, again = (frames(comfyui, run, name) for name in ("base", "tto", "again"))
    assert (composed_frames != base).any()
    np.testing.assert_array_equal(again, base)
    told = [float(text.rpartition("loss ")[2]) for text in run.texts if "optimising step 1," in text]
    assert min(told) < told[0], run.texts

    plain = graph | shown("plain", sampler("unet", masks=["soften", 0], layers="0,1"))
    assert "VOIDSampler" in comfyui.run(plain).error


def test_a_memory_serves_both_roads(comfyui: Any) -> None:
    """What either inserts, both find by the same words; what started from it here improves it."""
    layers = "0,1,2,3"
    here: Graph = {"backbone": ["shift", 0], "clip": ["parts", 0]}
    there: Graph = {"backbone": ["load", 0]}

    def read(memory: list[Any], **model: Any) -> dict[str, Any]:
        return node(
            "TTOM_MemoryRead",
            memory=memory, layout=["plan", 0], prompt=PROMPT, preset="released", threshold=0.5, top_k=5,
            layers=layers, **model,
        )  # fmt: skip

    def insert(memory: list[Any], solved: list[Any], **model: Any) -> dict[str, Any]:
        return node("TTOM_MemoryInsert", memory=memory, solved=solved, pinned=False, note="", **model)

    settings: Graph = {"masks": ["soften", 0], "preset": "released", "layers": layers, "steps": 4}
    learnt = loaded(
        tto=sampler(**settings),
        diffusers=node(
            "TTOM_TTOSampler",
            backbone=["load", 0], prompt=PROMPT, negative_prompt="", seed=8, guidance_scale=4.0,
            num_frames=21, width=64, height=64, **settings,
        ),
        open=node("TTOM_MemoryOpen", name="both roads", read_only=False, max_entries=0),
        first=insert(["open", 0], ["tto", 3], **here),
        second=insert(["first", 0], ["diffusers", 4], **there),
        here=read(["second", 0], **here),
        there=read(["second", 0], **there),
        why_here=node("PreviewAny", source=["here", 1]),
        why_there=node("PreviewAny", source=["there", 1]),
        again=sampler(recall=["here", 0], **settings),
        update=node(
            "TTOM_MemoryUpdate",
            memory=["second", 0], recall=["here", 0], solved=["again", 3], on_hit="update",
        ),
        told=node("PreviewAny", source=["update", 1]),
    )  # fmt: skip
    run = comfyui.run(learnt)
    assert run.end == "success", run.error
    found, theirs = (
        [line.split()[0] for line in run.outputs[name]["text"][0].splitlines()]
        for name in ("why_here", "why_there")
    )
    assert len(set(found)) == 2
    assert sorted(found) == sorted(theirs)
    assert "updated 2" in run.outputs["told"]["text"][0]

    alone = loaded(
        open=learnt["open"], read=read(["open", 0], backbone=["shift", 0]),
        why=node("PreviewAny", source=["read", 1]),
    )  # fmt: skip
    assert "connect its CLIP" in comfyui.run(alone).error


def test_a_memory_and_a_lora_file_travel_between_the_roads(comfyui: Any) -> None:
    """Learnt here, it is found and used there; the stock LoRA loader makes the same video of it."""
    layers = "0,1,2,3"
    learnt = loaded(
        tto=sampler(masks=["soften", 0], preset="released", layers=layers),
        keep=node("SaveLoRANode", lora=["tto", 1], prefix="loras/travels"),
        open=node("TTOM_MemoryOpen", name="native", read_only=False, max_entries=0),
        insert=node(
            "TTOM_MemoryInsert",
            memory=["open", 0], backbone=["load", 0], solved=["tto", 3], pinned=False, note="",
        ),
        told=node("PreviewAny", source=["insert", 1]),
    )  # fmt: skip
    run = comfyui.run(learnt)
    assert run.end == "success", run.error

    read = node(
        "TTOM_MemoryRead",
        memory=["open", 0], backbone=["load", 0], layout=["plan", 0], prompt=PROMPT, preset="paper",
        threshold=0.5, top_k=1, layers=layers,
    )  # fmt: skip
    use: Graph = {"masks": ["soften", 0], "preset": "paper", "recall": ["read", 0], "optimise": False}
    (saved,) = (comfyui.base / "output" / "loras").glob("travels*.safetensors")
    (comfyui.base / "models" / "loras").mkdir(parents=True, exist_ok=True)
    (comfyui.base / "models" / "loras" / "travels.safetensors").write_bytes(saved.read_bytes())
    graph = loaded(
        open=learnt["open"],
        read=read,
        why=node("PreviewAny", source=["read", 1]),
        style=node(
            "LoraLoaderModelOnly", model=["shift", 0], lora_name="travels.safetensors", strength_model=1.0
        ),
        there=node(
            "TTOM_TTOSampler",
            backbone=["load", 0], prompt=PROMPT, negative_prompt="", seed=7, steps=STEPS, guidance_scale=4.0,
            num_frames=21, width=64, height=64, **use,
        ),
        seen=node("SaveImage", images=["there", 0], filename_prefix="there"),
        **shown("recalled", sampler(**use)),
        **shown("stock", ksampler("style")),
        # With a LoRA of the artist's merged into it, it is still the model that the memory knows.
        **shown("styled", sampler("style", **use)),
        **shown("base", ksampler()),
    )  # fmt: skip
    run = comfyui.run(graph)
    assert run.end == "success", run.error
    assert PROMPT in run.outputs["why"]["text"][0]
    recalled, stock, base = (
        frames(comfyui, run, name).astype(float) for name in ("recalled", "stock", "base")
    )
    changed = np.abs(recalled - base).mean()
    assert changed > 0
    assert np.abs(recalled - stock).mean() < changed / 20
    assert (frames(comfyui, run, "styled") != stock).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"latent": {"batch_size": 2}}, "batch_size 1"),
        ({"tto": {"positive": ["neg", 0]}}, "Encode Prompt (TTOM)"),
        ({"tto": {"layers": "99"}}, "Layer 99 does not exist"),
        ({"tto": {"denoise": 0.2}}, "there is nothing to optimise in"),
        ({"pos": {"prompt": "a green triangle"}}, "is not in the prompt"),
        ({"unet": {"weight_dtype": "fp8_e4m3fn_fast"}}, "fp8_e4m3fn instead"),
        ({"tto": {"model": ["compiled", 0]}}, "compiled"),
        ({"tto": {"model": ["cached", 0]}}, "remove the cache node"),
        ({"tto": {"model": ["windows", 0]}}, "window by window"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_what_cannot_work_is_refused_in_one_sentence(comfyui: Any, changes: Graph, words: str) -> None:
    graph = loaded(
        compiled=node("TorchCompileModel", model=["shift", 0], backend="inductor"),
        windows=node(
            "WanContextWindowsManual",
            model=["shift", 0], context_length=9, context_overlap=4, context_schedule="standard_static",
            context_stride=1, closed_loop=False, fuse_method="pyramid",
        ),
        cached=node(
            "EasyCache", model=["shift", 0], reuse_threshold=0.2, start_percent=0.15, end_percent=0.95,
            verbose=False,
        ),
        **shown("tto", sampler(masks=["soften", 0])),
    )  # fmt: skip
    for name, change in changes.items():
        graph[name]["inputs"] |= change
    run = comfyui.run(graph)
    assert run.end == "error"
    assert words in run.error
    assert len(run.error.strip().splitlines()) == 1, run.error
