"""The house keeps its shape: who may import whom, what results look like, what is tracked."""

from __future__ import annotations

import ast
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "ttom_core"

# The story of CONTRIBUTING.md: a room of ttom_core, and the rooms of ttom_core it may import.
# A room may always import itself and errors. A new room is given a row here.
FOUNDATIONS = {"layout", "masks", "objectives", "adapter", "fusion"}
SCENE = {"layout", "conversion", "pictures", "planner"}
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "errors": set(),
    "layout": set(),
    "conversion": {"layout"},
    "pictures": {"layout"},
    "planner": {"layout"},
    "masks": {"layout"},
    "objectives": set(),
    "adapter": set(),
    "fusion": {"adapter"},
    "attention": set(),
    "backbones": {"attention", "adapter"},
    "optimize": {*FOUNDATIONS, "attention", "backbones.base"},
    "forecast": {*FOUNDATIONS, "attention", "backbones", "optimize"},
    "latents": {*FOUNDATIONS, "attention", "backbones.base", "optimize"},
    "probe": {*FOUNDATIONS, "attention", "backbones.base", "generate"},
    "memory": {*FOUNDATIONS, "planner"},
    "generate": {
        *FOUNDATIONS, "attention", "backbones.base", "forecast", "optimize", "latents", "memory", "planner",
    },
    "consolidate": {*FOUNDATIONS, "attention", "backbones.base", "forecast", "optimize"},
    "scenes": {"adapter", "backbones.base", "consolidate", "fusion", "memory", "optimize"},
    "evaluation": {*FOUNDATIONS, *SCENE, "backbones", "optimize", "probe", "memory", "generate"},
    "stream": {"layout", "backbones.base", "generate", "memory", "optimize", "planner"},
    "doctor_cli": {"backbones", "forecast", "optimize"},
    "memory_cli": {"memory", "planner"},
    "model_cli": {"backbones", "evaluation"},
    "probe_cli": {"backbones", "evaluation", "generate", "model_cli", "pictures", "planner", "probe"},
    "cli": {
        *FOUNDATIONS, *SCENE, "backbones", "optimize", "probe", "memory", "generate", "stream", "evaluation",
        "doctor_cli", "forecast", "memory_cli", "model_cli", "probe_cli", "scenes",
    },
}  # fmt: skip
WITHOUT_TORCH = ("layout", "conversion", "planner", "pictures")
HOST_FILES = ("host.py", "compat.py")  # what any node asks of ComfyUI, and how ComfyUI samples
HOST_MODULES = {"comfy", "comfy_extras", "comfy_execution", "folder_paths", "nodes", "server"}


def imports(path: Path, package: tuple[str, ...]) -> Iterator[str]:
    """Absolute dotted names that a file imports anywhere, functions and type checking included.

    Relative imports are resolved against `package`; `from a import b` gives `a.b`, because b may be
    a module.
    """
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = list(package[: len(package) - node.level + 1]) if node.level else []
            base += node.module.split(".") if node.module else []
            yield from (".".join([*base, alias.name]) for alias in node.names)


def package_of(path: Path) -> tuple[str, ...]:
    return path.relative_to(ROOT).parent.parts


