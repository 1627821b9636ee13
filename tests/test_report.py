"""The page of evidence: verdicts from whole intervals alone, and nothing of a file's text is markup."""

from __future__ import annotations

import json
import runpy
from html.parser import HTMLParser
from pathlib import Path

import pytest

from ttom_core.errors import TTOMError
from ttom_core.evaluation.claims import (
    FAILS,
    HOLDS,
    OPEN,
    Claim,
    Condition,
    judged,
    measured,
    together,
    unmeasured,
    verdict,
)
from ttom_core.evaluation.evaluate import QUALITIES

ROOT = Path(__file__).resolve().parent.parent
REPORT = runpy.run_path(str(ROOT / "benchmarks" / "report.py"))
ABOVE, BELOW = Condition("r", "f"), Condition("r", "f", 0.03, below=True)
EVIL = "</td><script>alert(1)</script><img src=x onerror='alert(1)'>\"&"


def figure(value, low, high, n=100):
    return {"value": value, "low": low, "high": high, "n": n, "unit": "score"}


def result(figures, **settings):
    made = {"command": "make it", "commit": "c0ffee", "machine": "2 cores", "seed": 0}
    return made | {"settings": {"question": "Which?", "prompts": "held_out"} | settings, "figures": figures}


@pytest.mark.parametrize(
    ("found", "condition", "expected"),
    [
        (figure(0.2, 0.1, 0.3), ABOVE, HOLDS),
        (figure(0.2, -0.001, 0.3), ABOVE, OPEN),
        (figure(0.2, 0.0, 0.3), ABOVE, OPEN),  # not rounded up
        (figure(-0.2, -0.3, -0.1), ABOVE, FAILS),
        (figure(0.2, 0.1, 0.3, n=19), ABOVE, OPEN),
        (figure(0.2, None, None), ABOVE, OPEN),
        (None, ABOVE, OPEN),
        (figure(0.01, -0.01, 0.029), BELOW, HOLDS),
        (figure(0.01, -0.01, 0.03), BELOW, OPEN),
        (figure(0.05, 0.04, 0.06), BELOW, FAILS),
        (figure(0.0, 0.0, 0.0), BELOW, OPEN),  # no prompt of 100 says otherwise, and 3 % still may
        (figure(0.0, 0.0, 0.0, n=210), BELOW, HOLDS),
    ],
)
def test_a_verdict_needs_the_whole_interval(found, condition, expected):
    assert verdict(found, condition) == expected


def test_a_claim_is_as_sure_as_its_least_sure_part():
    assert together([HOLDS, HOLDS]) == HOLDS and together([HOLDS, OPEN]) == OPEN
    assert together([HOLDS, OPEN, FAILS]) == FAILS and together([]) == OPEN
    assert together([FAILS, HOLDS], either=True) == HOLDS
    assert together([FAILS, OPEN], either=True) == OPEN and together([FAILS, FAILS], either=True) == FAILS


def test_a_claim_finds_the_preset_and_the_last_method_by_the_files_own_word():
    claim = Claim("", "", (Condition("r", "composition_of_{last}_over_{own}"),))
    found = result(
        {"composition_of_c_over_b": figure(0.2, 0.1, 0.3)},
        methods={"a": None, "b": None, "c": None},
        pairs=[["a", "b"], ["c", "b"]],
    )
    assert judged(claim, {"r": found})[0] == HOLDS
    assert judged(claim, {"r": {"figures": {}}})[0] == OPEN
    assert "not been measured" in judged(claim, {})[1]
    assert measured(claim, {"r": found}) and not unmeasured([claim], {"r": found})
    assert not measured(claim, {"r": {"figures": {}}})
    assert unmeasured([claim, Claim("x", "", (ABOVE,))], {}).endswith("measured:  (1), x (1).")


