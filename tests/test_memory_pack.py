"""Packs: what goes out comes in again to the bit, and nothing of a hostile one ever touches the store."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save

from ttom_core.adapter import Adapter, attach, init_adapter
from ttom_core.memory import pack as pack_module
from ttom_core.memory.key import scene_key
from ttom_core.memory.pack import (
    PICTURES,
    PackError,
    export_lora,
    export_pack,
    import_pack,
    plan_import,
    printable,
    read_pack,
)
from ttom_core.memory.store import MemoryEntry, MemoryStore, MemoryStoreError
from ttom_core.planner import plan

GOLDEN = Path(__file__).parent / "golden" / "memory.ttompack"
PROMPTS = ("a red circle moves to the right", "a blue square moves up", "two green circles")
NAME = "blocks.0.attn2.to_q"


def adapter(seed: int = 0, fingerprint: str = "toy", rank: int = 2, size: int = 6) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    pair = (torch.randn(rank, size, generator=generator), torch.randn(size, rank, generator=generator))
    return Adapter({NAME: pair}, rank, 2.0 * rank, fingerprint)


def insert(store: MemoryStore, seed: int = 0, fingerprint: str = "toy") -> MemoryEntry:
    prompt = PROMPTS[seed % len(PROMPTS)]
    layout = plan(prompt)
    embedding = np.random.default_rng(seed).standard_normal(16)
    facts: dict[str, Any] = {"settings": {"layers": [1, 2], "rate": 0.01}, "note": "mine", "loss_last": 0.25}
    return store.insert(
        adapter(seed, fingerprint), scene_key(prompt, layout), embedding,
        embedder="toy-text", prompt=prompt, layout=layout, **facts,
    )  # fmt: skip


def picture(path: Path) -> Path:
    Image.new("RGB", (3, 2), "red").save(path)
    return path


@pytest.fixture
def store(tmp_path):
    with MemoryStore(tmp_path / "mine") as store:
        for seed in range(3):
            insert(store, seed)
        yield store


@pytest.fixture
def other(tmp_path):
    with MemoryStore(tmp_path / "theirs") as store:
        yield store


@pytest.fixture
def path(store, tmp_path):
    path = tmp_path / "pack.ttompack"
    first = next(store.entries())
    export_pack(
        store, store.entries(), path, licence="CC0-1.0", previews={first.id: picture(tmp_path / "p.png")}
    )
    return path


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Out and in ---------------------------------------------------------------------------------------


def test_what_goes_out_comes_in_again(store, other, path):
    read = plan_import(other, path)
    assert [row.status for row in read.rows] == ["new"] * 3
    assert len(other) == 0, "a plan writes nothing"
    ids = import_pack(other, read)
    assert set(ids) == {entry.id for entry in store.entries()}
    for entry in store.entries():
        twin = other.get(entry.id)
        assert twin == entry
        assert np.array_equal(twin.embedding, entry.embedding)
        for a, b in zip(other.load(twin).weights[NAME], store.load(entry).weights[NAME], strict=True):
            assert torch.equal(a, b)
    assert other.fsck().clean
    assert [row.status for row in plan_import(other, path).rows] == ["same"] * 3
    assert import_pack(other, plan_import(other, path)) == []


def test_imported_entries_are_found_and_one_undo_takes_them_back(store, other, path):
    import_pack(other, plan_import(other, path))
    entry = next(store.entries())
    (hit,) = other.read(entry.key, entry.embedding, embedder="toy-text", fingerprint="toy")
    assert hit.entry.id == entry.id
    other.undo()
    assert len(other) == 0
    report = other.fsck()
    assert report.clean
    assert not report.orphans


def test_a_pack_says_its_licence_and_shows_its_previews(store, path, tmp_path):
    pack = read_pack(path)
    assert pack.licence == "CC0-1.0"
    first, *rest = store.entries()
    assert pack.preview(first.id) == (tmp_path / "p.png").read_bytes()
    assert [pack.preview(entry.id) for entry in rest] == [None, None]


def test_equal_packs_are_equal_bytes(store, other, path, tmp_path):
    import_pack(other, plan_import(other, path))
    again, backwards = tmp_path / "again.ttompack", list(other.entries())[::-1]
    first = next(store.entries())
    export_pack(other, backwards, again, licence="CC0-1.0", previews={first.id: tmp_path / "p.png"})
    assert again.read_bytes() == path.read_bytes()


def test_uses_and_pins_stay_at_home(store, other, path):
    entry = next(store.entries())
    import_pack(other, plan_import(other, path))
    other.pin(entry.id)
    other.read(entry.key, entry.embedding, embedder="toy-text", fingerprint="toy")
    store.update(entry.id, adapter(9))
    export_pack(store, [store.get(entry.id)], path, licence="CC0-1.0")
    read = plan_import(other, path)
    assert [row.status for row in read.rows] == ["conflicting"]
    assert import_pack(other, read) == [], "what conflicts stays unless it is to be replaced"
    assert import_pack(other, read, conflicts="replace") == [entry.id]
    changed = other.get(entry.id)
    assert changed.value == store.get(entry.id).value
    assert changed.pinned
    assert changed.uses == 1


def test_another_backbones_entries_stay_outside(store, tmp_path, path):
    with MemoryStore(tmp_path / "wan") as wan:
        insert(wan, 0, "wan")
        before = everything(wan.folder)
        read = plan_import(wan, path)
        assert [row.status for row in read.rows] == ["incompatible"] * 3
        assert "It is for toy, this memory for wan" in read.rows[0].why
        with pytest.raises(PackError, match=r"Nothing of pack\.ttompack can be imported: It is for toy"):
            import_pack(wan, read)
        assert everything(wan.folder) == before
        insert(store, 3, "wan")
        export_pack(store, store.entries(), path, licence="CC0-1.0")
        mixed = plan_import(wan, path)
        assert sorted(row.status for row in mixed.rows) == ["incompatible"] * 3 + ["new"]
        assert len(import_pack(wan, mixed)) == 1
        assert wan.fingerprints() == {"wan"}


def test_an_empty_memory_can_be_kept_for_one_backbone(other, path):
    assert plan_import(other, path, fingerprint="wan").count("incompatible") == 3
    assert plan_import(other, path, fingerprint="toy").count("new") == 3


def test_nothing_and_no_pictures_are_not_exported(store, tmp_path):
    with pytest.raises(PackError, match="no entry to export"):
        export_pack(store, [], tmp_path / "x.ttompack", licence="CC0-1.0")
    entry = next(store.entries())
    text = tmp_path / "text.png"
    text.write_text("no picture")
    for wrong in (text, tmp_path / "missing.png"):
        with pytest.raises(PackError, match="The preview"):
            export_pack(
                store, [entry], tmp_path / "x.ttompack", licence="CC0-1.0", previews={entry.id: wrong}
            )
    with pytest.raises(PackError, match="licence"):
        export_pack(store, [entry], tmp_path / "x.ttompack", licence="")
    with pytest.raises(PackError, match="cannot be written"):
        export_pack(store, [entry], text / "x.ttompack", licence="CC0-1.0")
    store.value_path(entry.value).unlink()
    with pytest.raises(MemoryStoreError, match="is gone"):
        export_pack(store, [entry], tmp_path / "x.ttompack", licence="CC0-1.0")
    assert not [p for p in tmp_path.iterdir() if p.name.startswith("x.ttompack")]


def test_a_pack_that_changes_after_its_plan_is_refused(other, path, tmp_path):
    read = plan_import(other, path)
    forge(path, path, members=lambda m: m | {value_of(m): save({"x": torch.zeros(1)})})
    before = everything(other.folder)
    with pytest.raises(PackError, match="is not what its hash says"):
        import_pack(other, read)
    path.write_bytes(b"gone")
    with pytest.raises(PackError, match="damaged or no pack"):
        import_pack(other, read)
    assert everything(other.folder) == before
    assert len(other) == 0


# Hostile packs ------------------------------------------------------------------------------------


Members = dict[str, bytes]


def members_of(path: Path) -> Members:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def value_of(members: Members) -> str:
    return min(name for name in members if name.startswith("values/"))


def forge(
    source: Path,
    target: Path,
    manifest: Callable[[dict[str, Any]], Any] = lambda m: m,
    members: Callable[[Members], Members] = lambda m: m,
    compression: int = zipfile.ZIP_STORED,
    mode: int = 0,
) -> None:
    """A pack with another manifest, other members or another kind of zip."""
    content = members_of(source)
    stated = json.loads(content["manifest.json"])
    content["manifest.json"] = json.dumps(manifest(stated) or stated).encode()
    with zipfile.ZipFile(target, "w", compression) as archive:
        for name, value in members(content).items():
            info = zipfile.ZipInfo(name)
            info.compress_type = compression
            info.external_attr = mode << 16
            archive.writestr(info, value)


def stated(**facts: Any) -> Callable[[Path, Path], None]:
    """The first entry says something else."""
    return lambda a, b: forge(a, b, manifest=lambda m: m["entries"][0].update(facts))


def with_value(content: bytes) -> Callable[[Path, Path], None]:
    """The first entry's value is other bytes, their hash and size right."""

    def build(source: Path, target: Path) -> None:
        digest = hashlib.sha256(content).hexdigest()
        first = json.loads(members_of(source)["manifest.json"])["entries"][0]
        name = f"values/{first['value']}.safetensors"

        def change(m: Members) -> Members:
            return {n: v for n, v in m.items() if n != name} | {f"values/{digest}.safetensors": content}

        facts = {"value": digest, "value_bytes": len(content)}
        forge(source, target, lambda m: m["entries"][0].update(facts), change)

    return build


