"""The ablations ask what they say, on prompts that were not tuned on, and survive being killed."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from demo.train import SHIFT
from ttom_core.evaluation import evaluate as evaluation
from ttom_core.evaluation.comparison import Comparison, compare
from ttom_core.evaluation.evaluate import (
    OPTIMISING,
    QUALITIES,
    SCORING,
    Clip,
    evaluate,
    figures,
    load_prompts,
)
from ttom_core.evaluation.paper import CATEGORIES, CLAIMS, FAST, GOALS, MEMORY, PAPER
from ttom_core.optimize import PRESETS, TTOSettings, sigma_of_step
from ttom_core.probe import ProbeSettings, Relevance

ROOT = Path(__file__).resolve().parent.parent
ABLATIONS = runpy.run_path(str(ROOT / "benchmarks" / "ablations.py"))
EVIDENCE = runpy.run_path(str(ROOT / "benchmarks" / "evidence.py"))
SIGMAS = [sigma_of_step(step, 20, SHIFT) for step in range(20)]
LAYERS = json.loads((ROOT / "demo" / "model" / "transformer" / "config.json").read_text())["num_layers"]
TABLES = ABLATIONS["tables"](LAYERS, SIGMAS)
FEW = {
    "settings": {"steps": 20},
    "figures": {"base_composition": {"n": 7}, "base_composition_motion": {"n": 1}},
}
SPEC = {"category": "motion", "prompt": "a red circle moves up", "nouns": [], "expect": {}}


def prompts(split):
    return [row["prompt"] for row in load_prompts(ROOT / "demo" / "prompts" / f"{split}.json")]


def test_settings_are_chosen_on_prompts_that_no_figure_is_quoted_on():
    assert not set(prompts("held_out")) & {*prompts("tuning"), *prompts("memory")}
    assert {table.split for table in TABLES.values()} == {"tuning", "held_out"}
    papers = {name for name, table in TABLES.items() if table.question.startswith("Table")}
    assert papers == {name for name, table in TABLES.items() if table.split == "held_out"}
    assert {asked.comparison.split for asked in EVIDENCE["QUESTIONS"].values()} == {"held_out"}


@pytest.mark.parametrize("name", TABLES)
def test_every_variant_is_a_change_of_the_preset_beside_its_reference(name):
    table = TABLES[name]
    dumped = [json.dumps(s.model_dump(mode="json"), sort_keys=True) for s in table.methods.values()]
    assert name == "layers" or len(set(dumped)) == len(dumped) >= 2, "two variants are the same"
    assert all(method in table.methods for pair in table.pairs for method in pair)
    assert {first for first, _ in table.pairs} >= set(table.methods) - {table.reference}
    for settings in table.methods.values():
        assert TTOSettings.model_validate(settings.model_dump()) == settings
        assert max(settings.layers) < LAYERS
    if name != "losses":  # which has no early stop in any of them
        assert table.methods[table.reference] == PRESETS["demo"]


def test_tables_fit_models_of_any_depth():
    for layers in (4, 6, 40):
        found = ABLATIONS["tables"](layers, SIGMAS)["layers"].methods
        assert f"layer_{layers - 1}" in found and f"layer_{layers}" not in found


def test_a_clips_key_knows_everything_that_decides_it():
    demo = PRESETS["demo"]
    clip = Clip(SPEC, demo, 0, 20)
    others = [
        clip._replace(seed=1),
        clip._replace(steps=10),
        clip._replace(settings=None),
        clip._replace(settings=demo.model_copy(update={"freeze_a": True})),
        clip._replace(settings=PRESETS["lvd"]),
        clip._replace(spec=SPEC | {"expect": {"directions": ["up"]}}),
    ]
    keys = {clip.key("model"), clip.key("other model"), *(other.key("model") for other in others)}
    assert len(keys) == 2 + len(others)
    assert clip._replace(picture="elsewhere.png").key("model") == clip.key("model")


def test_rows_of_other_code_count_for_nothing_and_the_base_models_stay(monkeypatch):
    clips = Clip(SPEC, PRESETS["demo"], 0, 20), Clip(SPEC, None, 0, 20)

    def keys(room):
        codes = {rooms: room if room in rooms else "same" for rooms in (OPTIMISING, SCORING)}
        monkeypatch.setattr(evaluation, "_code", lambda *rooms: codes[rooms])
        return [clip.key("model") for clip in clips]

    same, optimised, scored = keys(""), keys("optimize"), keys("evaluation/scores")
    assert optimised[0] != same[0] and optimised[1] == same[1]
    assert scored[0] != same[0] and scored[1] != same[1]


def test_a_plan_is_part_of_a_clip(monkeypatch):
    clip = Clip(SPEC, PRESETS["demo"], 0, 20)
    before = clip.key("model")
    monkeypatch.setattr(evaluation, "_planned", lambda prompt: "{}")
    assert clip.key("model") != before and clip._replace(settings=None).key("model") != before


def test_a_probe_that_finds_no_object_still_tells_the_gains(tmp_path, monkeypatch, capsys):
    """A model that draws nothing yet must not end `make evidence` halfway."""
    probe = runpy.run_path(str(ROOT / "benchmarks" / "probe.py"))
    none = {"fingerprint": "toy", "layers": (0.0, 0.0), "heads": ((0.0,), (0.0,)), "n": 0}
    relevance = Relevance(**none, grounding="blobs", settings=ProbeSettings())
    toy = SimpleNamespace(fingerprint="toy", video_fingerprint="toy")
    row = {"composition": 0.5, "presence": 0.5, "distortion": 0.1, "seconds": 1.0, "category": "motion"}
    inside = probe["main"].__globals__
    monkeypatch.setitem(inside, "backbone_of", lambda model: toy)
    monkeypatch.setitem(inside, "rows_of", lambda *_, **__: {"a": {"relevance": relevance.model_dump()}})
    monkeypatch.setitem(inside, "evaluate", lambda *of, **_: {method: [row] for method in of[2]})
    assert probe["main"](["--limit", "1", "--out", str(tmp_path), "--results", str(tmp_path)]) == 0
    result = json.loads((tmp_path / "probe.json").read_text())
    assert result["figures"]["objects_found"]["value"] == 0
    assert "composition_of_layer_1_over_base" in result["figures"]
    assert not [name for name in result["figures"] if "relevan" in name]
    assert (result["settings"]["recommended"], result["settings"]["model"]) == ([], "toy")


def test_every_claim_has_its_figure():
    """A misspelt one would only ever say that it has not been measured."""
    comparisons = {f"ablation_{name}": table for name, table in TABLES.items()}
    comparisons |= {name: asked.comparison for name, asked in EVIDENCE["QUESTIONS"].items()}
    conditions = [condition for claim in (*CLAIMS, *GOALS) for condition in claim.conditions]
    for condition in conditions:
        if condition.result in (MEMORY, PAPER, FAST):
            continue  # tests/test_memory_quality.py
        asked = comparisons[condition.result]
        qualities = dict.fromkeys(QUALITIES, 0.5)
        made = [{"category": category, "seconds": 1.0, **qualities} for category in CATEGORIES]
        rows = dict.fromkeys(asked.methods, made)
        table = figures(rows, asked.pairs, asked.by_category) | (asked.extra(rows) if asked.extra else {})
        own, last = asked.reference, list(asked.methods)[-1]
        assert condition.figure.format(own=own, last=last) in table, condition


def test_goals_are_means_above_zero():
    def rows(values):
        return [{"composition": value} for value in values]

    found = EVIDENCE["goals"]({"tto": rows([1.0] * 4), "base": rows([0.5, 0.0, 0.5, 0.0])}, 2.5, 60)
    assert found["tto_above_2.5_base"]["value"] == pytest.approx(0.375)
    assert found["tto_above_60_percent_of_gap"]["value"] == pytest.approx(0.75 - 0.6 * 0.75)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nonsense"], "no table 'nonsense'; choose all, list, losses"),
        (["losses", "--limit", "0"], "at least 1 prompt, not 0"),
        (["losses", "--workers", "0"], "At least 1 worker"),
    ],
)
def test_bad_input_gets_one_sentence_and_writes_nothing(folder, tmp_path, capsys, arguments, words):
    where = ["--model", str(folder), "--out", str(tmp_path / "out"), "--results", str(tmp_path / "results")]
    assert ABLATIONS["main"]([*arguments, *where]) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert message.startswith("ablations: ") and words in message
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("evidence", []),
        ("cogvideox", ["cogvideox"]),
        ("ablation_losses", ["losses"]),
        ("ablation_losses", ["all"]),
    ],
)
def test_a_smaller_run_never_replaces_a_larger_one_but_by_force(
    folder, tmp_path, capsys, monkeypatch, name, arguments
):
    main, made = (ABLATIONS if name.startswith("ablation") else EVIDENCE)["main"], []
    monkeypatch.setitem(
        main.__globals__, "compare", lambda told, *_, **__: made.append(told) or FEW["figures"]
    )
    monkeypatch.setitem(main.__globals__, "markdown", str)
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(FEW))
    where = ["--model", str(folder), "--out", str(tmp_path), "--results", str(tmp_path)]
    few, rough = ["--limit", "6"], ["--limit", "7", "--steps", "19"]
    for less, words in ((few, "tells of 7 prompts,"), (rough, "tells of 20 steps,")):
        assert main([*arguments, *where, *less]) == 2
        message = capsys.readouterr().err.splitlines()[-1]
        assert words in message and "--results" in message and "--force" in message
    path.write_text("{}")
    assert main([*arguments, *where]) == 2 and "move it away" in capsys.readouterr().err
    assert not made and path.read_text() == "{}"
    path.write_text(json.dumps(FEW))
    for less in (["--limit", "7"], [*few, "--force"]):
        with suppress(KeyError):  # a table's methods, which this one has not
            main([*arguments, *where, *less])
        assert made.pop() == name and not made


def test_a_missing_model_gets_one_sentence(tmp_path, capsys):
    for main, arguments in ((ABLATIONS["main"], ["losses"]), (EVIDENCE["main"], ["--limit", "1"])):
        folders = ["--out", str(tmp_path), "--results", str(tmp_path)]
        assert main([*arguments, "--model", "nowhere", *folders]) == 2
        assert "no model folder at nowhere" in capsys.readouterr().err


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    """A model folder of the demo's form with random weights."""
    from demo.train import build_pipeline

    path = tmp_path_factory.mktemp("models") / "untrained"
    build_pipeline().save_pretrained(path)
    return path


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same_rows(folder, tmp_path):
    def start(out):
        command = [
            sys.executable,
            str(ROOT / "benchmarks" / "ablations.py"),
            "freeze",
            "--limit",
            "1",
            "--steps",
            "5",
        ]
        command += ["--model", str(folder), "--workers", "1", "--out", str(tmp_path / out)]
        command += ["--results", str(tmp_path / out)]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        return subprocess.Popen(command, env=os.environ | {"PYTHONPATH": paths}, stderr=subprocess.PIPE)

    def rows(out):
        kept = {}
        for line in (tmp_path / out / "rows.jsonl").read_text().splitlines():
            if line.endswith("}"):
                row = json.loads(line)
                assert kept.setdefault(row["key"], row) is row, "made twice"
        return {key: {k: v for k, v in row.items() if k != "seconds"} for key, row in kept.items()}

    killed = start("killed")
    path, deadline = tmp_path / "killed" / "rows.jsonl", time.monotonic() + 300
    while not path.exists() or "\n" not in path.read_text():
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    assert len(rows("killed")) == 1
    with path.open("a") as file:
        file.write('{"key": "cut sh')
    for out in ("killed", "whole"):
        run = start(out)
        _, err = run.communicate(timeout=600)
        assert run.returncode == 0, err.decode()
    assert rows("killed") == rows("whole") and len(rows("whole")) == 2
    results = [
        json.loads((tmp_path / out / "ablation_freeze.json").read_text()) for out in ("killed", "whole")
    ]
    figures = [{k: f for k, f in r["figures"].items() if "seconds" not in k} for r in results]
    assert figures[0] == figures[1]
    assert results[0]["settings"]["methods"]["freeze_a_yes"]["freeze_a"] is True
    assert (tmp_path / "whole" / "ablation_freeze.png").stat().st_size > 1000


@pytest.mark.slow
def test_a_comparison_keeps_a_video_a_category_also_of_clips_made_before(folder, tmp_path):
    spec = load_prompts(ROOT / "demo" / "prompts" / "held_out.json", 1)
    rows, quick = tmp_path / "rows.jsonl", PRESETS["demo"].model_copy(update={"iterations": 1})
    evaluate(str(folder), spec, {"tto": quick}, rows, steps=4, workers=1)  # keeps no frames
    question = Comparison("Which?", {"base": None, "tto": quick}, (("tto", "base"),), "held_out", True)
    compare(
        "evidence",
        question,
        str(folder),
        spec,
        rows,
        tmp_path,
        command="x",
        steps=4,
        workers=1,
        pictures=tmp_path / "pictures",
    )
    settings = json.loads((tmp_path / "evidence.json").read_text())["settings"]
    (video,) = settings["videos"]
    assert (tmp_path / video["file"]).stat().st_size > 1000 and video["prompt"] == spec[0]["prompt"]
    assert len(list((tmp_path / "pictures" / "clips").glob("*.png"))) == 2
