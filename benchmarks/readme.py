"""Fill the README's tables from benchmarks/results/*.json: no figure there is typed by hand.

    python benchmarks/readme.py            # rewrite what stands between the markers
    python benchmarks/readme.py --check    # change nothing; exit 1 where the README says otherwise

The table between `<!-- figures:NAME -->` and `<!-- /figures:NAME -->` shows results/NAME.json,
which has the form {command, commit, machine, seed, figures: {name: {value, low, high, n, unit}}};
the one between `<!-- presets -->` and `<!-- /presets -->` shows the presets that the code holds, the one
between `<!-- claims -->` and `<!-- /claims -->` what the results say of the paper's claims and of our goals,
and the one between `<!-- ablations -->` and `<!-- /ablations -->` every results/ablation_NAME.json in a line.
What has not been measured is said, or, of the evidence and the claims, left empty.
"""

from __future__ import annotations

import argparse
import itertools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
Figures = dict[str, dict[str, Any]]
BLOCK = re.compile(
    r"(?P<open><!-- (?P<name>figures:\w+|presets|claims|ablations) -->\n).*?(?P<close><!-- /(?P=name) -->)",
    re.DOTALL,
)


def evaluation_table(figures: Figures) -> str:
    """The table that `ttom evaluate` prints: one row a category, 95 % intervals."""
    from ttom_core.evaluation.evaluate import markdown

    return markdown(figures)


def plain_table(figures: Figures) -> str:
    """One row a figure, for results that have no table of their own."""
    lines = ["| figure | value | low – high | n | unit |", "|---|---|---|---|---|"]
    for name, figure in figures.items():
        low, high = figure["low"], figure["high"]
        between = "" if low is None or high is None else f"{_number(low)} – {_number(high)}"
        cells = [name.replace("_", " "), _number(figure["value"]), between]
        lines.append("| " + " | ".join([*cells, str(figure["n"]), figure["unit"]]) + " |")
    return "\n".join(lines)


def grouped_table(columns: dict[str, str], first: str, figures: Figures, ending: bool) -> str:
    """One row a group: figures are named COLUMN_GROUP, or GROUP_COLUMN where columns are the `ending`."""
    rows: dict[str, dict[str, str]] = {}
    for name, figure in figures.items():
        for column in columns:
            mark = f"_{column}" if ending else f"{column}_"
            if not (name.endswith(mark) if ending else name.startswith(mark)):
                continue
            group = name.removesuffix(mark) if ending else name.removeprefix(mark)
            cell = f"{figure['value']:.2f} ({figure['low']:.2f}–{figure['high']:.2f})"
            rows.setdefault(group, {})[column] = cell
            if column == next(iter(columns)):
                rows[group]["n"] = str(figure["n"])
    lines = [f"| {first} | n | " + " | ".join(columns.values()) + " |", "|---" * (len(columns) + 2) + "|"]
    for group, cells in rows.items():
        texts = [group.replace("_", " "), *(cells.get(column, "") for column in ("n", *columns))]
        lines.append("| " + " | ".join(texts) + " |")
    return "\n".join(lines)


def planning_table(figures: Figures) -> str:
    """One row a category of prompts."""
    columns = {"score": "expectations met", "obeyed": "prompts obeyed", "silent": "missed and not said"}
    return grouped_table(columns, "prompts", figures, ending=False)


def methods_table(figures: Figures) -> str:
    """One row a method: the paper's table 1, or the ways of using a memory."""
    columns = {
        "composition": "composition",
        "presence": "presence",
        "distortion": "distortion (less is better)",
    }
    return grouped_table(columns | {"seconds": "seconds a clip"}, "method", figures, ending=True)


def store_table(figures: Figures) -> str:
    """What does not depend on the size, then one row a size of the store."""
    columns = {
        "read_ms": "read top 5, ms",
        "insert_ms": "insert, ms",
        "open_and_first_read_s": "open and first read, s",
        "recall": "share of the 5 nearest found",
    }
    rest = {name: f for name, f in figures.items() if not re.search(r"_\d+[kM](_one_bucket)?$", name)}
    sizes = {name: f for name, f in figures.items() if name not in rest}
    tables = [plain_table(rest)] if rest else []
    tables += [grouped_table(columns, "entries", sizes, ending=False)] if sizes else []
    return "\n\n".join(tables)