def deep_list() -> Any:
    nested: list[Any] = []
    for _ in range(900):
        nested = [nested]
    return nested


def value(a: torch.Tensor | None = None, b: torch.Tensor | None = None, **facts: Any) -> bytes:
    tensors = {
        f"transformer.{NAME}.lora_A.weight": torch.ones(2, 6) if a is None else a,
        f"transformer.{NAME}.lora_B.weight": torch.ones(6, 2) if b is None else b,
    }
    facts = {"version": 1, "rank": 2, "alpha": 4.0, "fingerprint": "toy"} | facts
    return save(tensors | facts.pop("more", {}), {"ttom": json.dumps(facts)})


class Malicious:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self) -> Any:
        return (os.system, ("touch unpickled",))


def also(name: str, content: bytes = b"x", **more: Any) -> Callable[[Path, Path], None]:
    return lambda a, b: forge(a, b, members=lambda m: m | {name: content}, **more)


def duplicate_member(source: Path, target: Path) -> None:
    content = members_of(source)
    with zipfile.ZipFile(target, "w") as archive:
        for name, value in content.items():
            archive.writestr(name, value)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr(value_of(content), b"another")


def patched(old: bytes, new: bytes) -> Callable[[Path, Path], None]:
    def build(source: Path, target: Path) -> None:
        content = source.read_bytes()
        assert old in content
        target.write_bytes(content.replace(old, new))

    return build


