"""The parametric memory: what earlier videos found, to start new ones from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import io, ui

from ..ttom_core.errors import TTOMError
from ..ttom_core.memory.embedding import text_embedder
from ..ttom_core.optimize import PRESETS, insist_on_layers
from . import compat, host
from .inputs import about, checked, folded, insist_on_licence, sampling_inputs
from .sampling import with_layers
from .types import BackboneSocket, LayoutSocket, MemorySocket, RecallSocket, Solved, SolvedSocket

if TYPE_CHECKING:
    from ..ttom_core.backbones.base import Adaptable, Backbone
    from ..ttom_core.layout import Layout
    from ..ttom_core.memory.embedding import Embedder
    from ..ttom_core.memory.recall import Recall
    from ..ttom_core.memory.store import MemoryEntry, MemoryStore

CATEGORY = "TTOM/memory"
LIMIT = 200  # entries that Browse lists


def _model_input(tooltip: str) -> io.Input:
    return io.MultiType.Input("backbone", types=[BackboneSocket, io.Model], tooltip=tooltip)


def _clip_input() -> io.Input:
    return io.Clip.Input(
        "clip",
        optional=True,
        tooltip="The text encoder that goes with a MODEL: scenes are compared by it. A backbone has its own.",
    )


def _adaptable(model: Backbone | compat.Model) -> Adaptable:
    """What adapters of the memory sit on: a backbone, or a MODEL by diffusers' names."""
    return compat.native_model(model) if compat.is_model(model) else model


def _embedder(model: Backbone | compat.Model, clip: Any | None) -> Embedder:
    if not compat.is_model(model):
        return text_embedder("pipeline", getattr(model, "pipeline", None))
    if clip is None:
        raise TTOMError("A MODEL comes without a text encoder; connect its CLIP to clip as well.")
    return compat.embedder(clip)


def _line(entry: MemoryEntry) -> str:
    from ..ttom_core.memory.pack import printable

    uses = f"used {entry.uses}×" + (", pinned" if entry.pinned else "")
    return f"{entry.id[:8]}  {printable(entry.prompt)}  ({uses})"


def _told(text: str, *values: object) -> io.NodeOutput:
    """Outputs, the last of which is a text that also stands on the node."""
    return io.NodeOutput(*values, text, ui=ui.PreviewText(text))


