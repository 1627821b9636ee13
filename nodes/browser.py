"""What the memory browser asks of the server. It names memories and ids, never paths, and each is checked."""

from __future__ import annotations

import asyncio
import json
import re
import tempfile
from collections.abc import Awaitable, Callable
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from ..ttom_core.errors import TTOMError
from . import host
from .inputs import insist_on_licence

if TYPE_CHECKING:
    from ..ttom_core.memory.store import MemoryEntry, MemoryStore

ROOT = "/ttom/memories"
LIMIT = 500  # entries of one answer
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def add_routes() -> None:
    """Before ComfyUI's server starts to answer."""
    routes = host.routes()
    if routes is None:
        return
    routes.get(ROOT)(_answering(_memories))
    routes.get(ROOT + "/{name}")(_answering(_entries))
    for action in (_pin, _delete, _undo, _export, _take_in):
        path = f"{ROOT}/{{name}}/{action.__name__.strip('_').replace('_', '-')}"
        routes.post(path)(_answering(action))
    routes.get(ROOT + "/{name}/export")(_answering(_export))  # a file dragged out of a page is got by address


async def _memories(request: web.Request) -> Any:
    return await asyncio.to_thread(host.memory_sizes)


async def _entries(request: web.Request) -> Any:
    words = request.query.get("words", "")[:1000]

    def found(store: MemoryStore) -> Any:
        rows = [_told(store, entry) for entry in islice(store.entries(words), LIMIT + 1)]
        return {"entries": rows[:LIMIT], "more": len(rows) > LIMIT, "all": len(store)}

    return await _with(request, found, read_only=True)


async def _pin(request: web.Request) -> Any:
    asked = await _asked(request)
    (entry_id,) = _ids([asked.get("id")])
    return await _with(request, lambda store: _told(store, store.pin(entry_id, asked.get("pinned") is True)))


async def _delete(request: web.Request) -> Any:
    ids = _ids((await _asked(request)).get("ids"))
    return await _with(request, lambda store: {"deleted": store.delete(ids)})


async def _undo(request: web.Request) -> Any:
    await _asked(request)
    return await _with(request, lambda store: {"done": store.undo()})


async def _export(request: web.Request) -> web.Response:
    from ..ttom_core.memory.pack import export_pack

    if request.method == "POST":
        asked = await _asked(request)
    else:
        asked = {"ids": request.query.getall("id", []), "licence": request.query.get("licence")}
    ids, licence = _ids(asked.get("ids")), asked.get("licence")
    insist_on_licence(licence)

    def packed(store: MemoryStore) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "memory.ttompack"
            export_pack(store, map(store.get, ids), path, licence=licence)
            return path.read_bytes()

    content = await _with(request, packed, read_only=True)
    return web.Response(body=content, content_type="application/octet-stream")


async def _take_in(request: web.Request) -> Any:
    """A pack as the body. It goes through a file whose name is ours, not the sender's."""
    from ..ttom_core.memory.pack import import_pack, plan_import

    if request.content_type != "application/octet-stream":
        raise TTOMError("A pack is sent as application/octet-stream.")
    content = await request.read()

    def taken(store: MemoryStore) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "dropped.ttompack"
            path.write_bytes(content)
            plan = plan_import(store, path)
            counts = {status: plan.count(status) for status in ("new", "same", "conflicting", "incompatible")}
            return {"taken": import_pack(store, plan), "licence": plan.pack.licence, **counts}

    return await _with(request, taken, must_exist=False)


# What every answer shares ------------------------------------------------------------------------


def _answering(answer: Callable[[web.Request], Awaitable[Any]]) -> Handler:
    """An answer as JSON, and what the user did wrong as one sentence."""

    async def handle(request: web.Request) -> web.StreamResponse:
        try:
            given = await answer(request)
        except TTOMError as error:
            return web.json_response({"error": str(error)}, status=400)
        return given if isinstance(given, web.StreamResponse) else web.json_response(given)

    return handle


async def _asked(request: web.Request) -> dict[str, Any]:
    """The body. Only JSON by its type: another site's form cannot send that unasked."""
    if request.content_type != "application/json":
        raise TTOMError("The request is sent as application/json.")
    try:
        asked = await request.json()
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError):
        asked = None
    if not isinstance(asked, dict):
        raise TTOMError("The request must be a JSON object.")
    return asked


def _ids(ids: Any) -> list[str]:
    known = isinstance(ids, list) and 0 < len(ids) <= LIMIT
    if not known or not all(isinstance(i, str) and re.fullmatch("[0-9a-f]{32}", i) for i in ids):
        raise TTOMError(f"ids: give 1 to {LIMIT} ids of entries.")
    return ids


async def _with(
    request: web.Request,
    act: Callable[[MemoryStore], Any],
    read_only: bool = False,
    must_exist: bool = True,
) -> Any:
    """What an act on the memory of the request's name gives, in a thread: SQLite and files may wait."""
    name = request.match_info["name"]

    def run() -> Any:
        if must_exist and name not in host.memory_sizes():
            raise TTOMError(f"There is no memory {name[:80]!r}.")
        with host.open_memory(name, read_only, None) as store:
            try:
                return act(store)
            except TTOMError as error:  # where the server keeps its files is nobody's business here
                raise TTOMError(str(error).replace(str(store.folder), repr(name))) from error

    return await asyncio.to_thread(run)


def _told(store: MemoryStore, entry: MemoryEntry) -> dict[str, Any]:
    """What the browser shows of an entry; the layout shows what it does."""
    keys = ("id", "prompt", "note", "created", "uses", "last_used", "pinned", "loss_first", "loss_last")
    told = {key: getattr(entry, key) for key in keys}
    layout = entry.layout.model_dump(mode="json") if entry.layout else None
    missing = not store.value_path(entry.value).exists()
    return told | {
        "bytes": entry.value_bytes,
        "model": entry.fingerprint,
        "layout": layout,
        "missing": missing,
    }
