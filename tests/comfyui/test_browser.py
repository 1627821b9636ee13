"""The memory browser's routes, in a real ComfyUI: ids and names only, whatever is sent."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.parse
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ttom_core.adapter import Adapter
from ttom_core.layout import Layout
from ttom_core.memory.key import scene_key
from ttom_core.memory.pack import export_pack
from ttom_core.memory.store import MemoryStore
from ttom_core.planner import plan

pytestmark = [pytest.mark.comfyui, pytest.mark.timeout(900)]

PROMPTS = ["a red circle moves to the right", "a blue square falls", "a dog <b>runs</b> to the left"]
ROOT = "/ttom/memories"


def ask(
    comfyui: Any, path: str, body: Any = None, kind: str = "application/json"
) -> tuple[int, dict[str, Any] | bytes]:
    """GET, or POST when there is a body."""
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    request = urllib.request.Request(comfyui.url + path, content, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            status, found, told = answer.status, answer.read(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        status, found, told = error.code, error.read(), error.headers["Content-Type"]
    return status, json.loads(found) if told.startswith("application/json") else found


def remember(store: MemoryStore, prompt: str, n: int) -> None:
    """A toy adapter for a prompt, another one for each n."""
    layout = plan(prompt)
    weights = {"blocks.0.attn2.to_q": (torch.ones(2, 4) * (n + 1), torch.ones(4, 2))}
    adapter = Adapter(weights=weights, rank=2, alpha=2.0, fingerprint="toy")
    embedding = np.eye(8, dtype=np.float32)[n]
    store.insert(adapter, scene_key(prompt, layout), embedding, embedder="toy", prompt=prompt, layout=layout)


@pytest.fixture
def memory(comfyui: Any) -> str:
    """The address of a new memory with an entry a prompt."""
    name = f"browsed {uuid.uuid4().hex[:8]}"
    with MemoryStore(comfyui.base / "user" / "ttom_memory" / name) as store:
        for n, prompt in enumerate(PROMPTS):
            remember(store, prompt, n)
    return f"{ROOT}/{urllib.parse.quote(name)}"


def listed(comfyui: Any, memory: str, words: str = "") -> list[dict[str, Any]]:
    status, answer = ask(comfyui, f"{memory}?words={urllib.parse.quote(words)}")
    assert status == 200, answer
    assert isinstance(answer, dict)
    return answer["entries"]


def test_a_memory_is_seen_searched_pinned_thinned_and_mended(comfyui: Any, memory: str) -> None:
    assert ask(comfyui, ROOT)[1][urllib.parse.unquote(memory.rsplit("/", 1)[1])] == 3
    entries = listed(comfyui, memory)
    assert [e["prompt"] for e in entries] == PROMPTS
    assert all(not e["missing"] and e["uses"] == 0 and not e["pinned"] for e in entries)
    assert Layout.model_validate(entries[0]["layout"]) == plan(PROMPTS[0])
    assert [e["prompt"] for e in listed(comfyui, memory, "blue falls")] == [PROMPTS[1]]

    first, second, _ = (e["id"] for e in entries)
    assert ask(comfyui, f"{memory}/pin", {"id": first, "pinned": True})[1]["pinned"] is True
    assert ask(comfyui, f"{memory}/delete", {"ids": [second]}) == (200, {"deleted": [second]})
    assert len(listed(comfyui, memory)) == 2
    assert "delete" in ask(comfyui, f"{memory}/undo", {})[1]["done"]
    assert {e["id"]: e["pinned"] for e in listed(comfyui, memory)}[first] is True
    assert len(listed(comfyui, memory)) == 3


def test_a_pack_goes_out_and_comes_in_elsewhere(comfyui: Any, memory: str) -> None:
    ids = [e["id"] for e in listed(comfyui, memory)][:2]
    status, pack = ask(comfyui, f"{memory}/export", {"ids": ids, "licence": "CC0-1.0"})
    assert status == 200 and isinstance(pack, bytes)
    assert ask(comfyui, f"{memory}/export?id={ids[0]}&id={ids[1]}&licence=CC0-1.0")[0] == 200
    assert "ids" in ask(comfyui, f"{memory}/export?id=../{ids[0]}&licence=CC0-1.0")[1]["error"]
    elsewhere = f"{memory}%20again"
    status, told = ask(comfyui, f"{elsewhere}/take-in", pack, "application/octet-stream")
    assert status == 200, told
    assert (sorted(told["taken"]), told["new"], told["licence"]) == (sorted(ids), 2, "CC0-1.0")
    assert sorted(e["id"] for e in listed(comfyui, elsewhere)) == sorted(ids)
    assert ask(comfyui, f"{elsewhere}/take-in", pack, "application/octet-stream")[1]["same"] == 2


def test_the_sidebar_is_used_with_the_mouse(
    comfyui: Any, chromium: tuple[str, str, str], memory: str, tmp_path: Path
) -> None:
    """The screenshot stays in pytest's temporary folder, or in SCREENSHOTS, to be looked at."""
    pictures = Path(os.environ.get("SCREENSHOTS", tmp_path))
    pictures.mkdir(parents=True, exist_ok=True)
    with MemoryStore(tmp_path / "other") as store:
        remember(store, "a green triangle rises", 0)
        export_pack(store, store.entries(), tmp_path / "given.ttompack", licence="MIT")
    node, library, browser = chromium
    name = urllib.parse.unquote(memory.rsplit("/", 1)[1])
    script, picture = str(Path(__file__).parent / "browser.mjs"), str(pictures / "memory browser.png")
    command = [node, script, library, browser, comfyui.url, picture, name, str(tmp_path / "given.ttompack")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=420)
    assert run.returncode == 0, run.stderr
    seen = json.loads(run.stdout)
    assert (seen["faults"], seen["outside"]) == ([], [])
    assert seen["prompts"] == PROMPTS[::-1]  # the newest first, and no text is taken for HTML
    assert seen["markup"] == 0
    assert seen["drawn"]
    assert seen["warning"] == "None of these was ever found by a prompt."
    assert seen["searched"] == [PROMPTS[1]]
    assert seen["exported"] == [f"{name}.ttompack", "PK"]
    assert seen["dragged"] == ["application/octet-stream", "a dog b runs b to the left.ttompack", "PK"]
    assert seen["notice"] == "Taken in: 1 (MIT)."