class Seen(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.links, self.text = set(), [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for key, value in attrs if key in ("src", "href")]
        assert not [key for key, _ in attrs if key.startswith("on")]

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def hostile(tmp_path):
    """Result files in which every text that a file can hold is hostile."""
    rows = {f"{EVIL}_{q}{where}": figure(0.5, 0.4, 0.6) for q in QUALITIES for where in ("", "_motion")}
    rows[f"{EVIL}_seconds"] = figure(2.0, 1.0, 3.0)
    rows |= {f"composition_of_tto_over_base{where}": figure(0.5, 0.4, 0.6) for where in ("", EVIL)}
    (tmp_path / "evidence").mkdir()
    (tmp_path / "evidence" / "motion.mp4").write_bytes(b"a video")
    (tmp_path.parent / "secret.mp4").write_bytes(b"not of this folder")
    videos = [
        {"file": "evidence/motion.mp4", "prompt": EVIL, "category": EVIL, "seed": EVIL},
        {"file": "../secret.mp4", "prompt": "x", "category": "motion", "seed": 0},
        {"file": EVIL, "prompt": "x", "category": "motion", "seed": 0},
    ]
    settings = {"methods": {EVIL: None}, "pairs": [], "videos": videos, "question": EVIL, "prompts": EVIL}
    made = result(rows, **settings) | {"command": EVIL, "commit": EVIL, "machine": EVIL}
    for name in ("evidence", "ablation_losses", "memory_quality"):
        (tmp_path / f"{name}.json").write_text(json.dumps(made))
    (tmp_path / "evidence.png").write_bytes(b"a chart")
    return tmp_path


def test_nothing_in_a_result_file_becomes_markup_or_leaves_the_folder(hostile):
    out = hostile / "page" / "index.html"
    assert REPORT["main"](["--results", str(hostile), "--out", str(out)]) == 0
    text, seen = out.read_text(), Seen()
    seen.feed(text)
    assert EVIL in seen.text and "<script" not in text and "onerror='" not in text.replace("&#x27;", "")
    assert not seen.tags & {"script", "iframe", "link", "object", "form"}
    assert len(seen.links) == 2 and all(link.startswith("data:") for link in seen.links)
    assert "http" not in text.replace("http-equiv", "")
    assert HOLDS in seen.text and OPEN in seen.text


def test_bad_result_files_get_one_sentence(tmp_path, capsys):
    main = REPORT["main"]
    assert main(["--results", str(tmp_path / "nowhere")]) == 2
    assert "no folder of results" in capsys.readouterr().err
    good = result({"a": figure(0.5, 0.4, 0.6)}, methods={}, pairs=[])
    bad_figures = ({"a": figure(0.9, 0.4, 0.6)}, {"a": {"value": 1}}, {"a": figure("<b>", 0, 1)}, [])
    for text in (
        "{",
        "[]",
        "{}",
        json.dumps(good | {"settings": [1]}),
        *(json.dumps(good | {"figures": f}) for f in bad_figures),
    ):
        (tmp_path / "evidence.json").write_text(text)
        assert main(["--results", str(tmp_path), "--out", str(tmp_path / "index.html")]) == 2
        message = capsys.readouterr().err
        assert "is not a result file" in message and message.count("\n") == 1
    assert not (tmp_path / "index.html").exists()
    (tmp_path / "evidence.json").write_text(json.dumps(good))
    assert main(["--results", str(tmp_path), "--out", str(tmp_path / "index.html")]) == 0


def scored(*names):
    """The figures of these methods, overall and in one category."""
    return {
        f"{name}_{q}{where}": figure(0.5, 0.4, 0.6)
        for name in names
        for q in QUALITIES
        for where in ("", "_motion")
    }


PARTS = {
    "evidence": result(scored("base", "tto"), methods={"base": None, "tto": {}, "lvd": {}}, pairs=[]),
    "ablation_losses": result(scored("jsd", "bce"), methods={"jsd": {}, "bce": {}}, pairs=[["bce", "jsd"]]),
    "ablation_steps": result({"one_composition": figure(0.5, 0.4, 0.6)}, methods={"one": {}}, pairs=[]),
    "memory_quality": result({"composition_of_tto_over_base": figure(0.5, 0.4, 0.6)}),
    "probe": result({"relevance_0": figure(0.5, 0.4, 0.6)}),
    "full_size": result({"flops": {**figure(0.5, 0, 1), "low": None, "high": None}}),
}  # fmt: skip


@pytest.mark.parametrize("names", [(), *((name,) for name in PARTS), tuple(PARTS)], ids="+".join)
def test_whatever_was_measured_makes_a_page(tmp_path, names):
    for name in names:
        (tmp_path / f"{name}.json").write_text(json.dumps(PARTS[name]))
    if "probe" in names:
        (tmp_path / "probe.png").write_bytes(b"a chart")
    out = tmp_path / "page" / "index.html"
    assert REPORT["main"](["--results", str(tmp_path), "--out", str(out)]) == 0
    seen = Seen()
    seen.feed(out.read_text())
    assert "have not been measured" in seen.text and "None" not in seen.text
    assert ("table" in seen.tags) == bool(set(names) - {"full_size"})
    assert ("Methods beside each other" in seen.text) == ("evidence" in names)
    assert ("One setting at a time" in seen.text) == any(name.startswith("ablation") for name in names)
    assert ("Memory" in seen.text) == ("memory_quality" in names)
    assert len(seen.links) == ("probe" in names)


def test_results_of_different_models_are_told_apart(tmp_path):
    out = tmp_path / "index.html"
    for name, model in (("evidence", "wan-1"), ("ablation_losses", "wan-1"), ("probe", None)):
        made = json.loads(json.dumps(PARTS[name]))
        (tmp_path / f"{name}.json").write_text(
            json.dumps(made | {"settings": made["settings"] | {"model": model}})
        )
    assert REPORT["main"](["--results", str(tmp_path), "--out", str(out)]) == 0
    assert "different models" not in out.read_text()
    new = PARTS["evidence"] | {"settings": PARTS["evidence"]["settings"] | {"model": f"wan-{EVIL}"}}
    (tmp_path / "evidence.json").write_text(json.dumps(new))
    assert REPORT["main"](["--results", str(tmp_path), "--out", str(out)]) == 0
    seen = Seen()
    seen.feed(out.read_text())
    assert "different models" in seen.text and EVIL in seen.text and "<script" not in out.read_text()


def test_the_committed_results_can_be_shown(tmp_path):
    out = tmp_path / "index.html"
    assert REPORT["main"](["--out", str(out)]) == 0
    assert "The paper" in out.read_text()


def test_load_refuses_what_it_cannot_read(tmp_path):
    with pytest.raises(TTOMError):
        REPORT["load_results"](tmp_path / "nowhere")
