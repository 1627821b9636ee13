"""A saved workflow as what ComfyUI's frontend would queue."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOTES = {"Note", "MarkdownNote"}
WIDGETS = {"STRING", "INT", "FLOAT", "BOOLEAN", "COMBO", "TTOM_DRAWING"}
MUTED, BYPASSED = 2, 4

Graph = dict[str, Any]


def saved_prompt(path: Path, info: Graph) -> Graph:
    """The API graph of a workflow's file."""
    return prompt_of(json.loads(path.read_text(encoding="utf-8")), info)


def prompt_of(workflow: Graph, info: Graph) -> Graph:
    """The API graph of a saved workflow: muted nodes left out, links by name; `info` is /object_info."""
    nodes = {n["id"]: n for n in workflow["nodes"] if n["type"] not in NOTES and n["mode"] != MUTED}
    origins = {link[0]: (link[1], link[2]) for link in workflow["links"]}
    graph = {}
    for number, node in nodes.items():
        inputs = values(node, info[node["type"]])
        for socket in node["inputs"]:
            source, slot = origins.get(socket["link"], (None, None))
            if source in nodes:
                inputs[socket["name"]] = [str(source), slot]
        title = node.get("title", node["type"])
        graph[str(number)] = {"class_type": node["type"], "inputs": inputs, "title": title}
    return graph


def specs(schema: Graph) -> Iterator[tuple[str, tuple[str, Graph]]]:
    """A node's inputs in order: name, type and options."""
    for name, spec in {**schema["input"].get("required", {}), **schema["input"].get("optional", {})}.items():
        kind, options = spec[0], spec[1] if len(spec) > 1 else {}
        if isinstance(kind, list):  # how nodes of the first version write a COMBO
            kind, options = "COMBO", options | {"options": kind}
        yield name, (kind, options)


def values(node: Graph, schema: Graph) -> Graph:
    """Widget values by name, in the order in which they are saved; older files end before newer inputs."""
    saved = list(node.get("widgets_values") or ())
    named = {}
    for name, (kind, options) in specs(schema):
        if kind not in WIDGETS or options.get("forceInput"):
            continue
        if not saved:
            break
        named[name] = saved.pop(0)
        if options.get("control_after_generate"):
            saved.pop(0)
    assert not saved, (node["type"], saved)
    return named