def files(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(CORE).parts[0].removesuffix(".py")


def is_under(name: str, module: str) -> bool:
    return name == module or name.startswith(module + ".")


@pytest.mark.parametrize("path", files("ttom_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_rooms_import_only_what_lies_below(path: Path) -> None:
    room = room_of(path)
    assert room in MAY_IMPORT, f"the room {room!r} is new: give it a row in MAY_IMPORT"
    allowed = {f"ttom_core.{name}" for name in MAY_IMPORT[room] | {room, "errors"}}
    for name in imports(path, package_of(path)):
        if not is_under(name, "ttom_core") or name == "ttom_core.__version__":
            continue
        assert any(is_under(name, module) for module in allowed), f"{room} must not import {name}"


@pytest.mark.parametrize("path", files("ttom_core"), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_core_knows_neither_host_nor_demo(path: Path) -> None:
    for name in imports(path, package_of(path)):
        first = name.split(".")[0]
        assert first not in HOST_MODULES | {"comfy_api", "demo", "benchmarks", "tests"}, name


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_no_torch_in_the_light_rooms(room: str) -> None:
    for path in (p for p in files("ttom_core") if room_of(p) == room):
        for name in imports(path, package_of(path)):
            assert name.split(".")[0] not in {"torch", "diffusers", "transformers"}, (path, name)


@pytest.mark.parametrize("room", WITHOUT_TORCH)
def test_importing_a_light_room_loads_no_torch(room: str) -> None:
    """The files' own imports say little about what they pull in; this does."""
    code = f"import sys, ttom_core.{room}; sys.exit('torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr or f"ttom_core.{room} loaded torch"


def test_heavy_packages_wait_until_they_are_used() -> None:
    """Starting the command, or ComfyUI, must not wait for diffusers and transformers."""
    code = "import sys, ttom_core.cli; print(*{'diffusers', 'transformers'} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert not run.stdout.split(), f"importing ttom_core.cli loads {run.stdout}"


@pytest.mark.parametrize("path", files("nodes"), ids=lambda p: str(p.relative_to(ROOT)))
def test_nodes_reach_the_host_through_two_files(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            roots = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            roots = {(node.module or "").split(".")[0]}
        else:
            continue
        if path.name not in HOST_FILES:
            assert not roots & HOST_MODULES, f"{path.name}:{node.lineno} must go through {HOST_FILES}"
        assert not roots & {"ttom_core", "demo"}, (
            f"{path.name}:{node.lineno} imports absolutely; inside ComfyUI the core is ..ttom_core"
        )


def test_the_door_imports_nothing_when_it_opens() -> None:
    """pytest, and ComfyUI before it asks for the nodes, may import the root package at no cost."""
    door = ROOT / "__init__.py"
    if not door.exists():
        pytest.skip("the pack has no ComfyUI door yet")
    tree = ast.parse(door.read_text(encoding="utf-8"))
    top = [n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))]
    assert all(isinstance(n, ast.ImportFrom) and n.module == "__future__" for n in top)


def test_what_the_scan_reads_of_an_import(tmp_path: Path) -> None:
    path = tmp_path / "room.py"
    path.write_text("import a.b\nfrom . import c\ndef f():\n    from ..d import e\n")
    assert list(imports(path, ("pack", "room"))) == ["a.b", "pack.room.c", "pack.d.e"]


# ---- results and the README ----------------------------------------------------------------------

RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))


def check_result(result: object) -> None:
    """Hold one result file to {command, commit, machine, seed, figures: {name: {value, …}}}."""
    assert isinstance(result, dict)
    assert result.keys() >= {"command", "commit", "machine", "seed", "figures"}
    assert all(isinstance(result[k], str) and result[k] for k in ("command", "commit", "machine"))
    assert isinstance(result["seed"], int)
    assert result["figures"]
    for name, figure in result["figures"].items():
        assert figure.keys() == {"value", "low", "high", "n", "unit"}, name
        assert math.isfinite(figure["value"]), name
        assert isinstance(figure["n"], int), name
        assert figure["n"] >= 1, name
        assert isinstance(figure["unit"], str), name
        bounds = (figure["low"], figure["high"])
        if bounds != (None, None):
            assert bounds[0] <= figure["value"] <= bounds[1], name


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_results_have_the_agreed_form(path: Path) -> None:
    check_result(json.loads(path.read_text(encoding="utf-8")))


def readme(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "benchmarks" / "readme.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_readme_says_what_was_measured() -> None:
    run = readme("--check")
    assert run.returncode == 0, run.stderr


def test_a_stale_figure_is_found_and_remade(tmp_path: Path) -> None:
    figure = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 3, "unit": "ratio"}
    result = {"command": "make bench", "commit": "c0ffee", "machine": "2 CPU cores", "seed": 0}
    (tmp_path / "cost.json").write_text(json.dumps(result | {"figures": {"peak_memory": figure}}))
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- figures:cost -->\nold\n<!-- /figures:cost -->\nafter\n")
    where = ("--readme", str(page), "--results", str(tmp_path))
    stale = readme("--check", *where)
    assert stale.returncode == 1
    assert "cost" in stale.stderr
    assert readme(*where).returncode == 0
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "| peak memory | 0.5 | 0.4 – 0.6 | 3 | ratio |" in text
    assert "`make bench` at commit c0ffee, seed 0, on 2 CPU cores" in text
    assert readme("--check", *where).returncode == 0


# ---- what is tracked -----------------------------------------------------------------------------

MACHINE_PATH = re.compile(
    r"(?<![\w.~}\])-])/(?:home|Users|root|work|tmp|mnt|opt|scratch|workspace|private)/[\w.-]"
    r"|\b[A-Z]:\\{1,2}Users\b"
)


def tracked() -> list[Path]:
    """Files git knows; an unpacked archive has no git, and its tests of this skip."""
    run = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if run.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in run.stdout.decode().split("\0") if name]


def test_no_path_of_one_machine_is_tracked() -> None:
    for path in tracked():
        if not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" in content[:4096]:
            continue
        found = MACHINE_PATH.search(content.decode("utf-8", "replace"))
        assert not found, f"{path.relative_to(ROOT)} names a path of one machine: {found[0]}"


def test_machine_paths_are_told_from_others() -> None:
    slash = "/"
    for bad in ("home/ann/x", "work/main", "tmp/out.mp4"):
        assert MACHINE_PATH.search(f'open("{slash}{bad}")')
    for good in ("https://example.org/home/x", "outputs/tmp/x", "{root}/work/x", "a /tmp folder"):
        assert not MACHINE_PATH.search(good)


def test_what_runs_make_is_not_tracked() -> None:
    names = [path.relative_to(ROOT).as_posix() for path in tracked()]
    assert not [n for n in names if n.startswith(("outputs/", ".venv/")) or "__pycache__" in n]
    store = [n for n in names if n.startswith("memory_store/")]
    assert all(n == "memory_store/README.md" or n.startswith("memory_store/starter/") for n in store)


# ---- the pack's own papers -----------------------------------------------------------------------


def _list_of(text: str, name: str) -> list[str]:
    """The strings of `name = [...]` in pyproject.toml (Python 3.10 has no TOML reader)."""
    found = re.search(rf"^{re.escape(name)} = \[(.*?)^\]", text, re.DOTALL | re.MULTILINE)
    assert found, name
    return re.findall(r'^\s*"([^"]+)"', found[1], re.MULTILINE)


def _project(requirement: str) -> str:
    return re.split(r"[<>=!~\[ ]", requirement)[0].lower().replace("_", "-")


def test_comfyui_keeps_its_own_torch() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    hard = _list_of(text, "dependencies")
    forbidden = {"torch", "torchvision", "numpy", "pillow", "safetensors", "transformers"}
    assert not forbidden & {_project(line) for line in hard}
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == hard


def test_every_direct_dependency_is_pinned_and_its_licence_listed() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    direct = {_project(r) for key in ("dependencies", "core", "dev") for r in _list_of(text, key)}
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert direct - {"ttom"} <= {_project(name) for name in pins}
    licences = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8").lower()
    assert not [name for name in direct - {"ttom"} if f"| {name} |" not in licences]
    hook = (ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    assert f"rev: v{pins['ruff']} " in hook
    assert f'required-version = "=={pins["ruff"]}"' in text
