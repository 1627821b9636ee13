"""Every shipped workflow: well formed, fitting the nodes' schemas, free of secrets, and run over HTTP."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
SAVED = SimpleNamespace(**runpy.run_path(str(ROOT / "benchmarks" / "workflows.py")))
EVERY = pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)

Graph = dict[str, Any]


@EVERY
def test_links_are_known_at_both_ends(path: Path) -> None:
    graph = json.loads(path.read_text(encoding="utf-8"))
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"]) and max(nodes) <= graph["last_node_id"]
    links = {link[0]: link for link in graph["links"]}
    assert len(links) == len(graph["links"])
    for number, source, out, target, place, kind in links.values():
        given, taken = nodes[source]["outputs"][out], nodes[target]["inputs"][place]
        assert number in given["links"] and taken["link"] == number
        assert kind in {given["type"], "*"} and taken["type"] in {given["type"], "*"}
    ends = [i["link"] for n in nodes.values() for i in n["inputs"] if i["link"] is not None]
    assert sorted(ends) == sorted(links)
    assert sorted(k for n in nodes.values() for o in n["outputs"] for k in o["links"] or ()) == sorted(links)


@EVERY
def test_a_workflow_carries_no_secret_and_no_path(path: Path) -> None:
    """Widget values are what people share without thinking."""
    for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
        for value in node.get("widgets_values") or ():
            assert not re.search(r"\bsk-|api[_-]?key|^/|\.\./|^[A-Z]:", str(value), re.IGNORECASE), value


@EVERY
def test_nothing_covers_anything_else(path: Path) -> None:
    nodes = json.loads(path.read_text(encoding="utf-8"))["nodes"]
    for i, one in enumerate(nodes):
        for other in nodes[:i]:
            apart = [
                one["pos"][axis] >= other["pos"][axis] + other["size"][axis]
                or other["pos"][axis] >= one["pos"][axis] + one["size"][axis]
                for axis in (0, 1)
            ]
            assert any(apart), (one["type"], other["type"])


def test_every_workflow_has_a_thumbnail() -> None:
    """Where the template browser looks: the workflow's name, and .jpg alone."""
    thumbnails = sorted((ROOT / "workflows").glob("*.jpg"))
    if not thumbnails:
        pytest.skip("there are no thumbnails yet: make thumbnails")
    assert [path.stem for path in thumbnails] == [path.stem for path in WORKFLOWS]
    for path in thumbnails:
        assert path.stat().st_size <= 60_000, path.name
        with Image.open(path) as picture:
            assert picture.format == "JPEG"
            assert 0.5 <= picture.width / picture.height <= 2, "a thin strip is lost in the browser's cards"


@pytest.mark.comfyui
@pytest.mark.timeout(900)
@EVERY
def test_a_workflow_fits_the_schemas(comfyui: Any, path: Path) -> None:
    info = comfyui.get("/object_info")
    for node in json.loads(path.read_text(encoding="utf-8"))["nodes"]:
        if node["type"] in SAVED.NOTES:
            continue
        schema = info[node["type"]]
        assert [o["type"] for o in node["outputs"]] == schema["output"][: len(node["outputs"])], node["type"]
        specs = dict(SAVED.specs(schema))
        for socket in node["inputs"]:
            assert socket["name"] in specs, (node["type"], socket["name"])
        linked = {i["name"] for i in node["inputs"] if i["link"] is not None}
        values = SAVED.values(node, schema)
        for name in schema["input"].get("required", {}):
            assert name in linked | values.keys(), (node["type"], name)
        for name, value in values.items():
            if node["mode"] in (SAVED.MUTED, SAVED.BYPASSED):
                continue
            kind, options = specs[name]
            if kind == "COMBO":
                assert value in options["options"], (node["type"], name, value)
            elif kind in ("INT", "FLOAT"):
                assert options.get("min", value) <= value <= options.get("max", value), (node["type"], name)


@pytest.mark.comfyui
@pytest.mark.timeout(900)
@EVERY
def test_a_workflow_runs_as_it_is_shipped(comfyui: Any, path: Path) -> None:
    graph = SAVED.saved_prompt(path, comfyui.get("/object_info"))
    run = comfyui.run(graph)
    assert run.end == "success", run.error
    shown = [name for name, node in graph.items() if node["class_type"] == "SaveVideo"]
    assert shown
    for name in shown:
        (file,) = run.outputs[name]["images"]
        assert comfyui.view(file)[4:8] == b"ftyp"
    checks = {"compare_methods": _methods_differ, "memory_stream": _memory_learns, "share_a_pack": _is_packed}
    if path.stem in checks:
        checks[path.stem](comfyui, graph, run)


def _methods_differ(comfyui: Any, graph: Graph, run: Any) -> None:
    """The memory learnt from another prompt is found by this one."""
    assert "green triangle" in text(run, graph, "What the memory found")


def _memory_learns(comfyui: Any, graph: Graph, run: Any) -> None:
    """The first prompt is new; the later ones find it."""
    known = [
        run.outputs[name]["text"][0] for name, node in graph.items() if node["title"] == "What was known"
    ]
    assert [words.startswith("Nothing is known") for words in known] == [True, False, False]


def _is_packed(comfyui: Any, graph: Graph, run: Any) -> None:
    assert "Entries in pack_00001_.ttompack: 1." in text(run, graph, "The pack")
    assert list((comfyui.base / "output" / "memory").glob("*.ttompack"))


def text(run: Any, graph: Graph, title: str) -> str:
    (name,) = (name for name, node in graph.items() if node["title"] == title)
    return run.outputs[name]["text"][0]