def test_an_entry_whose_file_is_gone_is_flagged(comfyui: Any, memory: str) -> None:
    name = urllib.parse.unquote(memory.rsplit("/", 1)[1])
    with MemoryStore(comfyui.base / "user" / "ttom_memory" / name) as store:
        entry = next(iter(store.entries()))
        store.value_path(entry.value).unlink()
    assert [e["missing"] for e in listed(comfyui, memory)] == [True, False, False]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/pin", {"id": "../../x"}, "ids"),
        ("/pin", {}, "ids"),
        ("/pin", {"id": "0" * 32}, "no memory entry"),
        ("/delete", {"ids": []}, "ids"),
        ("/delete", {"ids": "a" * 32}, "ids"),
        ("/delete", {"ids": [["x"]]}, "ids"),
        ("/delete", {"ids": ["a" * 32] * 501}, "ids"),
        ("/delete", [], "JSON object"),
        ("/delete", b"{", "JSON object"),
        ("/delete", b"\xff", "JSON object"),
        ("/export", {"ids": ["a" * 32], "licence": ""}, "licence"),
        ("/export", {"ids": ["a" * 32], "licence": "CC0-1.0"}, "no memory entry"),
    ],
)
def test_what_is_not_an_id_is_refused_in_one_sentence(
    comfyui: Any, memory: str, path: str, body: Any, words: str
) -> None:
    status, told = ask(comfyui, memory + path, body)
    assert status == 400 and isinstance(told, dict)
    assert words in told["error"]
    assert len(told["error"].splitlines()) == 1
    assert str(comfyui.base) not in told["error"]
    assert len(listed(comfyui, memory)) == 3


@pytest.mark.parametrize("name", ["..", "%2e%2e%2fuser", "a%2fb", "nobody", "x" * 300, ".hidden"])
def test_a_memory_is_named_and_never_pathed(comfyui: Any, name: str) -> None:
    before = sorted((comfyui.base / "user").rglob("*"))
    for path, body in (("", None), ("/delete", {"ids": ["a" * 32]}), ("/undo", {})):
        assert ask(comfyui, f"{ROOT}/{name}{path}", body)[0] in {400, 403, 404, 405}
    assert ask(comfyui, f"{ROOT}/{name}/take-in", b"no pack", "application/octet-stream")[0] >= 400
    after = {path.name for path in (comfyui.base / "user").rglob("*")} - {path.name for path in before}
    assert not [found for found in after if "hidden" in found or "user" in found]


def test_a_form_of_another_site_changes_nothing(comfyui: Any, memory: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded"):
        assert ask(comfyui, f"{memory}/undo", b"{}", kind)[0] == 400
        assert ask(comfyui, f"{memory}/take-in", b"{}", kind)[0] == 400
    assert ask(comfyui, f"{memory}/take-in", b"no pack", "application/octet-stream")[0] == 400
    assert len(listed(comfyui, memory)) == 3
