"""Generation with a memory: what each way of using it changes, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from conftest import PROMPT, SIZE, STEPS

from ttom_core.errors import TTOMError
from ttom_core.generate import generate
from ttom_core.memory.embedding import PipelineEmbedder
from ttom_core.memory.recall import Memory, MemorySettings, insert, recall
from ttom_core.memory.store import MemoryStore
from ttom_core.optimize import LatentSettings
from ttom_core.planner import plan
from ttom_core.stream import generate_with_memory, stream

SAMPLING = {**SIZE, "steps": STEPS, "guidance_scale": 3.0}
LAYOUT = plan(PROMPT)
SAME = PROMPT.replace("red circle", "green triangle")  # the scene of PROMPT with other objects
OTHER = PROMPT.replace("to the right", "to the left")


@pytest.fixture
def memory(tmp_path: Path, backbone):
    with MemoryStore(tmp_path / "store") as store:
        yield Memory(store, PipelineEmbedder(backbone.pipeline))


@pytest.fixture
def make(backbone, settings, memory):
    """Generate one clip with the memory in one mode."""

    def run(mode: str, prompt: str = PROMPT, with_memory: Memory | None = None, **use):
        return generate_with_memory(
            backbone,
            prompt,
            plan(prompt),
            settings,
            with_memory or memory,
            MemorySettings(mode=mode, threshold=0, **use),
            **SAMPLING,
        )

    return run


def test_off_is_generation_without_a_memory(backbone, settings, make, memory) -> None:
    make("learn")
    plain = generate(backbone, PROMPT, LAYOUT, settings, **SAMPLING)
    assert np.array_equal(make("off").generation.frames, plain.frames)


def test_reading_an_empty_memory_is_the_base_model(backbone, make) -> None:
    plain = generate(backbone, PROMPT, **SAMPLING)
    read = make("read")
    assert read.recall.hits == ()
    assert np.array_equal(read.generation.frames, plain.frames)


def test_what_was_learnt_is_found_again(make, memory) -> None:
    first = make("learn")
    assert (first.change, len(memory.store)) == ("inserted", 1)
    again = make("start", SAME)
    (hit,) = again.recall.hits
    assert hit.entry.prompt == PROMPT
    learnt = first.generation.adapter
    assert all(
        np.array_equal(x, y)
        for name in learnt.weights
        for x, y in zip(learnt.weights[name], again.recall.adapter.weights[name], strict=True)
    )
    assert again.generation.trace.first_loss != first.generation.trace.first_loss


def test_reading_uses_the_adapter_and_optimises_nothing(backbone, make) -> None:
    make("learn")
    read = make("read")
    assert read.generation.trace.rows == []
    base = generate(backbone, PROMPT, **SAMPLING)
    assert not np.array_equal(read.generation.frames, base.frames)


def test_another_direction_is_never_found(make) -> None:
    make("learn")
    assert make("start", OTHER).recall.hits == ()


@pytest.mark.parametrize(
    ("on_hit", "change", "entries"), [("update", "updated 1", 1), ("replace", "replaced 1", 1),
                                      ("insert", "inserted", 2)],
)  # fmt: skip
def test_a_hit_is_updated_replaced_or_joined(make, memory, on_hit, change, entries) -> None:
    first = make("learn")
    old = memory.store.load(next(memory.store.entries()))
    second = make("learn", on_hit=on_hit)
    assert (first.change, second.change, len(memory.store)) == ("inserted", change, entries)
    new = memory.store.load(next(memory.store.entries()))
    same = all(np.array_equal(old.weights[n][1], new.weights[n][1]) for n in old.weights)
    assert same == (on_hit == "insert")


def test_latents_that_were_moved_alone_teach_a_memory_nothing(backbone, settings, make, memory) -> None:
    make("learn")
    before = [entry.value for entry in memory.store.entries()]
    alone = {"iterations": 0, "latents": LatentSettings(step_size=0.01, iterations=2)}
    made = generate_with_memory(
        backbone, PROMPT, LAYOUT, settings.model_copy(update=alone), memory,
        MemorySettings(mode="learn", threshold=0), **SAMPLING,
    )  # fmt: skip
    assert made.generation.trace.last_loss < made.generation.trace.first_loss
    assert made.change == "kept as it was"
    assert [entry.value for entry in memory.store.entries()] == before


def test_start_leaves_the_memory_as_it_is(make, memory) -> None:
    make("learn")
    before = [entry.value for entry in memory.store.entries()]
    assert make("start").change == ""
    assert [entry.value for entry in memory.store.entries()] == before


def test_a_read_only_memory_is_read_and_refuses_to_learn(make, memory) -> None:
    make("learn")
    with MemoryStore(memory.store.folder, read_only=True) as store:
        frozen = Memory(store, memory.embedder)
        assert len(make("start", with_memory=frozen).recall.hits) == 1
        with pytest.raises(TTOMError, match="read-only and cannot learn"):
            make("learn", with_memory=frozen)


def test_what_sits_on_other_layers_is_never_averaged_with_the_rest(backbone, settings, make, memory) -> None:
    deep = make("learn").generation.adapter
    use = MemorySettings(mode="learn", on_hit="insert", threshold=0)
    shallow = settings.model_copy(update={"layers": (1,)})

    def with_shallow():
        return generate_with_memory(backbone, PROMPT, LAYOUT, shallow, memory, use, **SAMPLING)

    alone = with_shallow()  # there is no other: it starts from what there is
    assert len(alone.recall.hits) == 1 and not alone.recall.skipped
    assert alone.generation.adapter.weights.keys() == deep.weights.keys()
    fresh = generate(backbone, PROMPT, LAYOUT, shallow, **SAMPLING)
    insert(memory.store, alone.recall.scene, fresh.adapter)
    both = with_shallow()
    assert both.recall.adapter.weights.keys() == fresh.adapter.weights.keys() < deep.weights.keys()
    assert len(both.recall.hits) == 1 and len(both.recall.skipped) == 2
    assert "other layers" in both.recall.skipped[0]


def test_the_same_result_is_kept_once(make, memory) -> None:
    made = make("learn")
    known = recall(memory.store, made.recall.scene, made.generation.adapter.fingerprint, threshold=0)
    again = insert(memory.store, made.recall.scene, made.generation.adapter)
    assert (again.id, len(memory.store)) == (known.hits[0].entry.id, 1)


def test_a_stream_goes_on_where_it_was_cut_off(backbone, settings, memory, tmp_path) -> None:
    prompts, use = [PROMPT, SAME, OTHER], MemorySettings(mode="learn", on_hit="insert")

    def run():
        return stream(backbone, prompts, settings, memory, use, tmp_path / "out", **SAMPLING)

    cut = run()
    first = [next(cut), next(cut)]
    cut.close()
    with (tmp_path / "out" / "rows.jsonl").open("a") as file:
        file.write('{"index": 2, "prom')  # as a kill in mid-write would leave it
    rows = list(run())
    assert rows[:2] == first
    assert list(run()) == rows
    assert [row.change for row in rows] == ["inserted"] * 3
    assert [row.hits for row in rows] == [0, 1, 0]
    assert len(memory.store) == 3


def test_a_prompt_that_cannot_be_planned_is_named_before_anything_is_made(
    backbone, settings, memory, tmp_path
) -> None:
    rows = stream(backbone, [PROMPT, " "], settings, memory, MemorySettings(), tmp_path, **SAMPLING)
    with pytest.raises(TTOMError, match="Prompt 2 of the stream"):
        next(rows)
    assert len(memory.store) == 0
