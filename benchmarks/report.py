"""One static page of all evidence, from the result files alone: no server, no script, no other host.

    python benchmarks/report.py        # writes benchmarks/report/index.html

Figures, charts and videos are those in benchmarks/results/. What the paper claims is judged by one rule,
which the page states: a claim holds, or does not, only where a whole 95 % interval says so.
"""

from __future__ import annotations

import argparse
import base64
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from ttom_core.errors import TTOMError
from ttom_core.evaluation.claims import (
    FAILS,
    HOLDS,
    OPEN,
    RULE,
    Claim,
    Result,
    judged,
    measured,
    mixed,
    number,
    unmeasured,
)
from ttom_core.evaluation.evaluate import QUALITIES
from ttom_core.evaluation.paper import CATEGORIES, CLAIMS, FAST, GOALS, MEMORY, PAPER

ROOT = Path(__file__).resolve().parent.parent

# The page -----------------------------------------------------------------------------------------

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1b1b; background: #fff; }
h2 { margin-top: 3rem; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: 1rem 0; }
th, td { text-align: left; vertical-align: top; padding: .25rem .8rem .25rem 0;
         border-bottom: 1px solid #e4e4e4; }
img, video { max-width: 100%; }
figure { margin: 1rem 0; } figcaption, .source { color: #595959; font-size: .875rem; }
.holds { color: #00694e; font-weight: 600; } .fails { color: #a33b00; font-weight: 600; }
.open { color: #595959; font-weight: 600; } .wide { overflow-x: auto; }
"""
EVIDENCE = {
    "evidence": "Methods beside each other",
    "cogvideox": "Where text and video share one attention: the CogVideoX sibling",
}
CLASSES = {HOLDS: "holds", FAILS: "fails", OPEN: "open"}


def table(head: Iterable[str], rows: Iterable[Iterable[str]], verdicts: bool = False) -> str:
    """An HTML table of plain texts, each escaped; with `verdicts`, those are coloured. None without rows."""
    first = "".join(f'<th scope="col">{escape(text)}</th>' for text in head)
    body = []
    for row in rows:
        cells = []
        for text in row:
            mark = f' class="{CLASSES[text]}"' if verdicts and text in CLASSES else ""
            cells.append(f"<td{mark}>{escape(text)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    if not body:
        return ""
    return f'<div class="wide"><table><tr>{first}</tr>{"".join(body)}</table></div>'


def claims(of: Sequence[Claim], results: Mapping[str, Result]) -> str:
    rows = [(claim.source, claim.text, *judged(claim, results)) for claim in of if measured(claim, results)]
    note = f"<p>{escape(rest)}</p>" if (rest := unmeasured(of, results)) else ""
    return table(("", "claim", "verdict", "figures"), rows, verdicts=True) + note


def methods_of(result: Result) -> list[str]:
    """The methods that a result has a composition of."""
    end = "_composition"
    return [name.removesuffix(end) for name in result["figures"] if name.endswith(end)]


def cell(result: Result, name: str) -> str:
    figure = result["figures"].get(name)
    return number(figure) if figure else "–"


def methods(result: Result) -> str:
    """One row a method, one column a quality."""
    rows = []
    for name in methods_of(result):
        cells = [cell(result, f"{name}_{quality}") for quality in QUALITIES]
        seconds = result["figures"].get(f"{name}_seconds")
        rows.append((name.replace("_", " "), *cells, f"{seconds['value']:.1f}" if seconds else "–"))
    return table(("method", "composition", "presence", "distortion (less is better)", "s a clip"), rows)


def by_category(result: Result) -> str:
    """Composition by category: one row a category, one column a method."""
    names = methods_of(result)
    rows = [
        (category.replace("_", " "), *(cell(result, f"{name}_composition_{category}") for name in names))
        for category in CATEGORIES
        if any(f"{name}_composition_{category}" in result["figures"] for name in names)
    ]
    return table(("composition", *names), rows) if rows else ""


def plain(result: Result) -> str:
    """One row a figure that `methods` does not show."""
    shown = {f"{name}_{column}" for name in methods_of(result) for column in (*QUALITIES, "seconds")}
    rows = [
        (name.replace("_", " "), number(f), str(f["n"]), f["unit"])
        for name, f in result["figures"].items()
        if name not in shown
    ]
    return table(("figure", "value", "n", "unit"), rows)


def picture(path: Path, caption: str) -> str:
    """A chart inside the page, or nothing where there is none."""
    if not path.is_file():
        return ""
    source = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return f'<figure><img src="{source}" alt="{escape(caption)}"></figure>'


def videos(result: Result, results: Path) -> str:
    """The videos that a result names, inside the page; a name that leaves the folder is none."""
    shown = []
    for entry in result["settings"].get("videos", []):
        path = (results / str(entry["file"])).resolve()
        if path.suffix != ".mp4" or results.resolve() not in path.parents or not path.is_file():
            continue
        source = f"data:video/mp4;base64,{base64.b64encode(path.read_bytes()).decode()}"
        caption = f"{str(entry['category']).replace('_', ' ')}: “{entry['prompt']}”, seed {entry['seed']}"
        shown.append(
            f'<figure><video src="{source}" controls loop muted autoplay playsinline></video>'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    return "".join(shown)


def source(result: Result) -> str:
    text = (
        f"Made by {result['command']} at commit {result['commit']}, seed {result['seed']}, "
        f"on {result['machine']}."
    )
    return f'<p class="source">{escape(text)}</p>'


def page(results: Mapping[str, Result], folder: Path) -> str:
    """The whole page from the results by name; charts and videos are looked for in their folder."""
    parts = [
        "<h1>TTOM: what works, and how well</h1>",
        "<p>Test-time optimisation and memory for compositional video, measured on the embedded demo model: "
        "composition asks whether the prompt's claim holds in the frames, presence whether its objects are "
        "there and clean, distortion how far they are from their size and shape.</p>",
        f'<p class="fails">{escape(warning)}</p>' if (warning := mixed(results)) else "",
        f"<h2>The paper's claims</h2><p>{escape(RULE)}</p>",
        claims(CLAIMS, results),
        "<h2>Goals</h2>",
        claims(GOALS, results),
    ]
    for name, title in EVIDENCE.items():
        if evidence := results.get(name):
            parts += [f"<h2>{title}</h2>", methods(evidence), by_category(evidence)]
            parts += [picture(folder / f"{name}.png", "methods with intervals"), source(evidence)]
            if shown := videos(evidence, folder):
                parts += ["<h3>The first held-out prompt of each category, as it came</h3>", shown]
    tables = {name: result for name, result in results.items() if name.startswith("ablation_")}
    if tables:
        parts.append("<h2>One setting at a time</h2><p>The line is the value of the preset.</p>")
    for name, result in tables.items():
        question = str(result["settings"]["question"])
        where = f"{result['settings']['prompts'].replace('_', '-')} prompts"
        parts += [f"<h3>{escape(question)}</h3><p>{escape(where)}</p>", methods(result)]
        parts += [picture(folder / f"{name}.png", question), source(result)]
    for name, title in (
        (MEMORY, "Memory"),
        (FAST, "Memory and few iterations"),
        (PAPER, "The paper's memory"),
        ("probe", "Layer by layer"),
        ("single_object", "One object"),
    ):
        if found := results.get(name):
            parts += [
                f"<h2>{title}</h2>",
                methods(found),
                plain(found),
                picture(folder / f"{name}.png", title),
                picture(folder / f"{name}_relevance.png", "soft IoU of layers and heads"),
                source(found),
            ]
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; media-src data:"
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width"><title>TTOM: evidence</title>'
        f"<style>{STYLE}</style></head><body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


# Files --------------------------------------------------------------------------------------------


def load_results(folder: Path) -> dict[str, Result]:
    """Every result file of a folder by name; TTOMError for one of another form."""
    if not folder.is_dir():
        raise TTOMError(f"There is no folder of results at {folder}; make some with `make evidence`.")
    results = {}
    for path in sorted(folder.glob("*.json")):
        try:
            result = json.loads(path.read_text(encoding="utf-8"))
            _check(path.stem, result)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise TTOMError(f"{path} is not a result file of this version; make it again.") from error
        results[path.stem] = result
    return results


def _check(name: str, result: Any) -> None:
    for key in ("command", "commit", "machine", "seed"):
        assert isinstance(result[key], str | int)
    assert isinstance(result.get("settings", {}), dict)
    for figure in result["figures"].values():
        assert isinstance(figure["value"] + figure["n"], float | int) and isinstance(figure["unit"], str)
        bounds = figure["low"], figure["high"]
        assert bounds == (None, None) or bounds[0] <= figure["value"] <= bounds[1]
    if name in EVIDENCE or name.startswith("ablation_"):
        settings = result["settings"]
        assert isinstance(settings["methods"], dict) and isinstance(settings["prompts"], str)
        assert isinstance(settings["question"], str)
        for entry in settings.get("videos", []):
            assert {"file", "prompt", "category", "seed"} <= entry.keys()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "report" / "index.html")
    options = parser.parse_args(arguments)
    try:
        text = page(load_results(options.results), options.results)
    except TTOMError as error:
        print(f"report: {error}", file=sys.stderr)
        return 2
    options.out.parent.mkdir(parents=True, exist_ok=True)
    part = options.out.with_name(options.out.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(options.out)
    print(f"wrote {options.out}: {len(text) / 1e6:.1f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
