"""One answer from a chat-completions server: OpenAI, Ollama, vLLM, LM Studio, llama.cpp.

The JSON schema of `openai`'s structured outputs is asked for as `chat.completions.parse` asks, but the
answer is streamed and its text kept: a damaged one can still be read, a runaway one stopped, the wait
cancelled. A server that refuses a parameter is asked again without it.
"""

from __future__ import annotations

import json
import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from ..errors import TTOMError

OPENAI = "https://api.openai.com/v1"
PROMPTS = Path(__file__).with_name("prompts") / "v1"
MAX_REPLY = 100_000  # characters; a full plan of 24 objects has under 40 000
TICK = 0.1  # seconds between two looks at the clock and at the caller while waiting
EXTRAS = ("stream_options", "temperature", "seed")  # what servers are known to refuse

Messages = list[dict[str, str]]


class LLMError(TTOMError):
    """A language model, or the server in front of it, gave no plan."""


class LLMSettings(BaseModel):
    """Which model plans, and how. No key is among them: keys come from the environment alone."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str = Field(min_length=1, max_length=200)
    base_url: str | None = Field(None, description="None: OPENAI_BASE_URL, else OpenAI itself")
    key_variable: str | None = Field(
        None, description="environment variable with the key; None: OPENAI_API_KEY for OpenAI, else no key"
    )
    staged: bool = Field(True, description="one call a stage; False: one call for all")
    enrich: bool = Field(False, description="lay out, and encode, a fuller description of the prompt")
    temperature: float = Field(0.0, ge=0, le=2)
    reasks: int = Field(2, ge=0, le=2, description="how often a faulty answer is sent back, per stage")
    timeout: float = Field(120.0, gt=0, le=3600, description="seconds for one answer, retries included")
    retries: int = Field(2, ge=0, le=10, description="after 429, 5xx and lost connections, with backoff")
    prompts: Path | None = Field(None, description="folder whose files replace ours of the same name")
    input_price: float | None = Field(None, ge=0, description="USD per million tokens")
    output_price: float | None = Field(None, ge=0, description="USD per million tokens")

    @field_validator("base_url")
    @classmethod
    def _plain(cls, url: str | None) -> str | None:
        return None if url is None else _address(url)

    @field_validator("key_variable")
    @classmethod
    def _name(cls, variable: str | None) -> str | None:
        if variable is not None and not re.fullmatch("[A-Z_][A-Z0-9_]{0,63}", variable):
            # Not repeated: it may be the key itself, and messages end up in logs.
            raise ValueError("give the name of an environment variable in capitals, not the key itself")
        return variable

    @classmethod
    def checked(cls, **values: Any) -> LLMSettings:
        """The settings of these values; LLMError with a sentence for the first that is wrong."""
        try:
            return cls(**values)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            name = str(first["loc"][0]).replace("_", "-")
            raise LLMError(f"{name}: {first['msg'].removeprefix('Value error, ')}.") from None

    @property
    def server(self) -> str:
        """The address that is asked; LLMError when the environment's is none."""
        try:
            return self.base_url or _address(os.environ.get("OPENAI_BASE_URL") or OPENAI)
        except ValueError as error:
            raise LLMError(f"OPENAI_BASE_URL names no server: {error}.") from None

    @property
    def variable(self) -> str | None:
        """Where the key is. OpenAI's goes to OpenAI alone, unless the user names it for another server."""
        ours = self.base_url is None or urlsplit(self.base_url).hostname == urlsplit(OPENAI).hostname
        return self.key_variable or ("OPENAI_API_KEY" if ours else None)

    def template(self, name: str) -> str:
        """The text of one stage: the user's own where their folder has it."""
        own = self.prompts / f"{name}.txt" if self.prompts else None
        path = own if own and own.is_file() else PROMPTS / f"{name}.txt"
        try:
            return path.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            raise LLMError(f"The prompt file {path} cannot be read; save it as UTF-8 text.") from None

    def key_parts(self) -> dict[str, Any]:
        """What decides about a plan besides the prompt, for a cache's key."""
        apart = {"timeout", "retries", "prompts", "key_variable", "input_price", "output_price"}
        templates = [self.template(path.stem) for path in sorted(PROMPTS.glob("*.txt"))]
        return self.model_dump(exclude=apart) | {"base_url": self.server, "templates": templates}


