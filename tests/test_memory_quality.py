"""What is said of memory: figures of one model, settings and code alone, and never fewer than before."""

from __future__ import annotations

import json
import runpy
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import SIZE, STEPS

import demo.memories as memories
from ttom_core.evaluation.evaluate import Clip, load_prompts
from ttom_core.evaluation.paper import CLAIMS, GOALS
from ttom_core.evaluation.pool import read_rows
from ttom_core.generate import generate
from ttom_core.memory.store import MemoryStore
from ttom_core.optimize import PRESETS

ROOT = Path(__file__).resolve().parent.parent
QUALITY = runpy.run_path(str(ROOT / "benchmarks" / "memory_quality.py"))
INSIDE = QUALITY["main"].__globals__
VARIANTS, PAPERS = QUALITY["VARIANTS"], QUALITY["PAPERS"]
HELD_OUT = load_prompts(ROOT / "demo" / "prompts" / "held_out.json", 14)


def row(index, entries=5):
    qualities = {"composition": 0.5, "presence": 0.5, "distortion": 0.1}
    return {"category": "motion", "seed": index, "seconds": 1.0, "entries": entries, **qualities}


def jobs(stores="stores", variants=VARIANTS):
    return QUALITY["jobs_of"](variants, HELD_OUT, Path(stores) / "scenes", Path(stores) / "solved")


@pytest.mark.parametrize(("question", "variants"), QUALITY["QUESTIONS"].items())
def test_every_claim_about_memory_has_its_figure(question, variants):
    found = jobs(variants=variants)
    table = QUALITY["table_of"]({name: {index: row(index) for index in of} for name, of in found.items()})
    conditions = [condition for claim in (*CLAIMS, *GOALS) for condition in claim.conditions]
    asked = {c.figure for c in conditions if c.result == f"memory_{question}"}
    assert asked and asked <= table.keys()


def test_the_wrong_direction_is_compared_where_a_memory_of_it_was_read():
    rows = {name: {index: row(index) for index in found} for name, found in jobs().items()}
    directed = [*rows["wrong_direction"]]
    assert 0 < len(directed) < len(HELD_OUT)
    assert all(QUALITY["mirrored"](HELD_OUT[index]["prompt"]) for index in directed)
    for name in ("wrong_direction", "wrong_direction_only"):
        rows[name][directed[0]]["entries"] = 0
    rows["tto"][directed[0]]["composition"] = 1.0  # must not count
    table = QUALITY["table_of"](rows)
    for name in ("wrong_direction_composition", "tto_where_directed_composition"):
        assert (table[name]["value"], table[name]["n"]) == (0.5, len(directed) - 1)
    gain = table["composition_of_wrong_direction_over_tto_where_directed"]
    assert (gain["value"], gain["n"]) == (0, len(directed) - 1)


def test_clips_without_a_memory_are_those_of_every_other_table():
    found = jobs()
    for name, settings in (("base", None), ("tto", PRESETS["demo"])):
        assert found[name][0].key("model") == Clip(HELD_OUT[0], settings, 0, 20).key("model")


def test_the_fast_preset_is_what_was_measured():
    for name in ("tto_quarter_fast", "memory_tto_quarter_fast"):
        assert VARIANTS[name].settings == PRESETS["demo_fast"]


def test_a_clip_from_memory_knows_everything_that_decides_it():
    every = VARIANTS | PAPERS
    found, other = jobs(variants=every), jobs("other", every)
    with_memory = [name for name, variant in every.items() if variant.memory]
    index = next(iter(found["wrong_direction"]))  # which every variant has
    keys = {name: found[name][index].key("model") for name in every}
    assert len(set(keys.values())) == len(every)
    assert all(other[name][index].key("model") != keys[name] for name in with_memory)
    assert all(found[name][index].key("elsewhere") != keys[name] for name in every)


