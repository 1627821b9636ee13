"""`ttom plan`: by the rules, by a language model over real HTTP, and a layout that is checked again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_server import ChatServer, changed, chat_server, failing
from PIL import Image

from ttom_core.cli import main
from ttom_core.layout import Layout

PROMPT = "a red circle moves to the right while a blue square stays still"
KEY = "sk-secret-0123456789"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ChatServer]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    with chat_server() as server:
        yield server


def by_model(server: ChatServer, *more: str) -> list[str]:
    return ["plan", PROMPT, "--llm", "toy", "--base-url", server.url, *more]


@pytest.mark.parametrize(("mode", "requests"), [("staged", 2), ("one-call", 1)])
def test_a_model_plans_and_says_what_it_took(
    server: ChatServer, capsys: pytest.CaptureFixture[str], mode: str, requests: int
) -> None:
    assert main(by_model(server, "--mode", mode, "--prices", "2", "10", "--temperature", "0.5")) == 0
    out, err = capsys.readouterr()
    assert Layout.from_json(out).planner == "llm toy" and len(server.requests) == requests
    assert f"{requests} answers, 0 asked again" in err and f"{requests * 1000} + " in err and "USD" in err
    assert server.requests[0].body["temperature"] == 0.5
    assert main(by_model(server, "--mode", mode, "--prices", "2", "10", "--temperature", "0.5")) == 0
    again, err = capsys.readouterr()
    assert again == out and "from the cache" in err and len(server.requests) == requests
    assert main(by_model(server, "--mode", mode, "--temperature", "0.5", "--no-cache", "--seed", "3")) == 0
    assert len(server.requests) == 2 * requests and server.requests[-1].body["seed"] == 3


def test_what_was_repaired_and_what_remains_is_said(
    server: ChatServer, capsys: pytest.CaptureFixture[str]
) -> None:
    def backwards(world: dict) -> None:
        keys = world["objects"][0]["keyframes"]
        keys[0]["x"], keys[-1]["x"] = keys[-1]["x"] + 0.2, keys[0]["x"]

    server.script[:] = [changed(backwards)] * 3
    assert main(by_model(server, "--mode", "one-call")) == 0
    out, err = capsys.readouterr()
    assert "moved inside" in err and "2 asked again" in err
    assert any("should move right" in sentence for sentence in Layout.from_json(out).unresolved)


def test_the_rules_stand_in_where_asked(server: ChatServer, capsys: pytest.CaptureFixture[str]) -> None:
    server.script[:] = [failing(401)] * 2
    assert main(by_model(server)) == 2
    assert "refused the key" in capsys.readouterr().err
    assert main(by_model(server, "--fallback")) == 0
    assert Layout.from_json(capsys.readouterr().out).planner == "rules"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan"], "empty"),
        (["plan", PROMPT, "--base-url", "http://localhost/v1"], "add --llm MODEL"),
        (["plan", PROMPT, "--llm", "toy", "--base-url", "localhost"], "base-url: give an http"),
        (["plan", PROMPT, "--llm", "toy", "--temperature", "3"], "temperature: "),
        (["plan", PROMPT, "--llm", "toy", "--timeout", "0"], "timeout: "),
        (["plan", PROMPT, "--llm", "toy"], "no key in OPENAI_API_KEY"),
        (["plan", "--check", "nowhere.json"], "cannot be read"),
    ],
)
def test_mistakes_get_one_sentence(
    server: ChatServer, capsys: pytest.CaptureFixture[str], arguments: list[str], words: str
) -> None:
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert words in err and err.count("\n") == 1


def test_a_layout_edited_by_hand_is_checked_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, picture = tmp_path / "layout.json", tmp_path / "layout.png"
    assert main(["plan", PROMPT, "--out", str(path)]) == 0
    assert main(["plan", "--check", str(path), "--show", str(picture)]) == 0
    assert Image.open(picture).width > 500
    edited = json.loads(path.read_text())
    edited["objects"][0]["keyframes"].reverse()
    for key, time in zip(edited["objects"][0]["keyframes"], (0, 1), strict=True):
        key["time"] = time
    path.write_text(json.dumps(edited))
    capsys.readouterr()
    assert main(["plan", "--check", str(path)]) == 2
    err = capsys.readouterr().err
    assert "'red circle 1' should move right" in err and "does not obey its prompt" in err
    assert main(["plan", PROMPT.replace("right", "left"), "--check", str(path)]) == 0