class MemoryOpen(io.ComfyNode):
    """`ttom_core.memory.store.MemoryStore`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_MemoryOpen",
            display_name="Open Memory (TTOM)",
            category=CATEGORY,
            description="Opens a memory of optimised adapters in ComfyUI's user folder, or starts one.",
            inputs=[
                io.String.Input("name", default="default", tooltip="One memory a name."),
                io.Boolean.Input("read_only", default=False, tooltip="Nothing is learnt or counted."),
                folded(
                    io.Int.Input(
                        "max_entries",
                        default=0,
                        min=0,
                        max=10_000_000,
                        tooltip="Above it the least frequently used entries make room; 0 is no limit.",
                    )
                ),
                io.Boolean.Input(
                    "other_copies",
                    default=False,
                    optional=True,
                    tooltip="Also use what other copies of the model made, of the same family and size: "
                    "fp16, fp8 and GGUF files of the same weights. Leave it off where a fine-tuned model of "
                    "that size made entries here.",
                ),
            ],
            outputs=[MemorySocket.Output("memory", display_name="memory")],
        )

    @classmethod
    def fingerprint_inputs(cls, name: str | None, **others: object) -> str | float:
        """A memory that changed is a changed input, for every node behind this one."""
        return math.nan if name is None else host.memory_state(name)  # wired in, it is not known yet

    @classmethod
    @checked
    def execute(
        cls, name: str, read_only: bool, max_entries: int, other_copies: bool = False
    ) -> io.NodeOutput:
        with about("name"):
            return io.NodeOutput(host.open_memory(name, read_only, max_entries or None, other_copies))


class MemoryRead(io.ComfyNode):
    """`ttom_core.memory.recall.recall`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_MemoryRead",
            display_name="Memory Read (TTOM)",
            category=CATEGORY,
            description="Finds earlier solutions of the same scene and averages them, for the sampler.",
            inputs=[
                MemorySocket.Input("memory"),
                _model_input("The model to be sampled: a backbone, or a MODEL from any loader."),
                LayoutSocket.Input("layout"),
                io.String.Input("prompt", multiline=True, default=""),
                io.Combo.Input(
                    "preset", options=list(PRESETS), default="best", tooltip="The sampler's own preset."
                ),
                io.Float.Input(
                    "threshold",
                    default=0.5,
                    min=-1.0,
                    max=1.0,
                    step=0.01,
                    tooltip="The least similarity of two scenes' sentences. Directions, relations and "
                    "counts always have to be the same.",
                ),
                io.Int.Input("top_k", default=5, min=1, max=100, tooltip="So many entries are averaged."),
                io.String.Input(
                    "layers",
                    default="",
                    optional=True,
                    tooltip="The sampler's own layers: entries made with others could not be used there.",
                ),
                _clip_input(),
            ],
            outputs=[
                RecallSocket.Output("recall", display_name="recall"),
                io.String.Output("why", display_name="why", tooltip="What was found, and why."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        memory: MemoryStore,
        backbone: Backbone | compat.Model,
        layout: Layout,
        prompt: str,
        preset: str,
        threshold: float,
        top_k: int,
        layers: str = "",
        clip: Any | None = None,
    ) -> io.NodeOutput:
        from ..ttom_core.memory.pack import printable
        from ..ttom_core.memory.recall import recall, scene_of

        settings, model = PRESETS[preset], _adaptable(backbone)
        if layers.strip():
            settings = with_layers(settings, layers, model.fingerprint)
        insist_on_layers(settings.layers, model)
        known = recall(
            memory,
            scene_of(prompt, layout, _embedder(backbone, clip)),
            model.fingerprint,
            threshold=threshold,
            top_k=top_k,
            rank=settings.rank,
            modules=model.adapter_modules(settings.layers, settings.scope).keys(),
        )
        lines = [f"{_line(hit.entry)}: {printable(hit.why)}" for hit in known.hits]
        if not known.hits:
            lines.append("Nothing is known of this scene yet.")
        if known.common:
            lines.append("An optimisation starts from what all scenes share.")
        return _told("\n".join([*lines, *known.skipped]), known)


class MemoryInsert(io.ComfyNode):
    """`ttom_core.memory.recall.insert`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_MemoryInsert",
            display_name="Memory Insert (TTOM)",
            category=CATEGORY,
            description="Keeps what the sampler optimised as a new entry.",
            inputs=[
                MemorySocket.Input("memory"),
                _model_input("The model that was sampled: a backbone, or a MODEL from any loader."),
                SolvedSocket.Input("solved", tooltip="From either sampler."),
                io.Boolean.Input("pinned", default=False, tooltip="Never makes room for others."),
                io.String.Input("note", default=""),
                _clip_input(),
            ],
            outputs=[
                MemorySocket.Output("memory_out", display_name="memory"),
                io.String.Output("text", display_name="text"),
            ],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        memory: MemoryStore,
        backbone: Backbone | compat.Model,
        solved: Solved,
        pinned: bool,
        note: str,
        clip: Any | None = None,
    ) -> io.NodeOutput:
        from ..ttom_core.memory.recall import insert, scene_of

        entry = insert(
            memory,
            scene_of(solved.prompt, solved.layout, _embedder(backbone, clip)),
            solved.adapter,
            settings=solved.settings.model_dump(mode="json"),
            lora_seed=solved.settings.lora_seed,
            loss_first=solved.trace.first_loss,
            loss_last=solved.trace.last_loss,
            pinned=pinned,
            note=note,
        )
        return _told(f"Kept as {_line(entry)}.", memory)


class MemoryUpdate(io.ComfyNode):
    """`ttom_core.memory.recall.learn`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_MemoryUpdate",
            display_name="Memory Update (TTOM)",
            category=CATEGORY,
            description=(
                "Lets the memory learn from a video that started from it: what was found is improved, and "
                "a scene that was new is kept."
            ),
            inputs=[
                MemorySocket.Input("memory"),
                RecallSocket.Input("recall", tooltip="From the Memory Read that the sampler started from."),
                SolvedSocket.Input("solved"),
                io.Combo.Input(
                    "on_hit",
                    options=["update", "replace", "insert"],
                    default="update",
                    tooltip="update blends the result into all that was found, by similarity; replace "
                    "takes its place in the best; insert keeps it beside them.",
                ),
            ],
            outputs=[
                MemorySocket.Output("memory_out", display_name="memory"),
                io.String.Output("text", display_name="text"),
            ],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, memory: MemoryStore, recall: Recall, solved: Solved, on_hit: str) -> io.NodeOutput:
        from ..ttom_core.memory.recall import learn

        done = learn(
            memory,
            recall,
            solved.adapter,
            on_hit,
            settings=solved.settings.model_dump(mode="json"),
            lora_seed=solved.settings.lora_seed,
            loss_first=solved.trace.first_loss,
            loss_last=solved.trace.last_loss,
        )
        return _told(f"The memory: {done}.", memory)