FULL_SIZE = re.compile(
    r"(?P<model>[^_]+)_(?P<layers>deep|released|small)_(?P<scope>reachable|selected)"
    r"_(?P<design>whole_forward|early_exit|prefix_cache|read_only)(?P<saving>(_checkpointing)?)"
    r"_(?P<what>(overhead|memory)(_counted|_time|_forecast)?)"
)


def full_size_table(figures: Figures) -> str:
    """Overhead by design, memory foretold and measured, the scaled-down models; and what had no GPU."""
    cells: dict[tuple[str, str, str], dict[str, str]] = {}
    for name, figure in figures.items():
        if parts := FULL_SIZE.fullmatch(name):
            column = parts["design"] + parts["saving"] + "_" + parts["what"]
            row = cells.setdefault((parts["model"], parts["layers"], parts["scope"]), {})
            row[column] = f"{_number(figure['value'])} {figure['unit'].split()[0]}"
    whole = {row: found for row, found in cells.items() if row[1] != "small"}
    small = {row: found for row, found in cells.items() if row[1] == "small"}
    ways = ("whole_forward", "early_exit", "prefix_cache", "read_only")
    designs = {design: design.replace("_", " ") for design in ways}
    saving = {"prefix_cache": "memory", "prefix_cache_checkpointing": "memory with checkpointing"}
    tables = [
        (whole, {"overhead_counted": "{}, counted", "overhead": "{}, timed"}, designs),
        (whole, {"memory_forecast": "{}, forecast", "memory": "{}, measured"}, saving),
        (small, {"overhead_counted": "{}, counted", "overhead_time": "{}, timed on a CPU"}, designs),
    ]
    texts = []
    for rows, kinds, columns in tables:
        heads = {
            f"{way}_{kind}": text.format(words)
            for way, words in columns.items()
            for kind, text in kinds.items()
        }
        shown = [column for column in heads if any(column in found for found in rows.values())]
        if not shown:
            continue
        lines = ["| model | loss layers | scope | " + " | ".join(heads[column] for column in shown) + " |"]
        lines.append("|---" * (len(shown) + 3) + "|")
        for case, found in rows.items():
            lines.append("| " + " | ".join([*case, *(found.get(column, "–") for column in shown)]) + " |")
        texts.append("\n".join(lines))
    timed = {model for (model, *_), found in whole.items() if any(c.endswith("_overhead") for c in found)}
    if absent := sorted({model for model, *_ in whole} - timed):
        texts.append(
            "Absent, for they need a GPU and there was none: the overhead in time and the measured peak of "
            f"memory of {', '.join(absent)}. Floating point operations, and bytes foretold, are counted "
            "on the meta device; neither has been held against a card for them."
        )
    return "\n\n".join(texts)


def presets_table() -> str:
    """One row a setting, one column a preset."""
    from ttom_core.optimize import PRESETS, LatentSettings, TTOSettings

    values = {name: preset.model_dump(mode="json") for name, preset in PRESETS.items()}
    meanings = [(name, field.description) for name, field in TTOSettings.model_fields.items()]
    meanings += [(f"latents.{n}", field.description) for n, field in LatentSettings.model_fields.items()]
    lines = [
        "| setting | " + " | ".join(values) + " | meaning |",
        "|---" * (len(values) + 2) + "|",
    ]
    for setting, meaning in meanings:
        group, _, name = setting.rpartition(".")
        found = [(preset[group] or {}) if group else preset for preset in values.values()]
        cells = [_setting(preset.get(name)) for preset in found]
        lines.append("| " + " | ".join([f"`{setting}`", *cells, meaning or ""]) + " |")
    return "\n".join(lines) + "\n"


