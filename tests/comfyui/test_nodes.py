"""The nodes in a real ComfyUI, over HTTP."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import chat_server
from PIL import Image

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
CLONE = "ttom-clone.v1"
MODEL_FOLDER = "wan/a copy of the demo"
PROMPT = "a red circle moves to the right while a blue square stays still"
STEPS = 8

Graph = dict[str, Any]

# Ids, names of inputs and the order of outputs stand in saved workflows: this table only grows.
SOCKETS = {
    "TTOM_LoadModel": (["model"], ["TTOM_BACKBONE"]),
    "TTOM_LanguageModel": (
        ["model", "base_url", "mode", "enrich", "temperature", "timeout", "key_variable"],
        ["TTOM_LLM"],
    ),
    "TTOM_LayoutPlanner": (
        ["prompt", "seed", "llm", "fallback", "pinned", "unload"],
        ["TTOM_LAYOUT", "STRING", "STRING", "STRING"],
    ),
    "TTOM_LayoutEditor": (
        ["prompt", "width", "height", "num_frames", "layout", "frames", "use_layout", "drawn"],
        ["TTOM_LAYOUT", "STRING", "STRING", "STRING"],
    ),
    "TTOM_LayoutPreview": (
        ["layout", "num_frames", "width", "height", "fps", "images"],
        ["IMAGE"],
    ),
    "TTOM_LayoutFromBoxes": (
        ["phrases", "width", "height", "tolerance", "boxes", "boxes_json", "layout"],
        ["TTOM_LAYOUT", "STRING"],
    ),
    "TTOM_LayoutFromMask": (["mask", "phrase", "tolerance", "layout"], ["TTOM_LAYOUT", "STRING"]),
    "TTOM_LayoutFromTracks": (
        ["tracks", "phrases", "width", "height", "box_width", "box_height", "tolerance", "layout"],
        ["TTOM_LAYOUT", "STRING"],
    ),
    "TTOM_LayoutToBoxes": (["layout", "num_frames", "width", "height"], ["BOUNDING_BOX", "STRING"]),
    "TTOM_LayoutToTracks": (["layout", "num_frames", "width", "height"], ["STRING"]),
    "TTOM_SoftMask": (
        ["layout", "kind", "softness", "num_frames", "width", "height", "phrase"],
        ["TTOM_MASKS", "MASK", "MASK"],
    ),
    "TTOM_TTOSampler": (
        [
            *["backbone", "prompt", "negative_prompt", "preset", "seed", "steps", "guidance_scale"],
            *["num_frames", "width", "height", "masks", "recall", "optimise", "layers", "keep_maps"],
        ],
        ["IMAGE", "FLOAT", "LORA_MODEL", "LOSS_MAP", "TTOM_SOLVED", "TTOM_TRACE"],
    ),
    "TTOM_AttentionPreview": (["trace", "images", "fps", "phrase"], ["IMAGE"]),
    "TTOM_Compare": (
        ["first", "labels", "columns", "fps", "second", "third", "fourth"],
        ["IMAGE", "IMAGE"],
    ),
    "TTOM_LossCurve": (["loss"], ["IMAGE"]),
    "TTOM_AttentionProbe": (
        [
            *["backbone", "layout", "prompt", "grounding", "count", "seed", "steps", "guidance_scale"],
            *["num_frames", "width", "height", "detector", "segmenter"],
        ],
        ["IMAGE", "IMAGE", "STRING"],
    ),
    "TTOM_LoRASampler": (
        [
            "model",
            "positive",
            "negative",
            "latent_image",
            "preset",
            "seed",
            "steps",
            "cfg",
            "sampler_name",
            "scheduler",
            "denoise",
            "masks",
            "recall",
            "optimise",
            "layers",
            "keep_maps",
        ],
        ["LATENT", "LORA_MODEL", "LOSS_MAP", "TTOM_SOLVED", "TTOM_TRACE"],
    ),
    "TTOM_PatchModel": (["model", "masks", "preset", "recall", "optimise", "layers"], ["MODEL"]),
    "TTOM_EncodePrompt": (["clip", "prompt"], ["CONDITIONING"]),
    "TTOM_PipelineParts": (["backbone"], ["CLIP", "VAE"]),
    "TTOM_MemoryOpen": (["name", "read_only", "max_entries", "other_copies"], ["TTOM_MEMORY"]),
    "TTOM_MemoryRead": (
        ["memory", "backbone", "layout", "prompt", "preset", "threshold", "top_k", "layers", "clip"],
        ["TTOM_RECALL", "STRING"],
    ),
    "TTOM_MemoryInsert": (
        ["memory", "backbone", "solved", "pinned", "note", "clip"],
        ["TTOM_MEMORY", "STRING"],
    ),
    "TTOM_MemoryUpdate": (["memory", "recall", "solved", "on_hit"], ["TTOM_MEMORY", "STRING"]),
    "TTOM_MemoryConsolidate": (
        [
            "memory",
            "backbone",
            "words",
            "preset",
            "clips",
            "seed",
            "steps",
            "guidance_scale",
            "num_frames",
            "width",
            "height",
        ],
        ["TTOM_MEMORY", "STRING"],
    ),
    "TTOM_MemoryDelete": (["memory", "ids", "words", "really"], ["TTOM_MEMORY", "STRING"]),
    "TTOM_MemoryBrowse": (["memory", "words"], ["STRING"]),
    "TTOM_MemoryExport": (["memory", "words", "filename_prefix", "licence"], ["STRING"]),
    "TTOM_MemoryImport": (
        ["memory", "backbone", "pack", "conflicts", "really"],
        ["TTOM_MEMORY", "STRING"],
    ),
}


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def sampler(**changes: Any) -> dict[str, Any]:
    inputs = {
        "backbone": ["load", 0], "prompt": PROMPT, "negative_prompt": "", "preset": "demo",
        "seed": 7, "steps": STEPS, "guidance_scale": 4.0,
        "num_frames": 21, "width": 64, "height": 64,
    }  # fmt: skip
    return node("TTOM_TTOSampler", **(inputs | changes))


def base_graph() -> Graph:
    return {
        "load": node("TTOM_LoadModel", model="demo"),
        "base": sampler(),
        "save": node("SaveImage", images=["base", 0], filename_prefix="base"),
        "lora": node("SaveLoRANode", lora=["base", 2], prefix="loras/base"),
    }


def tto_graph() -> Graph:
    return {
        "load": node("TTOM_LoadModel", model="demo"),
        "plan": node("TTOM_LayoutPlanner", prompt=PROMPT, seed=0),
        "soften": node(
            "TTOM_SoftMask",
            layout=["plan", 0], kind="gaussian", softness=0.25, num_frames=21, width=64, height=64,
            phrase="red circle",
        ),
        "tto": sampler(masks=["soften", 0], prompt=["plan", 1]),
        "save": node("SaveImage", images=["tto", 0], filename_prefix="tto"),
        "mask": node("MaskPreview", mask=["soften", 1]),
        "each": node("MaskPreview", mask=["soften", 2]),
        "draw": node(
            "TTOM_LayoutPreview",
            layout=["plan", 0], images=["tto", 0], num_frames=21, width=64, height=64, fps=8.0,
        ),
        "notes": node("PreviewAny", source=["plan", 2]),
        "film": node("CreateVideo", images=["tto", 0], fps=["tto", 1]),
        "keep": node(
            "SaveVideo", video=["film", 0], filename_prefix="tto", format="mp4", codec="h264"
        ),
        "lora": node("SaveLoRANode", lora=["tto", 2], prefix="loras/tto"),
        "loss": node("LossGraphNode", loss=["tto", 3], filename_prefix="loss"),
    }  # fmt: skip


def test_ids_inputs_and_outputs_are_what_saved_workflows_expect(comfyui: Any) -> None:
    info = comfyui.get("/object_info")
    ours = {name for name in info if name.startswith("TTOM_")}
    assert ours == SOCKETS.keys(), comfyui.log.read_text(errors="replace")[-3000:]
    for name, (inputs, outputs) in SOCKETS.items():
        order = info[name]["input_order"]
        assert order.get("required", []) + order.get("optional", []) == inputs, name
        assert info[name]["output"] == outputs, name
        assert info[name]["python_module"] == f"custom_nodes.{CLONE}"
    models = info["TTOM_LoadModel"]["input"]["required"]["model"]
    assert MODEL_FOLDER in json.dumps(models)


def test_the_pack_shows_its_help_and_workflows(comfyui: Any) -> None:
    page = comfyui.base / "page"
    page.write_bytes(_file(comfyui, f"/extensions/{CLONE}/docs/TTOM_TTOSampler.md"))
    assert page.read_text().startswith("# TTO Sampler (TTOM)")
    shipped = {path.stem for path in (ROOT / "workflows").glob("*.json")}
    assert shipped == set(comfyui.get("/workflow_templates")[CLONE])


def _file(comfyui: Any, path: str) -> bytes:
    import urllib.request

    with urllib.request.urlopen(comfyui.url + path, timeout=60) as answer:
        return answer.read()


def test_the_whole_story_and_its_interrupt(comfyui: Any) -> None:
    """Base and TTO differ; a cancel in mid-optimisation leaves the loaded model as it was."""
    base = comfyui.run(base_graph())
    assert base.end == "success", base.error
    assert "lora" not in base.outputs  # nothing was optimised, so nothing is saved
    assert not list((comfyui.base / "output" / "loras").glob("base*"))
    assert all("optimising" not in text for text in base.texts)

    cut = comfyui.run(tto_graph(), interrupt_at=2)
    assert cut.end == "interrupted"
    assert cut.seconds_to_stop < 1
    assert "save" not in cut.outputs
    reached = max(value for name, value, _ in cut.progress if name == "tto")
    assert 2 <= reached < 6, "it ran on long after the cancel"
    assert "optimising" in cut.texts[-1]

    again = comfyui.run(base_graph())
    assert again.end == "success", again.error
    # The same loaded model, sampled anew: the proof that the cancelled run left nothing in it.
    assert "load" in again.cached
    assert "base" not in again.cached
    before = comfyui.frames(base, "save")
    np.testing.assert_array_equal(comfyui.frames(again, "save"), before)

    whole = comfyui.run(tto_graph())
    assert whole.end == "success", whole.error
    after = comfyui.frames(whole, "save")
    assert after.shape == before.shape == (21, 64, 64, 3)
    assert (after != before).any()

    bar = [(value, total) for name, value, total in whole.progress if name == "tto"]
    assert len({total for _, total in bar}) == 1
    assert [value for value, _ in bar] == sorted(value for value, _ in bar)
    assert bar[-1][0] == bar[-1][1]
    assert bar[-1][1] > STEPS  # iterations and denoising steps in one count
    assert any("loss 0." in text for text in whole.texts)

    assert comfyui.frames(whole, "mask").shape == (21, 64, 64, 3)
    circle, square = np.split(comfyui.frames(whole, "each"), 2)  # a list: the node behind it is run for each
    np.testing.assert_array_equal(circle, comfyui.frames(whole, "mask"))
    assert (square != circle).any()
    assert "red circle" in whole.outputs["notes"]["text"][0]
    (drawn,) = whole.outputs["draw"]["images"]
    with Image.open(io.BytesIO(comfyui.view(drawn))) as webp:
        assert webp.n_frames == 21
        assert webp.width == webp.height >= 256  # small frames are enlarged
    (film,) = whole.outputs["keep"]["images"]
    assert film["filename"].endswith(".mp4")
    assert comfyui.view(film)[4:8] == b"ftyp"
    assert whole.outputs["loss"]["images"]


def test_a_rerun_is_cached_and_a_seed_has_one_video_whoever_else_samples(comfyui: Any) -> None:
    """Two samplers of one graph, on one loaded model, each make what they make alone."""
    graph, alone = tto_graph(), {}
    for seed in (7, 8, 9):  # the last one's is kept, and neither of those that are made again
        graph["tto"]["inputs"]["seed"] = seed
        run = comfyui.run(graph)
        assert run.end == "success", run.error
        alone[seed] = comfyui.frames(run, "save")
        again = comfyui.run(graph)
        assert again.end == "success", again.error
        assert again.cached == graph.keys()
    assert (alone[7] != alone[8]).any()
    both = tto_graph() | {
        "other": sampler(masks=["soften", 0], prompt=["plan", 1], seed=8),
        "save other": node("SaveImage", images=["other", 0], filename_prefix="other"),
    }
    run = comfyui.run(both)
    assert run.end == "success", run.error
    assert not {"tto", "other"} & run.cached
    np.testing.assert_array_equal(comfyui.frames(run, "save"), alone[7])
    np.testing.assert_array_equal(comfyui.frames(run, "save other"), alone[8])


def test_the_adapter_travels_under_comfyuis_names(comfyui: Any) -> None:
    """The stock node saved it in the test above, or does so now."""
    run = comfyui.run({**tto_graph()})
    assert run.end == "success", run.error
    saved = sorted((comfyui.base / "output" / "loras").glob("tto*.safetensors"))
    assert saved
    content = saved[-1].read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    for key in header:
        assert key.startswith("diffusion_model.blocks."), key
        assert ".self_attn." in key or ".ffn." in key, key
        assert key.endswith((".lora_A.weight", ".lora_B.weight", ".alpha")), key


def memory_graph() -> Graph:
    """The learning loop: read, start from what was found, optimise, update or insert."""
    graph = tto_graph()
    learning = {
        "open": node("TTOM_MemoryOpen", name="artist one", read_only=False, max_entries=0),
        "read": node(
            "TTOM_MemoryRead",
            memory=["open", 0], backbone=["load", 0], layout=["plan", 0], prompt=["plan", 1],
            preset="demo", threshold=0.5, top_k=5,
        ),
        "tto": sampler(masks=["soften", 0], prompt=["plan", 1], recall=["read", 0], optimise=True),
        "learn": node(
            "TTOM_MemoryUpdate",
            memory=["open", 0], recall=["read", 0], solved=["tto", 4], on_hit="update",
        ),
        "browse": node("TTOM_MemoryBrowse", memory=["learn", 0], words=""),
    }  # fmt: skip
    return {name: graph[name] for name in ("load", "plan", "soften", "save")} | learning


def text(run: Any, name: str) -> str:
    return run.outputs[name]["text"][0]


def test_a_memory_learns_is_shared_and_forgets(comfyui: Any) -> None:
    """A changed memory is a changed input; an unchanged one is not."""
    first = comfyui.run(memory_graph())
    assert first.end == "success", first.error
    assert "Nothing is known" in text(first, "read")
    assert "inserted" in text(first, "learn")
    assert text(first, "browse").startswith("1 entries")

    second = comfyui.run(memory_graph())
    assert second.end == "success", second.error
    assert "load" in second.cached
    assert not {"open", "read", "tto", "learn"} & second.cached
    assert PROMPT in text(second, "read")
    assert "updated 1" in text(second, "learn") or "kept" in text(second, "learn")

    opened = {"open": memory_graph()["open"]}
    listing = opened | {"list": node("TTOM_MemoryBrowse", memory=["open", 0], words="circle")}
    assert comfyui.run(listing).end == "success"
    assert {"open", "list"} <= comfyui.run(listing).cached

    packed = opened | {
        "pack": node(
            "TTOM_MemoryExport",
            memory=["open", 0],
            words="",
            filename_prefix="memory/mine",
            licence="CC0-1.0",
        )
    }
    assert comfyui.run(packed).end == "success"
    (pack,) = (comfyui.base / "output" / "memory").glob("mine*.ttompack")
    (comfyui.base / "input").mkdir(exist_ok=True)
    pack.rename(comfyui.base / "input" / "mine.ttompack")
    other = {
        "load": node("TTOM_LoadModel", model="demo"),
        "open": node("TTOM_MemoryOpen", name="artist two", read_only=False, max_entries=0),
        "take": node(
            "TTOM_MemoryImport",
            memory=["open", 0], backbone=["load", 0], pack="input/mine.ttompack", conflicts="keep",
            really=True,
        ),
        "browse": node("TTOM_MemoryBrowse", memory=["take", 0], words=""),
    }  # fmt: skip
    taken = comfyui.run(other)
    assert taken.end == "success", taken.error
    assert "1 new" in text(taken, "take")
    assert text(taken, "browse").startswith("1 entries")

    scene = {
        "load": node("TTOM_LoadModel", model="demo"),
        "one": node(
            "TTOM_MemoryConsolidate",
            memory=["open", 0], backbone=["load", 0], words="circle", preset="demo", clips=2, seed=3,
            steps=STEPS, guidance_scale=4.0, num_frames=21, width=64, height=64,
        ),
        "browse": node("TTOM_MemoryBrowse", memory=["one", 0], words=""),
    }  # fmt: skip
    one = comfyui.run(opened | scene)
    assert one.end == "success", one.error
    assert "1 became" in text(one, "one") or "1 kept as they were" in text(one, "one")
    assert text(one, "browse").startswith("1 entries")
    bar = [(value, total) for name, value, total in one.progress if name == "one"]
    assert bar[-1] == (2, 2)

    gone = comfyui.run(
        opened | {"del": node("TTOM_MemoryDelete", memory=["open", 0], ids="", words="circle", really=True)}
    )
    assert gone.end == "success", gone.error
    assert "Deleted 1" in text(gone, "del")
    after = comfyui.run(listing)
    assert "list" not in after.cached
    assert text(after, "list").startswith("0 entries")


def test_what_was_recalled_can_be_used_as_it_is(comfyui: Any) -> None:
    graph = memory_graph()
    graph["open"]["inputs"]["name"] = "artist three"
    assert comfyui.run(graph).end == "success"
    graph.pop("learn")
    graph["browse"]["inputs"]["memory"] = ["open", 0]
    graph["tto"]["inputs"]["optimise"] = False
    run = comfyui.run(graph)
    assert run.end == "success", run.error
    assert all("optimising" not in words for words in run.texts)
    base = comfyui.run(base_graph())
    assert (comfyui.frames(run, "save") != comfyui.frames(base, "save")).any()


def test_what_was_made_with_other_layers_is_recalled_where_there_is_no_other(comfyui: Any) -> None:
    """The layers that both nodes are given decide, not the preset's own."""
    graph = memory_graph()
    graph["open"]["inputs"]["name"] = "artist four"
    for name in ("read", "tto"):
        graph[name]["inputs"]["layers"] = "0"
    graph["why"] = node("PreviewAny", source=["read", 1])
    assert "inserted" in text(comfyui.run(graph), "learn")
    known = comfyui.run(graph)
    assert "made with other layers" not in text(known, "why")
    assert "updated 1" in text(known, "learn") or "kept as it was" in text(known, "learn")
    graph.pop("learn")
    graph["browse"]["inputs"]["memory"] = ["open", 0]
    for name in ("read", "tto"):
        graph[name]["inputs"]["layers"] = "0,1"
    other = comfyui.run(graph)
    assert other.end == "success", other.error
    assert PROMPT in text(other, "why") and "made with other layers" not in text(other, "why")
    graph["read"]["inputs"]["layers"] = "9999"
    missing = comfyui.run(graph)
    assert missing.end == "error"
    assert "9999" in missing.error and len(missing.error.strip().splitlines()) == 1


