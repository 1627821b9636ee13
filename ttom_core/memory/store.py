"""The store of the parametric memory: optimised adapters by scene and embedding (TTOM 3.3, appendix D).

SQLite (WAL) is the truth. Values are safetensors files that never change, named by their SHA-256; a file
is whole and on disk before the row that names it is committed, and only the holder of SQLite's write lock
touches the folder of values. So a process killed at any moment leaves at most a file that no row names.
Several processes may read and write one store at once.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sqlite3
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import TTOMError
from ..layout import Layout
from .index import CANDIDATES, SIZE, SketchIndex, sketch
from .key import SceneKey, layout_distance

if TYPE_CHECKING:
    from ..adapter import Adapter

VERSION = 1
DATABASE = "memory.sqlite"
MAX_DIMENSIONS = 65_536
MAX_VALUE_BYTES = 2 << 30
MAX_HEADER_BYTES = 4 << 20
LARGEST_WEIGHT = 1e4  # a weight of an optimised adapter is near 0.01; this much is damage or malice
UNDO_DEPTH = 16  # so many changes can be undone; the values that they replaced stay on disk until then
LINEAGE = 64  # so many ancestors are remembered
BUSY_SECONDS = 30.0  # so long a change waits for another process, and the count of a use:
BUSY_SECONDS_USE = 1.0

_COLUMNS = {
    "id": "TEXT NOT NULL UNIQUE",
    "bucket": "BLOB NOT NULL",
    "key": "TEXT NOT NULL",
    "prompt": "TEXT NOT NULL",
    "embedder": "TEXT NOT NULL",
    "fingerprint": "TEXT NOT NULL",
    "value": "TEXT NOT NULL",
    "value_bytes": "INTEGER NOT NULL",
    "rank": "INTEGER NOT NULL",
    "alpha": "REAL NOT NULL",
    "lora_seed": "INTEGER NOT NULL",
    "settings": "TEXT NOT NULL",
    "layout": "TEXT",
    "loss_first": "REAL",
    "loss_last": "REAL",
    "created": "REAL NOT NULL",
    "uses": "INTEGER NOT NULL",
    "last_used": "REAL",
    "pinned": "INTEGER NOT NULL",
    "parents": "TEXT NOT NULL",
    "note": "TEXT NOT NULL",
    "sketch": "BLOB NOT NULL",
    "embedding": "BLOB NOT NULL",
}
_NAMES = ", ".join(_COLUMNS)
# An entry's number is never used twice, and an entry that comes back by undo gets a new one: whoever
# knows a bucket up to some number only has to ask for what lies above.
_SCHEMA = f"""
CREATE TABLE entries (number INTEGER PRIMARY KEY AUTOINCREMENT,
    {", ".join(f"{name} {kind}" for name, kind in _COLUMNS.items())});