def _address(url: str) -> str:
    """An address that may be shown: ValueError when it holds more than a server and a path."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("give an http or https address, like http://localhost:11434/v1")
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError("give an address without name, key or query; a key belongs in the environment")
    return url.rstrip("/")


class Usage(BaseModel):
    """Answered requests, tokens as the server counts them, and USD where the settings know the prices."""

    model_config = ConfigDict(frozen=True)

    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float | None = None


@dataclass(frozen=True)
class Progress:
    """Told about ten times a second while an answer is awaited."""

    stage: str
    ask: int  # 0, then the number of the re-ask
    characters: int  # of the answer, so far


@dataclass(frozen=True)
class Reply:
    text: str
    finished: bool


OnProgress = Callable[[Progress], None]


def unload(settings: LLMSettings) -> None:
    """Ask an Ollama server to free the model's memory now; LLMError when it is none, or unreachable."""
    root = settings.server.removesuffix("/v1")
    openai = _openai()
    try:
        with openai.OpenAI(base_url=root, api_key="none", timeout=10, max_retries=0) as client:
            client.post("/api/generate", cast_to=object, body={"model": settings.model, "keep_alive": 0})
    except openai.OpenAIError:
        raise LLMError(
            f"{root} did not unload {settings.model!r}; only Ollama can be asked to, so stop it there."
        ) from None


def servers_seed(seed: int) -> int:
    """A seed of any size as one that every server takes: of 31 bits, and itself if it has no more.

    Some keep it in a signed 32-bit number, and for llama.cpp 2³² − 1 is no seed at all.
    """
    return (seed ^ seed >> 31 ^ seed >> 62) & 0x7FFFFFFF


