"""What stands in a stranger's workflow is refused by name, whatever it is; and starting costs little."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import comfyui_stand_in as stand_in
import pytest
from chat_server import chat_server, well

MARKUP = "<img src=x onerror=alert(1)>"
HEAVY = {"diffusers", "faiss", "imageio", "matplotlib", "openai", "peft", "torchvision", "transformers"}
# Rooms of the core that take long to import and that no schema asks anything of.
LATER = {f"{stand_in.PACK}.ttom_core.{room}" for room in ("conversion", "memory.store", "planner")}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The pack's nodes without ComfyUI; what else this process imports is left as it was."""
    before = dict(sys.modules)
    stand_in.install(tmp_path_factory.mktemp("comfyui"))
    yield stand_in.import_pack()
    for name in [name for name in sys.modules if name.startswith(stand_in.PACK)] + stand_in.MODULES:
        sys.modules.pop(name, None)
    sys.modules |= {name: before[name] for name in stand_in.MODULES if name in before}


def kind(value: object) -> str:
    """What a case is called: some values are longer than a name should be."""
    return type(value).__name__


def every(nodes: ModuleType) -> list[Any]:
    return asyncio.run(nodes.TTOMExtension().get_node_list())


def asked(nodes: ModuleType, *kinds: str) -> Iterator[tuple[Any, Any]]:
    """Every node with each of its inputs of these kinds."""
    sockets = tuple(getattr(nodes.io, kind).Input for kind in kinds)
    for node in every(nodes):
        for one in node.define_schema().inputs:
            if isinstance(one, sockets):
                yield node, one


def refusal(nodes: ModuleType, node: Any, **values: Any) -> str:
    """The one sentence with which a node refuses a value."""
    error = sys.modules[f"{stand_in.PACK}.ttom_core.errors"].TTOMError
    with pytest.raises(error) as caught:
        node.execute(**values)
    sentence = str(caught.value)
    assert len(sentence.splitlines()) == 1 and len(sentence) < 700, sentence
    return sentence


def test_every_number_has_bounds_and_every_default_is_allowed(nodes: ModuleType) -> None:
    for node, one in asked(nodes, "Int", "Float"):
        assert one.min is not None and one.max is not None, (node, one.id)
        assert one.min <= one.default <= one.max, (node, one.id)
    for node, one in asked(nodes, "Combo"):
        assert one.default is None or one.default in one.options, (node, one.id)


def test_what_is_folded_away_need_not_be_looked_at(nodes: ModuleType) -> None:
    """It is a widget, and its default serves."""
    folded = [
        one
        for _, one in asked(nodes, "Boolean", "Combo", "Float", "Int", "String")
        if (one.extra_dict or {}).get("advanced")
    ]
    assert folded and all(one.default is not None for one in folded)


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), -1e308, 10**5000, "../../etc", None, [], {}], ids=kind
)
def test_a_number_that_is_none_or_out_of_bounds_is_refused_by_its_name(nodes: ModuleType, value: Any) -> None:
    """Wired in, where ComfyUI does not look."""
    for node, one in asked(nodes, "Int", "Float"):
        assert refusal(nodes, node, **{one.id: value}).startswith(f"{one.id}: give a "), node


@pytest.mark.parametrize("value", ["../../etc/passwd", MARKUP, 3, None, [], "x" * 9999], ids=kind)
def test_a_choice_that_is_none_is_refused_by_its_name(nodes: ModuleType, value: Any) -> None:
    for node, one in asked(nodes, "Combo"):
        assert refusal(nodes, node, **{one.id: value}).startswith(f"{one.id}: there is no "), node


@pytest.mark.parametrize("value", [None, 3, [], "x" * 20_001], ids=kind)
def test_a_text_that_is_none_or_endless_is_refused_by_its_name(nodes: ModuleType, value: Any) -> None:
    json_inputs = sys.modules[f"{stand_in.PACK}.nodes.inputs"].JSON_INPUTS
    for node, one in asked(nodes, "String"):
        if not (isinstance(value, str) and one.id in json_inputs):
            assert refusal(nodes, node, **{one.id: value}).startswith(f"{one.id}: "), node


@pytest.mark.parametrize(
    "value", ["{", "[]", "null", '{"version": 2}', '{"objects": 3}', "[" * 100_000, "9" * 10_000], ids=kind
)
def test_a_broken_layout_is_refused_by_the_name_of_its_input(nodes: ModuleType, value: str) -> None:
    """No matter where it is given."""
    assert refusal(nodes, nodes.LayoutPlanner, prompt="a red circle", seed=0, pinned=value).startswith(
        "pinned: "
    )
    size = {"width": 64, "height": 64, "num_frames": 21}
    assert refusal(nodes, nodes.LayoutEditor, prompt="", drawn=value, **size).startswith("drawn: ")


def test_markup_in_names_stays_text(nodes: ModuleType) -> None:
    """What an artist's browser shows is escaped by what shows it, and comes out of here as it went in."""
    keyframe = {"time": 0, "box": {"x": 0, "y": 0, "w": 0.5, "h": 0.5}}
    thing = {"id": MARKUP, "name": MARKUP, "phrase": MARKUP, "keyframes": [keyframe]}
    pinned = json.dumps({"objects": [thing]})
    made = nodes.LayoutPlanner.execute(prompt=f"a {MARKUP}", seed=0, pinned=pinned)
    layout = made.values[0]
    assert layout.objects[0].name == MARKUP
    assert nodes.LayoutPreview.execute(layout=layout, num_frames=1, width=16, height=16, fps=8.0).values


