"""The scenes of a memory, each of which can become one entry that needs no optimising.

entries of a scene → consolidation over their prompts and layouts → one entry in their place
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any, NamedTuple

from .backbones.base import Backbone
from .consolidate import consolidate
from .errors import TTOMError
from .memory.recall import merge
from .memory.store import MemoryEntry, MemoryStore
from .optimize import TTOSettings


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