class MemoryConsolidate(io.ComfyNode):
    """`ttom_core.scenes.consolidate_scene`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_MemoryConsolidate",
            display_name="Memory Consolidate (TTOM)",
            category=CATEGORY,
            description=(
                "Makes one entry of each scene's entries, learnt over many clips of its prompts: one that "
                "is worth reading without optimising."
            ),
            inputs=[
                MemorySocket.Input("memory"),
                BackboneSocket.Input("backbone", tooltip="The model that the entries were made with."),
                io.String.Input("words", default="", tooltip="Only entries that have each of these words."),
                io.Combo.Input("preset", options=list(PRESETS), default="demo", tooltip="How it is learnt."),
                io.Int.Input("clips", default=32, min=1, max=10_000, tooltip="To learn a scene from."),
                *sampling_inputs(),
            ],
            outputs=[
                MemorySocket.Output("memory_out", display_name="memory"),
                io.String.Output("text", display_name="text"),
            ],
            hidden=[io.Hidden.unique_id],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        memory: MemoryStore,
        backbone: Backbone,
        words: str,
        preset: str,
        clips: int,
        seed: int,
        steps: int,
        guidance_scale: float,
        num_frames: int,
        width: int,
        height: int,
    ) -> io.NodeOutput:
        from ..ttom_core.generate import Progress
        from ..ttom_core.memory.pack import printable
        from ..ttom_core.scenes import consolidate_scene, scenes_of, share

        scenes = scenes_of(memory.entries(words), backbone.fingerprint)
        show, lines = host.progress_on(cls.hidden.unique_id), []
        for number, entries in enumerate(scenes):
            scene = printable(entries[0].key.sentence)

            def tell(done: int, total: int, loss: float, before: int = number, scene: str = scene) -> None:
                show(Progress("optimise", before * total + done, len(scenes) * total, loss, scene))

            with torch.inference_mode(False):
                made, first, last = consolidate_scene(
                    backbone,
                    memory,
                    entries,
                    PRESETS[preset],
                    clips=clips,
                    seed=seed,
                    steps=steps,
                    guidance_scale=guidance_scale,
                    num_frames=num_frames,
                    height=height,
                    width=width,
                    on_progress=tell,
                )
            what = f"became {made.id[:8]}" if made else "kept as they were"
            lines.append(f"{len(entries)} {what}: {scene}, loss {first:.3f} → {last:.3f}")
        lines += map(_line, share(memory, backbone.fingerprint))
        return _told("\n".join(lines), memory)


class MemoryDelete(io.ComfyNode):
    """`ttom_core.memory.store.MemoryStore.delete`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_MemoryDelete",
            display_name="Memory Delete (TTOM)",
            category=CATEGORY,
            description="Deletes entries, by the start of an id or by the words of their prompts.",
            inputs=[
                MemorySocket.Input("memory"),
                io.String.Input(
                    "ids", default="", tooltip="Ids or their first letters, with spaces between."
                ),
                io.String.Input(
                    "words", default="", tooltip="Or: all entries that have each of these words."
                ),
                io.Boolean.Input("really", default=False, tooltip="Off: only says what would be deleted."),
            ],
            outputs=[
                MemorySocket.Output("memory_out", display_name="memory"),
                io.String.Output("text", display_name="text"),
            ],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, memory: MemoryStore, ids: str, words: str, really: bool) -> io.NodeOutput:
        with about("ids"):
            chosen = {entry.id: entry for entry in map(memory.get, ids.split())}
        if words.strip():
            chosen |= {entry.id: entry for entry in memory.entries(words)}
        if really:
            memory.delete(chosen)
        head = "Deleted" if really else "Would delete"
        return _told("\n".join([f"{head} {len(chosen)}:", *map(_line, chosen.values())]), memory)


