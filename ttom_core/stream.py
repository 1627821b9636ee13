"""Prompts through generation with a memory, one by one: each may start from what earlier ones found.

read → optimise → insert or update (TTOM 3.3)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .backbones.base import Backbone
from .errors import TTOMError
from .generate import Generation, generate
from .layout import Layout
from .memory.recall import Memory, MemorySettings, Recall, learn, recall, scene_of
from .optimize import TTOSettings
from .planner import plan


@dataclass(frozen=True)
class Remembered:
    """A generation, what the memory knew before it (None: off), and what it did after."""

    generation: Generation
    recall: Recall | None
    change: str


def generate_with_memory(
    backbone: Backbone,
    prompt: str,
    layout: Layout,
    settings: TTOSettings,
    memory: Memory | None,
    use: MemorySettings,
    **sampling: Any,
) -> Remembered:
    """`generate` in one of the four ways of using a memory; `sampling` is handed on to it.

    Reading without optimising, and finding nothing, is the plain base model: exactly what the paper
    calls test-time independence.
    """
    if use.mode == "off" or memory is None:
        return Remembered(generate(backbone, prompt, layout, settings, **sampling), None, "")
    if use.mode == "learn" and memory.store.read_only:
        raise TTOMError(
            f"The memory {memory.store.folder} is open read-only and cannot learn; use the mode start or "
            "read, or open it to write."
        )
    known = recall(
        memory.store,
        scene_of(prompt, layout, memory.embedder),
        backbone.fingerprint,
        threshold=use.threshold,
        top_k=use.top_k,
        rank=settings.rank,
        modules=backbone.adapter_modules(settings.layers, settings.scope).keys(),
    )
    if use.mode == "read":
        settings = settings.model_copy(update={"iterations": 0, "latents": None})
    made = generate(backbone, prompt, layout, settings, adapter=known.start(settings.iterations), **sampling)
    change = ""
    if use.mode == "learn":
        assert made.adapter is not None and made.trace is not None
        change = learn(
            memory.store,
            known,
            made.adapter,
            use.on_hit,
            settings=settings.model_dump(mode="json"),
            lora_seed=settings.lora_seed,
            loss_first=made.trace.first_loss,
            loss_last=made.trace.last_loss,
        )
    return Remembered(made, known, change)


@dataclass(frozen=True)
class Row:
    """One prompt of a stream: what was found, what the optimisation did, what became of the memory."""

    index: int
    prompt: str
    hits: int
    similarity: float | None
    loss_first: float | None
    loss_last: float | None
    seconds: float
    change: str


def stream(
    backbone: Backbone,
    prompts: Sequence[str],
    settings: TTOSettings,
    memory: Memory | None,
    use: MemorySettings,
    out: Path,
    *,
    seed: int = 0,
    on_clip: Callable[[int, Generation], None] | None = None,
    **sampling: Any,
) -> Iterator[Row]:
    """Yield a row for each prompt, its noise being seed + index; finished ones come from `out`/rows.jsonl.

    A row counts as finished only for the same model, prompt, seeds and settings: changed ones are made
    again. TTOMError for a prompt that cannot be planned, with its number, before anything is made.
    """
    layouts = []
    for index, prompt in enumerate(prompts):
        try:
            layouts.append(plan(prompt))
        except TTOMError as error:
            raise TTOMError(f"Prompt {index + 1} of the stream: {error}") from error
    out.mkdir(parents=True, exist_ok=True)
    path = out / "rows.jsonl"
    done = _finished(path)
    with path.open("a", encoding="utf-8") as file:
        for index, (prompt, layout) in enumerate(zip(prompts, layouts, strict=True)):
            facts = [backbone.video_fingerprint, prompt, seed + index, sampling]
            facts += [settings.model_dump(mode="json"), use.model_dump(mode="json")]
            made_with = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
            if (index, made_with) in done:
                yield done[index, made_with]
                continue
            made = generate_with_memory(
                backbone, prompt, layout, settings, memory, use, seed=seed + index, **sampling
            )
            if on_clip:
                on_clip(index, made.generation)
            trace, known = made.generation.trace, made.recall
            row = Row(
                index,
                prompt,
                len(known.hits) if known else 0,
                known.similarity if known else None,
                trace.first_loss if trace else None,
                trace.last_loss if trace else None,
                made.generation.seconds,
                made.change,
            )
            file.write(json.dumps({"made_with": made_with, **asdict(row)}) + "\n")
            file.flush()
            yield row


def _finished(path: Path) -> dict[tuple[int, str], Row]:
    """The rows of an earlier run, by index and what made them; a line cut short is closed and left out."""
    done = {}
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    if text and not text.endswith("\n"):
        with path.open("a", encoding="utf-8") as file:
            file.write("\n")  # else the next row would be lost with it
    for line in text.splitlines():
        try:
            fields = json.loads(line)
            made_with = fields.pop("made_with")
            done[fields["index"], made_with] = Row(**fields)
        except (ValueError, TypeError, KeyError, AttributeError):
            continue
    return done