def overlapping(source: Path, target: Path) -> None:
    """Every member is the whole file, or says so: a bomb that needs no compression."""
    content = bytearray(source.read_bytes())
    at = 0
    while (at := content.find(b"PK\x01\x02", at)) >= 0:
        content[at + 20 : at + 28] = struct.pack("<II", len(content), len(content))
        at += 4
    target.write_bytes(content)


def endless_directory(source: Path, target: Path) -> None:
    """The list of members claims gigabytes, and the file has them as a hole."""
    with target.open("wb") as file:
        file.truncate(3 << 30)
        file.seek(0, 2)
        file.write(b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 1, 1, 3 << 30, 0, 0))


def torch_pickle(source: Path, target: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, target)


def repainted(members: Members) -> Members:
    return {n: PICTURES["png"] if n.endswith("png") else value for n, value in members.items()}


def duplicate_entry(manifest: dict[str, Any]) -> None:
    manifest["entries"].append(manifest["entries"][0] | {"note": "again"})


def endless_layout() -> dict[str, Any]:
    frames = [{"time": n / 999, "box": {"x": 0.25, "y": 0.25, "w": 0.5, "h": 0.5}} for n in range(1000)]
    objects = [{"id": str(n), "name": "ball", "phrase": "ball", "keyframes": frames} for n in range(20)]
    return {"objects": objects}