def probe_graph(prompt: str = "a red circle") -> Graph:
    """A probe of one prompt, its pictures, and a video optimised in the layers it recommends."""
    graph = tto_graph()
    graph["plan"]["inputs"]["prompt"] = prompt
    graph |= {
        "probe": node(
            "TTOM_AttentionProbe",
            backbone=["load", 0], layout=["plan", 0], prompt=["plan", 1], grounding="blobs", count=2,
            seed=3, steps=STEPS, guidance_scale=4.0, num_frames=21, width=64, height=64,
        ),
        "maps": node("PreviewImage", images=["probe", 0]),
        "chart": node("PreviewImage", images=["probe", 1]),
        "layers": node("PreviewAny", source=["probe", 2]),
        "tto": sampler(masks=["soften", 0], prompt=["plan", 1], layers=["probe", 2]),
    }  # fmt: skip
    kept = ("load", "plan", "soften", "probe", "maps", "chart", "layers", "tto", "save")
    return {name: graph[name] for name in kept}


def test_a_probe_recommends_layers_to_the_sampler(comfyui: Any) -> None:
    run = comfyui.run(probe_graph())
    assert run.end == "success", run.error
    layers = [int(layer) for layer in text(run, "layers").split(",")]
    assert len(layers) == 2 and layers == sorted(set(layers))
    assert comfyui.frames(run, "maps").shape[0] == 1  # one phrase
    assert comfyui.frames(run, "chart").shape[0] == 1
    bar = [(value, total) for name, value, total in run.progress if name == "probe"]
    assert bar[-1] == (STEPS, STEPS)
    chosen = comfyui.frames(run, "save")
    graph = probe_graph()
    graph["tto"]["inputs"]["layers"] = ""
    assert (comfyui.frames(comfyui.run(graph), "save") != chosen).any(), "the preset's own layers"
    graph["tto"]["inputs"]["layers"] = "first"
    assert "names no layers" in comfyui.run(graph).error