def claims_table(results: Path) -> str:
    """One row a claim or goal that has a figure, and how many have none; nothing where none has."""
    from ttom_core.evaluation.claims import RULE, judged, measured, mixed, unmeasured
    from ttom_core.evaluation.paper import CLAIMS, GOALS

    found = {path.stem: _result(path) for path in sorted(results.glob("*.json"))}
    claims = (*CLAIMS, *GOALS)
    rows = [(claim.source, claim.text, *judged(claim, found)) for claim in claims if measured(claim, found)]
    if not rows:
        return ""
    lines = ["| | claim | verdict | figures |", "|---|---|---|---|"]
    lines += [f"| {source} | {text} | **{verdict}** | {words} |" for source, text, verdict, words in rows]
    notes = [RULE, unmeasured(claims, found), f"**{warning}**" if (warning := mixed(found)) else ""]
    return "\n".join([*lines, *(line for note in notes if note for line in ("", note)), ""])


def ablations_table(results: Path) -> str:
    """One row a question: composition and presence of each variant, the preset's own in bold."""
    rows = []
    for path in sorted(results.glob("ablation_*.json")):
        result = _result(path)
        figures, settings = result["figures"], result["settings"]
        names, own = list(settings["methods"]), settings["pairs"][0][1]
        words = [name.split("_") for name in names]
        start = sum(1 for _ in itertools.takewhile(lambda w: len(set(w)) == 1, zip(*words, strict=False)))
        cells = []
        for name, parts in zip(names, words, strict=True):
            scores = " / ".join(f"{figures[f'{name}_{q}']['value']:.2f}" for q in ("composition", "presence"))
            text = " ".join([*parts[start:], scores])
            told = figures.get(f"composition_of_{name}_over_{own}", {"low": 0, "high": 0})
            mark = " ▲" if told["low"] > 0 else " ▼" if told["high"] < 0 else ""
            cells.append(f"**{text}**" if name == own else text + mark)
        count, prompts = figures[f"{own}_composition"]["n"], settings["prompts"].replace("_", "-")
        rows.append(f"| {settings['question']} | {count} {prompts} | {' · '.join(cells)} |")
    if not rows:
        return ""
    return "\n".join(["| question | prompts | composition / presence |", "|---|---|---|", *rows, ""])


TABLES: dict[str, Callable[[Figures], str]] = {
    "evaluate": evaluation_table,
    "evidence": methods_table,
    "cogvideox": methods_table,
    "full_size": full_size_table,
    "memory": store_table,
    "planning": planning_table,
    "memory_quality": methods_table,
    "memory_paper": methods_table,
    "memory_fast": methods_table,
}


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _setting(value: object) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return "see below"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def block(name: str, results: Path) -> str:
    """What stands between the markers of `name`: its table, and where its figures come from."""
    if name == "presets":
        return presets_table()
    if name == "claims":
        return claims_table(results)
    if name == "ablations":
        return ablations_table(results)
    name = name.removeprefix("figures:")
    path = results / f"{name}.json"
    if not path.exists():
        return "" if name == "evidence" else "*Not measured yet.*\n"
    result = _result(path)
    table = TABLES.get(name, plain_table)(result["figures"])
    source = f"`{result['command']}` at commit {result['commit']}, seed {result['seed']}"
    return f"{table}\n\nMade by {source}, on {result['machine']}.\n"


def _result(path: Path) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return result


def fill(text: str, results: Path) -> str:
    """The README's text with every block made anew from `results`."""
    return BLOCK.sub(lambda m: m["open"] + block(m["name"], results) + m["close"], text)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 on a difference")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args(arguments)
    old = options.readme.read_text(encoding="utf-8")
    new = fill(old, options.results)
    if old == new:
        print(f"{options.readme.name} agrees with the results.")
        return 0
    if options.check:
        stale = [
            a["name"] for a, b in zip(BLOCK.finditer(old), BLOCK.finditer(new), strict=True) if a[0] != b[0]
        ]
        print(
            f"{options.readme.name} differs from the results in {', '.join(stale)}; run `make figures`.",
            file=sys.stderr,
        )
        return 1
    options.readme.write_text(new, encoding="utf-8")
    print(f"{options.readme.name} rewritten from the results.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