class Chat:
    """A server, what it has turned out to refuse, and what was used of it."""

    def __init__(self, settings: LLMSettings, seed: int, on_progress: OnProgress | None) -> None:
        self.settings, self.on_progress = settings, on_progress or (lambda progress: None)
        self.key = os.environ.get(settings.variable, "").strip() if settings.variable else ""
        if settings.variable and not self.key:
            raise LLMError(
                f"There is no key in {settings.variable}; set it, give a local server's base_url, "
                "or plan by the rules."
            )
        if not (self.key.isascii() and self.key.isprintable()):
            raise LLMError(f"{settings.variable} holds characters that no key has; copy the key again.")
        self.openai = _openai()
        self.extras: dict[str, Any] = {
            "stream": True,
            "stream_options": {"include_usage": True},
            "temperature": settings.temperature,
            "seed": servers_seed(seed),
        }
        self.formats = ["json_schema", "json_object", "text"]
        self.requests = self.input_tokens = self.output_tokens = 0

    @property
    def usage(self) -> Usage:
        prices = self.settings.input_price, self.settings.output_price
        cost = None
        if prices[0] is not None and prices[1] is not None:
            cost = (self.input_tokens * prices[0] + self.output_tokens * prices[1]) / 1e6
        tokens = {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens}
        return Usage(requests=self.requests, **tokens, cost=cost)

    def reply(self, messages: Messages, form: type[BaseModel], stage: str, ask: int) -> Reply:
        """One answer to the messages, in the form's JSON as far as the server can see to it."""
        deadline = time.monotonic() + self.settings.timeout
        while True:
            try:
                reply = self._listen(self._request(messages, form), stage, ask, deadline)
            except (self.openai.BadRequestError, self.openai.UnprocessableEntityError) as error:
                if not self._asks_less(str(error)):
                    self._fail(error)
                continue
            except self.openai.OpenAIError as error:
                self._fail(error)
            if reply.text or reply.finished or not self.extras.pop("stream", None):
                return reply
            self.extras.pop("stream_options", None)  # nothing came: the server cannot stream

    def _request(self, messages: Messages, form: type[BaseModel]) -> dict[str, Any]:
        schema, kind = form.model_json_schema(), self.formats[0]
        request = {"model": self.settings.model, "messages": messages, **self.extras}
        if kind == "json_schema":
            wanted = {"name": form.__name__, "strict": True, "schema": schema}
            return request | {"response_format": {"type": kind, "json_schema": wanted}}
        told = f"{messages[0]['content']}\n\nThe JSON schema of the answer: {json.dumps(schema)}"
        request["messages"] = [{"role": "system", "content": told}, *messages[1:]]
        return request if kind == "text" else request | {"response_format": {"type": kind}}

    def _asks_less(self, message: str) -> bool:
        """Drop what a refusal names, else the next best format, else every extra; whether any was left."""
        named = [name for name in EXTRAS if name in message and name in self.extras]
        if not named and len(self.formats) > 1:
            del self.formats[0]
            return True
        left = named or [name for name in EXTRAS if name in self.extras]
        for name in left:
            del self.extras[name]
        return bool(left)

    def _listen(self, request: dict[str, Any], stage: str, ask: int, deadline: float) -> Reply:
        """Collect an answer until the deadline, telling the caller how it goes."""
        text = refusal = ""
        reason = None
        with self._pieces(request) as pieces:
            while True:
                self.on_progress(Progress(stage, ask, len(text)))
                if time.monotonic() > deadline:
                    self._fail(TimeoutError())
                try:
                    piece = pieces.get(timeout=min(TICK, self.settings.timeout))
                except queue.Empty:
                    continue
                if isinstance(piece, Exception) and not text:
                    raise piece
                if piece is None or isinstance(piece, Exception):
                    break  # a connection lost in mid-answer ends it: it is asked for again
                try:
                    if piece.usage is not None:
                        self.input_tokens += int(piece.usage.prompt_tokens or 0)
                        self.output_tokens += int(piece.usage.completion_tokens or 0)
                    for choice in piece.choices[:1]:
                        said = getattr(choice, "delta", None) or choice.message
                        text += said.content or ""
                        refusal += getattr(said, "refusal", None) or ""
                        reason = choice.finish_reason or reason
                except (AttributeError, TypeError, ValueError):  # openai does not check what it passes on
                    self._fail(self.openai.OpenAIError())
                if len(text) + len(refusal) > MAX_REPLY:
                    text, reason = text[:MAX_REPLY], "length"
                    break
        self.requests += 1
        if refusal or reason == "content_filter":
            model = self.settings.model
            raise LLMError(f"{model!r} declined to plan this{self._shown(refusal)}; reword the prompt.")
        return Reply(self._safe(text), reason not in (None, "length"))

    @contextmanager
    def _pieces(self, request: dict[str, Any]) -> Iterator[queue.Queue[Any]]:
        """A queue of an answer's chunks, then None or the exception that ended it.

        A thread of its own reads, so that the caller keeps an eye on the clock whatever the server does;
        leaving the context closes the connection.
        """
        pieces: queue.Queue[Any] = queue.Queue()
        client = self.openai.OpenAI(
            base_url=self.settings.server,
            api_key=self.key or "none",
            timeout=self.settings.timeout,
            max_retries=self.settings.retries,
        )

        def read() -> None:
            try:
                answer = client.chat.completions.create(**request)
                for piece in answer if request.get("stream") else [answer]:
                    if client.is_closed():
                        return
                    pieces.put(piece)
                pieces.put(None)
            except self.openai.OpenAIError as error:
                pieces.put(error)
            except Exception:  # of the layers below; its words may carry headers
                pieces.put(self.openai.OpenAIError())

        threading.Thread(target=read, daemon=True, name="ttom-planner").start()
        try:
            yield pieces
        finally:
            client.close()

    def _safe(self, text: str) -> str:
        """A server's words without the key, should it send it back."""
        return text.replace(self.key, "***") if self.key else text

    def _shown(self, text: str) -> str:
        short = " ".join(self._safe(text).split())[:200]
        return f" ({short})" if short else ""

    def _fail(self, error: Exception) -> NoReturn:
        """LLMError with one sentence for whatever a server did."""
        settings, status = self.settings, getattr(error, "status_code", None)
        after = f"after {settings.retries} retries"
        if isinstance(error, (TimeoutError, self.openai.APITimeoutError)):
            what = (
                f"gave no whole answer in {settings.timeout:g} s; raise the timeout or take a smaller model"
            )
        elif status in (401, 403):
            name = settings.variable or "no variable is named"
            what = f"refused the key ({status}; {name}); set a valid one in the environment"
        elif status == 404:
            what = f"knows no model {settings.model!r} (404); check the model's name and the base_url"
        elif status == 429:
            what = f"still limits the rate {after} (429); wait, or check the quota"
        elif status is not None and status >= 500:
            what = f"failed {after} ({status}); try again later"
        elif status is not None:
            what = f"refused the request ({status}){self._shown(str(error))}; try another model"
        elif isinstance(error, self.openai.APIConnectionError):
            what = "cannot be reached, or hung up; start it or check the base_url"
        elif isinstance(error, self.openai.APIError):  # told in the middle of a stream
            what = f"broke off with an error{self._shown(error.message)}; try again, or another model"
        else:
            what = "gave an answer that is no chat completion; check the base_url"
        raise LLMError(f"{settings.server} {what}.") from None


def _openai() -> ModuleType:
    try:
        import openai
    except ImportError:
        raise LLMError(
            "Planning with a language model needs openai; install it with: pip install openai."
        ) from None
    return openai