def memories_are_there(monkeypatch) -> None:
    """A model of any name, whose memories need not be built."""
    monkeypatch.setitem(INSIDE, "backbone_of", lambda model: SimpleNamespace(video_fingerprint=model))
    for kind in ("scenes", "solved"):
        monkeypatch.setitem(INSIDE, f"{kind}_folder", lambda work, model, kind=kind: work / model / kind)
    for build in ("fill_scenes", "build_solved"):
        monkeypatch.setitem(INSIDE, build, lambda *_: None)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """The command, with rows made in no time for a model of any name; returns what it wrote."""
    made = []

    def rows_of(work, wanted, model, path, **_):
        known = read_rows(path)
        with path.open("a") as file:
            for key, job in wanted.items():
                if key not in known:
                    known[key] = {"key": key, **row(job.clip.seed)}
                    file.write(json.dumps(known[key]) + "\n")
                    made.append(key)
        return {key: known[key] for key in wanted}

    memories_are_there(monkeypatch)
    monkeypatch.setitem(INSIDE, "rows_of", rows_of)

    def call(*arguments, model="one", limit=7, code=0):
        where = ["--model", model, "--out", str(tmp_path), "--results", str(tmp_path)]
        before = len(made)
        assert QUALITY["main"]([*where, "--limit", str(limit), *arguments]) == code
        written = json.loads((tmp_path / "memory_quality.json").read_text())
        return SimpleNamespace(**written, made=len(made) - before)

    return call


def test_a_part_joins_the_others_of_the_same_model_settings_and_code(run):
    assert [*run("--only", "tto", "base").settings["variants"]] == ["base", "tto"]
    both = run("--only", "memory_tto")
    assert [*both.settings["variants"]] == ["base", "tto", "memory_tto"]
    assert both.made == 7 and "composition_of_memory_tto_over_tto" in both.figures
    assert both.command.endswith("--limit 7 --only base tto memory_tto")
    whole = run()
    assert [*whole.settings["variants"]] == [*VARIANTS] and whole.command.endswith("--limit 7")


def test_the_papers_memory_is_a_result_of_its_own(run, tmp_path, capsys):
    quality = run()
    run("paper")
    paper = json.loads((tmp_path / "memory_paper.json").read_text())
    assert [*paper["settings"]["variants"]] == [*PAPERS]
    assert paper["command"] == "python benchmarks/memory_quality.py paper --limit 7"
    assert run("paper", "--only", "memory_tto", code=2).figures == quality.figures
    assert "'paper' does not ask memory_tto" in capsys.readouterr().err


def test_a_part_never_replaces_a_result_that_tells_of_more(run, capsys):
    whole = run()
    for arguments, model, limit, words in (
        (["--only", "base"], "another", 7, "tells of tto, tto_half, tto_quarter and more,"),
        (["--only", "base"], "one", 3, "tells of 7 prompts"),
    ):
        same = run(*arguments, model=model, limit=limit, code=2)
        assert same.made == 0 and same.figures == whole.figures
        message = capsys.readouterr().err.splitlines()[-1]
        assert message.startswith("memory_quality: ") and words in message and "--results" in message
    assert run(model="another").settings["model"] == "another"
    few = run("--only", "base", "--force", model="third", limit=3)
    assert [*few.settings["variants"]] == ["base"]


def test_nothing_is_written_of_prompts_that_have_no_mirrored_scene(tmp_path, monkeypatch, capsys):
    assert not QUALITY["mirrored"](HELD_OUT[0]["prompt"])
    memories_are_there(monkeypatch)
    where = ["--out", str(tmp_path), "--results", str(tmp_path)]
    assert QUALITY["main"]([*where, "--limit", "1", "--only", "wrong_direction"]) == 2
    assert "raise --limit" in capsys.readouterr().err and not list(tmp_path.glob("*.json"))


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"settings": {"variants": 3}}'])
def test_a_file_of_another_form_is_left_alone(run, tmp_path, capsys, text):
    path = tmp_path / "memory_quality.json"
    path.write_text(text)
    assert QUALITY["main"](["--model", "one", "--out", str(tmp_path), "--results", str(tmp_path)]) == 2
    assert "not a result of this version" in capsys.readouterr().err and path.read_text() == text


