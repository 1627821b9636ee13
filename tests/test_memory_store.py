"""The memory's store: what is acknowledged stays, what is found fits, what is changed can be undone."""

from __future__ import annotations

import importlib.util
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ttom_core.adapter import Adapter
from ttom_core.layout import Box, Keyframe, Layout, TrackedObject
from ttom_core.memory import index
from ttom_core.memory.index import SIZE, SketchIndex, sketch
from ttom_core.memory.key import SceneKey
from ttom_core.memory.recall import Scene, recall
from ttom_core.memory.store import UNDO_DEPTH, MemoryStore, MemoryStoreError
from ttom_core.optimize import PRESETS

ROOT = Path(__file__).resolve().parent.parent
WIDTH = 64  # of the embeddings
RIGHT = SceneKey(structure=("count:1", "motion:A:right"), sentence="<A> moves to the right")
LEFT = SceneKey(structure=("count:1", "motion:A:left"), sentence="<A> moves to the left")


def adapter(seed: int = 0, fingerprint: str = "toy", rank: int = 2, size: int = 6) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    pair = (torch.randn(rank, size, generator=generator), torch.randn(size, rank, generator=generator))
    return Adapter({"blocks.0.attn2.to_q": pair}, rank, float(rank), fingerprint)


def same(a: Adapter, b: Adapter) -> bool:
    return a.weights.keys() == b.weights.keys() and all(
        torch.equal(x, y) for name in a.weights for x, y in zip(a.weights[name], b.weights[name], strict=True)
    )


