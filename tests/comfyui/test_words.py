"""What an artist reads: every node has its help page, and its words in the locale."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCALE: dict[str, Any] = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
PAGES = {page.stem: page.read_text(encoding="utf-8") for page in (ROOT / "web" / "docs").glob("*.md")}


def test_every_node_has_a_page_and_every_page_a_node() -> None:
    assert PAGES.keys() == LOCALE.keys()


@pytest.mark.parametrize("name", LOCALE)
def test_a_page_begins_with_the_nodes_name_and_speaks_of_every_input(name: str) -> None:
    page = PAGES[name]
    assert page.startswith(f"# {LOCALE[name]['display_name']}\n")
    bold = set(re.findall(r"\*\*([^*]+)\*\*", page))
    missing = LOCALE[name]["inputs"].keys() - bold - {"drawn"}  # the editor itself
    assert not missing, f"web/docs/{name}.md says nothing of {sorted(missing)}"


@pytest.mark.comfyui
@pytest.mark.timeout(900)
def test_the_locale_says_what_the_schemas_say_and_leaves_nothing_out(comfyui: Any) -> None:
    """Where a schema has a tooltip the locale repeats it; the others stand in the locale alone."""
    info = {name: node for name, node in comfyui.get("/object_info").items() if name.startswith("TTOM_")}
    assert LOCALE.keys() == info.keys()
    for name, node in info.items():
        words = LOCALE[name]
        assert (words["display_name"], words["description"]) == (node["display_name"], node["description"])
        inputs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        assert words["inputs"].keys() == inputs.keys(), name
        for key, spec in inputs.items():
            options = spec[1] if len(spec) > 1 else {}
            _agree(words["inputs"][key], options.get("display_name") or key, options.get("tooltip"), name)
        assert list(words["outputs"]) == [str(place) for place in range(len(node["output"]))], name
        tips = node.get("output_tooltips") or [None] * len(node["output"])
        for said, called, tip in zip(words["outputs"].values(), node["output_name"], tips, strict=True):
            _agree(said, called, tip, name)


def _agree(said: dict[str, str], called: str, tip: str | None, name: str) -> None:
    assert said.keys() == {"name", "tooltip"}, (name, called)
    assert said["name"] == called, name
    assert said["tooltip"].endswith((".", ")", "?")), (name, called)
    assert tip is None or said["tooltip"] == tip, (name, called)


@pytest.mark.comfyui
@pytest.mark.timeout(900)
def test_comfyui_hands_the_locale_to_the_frontend(comfyui: Any) -> None:
    assert comfyui.get("/i18n")["en"]["nodeDefs"].items() >= LOCALE.items()
