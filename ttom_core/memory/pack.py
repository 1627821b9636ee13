"""Memory packs: chosen entries in one file, to give away and to take in; single ones as plain LoRAs.

A pack is a zip that compresses nothing: manifest.json, values/SHA256.safetensors, previews/SHA256.png.
It comes from a stranger until all of it is checked, and nothing is written before. Its names are
compared with those that a pack may have and never used as paths; nothing is decompressed, unpickled or
executed; every byte is under a hash in the manifest; and every weight is read and looked at.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import shutil
import stat
import struct
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import BytesIO, FileIO
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from ..errors import TTOMError
from ..layout import Layout
from .key import SceneKey
from .store import (
    LINEAGE,
    MAX_DIMENSIONS,
    MAX_VALUE_BYTES,
    MemoryEntry,
    MemoryStore,
    check_entry,
    load_value,
)

MANIFEST = "manifest.json"
MAX_ENTRIES = 10_000
MAX_MANIFEST_BYTES = 256 << 20  # of embeddings, nearly all of it: 11 KB for 4096 numbers
MAX_READ = 16 << 20
MAX_PREVIEW_BYTES = 8 << 20
MAX_SETTINGS = 100_000  # characters of JSON
MEMBER = re.compile(r"manifest\.json|values/[0-9a-f]{64}\.safetensors|previews/[0-9a-f]{64}\.\w{3,4}")
PICTURES = {"png": b"\x89PNG\r\n\x1a\n", "jpg": b"\xff\xd8\xff", "gif": b"GIF8", "webp": b"RIFF"}
EPOCH = (1980, 1, 1, 0, 0, 0)  # every member's time, so that equal packs are equal bytes

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Name = Annotated[str, Field(pattern="^[ -~]{1,200}$")]
Text = Annotated[str, Field(max_length=20_000)]
Status = Literal["new", "same", "conflicting", "incompatible"]


class PackError(TTOMError):
    """A pack is malformed, unsafe or does not fit, or there is nothing to put into one."""


class _PackedEntry(BaseModel):
    """One entry as a pack states it: what made and what finds it, but not how it was used."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    id: str = Field(pattern="^[0-9a-f]{32}$")
    key: SceneKey
    prompt: Text
    embedding: str = Field(max_length=-(-2 * MAX_DIMENSIONS // 3) * 4)  # base64 of little-endian float16 [d]
    embedder: Name
    fingerprint: Name
    value: Sha256
    value_bytes: int = Field(ge=0, le=MAX_VALUE_BYTES)
    rank: int = Field(ge=1, le=1 << 16)
    alpha: float = Field(gt=0)
    lora_seed: int = Field(ge=-(1 << 63), lt=1 << 63)
    settings: dict[str, JsonValue]
    layout: Layout | None
    loss_first: float | None
    loss_last: float | None
    created: float = Field(ge=0, le=1e11)
    parents: tuple[Annotated[str, Field(pattern="^[0-9a-f]{1,64}$")], ...] = Field(max_length=LINEAGE)
    note: Text
    preview: str | None = Field(pattern=r"^previews/[0-9a-f]{64}\.(png|jpg|gif|webp)$")

    @field_validator("settings")
    @classmethod
    def _plain(cls, settings: dict[str, JsonValue]) -> dict[str, JsonValue]:
        if len(json.dumps(settings, allow_nan=False)) > MAX_SETTINGS:
            raise ValueError(f"the settings have more than {MAX_SETTINGS} characters")
        return settings

    @classmethod
    def of(cls, entry: MemoryEntry, preview: str | None) -> _PackedEntry:
        facts = {name: getattr(entry, name) for name in cls.model_fields if name != "preview"}
        facts["embedding"] = base64.b64encode(entry.embedding.astype("<f2").tobytes()).decode()
        return cls.model_validate(facts | {"preview": preview})

    def entry(self) -> MemoryEntry:
        try:
            vector = np.frombuffer(base64.b64decode(self.embedding, validate=True), "<f2").astype(np.float32)
        except (binascii.Error, ValueError) as error:
            raise PackError(f"the embedding of entry {self.id} is not float16 in base64") from error
        # Not scaled again: that would move its last bit, and the entry would not be the one exported.
        if not abs(float(np.linalg.norm(vector)) - 1) < 0.01:
            raise PackError(f"the embedding of entry {self.id} is not of unit length")
        facts = {name: getattr(self, name) for name in type(self).model_fields if name != "preview"}
        return MemoryEntry(**facts | {"embedding": vector})


class _Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    format: Literal["ttom-memory-pack"] = "ttom-memory-pack"
    version: Literal[1] = 1
    licence: Text = Field(min_length=1)
    entries: tuple[_PackedEntry, ...] = Field(min_length=1, max_length=MAX_ENTRIES)


@dataclass(frozen=True)
class Pack:
    """A pack of which everything was checked: its entries, and for some the name of a preview in it."""

    path: Path
    licence: str
    entries: tuple[MemoryEntry, ...]
    previews: Mapping[str, str]

    def preview(self, entry_id: str) -> bytes | None:
        """An entry's picture (PNG, JPEG, GIF or WebP), as its maker gave it."""
        name = self.previews.get(entry_id)
        if name is None:
            return None
        with _refusing(self.path), _opened(self.path) as archive:
            return _checked(archive, name)


class Row(NamedTuple):
    """What an import would do with an entry, and why."""

    entry: MemoryEntry
    status: Status
    why: str


class ImportPlan(NamedTuple):
    """A checked pack beside a memory, entry by entry."""

    pack: Pack
    rows: tuple[Row, ...]

    def count(self, status: Status) -> int:
        return sum(row.status == status for row in self.rows)


# Out ----------------------------------------------------------------------------------------------


def export_pack(
    store: MemoryStore,
    entries: Iterable[MemoryEntry],
    path: str | Path,
    *,
    licence: str,
    previews: Mapping[str, str | Path] | None = None,
) -> None:
    """Write entries with their values into one file; the same ones always give the same bytes.

    licence: what others may do with them, best an SPDX name such as "CC0-1.0". previews: a small picture
    (PNG, JPEG, GIF, WebP) by entry id. Uses and pins stay at home. PackError, MemoryStoreError.
    """
    path = Path(path)
    chosen = sorted({entry.id: entry for entry in entries}.values(), key=lambda entry: entry.id)
    if not chosen:
        raise PackError("There is no entry to export; choose at least one.")
    files = {} if previews is None else {e.id: previews[e.id] for e in chosen if e.id in previews}
    pictures = {i: _picture(Path(file)) for i, file in files.items()}
    names = {i: f"previews/{hashlib.sha256(p).hexdigest()}.{_kind(p)}" for i, p in pictures.items()}
    try:
        packed = tuple(_PackedEntry.of(entry, names.get(entry.id)) for entry in chosen)
        manifest = _Manifest(licence=licence, entries=packed).model_dump_json(indent=1).encode()
    except ValidationError as error:
        raise PackError(f"The pack cannot be written: {_sentence(error)}.") from error
    if len(manifest) > MAX_MANIFEST_BYTES:
        raise PackError(f"{len(chosen)} entries of this size are too many for one pack; export fewer.")
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(part, "w") as archive:
            _add(archive, MANIFEST, manifest)
            for name, picture in sorted({names[i]: p for i, p in pictures.items()}.items()):
                _add(archive, name, picture)
            for value, entry in sorted({entry.value: entry for entry in chosen}.items()):
                store.load(entry)
                name = _value_name(value)
                with (
                    _member(archive, name, entry.value_bytes) as into,
                    store.value_path(value).open("rb") as file,
                ):
                    shutil.copyfileobj(file, into)
        part.replace(path)
    except OSError as error:
        raise PackError(f"The pack {path} cannot be written: {error.strerror or error}.") from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def export_lora(store: MemoryStore, entry: MemoryEntry, path: str | Path) -> None:
    """Write an entry as a LoRA that diffusers, PEFT and ComfyUI load at strength 1.

    Loaders differ in where they look for alpha and agree that without one it is the rank; so its scaling
    alpha/rank is multiplied into B. The file remains an adapter of ours, too. PackError, MemoryStoreError.
    """
    from safetensors import SafetensorError

    from ..adapter import Adapter

    adapter = store.load(entry)
    weights = {name: (a, b * adapter.scaling) for name, (a, b) in adapter.weights.items()}
    try:
        Adapter(weights, adapter.rank, float(adapter.rank), adapter.fingerprint).save(Path(path))
    except (OSError, SafetensorError) as error:
        raise PackError(f"The LoRA {path} cannot be written: {error}.") from error


def _add(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    with _member(archive, name, len(content)) as into:
        into.write(content)


def _member(archive: zipfile.ZipFile, name: str, size: int) -> Any:
    info = zipfile.ZipInfo(name, EPOCH)
    info.create_system, info.external_attr, info.file_size = 3, (stat.S_IFREG | 0o644) << 16, size
    return archive.open(info, "w")


def _picture(path: Path) -> bytes:
    """A preview's file; PackError if it is none."""
    try:
        with path.open("rb") as file:
            content = file.read(MAX_PREVIEW_BYTES + 1)
    except OSError as error:
        raise PackError(f"The preview {path} cannot be read: {error.strerror}.") from error
    if _kind(content) is None or len(content) > MAX_PREVIEW_BYTES:
        raise PackError(
            f"The preview {path} is no PNG, JPEG, GIF or WebP of at most {MAX_PREVIEW_BYTES} bytes; "
            "choose another picture."
        )
    return content


def _kind(content: bytes) -> str | None:
    return next((kind for kind, start in PICTURES.items() if content.startswith(start)), None)


# In -----------------------------------------------------------------------------------------------


def read_pack(path: str | Path) -> Pack:
    """Read a pack and check all of it; PackError with one sentence for the first thing that is wrong."""
    path = Path(path)
    with _refusing(path), _opened(path) as archive:
        sizes = _sizes(archive, path.stat().st_size)
        manifest = _manifest(archive, sizes)
        _check_names(manifest, sizes.keys())
        entries = tuple(packed.entry() for packed in manifest.entries)
        with tempfile.TemporaryDirectory() as folder:
            stated: dict[str, tuple[Any, ...]] = {}
            for entry in entries:
                _check_row(entry)
                facts = (entry.value_bytes, entry.fingerprint, entry.rank, entry.alpha)
                if entry.value not in stated:
                    stated[entry.value] = facts
                    _check_value(archive, entry, Path(folder) / "value.safetensors")
                elif stated[entry.value] != facts:
                    raise PackError(f"entry {entry.id} describes its value otherwise than another one")
        previews = {packed.id: packed.preview for packed in manifest.entries if packed.preview}
        for name in set(previews.values()):
            if sizes[name] > MAX_PREVIEW_BYTES or _kind(_checked(archive, name)) != name.rpartition(".")[2]:
                raise PackError(f"{name} is no picture of its kind, or too large")
        return Pack(path, manifest.licence, entries, previews)


def plan_import(store: MemoryStore | None, path: str | Path, *, fingerprint: str | None = None) -> ImportPlan:
    """What an import would do; nothing is written. PackError as in `read_pack`.

    store: None for one that is yet to be made. fingerprint: the backbone to import for; by default those
    that the memory holds entries of. An empty memory takes any.
    """
    pack = read_pack(path)
    backbones = store.fingerprints() if store else set()
    if fingerprint is not None:
        backbones = {fingerprint}
    here = store.known(entry.id for entry in pack.entries) if store else {}
    return ImportPlan(pack, tuple(_row(entry, here.get(entry.id), backbones) for entry in pack.entries))


def import_pack(
    store: MemoryStore, plan: ImportPlan, *, conflicts: Literal["keep", "replace"] = "keep"
) -> list[str]:
    """Take in what is new, and what conflicts if the pack's is to replace it; all or nothing.

    Returns the ids. One `undo` takes it back. PackError if nothing in the pack fits this memory, or if
    its file changed since the plan; MemoryStoreError.
    """
    statuses = ("new", "conflicting") if conflicts == "replace" else ("new",)
    chosen = [row.entry for row in plan.rows if row.status in statuses]
    if not chosen:
        odd = next((row for row in plan.rows if row.status == "incompatible"), None)
        if odd is not None:
            raise PackError(f"Nothing of {plan.pack.path.name} can be imported: {odd.why}")
        return []
    with _refusing(plan.pack.path), _opened(plan.pack.path) as archive:

        def write(entry: MemoryEntry, path: Path) -> None:
            _extract(archive, _value_name(entry.value), path)

        store.adopt(chosen, write)
    return [entry.id for entry in chosen]


def printable(text: str) -> str:
    """A stranger's text on one line, without anything that could steer a terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def _row(entry: MemoryEntry, mine: MemoryEntry | None, backbones: set[str]) -> Row:
    if backbones and entry.fingerprint not in backbones:
        ours = ", ".join(sorted(backbones))
        return Row(entry, "incompatible", f"It is for {entry.fingerprint}, this memory for {ours}.")
    if mine is None:
        return Row(entry, "new", "This memory does not have it.")
    unused = replace(mine, uses=0, last_used=None, pinned=False)
    if unused == entry and np.array_equal(mine.embedding, entry.embedding):
        return Row(entry, "same", "This memory has it already.")
    if mine.value == entry.value:
        return Row(entry, "conflicting", "This memory has it with the same value but other facts.")
    return Row(entry, "conflicting", "This memory has it with another value.")


# Checks -------------------------------------------------------------------------------------------


class _Bounded(FileIO):
    """A file of which nobody reads more at once than any honest pack needs.

    zipfile reads a pack's whole list of names in one go, whatever size a stranger gave it.
    """

    def read(self, size: int | None = -1, /) -> Any:
        if size is None or size < 0:  # what a search for the list's end asks for, near the file's end
            return super().read(MAX_READ)
        if size > MAX_READ:
            raise PackError(f"its list of members claims {size} bytes")
        return super().read(size)


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    """Whatever is wrong with a pack, as one sentence that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise PackError(f"There is no pack at {path}; check the path.") from error
    except PackError as error:
        raise PackError(f"The pack {path.name} is refused: {printable(str(error)).rstrip('.')}.") from error
    except TTOMError:
        raise  # the store's own
    except OSError as error:
        raise PackError(f"The pack {path} cannot be read: {error.strerror or error}.") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, struct.error,
            KeyError, OverflowError) as error:  # fmt: skip
        raise PackError(f"The pack {path.name} is damaged or no pack at all; get it anew.") from error


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    with _Bounded(path) as file, zipfile.ZipFile(file) as archive:
        yield archive


def _sizes(archive: zipfile.ZipFile, size: int) -> dict[str, int]:
    """The size of every member by name; PackError for members that no pack has."""
    sizes: dict[str, int] = {}
    for info in archive.infolist():
        name, shown = info.filename, repr(info.filename[:100])
        if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
            raise PackError(f"{shown} is a link or a folder, no plain file")
        if not MEMBER.fullmatch(name):
            raise PackError(f"{shown} is no name of a pack's member")
        if name in sizes:
            raise PackError(f"{name} is in it twice")
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            raise PackError(f"{name} is compressed, and a pack's members are not")
        if info.flag_bits & 1:
            raise PackError(f"{name} is encrypted")
        sizes[name] = info.file_size
    if sum(sizes.values()) > size:
        raise PackError("its members claim to be larger than the whole")
    return sizes


def _manifest(archive: zipfile.ZipFile, sizes: Mapping[str, int]) -> _Manifest:
    if MANIFEST not in sizes:
        raise PackError(f"it has no {MANIFEST}")
    if sizes[MANIFEST] > MAX_MANIFEST_BYTES:
        raise PackError(f"its {MANIFEST} has {sizes[MANIFEST]} bytes, and {MAX_MANIFEST_BYTES} are read")
    buffer = BytesIO()
    _copy(archive, MANIFEST, buffer)
    try:
        return _Manifest.model_validate_json(buffer.getvalue())
    except ValidationError as error:
        raise PackError(_sentence(error)) from error


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    if first["loc"] == ("version",):
        return f"it has version {first['input']!r:.20}, and this TTOM reads version 1"
    place = ".".join(str(part)[:40] for part in first["loc"])
    return f"{place or MANIFEST}: {first['msg'].removeprefix('Value error, ')}"


def _check_names(manifest: _Manifest, names: Iterable[str]) -> None:
    """One id an entry, and exactly the members that the manifest names."""
    ids: set[str] = set()
    wanted = {MANIFEST}
    for packed in manifest.entries:
        if packed.id in ids:
            raise PackError(f"two of its entries have the id {packed.id}")
        ids.add(packed.id)
        wanted |= {_value_name(packed.value)} | ({packed.preview} if packed.preview else set())
    odd = wanted.symmetric_difference(names)
    if odd:
        name = min(odd)
        raise PackError(f"{name} is {'missing' if name in wanted else 'named by none of its entries'}")


def _check_row(entry: MemoryEntry) -> None:
    """One entry that cannot be read again would keep the whole memory from being listed."""
    try:
        check_entry(entry)
    except TTOMError as error:
        raise PackError(str(error)) from error


def _check_value(archive: zipfile.ZipFile, entry: MemoryEntry, path: Path) -> None:
    """A value's hash, header, shapes and numbers."""
    name = _value_name(entry.value)
    _extract(archive, name, path)
    if path.stat().st_size != entry.value_bytes:
        raise PackError(f"{name} has {path.stat().st_size} bytes, its entry says {entry.value_bytes}")
    try:
        load_value(path, entry)
    except TTOMError as error:
        raise PackError(str(error).replace(str(path), name)) from error


def _extract(archive: zipfile.ZipFile, name: str, path: Path) -> None:
    """Write a member to a path of ours; PackError unless it has the hash in its name."""
    with path.open("wb") as file:
        digest = _copy(archive, name, file)
    if digest != _named_hash(name):
        raise PackError(f"{name} is not what its hash says")


def _checked(archive: zipfile.ZipFile, name: str) -> bytes:
    buffer = BytesIO()
    if _copy(archive, name, buffer) != _named_hash(name):
        raise PackError(f"{name} is not what its hash says")
    return buffer.getvalue()


def _value_name(value: str) -> str:
    return f"values/{value}.safetensors"


def _named_hash(name: str) -> str:
    return name.partition("/")[2].partition(".")[0]


def _copy(archive: zipfile.ZipFile, name: str, into: Any) -> str:
    """Copy a member block by block; returns its SHA-256."""
    digest = hashlib.sha256()
    with archive.open(name) as member:
        while block := member.read(1 << 20):
            digest.update(block)
            into.write(block)
    return digest.hexdigest()
