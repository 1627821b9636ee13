"""The pack's own __init__.py, without ComfyUI: it opens under any name and loads nothing."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# How ComfyUI imports a custom node: by file, under a module name made of its path.
IMPORT = """
import importlib.util, inspect, sys
folder = sys.argv[1]
spec = importlib.util.spec_from_file_location(folder, folder + "/__init__.py")
pack = importlib.util.module_from_spec(spec)
sys.modules[folder] = pack
before = set(sys.modules), list(sys.path)
spec.loader.exec_module(pack)
assert pack.WEB_DIRECTORY == "./web"
assert inspect.iscoroutinefunction(pack.comfy_entrypoint)
assert not hasattr(pack, "NODE_CLASS_MAPPINGS")
heavy = {"torch", "ttom_core", "comfy_api", "nodes"} & sys.modules.keys()
assert not heavy, heavy
assert sys.path == before[1]
"""


@pytest.mark.parametrize("name", ["ComfyUI-TTOM", "ttom.v1-main", "nodes"])
def test_the_door_opens_without_comfyui_under_any_clone_name(name: str, tmp_path: Path) -> None:
    clone = tmp_path / name
    clone.mkdir()
    shutil.copy(ROOT / "__init__.py", clone)
    command = [sys.executable, "-I", "-c", IMPORT, str(clone)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


def test_every_node_has_its_help_page() -> None:
    """The frontend looks for docs/NODE_ID.md when help is opened."""
    pages = {page.stem for page in (ROOT / "web" / "docs").glob("*.md")}
    text = "".join(path.read_text() for path in (ROOT / "nodes").glob("*.py"))
    declared = {part.split('"')[0] for part in text.split('node_id="')[1:]}
    assert declared == pages
    assert all(node_id.startswith("TTOM_") for node_id in declared)
