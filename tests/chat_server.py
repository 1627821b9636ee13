"""A chat-completions server on localhost that plans well, or misbehaves as a test tells it to.

Requests are answered by what stands in `script`, one entry each; where the script is over, well.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from ttom_core.planner import plan
from ttom_core.planner.camera import World

Answer = Callable[["Request"], None]


class Request(BaseHTTPRequestHandler):
    """One request, and the ways to answer it."""

    server: ChatServer

    def log_message(self, *arguments: object) -> None:
        pass

    def do_POST(self) -> None:
        length = int(self.headers["Content-Length"])
        self.body: dict[str, Any] = json.loads(self.rfile.read(length))
        with self.server.lock:
            self.server.requests.append(self)
            answer = self.server.script.pop(0) if self.server.script else well
        try:
            answer(self)
        except (BrokenPipeError, ConnectionResetError):
            self.server.hung_up.set()
        self.close_connection = True

    # What was asked

    @property
    def material(self) -> dict[str, Any]:
        """The user's message: the prompt, and what earlier stages made of it."""
        return json.loads(self.body["messages"][1]["content"])

    @property
    def form(self) -> str:
        """Which answer is wanted, by the schema that was sent, in whatever way it was sent."""
        kind = self.body.get("response_format", {})
        if kind.get("type") == "json_schema":
            return kind["json_schema"]["name"]
        schema = self.body["messages"][0]["content"].rpartition("The JSON schema of the answer: ")[2]
        return json.loads(schema)["title"]

    # What is answered

    def say(self, text: str, reason: str | None = "stop", **message: Any) -> None:
        """A whole chat completion with this text, streamed where that was asked for."""
        usage = {"prompt_tokens": 1000, "completion_tokens": 500, "total_tokens": 1500}
        base = {"id": "1", "created": 0, "model": self.body["model"]}
        if not self.body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}}
            done = {"object": "chat.completion", "choices": [choice | {"finish_reason": reason}]}
            return self.send(200, json.dumps(base | done | {"usage": usage}))
        self.begin()
        base["object"] = "chat.completion.chunk"
        size = max(1, len(text) // 5)
        for part in [text[i : i + size] for i in range(0, len(text), size)]:
            self.event(base | {"choices": [{"index": 0, "delta": {"content": part}, "finish_reason": None}]})
        self.event(base | {"choices": [{"index": 0, "delta": message, "finish_reason": reason}]})
        if self.body.get("stream_options"):
            self.event(base | {"choices": [], "usage": usage})
        self.wfile.write(b"data: [DONE]\n\n")

    def begin(self, kind: str = "text/event-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.end_headers()

    def event(self, value: Any) -> None:
        self.wfile.write(f"data: {json.dumps(value)}\n\n".encode())
        self.wfile.flush()

    def send(self, status: int, text: str, kind: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(text.encode())))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(text.encode())


class ChatServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Request)
        self.requests: list[Request] = []
        self.script: list[Answer] = []
        self.lock = threading.Lock()
        self.hung_up = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


@contextmanager
def chat_server() -> Iterator[ChatServer]:
    with ChatServer() as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.shutdown()


# Answers ------------------------------------------------------------------------------------------


def planned(request: Request) -> dict[str, Any]:
    """What a good model answers: the rule planner's layout, in the form that was asked for."""
    material = request.material
    if request.form == "Description":
        return {"description": f"{material['prompt']}, in soft evening light. The camera rests."}
    text = material.get("text", material["prompt"])
    world = World.of(plan(text)).model_dump(mode="json")
    if request.form == "Things":
        return {"objects": [{k: o[k] for k in ("id", "name", "phrase")} for o in world["objects"]]}
    return world if request.form == "World" else {"description": text, "plan": world}


def well(request: Request) -> None:
    request.say(json.dumps(planned(request)))


def saying(text: str, **rest: Any) -> Answer:
    return lambda request: request.say(text, **rest)


def around(before: str, after: str) -> Answer:
    """A good answer with something before and after it."""
    return lambda request: request.say(before + json.dumps(planned(request)) + after)


def changed(change: Callable[[dict[str, Any]], Any]) -> Answer:
    """A good answer that `change` has spoilt, in place: it is given the world, in either form."""

    def answer(request: Request) -> None:
        value = planned(request)
        change(value.get("plan", value))
        request.say(json.dumps(value))

    return answer


def failing(status: int, message: str = "no", **headers: str) -> Answer:
    body = json.dumps({"error": {"message": message, "type": "error"}})
    return lambda request: request.send(status, body, **headers)


def dripping(request: Request) -> None:
    """An answer of which a letter comes now and then, for ever."""
    request.begin()
    while True:
        delta = {"content": " "}
        choice = {"index": 0, "delta": delta, "finish_reason": None}
        request.event({"id": "1", "object": "chat.completion.chunk", "choices": [choice]})
        time.sleep(0.05)


def silent(request: Request) -> None:
    """Keeps the connection open with comments and never answers."""
    request.begin()
    while True:
        request.wfile.write(b": still here\n\n")
        request.wfile.flush()
        time.sleep(0.05)


def hanging(request: Request) -> None:
    """Says nothing at all."""
    request.server.hung_up.wait(5)


def closing(request: Request) -> None:
    """Closes the connection without a word."""


def breaking_off(request: Request) -> None:
    """Closes the connection in the middle of an answer."""
    request.begin()
    choice = {"index": 0, "delta": {"content": '{"reasoning": "The ci'}, "finish_reason": None}
    request.event({"id": "1", "object": "chat.completion.chunk", "choices": [choice]})