def planning_graph(url: str, **changes: Any) -> Graph:
    """A layout by a language model, its notes and its JSON shown."""
    llm = {
        "model": "toy", "base_url": url, "mode": "one call", "enrich": False, "temperature": 0.0,
        "timeout": 20.0, "key_variable": "",
    }  # fmt: skip
    return {
        "llm": node("TTOM_LanguageModel", **(llm | changes)),
        "plan": node("TTOM_LayoutPlanner", prompt=PROMPT, seed=0, llm=["llm", 0], fallback=False),
        "notes": node("PreviewAny", source=["plan", 2]),
        "json": node("PreviewAny", source=["plan", 3]),
    }


def test_a_language_model_plans_and_a_layout_is_pinned(comfyui: Any) -> None:
    with chat_server() as server:
        run = comfyui.run(planning_graph(server.url))
        assert run.end == "success", run.error
        assert "Planned by llm toy" in text(run, "notes")
        layout = json.loads(text(run, "json"))
        assert {thing["name"] for thing in layout["objects"]} >= {"circle", "square"} or layout["objects"]
        assert len(server.requests) == 1
    # The server is gone: the plan is remembered, and a pinned layout needs nobody.
    assert comfyui.run(planning_graph(server.url, timeout=21.0)).end == "success"
    graph = planning_graph(server.url)
    graph["plan"] = node("TTOM_LayoutPlanner", prompt=PROMPT, seed=0, pinned=json.dumps(layout))
    graph.pop("llm")
    assert json.loads(text(comfyui.run(graph), "json")) == layout

    graph = planning_graph(server.url, temperature=1.0)
    assert comfyui.run(graph).end == "error"
    graph["plan"]["inputs"]["fallback"] = True
    assert "The rules planned this, because" in text(comfyui.run(graph), "notes")