def test_what_stands_below_a_node_is_no_markup(nodes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    """Frontends of 2025 take it for HTML."""
    host, said = sys.modules[f"{stand_in.PACK}.nodes.host"], []
    server = type("Server", (), {"send_progress_text": staticmethod(lambda text, node: said.append(text))})
    monkeypatch.setattr(sys.modules["server"], "PromptServer", type("PromptServer", (), {"instance": server}))
    host.text_on("7")(MARKUP)
    assert said and "<" not in said[0]


def test_masks_and_pictures_too_large_to_draw_are_refused(nodes: ModuleType) -> None:
    layout = nodes.LayoutPlanner.execute(prompt="a red circle", seed=0).values[0]
    size = {"num_frames": 1024, "width": 4096, "height": 4096}
    soften = {"kind": "gaussian", "softness": 0.25}
    for node, more in ((nodes.SoftMask, soften), (nodes.LayoutPreview, {"fps": 8.0})):
        assert refusal(nodes, node, layout=layout, **size, **more).startswith("num_frames, width, height: ")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../outside", "/tmp", "a/b", "a\\b", "a\0b", "a.", "𝔸" * 64, "x" * 65], ids=kind
)
def test_a_memory_is_a_name_and_no_path(nodes: ModuleType, name: str) -> None:
    said = refusal(nodes, nodes.MemoryOpen, name=name, read_only=False, max_entries=0)
    assert said.startswith("name: A memory cannot be called")


def test_an_export_stays_in_the_output_folder(nodes: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(prefix: str, root: str) -> None:
        raise Exception(f"**** ERROR: not allowed.\n full_output_folder: {root}/{prefix}")

    monkeypatch.setattr(sys.modules["folder_paths"], "get_save_image_path", refuse)
    memory = nodes.MemoryOpen.execute(name="exported", read_only=False, max_entries=0).values[0]
    given = {"memory": memory, "words": "", "filename_prefix": "../../x", "licence": "MIT"}
    said = refusal(nodes, nodes.MemoryExport, **given)
    assert said.startswith("filename_prefix: ") and "full_output_folder" not in said
    assert refusal(nodes, nodes.MemoryExport, **given | {"licence": " "}).startswith("licence: ")


def test_what_is_to_be_deleted_is_named_by_ids(nodes: ModuleType) -> None:
    memory = nodes.MemoryOpen.execute(name="thinned", read_only=False, max_entries=0).values[0]
    for ids in ("../../etc", "*", "' OR 1=1 --", "f" * 32):
        said = refusal(nodes, nodes.MemoryDelete, memory=memory, ids=ids, words="", really=True)
        assert said.startswith("ids: "), said


def test_a_missing_package_is_named_when_it_is_needed(
    nodes: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The nodes are there without it."""
    monkeypatch.setitem(sys.modules, "diffusers", None)
    said = refusal(nodes, nodes.LoadModel, model="demo")
    assert said.startswith("The Python package diffusers is missing; install ")


@pytest.mark.parametrize("seed", [2**32, 2**64 - 1])
def test_one_seed_serves_the_planner_and_the_sampler(nodes: ModuleType, seed: int) -> None:
    """Whatever ComfyUI's own seeds may be, the planner takes."""
    one, again = (nodes.LayoutPlanner.execute(prompt="a red circle", seed=seed).values[3] for _ in "ab")
    assert one == again != nodes.LayoutPlanner.execute(prompt="a red circle", seed=seed - 1).values[3]


def test_a_language_model_is_unloaded_once_it_has_planned(nodes: ModuleType) -> None:
    """And where the server cannot, the plan is there all the same, with a note."""
    with chat_server() as server:
        llm = nodes.LanguageModel.execute(
            model="toy", base_url=server.url, mode="one call", enrich=False, temperature=0.0, timeout=20.0,
            key_variable="",
        ).values[0]  # fmt: skip
        server.script[:] = [well, lambda request: request.send(200, "{}")]
        asked = {"prompt": "a red circle", "llm": llm, "unload": True}
        notes = nodes.LayoutPlanner.execute(seed=1, **asked).values[2]
        assert [request.path for request in server.requests] == ["/v1/chat/completions", "/api/generate"]
        assert "unload" not in notes
        nodes.LayoutPlanner.execute(seed=1, **asked)
        assert len(server.requests) == 2, "a remembered plan loads nothing"
        server.script[:] = [well, lambda request: request.send(404, "{}")]
        assert "did not unload 'toy'" in nodes.LayoutPlanner.execute(seed=2, **asked).values[2]


def test_importing_the_nodes_imports_nothing_heavy(tmp_path: Path) -> None:
    """The seconds are benchmarks/comfyui.py's; this is what they are made of. ComfyUI has torch by then."""
    code = (
        "import asyncio, sys, torch, pathlib, comfyui_stand_in as stand_in; before = set(sys.modules);"
        "stand_in.install(pathlib.Path(sys.argv[1])); nodes = stand_in.import_pack();"
        "[n.define_schema() for n in asyncio.run(nodes.TTOMExtension().get_node_list())];"
        "print(*set(sys.modules) - before)"
    )
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr
    imported = set(run.stdout.split())
    assert stand_in.PACK in imported
    assert not HEAVY & {name.split(".")[0] for name in imported}
    assert not LATER & imported
