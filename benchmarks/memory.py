"""What the memory's store costs from 1,000 to 1,000,000 entries, and what it loses to SIGKILL: nothing.

    python benchmarks/memory.py                      # writes benchmarks/results/memory.json
    python benchmarks/memory.py --sizes 1000 --kills 5 --result outputs/memory.json

The stores are filled by SQL, in the form that `insert` writes, with random sentences: an embedding is the
mean of its words' vectors (4096 numbers that share a large common part, as those of a text encoder do).
The scenes are as unequal as Zipf has it; `one_bucket` is the worst case, every entry of the same structure.
Values are small and shared, because their own write is not what is measured. Opening is timed in new
processes, with the first read, which derives the index; reads and inserts then in one process, one thread.
An entry of the demo preset's own size is loaded and attached beside a clip of the demo model, without
optimising: the shortest generation that it can be a part of.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "memory.json"
WIDTH = 4096
WORDS = 4000
LENGTH = 12  # words of a sentence
STRUCTURES = 400
EMBEDDER, FINGERPRINT = "benchmark", "benchmark"
PROMPT = "a red circle moves to the right"
GOALS = {"read_ms_100k": 5.0, "open_s_100k": 2.0, "insert_ms_100k": 20.0, "attach_percent": 1.0}


# Crash --------------------------------------------------------------------------------------------


class Crash(NamedTuple):
    """Writers killed, inserts that they acknowledged, those of them that are not there, reads meanwhile."""

    kills: int
    acknowledged: int
    lost: int
    reads: int


def crash(folder: Path, kills: int, seed: int) -> Crash:
    """Kill a writing process at a random moment, again and again, while another one reads.

    The writer says the id and value of every entry as soon as `insert` has returned. The reader fails if
    anything that it finds is not whole.
    """
    import torch  # noqa: F401  here once, and not in every child, whose time to be killed would be that

    from ttom_core.memory.store import MemoryStore

    chance = random.Random(seed)
    MemoryStore(folder).close()
    reader, report = _fork(lambda pipe: _read_on(folder, pipe))
    acknowledged: dict[str, str] = {}
    try:
        for number in range(kills):
            writer, said = _fork(lambda pipe, number=number: _write_on(folder, pipe, seed + number))
            said.readline()  # it is open
            # Some inserts and then some time later: on a busy machine no time alone is right.
            heard = [said.readline() for _ in range(chance.randrange(4))]
            time.sleep(chance.uniform(0, 0.03))
            os.kill(writer, signal.SIGKILL)
            os.waitpid(writer, 0)
            for line in (*heard, *said):
                if line.endswith("\n"):  # the last one may be half a line
                    entry_id, value = line.split()
                    acknowledged[entry_id] = value
    finally:
        os.kill(reader, signal.SIGTERM)
        status = os.waitpid(reader, 0)[1]
    if status:
        raise RuntimeError("The reader found an entry that was not whole.")
    with MemoryStore(folder) as store:
        there = {entry.id: entry for entry in store.entries()}
        for entry in there.values():
            store.load(entry)
        if not store.fsck(repair=True).clean or store.fsck().orphans:
            raise RuntimeError("The memory is damaged, or keeps files that no entry names.")
    lost = sum(i not in there or there[i].value != value for i, value in acknowledged.items())
    return Crash(kills, len(acknowledged), lost, int(report.read() or 0))


def _fork(work: Any) -> tuple[int, Any]:
    """A child that does this with the writing end of a pipe; its number and the reading end."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w", buffering=1) as pipe:
                work(pipe)
            status = 0
        finally:
            os._exit(status)
    os.close(writing)
    return child, os.fdopen(reading)


def _write_on(folder: Path, pipe: Any, seed: int) -> None:
    import torch

    from ttom_core.adapter import Adapter
    from ttom_core.memory.store import MemoryStore

    generator = torch.Generator().manual_seed(seed)
    with MemoryStore(folder) as store:
        print("open", file=pipe)
        while True:
            pair = (torch.randn(4, 500, generator=generator), torch.randn(500, 4, generator=generator))
            entry = store.insert(
                Adapter({"blocks.0.attn2.to_q": pair}, 4, 4.0, FINGERPRINT),
                scene("right"),
                np.ones(8),
                embedder=EMBEDDER,
                prompt="a ball moves to the right",
            )
            print(entry.id, entry.value, file=pipe)