BIG_HEADER = struct.pack("<Q", 1 << 60) + value()[8:]
LONG_HEADER = struct.pack("<Q", 5 << 20) + b" " * (5 << 20)
HOSTILE: dict[str, tuple[Callable[[Path, Path], None], str]] = {
    "path traversal": (also("../../evil.py"), r"'\.\./\.\./evil\.py' is no name"),
    "path traversal inside": (also("values/../../evil"), "is no name of a pack's member"),
    "absolute name": (also("/etc/passwd"), "is no name of a pack's member"),
    "windows name": (also("C:\\evil.exe"), "is no name of a pack's member"),
    "name that steers a terminal": (also("\x1b[2J\nvalues"), "is no name of a pack's member"),
    "symlink": (lambda a, b: forge(a, b, mode=0o120777), "is a link or a folder"),
    "folder": (also("values/"), "is no name of a pack's member"),
    "stranger's picture": (also("previews/" + 64 * "0" + ".png"), "named by none of its entries"),
    "compressed bomb": (
        lambda a, b: forge(
            a, b, members=lambda m: m | {value_of(m): bytes(50 << 20)}, compression=zipfile.ZIP_DEFLATED
        ),
        "is compressed",
    ),
    "overlapping bomb": (overlapping, "claim to be larger than the whole"),
    "endless list": (endless_directory, "its list of members claims 3221225472 bytes"),
    "encrypted": (patched(b"PK\x01\x02\x14\x03\x14\x00\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01\x00"),
                  "is encrypted"),
    "twice": (duplicate_member, "is in it twice"),
    "wrong hash": (
        lambda a, b: forge(a, b, members=lambda m: m | {value_of(m): value()}), "is not what its hash says"
    ),
    "wrong picture": (lambda a, b: forge(a, b, members=repainted), "is not what its hash says"),
    "flipped byte": (patched(b'"CC0-1.0"', b'"CC0-2.0"'), "damaged or no pack"),
    "missing value": (
        lambda a, b: forge(a, b, members=lambda m: {n: v for n, v in m.items() if n != value_of(m)}),
        "is missing",
    ),
    "no manifest": (
        lambda a, b: forge(a, b, members=lambda m: {value_of(m): b"x"}), r"has no manifest\.json"
    ),
    "truncated": (lambda a, b: b.write_bytes(a.read_bytes()[:-500]), "damaged or no pack"),
    "empty": (lambda a, b: b.write_bytes(b""), "damaged or no pack"),
    "a folder for a pack": (lambda a, b: b.mkdir(), "cannot be read"),
    "pickle for a pack": (lambda a, b: b.write_bytes(pickle.dumps(Malicious())), "damaged or no pack"),
    "torch file for a pack": (torch_pickle, "is no name of a pack's member"),
    "pickle for a value": (with_value(pickle.dumps(Malicious())), "no adapter"),
    "oversized header": (with_value(BIG_HEADER), "its header claims"),
    "long header": (with_value(LONG_HEADER), "its header claims"),
    "truncated value": (with_value(value()[:-5]), "is not an adapter"),
    "numbers without sense": (with_value(value(rank=1e999)), "is not an adapter"),
    "facts nested deep": (with_value(value(version=deep_list())), "is not an adapter"),
    "other tensors": (with_value(save({"x": torch.zeros(2)})), "is not an adapter"),
    "more tensors": (with_value(value(more={"x": torch.zeros(2)})), "no part of an adapter"),
    "NaN": (with_value(value(a=torch.full((2, 6), float("nan")))), "weights for .* reach nan"),
    "infinite": (with_value(value(b=torch.full((6, 2), float("inf")))), "weights for .* reach inf"),
    "huge weights": (with_value(value(b=torch.full((6, 2), 1e20))), r"weights for .* reach 1e\+20"),
    "other rank": (with_value(value(a=torch.ones(3, 6))), "no fitting lora_A and lora_B"),
    "other backbone inside": (stated(fingerprint="wan"), "its entry says wan"),
    "alpha inside": (stated(alpha=1e30), r"alpha 4, its entry says toy, 2 and 1e\+30"),
    "other size": (stated(value_bytes=7), "bytes, its entry says 7"),
    "unknown version": (lambda a, b: forge(a, b, lambda m: m.update(version=9)), "it has version 9"),
    "unknown key version": (
        lambda a, b: forge(a, b, lambda m: m["entries"][0]["key"].update(version=2)), "key.version"
    ),
    "another format": (lambda a, b: forge(a, b, lambda m: m.update(format="x")), "format"),
    "no licence": (lambda a, b: forge(a, b, lambda m: m.update(licence="")), "licence"),
    "no entries": (lambda a, b: forge(a, b, lambda m: m.update(entries=[])), "entries"),
    "a list": (lambda a, b: forge(a, b, lambda m: [1]), "manifest.json: Input should be an object"),
    "nested deep": (
        lambda a, b: forge(a, b, members=lambda m: m | {"manifest.json": b"[" * 100_000}), "recursion"
    ),
    "duplicate ids": (lambda a, b: forge(a, b, duplicate_entry), "two of its entries have the id"),
    "unknown field": (stated(command="x"), "command"),
    "id that is a path": (stated(id="../x"), r"entries\.0\.id"),
    "hash that is a path": (stated(value="../x"), r"entries\.0\.value"),
    "preview elsewhere": (stated(preview="/etc/passwd"), r"entries\.0\.preview"),
    "embedding of NaN": (stated(embedding="AH4AfgB+"), "not of unit length"),
    "embedding of nothing": (stated(embedding=""), "not of unit length"),
    "embedding of rubbish": (stated(embedding="!"), "not float16 in base64"),
    "numbers beyond SQLite": (stated(lora_seed=1 << 70), "lora_seed"),
    "NaN in the settings": (stated(settings={"x": float("nan")}), "settings"),
    "endless settings": (stated(settings={"x": "y" * 200_000}), "settings"),
    "boxes outside": (
        lambda a, b: forge(
            a, b, lambda m: m["entries"][0]["layout"]["objects"][0]["keyframes"][0]["box"].update(x=7)
        ),
        "reaches outside",
    ),
    "layout that no store could read again": (stated(layout=endless_layout()), "could not be read again"),
    "embedder that steers a terminal": (stated(embedder="\x1b[2J"), "embedder"),
}  # fmt: skip


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pack_is_refused_in_a_sentence_and_nothing_written(
    kind, path, other, tmp_path, monkeypatch
):
    build, words = HOSTILE[kind]
    hostile = tmp_path / "hostile.ttompack"
    monkeypatch.chdir(tmp_path)
    build(path, hostile)
    before = everything(other.folder)
    around = sorted(p.name for p in tmp_path.rglob("*"))
    with pytest.raises(PackError, match=words) as error:
        plan_import(other, hostile)
    sentence = str(error.value)
    assert sentence.isprintable()
    assert sentence.endswith(".")
    assert "hostile.ttompack" in sentence
    assert str(pack_module.tempfile.gettempdir()) not in sentence.replace(str(tmp_path), "")
    assert everything(other.folder) == before
    assert sorted(p.name for p in tmp_path.rglob("*")) == around


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_whatever_byte_is_changed_a_pack_is_refused_or_says_the_same(tmp_path_factory, data):
    content = bytearray(GOLDEN.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    broken = tmp_path_factory.mktemp("fuzz") / "broken.ttompack"
    broken.write_bytes(content)
    try:
        entries = read_pack(broken).entries
    except PackError:
        return
    assert entries == read_pack(GOLDEN).entries


def test_a_full_disk_in_mid_import_leaves_the_store_as_it_was(store, other, path, monkeypatch):
    read = plan_import(other, path)
    adopted = []

    def full(archive, name, into):
        adopted.append(name)
        if len(adopted) == 3:
            raise OSError(28, "No space left on device")
        return original(archive, name, into)

    original = pack_module._extract
    monkeypatch.setattr(pack_module, "_extract", full)
    with pytest.raises(MemoryStoreError, match="free some space"):
        import_pack(other, read)
    assert len(other) == 0
    report = other.fsck()
    assert report.clean
    assert not report.orphans


def test_text_of_strangers_cannot_steer_a_terminal():
    assert printable("a\x1b[2J\nb\u202ec – ×") == "a [2J b c – ×"


# The golden pack ----------------------------------------------------------------------------------


def test_the_golden_pack_reads_the_same_on_every_run(other, tmp_path):
    assert hashlib.sha256(GOLDEN.read_bytes()).hexdigest() == (
        "dd121b36488b27063f4a16368ee25dcd53872b28701cada20f2b9518909bfb97"
    )
    pack = read_pack(GOLDEN)
    assert pack.licence == "CC0-1.0"
    first, second = pack.entries
    assert (first.id, second.id) == (32 * "1", 32 * "2")
    assert first.prompt == "a red circle moves to the right"
    assert first.key.structure == ("count:A:1", "motion:A:right")
    assert second.key.structure == ("count:A:1", "motion:A:up")
    assert first.key.digest == "f5c59f22aa900e6a68a2c7398fe57b14ae71cbfa2b0ccc8cc28b8978df3f2ff2"
    assert first.embedding.tolist() == [0.5, 0.5, 0.5, 0.5]
    assert (first.rank, first.alpha, first.fingerprint) == (2, 4.0, "toy-2-4")
    assert first.settings == {"layers": [1, 2], "learning_rate": 0.01}
    assert second.parents == (32 * "1",)
    import_pack(other, plan_import(other, GOLDEN))
    down, up = other.load(other.get(first.id)).weights[NAME]
    assert down.tolist() == [[0.0, 0.125, 0.25], [0.375, 0.5, 0.625]]
    assert up.tolist() == [[0.0, -0.25], [-0.5, -0.75]]
    (hit,) = other.read(first.key, np.ones(4), embedder="toy-text", fingerprint="toy-2-4")
    assert (hit.entry.id, hit.similarity) == (first.id, 1.0)
    preview = tmp_path / "preview.png"
    preview.write_bytes(pack.preview(first.id) or b"")
    assert Image.open(preview).size == (2, 1)
    again = tmp_path / "again.ttompack"
    export_pack(other, other.entries(), again, licence=pack.licence, previews={first.id: preview})
    assert again.read_bytes() == GOLDEN.read_bytes()


# Plain LoRAs --------------------------------------------------------------------------------------


@pytest.fixture
def trained(backbone, tmp_path):
    """An entry for the tiny Wan whose adapter does something, alpha not being its rank."""
    modules = backbone.adapter_modules((1, 2), "reachable")
    fresh = init_adapter(modules, 4, 8.0, 0, backbone.fingerprint)
    generator = torch.Generator().manual_seed(3)
    weights = {n: (a, 0.2 * torch.randn(b.shape, generator=generator)) for n, (a, b) in fresh.weights.items()}
    prompt = PROMPTS[0]
    key = scene_key(prompt, plan(prompt))
    with MemoryStore(tmp_path / "wan") as store:
        moved = Adapter(weights, 4, 8.0, backbone.fingerprint)
        yield store, store.insert(moved, key, np.ones(4), embedder="toy-text", prompt=prompt)


def predict(transformer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, 16, 2, 4, 4, generator=generator),
            timestep=torch.tensor([500]),
            encoder_hidden_states=torch.randn(1, 5, 4096, generator=generator),
            return_dict=False,
        )[0]


