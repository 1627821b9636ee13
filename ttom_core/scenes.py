"""The scenes of a memory, each of which can become one entry that needs no optimising.

entries of a scene → consolidation over their prompts and layouts → one entry in their place
entries of all scenes → their average → where an optimisation starts
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np

from .adapter import Adapter
from .backbones.base import Backbone
from .consolidate import consolidate
from .errors import TTOMError
from .fusion import fuse
from .memory.recall import ANY_SCENE, merge
from .memory.store import MemoryEntry, MemoryStore
from .optimize import TTOSettings

AT_ONCE = 32  # adapters that are averaged in one go; from one go to the next at four times their rank


class Consolidated(NamedTuple):
    """The entry that took the place of others, None where nothing was learnt; mean losses of a quarter."""

    entry: MemoryEntry | None
    loss_first: float
    loss_last: float


def scenes_of(entries: Iterable[MemoryEntry], fingerprint: str) -> list[list[MemoryEntry]]:
    """The entries of this model that have a layout, scene by scene and embedder by embedder."""
    scenes: dict[tuple[str, str], list[MemoryEntry]] = {}
    for entry in entries:
        if entry.fingerprint == fingerprint and entry.layout is not None:
            scenes.setdefault((entry.key.digest, entry.embedder), []).append(entry)
    if not scenes:
        raise TTOMError(
            "Nothing there is of this model and has a layout, so nothing can be consolidated; choose other "
            "entries or the model that they were made with."
        )
    return list(scenes.values())


def consolidate_scene(
    backbone: Backbone,
    store: MemoryStore,
    entries: Sequence[MemoryEntry],
    settings: TTOSettings,
    *,
    clips: int,
    seed: int = 0,
    on_progress: Callable[[int, int, float], None] | None = None,
    **sampling: Any,
) -> Consolidated:
    """Put one consolidated adapter in the place of a scene's entries; they stay where the loss did not fall.

    `sampling` is handed on to `consolidate`. An interrupt leaves the memory as it was.
    """
    if store.read_only:
        raise TTOMError(f"The memory {store.folder} is open read-only, so nothing can be consolidated in it.")
    lessons = [(entry.prompt, entry.layout) for entry in entries if entry.layout is not None]
    adapter, losses = consolidate(
        backbone, lessons, settings, clips=clips, seed=seed, on_progress=on_progress, **sampling
    )
    part = max(1, clips // 4)
    first, last = fmean(losses[:part]), fmean(losses[-part:])
    if last >= first:
        return Consolidated(None, first, last)
    made = merge(
        store,
        entries,
        adapter,
        settings=settings.model_dump(mode="json"),
        lora_seed=settings.lora_seed,
        loss_first=first,
        loss_last=last,
        note=f"consolidated over {clips} clips of {len(lessons)} prompts",
    )
    return Consolidated(made, first, last)


def share(store: MemoryStore, fingerprint: str) -> list[MemoryEntry]:
    """Keep the average of this model's scenes, from which the optimisation of any scene starts.

    Every scene counts once, however many entries it has. There is one such entry for each embedder and set of
    modules that two scenes or more have, in the place of the one before, which goes first: a full memory
    evicts no scene for it.
    """
    alike: dict[tuple[str, frozenset[str]], list[MemoryEntry]] = {}
    for entry in store.entries(fingerprint=fingerprint):
        alike.setdefault((entry.embedder, frozenset(store.load(entry).weights)), []).append(entry)
    made = []
    for entries in alike.values():
        own = [entry for entry in entries if entry.key != ANY_SCENE]
        scenes = Counter(entry.key.digest for entry in own)
        before = [entry for entry in entries if entry.key == ANY_SCENE]
        if before:
            store.delete(entry.id for entry in before)
        if len(scenes) < 2:
            continue
        first = own[0]
        entry = store.insert(
            _average(store, own, [1 / scenes[entry.key.digest] for entry in own]),
            ANY_SCENE,
            np.mean([entry.embedding for entry in own], 0),
            embedder=first.embedder,
            prompt=ANY_SCENE.sentence,
            settings=first.settings,
            lora_seed=first.lora_seed,
            parents=[entry.id for entry in own],
            pinned=any(entry.pinned for entry in before),
            note=f"what {len(scenes)} scenes share",
        )
        made.append(entry)
    return made


def _average(store: MemoryStore, entries: Sequence[MemoryEntry], weights: Sequence[float]) -> Adapter:
    """The weighted average of these entries, at the first one's rank; few of them are held at once."""
    average, total = store.load(entries[0]), weights[0]
    rank = average.rank
    for at in range(1, len(entries), AT_ONCE):
        part = slice(at, at + AT_ONCE)
        adapters = [average, *map(store.load, entries[part])]
        average = fuse(adapters, [total, *weights[part]], rank=4 * rank)
        total += sum(weights[part])
    return fuse([average], rank=rank)
