"""A real ComfyUI, started once for this folder's tests.

    COMFYUI_DIR     its folder (the one with main.py)
    COMFYUI_PYTHON  the Python that has its requirements and ours (default: the one running pytest)
    PLAYWRIGHT_CORE the folder of the npm package playwright-core, for the test in a browser
    CHROMIUM        the browser (default: chromium or google-chrome on the path)
    COMFYUI_GGUF    the folder of city96's ComfyUI-GGUF, for the tests of GGUF models
    COMFYUI_FRONTEND  another frontend than the installed one: the `static` folder of its package

It runs as a subprocess with a base directory of its own, so nothing of the installation is touched;
the pack is a link in `custom_nodes` there, under a name that is no Python name.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ttom_core.backbones.names import convert

ROOT = Path(__file__).resolve().parents[2]
CLONE = "ttom-clone.v1"
MODEL_FOLDER = "wan/a copy of the demo"
STARTS_WITHIN = 180  # seconds; a cold disk and a busy machine
RUNS_WITHIN = 480


@dataclass
class ComfyUI:
    """The running server: JSON over HTTP, and what it tells a client while it works."""

    port: int
    base: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=60) as answer:
            return json.load(answer)

    def post(self, path: str, body: object) -> tuple[int, Any]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                status, text = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            status, text = error.code, error.read()
        return status, json.loads(text) if text else None

    def view(self, file: dict[str, str]) -> bytes:
        query = urllib.parse.urlencode(file)
        with urllib.request.urlopen(f"{self.url}/view?{query}", timeout=60) as answer:
            return answer.read()

    def frames(self, run: Run, name: str) -> np.ndarray:
        """The frames that a node of a run saved or showed: uint8 [F, H, W, 3]."""
        files = run.outputs[name]["images"]
        return np.stack([np.asarray(Image.open(io.BytesIO(self.view(f))).convert("RGB")) for f in files])

    def run(self, graph: dict[str, Any], interrupt_at: int | None = None) -> Run:
        """Queue an API graph and follow it to its end; cancel it when a bar reaches a value."""
        cancelled = math.nan
        with Events(self.port) as events:
            status, answer = self.post("/prompt", {"prompt": graph, "client_id": events.client})
            assert status == 200, answer
            run = Run(answer["prompt_id"])
            for message in events:
                if isinstance(message, str):
                    run.texts.append(message)
                    continue
                kind, content = message["type"], message["data"]
                if content.get("prompt_id") != run.prompt_id:
                    continue
                if kind == "execution_cached":
                    run.cached = set(content["nodes"])
                elif kind == "progress":
                    run.progress.append((content["node"], content["value"], content["max"]))
                    if interrupt_at is not None and content["value"] == interrupt_at:
                        self.post("/interrupt", {})
                        cancelled = time.perf_counter()
                elif kind in {"execution_success", "execution_interrupted", "execution_error"}:
                    run.end = kind.removeprefix("execution_")
                    run.seconds_to_stop = time.perf_counter() - cancelled
                    run.error = content.get("exception_message", "")
                    break
        for _ in range(50):  # the history is written a moment after the last message
            if entry := self.get(f"/history/{run.prompt_id}").get(run.prompt_id):
                run.outputs = entry["outputs"]
                break
            time.sleep(0.1)
        return run


class Run:
    """What one queued graph did."""

    def __init__(self, prompt_id: str) -> None:
        self.prompt_id = prompt_id
        self.end = self.error = ""
        self.seconds_to_stop = math.nan  # from the cancel to its end
        self.cached: set[str] = set()
        self.progress: list[tuple[str, int, int]] = []  # node, value, maximum
        self.texts: list[str] = []
        self.outputs: dict[str, Any] = {}


class Events:
    """ComfyUI's websocket, read with the standard library: JSON messages as dicts, texts as str."""

    client = "ttom-tests"

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=RUNS_WITHIN)
        self.socket.sendall(
            f"GET /ws?clientId={self.client} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
            "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}\r\n\r\n".encode()
        )
        self.stream = self.socket.makefile("rb")
        assert b"101" in self.stream.readline()
        while self.stream.readline().strip():
            pass

    def __enter__(self) -> Events:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.socket.close()

    def __iter__(self) -> Iterator[dict[str, Any] | str]:
        while True:
            first, length = self.stream.read(2)
            if length == 126:
                (length,) = struct.unpack(">H", self.stream.read(2))
            elif length == 127:
                (length,) = struct.unpack(">Q", self.stream.read(8))
            content = self.stream.read(length)
            kind = first & 0x0F
            if kind == 1:
                yield json.loads(content)
            elif kind == 2 and content[:4] == struct.pack(">I", 3):  # the text below a node
                (name,) = struct.unpack(">I", content[4:8])
                yield content[8 + name :].decode()


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComfyUI]:
    folder = os.environ.get("COMFYUI_DIR")
    if not folder:
        pytest.skip("COMFYUI_DIR is not set: the folder of a ComfyUI installation to test against")
    main = Path(folder).expanduser() / "main.py"
    if not main.exists():
        pytest.skip(f"COMFYUI_DIR={folder} holds no main.py, so it is no ComfyUI")
    demo = ROOT / "demo" / "model"
    if not (demo / "model_index.json").exists():
        pytest.skip("demo/model holds no model; `make train` makes it")

    base = tmp_path_factory.mktemp("comfyui")
    for room in ("custom_nodes", "input", "output", "temp", "user/default"):
        (base / room).mkdir(parents=True)
    (base / "custom_nodes" / CLONE).symlink_to(ROOT, target_is_directory=True)
    (base / "custom_nodes" / "failing.py").symlink_to(Path(__file__).with_name("failing.py"))
    if gguf := os.environ.get("COMFYUI_GGUF"):
        (base / "custom_nodes" / "ComfyUI-GGUF").symlink_to(Path(gguf).resolve(), target_is_directory=True)
    link = base / "models" / "diffusers" / MODEL_FOLDER
    link.parent.mkdir(parents=True)
    link.symlink_to(demo, target_is_directory=True)
    # The name under which the workflows expect it.
    convert(demo, base / "models" / "diffusion_models" / "ttom_demo.safetensors")
    # Without this a first visit is covered by the frontend's tutorial.
    settings = {"Comfy.TutorialCompleted": True, "Comfy.Workflow.ShowMissingNodesWarning": True}
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(settings))

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        os.environ.get("COMFYUI_PYTHON") or sys.executable, str(main),
        "--cpu", "--port", str(port), "--base-directory", str(base),
        "--database-url", "sqlite:///:memory:", "--disable-api-nodes", "--disable-auto-launch",
    ]  # fmt: skip
    if frontend := os.environ.get("COMFYUI_FRONTEND"):
        command += ["--front-end-root", frontend]
    log = base / "comfyui.log"
    with log.open("wb") as sink:
        server = subprocess.Popen(command, cwd=main.parent, stdout=sink, stderr=sink)
    running = ComfyUI(port, base, log)
    try:
        deadline = time.monotonic() + STARTS_WITHIN
        while True:
            try:
                running.get("/queue")
                break
            except OSError:
                tail = log.read_text(errors="replace")[-3000:]
                assert server.poll() is None, f"ComfyUI stopped while starting:\n{tail}"
                assert time.monotonic() < deadline, f"ComfyUI does not answer:\n{tail}"
                time.sleep(0.5)
        yield running
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="session")
def chromium() -> tuple[str, str, str]:
    """What drives the frontend: node, playwright-core and a Chromium."""
    node = shutil.which("node")
    if not node:
        pytest.skip("node is not on the path")
    library = os.environ.get("PLAYWRIGHT_CORE")
    if not library:
        pytest.skip("PLAYWRIGHT_CORE is not set: the folder of the npm package playwright-core")
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if not browser:
        pytest.skip("no Chromium on the path; CHROMIUM names one elsewhere")
    return node, str(Path(library).resolve()), browser