def direction(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(WIDTH)


def insert(store: MemoryStore, seed: int = 0, key: SceneKey = RIGHT, **more):
    facts = {"embedder": "toy-text", "prompt": f"ball {seed} moves"} | more
    return store.insert(facts.pop("adapter", adapter(seed)), key, direction(seed), **facts)


def read(store: MemoryStore, seed: int = 0, key: SceneKey = RIGHT, **more):
    return store.read(
        key, direction(seed), **({"embedder": "toy-text", "fingerprint": "toy", "threshold": -1} | more)
    )


@pytest.fixture
def store(tmp_path):
    with MemoryStore(tmp_path / "memory") as store:
        yield store


def benchmark():
    """benchmarks/memory.py, whose writers are killed here too."""
    spec = importlib.util.spec_from_file_location("memory_benchmark", ROOT / "benchmarks" / "memory.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_benchmark_attaches_and_leaves_the_model_as_it_was(backbone, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "demo", PRESETS["demo"].model_copy(update={"layers": (1, 2)}))
    hooks = sum(len(module._forward_hooks) for module in backbone.transformer.modules())
    seconds = benchmark().attach_seconds(tmp_path, backbone, rounds=3)
    assert len(seconds) == 3 and min(seconds) > 0
    assert sum(len(module._forward_hooks) for module in backbone.transformer.modules()) == hooks


def in_child(work) -> int:
    """Run this in a forked process; its exit status, 0 where it returned."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


# Insert and read ----------------------------------------------------------------------------------


def test_an_entry_comes_back_as_it_was_stored(tmp_path):
    box = Keyframe(time=0.5, box=Box(x=0.1, y=0.1, w=0.2, h=0.2))
    layout = Layout(objects=(TrackedObject(id="a", name="ball", phrase="ball", keyframes=(box,)),))
    facts = {
        "layout": layout,
        "settings": {"layers": [1, 2]},
        "lora_seed": 7,
        "loss_first": 0.5,
        "loss_last": 0.1,
        "parents": ("p",),
        "note": "by hand",
        "pinned": True,
    }
    with MemoryStore(tmp_path / "m") as store:
        entry = insert(store, **facts)
    with MemoryStore(tmp_path / "m") as store:
        assert len(store) == 1
        (found,) = store.entries()
        assert found == entry
        for name, value in facts.items():
            assert getattr(found, name) == value
        assert np.array_equal(found.embedding, entry.embedding)
        assert np.linalg.norm(found.embedding) == pytest.approx(1, abs=1e-3)
        assert same(store.load(found), adapter(0))
        assert store.fsck().clean


def test_a_hit_has_exactly_the_structure_and_says_why(store):
    right, left = insert(store), insert(store, key=LEFT)
    (hit,) = read(store)
    assert hit.entry.id == right.id
    assert hit.similarity == pytest.approx(1, abs=1e-3)
    assert "motion:A:right" in hit.why
    assert "ball 0 moves" in hit.why
    assert [h.entry.id for h in read(store, key=LEFT)] == [left.id]


@pytest.mark.parametrize("other", [{"embedder": "clip"}, {"fingerprint": "another"}])
def test_other_embedders_and_backbones_are_never_found(store, other):
    insert(store)
    assert read(store)
    assert not read(store, **other)


def test_embeddings_of_another_size_are_never_compared(store):
    insert(store)
    assert not store.read(RIGHT, np.ones(WIDTH + 1), embedder="toy-text", fingerprint="toy", threshold=-1)


def test_the_most_alike_come_first_down_to_the_threshold(store):
    ids = [insert(store, seed).id for seed in range(20)]
    cosines = [float(sketchless(seed) @ sketchless(3)) for seed in range(20)]
    hits = read(store, 3, top_k=4)
    assert [h.entry.id for h in hits] == [ids[i] for i in np.argsort(cosines)[::-1][:4]]
    assert [h.similarity for h in hits] == pytest.approx(sorted(cosines)[::-1][:4], abs=2e-3)
    assert [h.entry.id for h in read(store, 3, threshold=0.9)] == [ids[3]]


def sketchless(seed: int) -> np.ndarray:
    return direction(seed) / np.linalg.norm(direction(seed))


def test_of_equal_texts_the_nearer_layout_comes_first(store):
    near = RIGHT.model_copy(update={"layout": (0.1, 0.5, 0.9, 0.5)})
    far = RIGHT.model_copy(update={"layout": (0.9, 0.1, 0.1, 0.1)})
    for key in (far, RIGHT, far, near, far):
        insert(store, key=key)
    hits = read(store, key=near, top_k=2)
    assert [h.entry.key.layout for h in hits] == [near.layout, far.layout]


def test_reading_counts_uses_but_not_read_only(store):
    insert(store)
    state = store.state
    read(store)
    read(store)
    with MemoryStore(store.folder, read_only=True) as quiet:
        assert read(quiet)[0].entry.uses == 2
        assert read(quiet)[0].entry.uses == 2
    assert read(store)[0].entry.last_used is not None
    assert store.state == state


def test_entries_are_found_by_their_words(store):
    insert(store, 1, note="Holiday")
    insert(store, 2, key=LEFT)
    assert [e.prompt for e in store.entries("holiday BALL")] == ["ball 1 moves"]
    assert [e.prompt for e in store.entries("left")] == ["ball 2 moves"]
    assert not list(store.entries("nothing"))
    assert not list(store.entries(fingerprint="another"))
    entry = next(store.entries("holiday"))
    assert store.get(entry.id[:12]) == entry


# Update, delete, undo -----------------------------------------------------------------------------


def test_an_update_replaces_the_value_and_remembers_the_old(store):
    entry = insert(store)
    new = store.update(entry.id, adapter(1), loss_last=0.2)
    assert same(store.load(store.get(entry.id)), adapter(1))
    assert (new.parents, new.loss_last) == ((entry.value,), 0.2)
    assert same(store.load(entry), adapter(0)), "the old value stays for undo"


@pytest.mark.parametrize("weight", [0.0, 0.8, 3.0])
def test_a_weighted_update_is_the_weighted_mean_of_the_products(store, weight):
    pytest.importorskip("ttom_core.fusion")
    entry = insert(store, adapter=adapter(0, rank=6))
    store.update(entry.id, adapter(1, rank=6), weight=weight)
    after = store.load(store.get(entry.id))

    def product(a: Adapter) -> torch.Tensor:
        down, up = a.weights["blocks.0.attn2.to_q"]
        return a.scaling * up @ down

    expected = (product(adapter(0, rank=6)) + weight * product(adapter(1, rank=6))) / (1 + weight)
    assert torch.allclose(product(after), expected, atol=1e-4)


def test_an_update_from_another_backbone_is_refused(store):
    entry = insert(store)
    with pytest.raises(MemoryStoreError, match="is for toy, the adapter for other"):
        store.update(entry.id, adapter(1, "other"))


CHANGES = {
    "insert": lambda store, entry: insert(store, 9),
    "update": lambda store, entry: store.update(entry.id, adapter(9)),
    "delete": lambda store, entry: store.delete([entry.id]),
    "prune": lambda store, entry: store.prune(max_entries=1),
    "pin": lambda store, entry: store.pin(entry.id),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_the_last_change_is_undone_whatever_it_was(store, kind):
    entries = [insert(store, seed) for seed in range(3)]
    before = {e.id: e for e in store.entries()}
    state = store.state
    CHANGES[kind](store, entries[1])
    assert {e.id: e for e in store.entries()} != before
    assert store.state != state
    assert "is undone" in store.undo()
    assert {e.id: e for e in store.entries()} == before
    for entry in before.values():
        assert same(store.load(entry), store.load(entries[[e.id for e in entries].index(entry.id)]))
    assert {h.entry.id for h in read(store)} == set(before)
    report = store.fsck()
    assert report.clean
    assert not report.orphans


def test_undo_reaches_back_step_by_step_and_then_says_so(store):
    for seed in range(UNDO_DEPTH + 3):
        insert(store, seed)
    for _ in range(UNDO_DEPTH):
        store.undo()
    assert len(store) == 3
    with pytest.raises(MemoryStoreError, match="no change left to undo"):
        store.undo()


def test_deleting_nothing_is_no_change(store):
    insert(store)
    assert store.delete(["unknown"]) == []
    assert store.prune() == []
    store.undo()
    assert len(store) == 0


def test_values_go_when_nothing_needs_them(store):
    files = lambda: sorted(p.name for p in (store.folder / "values").rglob("*.safetensors"))  # noqa: E731
    first, twin = insert(store, 0), insert(store, 0)
    assert len(files()) == 1, "equal values are one file"
    store.delete([first.id])
    assert same(store.load(twin), adapter(0))
    store.delete([twin.id])
    assert len(files()) == 1, "undo may still want it"
    kept = insert(store, 1)
    for pinned in [True, False] * UNDO_DEPTH:
        store.pin(kept.id, pinned)
    assert files() == [f"{kept.value}.safetensors"]


def test_a_deleted_entry_is_spoken_of(store):
    entry = insert(store)
    store.delete([entry.id])
    with pytest.raises(MemoryStoreError, match="was deleted; undo may bring it back"):
        store.get(entry.id)
    with pytest.raises(MemoryStoreError, match="There is no memory entry 'abc'"):
        store.get("abc")


# Capacity -----------------------------------------------------------------------------------------


def test_the_least_used_make_room_and_pinned_ones_stay(tmp_path):
    with MemoryStore(tmp_path, max_entries=3) as store:
        pinned = insert(store, 0, pinned=True)
        used, unused = insert(store, 1), insert(store, 2)
        assert read(store, 1, top_k=1)[0].entry.id == used.id
        newest = insert(store, 3)
        assert {e.id for e in store.entries()} == {pinned.id, used.id, newest.id}
        store.undo()
        assert {e.id for e in store.entries()} == {pinned.id, used.id, unused.id}


def test_capacity_in_bytes(tmp_path):
    with MemoryStore(tmp_path / "a") as store:
        size = insert(store).value_bytes
    with MemoryStore(tmp_path / "b", max_bytes=3 * size) as store:
        for seed in range(7):
            insert(store, seed)
        assert store.value_bytes() == 3 * size
        assert [e.prompt for e in store.entries()] == ["ball 4 moves", "ball 5 moves", "ball 6 moves"]


def test_a_memory_full_of_pinned_entries_says_so_and_stays(tmp_path):
    with MemoryStore(tmp_path, max_entries=2) as store:
        insert(store, 0, pinned=True)
        insert(store, 1, pinned=True)
        with pytest.raises(MemoryStoreError, match="the rest is pinned; unpin"):
            insert(store, 2, pinned=True)
        assert len(store) == 2
        assert not store.fsck(repair=True).problems


def test_pruning_by_age(store):
    entries = [insert(store, seed) for seed in range(3)]
    store.pin(entries[0].id)
    assert store.prune(unused_since=entries[2].created) == [entries[1].id]


# Many at once -------------------------------------------------------------------------------------


def test_another_process_is_seen_at_once(store):
    first = insert(store, 0)
    assert len(read(store)) == 1
    with MemoryStore(store.folder) as other:
        second = insert(other, 1)
        assert {h.entry.id for h in read(store)} == {first.id, second.id}
        other.delete([first.id])
        assert {h.entry.id for h in read(store)} == {second.id}
        other.undo()
        assert {h.entry.id for h in read(store)} == {first.id, second.id}


def test_a_value_deleted_since_it_was_found_is_an_error_with_a_sentence(store):
    entry = insert(store)
    store.value_path(entry.value).unlink()
    with pytest.raises(MemoryStoreError, match="is gone, deleted since it was found"):
        store.load(entry)


def operations(folder: Path, writer: int, count: int) -> None:
    """Insert, update and delete in turn; what must be there at the end depends on `count` alone."""
    with MemoryStore(folder) as store:
        mine = []
        for step in range(count):
            if step % 5 == 3:
                store.update(mine[-1], adapter(step + 1))
            elif step % 5 == 4:
                store.delete([mine.pop(0)])
            else:
                mine.append(insert(store, step, note=f"writer-{writer}").id)


@pytest.mark.parametrize("count", [40, pytest.param(1000, marks=pytest.mark.slow)])
def test_two_writers_lose_nothing(tmp_path, count):
    folder = tmp_path / "m"  # not there yet: both make it
    children = []
    for writer in (1, 2):
        child = os.fork()
        if child == 0:
            try:
                operations(folder, writer, count)
                os._exit(0)
            finally:
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    with MemoryStore(folder) as store:
        for writer in (1, 2):
            found = list(store.entries(f"writer-{writer}"))
            assert len(found) == 2 * count // 5
            for entry in found:
                store.load(entry)
        report = store.fsck()
        assert report.clean
        assert not report.orphans


def test_weighted_updates_of_one_entry_all_count(tmp_path, monkeypatch):
    """Two processes that blend into one entry: the slower one blends with what the faster one wrote."""
    with MemoryStore(tmp_path) as store, MemoryStore(tmp_path) as other:
        entry = insert(store)
        blends = []

        def blend(old, new, weight):
            blends.append(old.value)
            if len(blends) == 1:
                other.update(entry.id, adapter(5))
            return new

        monkeypatch.setattr(store, "_blend", blend)
        store.update(entry.id, adapter(1), weight=1.0)
        assert len(set(blends)) == 2
        assert len(store.get(entry.id).parents) == 2
        store.undo()
        assert same(store.load(store.get(entry.id)), adapter(5))


def test_a_read_does_not_wait_for_a_long_change_of_another(store):
    entry = insert(store)
    with MemoryStore(store.folder) as other, other._writing():
        started = time.perf_counter()
        with pytest.warns(UserWarning, match=r"the use is not counted: Another process keeps .* busy"):
            assert read(store)[0].entry.id == entry.id
        assert time.perf_counter() - started < 5
    assert read(store)[0].entry.uses == 0


def test_threads_share_a_store(store):
    threads = [
        threading.Thread(target=lambda n=n: [(insert(store, 10 * n + i), read(store, i)) for i in range(5)])
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(store) == 20


# Crashes, full disks, damage ----------------------------------------------------------------------


@pytest.mark.parametrize("kills", [10, pytest.param(200, marks=pytest.mark.slow)])
def test_a_killed_writer_loses_nothing_it_acknowledged(tmp_path, kills):
    outcome = benchmark().crash(tmp_path / "m", kills, seed=kills)
    assert outcome.kills == kills
    assert outcome.acknowledged > 0
    assert outcome.reads > 0
    assert outcome.lost == 0
    with MemoryStore(tmp_path / "m") as store:
        assert store.fsck(repair=True).clean
        assert not store.fsck().orphans


def test_a_value_without_its_row_is_an_orphan_and_collected(tmp_path, monkeypatch):
    """Killed between the two, as exactly as it can be told."""
    folder = tmp_path / "m"
    with MemoryStore(folder) as store:
        kept = insert(store, 0)

    def die_before_the_row():
        with MemoryStore(folder) as store:
            store._write_row = lambda entry: os.kill(os.getpid(), signal.SIGKILL)
            insert(store, 1)

    assert in_child(die_before_the_row) == -signal.SIGKILL
    with MemoryStore(folder) as store:
        report = store.fsck()
        assert report.clean
        assert len(report.orphans) == 1
        assert not report.repaired
        assert store.fsck(repair=True).repaired
        assert not store.fsck().orphans
        assert same(store.load(kept), adapter(0))
        assert len(store) == 1


def fill_until_full(folder: Path) -> None:
    with MemoryStore(folder) as store:
        done = []
        with pytest.raises(MemoryStoreError, match=r"could not write .* free some space"):  # noqa: PT012
            for seed in range(1000):
                done.append(insert(store, seed, adapter=adapter(seed, size=400 * seed + 4)))
        assert done
        assert {e.id for e in store.entries()} == {e.id for e in done}
        for entry in done:
            store.load(entry)
        report = store.fsck()
        assert report.clean
        assert not report.orphans


def test_a_file_that_cannot_grow_is_an_error_and_the_store_intact(tmp_path):
    def limited():
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
        fill_until_full(tmp_path / "m")

    assert in_child(limited) == 0


def test_a_full_disk_is_an_error_and_the_store_intact(tmp_path):
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    try:
        mounted = subprocess.run(mount, capture_output=True).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("only root can mount a tiny disk")
    try:
        fill_until_full(tmp_path / "m")
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_folder_that_cannot_be_written_can_be_read(tmp_path):
    folder = tmp_path / "m"
    with MemoryStore(folder) as store:
        entry = insert(store)
    everything = [tmp_path, *tmp_path.rglob("*")]

    def as_a_guest():
        if os.getuid() == 0:  # root may write anywhere
            os.chdir("/")
            os.setgid(65534)
            os.setuid(65534)
        with pytest.raises(MemoryStoreError, match=r"cannot be opened to write|could not write"):
            MemoryStore(folder)
        with MemoryStore(folder, read_only=True) as store:
            assert same(store.load(read(store)[0].entry), adapter(0))
            assert store.fsck().clean

    for parent in tmp_path.parents[:2]:  # pytest's own: closed to guests
        parent.chmod(0o755)
    try:
        for path in everything:
            path.chmod(0o555 if path.is_dir() else 0o444)
        assert in_child(as_a_guest) == 0
    finally:
        for path in everything:
            path.chmod(0o755 if path.is_dir() else 0o644)
    with MemoryStore(folder) as store:
        assert store.get(entry.id) == entry


def test_read_only_refuses_every_change(store):
    entry = insert(store)
    with MemoryStore(store.folder, read_only=True) as quiet:
        for change in (
            lambda: insert(quiet, 1),
            lambda: quiet.update(entry.id, adapter(1)),
            lambda: quiet.delete([entry.id]),
            lambda: quiet.pin(entry.id),
            quiet.undo,
            quiet.prune,
            lambda: quiet.fsck(repair=True),
        ):
            with pytest.raises(MemoryStoreError, match="is open read-only; open it to write"):
                change()
        assert list(quiet.entries()) == [entry]


def test_what_is_no_memory_is_refused(tmp_path):
    with pytest.raises(MemoryStoreError, match="There is no memory in"):
        MemoryStore(tmp_path / "nothing", read_only=True)
    assert not (tmp_path / "nothing").exists()
    (tmp_path / "memory.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(MemoryStoreError, match="is damaged"):
        MemoryStore(tmp_path)


def test_another_version_is_refused(store):
    store._database.execute("PRAGMA user_version = 9")
    with pytest.raises(MemoryStoreError, match="has version 9; this TTOM reads version 1"):
        MemoryStore(store.folder)


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove"])
def test_damaged_values_are_found_and_removed(store, harm):
    entry, sound = insert(store, 0), insert(store, 1)
    path = store.value_path(entry.value)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    {
        "flip": lambda: path.write_bytes(content),
        "truncate": lambda: path.write_bytes(content[:40]),
        "remove": path.unlink,
    }[harm]()
    with pytest.raises(MemoryStoreError, match=r"is damaged|is gone"):
        store.load(entry)
    report = store.fsck()
    assert [entry.id in problem for problem in report.problems] == [True]
    store.fsck(repair=True)
    assert store.fsck().clean
    assert [e.id for e in store.entries()] == [sound.id]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e9])
def test_weights_that_are_none_are_not_stored(store, value):
    spoiled = adapter()
    spoiled.weights["blocks.0.attn2.to_q"][1][0, 0] = value
    with pytest.raises(MemoryStoreError, match=r"weights for blocks\.0\.attn2\.to_q reach"):
        insert(store, adapter=spoiled)
    assert len(store) == 0


@pytest.mark.parametrize("bad", [[], [0.0, 0.0], [float("nan"), 1.0], [[1.0, 2.0]]])
def test_embeddings_that_are_none_are_refused(store, bad):
    with pytest.raises(MemoryStoreError, match="embedding"):
        store.insert(adapter(), RIGHT, bad, embedder="toy-text", prompt="x")


def test_settings_that_are_no_json_are_refused_and_nothing_is_left(store):
    with pytest.raises(MemoryStoreError, match="plain JSON"):
        insert(store, settings={"x": {1, 2}})
    assert len(store) == 0
    store.fsck(repair=True)
    assert not store.fsck().orphans


def test_a_closed_store_says_so(store):
    store.close()
    store.close()
    with pytest.raises(MemoryStoreError, match="is closed"):
        len(store)


# The index ----------------------------------------------------------------------------------------


SKETCH = [63, 9, -13, -81, -67, -40, -13, 0]  # of 1, 2, … 8


def test_sketches_are_the_same_everywhere_and_for_ever():
    vector = np.arange(1, 9, dtype=np.float32)
    assert sketch(vector / np.linalg.norm(vector))[:8].tolist() == SKETCH


def test_sketches_choose_among_more_than_are_compared():
    """Random directions, the hardest case: no neighbour is near."""
    generator = np.random.default_rng(0)
    vectors = generator.standard_normal((2000, WIDTH)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    bucket = SketchIndex()
    bucket.add(np.arange(1, 2001), np.stack([sketch(v) for v in vectors]))
    found = []
    for number in range(1, 2001, 20):
        nearest = bucket.nearest(sketch(vectors[number - 1]), index.CANDIDATES)
        assert len(nearest) == index.CANDIDATES
        assert number in nearest
        exact = np.argsort(-(vectors @ vectors[number - 1]))[:5] + 1
        found += np.isin(exact, nearest).tolist()
    assert np.mean(found) > 0.95


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 40))
def test_faiss_and_numpy_find_the_same(seed, count):
    pytest.importorskip("faiss")
    codes = np.random.default_rng(seed).integers(-127, 128, (300, SIZE)).astype(np.int8)
    numbers = np.arange(300) * 3 + 1
    plain, fast = SketchIndex(), SketchIndex()
    plain.add(numbers, codes)
    fast.add(numbers[:200], codes[:200])
    fast._move_to_faiss()
    fast.add(numbers[200:], codes[200:])
    query = codes[17] // 2
    distance = dict(
        zip(numbers.tolist(), ((codes.astype(int) - query.astype(int)) ** 2).sum(1).tolist(), strict=True)
    )
    found = [sorted(distance[n] for n in i.nearest(query, count).tolist()) for i in (plain, fast)]
    assert found[0] == found[1] == sorted(distance.values())[:count]


def test_a_large_bucket_is_read_like_a_small_one(store, monkeypatch):
    monkeypatch.setattr(index, "FAISS_FROM", 20)
    monkeypatch.setattr("ttom_core.memory.store.CANDIDATES", 8)
    ids = [insert(store, seed).id for seed in range(30)]
    assert read(store, 11)[0].entry.id == ids[11]
    store.delete(ids[:5])
    assert read(store, 3, threshold=0.9) == []
    assert read(store, 11)[0].entry.id == ids[11]


def test_importing_the_memory_loads_no_torch():
    code = "import sys, ttom_core.memory.store; print(*{'torch', 'faiss', 'diffusers'} & sys.modules.keys())"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert not run.stdout.split()


def test_the_database_is_plain_sqlite(store):
    insert(store)
    with sqlite3.connect(store.folder / "memory.sqlite") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("SELECT prompt FROM entries").fetchone() == ("ball 0 moves",)


FP16, FP8, OTHER = "wan-40x5120-00", "wan-40x5120-01", "wan-30x1536-00"


def test_copies_of_one_model_share_a_memory_only_by_choice(tmp_path: Path) -> None:
    with MemoryStore(tmp_path) as store:
        made = [insert(store, n, adapter=adapter(n, copy)) for n, copy in enumerate((FP16, FP8, OTHER))]
        (hit,) = read(store, 0, fingerprint=FP8)
        assert hit.entry.id == made[1].id
        assert "copy" not in hit.why
        with pytest.raises(MemoryStoreError, match="insert it as an entry of its own"):
            store.update(made[0].id, adapter(7, FP8))
    with MemoryStore(tmp_path, other_copies=True) as store:
        hits = read(store, 0, fingerprint=FP8)
        assert {hit.entry.id for hit in hits} == {made[0].id, made[1].id}
        assert [FP16 in hit.why for hit in hits] == [hit.entry.id == made[0].id for hit in hits]
        for weight in (None, 0.5):
            assert store.update(made[0].id, adapter(7, FP8), weight=weight).fingerprint == FP16
        assert store.load(store.get(made[0].id)).fingerprint == FP16
        assert read(store, 0, fingerprint="wan-40x5120-02")  # a copy that has made nothing yet
        assert not read(store, 0, fingerprint="cogvideox-40x5120-00")
        with pytest.raises(MemoryStoreError, match="insert it as an entry of its own"):
            store.update(made[2].id, adapter(7, FP8))


def test_a_scene_recalled_from_copies_fits_the_model_that_asks(tmp_path: Path) -> None:
    scene = Scene("a ball moves", None, RIGHT, direction(0).astype(np.float32), "toy-text")
    with MemoryStore(tmp_path, other_copies=True) as store:
        for number, copy in enumerate((FP16, FP8)):
            insert(store, number, adapter=adapter(number, copy))
        known = recall(store, scene, FP8, threshold=-1)
    assert len(known.hits) == 2
    assert known.adapter is not None
    assert known.adapter.fingerprint == FP8