@pytest.mark.slow
def test_a_memory_is_filled_copied_in_order_and_read_in_every_way(backbone, tmp_path, monkeypatch):
    texts = ["a red circle moves to the left", "a blue square moves to the right", "a cyan circle moves up"]
    quick = {"layers": (1, 2), "iterations": 1, "rank": 2, "sigma_end": 0.7, "stop_loss": None}
    monkeypatch.setitem(PRESETS, "demo", PRESETS["demo"].model_copy(update=quick))
    monkeypatch.setattr(memories, "generate", partial(generate, **SIZE, steps=STEPS))
    solved = tmp_path / "key" / "solved"
    for seed in (2, 1, 0):  # as workers may come to their ends
        memories.remember(backbone, (texts[seed], seed, str(solved)))
    monkeypatch.setitem(INSIDE, "fill_solved", lambda *_: solved)
    monkeypatch.setitem(INSIDE, "memory_specs", lambda: [{"prompt": text} for text in texts])
    for _ in range(2):  # the second finds everything there
        QUALITY["build_solved"](tmp_path, "", 1)
    whole = str(solved.with_name("of_200"))
    with MemoryStore(whole, read_only=True) as store:
        assert [entry.prompt for entry in store.entries()] == texts

    def start(source, prompt="a green triangle moves to the right"):
        variant = QUALITY["Variant"](iterations=0, memory="solved", top_k=2, source=source)
        return QUALITY["_start"](backbone, variant, prompt, 0, whole)

    known = {source: start(source) for source in ("own", "mirrored", "random")}
    assert [entries for _, entries in known.values()] == [1, 1, 2]
    with MemoryStore(solved, read_only=True) as store:
        values = {entry.prompt: store.load(entry) for entry in store.entries()}
    for source, text in (("own", texts[1]), ("mirrored", texts[0])):
        assert same(known[source][0], values[text]) and not same(known[source][0], values[texts[2]])
    assert same(known["random"][0], start("random")[0])
    assert start("own", "three green triangles") == (None, 0)


def same(first, second):
    pairs = ((first.weights[name], second.weights[name]) for name in first.weights)
    return all(torch.allclose(x, y) for one, other in pairs for x, y in zip(one, other, strict=True))


# The memory itself --------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["scenes", "solved"])
def test_a_memory_belongs_to_one_model_its_settings_and_the_code(monkeypatch, tmp_path, kind):
    monkeypatch.setattr(memories, "backbone_of", lambda model: SimpleNamespace(video_fingerprint=model))
    monkeypatch.setattr(memories, "memory_specs", lambda: [{"prompt": "a red circle moves up"}])
    folder = {"scenes": memories.scenes_folder, "solved": memories.solved_folder}[kind]
    first = folder(tmp_path, "one")
    assert first == folder(tmp_path, "one") != folder(tmp_path, "other")
    other = PRESETS["demo"].model_copy(update={"rank": 4})
    monkeypatch.setitem(memories.PRESETS, "demo", other)
    assert folder(tmp_path, "one") != first


@pytest.mark.slow
@pytest.mark.parametrize("worth", [True, False])
def test_a_scene_is_kept_only_where_it_earns_its_place(backbone, tmp_path, monkeypatch, worth):
    quick = {"layers": (1, 2), "iterations": 1, "rank": 2, "alpha": 2.0, "sigma_end": 0.7}
    monkeypatch.setitem(PRESETS, "demo", PRESETS["demo"].model_copy(update=quick))
    monkeypatch.setattr(memories, "consolidate", partial(memories.consolidate, **SIZE))
    monkeypatch.setattr(memories, "CLIPS", 2)
    monkeypatch.setattr(memories, "STEPS", STEPS)
    told = []

    def scored(backbone, clip, adapter=None):
        told.append((clip.seed, clip.settings is None, adapter is None))
        return {"composition": float(worth or adapter is None), "presence": 1.0}

    monkeypatch.setattr(memories, "make_clip", scored)
    specs = [{"prompt": f"a {colour} circle moves up"} for colour in ("red", "green")]
    found = memories.learn(backbone, memories.SceneJob(specs, str(tmp_path / "scenes")))
    assert found["kept"] == worth and found["composition_with"] == float(worth)
    # The same noises with the adapter and without, none of them one that it was learnt on.
    checked = [memories.FIRST_CHECK + index for index in range(memories.CHECKS)]
    assert told == [(seed, True, True) for seed in checked] + [(seed, False, False) for seed in checked]
    with MemoryStore(tmp_path / "scenes") as store:
        assert len(store) == worth
        for entry in store.entries():
            assert "2 clips of 2 prompts" in entry.note
            assert {x.dtype for pair in store.load(entry).weights.values() for x in pair} == {torch.float32}
    assert ("yes" if worth else "no") in memories.told([found])