def test_an_exported_lora_does_in_diffusers_what_the_adapter_does_here(backbone, trained, tmp_path):
    pytest.importorskip("peft")
    from diffusers import WanPipeline

    store, entry = trained
    path = tmp_path / "lora.safetensors"
    export_lora(store, entry, path)
    plain = predict(backbone.transformer)
    with attach(backbone.transformer, store.load(entry)):
        ours = predict(backbone.transformer)
    assert (ours - plain).abs().max() > 1e-2
    loaded = copy.deepcopy(backbone.transformer)
    loaded.load_lora_adapter(str(path), prefix="transformer")
    assert torch.allclose(predict(loaded), ours, atol=1e-5)

    parts = {**backbone.pipeline.components, "transformer": copy.deepcopy(backbone.transformer)}
    parts.pop("transformer_2", None)
    pipeline = WanPipeline(**parts)
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
    assert torch.allclose(predict(pipeline.transformer), ours, atol=1e-5)


def test_an_exported_lora_is_still_an_adapter_of_ours(backbone, trained, tmp_path):
    store, entry = trained
    export_lora(store, entry, tmp_path / "lora.safetensors")
    loaded = Adapter.load(tmp_path / "lora.safetensors")
    assert loaded.scaling == 1
    with attach(backbone.transformer, loaded):
        again = predict(backbone.transformer)
    with attach(backbone.transformer, store.load(entry)):
        assert torch.allclose(predict(backbone.transformer), again, atol=1e-6)
    (tmp_path / "file").write_text("x")
    with pytest.raises(PackError, match="cannot be written"):
        export_lora(store, entry, tmp_path / "file" / "lora.safetensors")