def _read_on(folder: Path, pipe: Any) -> None:
    from ttom_core.memory.store import MemoryStore

    asked = []
    signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    reads = 0
    with MemoryStore(folder) as store:
        while not asked:
            hits = store.read(scene("right"), np.ones(8), embedder=EMBEDDER, fingerprint=FINGERPRINT)
            for hit in hits[:1]:
                store.load(hit.entry)
            reads += 1
    print(reads, file=pipe)


# Scale --------------------------------------------------------------------------------------------


def scene(way: str) -> Any:
    from ttom_core.memory.key import SceneKey

    return SceneKey(structure=("count:A:1", f"motion:A:{way}"), sentence=f"<object A> moves {way}")


class Sentences:
    """Random sentences as embeddings: the mean of their words' vectors, most of it common to all words."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)
        common = 1.5 * self.generator.standard_normal(WIDTH, dtype=np.float32)
        self.words = self.generator.standard_normal((WORDS, WIDTH), dtype=np.float32) + common
        rank = 1 / np.arange(1, WORDS + 1)
        self.chance = rank / rank.sum()

    def draw(self, count: int) -> np.ndarray:
        """Unit vectors float32 [count, WIDTH]."""
        chosen = self.generator.choice(WORDS, (count, LENGTH), p=self.chance)
        mean = np.zeros((count, WIDTH), np.float32)
        for column in chosen.T:
            mean += self.words[column]
        return mean / np.linalg.norm(mean, axis=1, keepdims=True)


def fill(folder: Path, count: int, one_bucket: bool, sentences: Sentences) -> None:
    """A store of so many entries, by SQL: through `insert` alone a million would take hours of fsync."""
    import torch

    from ttom_core.adapter import Adapter
    from ttom_core.memory import index, store

    pair = (torch.zeros(1, 8), torch.zeros(8, 1))
    value = Adapter({"blocks.0.attn2.to_q": pair}, 1, 1.0, FINGERPRINT)
    keys = [scene(f"way{number}") for number in range(1 if one_bucket else STRUCTURES)]
    share = 1 / np.arange(1, len(keys) + 1)
    projection = index._projection(WIDTH)
    with store.MemoryStore(folder) as memory:
        first = memory.insert(value, keys[0], np.ones(WIDTH), embedder=EMBEDDER, prompt="a ball")
        names = list(store._COLUMNS)
        row = dict(zip(names, store._row(first), strict=True))
        buckets = [store._bucket(FINGERPRINT, EMBEDDER, key, WIDTH) for key in keys]
        texts = [key.model_dump_json() for key in keys]
        database = memory._database
        query = f"INSERT INTO entries ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        for start in range(0, count, 5000):
            size = min(5000, count - start)
            vectors = sentences.draw(size)
            codes = np.clip(np.rint(vectors @ projection.T * index.SCALE), -127, 127).astype(np.int8)
            which = sentences.generator.choice(len(keys), size, p=share / share.sum())
            database.execute("BEGIN")
            database.executemany(
                query,
                (
                    tuple(
                        (
                            row
                            | {
                                "id": f"{start + n:032x}",
                                "bucket": buckets[k],
                                "key": texts[k],
                                "sketch": codes[n].tobytes(),
                                "embedding": vectors[n].astype("<f2").tobytes(),
                            }
                        ).values()
                    )
                    for n, k in enumerate(which)
                ),
            )
            database.execute("COMMIT")
        memory.delete([first.id])


def opened(folder: Path) -> dict[str, float]:
    """Seconds to open, then to open and answer the first read of the largest bucket; MiB it then holds."""
    from ttom_core.memory import store

    before = _resident()
    started = time.perf_counter()
    with store.MemoryStore(folder, read_only=True) as memory:
        alone = time.perf_counter() - started
        memory.read(scene("way0"), np.ones(WIDTH), embedder=EMBEDDER, fingerprint=FINGERPRINT, threshold=-1)
        both = time.perf_counter() - started
        held = _resident() - before
    return {"open_s": alone, "first_read_s": both, "mib": held}


def _resident() -> float:
    """MiB of memory that this process holds now (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def measure(folder: Path, one_bucket: bool, sentences: Sentences, queries: int) -> dict[str, Any]:
    """Read and insert times in ms, and recall@5 of the sketches against all cosines in 32 bits."""
    import torch

    from ttom_core.adapter import Adapter
    from ttom_core.memory.store import MemoryStore

    pair = (torch.zeros(1, 8), torch.zeros(8, 1))
    value = Adapter({"blocks.0.attn2.to_q": pair}, 1, 1.0, FINGERPRINT)
    ways = [0] if one_bucket else list(range(STRUCTURES))
    share = 1 / np.arange(1, len(ways) + 1)
    reads: list[float] = []
    inserts: list[float] = []
    writes: list[float] = []
    recalls: list[float] = []
    with MemoryStore(folder) as store:
        asked = sentences.generator.choice(ways, queries, p=share / share.sum())
        for way, vector in zip(asked, sentences.draw(queries), strict=True):
            key = scene(f"way{way}")
            store.read(key, vector, embedder=EMBEDDER, fingerprint=FINGERPRINT, threshold=-1)
            started = time.perf_counter()
            hits = store.read(key, vector, embedder=EMBEDDER, fingerprint=FINGERPRINT, threshold=-1)
            reads.append(1e3 * (time.perf_counter() - started))
            started = time.perf_counter()
            entry = store.insert(value, key, vector, embedder=EMBEDDER, prompt="a ball")
            inserts.append(1e3 * (time.perf_counter() - started))
            store.delete([entry.id])
            writes.append(1e3 * _value_write(folder, value))
            if hits and len(recalls) < 20:  # a scene that nobody ever asked for has nothing to find
                recalls.append(_recall(store, key, vector, [h.entry.id for h in hits]))
    database = sum(p.stat().st_size for p in folder.glob("memory.sqlite*"))
    return {"read_ms": reads, "insert_ms": inserts, "write_ms": writes, "recall": recalls, "bytes": database}


def _value_write(folder: Path, value: Any) -> float:
    """Seconds that the value's own file takes, written, named and seen on disk."""
    from ttom_core.memory.store import _hash, _sync

    path = folder / "incoming" / "alone.safetensors"
    started = time.perf_counter()
    value.save(path)
    _hash(path)
    _sync(path)
    path = path.replace(path.with_name("named.safetensors"))
    _sync(path.parent)
    seconds = time.perf_counter() - started
    path.unlink()
    return seconds


def _recall(store: Any, key: Any, vector: np.ndarray, found: list[str]) -> float:
    """The share of the five nearest that was found."""
    from ttom_core.memory.store import _bucket

    bucket = _bucket(FINGERPRINT, EMBEDDER, key, WIDTH)
    ids: list[str] = []
    cosines: list[float] = []
    rows = store._database.execute("SELECT id, embedding FROM entries WHERE bucket = ?", (bucket,))
    while block := rows.fetchmany(5000):
        ids += [i for i, _ in block]
        matrix = np.frombuffer(b"".join(e for _, e in block), "<f2").reshape(len(block), -1)
        cosines += (matrix.astype(np.float32) @ vector).tolist()
    nearest = {ids[n] for n in np.argsort(cosines)[::-1][:5]}
    return len(nearest & set(found)) / len(nearest)


def cases(sizes: list[int]) -> Iterator[tuple[str, int, bool]]:
    for size in sizes:
        name = f"{size // 1000}k"
        yield name, size, False
        if size <= 100_000:
            yield f"{name}_one_bucket", size, True


# Attaching ----------------------------------------------------------------------------------------


def attach_seconds(folder: Path, backbone: Any, rounds: int = 50) -> list[float]:
    """Seconds to load an entry of the demo preset's size from a store and to attach it, each round."""
    from ttom_core.adapter import attach, init_adapter
    from ttom_core.memory.store import MemoryStore
    from ttom_core.optimize import PRESETS

    preset = PRESETS["demo"]
    modules = backbone.adapter_modules(preset.layers, preset.scope)
    value = init_adapter(modules, preset.rank, preset.alpha, preset.lora_seed, backbone.fingerprint)
    seconds = []
    with MemoryStore(folder) as store:
        entry = store.insert(value, scene("right"), np.ones(8), embedder=EMBEDDER, prompt=PROMPT)
        for _ in range(rounds):
            started = time.perf_counter()
            with attach(backbone.transformer, store.load(entry)):
                seconds.append(time.perf_counter() - started)
    return seconds


# Sizes --------------------------------------------------------------------------------------------


def entry_sizes(rank: int = 32) -> dict[str, float]:
    """MB of an entry for two real models, beside the LoRA on all blocks; arithmetic, nothing is loaded.

    A gradient reaches q, k, v and o in the blocks before the deepest loss layer, and q and k there. For
    Wan2.1-14B that is layer 3, as its authors have it; for CogVideoX-5B, whose layers the paper does not
    name, layer 20 stands for one half way down.
    """
    sizes = {}
    for name, width, blocks, deepest in (("wan2.1_14b", 5120, 40, 3), ("cogvideox_5b", 3072, 42, 20)):
        linear = rank * 2 * width * 4 / 1e6  # A and B in fp32
        sizes[f"entry_mb_{name}"] = (4 * deepest + 2) * linear
        sizes[f"all_blocks_mb_{name}"] = 4 * blocks * linear
    return sizes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="*", default=[1000, 10_000, 100_000], help="entries")
    parser.add_argument("--queries", type=int, default=200, help="reads and inserts at each size")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=str(ROOT / "demo" / "model"), help="what an entry is attached to")
    parser.add_argument("--folder", type=Path, help="where the stores are built (default: a temporary one)")
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(opened(options.open)))
        return

    from tqdm import tqdm

    from ttom_core.evaluation.pool import backbone_of
    from ttom_core.evaluation.results import figure, write_result
    from ttom_core.generate import generate

    figures = {}
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        outcome = crash(Path(place) / "crash", options.kills, options.seed)
        figures["kills"] = figure([outcome.kills], "writers killed by SIGKILL")
        figures["acknowledged"] = figure([outcome.acknowledged], "inserts")
        figures["acknowledged_lost"] = figure([outcome.lost], "inserts")
        for name, size in entry_sizes().items():
            figures[name] = figure([size], "MB at rank 32 in fp32, computed")
        backbone = backbone_of(options.model)
        clips = [generate(backbone, PROMPT, seed=seed).seconds for seed in range(3)]
        attached = np.array(attach_seconds(Path(place) / "attach", backbone))
        figures["generation_s"] = figure(clips, "s, a clip of the demo model without optimising")
        figures["attach_ms"] = figure(1e3 * attached, "ms to load its entry and attach it")
        figures["attach_percent"] = figure(100 * attached / np.median(clips), "% of that generation")
        sentences = Sentences(options.seed)
        for name, size, one_bucket in tqdm(list(cases(options.sizes)), desc="sizes"):
            folder = Path(place) / name
            fill(folder, size, one_bucket, sentences)
            arguments = [sys.executable, __file__, "--open", str(folder)]
            runs = [
                json.loads(subprocess.run(arguments, check=True, capture_output=True, text=True).stdout)
                for _ in range(5)
            ]
            figures[f"open_s_{name}"] = figure([r["open_s"] for r in runs], "s")
            figures[f"open_and_first_read_s_{name}"] = figure([r["first_read_s"] for r in runs], "s")
            figures[f"first_read_mib_{name}"] = figure(
                [r["mib"] for r in runs], "MiB, index and SQLite's pages"
            )
            measured = measure(folder, one_bucket, sentences, options.queries)
            figures[f"read_ms_{name}"] = figure(measured["read_ms"], "ms, top 5")
            figures[f"insert_ms_{name}"] = figure(measured["insert_ms"], "ms, with a small value")
            figures[f"value_write_ms_{name}"] = figure(
                measured["write_ms"], "ms of that for the value's file"
            )
            figures[f"disk_bytes_per_entry_{name}"] = figure(
                [measured["bytes"] / size], "bytes, values apart"
            )
            recall = measured["recall"]
            figures[f"recall_{name}"] = {
                **figure(recall, "of the 5 nearest, mean"),
                "value": round(float(np.mean(recall)), 4),
            }
    command = " ".join(["python benchmarks/memory.py", *sys.argv[1:]])
    write_result(options.result, command, options.seed, figures)
    for name, f in figures.items():
        print(f"{name:36} {f['value']:g}  ({f['low']:g}–{f['high']:g}) {f['unit']}")
    for name, goal in GOALS.items():
        if name in figures:
            print(f"{name}: {figures[name]['value']:g}, the goal is under {goal:g}")


if __name__ == "__main__":
    main()
