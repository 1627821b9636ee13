"""A memory at work: what is known of a scene starts its optimisation, and what was learnt is kept.

A store finds adapters by key and embedding; here prompts and layouts become those, what is found becomes
one adapter, and the end of an optimisation becomes an insertion or an update (TTOM 3.3).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from ..adapter import Adapter
from ..errors import TTOMError
from ..fusion import fuse
from ..layout import Layout
from .embedding import Embedder
from .key import SceneKey, scene_key
from .store import Hit, MemoryEntry, MemoryStore


class MemorySettings(BaseModel):
    """How a generation uses its memory."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    mode: Literal["off", "read", "start", "learn"] = Field(
        "learn",
        description="off; read: what is found is used as it is; start: it is where the optimisation "
        "starts; learn: and the result is inserted or updates what was found",
    )
    threshold: float = Field(0.5, ge=-1, le=1, description="least cosine of two sentences (τ_sim)")
    top_k: int = Field(5, ge=1, le=100, description="entries that are fused")
    on_hit: Literal["update", "replace", "insert"] = Field(
        "update",
        description="learn: blend the result into every entry it started from by (old + s·new)/(1 + s); "
        "replace the best one; or insert it beside them",
    )


# What an adapter is filed under that belongs to no scene: what all of a memory's scenes share.
ANY_SCENE = SceneKey(structure=(), sentence="any scene")
SHARED = 100  # more than there are sets of modules that a memory's adapters sit on


@dataclass(frozen=True)
class Scene:
    """What a memory files a prompt and its layout under."""

    prompt: str
    layout: Layout | None
    key: SceneKey
    embedding: np.ndarray  # float32 [d]
    embedder: str  # what made it


@dataclass(frozen=True)
class Recall:
    """What a memory knows of a scene: what was found, that fused, and what all scenes share."""

    scene: Scene
    hits: tuple[Hit, ...]
    adapter: Adapter | None  # None without hits
    skipped: tuple[str, ...]  # a sentence for each entry that was found and could not be used
    common: Adapter | None = None  # what all scenes share, where the memory has that (`scenes.share`)

    def start(self, iterations: int) -> Adapter | None:
        """The adapter that a generation of so many iterations starts from.

        A scene's own is the best to read as it is. To learn from, what all scenes share is better: it says
        nothing yet that a new clip would have to unlearn.
        """
        return self.common if self.common and iterations else self.adapter

    @property
    def similarity(self) -> float | None:
        """The best hit's."""
        return self.hits[0].similarity if self.hits else None


class Memory(NamedTuple):
    """A store and the embedder its entries are found by."""

    store: MemoryStore
    embedder: Embedder


def scene_of(prompt: str, layout: Layout, embedder: Embedder) -> Scene:
    """The scene of a prompt and its layout; TTOMError when the layout has no objects."""
    key = scene_key(prompt, layout)
    return Scene(prompt, layout, key, embedder([key.sentence])[0], embedder.name)


def recall(
    store: MemoryStore,
    scene: Scene,
    fingerprint: str,
    *,
    threshold: float = 0.5,
    top_k: int = 5,
    rank: int | None = None,
    modules: Collection[str] | None = None,
) -> Recall:
    """Read a scene; the hits' adapters are averaged exactly and cut to `rank`.

    Adapters that sit on other modules (made with other layers or another scope) cannot be averaged. Those on
    `modules` are taken or, where there are none, those that sit where the best hit does; the others are left
    out, each with a sentence. What all scenes share is taken on `modules` alone, if these are given.
    """
    wanted = frozenset(modules or ())

    def read(
        key: SceneKey, threshold: float, top_k: int
    ) -> tuple[tuple[Hit, ...], Adapter | None, tuple[str, ...]]:
        found = store.read(
            key,
            scene.embedding,
            embedder=scene.embedder,
            fingerprint=fingerprint,
            threshold=threshold,
            top_k=top_k,
        )
        if not found:
            return (), None, ()
        # Another copy's, if the store gives it.
        loaded = [replace(store.load(hit.entry), fingerprint=fingerprint) for hit in found]
        places = [frozenset(adapter.weights) for adapter in loaded]
        chosen = wanted if wanted in places else places[0]
        hits = tuple(hit for hit, place in zip(found, places, strict=True) if place == chosen)
        adapters = [adapter for adapter, place in zip(loaded, places, strict=True) if place == chosen]
        skipped = tuple(
            f"Memory entry {hit.entry.id[:8]} was made with other layers or another scope than the rest."
            for hit, place in zip(found, places, strict=True)
            if place != chosen
        )
        return hits, fuse(adapters, rank=rank), skipped

    hits, adapter, skipped = read(scene.key, threshold, top_k)
    common = read(ANY_SCENE, -1.0, SHARED)[1]
    if common and wanted and common.weights.keys() != wanted:
        common = None
    return Recall(scene, hits, adapter, skipped, common)


def insert(store: MemoryStore, scene: Scene, adapter: Adapter, **facts: Any) -> MemoryEntry:
    """Keep an adapter as a new entry for a scene, once; `facts` as in `MemoryStore.insert`."""
    return store.insert(
        adapter,
        scene.key,
        scene.embedding,
        embedder=scene.embedder,
        prompt=scene.prompt,
        layout=scene.layout,
        once=True,
        **facts,
    )


def merge(store: MemoryStore, entries: Sequence[MemoryEntry], adapter: Adapter, **facts: Any) -> MemoryEntry:
    """Put one adapter in the place of a scene's entries, under the first one's prompt.

    It is inserted before they are deleted, so that an interrupted merge loses nothing. TTOMError for entries
    of several scenes, embedders or models.
    """
    first = entries[0]
    if len({(entry.key.digest, entry.embedder, entry.fingerprint) for entry in entries}) > 1:
        raise TTOMError("Only entries of one scene, embedder and model can become one; choose fewer.")
    scene = Scene(first.prompt, first.layout, first.key, first.embedding, first.embedder)
    made = insert(store, scene, adapter, parents=[entry.id for entry in entries], **facts)
    store.delete([entry.id for entry in entries if entry.id != made.id])
    return made


def learn(
    store: MemoryStore,
    known: Recall,
    adapter: Adapter,
    on_hit: str,
    *,
    settings: dict[str, Any],
    lora_seed: int,
    loss_first: float | None,
    loss_last: float | None,
) -> str:
    """Insert what an optimisation found, or update what it started from; says what was done.

    An optimisation that ended no better than it began has nothing to teach: adapters that are
    changed on and on without need drift away from what made them useful. Neither has one that
    moved the latents alone (`settings` of no iterations), whatever its losses. One that started from what all
    scenes share leaves a known scene's entries as they are, unless it is to be inserted beside them.
    """
    if not settings["iterations"] or loss_first is None or loss_last is None or loss_last >= loss_first:
        return "kept as it was"
    started = () if known.common else known.hits
    if known.hits and not started and on_hit != "insert":
        return "kept as it was"
    if not known.hits or on_hit == "insert":
        insert(
            store,
            known.scene,
            adapter,
            parents=[hit.entry.id for hit in started],
            settings=settings,
            lora_seed=lora_seed,
            loss_first=loss_first,
            loss_last=loss_last,
        )
        return "inserted"
    if on_hit == "replace":
        store.update(known.hits[0].entry.id, adapter, loss_last=loss_last)
        return "replaced 1"
    for hit in known.hits:
        weight = max(hit.similarity, 0.0)
        store.update(hit.entry.id, adapter, weight=weight, loss_last=loss_last)
    return f"updated {len(known.hits)}"