def test_a_key_in_the_place_of_its_name_is_refused_and_not_repeated(comfyui: Any) -> None:
    run = comfyui.run(planning_graph("http://localhost:1/v1", key_variable="sk-secret"))
    assert run.end == "error"
    assert "not the key itself" in run.error
    assert "sk-secret" not in run.error


def test_a_memory_is_a_name_and_no_path(comfyui: Any) -> None:
    opened = {"open": node("TTOM_MemoryOpen", name="../outside", read_only=False, max_entries=0)}
    run = comfyui.run(opened | {"list": node("TTOM_MemoryBrowse", memory=["open", 0], words="")})
    assert run.end == "error"
    assert "cannot be called" in run.error


@pytest.mark.parametrize(
    ("name", "change", "words"),
    [
        ("plan", {"prompt": "  "}, "prompt"),
        ("tto", {"prompt": "a green triangle"}, "is not in the prompt"),
        ("tto", {"num_frames": 20}, "20"),
        ("plan", {"pinned": "{"}, "pinned: "),
        ("soften", {"phrase": "white horse"}, "white horse"),
        ("soften", {"num_frames": ["huge", 0]}, "num_frames: give a whole number from 1 to 1024"),
    ],
)
def test_mistakes_are_answered_by_one_sentence(
    comfyui: Any, name: str, change: dict[str, Any], words: str
) -> None:
    graph = tto_graph() | {"huge": node("PrimitiveInt", value=10**9)}
    graph[name]["inputs"] |= change
    run = comfyui.run(graph)
    assert run.end == "error"
    assert words in run.error
    assert len(run.error.strip().splitlines()) == 1, run.error