class MemoryBrowse(io.ComfyNode):
    """`ttom_core.memory.store.MemoryStore.entries`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_MemoryBrowse",
            display_name="Memory Browse (TTOM)",
            category=CATEGORY,
            description="Lists what a memory holds.",
            inputs=[
                MemorySocket.Input("memory"),
                io.String.Input("words", default="", tooltip="Only entries that have each of these words."),
            ],
            outputs=[io.String.Output("text", display_name="text")],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, memory: MemoryStore, words: str) -> io.NodeOutput:
        lines = [_line(entry) for entry, _ in zip(memory.entries(words), range(LIMIT), strict=False)]
        more = f"… of {len(memory)}" if len(lines) == LIMIT else ""
        return _told("\n".join([f"{len(lines)} entries{more}", *lines]))


class MemoryExport(io.ComfyNode):
    """`ttom_core.memory.pack.export_pack`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_MemoryExport",
            display_name="Export Memory Pack (TTOM)",
            category=CATEGORY,
            description="Writes entries as one file to give away, into ComfyUI's output folder.",
            inputs=[
                MemorySocket.Input("memory"),
                io.String.Input("words", default="", tooltip="Only entries that have each of these words."),
                io.String.Input("filename_prefix", default="memory/pack"),
                io.String.Input("licence", default="CC0-1.0", tooltip="What others may do with the pack."),
            ],
            outputs=[io.String.Output("text", display_name="text")],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(cls, memory: MemoryStore, words: str, filename_prefix: str, licence: str) -> io.NodeOutput:
        from ..ttom_core.memory.pack import export_pack

        insist_on_licence(licence)
        entries = list(memory.entries(words))
        path = host.output_file(filename_prefix, "ttompack")
        export_pack(memory, entries, path, licence=licence)
        return _told(f"Entries in {path.name}: {len(entries)}.")


class MemoryImport(io.ComfyNode):
    """`ttom_core.memory.pack.plan_import` and `import_pack`."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TTOM_MemoryImport",
            display_name="Import Memory Pack (TTOM)",
            category=CATEGORY,
            description="Takes in someone else's entries; everything in the file is checked first.",
            inputs=[
                MemorySocket.Input("memory"),
                _model_input("Only entries made with this model are taken in."),
                io.Combo.Input(
                    "pack",
                    options=list(host.memory_packs()),
                    tooltip="Starter packs, and *.ttompack files in ComfyUI's input folder.",
                ),
                io.Combo.Input(
                    "conflicts",
                    options=["keep", "replace"],
                    default="keep",
                    tooltip="Where both have an entry and they differ: keep yours, or take the pack's.",
                ),
                io.Boolean.Input("really", default=False, tooltip="Off: only says what would be taken in."),
            ],
            outputs=[
                MemorySocket.Output("memory_out", display_name="memory"),
                io.String.Output("text", display_name="text"),
            ],
            is_output_node=True,
        )

    @classmethod
    @checked
    def execute(
        cls, memory: MemoryStore, backbone: Backbone | compat.Model, pack: str, conflicts: str, really: bool
    ) -> io.NodeOutput:
        from ..ttom_core.memory.pack import import_pack, plan_import, printable

        plan = plan_import(memory, host.memory_packs()[pack], fingerprint=_adaptable(backbone).fingerprint)
        counts = ", ".join(
            f"{plan.count(status)} {status}" for status in ("new", "same", "conflicting", "incompatible")
        )
        lines = [f"{pack} ({printable(plan.pack.licence)}): {counts}"]
        if really:
            taken = import_pack(memory, plan, conflicts=conflicts)
            lines.append(f"Taken in: {len(taken)}.")
        lines += [f"{row.status}: {printable(row.entry.prompt)}" for row in plan.rows[:LIMIT]]
        return _told("\n".join(lines), memory)
