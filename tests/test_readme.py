"""The README's blocks of evidence: filled from result files, empty without them."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from ttom_core.evaluation.claims import FAILS, HOLDS, OPEN
from ttom_core.evaluation.evaluate import QUALITIES

README = runpy.run_path(str(Path(__file__).resolve().parent.parent / "benchmarks" / "readme.py"))
METHODS = ("base", "tto", "lvd", "latent", "noise", "best")
PAGE = """before
<!-- figures:evidence -->
<!-- /figures:evidence -->
between
<!-- claims -->
<!-- /claims -->
after
"""


def figure(value, low, high, n=210):
    return {"value": value, "low": low, "high": high, "n": n, "unit": "score"}


def write(folder, name, figures, **settings):
    made = {"command": f"make {name}", "commit": "c0ffee", "machine": "2 cores", "seed": 0}
    (folder / f"{name}.json").write_text(json.dumps(made | {"settings": settings, "figures": figures}))


def evidence(folder):
    """Six methods, each better than the one before, and what a few of their pairs say."""
    table = {}
    for k, method in enumerate(METHODS):
        for quality in QUALITIES:
            table[f"{method}_{quality}"] = figure(k / 10, k / 10 - 0.05, k / 10 + 0.05)
            table[f"{method}_{quality}_motion"] = figure(0.9, 0.8, 1.0, 30)
        table[f"{method}_seconds"] = figure(2.0, 1.5, 2.5)
    table["composition_of_tto_over_base"] = figure(0.1, 0.05, 0.15)
    table["composition_of_tto_over_lvd"] = figure(-0.1, -0.15, -0.05)
    table["composition_of_lvd_over_base"] = figure(0.02, -0.01, 0.05)
    table["presence_of_tto_over_base"] = figure(0.0, -0.01, 0.01)  # and nothing of its distortion
    write(folder, "evidence", table, methods=dict.fromkeys(METHODS), pairs=[["tto", "base"]])


def fill(folder, text=PAGE):
    return README["fill"](text, folder)


def rows(text, start):
    return [line for line in text.splitlines() if line.startswith(start)]


def test_blocks_without_results_stand_empty(tmp_path):
    assert fill(tmp_path) == PAGE
    write(tmp_path, "unrelated", {"a": figure(0.1, 0.0, 0.2)})
    assert fill(tmp_path) == PAGE


def test_what_was_typed_by_hand_goes_with_its_results(tmp_path):
    evidence(tmp_path)
    filled = fill(tmp_path)
    assert filled != PAGE and fill(tmp_path, filled) == filled
    (tmp_path / "evidence.json").unlink()
    assert fill(tmp_path, filled) == PAGE


def test_the_evidence_is_a_row_a_method(tmp_path):
    evidence(tmp_path)
    text = fill(tmp_path)
    assert rows(text, "| method |") == [
        "| method | n | composition | presence | distortion (less is better) | seconds a clip |"
    ]
    table = [line for line in rows(text, "| ") if line.split()[1] in METHODS]
    assert [line.split()[1] for line in table] == list(METHODS)
    assert table[-1] == (
        "| best | 210 | 0.50 (0.45–0.55) | 0.50 (0.45–0.55) | 0.50 (0.45–0.55) | 2.00 (1.50–2.50) |"
    )
    assert "`make evidence` at commit c0ffee, seed 0, on 2 cores" in text
    assert text.startswith("before\n") and text.endswith("after\n") and "\nbetween\n" in text


@pytest.mark.parametrize(
    ("claim", "verdict", "words"),
    [
        ("TTOM composes better than its base model", HOLDS, "0.100 (0.050 to 0.150), asked: above 0 (n 210)"),
        ("TTOM composes better than LVD", FAILS, "-0.100 (-0.150 to -0.050)"),
        ("LVD composes better than the base model", OPEN, "0.020 (-0.010 to 0.050)"),
        ("TTOM keeps the base model's quality (to within 0.03)", OPEN, "has not been measured"),
        ("the best preset composes 0.85 or more", FAILS, "0.500 (0.450 to 0.550), asked: above 0.85"),
    ],
)
def test_a_claim_is_a_row_with_its_verdict_and_figure(tmp_path, claim, verdict, words):
    evidence(tmp_path)
    (line,) = [line for line in rows(fill(tmp_path), "| ") if f"| {claim} |" in line]
    assert f"| **{verdict}** |" in line and words in line


def test_claims_without_a_figure_are_counted_and_not_judged(tmp_path):
    evidence(tmp_path)
    text = fill(tmp_path)
    assert "LVD lowers the base model's quality" not in text and "TTOM is ahead" not in text
    assert "Claims that have not been measured: table 1 (7), tables 9, 10 (1), table 3 (2)," in text


def test_a_store_without_sizes_or_sizes_alone_make_no_empty_table(tmp_path):
    page = "<!-- figures:memory -->\n<!-- /figures:memory -->\n"
    for name, heads in (("kills", ["| figure |"]), ("read_ms_1k", ["| entries |"])):
        write(tmp_path, "memory", {name: figure(1.0, 0.5, 2.0)})
        lines = rows(fill(tmp_path, page), "| ")
        assert len(lines) == 2 and lines[0].startswith(heads[0])


def test_only_claims_whose_files_are_there_are_judged(tmp_path):
    losses = {
        "composition_of_bce_over_jsd": figure(-0.2, -0.3, -0.1),
        "composition_of_center_of_mass_over_jsd": figure(-0.2, -0.3, -0.1, n=19),
    }
    write(tmp_path, "ablation_losses", losses, methods={}, pairs=[["bce", "jsd"]])
    text = fill(tmp_path)
    assert [line.split(" | ")[1:3] for line in rows(text, "| table")] == [
        ["JSD is better than cross-entropy", f"**{HOLDS}**"],
        ["JSD is better than the centre of mass", f"**{OPEN}**"],
    ]
    assert "fewer than 20" in text and "Nothing is rounded in a claim's favour." in text
    assert not rows(text, "| method")


def test_claims_on_results_of_different_models_say_so(tmp_path):
    evidence(tmp_path)
    write(tmp_path, "cogvideox", {}, model="cogvideox-1", methods={}, pairs=[["tto", "base"]])
    write(tmp_path, "probe", {}, model="wan-1", methods={}, pairs=[["bce", "jsd"]])
    assert "different models" not in fill(tmp_path)
    write(tmp_path, "ablation_losses", {}, model="wan-2", methods={}, pairs=[["bce", "jsd"]])
    assert "**These results are of different models, and do not belong together." in fill(tmp_path)


def test_a_question_is_one_line_and_tells_what_can_be_told(tmp_path):
    page = "<!-- ablations -->\n<!-- /ablations -->\n"
    assert fill(tmp_path, page) == page
    table = {
        f"rank_{rank}_{quality}": figure(rank / 10, 0, 1, 21) for rank in (2, 4, 8) for quality in QUALITIES
    }
    table["composition_of_rank_2_over_rank_4"] = figure(-0.2, -0.3, -0.1, 21)
    table["composition_of_rank_8_over_rank_4"] = figure(0.4, 0.0, 0.8, 21)
    pairs = [["rank_2", "rank_4"], ["rank_8", "rank_4"]]
    methods = {f"rank_{rank}": {} for rank in (2, 4, 8)}
    write(
        tmp_path,
        "ablation_rank",
        table,
        question="Which rank?",
        prompts="held_out",
        methods=methods,
        pairs=pairs,
    )
    (line,) = rows(fill(tmp_path, page), "| Which")
    assert line == "| Which rank? | 21 held-out | 2 0.20 / 0.20 ▼ · **4 0.40 / 0.40** · 8 0.80 / 0.80 |"