CREATE INDEX sketches ON entries (bucket, number, sketch);
CREATE INDEX least_used ON entries (pinned, uses, last_used, created, value_bytes);
CREATE INDEX value_users ON entries (value);
CREATE INDEX backbones ON entries (fingerprint);
CREATE TABLE changes (number INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE history (
    change INTEGER NOT NULL REFERENCES changes ON DELETE CASCADE,
    {", ".join(f"{name} {kind.split()[0]}" for name, kind in _COLUMNS.items())},
    PRIMARY KEY (change, id));
CREATE INDEX value_history ON history (value);
CREATE TABLE tombstones (id TEXT PRIMARY KEY, how TEXT NOT NULL, at REAL NOT NULL);
PRAGMA user_version = {VERSION};
"""


class MemoryStoreError(TTOMError):
    """A memory cannot do what was asked, or its folder is damaged, full, busy or read-only."""


class _Overtaken(Exception):
    """Another process changed an entry between our reading and our writing of it."""


@dataclass(frozen=True)
class MemoryEntry:
    """One solved composition: where it is found (key, embedding), what it holds, where it came from."""

    id: str
    key: SceneKey
    prompt: str
    embedding: np.ndarray = field(repr=False, compare=False)  # float32 [d], unit length
    embedder: str
    fingerprint: str
    value: str  # SHA-256 of its safetensors file
    value_bytes: int
    rank: int
    alpha: float
    lora_seed: int = 0
    settings: dict[str, Any] = field(default_factory=dict, repr=False)
    layout: Layout | None = field(default=None, repr=False)
    loss_first: float | None = None
    loss_last: float | None = None
    created: float = 0.0  # seconds since 1970, as last_used
    uses: int = 0
    last_used: float | None = None
    pinned: bool = False
    parents: tuple[str, ...] = ()  # ids that it was started from, then SHA-256 of values it replaced
    note: str = ""


class Hit(NamedTuple):
    """An entry that was found, the cosine of its embedding with the query's, and why, in a sentence."""

    entry: MemoryEntry
    similarity: float
    why: str


@dataclass(frozen=True)
class Report:
    """What fsck saw. Orphans are files that no row names, left by a killed process: litter, no damage."""

    entries: int
    problems: tuple[str, ...]
    orphans: tuple[str, ...]
    repaired: bool

    @property
    def clean(self) -> bool:
        return not self.problems


class MemoryStore:
    """A memory in a folder, made if it is missing; use it in a `with` block or close it.

    Over `max_entries` or `max_bytes` (of values, each entry's counted), the least frequently used entries
    make room, pinned ones never. A read-only store writes nothing, not even a use: "test-time
    independence" in the paper. With `other_copies` a model is also given what another copy of it made: one
    of the same family and size, as fp16, fp8 and GGUF files of the same weights are. Nobody can tell from
    rounded weights whether they once were the same, so this is the user's to say. Raises MemoryStoreError.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        read_only: bool = False,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        other_copies: bool = False,
    ) -> None:
        self.folder, self.read_only, self.other_copies = Path(folder), read_only, other_copies
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self._indexes: dict[bytes, SketchIndex] = {}
        self._loose: set[str] = set()  # values that a transaction wrote or let go of
        self._lock = threading.RLock()
        with self._sentences():
            self._database = self._connect_to_read() if read_only else self._connect_to_write()

    # Insert, read, update, delete -----------------------------------------------------------------

    def insert(
        self,
        adapter: Adapter,
        key: SceneKey,
        embedding: np.ndarray | Sequence[float],
        *,
        embedder: str,
        prompt: str,
        layout: Layout | None = None,
        settings: dict[str, Any] | None = None,
        lora_seed: int = 0,
        loss_first: float | None = None,
        loss_last: float | None = None,
        parents: Sequence[str] = (),
        pinned: bool = False,
        note: str = "",
        once: bool = False,
    ) -> MemoryEntry:
        """Store an adapter under a scene; when this returns, it survives a crash.

        once: where this adapter is there already for this scene and prompt, return that entry as it is.
        `embedding` [d] is scaled to unit length and kept in 16 bits; `embedder` names what made it.
        """
        check_adapter(adapter)
        entry = MemoryEntry(
            id=uuid.uuid4().hex,
            key=key,
            prompt=prompt,
            embedding=unit(embedding),
            embedder=embedder,
            fingerprint=adapter.fingerprint,
            value="",
            value_bytes=0,
            rank=adapter.rank,
            alpha=adapter.alpha,
            lora_seed=lora_seed,
            settings=settings or {},
            layout=layout,
            loss_first=loss_first,
            loss_last=loss_last,
            created=time.time(),
            pinned=pinned,
            parents=tuple(parents)[-LINEAGE:],
            note=note,
        )
        with self._change("insert"):
            entry = self._with_value(entry, adapter)
            twin = "SELECT id FROM entries WHERE value = ? AND bucket = ? AND prompt = ?"
            bucket = _bucket(entry.fingerprint, embedder, key, len(entry.embedding))
            if once and (there := self._execute(twin, entry.value, bucket, prompt)):
                return self.get(there[0][0])
            self._remember([entry.id])
            self._write_row(entry)
            self._make_room({entry.id})
        return entry

    def read(
        self,
        key: SceneKey,
        embedding: np.ndarray | Sequence[float],
        *,
        embedder: str,
        fingerprint: str,
        top_k: int = 5,
        threshold: float = 0.5,
    ) -> list[Hit]:
        """The entries of exactly this structure whose embeddings are most alike, best first.

        Only entries of this backbone (`fingerprint`; `other_copies` adds its copies) and this embedder are
        seen. `threshold` is the least cosine (τ_sim in the paper); of equals, the one with the nearer layout
        comes first. Each hit counts as a use, unless the store is read-only.
        """
        if top_k < 1:
            raise MemoryStoreError(f"A read takes 1 or more entries, not top_k = {top_k}.")
        query = unit(embedding)
        buckets = [_bucket(copy, embedder, key, len(query)) for copy in self._copies(fingerprint)]
        with self._reading():
            candidates = [self._candidates(bucket, query) for bucket in buckets]
            numbers, cosines = map(np.concatenate, zip(*candidates, strict=True))
            found = [int(n) for n, c in zip(numbers, cosines, strict=True) if c >= threshold]
            similarity = dict(zip(numbers.tolist(), cosines.tolist(), strict=True))
            # Equal texts have equal embeddings: keep every entry that ties with the last one taken.
            found.sort(key=lambda n: (-similarity[n], n))
            least = similarity[found[top_k - 1]] if len(found) > top_k else threshold
            rows = self._rows(n for n in found if similarity[n] >= least)
        entries = {number: _entry(row) for number, row in rows.items()}
        order = sorted(
            entries,
            key=lambda n: (-similarity[n], layout_distance(key, entries[n].key), n),
        )[:top_k]
        hits = [_hit(entries[n], similarity[n], fingerprint) for n in order]
        if hits and not self.read_only:
            self._count_uses(order)
        return hits

    def load(self, entry: MemoryEntry) -> Adapter:
        """The adapter of an entry, its hash checked; MemoryStoreError if the file is gone or damaged."""
        path = self.value_path(entry.value)
        try:
            return load_value(path, entry)
        except FileNotFoundError:
            raise MemoryStoreError(
                f"The value of memory entry {entry.id} is gone, deleted since it was found; read again."
            ) from None
        except OSError as error:
            raise MemoryStoreError(f"The value {path} cannot be read: {error.strerror}.") from error

    def update(
        self,
        entry_id: str,
        adapter: Adapter,
        *,
        weight: float | None = None,
        loss_last: float | None = None,
    ) -> MemoryEntry:
        """Give an entry a new value: the adapter itself, or (old + weight·adapter)/(1 + weight).

        The released code's weight is the similarity of the hit. The sum is one of products BA, re-factored
        to the old rank (`fusion.fuse`). The value before is kept for `undo`.
        """
        check_adapter(adapter)
        if weight is not None and not 0 <= weight < float("inf"):
            raise MemoryStoreError(f"An update's weight must be 0 or more, not {weight:g}.")
        while True:
            old = self.get(entry_id)
            if self.other_copies and are_copies(adapter.fingerprint, old.fingerprint):
                adapter = replace(adapter, fingerprint=old.fingerprint)
            if adapter.fingerprint != old.fingerprint:
                raise MemoryStoreError(
                    f"Memory entry {old.id} is for {old.fingerprint}, the adapter for "
                    f"{adapter.fingerprint}; insert it as an entry of its own."
                )
            new = adapter if weight is None else self._blend(old, adapter, weight)
            with suppress(_Overtaken), self._change("update", [old.id]):
                current = self.get(old.id)
                if weight is not None and current.value != old.value:
                    raise _Overtaken  # another process was faster: blend with what it wrote
                entry = replace(
                    current,
                    rank=new.rank,
                    alpha=new.alpha,
                    loss_last=current.loss_last if loss_last is None else loss_last,
                    parents=(*current.parents, current.value)[-LINEAGE:],
                )
                entry = self._with_value(entry, new)
                self._write_row(entry)
                self._make_room({entry.id})
                return entry

    def delete(self, ids: Iterable[str]) -> list[str]:
        """Delete entries; returns the ids that were there. A query is deleted by the ids it finds."""
        wanted = list(dict.fromkeys(ids))
        with self._change("delete"):
            there = [i for i in wanted if self._execute("SELECT 1 FROM entries WHERE id = ?", i)]
            self._remove(there, "deleted")
        return there

    def prune(
        self,
        *,
        max_entries: int | None = None,
        max_bytes: int | None = None,
        unused_since: float | None = None,
    ) -> list[str]:
        """Delete by policy: down to a capacity, least frequently used first, or what no read has found
        since a time (seconds since 1970). Pinned entries stay. Returns the ids."""
        removed = []
        with self._change("evict"):
            if unused_since is not None:
                query = "SELECT id FROM entries WHERE pinned = 0 AND coalesce(last_used, created) < ?"
                removed = [i for (i,) in self._execute(query, unused_since)]
                self._remove(removed, "evicted")
            removed += self._make_room(set(), max_entries, max_bytes)
        return removed

    def pin(self, entry_id: str, pinned: bool = True) -> MemoryEntry:
        """Keep an entry from ever being evicted, or no longer."""
        with self._change("pin" if pinned else "unpin"):
            entry = replace(self.get(entry_id), pinned=pinned)
            self._remember([entry.id])
            self._execute("UPDATE entries SET pinned = ? WHERE id = ?", pinned, entry.id)
        return entry

    def undo(self) -> str:
        """Take back the last change, whichever process made it; a sentence says what it was."""
        with self._writing():
            last = self._execute("SELECT number, kind FROM changes ORDER BY number DESC LIMIT 1")
            if not last:
                raise MemoryStoreError("There is no change left to undo in this memory.")
            number, kind = last[0]
            touched = "SELECT id FROM history WHERE change = ?"
            count = len(self._execute(touched, number))
            values = self._execute(f"SELECT value FROM entries WHERE id IN ({touched})", number)
            self._loose.update(value for (value,) in values)
            self._execute(
                f"INSERT OR REPLACE INTO tombstones SELECT id, 'undone', ? FROM entries "
                f"WHERE id IN ({touched})",
                time.time(),
                number,
            )
            self._execute(f"DELETE FROM entries WHERE id IN ({touched})", number)
            kept = "FROM history WHERE change = ? AND value IS NOT NULL"
            self._execute(f"INSERT INTO entries ({_NAMES}) SELECT {_NAMES} {kept}", number)
            self._execute(f"DELETE FROM tombstones WHERE id IN (SELECT id {kept})", number)
            self._execute("DELETE FROM changes WHERE number = ?", number)
        return f"The last change ({kind}, {count} {'entry' if count == 1 else 'entries'}) is undone."

    def adopt(self, entries: Iterable[MemoryEntry], write: Callable[[MemoryEntry, Path], None]) -> None:
        """Take in checked entries under their own ids, all or none; `write` fills a value's file.

        An entry that was here keeps its uses and its pin.
        """
        entries = list(entries)
        with self._change("import", [entry.id for entry in entries]):
            for entry in entries:
                part = self._incoming()
                try:
                    write(entry, part)
                    self._keep_value(part, entry.value)
                finally:
                    part.unlink(missing_ok=True)
                here = "SELECT uses, last_used, pinned FROM entries WHERE id = ?"
                for uses, last_used, pinned in self._execute(here, entry.id):
                    entry = replace(entry, uses=uses, last_used=last_used, pinned=bool(pinned))
                self._write_row(entry)
            self._make_room({entry.id for entry in entries})

    # Looking around -------------------------------------------------------------------------------

    def __len__(self) -> int:
        with self._reading():
            return int(self._execute("SELECT count(*) FROM entries")[0][0])

    @property
    def state(self) -> str:
        """Another text whenever the entries are others: inserts, updates, deletions, not mere uses."""
        with self._reading():
            last, count = self._execute(
                "SELECT (SELECT coalesce(max(number), 0) FROM changes), (SELECT count(*) FROM entries)"
            )[0]
        return f"{last}:{count}"

    def get(self, entry_id: str) -> MemoryEntry:
        """The entry of an id, or of the only id that begins so."""
        with self._reading():
            rows = self._execute(f"SELECT {_NAMES} FROM entries WHERE id = ?", entry_id)
            if not rows and entry_id.isalnum():
                query = f"SELECT {_NAMES} FROM entries WHERE id GLOB ? LIMIT 2"
                rows = self._execute(query, entry_id + "*")
            if len(rows) == 1:
                return _entry(rows[0])
            gone = self._execute("SELECT how FROM tombstones WHERE id = ?", entry_id)
        if rows:
            raise MemoryStoreError(f"Several memory entries begin with {entry_id!r}; give more of the id.")
        if gone:
            raise MemoryStoreError(f"Memory entry {entry_id} was {gone[0][0]}; undo may bring it back.")
        raise MemoryStoreError(f"There is no memory entry {entry_id!r} in {self.folder}; list them first.")

    def entries(self, text: str | None = None, *, fingerprint: str | None = None) -> Iterator[MemoryEntry]:
        """Entries from the oldest on: all, or those with every word of `text` in prompt, key or note."""
        words = (text or "").lower().split()
        clauses = ["number > ?", *["instr(lower(prompt || ' ' || key || ' ' || note), ?)"] * len(words)]
        values: list[Any] = list(words)
        if fingerprint is not None:
            clauses.append("fingerprint = ?")
            values.append(fingerprint)
        query = (
            f"SELECT number, {_NAMES} FROM entries WHERE {' AND '.join(clauses)} ORDER BY number LIMIT 200"
        )
        last = 0
        while True:  # page by page: nobody waits for a reader who takes a break
            with self._reading():
                rows = self._execute(query, last, *values)
            for row in rows:
                yield _entry(row[1:])
            if not rows:
                return
            last = rows[-1][0]

    def known(self, ids: Iterable[str]) -> dict[str, MemoryEntry]:
        """The entries of those ids that are here."""
        rows = ((entry_id, self._row_of(entry_id)) for entry_id in ids)
        return {entry_id: _entry(row) for entry_id, row in rows if row}

    def fingerprints(self) -> set[str]:
        """The backbones that the entries were made with."""
        with self._reading():
            return {f for (f,) in self._execute("SELECT DISTINCT fingerprint FROM entries")}

    def _copies(self, fingerprint: str) -> list[str]:
        """A backbone, and of those with entries here the ones that may stand in for it."""
        if not self.other_copies:
            return [fingerprint]
        others = sorted(self.fingerprints() - {fingerprint})
        return [fingerprint, *(other for other in others if are_copies(fingerprint, other))]

    def value_bytes(self) -> int:
        """The sizes of all entries' values, in bytes."""
        with self._reading():
            return int(self._execute("SELECT coalesce(sum(value_bytes), 0) FROM entries")[0][0])

    def fsck(self, repair: bool = False) -> Report:
        """Read everything and compare; `repair` deletes entries without a sound value, and orphans."""
        if repair and self.read_only:
            raise MemoryStoreError(f"The memory {self.folder} is open read-only; open it to write.")
        with self._reading():
            said = [text for (text,) in self._execute("PRAGMA integrity_check")]
            ids = [entry_id for (entry_id,) in self._execute("SELECT id FROM entries")]
        problems = [f"the database says: {text}" for text in said if text != "ok"]
        damaged = {}
        for entry_id in ids:  # row by row: files are long to read, and nobody should wait for it
            row = self._row_of(entry_id)
            problem = row and self._problem(row)
            if problem and row == self._row_of(entry_id):
                damaged[entry_id] = problem
        # A file that is not named is an orphan only to the holder of the lock: another process may be
        # about to commit its row.
        with self._writing() if repair else self._reading():
            names = "SELECT value FROM entries UNION SELECT value FROM history"
            named = {self.value_path(v) for (v,) in self._execute(names) if v}
            files = [p for part in ("values", "incoming") for p in (self.folder / part).rglob("*")]
            orphans = [p for p in files if p.is_file() and p not in named]
            if repair:
                self._remove(list(damaged), "found damaged and removed", undoable=False)
                for path in orphans:
                    path.unlink(missing_ok=True)
        problems += [f"entry {entry_id}: {problem}" for entry_id, problem in damaged.items()]
        litter = tuple(sorted(str(p.relative_to(self.folder)) for p in orphans))
        return Report(len(ids), tuple(problems), litter, repair and bool(damaged or orphans))

    def close(self) -> None:
        """Let go of the files; closing twice is no error."""
        with self._lock:
            self._database.close()

    def __enter__(self) -> MemoryStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    # Searching ------------------------------------------------------------------------------------

    def _candidates(self, bucket: bytes, query: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Numbers and exact cosines of the bucket's entries that may be nearest, within one reading."""
        while True:
            index = self._indexes.setdefault(bucket, SketchIndex())
            self._catch_up(bucket, index)
            if not len(index):
                return np.empty(0, np.int64), np.empty(0)
            wanted = index.nearest(sketch(query), CANDIDATES)
            query_rows = (
                f"SELECT number, embedding FROM entries WHERE number IN ({','.join('?' * len(wanted))})"
            )
            rows = self._execute(query_rows, *wanted.tolist())
            if len(rows) == len(wanted):
                break
            del self._indexes[bucket]  # something was deleted since: derive it anew
        numbers = np.array([number for number, _ in rows], np.int64)
        embeddings = np.frombuffer(b"".join(e for _, e in rows), "<f2").reshape(len(rows), -1)
        # Rounded, so that equal embeddings tie exactly whatever order the sums were taken in.
        return numbers, np.round(embeddings.astype(np.float32) @ query, 6)

    def _catch_up(self, bucket: bytes, index: SketchIndex) -> None:
        """Add what was written since, by whichever process."""
        query = "SELECT number, sketch FROM entries WHERE bucket = ? AND number > ? ORDER BY number"
        rows = self._execute(query, bucket, index.last)
        if rows:
            numbers = np.array([number for number, _ in rows], np.int64)
            index.add(numbers, np.frombuffer(b"".join(c for _, c in rows), np.int8).reshape(-1, SIZE))

    def _rows(self, numbers: Iterable[int]) -> dict[int, tuple[Any, ...]]:
        query = f"SELECT {_NAMES} FROM entries WHERE number = ?"
        return {number: self._execute(query, number)[0] for number in numbers}

    def _count_uses(self, numbers: list[int]) -> None:
        # A use that is lost in a power cut harms nobody: without fsync this is a matter of microseconds,
        # and nobody waits for a read because another process takes in a large pack.
        try:
            with self._writing(durable=False):
                for number in numbers:
                    query = "UPDATE entries SET uses = uses + 1, last_used = ? WHERE number = ?"
                    self._execute(query, time.time(), number)
        except MemoryStoreError as error:
            warnings.warn(f"The memory was read, but the use is not counted: {error}", stacklevel=3)

    # Values ---------------------------------------------------------------------------------------

    def value_path(self, value: str) -> Path:
        """Where the value of a SHA-256 lies."""
        return self.folder / "values" / value[:2] / f"{value}.safetensors"

    def _incoming(self) -> Path:
        return self.folder / "incoming" / f"{uuid.uuid4().hex}.safetensors"

    def _with_value(self, entry: MemoryEntry, adapter: Adapter) -> MemoryEntry:
        """Write the adapter's file, whole and on disk; the entry then names it."""
        from safetensors import SafetensorError

        part = self._incoming()
        try:
            adapter.save(part)
            size, value = part.stat().st_size, _hash(part)
            self._keep_value(part, value)
        except SafetensorError as error:
            raise MemoryStoreError(
                f"The memory could not write to {self.folder} ({error}); free some space there."
            ) from error
        finally:
            for path in (part, part.with_name(part.name + ".part")):
                path.unlink(missing_ok=True)
        return replace(entry, value=value, value_bytes=size)

    def _keep_value(self, part: Path, value: str) -> None:
        """Move a whole file of this folder under its hash and see both on disk."""
        path = self.value_path(value)
        _sync(part)
        if not path.parent.is_dir():
            path.parent.mkdir(parents=True, exist_ok=True)
            _sync(path.parent.parent)
        self._loose.add(value)
        part.replace(path)
        _sync(path.parent)

    def _row_of(self, entry_id: str) -> tuple[Any, ...] | None:
        with self._reading():
            rows = self._execute(f"SELECT {_NAMES} FROM entries WHERE id = ?", entry_id)
        return rows[0] if rows else None

    def _problem(self, row: tuple[Any, ...]) -> str | None:
        """What is wrong with an entry's row or file."""
        try:
            entry = _entry(row)
            stored = np.frombuffer(row[-2], np.int8).astype(int)
            if stored.shape != (SIZE,) or np.abs(stored - sketch(entry.embedding)).max() > 1:
                return "its sketch does not fit its embedding"
            path = self.value_path(entry.value)
            if not path.is_file():
                return "its value is missing"
            if path.stat().st_size != entry.value_bytes or _hash(path) != entry.value:
                return "its value is damaged"
        except (ValueError, TypeError, OSError) as error:
            return f"it cannot be read ({error})"
        return None

    def _blend(self, old: MemoryEntry, adapter: Adapter, weight: float) -> Adapter:
        from ..fusion import fuse

        return fuse([self.load(old), adapter], [1.0, weight], old.rank)

    # Rows and changes, inside a transaction -------------------------------------------------------

    def _execute(self, query: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._database.execute(query, values).fetchall()

    def _write_row(self, entry: MemoryEntry) -> None:
        row = _row(entry)
        self._execute("DELETE FROM tombstones WHERE id = ?", entry.id)
        marks = ", ".join("?" * len(row))
        updates = ", ".join(f"{name} = excluded.{name}" for name in _COLUMNS)
        query = f"INSERT INTO entries ({_NAMES}) VALUES ({marks}) ON CONFLICT (id) DO UPDATE SET {updates}"
        self._execute(query, *row)

    def _remember(self, ids: Iterable[str]) -> None:
        """Keep entries as they are, or that they are not there, for the change that is being made."""
        number = self._execute("SELECT max(number) FROM changes")[0][0]
        query = f"REPLACE INTO history (change, {_NAMES}) SELECT ?, {_NAMES} FROM entries WHERE id = ?"
        for entry_id in ids:
            self._execute("INSERT INTO history (change, id) VALUES (?, ?)", number, entry_id)
            self._execute(query, number, entry_id)

    def _remove(self, ids: Sequence[str], how: str, undoable: bool = True) -> None:
        if undoable:
            self._remember(ids)
        for entry_id in ids:
            self._execute("REPLACE INTO tombstones VALUES (?, ?, ?)", entry_id, how, time.time())
            self._execute("DELETE FROM entries WHERE id = ?", entry_id)

    def _make_room(
        self, keep: set[str], max_entries: int | None = None, max_bytes: int | None = None
    ) -> list[str]:
        """Evict down to the capacity, least frequently used first; never `keep`, never what is pinned."""
        max_entries = self.max_entries if max_entries is None else max_entries
        max_bytes = self.max_bytes if max_bytes is None else max_bytes
        if max_entries is None and max_bytes is None:
            return []
        count, size = self._execute("SELECT count(*), coalesce(sum(value_bytes), 0) FROM entries")[0]
        evicted: list[str] = []
        least_used = "SELECT id, value_bytes FROM entries WHERE pinned = 0 ORDER BY uses, last_used, created"
        candidates = self._database.execute(least_used)

        def over() -> bool:
            return (max_entries is not None and count - len(evicted) > max_entries) or (
                max_bytes is not None and size > max_bytes
            )

        while over():
            candidate = candidates.fetchone()
            if candidate is None:
                raise MemoryStoreError(
                    f"The memory is full ({count} entries, {size} bytes) and the rest is pinned; unpin or "
                    "delete entries, or allow it more."
                )
            if candidate[0] not in keep:
                evicted.append(candidate[0])
                size -= candidate[1]
        candidates.close()
        self._remove(evicted, "evicted")
        return evicted

    @contextmanager
    def _change(self, kind: str, ids: Iterable[str] = ()) -> Iterator[None]:
        """One change to these and other remembered entries that can be undone: all of it or nothing."""
        with self._writing():
            self._execute("INSERT INTO changes (kind, at) VALUES (?, ?)", kind, time.time())
            number = self._execute("SELECT max(number) FROM changes")[0][0]
            self._remember(ids)
            yield
            if not self._execute("SELECT 1 FROM history WHERE change = ? LIMIT 1", number):
                self._execute("DELETE FROM changes WHERE number = ?", number)
            old = number - UNDO_DEPTH
            query = "SELECT DISTINCT value FROM history WHERE change <= ? AND value IS NOT NULL"
            self._loose.update(value for (value,) in self._execute(query, old))
            self._execute("DELETE FROM changes WHERE number <= ?", old)

    # Connections and transactions -----------------------------------------------------------------

    def _connect_to_write(self) -> sqlite3.Connection:
        self.folder.mkdir(parents=True, exist_ok=True)
        for part in ("values", "incoming"):
            (self.folder / part).mkdir(exist_ok=True)
        database = self._connect("rwc")
        deadline = time.monotonic() + BUSY_SECONDS
        while True:  # two processes may create it at once, and this one pragma does not wait its turn
            try:
                database.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)
        # FULL: a commit is on disk when it returns, or an insert would not survive a power cut.
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA foreign_keys = ON")
        database.execute("BEGIN IMMEDIATE")
        if not self._version(database):
            for statement in _SCHEMA.split(";"):
                database.execute(statement)
        database.execute("COMMIT")
        return database

    def _connect_to_read(self) -> sqlite3.Connection:
        path = self.folder / DATABASE
        if not path.is_file():
            raise MemoryStoreError(f"There is no memory in {self.folder}; check the path.")
        database = self._connect("ro")
        try:
            version = self._version(database)
        except sqlite3.OperationalError:
            # A folder that nobody may write to lacks what WAL keeps beside the database, and cannot
            # change either. With a log beside it, it is not whole without that.
            if path.with_name(DATABASE + "-wal").exists() or os.access(self.folder, os.W_OK):
                raise
            database.close()
            database = self._connect("ro&immutable=1")
            version = self._version(database)
        if not version:
            raise MemoryStoreError(f"There is no memory in {self.folder} yet; open it once to write.")
        return database

    def _connect(self, mode: str) -> sqlite3.Connection:
        uri = f"{(self.folder / DATABASE).absolute().as_uri()}?mode={mode}"
        return sqlite3.connect(
            uri, uri=True, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False
        )

    def _version(self, database: sqlite3.Connection) -> int:
        version = int(database.execute("PRAGMA user_version").fetchone()[0])
        if version not in (0, VERSION):
            raise MemoryStoreError(
                f"The memory {self.folder} has version {version}; this TTOM reads version {VERSION}."
            )
        return version

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Everything that is read within comes from one moment."""
        with self._lock, self._sentences():
            if self._database.in_transaction:
                yield
                return
            self._database.execute("BEGIN")
            try:
                yield
            finally:
                self._database.execute("ROLLBACK")

    @contextmanager
    def _writing(self, durable: bool = True) -> Iterator[None]:
        """The store's only writer for the length of the block; committed at its end, or nothing is."""
        if self.read_only:
            raise MemoryStoreError(f"The memory {self.folder} is open read-only; open it to write.")
        with self._lock, self._sentences():
            self._database.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            patience = BUSY_SECONDS if durable else BUSY_SECONDS_USE
            self._database.execute(f"PRAGMA busy_timeout = {1000 * patience:.0f}")
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                self._collect()

    def _collect(self) -> None:
        """Delete the files of loose values that no row names, after the commit that let go of them.

        Before it, a crash would leave rows without files; and it takes the lock again, because another
        process may have stored the same value in between.
        """
        loose, self._loose = self._loose, set()
        if not loose:
            return
        try:
            self._database.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return  # busy: they stay as orphans, and fsck collects them
        try:
            for value in loose:
                query = "SELECT 1 FROM {} WHERE value = ? LIMIT 1"
                if not any(self._execute(query.format(t), value) for t in ("entries", "history")):
                    self.value_path(value).unlink(missing_ok=True)
        finally:
            self._database.execute("ROLLBACK")

    @contextmanager
    def _sentences(self) -> Iterator[None]:
        """Errors of SQLite and of the file system, as one sentence."""
        try:
            yield
        except sqlite3.Error as error:
            raise MemoryStoreError(_sentence(self.folder, str(error))) from error
        except OSError as error:
            raise MemoryStoreError(
                f"The memory could not write to {self.folder} ({error.strerror}); free some space there or "
                "choose a folder that can be written."
            ) from error


def unit(embedding: np.ndarray | Sequence[float]) -> np.ndarray:
    """An embedding float32 [d] of length 1, in the 16 bits a number that the store keeps."""
    vector = np.asarray(embedding, np.float32)
    if vector.ndim != 1 or not 1 <= len(vector) <= MAX_DIMENSIONS:
        raise MemoryStoreError(
            f"An embedding is one row of 1 to {MAX_DIMENSIONS} numbers, not of shape {vector.shape}."
        )
    length = float(np.linalg.norm(vector))
    if not 0 < length < float("inf"):
        raise MemoryStoreError("An embedding must be finite and not all zero; check the text encoder.")
    return (vector / length).astype(np.float16).astype(np.float32)


def check_adapter(adapter: Adapter) -> None:
    """MemoryStoreError unless every weight is finite and of a believable size."""
    if not adapter.weights or adapter.rank < 1 or not 0 < adapter.alpha <= LARGEST_WEIGHT:
        raise MemoryStoreError(
            f"An adapter of rank {adapter.rank}, alpha {adapter.alpha:g} and {len(adapter.weights)} modules "
            "cannot be stored; optimise it anew."
        )
    for name, pair in adapter.weights.items():
        for tensor in pair:
            largest = float(tensor.detach().abs().max()) if tensor.numel() else 0.0
            if not largest <= LARGEST_WEIGHT:  # also true of NaN
                raise MemoryStoreError(
                    f"The adapter's weights for {name} reach {largest:g}; that is no result of an "
                    "optimisation, make it anew."
                )


def check_entry(entry: MemoryEntry) -> None:
    """MemoryStoreError unless the entry would come back from its row as it is now."""
    try:
        back = _entry(_row(entry))
    except ValueError as error:  # all of ours are
        raise MemoryStoreError(f"Entry {entry.id} could not be read again: {error}") from error
    if back != entry or not np.array_equal(back.embedding, entry.embedding):
        raise MemoryStoreError(f"Entry {entry.id} would not come back as it is; make it anew.")


def load_value(path: Path, entry: MemoryEntry) -> Adapter:
    """The adapter in a file that should hold this entry's value; MemoryStoreError if it does not.

    Size, hash and header are checked before anything is taken from it. FileNotFoundError if it is missing.
    """
    from ..adapter import Adapter

    size = path.stat().st_size
    if size > MAX_VALUE_BYTES:
        raise MemoryStoreError(f"The value of entry {entry.id} has {size} bytes; {MAX_VALUE_BYTES} are read.")
    if size != entry.value_bytes or _hash(path) != entry.value:
        raise MemoryStoreError(
            f"The value of memory entry {entry.id} is damaged: its file is not the one that was stored; "
            "delete the entry, or run fsck."
        )
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > min(MAX_HEADER_BYTES, size):
        raise MemoryStoreError(
            f"The value of entry {entry.id} is no adapter: its header claims {header} bytes; get it anew."
        )
    adapter = Adapter.load(path)
    stated = (entry.fingerprint, entry.rank, entry.alpha)
    if (adapter.fingerprint, adapter.rank, adapter.alpha) != stated:
        raise MemoryStoreError(
            f"The value of entry {entry.id} is for {adapter.fingerprint} with rank {adapter.rank} and alpha "
            f"{adapter.alpha:g}, its entry says {stated[0]}, {stated[1]} and {stated[2]:g}; get it anew."
        )
    check_adapter(adapter)
    return adapter


def _bucket(fingerprint: str, embedder: str, key: SceneKey, dimensions: int) -> bytes:
    """What must match exactly: backbone, embedder and its size, structure."""
    parts = json.dumps([fingerprint, embedder, dimensions, key.digest])
    return hashlib.sha256(parts.encode()).digest()[:16]


def _row(entry: MemoryEntry) -> tuple[Any, ...]:
    """An entry in the order of the columns."""
    try:
        settings = json.dumps(entry.settings, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise MemoryStoreError(f"The settings of an entry must be plain JSON: {error}.") from error
    values = {f.name: getattr(entry, f.name) for f in fields(entry)} | {
        "key": entry.key.model_dump_json(),
        "bucket": _bucket(entry.fingerprint, entry.embedder, entry.key, len(entry.embedding)),
        "settings": settings,
        "layout": entry.layout.model_dump_json() if entry.layout else None,
        "parents": json.dumps(entry.parents),
        "sketch": sketch(entry.embedding).tobytes(),
        "embedding": entry.embedding.astype("<f2").tobytes(),
    }
    return tuple(values[name] for name in _COLUMNS)


def _entry(row: Sequence[Any]) -> MemoryEntry:
    values = dict(zip(_COLUMNS, row, strict=True))
    del values["bucket"], values["sketch"]
    return MemoryEntry(
        **values
        | {
            "key": SceneKey.model_validate_json(values["key"]),
            "settings": json.loads(values["settings"]),
            "layout": Layout.from_json(values["layout"]) if values["layout"] else None,
            "parents": tuple(json.loads(values["parents"])),
            "pinned": bool(values["pinned"]),
            "embedding": np.frombuffer(values["embedding"], "<f2").astype(np.float32),
        }
    )


def are_copies(fingerprint: str, other: str) -> bool:
    """Whether two backbones are of one family and size, and may be copies of one model.

    >>> are_copies("wan-40x5120-0123456789abcdef", "wan-40x5120-fedcba9876543210")
    True
    """
    sizes, _, _ = fingerprint.rpartition("-")
    return fingerprint == other or (bool(sizes) and sizes == other.rpartition("-")[0])


def _hit(entry: MemoryEntry, similarity: float, fingerprint: str) -> Hit:
    times = "never used before" if not entry.uses else f"used {entry.uses} times before"
    facts = ", ".join(entry.key.structure)
    copy = "" if entry.fingerprint == fingerprint else f", made with the copy {entry.fingerprint}"
    why = f"Same structure ({facts}) and {similarity:.2f} alike to “{entry.prompt}”, {times}{copy}."
    return Hit(entry, similarity, why)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """See a file, or a folder's list of names, on disk."""
    if path.is_dir() and os.name == "nt":
        return  # Windows opens no folders and needs none of it
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sentence(folder: Path, error: str) -> str:
    """What SQLite says, and what to do."""
    if "locked" in error or "busy" in error:
        return f"Another process keeps the memory {folder} busy; try again when it is done."
    if "full" in error or "I/O" in error:
        return f"The memory could not write to {folder} ({error}); free some space there."
    if "readonly" in error or "unable to open" in error:
        return f"The memory in {folder} cannot be opened to write ({error}); open it read-only."
    if "closed" in error:
        return f"The memory {folder} is closed; open it again."
    return f"The memory {folder} is damaged ({error}); run fsck, or restore its {DATABASE} from a copy."


def default_folder(user: str = "default") -> Path:
    """Where a user's memory lives outside ComfyUI: memory_store/USER of the checkout that this is part
    of, or of the working folder where there is none or it cannot be written. Nothing is made.
    """
    if not re.fullmatch(r"\w[\w .@-]{0,63}", user) or user == "starter":  # starter: the packs' folder
        raise MemoryStoreError(f"{user!r} cannot name a memory; use letters and digits.")
    room = Path(__file__).resolve().parents[2] / "memory_store"
    if not (room / "README.md").is_file() or not os.access(room, os.W_OK):
        room = Path("memory_store")
    return room / user
